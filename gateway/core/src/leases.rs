//! The end of leases, in one place, whichever way they end.

use crate::engine::Engine;
use crate::ledger::{At, State};
use crate::partition::Partition;
use crate::policy::{OnExhausted, Policy};
use crate::rng::Rng;
use crate::session::{Ended, LeaseKey, offsets_of};
use crate::timers::{Timers, Wait, Waiting};
use crate::types::{Millis, SessionId};
use std::cmp::Reverse;

/// How leases end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    Ack,
    /// A failure; with the client's delay, or the policy's.
    Retry {
        delay_ms: Option<u64>,
    },
    Release,
    /// A failure.
    Expire,
    /// Its session ended.
    Return,
    /// A resumed session does not have it.
    TakeBack,
    /// Its partition went away.
    Fence,
}

impl How {
    fn ended(self) -> Ended {
        match self {
            Self::Ack => Ended::Ack,
            Self::Retry { .. } => Ended::Retry,
            Self::Release => Ended::Release,
            Self::Expire | Self::Return | Self::TakeBack | Self::Fence => Ended::Taken,
        }
    }

    /// Whether the client did it, and so is at work.
    fn is_settled(self) -> bool {
        matches!(self, Self::Ack | Self::Retry { .. } | Self::Release)
    }
}

/// What the fate of a record depends on.
struct Fate<'a> {
    now: Millis,
    policy: &'a Policy,
    rng: &'a mut Rng,
    timers: &'a mut Timers,
    session: SessionId,
    key: LeaseKey,
    how: How,
}

// === impl Engine ===

impl Engine {
    /// Ends these bits of a lease entry. The caller `touch`es the partition and `offer`s the session afterwards.
    pub(crate) fn end_leases(&mut self, now: Millis, id: SessionId, key: LeaseKey, bits: u128, how: How) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Some(lease) = session.leases.get_mut(&key) else { return };
        let bits = lease.mask & bits;
        lease.mask &= !bits;
        if lease.mask == 0 {
            self.timers.expiries.remove(&(lease.expires, key.id));
            session.leases.remove(&key);
        }
        let remembered = self.policy.remembered_windows * session.window_max.max(1);
        session.past.add(key, how.ended(), bits, remembered);
        session.held -= u64::from(bits.count_ones());
        if how.is_settled() {
            session.unresponsive = false;
            if session.report_commits {
                session.settled_in.insert(key.pid);
            }
        }
        let Some(partition) = self.partitions.get_mut(key.pid) else { return };
        let mut fate =
            Fate { now, policy: &self.policy, rng: &mut self.rng, timers: &mut self.timers, session: id, key, how };
        let mut near = None;
        for offset in offsets_of(key.base, bits) {
            let at = partition.ledger.find_near(near, offset).filter(|at| partition.ledger.state(*at) == State::Leased);
            let Some(at) = at else {
                self.broken_count += crate::invariants::broken("a lease without a leased record");
                continue;
            };
            near = Some(at);
            session.held_bytes -= partition.ledger.slot(at).map_or(0, |slot| u64::from(slot.bytes));
            fate.decide(partition, at, offset);
        }
    }

    /// Ends all leases of a session.
    pub(crate) fn end_all_leases(&mut self, now: Millis, id: SessionId, how: How) {
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
        match self.how {
            How::Ack => {
                partition.stats.acked += 1;
                partition.ledger.finish(at);
                partition.commit.change(self.now, 1);
            }
            How::Retry { delay_ms } => {
                partition.stats.retried += 1;
                self.fail(partition, at, offset, delay_ms);
            }
            How::Expire => {
                partition.stats.expired += 1;
                self.fail(partition, at, offset, None);
            }
            How::Release => {
                partition.stats.released += 1;
                partition.ledger.make_ready(at);
                let until = self.now.plus(self.policy.release_delay_ms);
                partition.released.insert(offset, (self.session, until));
                self.wait(until, offset, Wait::Release);
            }
            How::Return => {
                partition.stats.released += 1;
                partition.ledger.make_ready(at);
            }
            How::TakeBack | How::Fence => partition.ledger.make_ready(at),
        }
    }

    /// A counted failure: waits for its retry, or is exhausted.
    fn fail(&mut self, partition: &mut Partition, at: At, offset: i64, delay_ms: Option<u64>) {
        let attempts = partition.ledger.count_attempt(at);
        partition.commit.change(self.now, 0);
        let max = self.policy.max_attempts.max(1);
        partition.stats.failed += u64::from(attempts == max);
        let exhausted = attempts >= max;
        if exhausted && self.policy.on_exhausted == OnExhausted::Drop {
            partition.stats.filtered += 1;
            partition.ledger.finish(at);
            partition.commit.change(self.now, 1);
            return;
        }
        let delay_ms = match delay_ms {
            Some(delay_ms) if !exhausted => delay_ms,
            _ => self.backoff(attempts, exhausted),
        };
        if delay_ms == 0 {
            partition.ledger.make_ready(at);
        } else {
            partition.ledger.make_waiting(at);
            self.wait(self.now.plus(delay_ms), offset, Wait::Retry);
        }
    }

    /// `min(max, initial · multiplier^(attempts−1))` ± jitter.
    fn backoff(&mut self, attempts: u32, exhausted: bool) -> u64 {
        let backoff = &self.policy.backoff;
        let power = i32::try_from(attempts.saturating_sub(1)).unwrap_or(i32::MAX);
        let grown = backoff.initial_ms as f64 * backoff.multiplier.powi(power);
        let max = backoff.max_ms as f64;
        let delay = if exhausted || !grown.is_finite() { max } else { grown.clamp(0.0, max) };
        (delay * backoff.jitter.mul_add(self.rng.signed_unit(), 1.0)).max(0.0) as u64
    }

    fn wait(&mut self, due: Millis, offset: i64, wait: Wait) {
        self.timers.waits.push(Reverse(Waiting { due, pid: self.key.pid, offset, wait }));
    }
}
