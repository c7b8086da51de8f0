//! How a client's window is split over the owners of its subscription. Pure.
//!
//! Contract: what the owners may hold together is never more than the window last read, but for what was dealt before it was
//! read, and for one record that is larger than `max_bytes` and finds all of it empty. What an owner may hold at most, its
//! *exposure*, is the larger of its part and of what it held when it echoed that part: only what the window has beyond the sum
//! of all exposures is given away. One grant an owner is under way, so an echo is always of the last one.

use std::collections::BTreeMap;

use sluice_core::Window;

use crate::peer::OwnerId;

/// An owner that could deal nothing else keeps this much, so that a first record needs no grant.
const RESERVE_RECORDS: u32 = 1;
/// But only where the window has this many records an owner.
const RESERVE_FROM: u32 = 8;

/// A part to be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) owner: OwnerId,
    pub(crate) number: u64,
    pub(crate) window: Window,
    /// It is the whole window.
    pub(crate) whole: bool,
}

/// An amount in records and bytes. Where the window has no limit in bytes, bytes are not looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Amount {
    records: u64,
    bytes: u64,
}

#[derive(Debug, Default)]
struct Part {
    number: u64,
    granted: Window,
    whole: bool,
    /// It may deal one record that is larger than the window: the last grant, or the one before that it may not have read, is
    /// whole.
    exceeds: bool,
    /// The last grant is not echoed.
    in_flight: bool,
    exposure: Amount,
    /// It has something ready.
    active: bool,
    /// It deals nothing more.
    closing: bool,
}

/// One client's window, and the parts of it.
#[derive(Debug)]
pub(crate) struct Split {
    window: Window,
    parts: BTreeMap<OwnerId, Part>,
    /// Who is first where it does not come out even.
    turn: usize,
    /// The whole window goes to this one, for a while.
    solo: Option<OwnerId>,
    closed: bool,
}

// === impl Part ===

impl Part {
    fn may_hold(&self) -> bool {
        self.exposure.records > 0 || self.in_flight
    }

    /// A bound of what it may hold under this part, until it is echoed.
    fn expose(&mut self, window: Window) {
        let bytes = if window.max_records == 0 {
            0
        } else if window.max_bytes == 0 {
            u64::MAX
        } else {
            window.max_bytes
        };
        self.exposure.records = self.exposure.records.max(window.max_records.into());
        self.exposure.bytes = self.exposure.bytes.max(bytes);
    }
}

// === impl Split ===

impl Split {
    /// `turn`: another for each client, so that small windows do not all go to the same owner.
    pub(crate) fn new(window: Window, turn: usize) -> Self {
        Self { window, parts: BTreeMap::new(), turn, solo: None, closed: false }
    }

    pub(crate) fn window(&self) -> Window {
        self.window
    }

    /// The client's new window.
    pub(crate) fn set_window(&mut self, window: Window) {
        self.window = window;
    }

    /// An owner at which the client has a session, of which it holds so many records already.
    pub(crate) fn add(&mut self, owner: OwnerId, held_records: u64, active: bool) {
        let bytes = if held_records > 0 { u64::MAX } else { 0 };
        let exposure = Amount { records: held_records, bytes };
        self.parts.insert(owner, Part { exposure, active, ..Part::default() });
    }

    /// Its session is gone, and what it held with it.
    pub(crate) fn remove(&mut self, owner: OwnerId) {
        self.parts.remove(&owner);
        self.solo = self.solo.filter(|solo| *solo != owner);
    }

    /// Whether the owner has something ready.
    pub(crate) fn set_active(&mut self, owner: OwnerId, active: bool) {
        if let Some(part) = self.parts.get_mut(&owner) {
            part.active = active;
        }
    }

    /// The owner deals nothing more.
    pub(crate) fn set_closing(&mut self, owner: OwnerId, closing: bool) {
        if let Some(part) = self.parts.get_mut(&owner) {
            part.closing = closing;
        }
    }

    /// Nobody deals anything more to this client.
    pub(crate) fn close(&mut self) {
        self.closed = true;
    }

    /// The owner read the grant of that number; then its session held so much.
    pub(crate) fn echo(&mut self, owner: OwnerId, number: u64, held_records: u64, held_bytes: u64) {
        let Some(part) = self.parts.get_mut(&owner).filter(|part| part.in_flight && part.number == number) else {
            return;
        };
        part.in_flight = false;
        part.exceeds = part.whole;
        part.exposure = Amount { records: held_records, bytes: held_bytes };
        let granted = part.granted;
        part.expose(granted);
    }

    /// Whether somebody gets less than is meant for it, and only an owner's word can change that: it held more than its part
    /// when it said so last, or the turn has to go on.
    pub(crate) fn is_restless(&self) -> bool {
        let targets = self.targets();
        let short = |(owner, part): (&OwnerId, &Part)| {
            let target = targets.get(owner).copied().unwrap_or_default();
            part.granted.max_records < target.max_records || (part.active && !part.closing && target.max_records == 0)
        };
        !self.closed && self.window.max_records > 0 && self.parts.len() > 1 && self.parts.iter().any(short)
    }

    /// Time went on for a restless one: the next is first, and whoever held more than its part is asked again.
    pub(crate) fn next_turn(&mut self) -> Vec<Grant> {
        // A turn that has not come about is not passed on: owners that are far off would be left out in step with it.
        if self.parts.values().all(|part| !part.in_flight) {
            self.turn = self.turn.wrapping_add(1);
        }
        let mut grants = self.plan();
        let over = |part: &Part| {
            let (records, bytes) = (part.granted.max_records.into(), part.granted.max_bytes);
            let more_bytes = self.window.max_bytes > 0 && bytes > 0 && part.exposure.bytes > bytes;
            !part.in_flight && (part.exposure.records > records || more_bytes)
        };
        let again: Vec<_> = self
            .parts
            .iter()
            .filter(|(_, part)| over(part))
            .map(|(owner, part)| (*owner, part.granted, part.whole))
            .collect();
        grants.extend(again.into_iter().filter_map(|(owner, window, whole)| self.grant(owner, window, whole)));
        grants
    }

    /// The whole window goes to this owner, or all have parts again.
    pub(crate) fn set_solo(&mut self, solo: Option<OwnerId>) {
        self.solo = solo.filter(|owner| self.parts.contains_key(owner));
    }

    /// Whether the owner has a part of the window, and not the whole, that it leaves unused though it has something ready.
    pub(crate) fn is_unused(&self, owner: OwnerId, held_records: usize) -> bool {
        let unused = |part: &Part| {
            part.active && !part.whole && !part.closing && !part.in_flight && part.granted.max_records > 0
        };
        held_records == 0 && self.window.max_bytes > 0 && self.parts.get(&owner).is_some_and(unused)
    }

    /// What each is meant to have.
    fn targets(&self) -> BTreeMap<OwnerId, Window> {
        let mut targets = BTreeMap::new();
        let open: Vec<OwnerId> = self.parts.iter().filter(|(_, part)| !part.closing).map(|(owner, _)| *owner).collect();
        if self.closed || open.is_empty() || self.window.max_records == 0 {
            return targets;
        }
        let active = |owner: &OwnerId| self.parts.get(owner).is_some_and(|part| part.active);
        let (first, others): (Vec<OwnerId>, Vec<OwnerId>) = match self.solo {
            Some(solo) => (vec![solo], Vec::new()),
            None => open.iter().partition(|owner| active(owner)),
        };
        let (first, others) = if first.is_empty() { (others, first) } else { (first, others) };
        let owners = u32::try_from(open.len()).unwrap_or(u32::MAX);
        let is_wide = self.window.max_records >= RESERVE_FROM.saturating_mul(owners);
        let reserve = if is_wide { RESERVE_RECORDS } else { 0 };
        let reserved = reserve * u32::try_from(others.len()).unwrap_or(u32::MAX);
        let rest = self.window.max_records - reserved;
        let count = u32::try_from(first.len()).unwrap_or(u32::MAX);
        for (at, owner) in first.iter().enumerate() {
            let place = (at + first.len() - self.turn % first.len()) % first.len();
            let more = u32::from(u32::try_from(place).unwrap_or(u32::MAX) < rest % count);
            targets.insert(*owner, self.part(rest / count + more));
        }
        targets.extend(others.into_iter().map(|owner| (owner, self.part(reserve))));
        targets
    }

    /// So many records, and as much of the bytes.
    fn part(&self, records: u32) -> Window {
        if records == 0 {
            return Window::default();
        }
        let bytes = u128::from(self.window.max_bytes) * u128::from(records) / u128::from(self.window.max_records);
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let max_bytes = if self.window.max_bytes == 0 { 0 } else { bytes.max(1) };
        Window { max_records: records, max_bytes }
    }

    /// The grants to be sent now.
    pub(crate) fn plan(&mut self) -> Vec<Grant> {
        let targets = self.targets();
        let owners: Vec<OwnerId> = self.parts.keys().copied().collect();
        let mut grants = Vec::new();
        // First what is taken away; it is free only with the echo.
        for owner in &owners {
            let target = targets.get(owner).copied().unwrap_or_default();
            let Some(part) = self.parts.get(owner) else { continue };
            let whole = part.whole && self.is_alone(*owner) && target == self.window;
            if target.max_records < part.granted.max_records || (part.whole && !whole) {
                let window = smaller(target, part.granted);
                grants.extend(self.grant(*owner, window, whole && window == target));
            }
        }
        for owner in &owners {
            let target = targets.get(owner).copied().unwrap_or_default();
            let Some((window, whole)) = self.raised(*owner, target) else { continue };
            grants.extend(self.grant(*owner, window, whole));
        }
        grants
    }

    /// Nobody else may hold anything for this client.
    fn is_alone(&self, owner: OwnerId) -> bool {
        self.parts.iter().all(|(other, part)| *other == owner || !part.may_hold())
    }

    /// As much of the target as there is room for; `None`: it has that.
    fn raised(&self, owner: OwnerId, target: Window) -> Option<(Window, bool)> {
        let part = self.parts.get(&owner).filter(|part| !part.in_flight)?;
        let others = self.parts.iter().filter(|(other, _)| **other != owner);
        if others.clone().any(|(_, other)| other.exceeds) {
            return None;
        }
        if self.is_alone(owner) && target == self.window && target.max_records > 0 {
            return (part.granted != target || !part.whole).then_some((target, true));
        }
        let sum = others.fold(Amount::default(), |sum, (_, other)| Amount {
            records: sum.records.saturating_add(other.exposure.records),
            bytes: sum.bytes.saturating_add(other.exposure.bytes),
        });
        let free_records = u64::from(self.window.max_records).saturating_sub(sum.records);
        let records = u32::try_from(free_records).unwrap_or(u32::MAX).min(target.max_records);
        let bytes = self.window.max_bytes.saturating_sub(sum.bytes).min(target.max_bytes);
        let window = match (records, bytes) {
            (0, _) => Window::default(),
            (_, 0) if self.window.max_bytes > 0 => Window::default(),
            _ => Window { max_records: records, max_bytes: bytes },
        };
        let is_more = window.max_records > part.granted.max_records
            || (window.max_records == part.granted.max_records && window.max_bytes != part.granted.max_bytes);
        is_more.then_some((window, false))
    }

    fn grant(&mut self, owner: OwnerId, window: Window, whole: bool) -> Option<Grant> {
        let part = self.parts.get_mut(&owner).filter(|part| !part.in_flight)?;
        part.number += 1;
        part.in_flight = true;
        part.expose(window);
        part.exceeds |= whole;
        (part.granted, part.whole) = (window, whole);
        Some(Grant { owner, number: part.number, window, whole })
    }
}

/// The target, but in no way more than what is granted: raising has its own rule.
fn smaller(target: Window, granted: Window) -> Window {
    let max_records = target.max_records.min(granted.max_records);
    if max_records == 0 {
        return Window::default();
    }
    let max_bytes = match (target.max_bytes, granted.max_bytes) {
        (0, bytes) | (bytes, 0) => bytes,
        (a, b) => a.min(b),
    };
    Window { max_records, max_bytes }
}

#[cfg(test)]
mod tests;
