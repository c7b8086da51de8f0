//! Settlements: what a range means, what changes nothing, and how that is answered.

use crate::durable::{Asker, Wanted};
use crate::engine::Engine;
use crate::leases::How;
use crate::ledger::cut;
use crate::partition::Pid;
use crate::session::{Ended, Lease, LeaseKey, offsets_of};
use crate::types::{Leases, Millis, OffsetRange, Outcome, RejectReason, Rejection, SessionId, Settlement, Settlements};

/// From so many ranges on, and at each doubling, what is rejected is sorted and merged.
const MERGE_FROM: usize = 8_192;

/// A frame of settlements may look at so many times what its session holds and remembers: ranges that lie over each other
/// look at it again and again, and one frame has room for 100,000 of them. Beyond it they are INVALID.
const LOOKS_MAX: u64 = 4;
/// Beside what is held and remembered.
const LOOKS_EXTRA: u64 = 10_000;

/// One frame of settlements.
#[derive(Debug)]
struct Frame {
    seen: u64,
    /// Leases and memories that ranges of more than one offset may still look at.
    looks_left: u64,
    /// Of a durable frame: what must be stored.
    wanted: Option<Vec<Wanted>>,
}

/// What is done to the leases that a range names.
#[derive(Debug, Clone, Copy)]
enum Action<'a> {
    End(How<'a>, Ended),
    Extend(Millis),
}

/// Rejections, as ranges.
#[derive(Debug, Default)]
pub(crate) struct Rejected(Vec<Rejection>);

// === impl Rejected ===

impl Rejected {
    fn add(&mut self, leases: &Leases, range: OffsetRange, reason: RejectReason) {
        let same = |r: &&mut Rejection| {
            r.reason == reason && r.leases.epoch == leases.epoch && r.leases.partition == leases.partition
        };
        // A settlement has three reasons at most, so what fits is among the last three.
        let Some(rejection) = self.0.iter_mut().rev().take(3).find(same) else {
            let leases = Leases { partition: leases.partition.clone(), epoch: leases.epoch, offsets: vec![range] };
            self.0.push(Rejection { leases, reason });
            return;
        };
        let offsets = &mut rejection.leases.offsets;
        match offsets.last_mut() {
            Some(last)
                if reason == RejectReason::NotHeld
                    && last.first <= last.last
                    && range.first <= range.last
                    && last.last.checked_add(1) == Some(range.first) =>
            {
                last.last = range.last;
            }
            Some(last) if *last == range => {}
            _ => offsets.push(range),
        }
        if reason == RejectReason::NotHeld && offsets.len() >= MERGE_FROM && offsets.len().is_power_of_two() {
            merge(offsets);
        }
    }

    fn add_all(&mut self, leases: &Leases, reason: RejectReason) {
        if leases.offsets.is_empty() && reason == RejectReason::Invalid {
            self.0.push(Rejection { leases: leases.clone(), reason });
        }
        for range in &leases.offsets {
            self.add(leases, *range, reason);
        }
    }
}

fn merge(offsets: &mut Vec<OffsetRange>) {
    if offsets.iter().any(|r| r.first > r.last) {
        return;
    }
    offsets.sort_unstable_by_key(|r| (r.first, r.last));
    offsets.dedup_by(|next, kept| {
        let touches = next.first <= kept.last.saturating_add(1);
        if touches {
            kept.last = kept.last.max(next.last);
        }
        touches
    });
}

// === impl Engine ===

impl Engine {
    /// Applies settlements of a known session, in their order. Gives what changed nothing; `None`: the answer waits for Kafka.
    pub(crate) fn apply(
        &mut self,
        now: Millis,
        id: SessionId,
        settlements: &Settlements,
        asker: Asker,
    ) -> Option<Vec<Rejection>> {
        let mut rejected = Rejected::default();
        let mut touched = std::mem::take(&mut self.touched);
        let known = self.sessions.get(&id).map_or(0, |session| session.held + session.past.count());
        let wanted = settlements.durable.then(Vec::new);
        let mut frame = Frame { seen: settlements.seen, looks_left: LOOKS_MAX * known + LOOKS_EXTRA, wanted };
        // Nobody could be told that it is stored; or Kafka is away, and the client goes on.
        let unanswerable = matches!(asker, Asker::Stream { request_id: 0, .. }) || self.is_durable_flood(id);
        for settlement in &settlements.settlements {
            if settlements.durable && unanswerable {
                rejected.add_all(&settlement.leases, RejectReason::Invalid);
                continue;
            }
            if let Some(pid) = self.apply_one(now, id, &mut frame, settlement, &mut rejected)
                && !touched.contains(&pid)
            {
                touched.push(pid);
            }
        }
        let wanted = frame.wanted.filter(|wanted| !wanted.is_empty());
        let waits = wanted.is_some();
        let mut rejections = rejected.0;
        if let Some(wanted) = wanted {
            self.wait_for_kafka(now, asker, std::mem::take(&mut rejections), wanted);
        }
        for pid in touched.drain(..) {
            self.touch(now, pid);
        }
        self.touched = touched;
        self.offer(id);
        if waits {
            return None;
        }
        self.count_rejected(&rejections);
        Some(rejections)
    }

    /// The session is not known: all is NOT_HELD.
    pub(crate) fn reject_all(&mut self, settlements: Settlements) -> Vec<Rejection> {
        let mut rejected = Rejected::default();
        for settlement in &settlements.settlements {
            rejected.add_all(&settlement.leases, RejectReason::NotHeld);
        }
        self.count_rejected(&rejected.0);
        rejected.0
    }

    pub(crate) fn count_rejected(&mut self, rejections: &[Rejection]) {
        self.forgotten.rejected += rejections.iter().map(|r| r.leases.offsets.len() as u64).sum::<u64>();
    }

    fn apply_one(
        &mut self,
        now: Millis,
        id: SessionId,
        frame: &mut Frame,
        settlement: &Settlement,
        rejected: &mut Rejected,
    ) -> Option<Pid> {
        let leases = &settlement.leases;
        let Some(action) = self.action(now, id, &settlement.outcome) else {
            rejected.add_all(leases, RejectReason::Invalid);
            return None;
        };
        let pid = self.partitions.live(&leases.partition, leases.epoch);
        let mut widest: Option<OffsetRange> = None;
        for range in &leases.offsets {
            let within =
                |wide: OffsetRange| wide.first <= range.first && range.first < range.last && range.last <= wide.last;
            if widest.is_some_and(within) {
                // The same was done to all that is in it, and answered.
                continue;
            }
            if !is_valid(*range, frame) {
                rejected.add(leases, *range, RejectReason::Invalid);
            } else if let Some(pid) = pid {
                widest = (range.first < range.last).then_some(*range).or(widest);
                self.apply_range(now, id, pid, frame, *range, action, |range| {
                    rejected.add(leases, range, RejectReason::NotHeld);
                });
            } else {
                rejected.add(leases, *range, RejectReason::StaleEpoch);
            }
        }
        pid
    }

    /// `None`: the outcome cannot be meant.
    fn action<'a>(&self, now: Millis, id: SessionId, outcome: &'a Outcome) -> Option<Action<'a>> {
        match outcome {
            Outcome::Ack => Some(Action::End(How::Ack, Ended::Ack)),
            Outcome::Release => Some(Action::End(How::Release, Ended::Release)),
            Outcome::Retry { delay_ms, reason } => delay_ms
                .is_none_or(|ms| ms <= self.policy.max_retry_delay_ms)
                .then_some(Action::End(How::Retry { delay_ms: *delay_ms, reason: cut(reason) }, Ended::Retry)),
            Outcome::DeadLetter { reason } => {
                Some(Action::End(How::DeadLetter { reason: cut(reason) }, Ended::DeadLetter))
            }
            Outcome::Extend { ack_timeout_ms } => {
                let ms = ack_timeout_ms.or_else(|| self.sessions.get(&id).map(|s| s.ack_timeout_ms))?;
                (1..=self.policy.max_ack_timeout_ms).contains(&ms).then(|| Action::Extend(now.plus(ms)))
            }
            Outcome::Unreadable => None,
        }
    }

    /// Cost: the session's own leases and memories within the range, however wide it is.
    #[expect(clippy::too_many_arguments, reason = "one call, and a struct for it would hide what a range means")]
    fn apply_range(
        &mut self,
        now: Millis,
        id: SessionId,
        pid: Pid,
        frame: &mut Frame,
        range: OffsetRange,
        action: Action<'_>,
        mut reject: impl FnMut(OffsetRange),
    ) {
        let OffsetRange { first, last } = range;
        let Some(session) = self.sessions.get(&id) else { return };
        let seen = frame.seen;
        let meant = |lease: &Lease| seen == 0 || lease.frame <= seen;
        let mut taken = std::mem::take(&mut self.scratch);
        let mut looks = 0;
        let within = session.leases_in(pid, first, last).inspect(|_| looks += 1);
        taken.extend(within.filter(|(_, lease, _)| meant(lease)).map(|(key, _, bits)| (key, bits)));
        let success = match action {
            Action::End(_, ended) => Some(ended),
            Action::Extend(_) => None,
        };
        let (mut same, mut other) = (Vec::new(), Vec::new());
        for (ended, base, bits) in session.past.within(pid, first, last) {
            if Some(ended) == success { &mut same } else { &mut other }.extend(offsets_of(base, bits));
        }
        if first != last {
            frame.looks_left = frame.looks_left.saturating_sub(looks + (same.len() + other.len()) as u64);
        }
        let single_unknown = first == last && taken.is_empty() && same.is_empty();
        if single_unknown {
            reject(range);
        } else if !other.is_empty() && first != last {
            same.sort_unstable();
            other.sort_unstable();
            other.dedup();
            let gone = |offset: &&i64| same.binary_search(offset).is_err() && !session.holds(pid, **offset);
            other.iter().filter(gone).for_each(|offset| reject(OffsetRange::one(*offset)));
        }
        let settled = taken.iter().flat_map(|(key, bits)| offsets_of(key.base, *bits));
        let settled: Vec<i64> = if frame.wanted.is_some() { settled.chain(same).collect() } else { Vec::new() };
        for (key, bits) in taken.drain(..) {
            match action {
                Action::End(how, _) => self.end_leases(now, id, key, bits, how),
                Action::Extend(until) => self.extend_lease(id, key, bits, until),
            }
        }
        self.scratch = taken;
        if let (Action::End(how, _), Some(wanted)) = (action, &mut frame.wanted) {
            wanted.extend(settled.into_iter().filter_map(|offset| self.wanted(pid, offset, how)));
        }
    }

    /// Moves the expiry of these bits; the rest of the entry keeps its own.
    fn extend_lease(&mut self, id: SessionId, key: LeaseKey, bits: u128, until: Millis) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Some(lease) = session.leases.get_mut(&key) else { return };
        if lease.mask == bits {
            self.timers.expiries.remove(&(lease.expires, key.id));
            lease.expires = until;
            self.timers.expiries.insert((until, key.id), (id, key));
            return;
        }
        lease.mask &= !bits;
        let part = Lease { mask: bits, expires: until, ..*lease };
        self.lease_ids += 1;
        let key = LeaseKey { id: self.lease_ids, ..key };
        session.leases.insert(key, part);
        self.timers.expiries.insert((until, key.id), (id, key));
    }
}

fn is_valid(range: OffsetRange, frame: &Frame) -> bool {
    let wide = frame.seen != 0 && frame.looks_left > 0;
    range.first >= 0 && range.last >= range.first && (range.first == range.last || wide)
}
