//! Dealing: which session is next, how much it gets, from which partition.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::batch::{Batch, Records};
use crate::engine::Engine;
use crate::io::Output;
use crate::ledger::{Choice, Dealer, Slot};
use crate::partition::{Partition, Pid};
use crate::run::Run;
use crate::session::{Lease, LeaseKey, Session};
use crate::types::{Millis, SessionId};

/// What a frame, a batch, a record and a header cost on the wire at most, beside their bytes.
const FRAME_OVERHEAD_BYTES: usize = 64;
const BATCH_OVERHEAD_BYTES: usize = 64;
const RECORD_OVERHEAD_BYTES: usize = 64;
const HEADER_OVERHEAD_BYTES: usize = 24;

/// What a frame may still take.
struct Room {
    records: u64,
    /// Of the frame's soft limit: a first record may go beyond.
    bytes: usize,
    /// Of the client's receive limit: nothing may.
    hard_bytes: usize,
    /// The window, with what is in the frame already.
    held: u64,
    held_bytes: u64,
    /// The largest receive limit of any connected session.
    frame_bytes_most: usize,
    first: bool,
    /// Records that were taken before their turn.
    untimely: u64,
    /// What fits nobody.
    oversize: Vec<i64>,
}

/// Fills a frame from one partition.
struct Filling<'a> {
    room: &'a mut Room,
    session: &'a Session,
    id: SessionId,
    now: Millis,
    released: &'a mut BTreeMap<i64, (SessionId, Millis)>,
    records: Records,
    /// What a record may cost in a frame of anybody's, and in one of this session's.
    largest: usize,
    full: usize,
}

/// What some records cost in a frame: so many, of so many bytes, with so many headers.
fn encoded_bytes(records: usize, bytes: usize, headers: usize) -> usize {
    bytes + records * RECORD_OVERHEAD_BYTES + headers * HEADER_OVERHEAD_BYTES
}

fn encoded_bytes_of(run: &Run, range: &Range<usize>) -> usize {
    encoded_bytes(range.len(), run.bytes_of(range), run.headers_of(range))
}

fn batch_overhead(topic: &str) -> usize {
    BATCH_OVERHEAD_BYTES + topic.len()
}

/// Whether a record alone fits a frame of at most so many bytes.
pub(crate) fn fits(slot: Slot<'_>, topic: &str, frame_bytes_max: usize) -> bool {
    encoded_bytes_of(slot.run(), &slot.range())
        <= frame_bytes_max.saturating_sub(FRAME_OVERHEAD_BYTES + batch_overhead(topic))
}

// === impl Engine ===

impl Engine {
    /// One frame for the next session that can have one. Costs nothing when nothing changed since it last said no.
    pub(crate) fn deal(&mut self, now: Millis) -> Option<Output> {
        if !self.deal_again || self.paused {
            return None;
        }
        let output = self.deal_to(now, false).or_else(|| self.deal_to(now, true));
        self.deal_again = output.is_some();
        output
    }

    /// One frame for the next session of those that are relayed, or of those that are not.
    fn deal_to(&mut self, now: Millis, relayed: bool) -> Option<Output> {
        for _ in 0..self.rings.of(relayed).len() {
            if self.sums.ready == 0 && self.sums.suspects == 0 {
                break;
            }
            let ring = self.rings.of(relayed);
            let id = ring.pop_front()?;
            let waiting = ring.len() as u64 + 1;
            let Some(session) = self.sessions.get_mut(&id) else { continue };
            let free = session.free();
            if free == 0 {
                session.in_ring = false;
                continue;
            }
            let share = self.sums.ready.div_ceil(waiting).max(session.pace.burst(&self.pace));
            let quantum = free.min(share).min(self.policy.frame_records_max as u64);
            let output = self.deal_suspect(now, id).or_else(|| self.fill_frame(now, id, quantum));
            let session = self.sessions.get_mut(&id)?;
            session.in_ring = session.free() > 0;
            if session.in_ring {
                self.rings.of(relayed).push_back(id);
            }
            if output.is_some() {
                return output;
            }
        }
        None
    }

    fn fill_frame(&mut self, now: Millis, id: SessionId, quantum: u64) -> Option<Output> {
        let session = self.sessions.get_mut(&id)?;
        let mut room = Room {
            records: quantum,
            bytes: self.policy.frame_bytes_max,
            hard_bytes: session.max_frame_bytes.saturating_sub(FRAME_OVERHEAD_BYTES),
            held: session.held,
            held_bytes: session.held_bytes,
            frame_bytes_most: self.frame_bytes_most,
            first: true,
            untimely: 0,
            oversize: Vec::new(),
        };
        let frame = session.sequence + 1;
        let mut batches = Vec::new();
        for _ in 0..self.deal_from.len() {
            if room.records == 0 {
                break;
            }
            let Some(pid) = self.deal_from.pop_front() else { break };
            let Some(partition) = self.partitions.get_mut(pid) else { continue };
            let batch = take_batch(partition, session, id, now, &mut room);
            for offset in room.oversize.drain(..) {
                let due = self.timers.oversize.wait(now, self.policy.too_large_after_ms, pid, offset);
                partition.oversize.insert(offset, Some(due));
            }
            partition.in_ring = partition.ledger.ready() > 0;
            if partition.in_ring {
                self.deal_from.push_back(pid);
            }
            if !batch.records.is_empty() {
                let expires = now.plus(session.ack_timeout_ms);
                let held = u32::try_from(room.held).unwrap_or(u32::MAX);
                batch.records.leases(|base, mask| {
                    self.lease_ids += 1;
                    let key = LeaseKey { pid, base, id: self.lease_ids };
                    session.leases.insert(key, Lease { mask, frame, dealt_at: now, held, expires, suspect: false });
                    self.timers.expiries.insert((expires, key.id), (id, key));
                });
                batches.push(batch);
            }
            self.sums.count(partition);
        }
        if batches.is_empty() {
            return None;
        }
        session.sequence = frame;
        self.broken_count += crate::invariants::window_kept(session, room.held, room.held_bytes);
        self.broken_count += room.untimely;
        session.held = room.held;
        session.held_bytes = room.held_bytes;
        self.deaths.count(session);
        Some(Output::Deliver { session: id, sequence: frame, batches })
    }

    /// The session may have room again.
    pub(crate) fn offer(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if session.free() > 0 {
            if !session.in_ring {
                session.in_ring = true;
                self.rings.of(session.relayed).push_back(id);
            }
            self.deal_again = true;
        }
    }

    /// A suspect, in a frame of its own, to a session that holds none: the lowest that fits.
    fn deal_suspect(&mut self, now: Millis, id: SessionId) -> Option<Output> {
        if self.sums.suspects == 0 {
            return None;
        }
        let session = self.sessions.get(&id).filter(|session| session.suspects == 0)?;
        let (mut chosen, mut oversize) = (None, Vec::new());
        for pid in &self.suspects_from {
            let Some(partition) = self.partitions.get(*pid) else { continue };
            let mut unfit = |offset| oversize.push((*pid, offset));
            if let Some(offset) = lowest_suspect(partition, session, id, now, self.frame_bytes_most, &mut unfit) {
                chosen = Some((*pid, offset));
                break;
            }
        }
        for (pid, offset) in oversize {
            self.put_suspect_aside(now, pid, offset);
        }
        let (pid, offset) = chosen?;
        let session = self.sessions.get_mut(&id)?;
        let partition = self.partitions.get_mut(pid)?;
        let at = partition.ledger.find(offset)?;
        let slot = partition.ledger.slot(at)?;
        let (bytes, mut records) = (slot.bytes(), Records::default());
        records.push(slot.run(), &slot.range());
        records.set_attempts(partition.ledger.attempted());
        self.broken_count += crate::invariants::turn_kept(partition.ledger.has_turn(at));
        partition.ledger.lease_suspect(at);
        partition.released.remove(&offset);
        partition.stats.delivered += 1;
        if partition.ledger.ready_suspects() == 0 {
            self.suspects_from.remove(&pid);
        }
        self.sums.count(partition);
        session.sequence += 1;
        session.suspects += 1;
        self.lease_ids += 1;
        let (frame, expires) = (session.sequence, now.plus(session.ack_timeout_ms));
        let key = LeaseKey { pid, base: offset, id: self.lease_ids };
        let held = u32::try_from(session.held + 1).unwrap_or(u32::MAX);
        session.leases.insert(key, Lease { mask: 1, frame, dealt_at: now, held, expires, suspect: true });
        self.timers.expiries.insert((expires, key.id), (id, key));
        self.broken_count += crate::invariants::window_kept(session, session.held + 1, session.held_bytes + bytes);
        session.held += 1;
        session.held_bytes += bytes;
        self.deaths.count(session);
        let batch = Batch { partition: partition.name.clone(), epoch: partition.epoch, records };
        Some(Output::Deliver { session: id, sequence: frame, batches: vec![batch] })
    }

    /// A suspect that fits nobody any more waits for a frame in which it does, as any record.
    fn put_suspect_aside(&mut self, now: Millis, pid: Pid, offset: i64) {
        let Some(partition) = self.partitions.get_mut(pid) else { return };
        partition.ledger.suspects.take(offset);
        let due = self.timers.oversize.wait(now, self.policy.too_large_after_ms, pid, offset);
        partition.oversize.insert(offset, Some(due));
        if partition.ledger.ready_suspects() == 0 {
            self.suspects_from.remove(&pid);
        }
        self.sums.count(partition);
    }

    /// The partition has something ready.
    pub(crate) fn offer_partition(&mut self, pid: Pid) {
        let Some(partition) = self.partitions.get_mut(pid) else { return };
        if partition.ledger.ready_suspects() > 0 && partition.revoking.is_none() {
            self.suspects_from.insert(pid);
            self.deal_again = true;
        } else {
            self.suspects_from.remove(&pid);
        }
        if partition.ledger.ready() > 0 && partition.revoking.is_none() {
            if !partition.in_ring {
                partition.in_ring = true;
                self.deal_from.push_back(pid);
            }
            self.deal_again = true;
        }
    }
}

/// The lowest suspect that this session may have. `unfit` hears of those before it that fit no session's frame.
fn lowest_suspect(
    partition: &Partition,
    session: &Session,
    id: SessionId,
    now: Millis,
    frame_bytes_most: usize,
    unfit: &mut impl FnMut(i64),
) -> Option<i64> {
    let topic = &partition.name.topic;
    let may_have = |offset: &&i64| {
        let Some(slot) = partition.ledger.find(**offset).and_then(|at| partition.ledger.slot(at)) else { return false };
        if !fits(slot, topic, frame_bytes_most) {
            unfit(**offset);
            return false;
        }
        let released = partition.released.get(*offset).is_some_and(|(by, until)| *by == id && *until > now);
        !released
            && fits(slot, topic, session.max_frame_bytes)
            && session.takes(session.held, session.held_bytes, slot.bytes())
    };
    partition.ledger.suspects.ready().iter().find(may_have).copied()
}

/// Leases the lowest ready records that fit.
fn take_batch(partition: &mut Partition, session: &Session, id: SessionId, now: Millis, room: &mut Room) -> Batch {
    let (name, epoch) = (partition.name.clone(), partition.epoch);
    let overhead = batch_overhead(&name.topic);
    if room.hard_bytes <= overhead {
        return Batch { partition: name, epoch, records: Records::default() };
    }
    let largest = room.frame_bytes_most.saturating_sub(FRAME_OVERHEAD_BYTES + overhead);
    let full = session.max_frame_bytes.saturating_sub(FRAME_OVERHEAD_BYTES + overhead);
    room.hard_bytes -= overhead;
    let (count_max, released) = (room.records, &mut partition.released);
    let mut filling = Filling { room, session, id, now, released, records: Records::default(), largest, full };
    let untimely = partition.ledger.deal(count_max, &mut filling);
    let Filling { mut records, room, .. } = filling;
    records.set_attempts(partition.ledger.attempted());
    let taken = records.len() as u64;
    room.untimely += untimely;
    room.records = room.records.saturating_sub(taken);
    partition.stats.delivered += taken;
    Batch { partition: name, epoch, records }
}

// === impl Filling ===

impl Filling<'_> {
    fn take(&mut self, run: &Arc<Run>, range: &Range<usize>, encoded: usize) {
        self.records.push(run, range);
        self.room.bytes = self.room.bytes.saturating_sub(encoded);
        self.room.hard_bytes -= encoded;
        self.room.held += range.len() as u64;
        self.room.held_bytes += run.bytes_of(range) as u64;
        self.room.first = false;
    }
}

impl Dealer for Filling<'_> {
    fn takes_all(&mut self, run: &Arc<Run>, range: &Range<usize>) -> bool {
        if !self.released.is_empty() {
            return false;
        }
        // What fits together fits one by one.
        let encoded = encoded_bytes_of(run, range);
        let fits = encoded <= self.largest.min(self.full).min(self.room.hard_bytes).min(self.room.bytes);
        let bytes = run.bytes_of(range) as u64;
        // More than one: the exception for an empty window is of a single record.
        let takes_all = fits && self.session.takes(self.room.held.max(1), self.room.held_bytes, bytes);
        if takes_all {
            self.take(run, range, encoded);
        }
        takes_all
    }

    fn choose(&mut self, slot: Slot<'_>, _: usize) -> Choice {
        let (offset, range) = (slot.offset(), slot.range());
        let encoded = encoded_bytes_of(slot.run(), &range);
        if encoded > self.largest {
            self.room.oversize.push(offset);
            return Choice::Wait;
        }
        let not_this = self.released.get(&offset).is_some_and(|(by, until)| *by == self.id && *until > self.now);
        if not_this || encoded > self.full {
            return Choice::Pass;
        }
        let fits = encoded <= self.room.hard_bytes && (self.room.first || encoded <= self.room.bytes);
        if !fits || !self.session.takes(self.room.held, self.room.held_bytes, slot.bytes()) {
            // Lowest first: what does not fit now is next in the following frame. Into an empty frame another
            // partition's record may still fit.
            if !self.room.first {
                self.room.records = 0;
            }
            return Choice::Stop;
        }
        self.take(slot.run(), &range, encoded);
        if !self.released.is_empty() {
            self.released.remove(&offset);
        }
        Choice::Take
    }
}
