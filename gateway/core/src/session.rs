//! A session: its window, its leases, and what it was dealt before.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::deaths::BreakId;
use crate::pace::Pace;
use crate::partition::Pid;
use crate::types::{Millis, Window};

/// Offsets that one lease entry can name.
pub(crate) const LEASE_SPAN: i64 = 128;

/// Names a lease entry: some offsets of `base..base + 128` that were dealt together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LeaseKey {
    pub(crate) pid: Pid,
    pub(crate) base: i64,
    pub(crate) id: u64,
}

/// Which offsets, in which frame they were dealt, until when.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lease {
    pub(crate) mask: u128,
    pub(crate) frame: u64,
    pub(crate) dealt_at: Millis,
    /// Records that the session held then, with these.
    pub(crate) held: u32,
    pub(crate) expires: Millis,
    /// One record, dealt as a suspect.
    pub(crate) suspect: bool,
}

/// How leases ended that a session once had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ended {
    Ack,
    Retry,
    DeadLetter,
    Release,
    /// Expired or taken back.
    Taken,
}

type PastKey = (Pid, i64, u64, Ended);

/// Entries of what is remembered, whatever the window: a client that asks for two thousand million records at once has
/// not earned as much memory. The oldest go first; they are then answered as never dealt.
pub(crate) const REMEMBERED_ENTRIES_MAX: usize = 16_384;
/// And all sessions of a subscription together: about 100 MiB at the most. With many sessions each remembers less.
pub(crate) const REMEMBERED_ENTRIES_SUM_MAX: usize = 1 << 20;
/// But no session less than this: what a client says again after a break, with the usual window, is still known.
pub(crate) const REMEMBERED_ENTRIES_MIN: usize = 128;

/// How many entries each of so many sessions may remember. In steps, so that not each new session changes it for all.
pub(crate) fn remembered_share(sessions: usize) -> usize {
    let share = REMEMBERED_ENTRIES_SUM_MAX / sessions.max(1).next_power_of_two();
    share.clamp(REMEMBERED_ENTRIES_MIN, REMEMBERED_ENTRIES_MAX)
}

/// The leases that a session no longer has, as many as are remembered.
#[derive(Debug, Default)]
pub(crate) struct Past {
    marks: BTreeMap<PastKey, u128>,
    order: VecDeque<PastKey>,
    count: u64,
    entries_max: usize,
}

/// The session of one consumer.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) consumer_id: Option<String>,
    /// Another node relays it.
    pub(crate) relayed: bool,
    pub(crate) window: Window,
    /// The rest of the consumer's window is with other owners.
    pub(crate) window_is_part: bool,
    pub(crate) held: u64,
    pub(crate) held_bytes: u64,
    pub(crate) ack_timeout_ms: u64,
    pub(crate) max_frame_bytes: usize,
    pub(crate) report_commits: bool,
    /// Of the last frame.
    pub(crate) sequence: u64,
    /// Set while it waits for a resume.
    pub(crate) broken_until: Option<Millis>,
    pub(crate) draining: bool,
    pub(crate) unresponsive: bool,
    pub(crate) in_ring: bool,
    /// How many records at once are good for it.
    pub(crate) pace: Pace,
    pub(crate) leases: BTreeMap<LeaseKey, Lease>,
    pub(crate) past: Past,
    /// The largest window it had, for what is remembered.
    pub(crate) window_max: u64,
    /// Where it settled something, when it asked for `Committed`.
    pub(crate) settled_in: BTreeSet<Pid>,
    /// Offsets that it settled as durable and that Kafka does not have.
    pub(crate) durable_waiting: u64,
    /// Leases of records that were dealt as suspects: one at most.
    pub(crate) suspects: u32,
    /// It counts among the connected sessions with leases.
    pub(crate) counted: bool,
    /// Its break, while it held leases, and nobody knows yet whether it comes back.
    pub(crate) broke: Option<BreakId>,
}

/// The bits of `base..` that lie within `first..=last`.
pub(crate) fn bits_within(base: i64, mask: u128, first: i64, last: i64) -> u128 {
    if last < base || first >= base + LEASE_SPAN {
        return 0;
    }
    let from = first.saturating_sub(base).max(0) as u32;
    let to = last.saturating_sub(base).min(LEASE_SPAN - 1) as u32;
    mask & (u128::MAX << from) & (u128::MAX >> (127 - to))
}

/// The offsets of a mask, ascending.
pub(crate) fn offsets_of(base: i64, mut mask: u128) -> impl Iterator<Item = i64> {
    std::iter::from_fn(move || {
        if mask == 0 {
            return None;
        }
        let bit = mask.trailing_zeros();
        mask &= mask - 1;
        Some(base + i64::from(bit))
    })
}

// === impl Session ===

impl Session {
    /// How many records more it may hold.
    pub(crate) fn free(&self) -> u64 {
        if self.broken_until.is_some() || self.draining {
            return 0;
        }
        let bytes_full = self.window.max_bytes > 0 && self.held > 0 && self.held_bytes > self.window.max_bytes;
        if bytes_full || (self.unresponsive && self.held > 0) {
            return 0;
        }
        let free = u64::from(self.window.max_records).saturating_sub(self.held);
        if self.unresponsive { free.min(1) } else { free }
    }

    /// Whether a record of so many bytes goes into the window, after `held` records of `held_bytes`.
    pub(crate) fn takes(&self, held: u64, held_bytes: u64, bytes: u64) -> bool {
        let alone = held == 0 && !self.window_is_part;
        self.window.max_bytes == 0 || alone || held_bytes + bytes <= self.window.max_bytes
    }

    pub(crate) fn set_window(&mut self, window: Window) {
        self.window = window;
        self.window_max = self.window_max.max(u64::from(window.max_records));
    }

    /// Lease entries with something in `first..=last`, and those bits. Of a range reversed: nothing.
    pub(crate) fn leases_in(&self, pid: Pid, first: i64, last: i64) -> impl Iterator<Item = (LeaseKey, Lease, u128)> {
        let from = LeaseKey { pid, base: first.saturating_sub(LEASE_SPAN - 1), id: 0 };
        // One search instead of two: where it ends shows on the way. And a client chose it: it may end before it begins.
        let within = self.leases.range(from..).take_while(move |(key, _)| key.pid == pid && key.base <= last);
        within.filter_map(move |(key, lease)| {
            let bits = bits_within(key.base, lease.mask, first, last);
            (bits != 0).then_some((*key, *lease, bits))
        })
    }

    pub(crate) fn holds(&self, pid: Pid, offset: i64) -> bool {
        self.leases_in(pid, offset, offset).next().is_some()
    }
}

// === impl Past ===

impl Past {
    /// Remembers; beyond `count_max` the oldest is forgotten.
    pub(crate) fn add(&mut self, key: LeaseKey, ended: Ended, bits: u128, count_max: u64) {
        let name = (key.pid, key.base, key.id, ended);
        let mark = self.marks.entry(name).or_insert_with(|| {
            self.order.push_back(name);
            0
        });
        self.count += u64::from((bits & !*mark).count_ones());
        *mark |= bits;
        while (self.count > count_max || self.order.len() > self.entries_max) && self.order.len() > 1 {
            self.forget_oldest();
        }
    }

    /// What it may remember from now on.
    pub(crate) fn set_entries_max(&mut self, entries_max: usize) {
        self.entries_max = entries_max;
        if self.order.len() > entries_max {
            while self.order.len() > entries_max {
                self.forget_oldest();
            }
            self.order.shrink_to_fit();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some(mark) = self.order.pop_front().and_then(|name| self.marks.remove(&name)) {
            self.count -= u64::from(mark.count_ones());
        }
    }

    pub(crate) fn entries(&self) -> usize {
        self.order.len()
    }

    /// How many leases are remembered.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// What is remembered of `first..=last`: how it ended, base, bits.
    pub(crate) fn within(&self, pid: Pid, first: i64, last: i64) -> impl Iterator<Item = (Ended, i64, u128)> {
        let from = (pid, first.saturating_sub(LEASE_SPAN - 1), 0, Ended::Ack);
        let within = self.marks.range(from..).take_while(move |((of, base, ..), _)| *of == pid && *base <= last);
        within.filter_map(move |((_, base, _, ended), mark)| {
            let bits = bits_within(*base, *mark, first, last);
            (bits != 0).then_some((*ended, *base, bits))
        })
    }

    /// The partition is gone: its epoch is not live any more.
    pub(crate) fn forget(&mut self, pid: Pid) {
        let from = (pid, i64::MIN, 0, Ended::Ack);
        let to = (pid, i64::MAX, u64::MAX, Ended::Taken);
        let names: Vec<PastKey> = self.marks.range(from..=to).map(|(name, _)| *name).collect();
        if names.is_empty() {
            return;
        }
        for name in names {
            self.count -= self.marks.remove(&name).map_or(0, |mark| u64::from(mark.count_ones()));
        }
        self.order.retain(|name| name.0 != pid);
    }
}
