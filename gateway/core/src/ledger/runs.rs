//! Many records at once, by segments and words: what is dealt, and what is acked.

use super::segment::Slot;
use super::{Ledger, SEGMENT_RECORDS};

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
}
