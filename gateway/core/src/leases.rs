//! The end of leases, in one place, whichever way they end.

use std::collections::btree_map::Entry;

use crate::deaths::BreakId;
use crate::engine::Engine;
use crate::io::LetterCause;
use crate::ledger::{At, State};
use crate::letters::Hand;
use crate::partition::Partition;
use crate::session::{Ended, LeaseKey, offsets_of};
use crate::timers::Wait;
use crate::types::{Millis, SessionId};

/// How leases end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How<'a> {
    Ack,
    /// A failure; with the client's delay, or the policy's.
    Retry {
        delay_ms: Option<u64>,
        reason: Option<&'a str>,
    },
    /// The client gives it up.
    DeadLetter {
        reason: Option<&'a str>,
    },
    Release,
    /// A failure.
    Expire,
    /// Its session ended.
    Return,
    /// Its session died, perhaps by this record. `hold`: it waits until that is decided; a suspect waits in any case.
    Die {
        of: BreakId,
        hold: bool,
    },
    /// A resumed session does not have it.
    TakeBack,
    /// Its partition went away.
    Fence,
}

impl How<'_> {
    fn ended(self) -> Ended {
        match self {
            Self::Ack => Ended::Ack,
            Self::Retry { .. } => Ended::Retry,
            Self::DeadLetter { .. } => Ended::DeadLetter,
            Self::Release => Ended::Release,
            Self::Expire | Self::Return | Self::Die { .. } | Self::TakeBack | Self::Fence => Ended::Taken,
        }
    }

    /// Whether the client did it, and so is at work.
    fn is_settled(self) -> bool {
        matches!(self, Self::Ack | Self::Retry { .. } | Self::DeadLetter { .. } | Self::Release)
    }
}

/// What the fate of a record depends on.
struct Fate<'a> {
    hand: Hand<'a>,
    session: SessionId,
    how: How<'a>,
    /// It was dealt as a suspect.
    suspect: bool,
}

// === impl Engine ===

impl Engine {
    /// Ends these bits of a lease entry. The caller `touch`es the partition and `offer`s the session afterwards.
    pub(crate) fn end_leases(&mut self, now: Millis, id: SessionId, key: LeaseKey, bits: u128, how: How<'_>) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Entry::Occupied(mut entry) = session.leases.entry(key) else { return };
        let lease = entry.get_mut();
        let bits = lease.mask & bits;
        lease.mask &= !bits;
        let suspect = lease.suspect;
        if lease.mask == 0 {
            if how == How::Ack {
                let took_ms = now.0.saturating_sub(lease.dealt_at.0);
                session.pace.acked(lease.held, took_ms, self.policy.frame_records_max);
                session.pace.tell(&mut self.pace);
            } else if how.is_settled() {
                // To fail fast is not to work fast.
                session.pace.failed();
            }
            self.timers.expiries.remove(&(lease.expires, key.id));
            entry.remove();
            session.suspects -= u32::from(suspect);
        }
        let remembered = self.policy.remembered_windows * session.window_max.max(1);
        session.past.add(key, how.ended(), bits, remembered);
        session.held -= u64::from(bits.count_ones());
        self.deaths.count(session);
        if how.is_settled() {
            session.unresponsive = false;
            if session.report_commits {
                session.settled_in.insert(key.pid);
            }
        }
        let Some(partition) = self.partitions.get_mut(key.pid) else { return };
        if how == How::Ack {
            let finished = partition.ledger.finish_leased(key.base, bits);
            for _ in finished.records..u64::from(bits.count_ones()) {
                self.broken_count += crate::invariants::broken("a lease without a leased record");
            }
            session.held_bytes -= finished.bytes;
            partition.stats.acked += finished.records;
            if finished.records > 0 {
                partition.commit.change(now, finished.records);
            }
            return;
        }
        let (rng, timers) = (&mut self.rng, &mut self.timers);
        let hand = Hand { now, policy: &self.policy, rng, timers, pid: key.pid };
        let mut fate = Fate { hand, session: id, how, suspect };
        let mut near = None;
        for offset in offsets_of(key.base, bits) {
            let at = partition.ledger.find_near(near, offset).filter(|at| partition.ledger.state(*at) == State::Leased);
            let Some(at) = at else {
                self.broken_count += crate::invariants::broken("a lease without a leased record");
                continue;
            };
            near = Some(at);
            session.held_bytes -= partition.ledger.slot(at).map_or(0, |slot| slot.bytes());
            fate.decide(partition, at, offset);
        }
    }

    /// Ends all leases of a session.
    pub(crate) fn end_all_leases(&mut self, now: Millis, id: SessionId, how: How<'_>) {
        let Some(session) = self.sessions.get(&id) else { return };
        let leases: Vec<(LeaseKey, u128)> = session.leases.iter().map(|(key, lease)| (*key, lease.mask)).collect();
        let mut last = None;
        for (key, bits) in leases {
            self.end_leases(now, id, key, bits, how);
            if let Some(pid) = last.filter(|pid| *pid != key.pid) {
                self.touch(now, pid);
            }
            last = Some(key.pid);
        }
        if let Some(pid) = last {
            self.touch(now, pid);
        }
    }
}

// === impl Fate ===

impl Fate<'_> {
    fn decide(&mut self, partition: &mut Partition, at: At, offset: i64) {
        let now = self.hand.now;
        match self.how {
            // All at once: see `end_leases`.
            How::Ack => {}
            How::Retry { delay_ms, reason } => {
                partition.stats.retried += 1;
                self.hand.fail(partition, at, offset, delay_ms, reason);
            }
            How::DeadLetter { reason } => {
                partition.ledger.failures.say(offset, reason);
                self.hand.give_up(partition, at, offset, LetterCause::Client);
            }
            How::Expire => {
                partition.stats.expired += 1;
                self.hand.fail(partition, at, offset, None, None);
            }
            How::Release => {
                partition.stats.released += 1;
                partition.ledger.make_ready(at);
                let delay_ms = self.hand.policy.release_delay_ms;
                partition.released.insert(offset, (self.session, now.plus(delay_ms)));
                self.hand.wait(delay_ms, offset, Wait::Release);
            }
            How::Return => {
                partition.stats.released += 1;
                partition.ledger.make_ready(at);
            }
            How::Die { of, hold } => {
                partition.stats.released += 1;
                if !self.suspect {
                    partition.ledger.suspects.mark(offset);
                }
                if hold || self.suspect {
                    partition.ledger.make_waiting(at);
                    partition.ledger.suspects.leave_open(offset, of);
                } else {
                    partition.ledger.make_ready(at);
                }
            }
            How::TakeBack | How::Fence => partition.ledger.make_ready(at),
        }
    }
}

impl Hand<'_> {
    /// A counted failure: waits for its retry, or is exhausted.
    pub(crate) fn fail(
        &mut self,
        partition: &mut Partition,
        at: At,
        offset: i64,
        delay_ms: Option<u64>,
        reason: Option<&str>,
    ) {
        let attempts = partition.ledger.count_attempt(at);
        partition.ledger.failures.count(self.now, offset, reason);
        partition.commit.change(self.now, 0);
        let max = self.policy.max_attempts.max(1);
        partition.stats.failed += u64::from(attempts == max);
        if attempts >= max {
            self.give_up(partition, at, offset, LetterCause::Exhausted);
            return;
        }
        let Self { policy, rng, .. } = self;
        let delay_ms = delay_ms.unwrap_or_else(|| policy.backoff.delay_ms(attempts, rng));
        if delay_ms == 0 {
            partition.ledger.make_ready(at);
        } else {
            partition.ledger.make_waiting(at);
            self.wait(delay_ms, offset, Wait::Retry);
        }
    }
}
