//! Many records at once, by segments and words: what is dealt, and what is acked.

use super::segment::{Slot, Stretch};
use super::{Ledger, RECORD_OVERHEAD_BYTES, SEGMENT_RECORDS, State};
use crate::session::offsets_of;

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

/// What was made done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Finished {
    pub(crate) records: u64,
    /// Of key, value and headers.
    pub(crate) bytes: u64,
}

impl Ledger {
    /// Leases at most so many of the ready records, the lowest first, as `choose` says of each. Gives how many it took before
    /// their turn.
    pub(crate) fn deal(&mut self, count_max: u64, mut choose: impl FnMut(&Slot) -> Choice) -> u64 {
        let (mut left, mut unseen, mut untimely) = (count_max, self.ready, 0);
        let mut number = self.ready_from.max(self.base);
        let mut is_lowest = true;
        let lanes = self.lanes.as_deref();
        while left > 0 && unseen > 0 {
            let Some(stretch) = self.segments.get_mut((number - self.base) as usize) else { break };
            if let Some(segment) = stretch.live_mut().filter(|s| s.ready.count() > 0) {
                if is_lowest {
                    self.ready_from = number;
                    is_lowest = false;
                }
                unseen -= segment.ready.count() as u64;
                let start = number * SEGMENT_RECORDS as u64;
                let dealt = segment.deal(left, |i, slot| {
                    let choice = choose(slot);
                    if choice == Choice::Take
                        && let Some(lanes) = lanes
                    {
                        untimely += crate::invariants::turn_kept(lanes.has_turn(&slot.record, start + i as u64));
                    }
                    choice
                });
                self.ready -= dealt.taken + dealt.waiting;
                self.leased += dealt.taken;
                left -= dealt.taken;
                if dealt.is_stopped {
                    break;
                }
            }
            number += 1;
        }
        untimely
    }

    /// Makes these offsets done as far as they are leased: `base` and the place of each bit. Call `advance` after the last of
    /// a batch.
    pub(crate) fn finish_leased(&mut self, base: i64, mut bits: u128) -> Finished {
        let is_told_of = self.failures.len() > 0 || !self.suspects.is_empty() || !self.held.is_empty();
        if self.lanes.is_some() || is_told_of {
            return self.finish_each(base, bits);
        }
        let mut finished = Finished::default();
        while bits != 0 {
            let index = self.index_of(base + i64::from(bits.trailing_zeros()));
            let Some((segment, index)) = index.and_then(|i| Some((self.segments.get_mut(i)?.live_mut()?, i))) else {
                bits &= bits - 1;
                continue;
            };
            let run = segment.leased_among(base, &mut bits);
            let attempted = &mut self.attempted;
            segment.finish_all(&run, |slot| {
                finished.bytes += u64::from(slot.bytes);
                if slot.attempts > 0 {
                    attempted.remove(&slot.record.offset);
                }
            });
            finished.records += run.count() as u64;
            self.collapse(index);
        }
        self.leased -= finished.records;
        self.not_done -= finished.records;
        self.bytes -= finished.bytes + finished.records * RECORD_OVERHEAD_BYTES;
        finished
    }

    /// One by one, where something is to be looked at for each.
    fn finish_each(&mut self, base: i64, bits: u128) -> Finished {
        let (mut finished, mut near) = (Finished::default(), None);
        for offset in offsets_of(base, bits) {
            let at = self.find_near(near, offset).filter(|at| self.state(*at) == State::Leased);
            let Some(at) = at else { continue };
            near = Some(at);
            finished.records += 1;
            finished.bytes += self.slot(at).map_or(0, |slot| u64::from(slot.bytes));
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
