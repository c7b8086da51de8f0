//! Records that nobody is to work any more: to the dead-letter topic, dropped, or blocked, as the policy says. Only
//! Kafka's acknowledgement of the dead letter makes its record done; until then it holds the commit.

use std::collections::{BTreeMap, BTreeSet};

use crate::engine::Engine;
use crate::io::{Letter, LetterCause, LetterError, Output};
use crate::ledger::At;
use crate::partition::{Partition, Pid};
use crate::policy::{OnExhausted, Policy};
use crate::rng::Rng;
use crate::timers::{Timers, Wait, Waiting};
use crate::types::{Epoch, Millis, TopicPartition};

/// Records of a partition on their way to the dead letters: neither ready nor leased nor done.
#[derive(Debug, Default)]
pub(crate) struct Letters {
    pending: BTreeMap<i64, Pending>,
    /// Of `pending`: what may be written now.
    queued: BTreeSet<i64>,
    in_flight: usize,
}

#[derive(Debug)]
struct Pending {
    cause: LetterCause,
    in_flight: bool,
    /// Writes that Kafka did not take.
    failed: u32,
    /// Refused for its size.
    plain: bool,
}

/// What deciding on a record takes beside its partition.
pub(crate) struct Hand<'a> {
    pub(crate) now: Millis,
    pub(crate) policy: &'a Policy,
    pub(crate) rng: &'a mut Rng,
    pub(crate) timers: &'a mut Timers,
    pub(crate) pid: Pid,
}

// === impl Letters ===

impl Letters {
    pub(crate) fn len(&self) -> usize {
        self.pending.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    pub(crate) fn contains(&self, offset: i64) -> bool {
        self.pending.contains_key(&offset)
    }

    pub(crate) fn offsets(&self) -> impl Iterator<Item = i64> {
        self.pending.keys().copied()
    }

    /// What it counts against what it has; for `Engine::check`.
    pub(crate) fn is_sound(&self) -> bool {
        let in_flight = self.pending.values().filter(|p| p.in_flight).count();
        let queued = |offset| self.pending.get(offset).is_some_and(|p| !p.in_flight);
        in_flight == self.in_flight && self.queued.iter().all(queued)
    }

    /// Dead letters that Kafka has not answered, and those that wait for a place.
    pub(crate) fn at_work(&self) -> usize {
        self.in_flight + self.queued.len()
    }

    /// Its backoff is over.
    pub(crate) fn queue(&mut self, offset: i64) {
        if self.pending.get(&offset).is_some_and(|p| !p.in_flight) {
            self.queued.insert(offset);
        }
    }

    fn add(&mut self, offset: i64, cause: LetterCause) {
        self.pending.insert(offset, Pending { cause, in_flight: false, failed: 0, plain: false });
        self.queued.insert(offset);
    }

    /// The lowest that may be written, if `in_flight_max` allows it.
    fn take_next(&mut self, in_flight_max: usize) -> Option<(i64, LetterCause, bool)> {
        if self.in_flight >= in_flight_max.max(1) {
            return None;
        }
        let offset = self.queued.pop_first()?;
        let pending = self.pending.get_mut(&offset)?;
        pending.in_flight = true;
        self.in_flight += 1;
        Some((offset, pending.cause, pending.plain))
    }

    /// Kafka answered. `false`: it is not on its way. It stays pending unless `taken`.
    fn answered(&mut self, offset: i64, taken: bool) -> bool {
        let Some(pending) = self.pending.get_mut(&offset).filter(|p| p.in_flight) else { return false };
        pending.in_flight = false;
        self.in_flight -= 1;
        if taken {
            self.pending.remove(&offset);
        }
        true
    }
}

// === impl Policy ===

impl Policy {
    /// What becomes of a record that nobody is to work any more.
    fn way_out(&self, cause: LetterCause) -> OnExhausted {
        let asked = if cause == LetterCause::Exhausted { self.on_exhausted } else { OnExhausted::DeadLetter };
        match (asked, self.on_exhausted) {
            (OnExhausted::DeadLetter, _) if self.dead_letter_topic => OnExhausted::DeadLetter,
            (OnExhausted::DeadLetter, OnExhausted::DeadLetter) => OnExhausted::Block,
            (OnExhausted::DeadLetter, without_topic) => without_topic,
            (asked, _) => asked,
        }
    }
}

// === impl Hand ===

impl Hand<'_> {
    /// A record, ready or leased, that nobody is to work any more.
    pub(crate) fn give_up(&mut self, partition: &mut Partition, at: At, offset: i64, cause: LetterCause) {
        partition.stats.too_large += u64::from(cause == LetterCause::TooLarge);
        match self.policy.way_out(cause) {
            OnExhausted::Drop => {
                partition.stats.filtered += 1;
                partition.ledger.finish(at);
                partition.commit.change(self.now, 1);
            }
            OnExhausted::DeadLetter => {
                partition.ledger.make_waiting(at);
                partition.letters.add(offset, cause);
            }
            OnExhausted::Block => self.block(partition, at, offset, cause),
        }
    }

    /// Kept until an operator looks at it: it shows as exhausted, after a restart too.
    fn block(&mut self, partition: &mut Partition, at: At, offset: i64, cause: LetterCause) {
        let max = self.policy.max_attempts.max(1);
        if partition.ledger.raise_attempts(at, max) {
            partition.stats.failed += 1;
            partition.commit.change(self.now, 0);
        }
        partition.ledger.make_waiting(at);
        if cause == LetterCause::TooLarge {
            // Time alone makes it fit nobody.
            partition.oversize.insert(offset, None);
        } else {
            let delay_ms = self.policy.backoff.longest_ms(self.rng);
            self.wait(delay_ms, offset, Wait::Retry);
        }
    }

    pub(crate) fn wait(&mut self, delay_ms: u64, offset: i64, wait: Wait) {
        self.timers.wait(Waiting { due: self.now.plus(delay_ms), pid: self.pid, offset, wait });
    }
}

// === impl Engine ===

impl Engine {
    /// Hands out what may be written now, the lowest first.
    pub(crate) fn write_letters(&mut self, now: Millis, pid: Pid) {
        let Some(partition) = self.partitions.get_mut(pid) else { return };
        if partition.fenced {
            // Another may have the partition: what is not with Kafka yet is its to write.
            partition.letters = Letters::default();
        } else if partition.revoking.is_some_and(|deadline| deadline <= now) {
            return;
        }
        while let Some((offset, cause, plain)) = partition.letters.take_next(self.policy.dead_letters_in_flight_max) {
            let Some(slot) = partition.ledger.find(offset).and_then(|at| partition.ledger.slot(at)) else {
                self.broken_count += crate::invariants::broken("9: a dead letter without its record");
                continue;
            };
            let failure = partition.ledger.failures.get(offset).cloned().unwrap_or_default();
            let letter = Letter {
                record: slot.record().to_record(),
                cause,
                reason: failure.reason,
                attempts: partition.ledger.attempts(offset),
                first_failure: failure.first,
                last_failure: failure.last,
                plain,
            };
            let (partition, epoch) = (partition.name.clone(), partition.epoch);
            self.outputs.push_back(Output::DeadLetter { partition, epoch, letter });
        }
    }

    pub(crate) fn on_letter_result(
        &mut self,
        now: Millis,
        name: &TopicPartition,
        epoch: Epoch,
        offset: i64,
        result: Result<(), LetterError>,
    ) {
        let Some(pid) = self.partitions.live(name, epoch) else { return };
        let Some(partition) = self.partitions.get_mut(pid) else { return };
        if !partition.letters.answered(offset, result.is_ok()) {
            return;
        }
        match result {
            Ok(()) => {
                if let Some(at) = partition.ledger.find(offset) {
                    partition.ledger.finish(at);
                }
                partition.stats.dead_lettered += 1;
                partition.commit.change(now, 1);
                if partition.durable.is_waiting() {
                    partition.commit.hurry();
                }
            }
            Err(error) => {
                partition.stats.dead_letters_failed += 1;
                let mut hand = Hand { now, policy: &self.policy, rng: &mut self.rng, timers: &mut self.timers, pid };
                hand.write_again(partition, offset, error);
            }
        }
        self.touch(now, pid);
    }
}

impl Hand<'_> {
    fn write_again(&mut self, partition: &mut Partition, offset: i64, error: LetterError) {
        let Some(pending) = partition.letters.pending.get_mut(&offset) else { return };
        pending.failed = pending.failed.saturating_add(1);
        let backoff = &self.policy.dead_letter_backoff;
        let delay_ms = match error {
            LetterError::TooLarge if pending.plain => backoff.longest_ms(self.rng),
            LetterError::TooLarge => 0,
            LetterError::Failed => backoff.delay_ms(pending.failed, self.rng),
        };
        pending.plain |= error == LetterError::TooLarge;
        if delay_ms == 0 {
            partition.letters.queue(offset);
        } else {
            self.wait(delay_ms, offset, Wait::Letter);
        }
    }
}
