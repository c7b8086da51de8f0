//! A segment: up to 256 records that came one after another, with what is known of each as bits.

use std::ops::Range;
use std::sync::Arc;

use super::SEGMENT_RECORDS;
use super::bits::Bits;
use super::deals::{Choice, Dealer};
use super::pieces::{Piece, Slot};
use crate::run::Run;
use crate::session::{bits_within, offsets_of};
use crate::types::Millis;

/// What was dealt of a segment.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Dealt {
    pub(super) taken: u64,
    pub(super) waiting: u64,
    pub(super) is_stopped: bool,
}

#[derive(Debug)]
enum Offsets {
    /// Without holes: the n-th is `first + n`.
    Contiguous,
    Listed(Vec<i64>),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) first: i64,
    pub(super) last: i64,
    pub(super) len: usize,
    offsets: Offsets,
    /// By place. A place that is in none is of a record that is done.
    pieces: Vec<Piece>,
    pub(super) done: Bits,
    pub(super) ready: Bits,
    pub(super) leased: Bits,
    pub(super) not_done: usize,
    /// Something became done since its runs were looked at, or one of them is to be looked at again.
    pub(super) is_touched: bool,
}

/// A segment, or what is left of one that is all done: its bounds.
#[derive(Debug)]
pub(super) enum Stretch {
    Live(Box<Segment>),
    Done { first: i64, last: i64 },
}

// === impl Stretch ===

impl Stretch {
    pub(super) fn first(&self) -> i64 {
        match self {
            Self::Live(s) => s.first,
            Self::Done { first, .. } => *first,
        }
    }

    pub(super) fn last(&self) -> i64 {
        match self {
            Self::Live(s) => s.last,
            Self::Done { last, .. } => *last,
        }
    }

    pub(super) fn live(&self) -> Option<&Segment> {
        match self {
            Self::Live(s) => Some(s),
            Self::Done { .. } => None,
        }
    }

    pub(super) fn live_mut(&mut self) -> Option<&mut Segment> {
        match self {
            Self::Live(s) => Some(s),
            Self::Done { .. } => None,
        }
    }
}

// === impl Segment ===

impl Segment {
    /// An empty one.
    pub(super) fn new(first: i64) -> Self {
        Self {
            first,
            last: first,
            len: 0,
            offsets: Offsets::Contiguous,
            pieces: Vec::new(),
            done: Bits::default(),
            ready: Bits::default(),
            leased: Bits::default(),
            not_done: 0,
            is_touched: false,
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.len == SEGMENT_RECORDS
    }

    // === arrival ===

    /// Appends records of a run that are ready, as many as there is room for at most.
    pub(super) fn push(&mut self, now: Millis, run: &Arc<Run>, range: &Range<usize>) {
        let place = self.len;
        if run.is_gapless(range) {
            self.append_gapless(run.offset(range.start), range.len());
        } else {
            range.clone().for_each(|i| self.append_gapless(run.offset(i), 1));
        }
        self.ready = self.ready.or(Bits::of(&(place..self.len)));
        self.not_done += range.len();
        if !self.pieces.last_mut().is_some_and(|last| last.extend(run, range, place)) {
            self.pieces.push(Piece::new(now, run, range, place));
        }
    }

    /// Appends a record that is done.
    pub(super) fn push_done(&mut self, offset: i64) {
        self.done.set(self.len);
        self.append_gapless(offset, 1);
    }

    fn append_gapless(&mut self, first: i64, count: usize) {
        let offsets = (first..).take(count);
        match &mut self.offsets {
            Offsets::Listed(list) => list.extend(offsets),
            Offsets::Contiguous if self.len == 0 || first == self.last + 1 => {}
            Offsets::Contiguous => {
                self.offsets = Offsets::Listed((self.first..).take(self.len).chain(offsets).collect());
            }
        }
        self.last = first + count as i64 - 1;
        self.len += count;
    }

    // === finding ===

    pub(super) fn offset(&self, i: usize) -> i64 {
        match &self.offsets {
            Offsets::Contiguous => self.first + i as i64,
            Offsets::Listed(list) => list[i],
        }
    }

    pub(super) fn find(&self, offset: i64) -> Option<usize> {
        if offset < self.first || offset > self.last {
            return None;
        }
        match &self.offsets {
            Offsets::Contiguous => Some((offset - self.first) as usize),
            Offsets::Listed(list) => list.binary_search(&offset).ok(),
        }
    }

    /// The place among the pieces of the last one that begins at or before this place.
    fn piece_of(&self, i: usize) -> Option<usize> {
        match self.pieces.len() {
            1 => Some(0),
            _ => self.pieces.partition_point(|piece| piece.places().start <= i).checked_sub(1),
        }
    }

    pub(super) fn slot(&self, i: usize) -> Option<Slot<'_>> {
        if self.done.get(i) || i >= self.len {
            return None;
        }
        let piece = &self.pieces[self.piece_of(i)?];
        Some(Slot { run: piece.run()?, index: piece.index_of(i)?, received_at: piece.received_at })
    }

    /// Which of these offsets (`base` and the place of each bit, the first at or above the segment's) are leased here. What
    /// was looked at goes from `bits`: all that lies in the segment, and at least the first.
    pub(super) fn leased_among(&self, base: i64, bits: &mut u128) -> Bits {
        let here = bits_within(base, *bits, self.first, self.last);
        let lowest = *bits & bits.wrapping_neg();
        *bits &= !(here | lowest);
        let run = match &self.offsets {
            Offsets::Contiguous if base >= self.first => Bits::shifted(here, (base - self.first) as usize),
            Offsets::Contiguous => Bits::shifted(here.checked_shr((self.first - base) as u32).unwrap_or(0), 0),
            Offsets::Listed(list) => {
                let (mut run, mut next) = (Bits::default(), 0);
                for offset in offsets_of(base, here) {
                    let place = if list.get(next) == Some(&offset) { Ok(next) } else { list.binary_search(&offset) };
                    if let Ok(i) = place {
                        run.set(i);
                        next = i + 1;
                    }
                }
                run
            }
        };
        run.and(self.leased)
    }

    // === changes ===

    /// Makes these done, none of which is, and frees them. Gives their bytes.
    pub(super) fn finish(&mut self, places: Bits) -> u64 {
        let (mut bytes, mut left) = (0, places);
        let first = places.first_set(0).and_then(|i| self.piece_of(i)).unwrap_or(0);
        for piece in &mut self.pieces[first..] {
            if left.is_empty() {
                break;
            }
            let here = left.and(Bits::of(&piece.places()));
            let count = here.count();
            if count > 0 {
                bytes += piece.bytes_of(here) as u64;
                piece.finish(count);
                left = left.without(here);
            }
        }
        self.done = self.done.or(places);
        self.ready = self.ready.without(places);
        self.leased = self.leased.without(places);
        self.not_done -= places.count();
        if self.not_done == 0 {
            self.pieces.clear();
        }
        bytes
    }

    /// Gives back what nobody needs of its runs. Whether to look again.
    pub(super) fn thin_out(&mut self) -> bool {
        let done = self.done;
        self.is_touched = false;
        for piece in &mut self.pieces {
            self.is_touched |= piece.copy_out(done);
        }
        if self.pieces.iter().any(Piece::is_done) {
            self.pieces.retain(|piece| !piece.is_done());
            self.pieces.shrink_to_fit();
        }
        self.is_touched
    }

    /// See `Ledger::deal`.
    pub(super) fn deal(&mut self, count_max: u64, in_bulk: bool, dealer: &mut impl Dealer) -> Dealt {
        let (mut dealt, mut next) = (Dealt::default(), 0);
        while dealt.taken < count_max && !dealt.is_stopped {
            let Some(first) = self.ready.first_set(next) else { break };
            let Some(piece) = self.piece_of(first).map(|i| &self.pieces[i]) else { break };
            let Some((run, index)) = piece.run().zip(piece.index_of(first)) else { break };
            // Neighbours that are ready stand side by side in the run, too.
            let ready = first..self.ready.first_clear(first).unwrap_or(SEGMENT_RECORDS).min(piece.places().end);
            let count = ready.len().min((count_max - dealt.taken) as usize);
            let (places, indices) = (first..first + count, index..index + count);
            next = places.end;
            if in_bulk && dealer.takes_all(run, &indices) {
                let taken = Bits::of(&places);
                self.ready = self.ready.without(taken);
                self.leased = self.leased.or(taken);
                dealt.taken += count as u64;
                continue;
            }
            for (place, index) in places.zip(indices) {
                match dealer.choose(Slot { run, index, received_at: piece.received_at }, place) {
                    Choice::Take => {
                        self.ready.clear(place);
                        self.leased.set(place);
                        dealt.taken += 1;
                    }
                    Choice::Wait => {
                        self.ready.clear(place);
                        dealt.waiting += 1;
                    }
                    Choice::Pass => {}
                    Choice::Stop => {
                        dealt.is_stopped = true;
                        break;
                    }
                }
            }
        }
        dealt
    }

    pub(super) fn lease(&mut self, i: usize) {
        self.ready.clear(i);
        self.leased.set(i);
    }

    pub(super) fn make_ready(&mut self, i: usize) {
        self.leased.clear(i);
        self.ready.set(i);
    }

    pub(super) fn is_at_work(&self, i: usize) -> bool {
        self.ready.get(i) || self.leased.get(i)
    }

    /// Neither ready nor leased nor done: it waits.
    pub(super) fn make_waiting(&mut self, i: usize) {
        self.leased.clear(i);
        self.ready.clear(i);
    }

    /// Bytes of runs that its pieces keep alive.
    #[cfg(test)]
    pub(super) fn pinned(&self) -> impl Iterator<Item = &Arc<Run>> {
        self.pieces.iter().filter_map(Piece::run)
    }
}
