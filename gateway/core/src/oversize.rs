//! Records that fit no connected session's frame. They wait for one whose frame they fit; when none has come for
//! `too_large_after_ms` they are given up as too large. The clock stands while nobody is connected: nobody refused them.

use std::collections::BTreeSet;

use crate::engine::Engine;
use crate::io::LetterCause;
use crate::ledger::State;
use crate::letters::Hand;
use crate::partition::Pid;
use crate::types::Millis;

/// When records are given up, in milliseconds during which a session was connected.
#[derive(Debug, Default)]
pub(crate) struct Oversize {
    due: BTreeSet<(u64, Pid, i64)>,
    passed_ms: u64,
    since: Option<Millis>,
}

impl Oversize {
    fn clock(&self, now: Millis) -> u64 {
        self.passed_ms + self.since.map_or(0, |since| now.0.saturating_sub(since.0))
    }

    /// Whether a session is connected from now on.
    fn connected(&mut self, now: Millis, connected: bool) {
        if connected != self.since.is_some() {
            self.passed_ms = self.clock(now);
            self.since = connected.then_some(now);
        }
    }

    /// Gives the moment on this clock.
    pub(crate) fn wait(&mut self, now: Millis, after_ms: u64, pid: Pid, offset: i64) -> u64 {
        let due = self.clock(now).saturating_add(after_ms);
        self.due.insert((due, pid, offset));
        due
    }

    pub(crate) fn next(&self) -> Option<Millis> {
        let since = self.since?;
        self.due.first().map(|(due, ..)| since.plus(due.saturating_sub(self.passed_ms)))
    }

    fn pop(&mut self, now: Millis) -> Option<(Pid, i64)> {
        let clock = self.clock(now);
        self.due.first().filter(|(due, ..)| self.since.is_some() && *due <= clock)?;
        self.due.pop_first().map(|(_, pid, offset)| (pid, offset))
    }

    pub(crate) fn forget(&mut self, pid: Pid) {
        self.due.retain(|(_, other, _)| *other != pid);
    }
}

impl Engine {
    /// Sessions came or went. The largest receive limit may have grown: what fitted nobody and fits now is ready again.
    pub(crate) fn mind_frame_limits(&mut self, now: Millis) {
        self.timers.oversize.connected(now, !self.sessions.is_empty());
        let most = self.sessions.values().map(|s| s.max_frame_bytes).max().unwrap_or_default();
        let before = std::mem::replace(&mut self.frame_bytes_most, most);
        if most <= before {
            return;
        }
        for pid in self.partitions.pids() {
            let Some(partition) = self.partitions.get_mut(pid).filter(|p| !p.oversize.is_empty()) else { continue };
            let topic = partition.name.topic.clone();
            let (ledger, timers, policy) = (&mut partition.ledger, &mut self.timers, &self.policy);
            partition.oversize.retain(|offset, due| {
                let Some(at) = ledger.find(*offset) else { return false };
                let fits = ledger.slot(at).is_some_and(|slot| {
                    slot.bytes() <= policy.record_bytes_max && crate::dealing::fits(slot, &topic, most)
                });
                if fits {
                    due.map(|due| timers.oversize.due.remove(&(due, pid, *offset)));
                    ledger.make_ready(at);
                }
                !fits
            });
            self.touch(now, pid);
        }
    }

    pub(crate) fn end_oversize(&mut self, now: Millis) {
        while let Some((pid, offset)) = self.timers.oversize.pop(now) {
            let Some(partition) = self.partitions.get_mut(pid) else { continue };
            partition.oversize.remove(&offset);
            let at = partition.ledger.find(offset).filter(|at| partition.ledger.state(*at) == State::Waiting);
            let Some(at) = at else { continue };
            let mut hand = Hand { now, policy: &self.policy, rng: &mut self.rng, timers: &mut self.timers, pid };
            hand.give_up(partition, at, offset, LetterCause::TooLarge);
            self.touch(now, pid);
        }
    }
}
