//! Where the records of a segment are: each piece names the places of some records that came in one run.

use std::ops::Range;
use std::sync::Arc;

use super::bits::Bits;
use crate::run::{ENTRY_BYTES, RecordRef, Run};
use crate::types::Millis;

/// A run is copied from when what a piece needs of it is at most this part of it.
const NEEDED_PART: usize = 4;
/// Less is not worth it.
const COPIED_FROM_BYTES_MIN: usize = 1 << 10;

/// A record that is not done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot<'a> {
    pub(super) run: &'a Arc<Run>,
    pub(super) index: usize,
    pub(crate) received_at: Millis,
}

/// Places of a segment, and the run with their records.
#[derive(Debug)]
pub(super) struct Piece {
    from: u16,
    to: u16,
    /// How many are not done.
    live: u16,
    /// The run had mostly done records when it was looked at last.
    is_fading: bool,
    /// Which record of the run stands at `from`.
    index: u32,
    pub(super) received_at: Millis,
    /// `None`: all are done.
    run: Option<Arc<Run>>,
    /// The places of the run's records, where those between them are gone.
    places: Option<Box<[u8]>>,
}

// === impl Slot ===

impl<'a> Slot<'a> {
    pub(crate) fn offset(&self) -> i64 {
        self.run.offset(self.index)
    }

    /// Of key, value and headers.
    pub(crate) fn bytes(&self) -> u64 {
        self.run.bytes_of(&self.range()) as u64
    }

    pub(crate) fn key(&self) -> Option<&'a [u8]> {
        self.run.key(self.index)
    }

    pub(crate) fn record(&self) -> RecordRef<'a> {
        self.run.record(self.index)
    }

    /// Where it stands.
    pub(crate) fn run(&self) -> &'a Arc<Run> {
        self.run
    }

    pub(crate) fn range(&self) -> Range<usize> {
        self.index..self.index + 1
    }
}

// === impl Piece ===

impl Piece {
    /// Records `range` of a run, at the places from `place` on.
    pub(super) fn new(received_at: Millis, run: &Arc<Run>, range: &Range<usize>, place: usize) -> Self {
        Self {
            from: place as u16,
            to: (place + range.len()) as u16,
            live: range.len() as u16,
            is_fading: false,
            index: range.start as u32,
            received_at,
            run: Some(run.clone()),
            places: None,
        }
    }

    /// Takes the next records of its run at the next places, if these are they.
    pub(super) fn extend(&mut self, run: &Arc<Run>, range: &Range<usize>, place: usize) -> bool {
        let next = self.index as usize + self.places().len();
        let follows = self.places.is_none()
            && usize::from(self.to) == place
            && next == range.start
            && self.run.as_ref().is_some_and(|own| Arc::ptr_eq(own, run));
        if follows {
            self.to += range.len() as u16;
            self.live += range.len() as u16;
        }
        follows
    }

    pub(super) fn places(&self) -> Range<usize> {
        usize::from(self.from)..usize::from(self.to)
    }

    pub(super) fn run(&self) -> Option<&Arc<Run>> {
        self.run.as_ref()
    }

    /// Which record of the run stands at this place, of one that is not done.
    pub(super) fn index_of(&self, place: usize) -> Option<usize> {
        match &self.places {
            None => Some(self.index as usize + place - usize::from(self.from)),
            Some(places) => places.binary_search(&(place as u8)).ok(),
        }
    }

    /// Of these places, none of them done.
    pub(super) fn bytes_of(&self, places: Bits) -> usize {
        let Some(run) = &self.run else { return 0 };
        let indices = |range: Range<usize>| Some(self.index_of(range.start)?..self.index_of(range.end - 1)? + 1);
        places.ranges().filter_map(indices).map(|range| run.bytes_of(&range)).sum()
    }

    /// So many more are done: after the last the run goes.
    pub(super) fn finish(&mut self, count: usize) {
        self.live -= count as u16;
        if self.live == 0 {
            self.run = None;
            self.places = None;
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.live == 0
    }

    /// One record that is not done would keep the whole run: what is left of one that is mostly done, by its bytes, gets a
    /// run of its own. Not at first sight, since most are done soon: whether to look again.
    pub(super) fn copy_out(&mut self, done: Bits) -> bool {
        let Some(run) = self.run.as_ref().filter(|run| run.memory() >= COPIED_FROM_BYTES_MIN) else { return false };
        let left = Bits::of(&self.places()).without(done);
        let needed = self.bytes_of(left) + usize::from(self.live) * ENTRY_BYTES;
        if needed * NEEDED_PART > run.memory() {
            self.is_fading = false;
            return false;
        }
        if !std::mem::replace(&mut self.is_fading, true) {
            return true;
        }
        let places: Box<[u8]> = left.ranges().flatten().map(|place| place as u8).collect();
        let picked = run.pick(places.iter().filter_map(|place| self.index_of(usize::from(*place))));
        self.run = Some(Arc::new(picked));
        self.index = 0;
        self.places = Some(places);
        self.is_fading = false;
        false
    }
}
