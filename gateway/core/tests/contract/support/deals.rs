//! The model's view of what the engine says to sessions: deliveries under windows, revocations, and that nothing starves.

use std::collections::BTreeMap;

use sluice_core::{Batch, Leases, OffsetRange, RevokeReason, SessionId, TopicPartition};

use crate::support::model::{Model, Notice, Slot, State};

/// What a session holds, in records and bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) records: u64,
    pub(crate) bytes: u64,
}

impl Model {
    pub(crate) fn held(&self, session: SessionId) -> Held {
        let mut held = Held::default();
        for slot in self.parts.values().flat_map(|p| p.slots.values()) {
            if matches!(slot.state, State::Leased { session: s, .. } if s == session) {
                held.records += 1;
                held.bytes += slot.record.bytes() as u64;
            }
        }
        held
    }

    pub(crate) fn delivered(&mut self, session: SessionId, sequence: u64, batches: &[Batch]) {
        let Some(s) = self.sessions.get(&session) else {
            self.broken(format!("a delivery to {session:?}, which is not a session"));
            return;
        };
        let (window, expected) = (s.window, s.last_frame + 1);
        let silent = [(s.broken.is_some(), "broken"), (s.draining, "draining"), (self.paused, "paused")];
        let (unresponsive, frame_limit, relayed) = (s.unresponsive, s.max_frame_bytes, s.relayed);
        for (_, why) in silent.iter().filter(|(is, _)| *is) {
            self.broken(format!("a delivery to {session:?} while {why}"));
        }
        if sequence != expected {
            self.broken(format!("frame {sequence} to {session:?}, should be {expected}"));
        }
        if relayed && let Some(other) = self.near_and_empty(batches) {
            self.broken(format!(
                "a delivery to {session:?}, which is relayed, while {other:?} of this node holds nothing"
            ));
        }
        let before = self.held(session);
        let records: u64 = batches.iter().map(|b| b.records.len() as u64).sum();
        let bytes: u64 = batches.iter().flat_map(|b| b.records.iter()).map(|d| d.record.bytes() as u64).sum();
        let alone = before.records == 0 && records == 1;
        let over_bytes = window.max_bytes != 0 && before.bytes + bytes > window.max_bytes && !alone;
        if before.records + records > u64::from(window.max_records) || over_bytes {
            self.broken(format!("{session:?} held {before:?}, was dealt {records} of {bytes} B, its {window:?}"));
        }
        let most = (self.policy.frame_bytes_max as u64).min(frame_limit);
        if records > self.policy.frame_records_max as u64 || (records > 1 && bytes > most) || records == 0 {
            self.broken(format!("a frame of {records} records, {bytes} B"));
        }
        if unresponsive && (before.records > 0 || records > 1) {
            self.broken(format!("{session:?} settled nothing since an expiry, held {before:?}, was dealt {records}"));
        }
        let slot = |b: &Batch, o: i64| self.parts.get(&b.partition).and_then(|p| p.slots.get(&o)).cloned();
        let slots = batches.iter().flat_map(|b| b.records.iter().filter_map(move |d| slot(b, d.record.offset)));
        let suspects = slots.filter(|slot| self.is_suspect(slot)).count();
        if suspects > 0 && (records > 1 || self.holds_suspect(session)) {
            self.broken(format!("{session:?} was dealt {suspects} suspects among {records} records, or holds one"));
        }
        for batch in batches {
            self.dealt_batch(session, sequence, batch, suspects > 0);
        }
        let s = self.sessions.get_mut(&session).expect("looked up above");
        s.last_frame = sequence;
        s.dealt += records;
    }

    /// A session of this node that would have taken these records: it holds nothing, and nothing keeps them from it.
    fn near_and_empty(&self, batches: &[Batch]) -> Option<SessionId> {
        let slot = |b: &Batch, o: i64| self.parts.get(&b.partition).and_then(|p| p.slots.get(&o));
        let slots = || batches.iter().flat_map(|b| b.records.iter().filter_map(move |d| slot(b, d.record.offset)));
        let has_room = |id: &SessionId| {
            self.sessions.get(id).is_some_and(|s| {
                !s.relayed
                    && s.broken.is_none()
                    && !s.draining
                    && s.window.max_records > 0
                    && s.max_frame_bytes >= 4 << 20
            })
        };
        // What it released itself goes to another first; a suspect waits for one that holds none.
        let may_have = |id: &SessionId| slots().all(|slot| slot.not_to.is_none_or(|(by, _)| by != *id));
        let near = self.sessions.keys().filter(|id| has_room(id) && self.held(**id).records == 0 && may_have(id));
        near.copied().next()
    }

    fn dealt_batch(&mut self, session: SessionId, frame: u64, batch: &Batch, suspect: bool) {
        let tp = &batch.partition;
        let Some(part) = self.parts.get(tp) else {
            self.broken(format!("a delivery from {tp}, which is not assigned"));
            return;
        };
        if part.epoch != batch.epoch || part.revoking.is_some() {
            self.violations.push(format!("a delivery from {tp}: of an old epoch, or while it is handed over"));
        }
        if !batch.records.iter().is_sorted_by(|a, b| a.record.offset < b.record.offset) {
            self.violations.push("a batch is not ascending".into());
        }
        for dealt in batch.records.iter() {
            if let Err(why) = self.dealt_record(session, frame, batch, dealt, suspect) {
                self.broken(format!("{tp} {} to {session:?} in frame {frame}: {why}", dealt.record.offset));
            }
        }
    }

    fn dealt_record(
        &mut self,
        session: SessionId,
        frame: u64,
        batch: &Batch,
        dealt: sluice_core::Dealt<'_>,
        suspect: bool,
    ) -> Result<(), String> {
        let now = self.now;
        let sess = self.sessions.get_mut(&session).ok_or("no such session")?;
        let part = self.parts.get_mut(&batch.partition).ok_or("no such partition")?;
        let offset = dealt.record.offset;
        let earlier = part.turns(self.policy.ordering).behind.get(&offset).copied();
        let slot = part.slots.get_mut(&offset).ok_or("was never received in this epoch")?;
        let early = matches!(slot.state, State::Idle { not_before, .. } if not_before > now);
        let to_releaser = slot.not_to.is_some_and(|(s, until)| s == session && until > now);
        let before = slot.state.clone();
        slot.state = State::Leased { session, frame, deadline: now + sess.ack_timeout, suspect };
        slot.not_to = None;
        match before {
            State::Done => return Err("is done".into()),
            State::Letter { .. } => return Err("is on its way to the dead letters".into()),
            State::Leased { session, .. } => return Err(format!("is leased by {session:?}")),
            State::Undecided { .. } => return Err("its holder died, and why is not known".into()),
            State::Idle { .. } | State::Unsure => {}
        }
        if let Some(earlier) = earlier {
            return Err(format!("comes before {earlier}, which is before it in its lane and not done"));
        }
        if early {
            return Err(format!("waits for its retry: {before:?}"));
        }
        if to_releaser {
            return Err("it released it just now".into());
        }
        if slot.record != dealt.record {
            return Err("its content changed".into());
        }
        let (low, high) = slot.attempts;
        if !(low..=high).contains(&dealt.attempts) {
            return Err(format!("attempts {}, should be {low} to {high}", dealt.attempts));
        }
        slot.attempts = (dealt.attempts, dealt.attempts);
        Ok(())
    }

    pub(crate) fn revoked(&mut self, session: SessionId, leases: &Leases, reason: RevokeReason) {
        for OffsetRange { first, last } in &leases.offsets {
            let at = |offset| Notice { session, partition: leases.partition.clone(), epoch: leases.epoch.0, offset };
            let named: Vec<_> = self.notices.range(at(*first)..=at(*last)).map(|(n, r)| (n.clone(), *r)).collect();
            if named.is_empty() {
                self.broken(format!("{session:?} heard that {leases:?} was revoked, which it was not"));
            }
            for (notice, (expected, _)) in named {
                if reason != expected {
                    self.broken(format!("{notice:?}: revoked as {reason:?}, should be {expected:?}"));
                }
                self.notices.remove(&notice);
            }
        }
    }

    /// After all outputs were pulled: each holder that lives has heard of what was taken from it.
    pub(crate) fn check_notices_given(&mut self) {
        for (notice, (reason, must)) in std::mem::take(&mut self.notices) {
            if must {
                self.broken(format!("{notice:?} was taken back ({reason:?}), and its holder heard nothing"));
            }
        }
    }

    /// After all outputs were pulled: no record that is ready waits while a session has room for it.
    pub(crate) fn check_nothing_starves(&mut self) {
        if self.paused {
            return;
        }
        let ticked = self.ticked;
        let ordering = self.policy.ordering;
        let turns: BTreeMap<_, _> = self.parts.iter().map(|(tp, p)| (tp.clone(), p.turns(ordering))).collect();
        for (session, s) in &self.sessions {
            let held = self.held(*session);
            let closed = s.broken.is_some() || s.draining || (s.unresponsive && held.records > 0);
            if closed || held.records >= u64::from(s.window.max_records) {
                continue;
            }
            let has_suspect = self.holds_suspect(*session);
            for (tp, part) in self.parts.iter().filter(|(_, p)| p.revoking.is_none()) {
                let released =
                    |slot: &Slot, by: u64| slot.not_to.is_some_and(|(to, until)| to == *session && until > by);
                let maybe = |slot: &Slot| match slot.state {
                    State::Unsure => true,
                    State::Idle { not_before, .. } => not_before <= self.now && !released(slot, self.now),
                    _ => false,
                };
                // The lowest goes first: one that does not fit may hold up those above it.
                let turns = &turns[tp];
                let suspect = |slot: &Slot| has_suspect && self.is_suspect(slot);
                let dealable = |(offset, slot): &(&i64, &Slot)| {
                    maybe(slot) && !suspect(slot) && !turns.behind.contains_key(*offset)
                };
                let Some((offset, slot)) = part.slots.iter().find(dealable) else { continue };
                let bytes = slot.record.bytes() as u64;
                let fits = s.window.max_bytes == 0 || held.records == 0 || held.bytes + bytes <= s.window.max_bytes;
                // A frame carries more than the payloads: only what fits with room to spare must fit.
                let framed = bytes * 2 + 1024 < s.max_frame_bytes;
                let State::Idle { ready_by, not_before } = slot.state else { continue };
                // A marked one may wait for a verdict, which comes with a tick.
                let at_once = not_before == 0 && slot.marks.is_empty();
                let ready = ready_by <= ticked || (at_once && ready_by <= self.now);
                if ready && fits && framed && !released(slot, ticked) && !turns.perhaps.contains(offset) {
                    let what =
                        format!("{tp} {offset} is ready ({slot:?}), {session:?} holds {held:?} of {:?}", s.window);
                    self.violations.push(what);
                    return;
                }
            }
        }
    }

    /// The records of one partition with one letter each, as the scripts draw them.
    pub(crate) fn part_states(&self, tp: &TopicPartition) -> Vec<(i64, State)> {
        self.parts.get(tp).map(|p| p.slots.iter().map(|(o, s)| (*o, s.state.clone())).collect()).unwrap_or_default()
    }
}
