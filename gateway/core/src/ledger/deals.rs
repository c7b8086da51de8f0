//! Many records at once, by segments and words: what is dealt, and what is acked.

use std::ops::Range;
use std::sync::Arc;

use super::lanes::Lanes;
use super::segment::Stretch;
use super::{Ledger, SEGMENT_RECORDS, Slot, State};
use crate::run::Run;
use crate::session::{LEASE_SPAN, offsets_of};

/// What becomes of a ready record that is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    /// It is leased.
    Take,
    /// It stays ready.
    Pass,
    /// It waits.
    Wait,
    /// It stays ready, and so do all after it.
    Stop,
}

/// Says what is dealt, lowest first.
pub(crate) trait Dealer {
    /// Takes all of these records of a run, or none: then it is asked for each.
    fn takes_all(&mut self, run: &Arc<Run>, range: &Range<usize>) -> bool;

    /// What becomes of this record, at a place in its segment. What it takes is leased.
    fn choose(&mut self, slot: Slot<'_>, place: usize) -> Choice;
}

/// Looks at the turn of each record that is taken.
struct InTurn<'a, D> {
    dealer: &'a mut D,
    lanes: Option<&'a Lanes>,
    /// Sequence of the segment's first place.
    start: u64,
    untimely: u64,
}

/// What was made done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Finished {
    pub(crate) records: u64,
    /// Of key, value and headers.
    pub(crate) bytes: u64,
}

impl<D: Dealer> Dealer for InTurn<'_, D> {
    fn takes_all(&mut self, run: &Arc<Run>, range: &Range<usize>) -> bool {
        self.dealer.takes_all(run, range)
    }

    fn choose(&mut self, slot: Slot<'_>, place: usize) -> Choice {
        let choice = self.dealer.choose(slot, place);
        if choice == Choice::Take
            && let Some(lanes) = self.lanes
        {
            self.untimely +=
                crate::invariants::turn_kept(lanes.has_turn(lanes.of(slot.key()), self.start + place as u64));
        }
        choice
    }
}

impl Ledger {
    /// Leases at most so many of the ready records, the lowest first, as `dealer` says. Gives how many it took before their
    /// turn.
    pub(crate) fn deal(&mut self, count_max: u64, dealer: &mut impl Dealer) -> u64 {
        let (mut left, mut unseen) = (count_max, self.ready);
        let mut number = self.ready_from.max(self.base);
        let mut is_lowest = true;
        let mut in_turn = InTurn { dealer, lanes: self.lanes.as_deref(), start: 0, untimely: 0 };
        while left > 0 && unseen > 0 {
            let Some(stretch) = self.segments.get_mut((number - self.base) as usize) else { break };
            if let Some(segment) = stretch.live_mut().filter(|s| !s.ready.is_empty()) {
                if is_lowest {
                    self.ready_from = number;
                    is_lowest = false;
                }
                unseen -= segment.ready.count() as u64;
                in_turn.start = number * SEGMENT_RECORDS as u64;
                let dealt = segment.deal(left, self.lanes.is_none(), &mut in_turn);
                self.ready -= dealt.taken + dealt.waiting;
                self.leased += dealt.taken;
                left -= dealt.taken;
                if dealt.is_stopped {
                    break;
                }
            }
            number += 1;
        }
        in_turn.untimely
    }

    /// Makes these offsets done as far as they are leased: `base` and the place of each bit. Call `advance` after the last of
    /// a batch.
    pub(crate) fn finish_leased(&mut self, base: i64, mut bits: u128) -> Finished {
        if self.lanes.is_some() {
            return self.finish_each(base, bits);
        }
        let is_told_of = !self.attempted.is_empty() || self.failures.len() > 0 || !self.suspects.is_empty();
        let told_of = if is_told_of { self.told_of(base, bits) } else { Vec::new() };
        for offset in told_of {
            self.attempted.remove(&offset);
            self.failures.forget(offset);
            self.suspects.forget(offset);
        }
        let mut finished = Finished::default();
        while bits != 0 {
            let index = self.index_of(base + i64::from(bits.trailing_zeros()));
            let Some((segment, index)) = index.and_then(|i| Some((self.segments.get_mut(i)?.live_mut()?, i))) else {
                bits &= bits - 1;
                continue;
            };
            let places = segment.leased_among(base, &mut bits);
            finished.records += places.count() as u64;
            finished.bytes += segment.finish(places);
            if !std::mem::replace(&mut segment.is_touched, true) {
                self.touched.push(self.base + index as u64);
            }
            self.collapse(index);
        }
        self.leased -= finished.records;
        self.not_done -= finished.records;
        self.count_freed(finished.records, finished.bytes);
        finished
    }

    /// Those of these offsets that are leased, and of which something is known beside.
    fn told_of(&self, base: i64, bits: u128) -> Vec<i64> {
        let range = base..=base.saturating_add(LEASE_SPAN - 1);
        let attempted = self.attempted.range(range.clone()).map(|(offset, _)| *offset);
        let told_of = attempted.chain(self.failures.within(range.clone())).chain(self.suspects.within(range));
        let is_leased = |offset: &i64| {
            bits >> (offset - base) & 1 == 1 && self.find(*offset).is_some_and(|at| self.state(at) == State::Leased)
        };
        told_of.filter(is_leased).collect()
    }

    /// One by one: each may make the next of its lane ready.
    fn finish_each(&mut self, base: i64, bits: u128) -> Finished {
        let (mut finished, mut near) = (Finished::default(), None);
        for offset in offsets_of(base, bits) {
            let at = self.find_near(near, offset).filter(|at| self.state(*at) == State::Leased);
            let Some(at) = at else { continue };
            near = Some(at);
            finished.records += 1;
            finished.bytes += self.slot(at).map_or(0, |slot| slot.bytes());
            self.finish(at);
        }
        finished
    }

    /// The place among the segments of the one in which this offset lies, if it was received.
    pub(super) fn index_of(&self, offset: i64) -> Option<usize> {
        // Without holes it is known where.
        let above = offset.checked_sub(self.segments.front()?.first())?;
        let guess = usize::try_from(above).ok()? / SEGMENT_RECORDS;
        let begins_below = |i: usize| self.segments.get(i).is_some_and(|s| s.first() <= offset);
        if begins_below(guess) && !begins_below(guess + 1) {
            return Some(guess);
        }
        self.segments.partition_point(|s: &Stretch| s.first() <= offset).checked_sub(1)
    }
}
