//! Records that come: whole runs at once where nothing is to be looked at for each.

use std::ops::Range;
use std::sync::Arc;

use super::segment::{Segment, Stretch};
use super::{At, Ledger, RECORD_OVERHEAD_BYTES, SEGMENT_RECORDS};
use crate::run::Run;
use crate::types::Millis;

impl Ledger {
    /// The fetch position went past holes.
    pub(crate) fn position(&mut self, next: i64) {
        self.next = self.next.max(next);
    }

    /// Records of a run, all at or above `next`: ready. Where nothing has an order.
    pub(crate) fn push_all(&mut self, now: Millis, run: &Arc<Run>, range: Range<usize>) {
        debug_assert!(self.lanes.is_none(), "each record joins its lane");
        if range.is_empty() {
            return;
        }
        self.ready_from = self.ready_from.min(self.tail / SEGMENT_RECORDS as u64);
        let count = range.len() as u64;
        self.bytes += run.bytes_of(&range) as u64 + count * RECORD_OVERHEAD_BYTES;
        self.ready += count;
        self.not_done += count;
        let mut from = range.start;
        while from < range.end {
            let segment = self.last_segment(run.offset(from));
            let to = range.end.min(from + SEGMENT_RECORDS - segment.len);
            segment.push(now, run, &(from..to));
            self.tail += (to - from) as u64;
            self.next = run.offset(to - 1) + 1;
            from = to;
        }
    }

    /// A record at or above `next`: ready, or waiting for those before it in its lane. Gives where it stands.
    pub(crate) fn push(&mut self, now: Millis, run: &Arc<Run>, index: usize, attempts: u32) -> At {
        let (offset, range, sequence) = (run.offset(index), index..index + 1, self.tail);
        let blocked = self.lanes.as_mut().is_some_and(|lanes| !lanes.join(lanes.of(run.key(index)), sequence));
        let last = self.last_segment(offset);
        last.push(now, run, &range);
        if blocked {
            last.make_waiting(last.len - 1);
        }
        self.bytes += run.bytes_of(&range) as u64 + RECORD_OVERHEAD_BYTES;
        self.ready += u64::from(!blocked);
        self.not_done += 1;
        self.ready_from = self.ready_from.min(sequence / SEGMENT_RECORDS as u64);
        if attempts > 0 {
            self.attempted.insert(offset, attempts);
        }
        self.tail += 1;
        self.next = offset + 1;
        At::of(sequence)
    }

    /// A record at or above `next` that was done before it came.
    pub(crate) fn push_done(&mut self, offset: i64) {
        let segment = self.last_segment(offset);
        segment.push_done(offset);
        let is_new = !std::mem::replace(&mut segment.is_touched, true);
        if is_new {
            self.touched.push(self.base + self.segments.len() as u64 - 1);
        }
        self.tail += 1;
        self.next = offset + 1;
        self.freed.0 += 1;
        self.collapse(self.segments.len() - 1);
    }

    /// The segment into which this offset goes.
    fn last_segment(&mut self, offset: i64) -> &mut Segment {
        let has_room = self.segments.back().and_then(Stretch::live).is_some_and(|s| !s.is_full());
        if !has_room {
            if self.segments.is_empty() {
                self.base = self.tail / SEGMENT_RECORDS as u64;
            }
            self.segments.push_back(Stretch::Live(Box::new(Segment::new(offset))));
        }
        self.segments.back_mut().and_then(Stretch::live_mut).expect("pushed above, or it was there")
    }
}
