//! What follows from each change: frontier, sums, limits, commits, the end of a revoke; and what time brings.

use crate::engine::Engine;
use crate::io::Output;
use crate::leases::How;
use crate::ledger::State;
use crate::partition::Pid;
use crate::session::{LeaseKey, offsets_of, remembered_share};
use crate::timers::Wait;
use crate::types::{Leases, Millis, OffsetRange, RevokeReason, SessionId};

/// Whether something that was at its limit is below 80 % of it.
pub(crate) fn is_below(value: u64, max: u64) -> bool {
    value == 0 || value.saturating_mul(5) < max.saturating_mul(4)
}

/// Ascending offsets as ranges.
pub(crate) fn push_offset(ranges: &mut Vec<OffsetRange>, offset: i64) {
    match ranges.last_mut() {
        Some(last) if last.last + 1 == offset => last.last = offset,
        _ => ranges.push(OffsetRange::one(offset)),
    }
}

/// Sorted and joined where they touch.
pub(crate) fn ranges_of(mut offsets: Vec<i64>) -> Vec<OffsetRange> {
    offsets.sort_unstable();
    let mut ranges = Vec::new();
    for offset in offsets {
        push_offset(&mut ranges, offset);
    }
    ranges
}

impl Engine {
    /// To be called after each change of a partition.
    pub(crate) fn touch(&mut self, now: Millis, pid: Pid) {
        let Some(partition) = self.partitions.get_mut(pid) else { return };
        partition.ledger.advance();
        if partition.fenced && partition.ledger.leased() > 0 {
            self.fence(now, pid, RevokeReason::Reassigned);
        }
        self.write_letters(now, pid);
        let Some(partition) = self.partitions.get_mut(pid) else { return };
        self.sums.count(partition);
        self.offer_partition(pid);
        self.mind_limits(pid);
        let due = self.commit_when_due(now, pid);
        let Some(partition) = self.partitions.get(pid) else { return };
        if partition.revoking.is_some()
            && partition.is_quiet()
            && partition.commit.in_flight.is_none()
            && !Self::is_worth_waiting(now, partition)
        {
            let name = partition.name.clone();
            // What is not stored is answered as stale after that.
            self.outputs.push_back(Output::Drained { partition: name });
            self.forget_partition(pid);
            return;
        }
        let give_up_at = partition.give_up_at().filter(|at| *at > now);
        let deadline = if partition.fenced { give_up_at } else { partition.revoking };
        self.schedule(pid, [due, deadline].into_iter().flatten().min());
    }

    fn schedule(&mut self, pid: Pid, at: Option<Millis>) {
        let Some(partition) = self.partitions.get_mut(pid) else { return };
        if partition.scheduled == at {
            return;
        }
        if let Some(was) = partition.scheduled {
            self.timers.partitions.remove(&(was, pid));
        }
        partition.scheduled = at;
        self.timers.partitions.extend(at.map(|at| (at, pid)));
    }

    fn mind_limits(&mut self, pid: Pid) {
        let Some(partition) = self.partitions.get_mut(pid) else { return };
        let (span, bytes) = (partition.ledger.span(), partition.ledger.bytes());
        let (span_max, bytes_max) = (self.policy.span_max, self.policy.partition_bytes_max);
        if partition.revoking.is_none() {
            let name = &partition.name;
            if !partition.held_back && (span >= span_max || bytes >= bytes_max) && span > 0 {
                partition.held_back = true;
                self.outputs.push_back(Output::Hold { partition: name.clone() });
            } else if partition.held_back && is_below(span, span_max) && is_below(bytes, bytes_max) {
                partition.held_back = false;
                let next = crate::types::NextOffset(partition.ledger.next());
                self.outputs.push_back(Output::Unhold { partition: name.clone(), next });
            }
        }
        self.mind_budget();
    }

    fn mind_budget(&mut self) {
        let (bytes, max) = (self.sums.bytes, self.policy.subscription_bytes_max);
        self.over_budget = bytes > 0 && if self.over_budget { !is_below(bytes, max) } else { bytes >= max };
        let change = self.rest_or_go_on();
        self.outputs.extend(change);
    }

    /// When dealing found nothing more to do. While everybody is full, records that are taken out of the prefetch queue
    /// only get old here: they cost memory, and are out of the processor's caches when their turn comes. While somebody has
    /// room that nothing ready fits, the next record may be the one that does; and while a partition has nothing ready, its
    /// next record may stand behind those of others in the one queue of the fetch handle.
    pub(crate) fn mind_ahead(&mut self) -> Option<Output> {
        let (bytes, max) = (self.sums.ready_bytes(), self.policy.ready_bytes_max);
        let all_full = (self.paused || self.rings.is_empty()) && self.sums.without_ready == 0;
        self.ahead = all_full && bytes > 0 && if self.ahead { bytes > max / 2 } else { bytes >= max };
        self.rest_or_go_on()
    }

    fn rest_or_go_on(&mut self) -> Option<Output> {
        let rest = self.over_budget || self.ahead;
        (std::mem::replace(&mut self.resting, rest) != rest).then_some(Output::Rest(rest))
    }

    /// To be called when a session came or went.
    pub(crate) fn share_memory(&mut self) {
        let share = remembered_share(self.sessions.len());
        if share != self.remembered_share {
            self.remembered_share = share;
            self.sessions.values_mut().for_each(|session| session.past.set_entries_max(share));
        }
    }

    /// Takes all leases of a partition back; their holders hear it.
    pub(crate) fn fence(&mut self, now: Millis, pid: Pid, reason: RevokeReason) {
        if self.partitions.get(pid).is_none_or(|p| p.ledger.leased() == 0) {
            return;
        }
        let mut taken: Vec<(SessionId, LeaseKey, u128)> = Vec::new();
        for (id, session) in &self.sessions {
            taken.extend(session.leases_in(pid, 0, i64::MAX).map(|(key, _, bits)| (*id, key, bits)));
        }
        self.revoke(now, taken, How::Fence, reason);
    }

    /// Ends these leases, says so to their holders, and gives the window free.
    fn revoke(&mut self, now: Millis, mut taken: Vec<(SessionId, LeaseKey, u128)>, how: How, reason: RevokeReason) {
        taken.sort_unstable_by_key(|(id, key, _)| (*id, *key));
        for of_one in taken.chunk_by(|a, b| a.0 == b.0 && a.1.pid == b.1.pid) {
            let (id, LeaseKey { pid, .. }, _) = of_one[0];
            let offsets = of_one.iter().flat_map(|(_, key, bits)| offsets_of(key.base, *bits)).collect();
            for (_, key, bits) in of_one {
                self.end_leases(now, id, *key, *bits, how);
            }
            let Some(partition) = self.partitions.get(pid) else { continue };
            let leases =
                Leases { partition: partition.name.clone(), epoch: partition.epoch, offsets: ranges_of(offsets) };
            if self.sessions.get(&id).is_some_and(|s| s.broken_until.is_none()) {
                self.outputs.push_back(Output::Revoked { session: id, leases, reason });
            }
            self.offer(id);
        }
    }

    /// All that names the partition goes with it.
    pub(crate) fn forget_partition(&mut self, pid: Pid) {
        let Some(partition) = self.partitions.remove(pid) else { return };
        self.forgotten.add(&partition.stats);
        self.sums.forget(partition.counted);
        self.timers.forget(pid);
        self.deal_from.retain(|other| *other != pid);
        self.suspects_from.remove(&pid);
        for session in self.sessions.values_mut() {
            session.past.forget(pid);
            session.settled_in.remove(&pid);
        }
        let partition = *partition;
        let name = &partition.name;
        self.outputs.retain(|output| match output {
            Output::Commit { partition, .. }
            | Output::DeadLetter { partition, .. }
            | Output::Hold { partition }
            | Output::Unhold { partition, .. } => partition != name,
            _ => true,
        });
        self.answer_stale(name, partition.epoch, partition.durable);
        self.mind_budget();
    }

    // === time ===

    pub(crate) fn expire_leases(&mut self, now: Millis) {
        let (mut taken, mut fenced) = (Vec::new(), Vec::new());
        while let Some(entry) = self.timers.expiries.first_entry().filter(|entry| entry.key().0 <= now) {
            let due = entry.key().0;
            let (id, key) = entry.remove();
            // The grace of a revoke ended before the lease did: it was fenced then, and a late tick makes it no failure.
            if let Some(partition) = self.partitions.get_mut(key.pid)
                && partition.revoking.is_some_and(|deadline| deadline <= due)
            {
                partition.fenced = true;
                fenced.push(key.pid);
                continue;
            }
            let Some(session) = self.sessions.get_mut(&id) else { continue };
            session.unresponsive = true;
            taken.extend(session.leases.get(&key).map(|lease| (id, key, lease.mask)));
        }
        let mut touched: Vec<Pid> = taken.iter().map(|(_, key, _)| key.pid).chain(fenced).collect();
        touched.sort_unstable();
        touched.dedup();
        self.revoke(now, taken, How::Expire, RevokeReason::Expired);
        for pid in touched {
            self.touch(now, pid);
        }
    }

    pub(crate) fn end_waits(&mut self, now: Millis) {
        let mut last = None;
        while let Some(waiting) = self.timers.pop_wait(now) {
            let Some(partition) = self.partitions.get_mut(waiting.pid) else { continue };
            match waiting.wait {
                Wait::Retry => {
                    let at = partition.ledger.find(waiting.offset);
                    if let Some(at) = at.filter(|at| partition.ledger.state(*at) == State::Waiting) {
                        partition.ledger.make_ready(at);
                    }
                }
                Wait::Letter => partition.letters.queue(waiting.offset),
                Wait::Release => {
                    if partition.released.get(&waiting.offset).is_some_and(|(_, until)| *until <= now) {
                        partition.released.remove(&waiting.offset);
                    }
                }
            }
            if let Some(pid) = last.replace(waiting.pid).filter(|pid| *pid != waiting.pid) {
                self.touch(now, pid);
            }
        }
        if let Some(pid) = last {
            self.touch(now, pid);
        }
    }
}
