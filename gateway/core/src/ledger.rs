//! What is known of each record of a partition that was received and not yet committed.
//!
//! Indexed by the order of arrival, never by the number line of offsets: a hole (transaction marker, compacted record)
//! costs nothing and stops nothing. Sequence n stands in segment n / 256; a segment that is all done shrinks to its
//! bounds, so a million records done behind a stuck one cost a few bytes for each 256.

mod arrivals;
mod bits;
mod deals;
mod failures;
mod lanes;
mod pieces;
mod segment;
mod suspects;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::policy::Ordering;
use crate::types::OffsetRange;
use bits::Bits;
use failures::Failures;
use lanes::Lanes;
use segment::{Segment, Stretch};
pub(crate) use suspects::Suspects;

pub(crate) use deals::{Choice, Dealer};
pub(crate) use failures::cut;
pub(crate) use pieces::Slot;

/// Records in a segment.
pub(crate) const SEGMENT_RECORDS: usize = 256;
/// After so many bytes or records that are done, what they left behind is looked at: as much may be kept for nothing.
const FREED_BYTES_MAX: u64 = 1 << 20;
const FREED_RECORDS_MAX: u64 = 4_096;
/// What a record costs beside its payload.
pub(crate) const RECORD_OVERHEAD_BYTES: u64 = 128;
/// What its attempts cost, and what is known of its failures, with their places in maps and the wait for its retry.
const FAILURE_BYTES: u64 = 80;

/// Where a record stands: the segment's number, the place in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct At {
    segment: u64,
    place: usize,
}

impl At {
    fn of(sequence: u64) -> Self {
        Self { segment: sequence / SEGMENT_RECORDS as u64, place: sequence as usize % SEGMENT_RECORDS }
    }

    fn sequence(self) -> u64 {
        self.segment * SEGMENT_RECORDS as u64 + self.place as u64
    }
}

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Ready,
    Leased,
    Waiting,
    Done,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Ledger {
    segments: VecDeque<Stretch>,
    /// Number of the first segment.
    base: u64,
    /// Sequence of the first record not done.
    head: u64,
    /// Sequence of the next record.
    tail: u64,
    next: i64,
    ready: u64,
    leased: u64,
    not_done: u64,
    bytes: u64,
    /// Records done, and their bytes, since runs were looked at whose records are mostly done.
    freed: (u64, u64),
    /// Numbers of the segments in which they were. Only these are looked at: a look at all of a long span would cost each
    /// record more the longer it is.
    touched: Vec<u64>,
    /// No segment below this number has a ready record.
    ready_from: u64,
    /// Attempts of records not done, for the commit.
    attempted: BTreeMap<i64, u32>,
    /// `None` where nothing has an order.
    lanes: Option<Box<Lanes>>,
    /// Sequences of records that were given up before their turn: they are not ready when it comes.
    held: BTreeSet<u64>,
    /// When and why records failed that are not done.
    pub(crate) failures: Failures,
    /// Which of them were held by sessions that died.
    pub(crate) suspects: Suspects,
}

impl Ledger {
    pub(crate) fn new(next: i64, ordering: Ordering, suspect_marks: u32) -> Self {
        Self {
            segments: VecDeque::new(),
            base: 0,
            head: 0,
            tail: 0,
            next,
            ready: 0,
            leased: 0,
            not_done: 0,
            bytes: 0,
            freed: (0, 0),
            touched: Vec::new(),
            ready_from: 0,
            attempted: BTreeMap::new(),
            lanes: Lanes::new(ordering),
            held: BTreeSet::new(),
            failures: Failures::default(),
            suspects: Suspects::new(suspect_marks),
        }
    }

    // === counts ===

    /// The next offset to be fetched.
    pub(crate) fn next(&self) -> i64 {
        self.next
    }

    pub(crate) fn ready(&self) -> u64 {
        self.ready
    }

    pub(crate) fn leased(&self) -> u64 {
        self.leased
    }

    pub(crate) fn not_done(&self) -> u64 {
        self.not_done
    }

    /// Suspects that may be dealt, each in a frame of its own.
    pub(crate) fn ready_suspects(&self) -> u64 {
        self.suspects.ready().len() as u64
    }

    /// Records that wait for their retry, or for a frame in which they fit; suspects, whatever they wait for.
    pub(crate) fn waiting(&self) -> u64 {
        self.not_done - self.ready - self.leased - self.lane_waiting()
    }

    /// Records that wait for an earlier one of their lane.
    pub(crate) fn lane_waiting(&self) -> u64 {
        self.lanes.as_ref().map_or(0, |lanes| lanes.waiting() - self.held.len() as u64)
    }

    /// Records received above the frontier, done or not.
    pub(crate) fn span(&self) -> u64 {
        self.tail - self.head
    }

    /// How many records were received below the frontier.
    pub(crate) fn passed(&self) -> u64 {
        self.head
    }

    /// What is held for this partition: records, their failures, lanes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes + self.bytes_beside()
    }

    /// What is kept beside the records.
    fn bytes_beside(&self) -> u64 {
        let failures = (self.attempted.len() + self.failures.len()) as u64 * FAILURE_BYTES;
        failures + self.failures.reasons_bytes() + self.lanes.as_ref().map_or(0, |lanes| lanes.bytes())
    }

    pub(crate) fn attempted(&self) -> &BTreeMap<i64, u32> {
        &self.attempted
    }

    /// The first record not done, or the next to be fetched. True after `advance`.
    pub(crate) fn frontier(&self) -> i64 {
        self.head_at().and_then(|at| self.live(at)).map_or(self.next, |(s, i)| s.offset(i))
    }

    /// Where the first record not done stands.
    pub(crate) fn head_at(&self) -> Option<At> {
        (self.head < self.tail).then(|| At::of(self.head))
    }

    // === finding ===

    /// Where the record of this offset stands, if it was received and is not below the first segment.
    pub(crate) fn find(&self, offset: i64) -> Option<At> {
        let index = self.index_of(offset)?;
        let place = self.segments[index].live()?.find(offset)?;
        Some(At { segment: self.base + index as u64, place })
    }

    /// As `find`, for offsets that are probably near the last one found.
    pub(crate) fn find_near(&self, near: Option<At>, offset: i64) -> Option<At> {
        if let Some(near) = near
            && let Some((segment, _)) = self.live(near)
            && let Some(place) = segment.find(offset)
        {
            return Some(At { segment: near.segment, place });
        }
        self.find(offset)
    }

    fn live(&self, at: At) -> Option<(&Segment, usize)> {
        let index = at.segment.checked_sub(self.base)?;
        Some((self.segments.get(index as usize)?.live()?, at.place))
    }

    fn live_mut(&mut self, at: At) -> Option<&mut Segment> {
        let index = at.segment.checked_sub(self.base)?;
        self.segments.get_mut(index as usize)?.live_mut()
    }

    /// What a received record is. What is below the first segment, or in one that is all done, is done.
    pub(crate) fn state(&self, at: At) -> State {
        match self.live(at) {
            None => State::Done,
            Some((s, i)) if s.done.get(i) => State::Done,
            Some((s, i)) if s.leased.get(i) => State::Leased,
            Some((s, i)) if s.ready.get(i) => State::Ready,
            Some(_) => State::Waiting,
        }
    }

    pub(crate) fn slot(&self, at: At) -> Option<Slot<'_>> {
        self.live(at).and_then(|(s, i)| s.slot(i))
    }

    /// The offset of a record that is not done.
    fn offset(&self, at: At) -> Option<i64> {
        self.live(at).filter(|(s, i)| *i < s.len && !s.done.get(*i)).map(|(s, i)| s.offset(i))
    }

    /// Counted failures of a record that is not done.
    pub(crate) fn attempts(&self, offset: i64) -> u32 {
        self.attempted.get(&offset).copied().unwrap_or(0)
    }

    // === changes; each O(1) ===

    /// Whether no earlier record of its lane holds this one up.
    pub(crate) fn has_turn(&self, at: At) -> bool {
        let Some(lanes) = &self.lanes else { return true };
        self.slot(at).is_none_or(|slot| lanes.has_turn(lanes.of(slot.key()), at.sequence()))
    }

    /// A suspect that may be dealt → leased.
    pub(crate) fn lease_suspect(&mut self, at: At) {
        let Some(offset) = self.offset(at) else { return };
        self.suspects.take(offset);
        if let Some(segment) = self.live_mut(at) {
            segment.make_ready(at.place);
            segment.lease(at.place);
            self.leased += 1;
        }
    }

    /// Leased or waiting → ready. What waits for an earlier record of its lane goes on waiting, and a suspect is ready in a
    /// place of its own.
    pub(crate) fn make_ready(&mut self, at: At) {
        let was = self.state(at);
        self.held.remove(&at.sequence());
        if !self.has_turn(at) {
            return;
        }
        if self.suspects.is_any_marked()
            && let Some(offset) = self.offset(at)
            && self.suspects.is_suspect(offset)
        {
            self.make_waiting(at);
            self.suspects.offer(offset);
            return;
        }
        if let Some(segment) = self.live_mut(at)
            && matches!(was, State::Leased | State::Waiting)
        {
            segment.make_ready(at.place);
            self.leased -= u64::from(was == State::Leased);
            self.ready += 1;
            self.ready_from = self.ready_from.min(at.segment);
        }
    }

    /// Leased or ready → waiting. One that waits for its turn goes on waiting when that comes.
    pub(crate) fn make_waiting(&mut self, at: At) {
        let was = self.state(at);
        if was == State::Waiting && !self.has_turn(at) {
            self.held.insert(at.sequence());
        }
        if let Some(segment) = self.live_mut(at)
            && matches!(was, State::Leased | State::Ready)
        {
            segment.make_waiting(at.place);
            self.leased -= u64::from(was == State::Leased);
            self.ready -= u64::from(was == State::Ready);
        }
    }

    /// One attempt more. Gives the number.
    pub(crate) fn count_attempt(&mut self, at: At) -> u32 {
        let Some(offset) = self.offset(at) else { return 0 };
        let attempts = self.attempted.entry(offset).or_default();
        *attempts = attempts.saturating_add(1);
        *attempts
    }

    /// The record is given up: no fewer attempts than this. Whether it had fewer.
    pub(crate) fn raise_attempts(&mut self, at: At, attempts: u32) -> bool {
        let Some(offset) = self.offset(at).filter(|offset| self.attempts(*offset) < attempts) else { return false };
        self.attempted.insert(offset, attempts);
        true
    }

    /// Makes a record done and frees its bytes; the next of its lane is ready. Call `advance` after the last of a batch.
    pub(crate) fn finish(&mut self, at: At) {
        let was = self.state(at);
        let Some(slot) = self.slot(at) else { return };
        let (offset, lane) = (slot.offset(), self.lanes.as_ref().and_then(|lanes| lanes.of(slot.key())));
        let Some(segment) = self.live_mut(at) else { return };
        let bytes = segment.finish(Bits::of(&(at.place..at.place + 1)));
        if !std::mem::replace(&mut segment.is_touched, true) {
            self.touched.push(at.segment);
        }
        self.leased -= u64::from(was == State::Leased);
        self.ready -= u64::from(was == State::Ready);
        self.not_done -= 1;
        self.count_freed(1, bytes);
        if !self.attempted.is_empty() {
            self.attempted.remove(&offset);
        }
        self.failures.forget(offset);
        if !self.suspects.is_empty() {
            self.suspects.forget(offset);
        }
        if !self.held.is_empty() {
            self.held.remove(&at.sequence());
        }
        self.collapse((at.segment - self.base) as usize);
        if let Some(lanes) = &mut self.lanes
            && let Some(next) = lanes.leave(lane, at.sequence())
            && !self.held.remove(&next)
        {
            self.make_ready(At::of(next));
        }
    }

    /// These are done.
    fn count_freed(&mut self, records: u64, bytes: u64) {
        self.bytes -= bytes + records * RECORD_OVERHEAD_BYTES;
        self.freed.0 += records;
        self.freed.1 += bytes;
    }

    /// A full segment that is all done keeps its bounds only.
    fn collapse(&mut self, index: usize) {
        let stretch = &mut self.segments[index];
        if let Stretch::Live(s) = stretch
            && s.not_done == 0
            && s.is_full()
        {
            *stretch = Stretch::Done { first: s.first, last: s.last };
        }
    }

    /// Moves the frontier over what is done, by words, and drops segments below it. Now and then it looks for runs that a
    /// few records keep alive.
    pub(crate) fn advance(&mut self) {
        self.move_frontier();
        if self.freed.0 >= FREED_RECORDS_MAX || self.freed.1 >= FREED_BYTES_MAX {
            self.freed = (0, 0);
            let mut touched = std::mem::take(&mut self.touched);
            touched.retain(|number| {
                let index = number.checked_sub(self.base).map(|index| index as usize);
                let segment = index.and_then(|index| self.segments.get_mut(index)?.live_mut());
                segment.is_some_and(Segment::thin_out)
            });
            self.touched = touched;
        }
    }

    fn move_frontier(&mut self) {
        while self.head < self.tail {
            let Some(front) = self.segments.front() else { break };
            let start = self.base * SEGMENT_RECORDS as u64;
            let Some(segment) = front.live() else {
                self.drop_front(start);
                continue;
            };
            let from = (self.head - start) as usize;
            match segment.done.first_clear(from).filter(|i| *i < segment.len) {
                Some(i) => {
                    self.head = start + i as u64;
                    break;
                }
                None if segment.is_full() => self.drop_front(start),
                None => self.head = self.tail,
            }
        }
    }

    fn drop_front(&mut self, start: u64) {
        self.segments.pop_front();
        self.base += 1;
        self.head = start + SEGMENT_RECORDS as u64;
        if self.segments.capacity() > 64 && self.segments.capacity() > self.segments.len() * 8 {
            self.segments.shrink_to(self.segments.len() * 2);
        }
    }

    // === for the commit ===

    /// What is done above the frontier, in offsets, holes folded in: the lowest `count_max` ranges, and of those above them
    /// what is to be kept.
    pub(crate) fn done_ranges(&self, count_max: usize, is_kept: impl Fn(&OffsetRange) -> bool) -> Vec<OffsetRange> {
        let mut ranges = Vec::new();
        let mut add = |range: OffsetRange| {
            if ranges.len() < count_max || is_kept(&range) {
                ranges.push(range);
            }
        };
        // The last offset not done, and whether something done came after it.
        let (mut undone, mut seen_done) = (self.frontier(), false);
        let mut from = self.head as usize % SEGMENT_RECORDS;
        for stretch in &self.segments {
            let Some(segment) = stretch.live() else {
                seen_done = true;
                continue;
            };
            let mut i = from;
            from = 0;
            while i < segment.len {
                let clear = segment.done.first_clear(i).map_or(segment.len, |c| c.min(segment.len));
                seen_done |= clear > i;
                if clear == segment.len {
                    break;
                }
                if seen_done {
                    add(OffsetRange { first: undone + 1, last: segment.offset(clear) - 1 });
                }
                let set = segment.done.first_set(clear).map_or(segment.len, |set| set.min(segment.len));
                (undone, seen_done) = (segment.offset(set - 1), false);
                i = set;
            }
        }
        if seen_done && self.head < self.tail {
            add(OffsetRange { first: undone + 1, last: self.next - 1 });
        }
        ranges
    }

    // === for tests and views ===

    /// Done records above the frontier.
    pub(crate) fn done_above(&self) -> u64 {
        self.span() - self.not_done
    }

    /// Counts again what is kept in counters: (ready, leased, not done, bytes).
    pub(crate) fn recount(&self) -> (u64, u64, u64, u64) {
        let mut sums = (0, 0, 0, 0);
        for segment in self.segments.iter().filter_map(Stretch::live) {
            sums.0 += segment.ready.count() as u64;
            sums.1 += segment.leased.count() as u64;
            sums.2 += segment.not_done as u64;
            for slot in (0..segment.len).filter_map(|i| segment.slot(i)) {
                sums.3 += slot.bytes() + RECORD_OVERHEAD_BYTES;
            }
        }
        sums.3 += self.bytes_beside();
        sums
    }

    /// Invariant 6, looked up record by record.
    pub(crate) fn check_lanes(&self) -> Result<(), String> {
        let Some(lanes) = &self.lanes else { return Ok(()) };
        let live = (self.base..).zip(&self.segments).filter_map(|(number, s)| Some((number, s.live()?)));
        lanes.check(live.flat_map(|(number, s)| {
            let of = move |i| Some((At { segment: number, place: i }.sequence(), s.slot(i)?, s.is_at_work(i)));
            (0..s.len).filter_map(of)
        }))
    }

    /// Offsets that are leased, ascending.
    pub(crate) fn leased_offsets(&self) -> Vec<i64> {
        let live = self.segments.iter().filter_map(Stretch::live);
        live.flat_map(|s| (0..s.len).filter(|i| s.leased.get(*i)).map(|i| s.offset(i))).collect()
    }

    /// Memory of the runs that are kept alive.
    #[cfg(test)]
    pub(crate) fn pinned(&self) -> usize {
        use std::sync::Arc;
        let live = self.segments.iter().filter_map(Stretch::live);
        let runs: std::collections::HashMap<_, _> =
            live.flat_map(Segment::pinned).map(|run| (Arc::as_ptr(run), run.memory())).collect();
        runs.values().sum()
    }

    #[cfg(test)]
    pub(crate) fn segments_live(&self) -> usize {
        self.segments.iter().filter(|s| s.live().is_some()).count()
    }

    /// The last offset of the last segment, for the order of arrivals.
    pub(crate) fn last_received(&self) -> Option<i64> {
        self.segments.back().map(Stretch::last)
    }
}
