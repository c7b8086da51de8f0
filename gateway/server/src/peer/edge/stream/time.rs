//! What becomes of a stream without a word from anybody.

use std::time::Duration;

use sluice_core::End;
use tokio::time::Instant;

use super::{Fate, Seat, Stream};
use crate::peer::OwnerId;

/// How often a window that cannot be split as it should be is looked at again.
const TURN: Duration = Duration::from_millis(250);
/// An owner that leaves its part of a window of bytes unused for this long has a record that does not fit it.
const UNUSED_FOR: Duration = Duration::from_millis(250);
/// Then it is given the whole window for this long,
const SOLO_FOR: Duration = Duration::from_secs(1);
/// and not again before this.
const SOLO_GAP: Duration = Duration::from_secs(4);

impl Stream {
    /// Whether `tick` has something to do.
    pub(crate) fn is_restless(&self) -> bool {
        !self.is_subscribed()
            || self.closing.is_some()
            || (self.is_draining() && !self.is_told_to_drain())
            || self.solo_until.is_some()
            || self.seats.values().any(|seat| seat.retiring)
            || self.split.is_restless()
            || self.seats.keys().any(|owner| self.split.is_unused(*owner, 0))
    }

    pub(crate) fn tick(&mut self, now: Instant) -> Fate {
        if self.greets.as_ref().is_some_and(|(_, by)| *by <= now) {
            self.greet();
        }
        if self.closing.as_ref().is_some_and(|closing| closing.until <= now) {
            self.seats.clear();
            return self.finish_if_answered();
        }
        self.retire();
        self.mind_solo(now);
        if self.is_subscribed() && self.split.is_restless() && self.turned_at + TURN <= now {
            self.turned_at = now;
            let grants = self.split.next_turn();
            self.give(&grants);
        }
        Fate::Lives
    }

    /// Ends sessions at owners that own nothing any more.
    fn retire(&mut self) {
        let done = |(owner, seat): (&OwnerId, &Seat)| {
            let quiet = !self.pending.waits_for(*owner) && self.holding.count_of(*owner) == 0;
            (seat.retiring && seat.opened && quiet).then_some(*owner)
        };
        for owner in self.seats.iter().filter_map(done).collect::<Vec<_>>() {
            if let Some(seat) = self.seats.remove(&owner) {
                seat.way.end(seat.session, End::HalfClose);
            }
            self.split.remove(owner);
            self.numbers.remove(owner);
        }
    }

    /// An owner whose next record does not fit its part gets the whole window for a while.
    fn mind_solo(&mut self, now: Instant) {
        if let Some(until) = self.solo_until {
            if until <= now {
                (self.solo_until, self.solo_not_before) = (None, now + SOLO_GAP);
                self.split.set_solo(None);
                self.plan();
            }
            return;
        }
        let held = |owner: OwnerId| usize::try_from(self.holding.count_of(owner)).unwrap_or(usize::MAX);
        let unused = self.seats.keys().copied().find(|owner| self.split.is_unused(*owner, held(*owner)));
        self.unused = match (unused, self.unused) {
            (Some(owner), Some((same, since))) if owner == same => Some((owner, since)),
            (owner, _) => owner.map(|owner| (owner, now)),
        };
        if let Some((owner, since)) = self.unused
            && since + UNUSED_FOR <= now
            && self.solo_not_before <= now
        {
            self.unused = None;
            self.solo_until = Some(now + SOLO_FOR);
            self.split.set_solo(Some(owner));
            self.plan();
        }
    }
}
