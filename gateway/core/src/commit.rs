//! The commit decision: when, which offset, with what beside it.

use crate::durable::Sealed;
use crate::engine::Engine;
use crate::io::{CommitError, Output};
use crate::metadata::{self, Attempts, Saved};
use crate::partition::{Partition, Pid};
use crate::policy::Policy;
use crate::types::{Epoch, Millis, NextOffset, OffsetRange, TopicPartition};

/// Metadata above `metadata_units_frequent` is written this often at most.
const LARGE_EVERY_MS: u64 = 1_000;
/// A revoke's last commit is repeated until its deadline and this.
const REVOKE_MARGIN_MS: u64 = 1_000;
/// More ranges than a commit of the largest size can hold.
const RANGES_MAX: usize = 40_000;
/// Below this many units the metadata is given up rather than halved again.
const UNITS_MIN: usize = 16;

/// What is on its way to Kafka.
#[derive(Debug)]
pub(crate) struct Flight {
    /// Records below its offset.
    passed: u64,
    /// Its offset.
    pub(crate) base: i64,
    /// What durable settlements wait for, or were answered by.
    pub(crate) sealed: Sealed,
    /// Of its metadata.
    units: usize,
}

/// Where a partition's commits stand.
#[derive(Debug)]
pub(crate) struct CommitState {
    pub(crate) acknowledged: Option<NextOffset>,
    pub(crate) in_flight: Option<Flight>,
    /// Since when something is not committed.
    changed_at: Option<Millis>,
    done_since: u64,
    force: bool,
    /// A durable settlement waits.
    soon: bool,
    /// When the last one went out.
    sent_at: Option<Millis>,
    not_before: Millis,
    units_max: usize,
    /// As many units this broker took.
    units_taken: usize,
    large_until: Option<Millis>,
    /// Records below the last acknowledged commit.
    passed: u64,
    /// This node is no member: it must not commit, since nobody would fence it.
    halted: bool,
}

// === impl CommitState ===

impl CommitState {
    pub(crate) fn new(acknowledged: Option<NextOffset>, units_max: usize, units_taken: usize) -> Self {
        Self {
            acknowledged,
            in_flight: None,
            changed_at: None,
            done_since: 0,
            force: acknowledged.is_none(),
            soon: false,
            sent_at: None,
            not_before: Millis(0),
            units_max,
            units_taken,
            large_until: None,
            passed: 0,
            halted: false,
        }
    }

    /// Something is to be stored; `done`: how many records more.
    pub(crate) fn change(&mut self, now: Millis, done: u64) {
        self.changed_at.get_or_insert(now);
        self.done_since += done;
    }

    /// Commit even with nothing new.
    pub(crate) fn force(&mut self) {
        self.force = true;
    }

    /// Somebody waits for what was changed.
    pub(crate) fn hurry(&mut self) {
        self.soon = true;
    }

    /// The broker refused metadata of so many units. What it took once stays possible: answers stand on it.
    fn refuse(&mut self, units: usize) {
        if units <= self.units_taken {
            self.units_taken = 0;
        }
        let half = self.units_max / 2;
        self.units_max = match self.units_taken {
            0 => half,
            taken if taken + metadata::UNITS_SPARE < self.units_max => half.max(taken + metadata::UNITS_SPARE),
            _ => self.units_max - 1,
        };
    }

    /// Whether something is not with Kafka yet.
    pub(crate) fn is_unsaved(&self) -> bool {
        self.changed_at.is_some() || self.force
    }

    /// When to commit. `last`: of a partition that is handed over and has no open lease.
    fn due(&self, policy: &Policy, last: bool) -> Option<Millis> {
        if self.in_flight.is_some() || self.halted || !self.is_unsaved() {
            return None;
        }
        if self.force || last {
            return Some(self.not_before);
        }
        let changed = self.changed_at?;
        if self.soon {
            let gap = self.sent_at.map(|at| at.plus(policy.durable_commit_gap_ms));
            return Some(self.not_before.max(gap.unwrap_or_default()));
        }
        let at = if self.done_since >= policy.commit_count { changed } else { changed.plus(policy.commit_interval_ms) };
        Some(at.max(self.not_before).max(self.large_until.unwrap_or_default()))
    }
}

// === impl Partition ===

impl Partition {
    /// When a revoke's last commit is not waited for any longer.
    pub(crate) fn give_up_at(&self) -> Option<Millis> {
        self.revoking.map(|deadline| deadline.plus(REVOKE_MARGIN_MS))
    }

    /// What a commit of this moment says: the frontier, and what is known above it.
    fn to_save(&self) -> Saved {
        let base = self.ledger.frontier();
        let next = self.ledger.next();
        let kept = self.durable.kept();
        let is_kept = |range: &OffsetRange| {
            let after = kept.partition_point(|k| k.last < range.first);
            kept.get(after).is_some_and(|k| k.first <= range.last)
        };
        let mut done = self.ledger.done_ranges(RANGES_MAX, is_kept);
        // No more than a commit had room for.
        for range in &self.saved.done {
            let range = OffsetRange { first: range.first.max(next), last: range.last };
            if range.first > range.last {
                continue;
            }
            match done.last_mut() {
                Some(last) if last.last + 1 == range.first => last.last = range.last,
                _ => done.push(range),
            }
        }
        let of = |(offset, count): (&i64, &u32)| Attempts { offset: *offset, count: *count, durable: false };
        let mut attempts: Vec<Attempts> = self.ledger.attempted().iter().map(of).collect();
        attempts.extend(self.saved.attempts.iter().filter(|a| a.offset >= next));
        Saved { topic_hash: self.topic_hash, base, done, attempts }
    }
}

// === impl Engine ===

impl Engine {
    /// Commits when it is time to; else gives the moment at which it will be.
    pub(crate) fn commit_when_due(&mut self, now: Millis, pid: Pid) -> Option<Millis> {
        let partition = self.partitions.get_mut(pid).filter(|p| Self::is_worth_waiting(now, p))?;
        let last = partition.revoking.is_some() && partition.is_quiet();
        let due = partition.commit.due(&self.policy, last)?;
        if due > now {
            return Some(due);
        }
        let mut saved = partition.to_save();
        if partition.commit.acknowledged.is_some_and(|committed| committed.0 > saved.base) {
            self.broken_count += crate::invariants::broken("1: the frontier is below what was committed");
        }
        let sealed = partition.durable.seal(&mut saved, partition.commit.units_max);
        let encoded = metadata::encode(&saved, &sealed.done, partition.commit.units_max);
        let commit = &mut partition.commit;
        if encoded.units > self.policy.metadata_units_frequent {
            let exempt = last || commit.force || commit.soon;
            if let Some(until) = commit.large_until.filter(|until| *until > now && !exempt) {
                return Some(until);
            }
            commit.large_until = Some(now.plus(LARGE_EVERY_MS));
        } else {
            commit.large_until = None;
        }
        commit.in_flight =
            Some(Flight { passed: partition.ledger.passed(), base: saved.base, sealed, units: encoded.units });
        commit.soon = false;
        commit.sent_at = Some(now);
        commit.changed_at = None;
        commit.done_since = 0;
        commit.force = false;
        partition.stats.metadata_truncated += u64::from(encoded.truncated);
        self.outputs.push_back(Output::Commit {
            partition: partition.name.clone(),
            epoch: partition.epoch,
            offset: NextOffset(saved.base),
            metadata: encoded.text,
        });
        None
    }

    /// Something is not with Kafka, and a revoke has not waited for it too long.
    pub(crate) fn is_worth_waiting(now: Millis, partition: &Partition) -> bool {
        partition.commit.is_unsaved() && partition.give_up_at().is_none_or(|at| now < at)
    }

    pub(crate) fn on_commit_result(
        &mut self,
        now: Millis,
        name: &TopicPartition,
        epoch: Epoch,
        result: Result<NextOffset, CommitError>,
    ) {
        let Some(pid) = self.partitions.find(name) else { return };
        let Some(partition) = self.partitions.get_mut(pid).filter(|p| p.epoch == epoch) else { return };
        let commit = &mut partition.commit;
        let Some(flight) = commit.in_flight.take() else { return };
        match result {
            Ok(offset) => {
                partition.stats.commits += 1;
                partition.stats.committed += flight.passed.saturating_sub(commit.passed);
                commit.passed = commit.passed.max(flight.passed);
                let news = commit.acknowledged != Some(offset);
                commit.acknowledged = Some(offset);
                commit.units_taken = commit.units_taken.max(flight.units);
                if news {
                    self.report_committed(pid, name, offset);
                }
                self.answer_stored(pid, &flight);
            }
            Err(error) => {
                partition.stats.commits_failed += 1;
                commit.change(now, 0);
                match error {
                    CommitError::Retriable => commit.not_before = now.plus(self.policy.commit_interval_ms),
                    CommitError::MetadataTooLarge if commit.units_max < UNITS_MIN => {
                        commit.units_max = 0;
                        commit.not_before = now.plus(self.policy.commit_interval_ms);
                    }
                    CommitError::MetadataTooLarge => {
                        commit.refuse(flight.units);
                        commit.force = true;
                    }
                    CommitError::NotMember => commit.halted = true,
                }
            }
        }
        self.touch(now, pid);
    }

    fn report_committed(&mut self, pid: Pid, name: &TopicPartition, offset: NextOffset) {
        let asked = self.sessions.iter().filter(|(_, s)| s.report_commits && s.settled_in.contains(&pid));
        self.outputs.extend(asked.map(|(id, _)| Output::Committed { session: *id, partition: name.clone(), offset }));
    }
}
