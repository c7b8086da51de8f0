//! The model's view of commits: never past a record that is not done, one in flight, what each of them stores.

use sluice_core::{CommitError, Epoch, NextOffset, OnExhausted, SessionId, TopicPartition};

use crate::support::model::{Model, Part, Slot, Snapshot, State};

/// With so many units nothing is cut in schedules as short as ours, whatever the engine says.
const UNITS_PLENTY: usize = 1_000;
/// Between a text of so many units and those that it needs at most to be written again.
const UNITS_SPARE: usize = 13;
/// A commit that the frontier waits for this long, in virtual time, is missing.
const COMMIT_OVERDUE_MS: u64 = 3_000;

impl Model {
    pub(crate) fn committing(
        &mut self,
        tp: &TopicPartition,
        epoch: Epoch,
        offset: NextOffset,
        metadata: &str,
        cut: bool,
    ) {
        let units = metadata.encode_utf16().count();
        let drops = self.policy.on_exhausted == OnExhausted::Drop;
        let Some(part) = self.parts.get(tp).filter(|p| p.epoch == epoch) else {
            self.broken(format!("a commit for {tp} in an epoch that does not live here"));
            return;
        };
        let frontier = part.frontier();
        let max = part.units_max;
        let overlap = part.in_flight.is_some();
        if offset.0 > frontier {
            self.violations.push(format!("commit {tp} {offset:?} passes {frontier}, which is not done"));
        }
        if overlap {
            self.violations.push(format!("two commits of {tp} in flight"));
        }
        if units > max {
            self.violations.push(format!("metadata of {units} units, the most is {max}"));
        }
        let part = self.parts.get_mut(tp).expect("looked up above");
        let mut snapshot = part.snapshot(offset.0, metadata);
        snapshot.whole &= (max >= UNITS_PLENTY || !cut) && !drops;
        part.in_flight = Some(snapshot);
    }

    pub(crate) fn commit_result(&mut self, tp: &TopicPartition, epoch: Epoch, result: Result<NextOffset, CommitError>) {
        let now = self.now;
        let Some(part) = self.parts.get_mut(tp).filter(|p| p.epoch == epoch) else { return };
        let Some(snapshot) = part.in_flight.take() else { return };
        match result {
            Ok(_) => {
                part.commit_from = snapshot.offset;
                part.units_taken = part.units_taken.max(snapshot.metadata.encode_utf16().count());
                part.acked = Some(snapshot);
                part.dirty_since = None;
            }
            Err(error) => {
                part.dirty_since = Some(now);
                part.expelled |= error == CommitError::NotMember;
                if error == CommitError::MetadataTooLarge {
                    // What Kafka took once must stay possible, with what it may need to be written again.
                    let possible = (part.units_taken + UNITS_SPARE).min(part.units_max);
                    part.units_max = (part.units_max / 2).max(possible);
                }
            }
        }
        self.moved(tp);
    }

    pub(crate) fn rewound(&mut self, tp: &TopicPartition) {
        let now = self.now;
        if let Some(part) = self.parts.get_mut(tp) {
            part.dirty_since = Some(now);
            part.commit_from = i64::MIN;
        }
    }

    pub(crate) fn committed(&mut self, session: SessionId, tp: &TopicPartition, offset: NextOffset) {
        let asked = self.sessions.get(&session).is_some_and(|s| s.report_commits);
        let said = self.parts.get(tp).and_then(|p| p.acked.as_ref()).is_some_and(|s| offset.0 <= s.offset);
        if !asked || !said {
            self.broken(format!("Committed {tp} {offset:?} to {session:?}: asked for {asked}, said by Kafka {said}"));
        }
    }

    pub(crate) fn drained(&mut self, tp: &TopicPartition) {
        if self.absent_drains.remove(tp) {
            return;
        }
        let Some(part) = self.forget_part(tp) else {
            self.broken(format!("{tp} drained, which is not assigned"));
            return;
        };
        let committed = part.acked.as_ref().map_or(part.commit_from, |s| s.offset);
        // A refused commit is repeated for a while beyond the grace; one that cannot succeed is not.
        let hopeless = part.expelled || part.revoking.is_some_and(|deadline| deadline < self.now);
        let facts = [
            (part.revoking.is_none(), "it was not asked to"),
            (part.leased() > 0, "a lease is open"),
            (part.letters() > 0, "a dead letter is on its way"),
            (part.in_flight.is_some(), "its commit has no answer"),
            (!hopeless && committed < part.sure_frontier(), "what is done was not committed"),
        ];
        for (_, why) in facts.iter().filter(|(is, _)| *is) {
            self.broken(format!("{tp} drained, but {why}"));
        }
        self.gone_for_answers(tp);
    }

    /// `next`: the partition is put back on the fetch handle, from there.
    pub(crate) fn hold(&mut self, tp: &TopicPartition, next: Option<NextOffset>) {
        let Some(part) = self.parts.get_mut(tp) else {
            self.broken(format!("{tp} is held or unheld, and is not assigned"));
            return;
        };
        let twice = part.held_back != next.is_some();
        let wrong = next.is_some_and(|n| n.0 != part.next);
        part.held_back = next.is_none();
        if twice || wrong {
            let what = format!("{tp}: hold or unhold from {next:?}, twice {twice}, received up to {}", part.next);
            self.violations.push(what);
        }
    }

    /// After a tick and its outputs: what is done does not wait for its commit for ever.
    pub(crate) fn check_commits_given(&mut self) {
        let now = self.ticked;
        let overdue = |p: &Part| {
            p.in_flight.is_none() && !p.expelled && p.dirty_since.is_some_and(|since| since + COMMIT_OVERDUE_MS <= now)
        };
        let late: Vec<_> = self
            .parts
            .iter()
            .filter(|(_, p)| overdue(p))
            .map(|(tp, p)| {
                format!("{tp}: frontier {}, committed up to {}, and no commit comes", p.frontier(), p.commit_from)
            })
            .collect();
        self.violations.extend(late);
    }
}

impl Part {
    /// What a commit at `offset` made now is to hold.
    pub(crate) fn snapshot(&self, offset: i64, metadata: &str) -> Snapshot {
        let above = |s: &(&i64, &Slot)| *s.0 >= offset;
        let done = |s: &Slot| matches!(s.state, State::Done | State::Unsure);
        let mut snapshot = Snapshot { offset, metadata: metadata.into(), whole: true, ..Snapshot::default() };
        snapshot.done = self.slots.iter().filter(above).filter(|(_, s)| done(s)).map(|(o, _)| *o).collect();
        snapshot.done.extend(self.restored.done.range(self.next.max(offset)..));
        let counted = |s: &(&i64, &Slot)| !done(s.1) && s.1.attempts.1 > 0;
        snapshot.attempts = self.slots.iter().filter(above).filter(counted).map(|(o, s)| (*o, s.attempts)).collect();
        snapshot.attempts.extend(self.restored.attempts.range(self.next.max(offset)..).map(|(o, a)| (*o, *a)));
        let counts = self.durable_attempts.iter().filter(|(o, _)| snapshot.attempts.contains_key(*o));
        snapshot.durable_attempts = counts.map(|(o, n)| (*o, *n)).collect();
        snapshot.durable = self.durable.iter().filter(|o| **o >= offset).copied().collect();
        let unsure = self.slots.range(offset..).any(|(_, s)| s.state == State::Unsure);
        let carried = self.restored.done.range(self.next..).next().is_some()
            || self.restored.attempts.range(self.next..).next().is_some();
        snapshot.whole = !unsure && (self.restored.whole || !carried);
        snapshot
    }
}
