//! How a client's stream ends: it is told to drain, it closes, or it is cut off.

use std::sync::atomic::Ordering;
use std::time::Duration;

use sluice_core::{End, Leases, Outcome, Settlement, Settlements};
use sluice_proto::v1;
use tokio::time::Instant;

use super::{Fate, Seat, Stream};
use crate::error::Error;
use crate::peer::OwnerId;
use crate::peer::wire::Records;
use crate::session::encode;

/// What owners are given to say that they deal nothing more, before the client is told to drain.
const DRY_WAIT: Duration = Duration::from_millis(500);
/// What owners are given to answer after their client closed its side.
const CLOSE_WAIT: Duration = Duration::from_secs(1);

/// Nothing more is to be dealt to the stream.
#[derive(Debug)]
pub(super) struct Draining {
    reason: v1::DrainReason,
    /// When the client is to be through.
    by: Instant,
    /// `None` when the client is told; else when it is told at the latest.
    tell: Option<Instant>,
}

/// The client closed its side, and owners have not answered.
#[derive(Debug)]
pub(super) struct Closing {
    pub(super) error: Option<Error>,
    pub(super) until: Instant,
}

impl Seat {
    /// Gives back what the client never got, or does not have any more.
    pub(super) fn release(&self, leases: Vec<Leases>, seen: u64) {
        if leases.is_empty() {
            return;
        }
        let release = |leases| Settlement { leases, outcome: Outcome::Release };
        let settlements = leases.into_iter().map(release).collect();
        let release = Settlements { request_id: 0, durable: false, seen: seen.max(1), settlements };
        let _ = self.way.settle(self.session, release);
    }
}

impl Stream {
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.is_some()
    }

    pub(super) fn is_told_to_drain(&self) -> bool {
        self.draining.as_ref().is_some_and(|draining| draining.tell.is_none())
    }

    /// Nothing more is dealt to it. The client hears so behind the last record: when each owner has said that it deals nothing
    /// more, for what an owner dealt before it knew is still under way.
    pub(crate) fn drain(&mut self, grace: Duration, reason: v1::DrainReason) {
        if self.is_draining() {
            return;
        }
        let now = Instant::now();
        self.draining = Some(Draining { reason, by: now + grace, tell: Some(now + DRY_WAIT) });
        self.split.close();
        self.seats.values().for_each(|seat| seat.way.drain(seat.session));
    }

    /// Tells the client to drain when it is time.
    pub(crate) fn mind_drain(&mut self, now: Instant) {
        let is_dry = self.seats.values().all(|seat| seat.dry);
        let Some(draining) = self.draining.as_mut() else { return };
        if self.greets.is_none() && draining.tell.is_some_and(|at| is_dry || at <= now) {
            draining.tell = None;
            self.link.drained.store(true, Ordering::Release);
            self.link.send(encode::drain(draining.by.saturating_duration_since(now), draining.reason));
        }
    }

    /// An owner did not say in time that it deals nothing more, and it did: the client, which was told that nothing more
    /// comes, never sees it.
    pub(super) fn give_back(&self, owner: OwnerId, records: &Records) {
        let Some(seat) = self.seats.get(&owner) else { return };
        let (leases, sequence) = records.leases();
        seat.release(leases, sequence);
    }

    /// The client's stream ended. Answers that are under way are waited for, unless nobody reads them.
    pub(crate) fn close(&mut self, end: End, error: Option<Error>) -> Fate {
        if end != End::HalfClose {
            return self.finish(end, error.map_or(Ok(()), Err));
        }
        self.split.close();
        self.seats.values().for_each(|seat| seat.way.end(seat.session, end));
        self.closing = Some(Closing { error, until: Instant::now() + CLOSE_WAIT });
        self.finish_if_answered()
    }

    /// It closed before it was subscribed: what it said before is read first.
    pub(crate) fn close_when_subscribed(&mut self, error: Option<Error>) {
        self.closes = Some(error);
    }

    pub(crate) fn close_if_it_waits(&mut self) -> Fate {
        match self.closes.take_if(|_| self.greets.is_none()) {
            Some(error) => self.close(End::HalfClose, error),
            None => Fate::Lives,
        }
    }

    pub(super) fn finish_if_answered(&mut self) -> Fate {
        let Some(closing) = self.closing.as_mut().filter(|_| self.seats.is_empty()) else { return Fate::Lives };
        let error = closing.error.take();
        self.finish(End::HalfClose, error.map_or(Ok(()), Err))
    }

    /// The end, at once.
    pub(crate) fn finish(&mut self, end: End, how: Result<(), Error>) -> Fate {
        for (_, seat) in std::mem::take(&mut self.seats) {
            if self.closing.is_none() {
                seat.way.end(seat.session, end);
            }
        }
        self.link.end(how.map_err(Into::into));
        Fate::Over
    }

    /// Another stream of this node has the consumer now; at the owners it takes the sessions over.
    pub(crate) fn supersede(&mut self, by: String) {
        for (_, seat) in std::mem::take(&mut self.seats) {
            seat.way.end(seat.session, End::Broken);
        }
        self.link.end(if self.is_told_to_drain() { Ok(()) } else { Err(Error::Superseded { by }.into()) });
    }
}
