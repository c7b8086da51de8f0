//! One client's stream, merged from its sessions at several owners.

mod ending;
mod settling;
mod time;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use sluice_core::{End, Leases, Open, RevokeReason};
use sluice_proto::v1::{self, consume_response::Response};
use tokio::time::Instant;

use self::ending::{Closing, Draining};
use super::grants::{Grant, Split};
use super::handle::Counts;
use super::holding::Holding;
use super::numbers::Numbers;
use super::owners::Owners;
use super::pending::{Answer, Pending};
use super::way::Way;
use crate::error::Error;
use crate::peer::OwnerId;
use crate::peer::wire::{self, Ended, FromOwner, Records};
use crate::session::relayed::Relayed;
use crate::session::{Input, Link, encode};

/// A client that may have leases is told which it still has after this at the latest, whoever has not answered.
const RESUME_WAIT: Duration = Duration::from_millis(500);

/// What a subscription says to each client.
#[derive(Debug, Clone)]
pub(crate) struct Greeting {
    pub(crate) subscription: Arc<str>,
    pub(crate) ack_timeout_ms: u64,
    pub(crate) session_timeout: Duration,
    pub(crate) ordering: sluice_core::Ordering,
    pub(crate) max_retry_delay_ms: u64,
}

/// A session of the client at one owner.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) session: u64,
    pub(crate) way: Way,
    /// Of the connection, where there is one.
    pub(crate) conn: usize,
    opened: bool,
    /// The owner has no partition any more: the session ends when nothing of it is open.
    retiring: bool,
    /// The owner said that it deals nothing more to the session.
    dry: bool,
}

/// What became of the stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Lives,
    /// It is over, and everything is said.
    Over,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) link: Arc<Link>,
    pub(crate) open: Open,
    pub(crate) token: Arc<str>,
    pub(crate) seats: BTreeMap<OwnerId, Seat>,
    /// All that it ever had: a stream has an age, so they are few.
    pub(crate) sessions: Vec<u64>,
    /// Owners at which this stream had a session already.
    met: BTreeSet<OwnerId>,
    split: Split,
    numbers: Numbers,
    holding: Holding,
    pending: Pending,
    greeting: Greeting,
    /// `None` when it is subscribed; else what owners confirmed so far, and when it is told.
    greets: Option<(Vec<Leases>, Instant)>,
    draining: Option<Draining>,
    /// The client closed its side before it was subscribed.
    closes: Option<Option<Error>>,
    closing: Option<Closing>,
    turned_at: Instant,
    unused: Option<(OwnerId, Instant)>,
    solo_until: Option<Instant>,
    solo_not_before: Instant,
    /// Records that came from this node, and from others.
    pub(crate) delivered: [u64; 2],
    counts: Arc<Counts>,
}

impl Stream {
    pub(crate) fn new(
        link: Arc<Link>,
        open: Open,
        token: Arc<str>,
        greeting: Greeting,
        turn: usize,
        counts: Arc<Counts>,
    ) -> Self {
        let now = Instant::now();
        Self {
            split: Split::new(open.window.unwrap_or_default(), turn),
            numbers: Numbers::new(open.seen),
            link,
            open,
            token,
            seats: BTreeMap::new(),
            sessions: Vec::new(),
            met: BTreeSet::new(),
            holding: Holding::default(),
            pending: Pending::default(),
            greeting,
            greets: Some((Vec::new(), now + RESUME_WAIT)),
            draining: None,
            closes: None,
            closing: None,
            turned_at: now,
            unused: None,
            solo_until: None,
            solo_not_before: now,
            delivered: [0; 2],
            counts,
        }
    }

    /// Whether owners may be asked for more sessions.
    pub(crate) fn is_open(&self) -> bool {
        self.draining.is_none() && self.closing.is_none()
    }

    pub(crate) fn is_subscribed(&self) -> bool {
        self.greets.is_none()
    }

    /// Records held, and records more that it could hold.
    pub(crate) fn room(&self) -> (u64, u64) {
        let held = self.holding.count();
        (held, u64::from(self.split.window().max_records).saturating_sub(held))
    }

    pub(crate) fn window(&self) -> sluice_core::Window {
        self.split.window()
    }

    // === sessions at owners ===

    /// Opens a session at an owner.
    pub(crate) fn seat(&mut self, owner: OwnerId, session: u64, conn: usize, way: Way) {
        let returns = self.open.seen > 0 || !self.open.holding.is_empty() || !self.met.insert(owner);
        self.met.insert(owner);
        let mut open = Open { seen: u64::from(returns), ..self.open.clone() };
        if self.is_subscribed() {
            open.holding.clear();
        }
        way.open(session, &open, &self.token, &self.link.profile, &self.greeting.subscription);
        self.sessions.push(session);
        self.seats.insert(owner, Seat { session, way, conn, opened: false, retiring: false, dry: false });
    }

    /// What its owners are like now.
    pub(crate) fn stand(&mut self, owners: &Owners) {
        for (id, seat) in &mut self.seats {
            let Some(standing) = owners.get(*id).map(super::owners::Owner::standing) else { continue };
            seat.retiring = !standing.owns;
            self.split.set_active(*id, standing.active);
            self.split.set_closing(*id, standing.draining || !standing.owns);
        }
        self.plan();
    }

    /// All owners were asked. A client that has nothing to come back to is greeted at once.
    pub(crate) fn greet_if_known(&mut self) {
        let waits = self.open.consumer_id.is_some() && (self.open.seen > 0 || !self.open.holding.is_empty());
        // A node that knows no owner yet may hear of one in time.
        if !waits || (!self.seats.is_empty() && self.seats.values().all(|seat| seat.opened)) {
            self.greet();
        }
    }

    fn greet(&mut self) {
        let Some((held, _)) = self.greets.take() else { return };
        let ack_timeout_ms = self.greeting.ack_timeout_ms;
        let ack_timeout_ms = self.open.ack_timeout_ms.map_or(ack_timeout_ms, |ms| ms.min(ack_timeout_ms));
        self.link.send(encode::frame(Response::Subscribed(v1::Subscribed {
            session_id: self.token.to_string(),
            held: held.into_iter().map(encode::leases).collect(),
            ack_timeout: Some(encode::duration(Duration::from_millis(ack_timeout_ms))),
            session_timeout: Some(encode::duration(self.greeting.session_timeout)),
            ordering: encode::ordering(self.greeting.ordering).into(),
            subscription: self.greeting.subscription.to_string(),
            revision: sluice_proto::REVISION,
        })));
        self.plan();
    }

    /// The session at this owner is gone, and with it what the client was dealt there.
    pub(crate) fn lose(&mut self, owner: OwnerId) {
        if self.seats.remove(&owner).is_none() {
            return;
        }
        self.split.remove(owner);
        self.numbers.remove(owner);
        for answer in self.pending.lost(owner, &self.counts.rejected) {
            self.answer(answer);
        }
        for leases in self.holding.remove_owner(owner) {
            self.link.send(encode::revoked(leases, RevokeReason::Reassigned));
        }
        if self.greets.is_some() {
            self.greet_if_known();
        }
        self.plan();
    }

    fn plan(&mut self) {
        if self.is_subscribed() {
            let grants = self.split.plan();
            self.give(&grants);
        }
    }

    fn give(&self, grants: &[Grant]) {
        for grant in grants {
            if let Some(seat) = self.seats.get(&grant.owner) {
                seat.way.grant(seat.session, grant);
            }
        }
    }

    // === what owners say ===

    pub(crate) fn on_owner(&mut self, owner: OwnerId, said: FromOwner, owners: &mut Owners) -> Fate {
        match said {
            FromOwner::Opened { held, sequence } => self.on_opened(owner, held, sequence, owners),
            FromOwner::Records(records) => self.on_records(owner, records, owners),
            FromOwner::Settled { request_id: 0, rejections } => {
                self.link.send(encode::frame(Response::Settled(v1::Settled { request_id: 0, rejections })))
            }
            FromOwner::Settled { request_id, rejections } => {
                if let Some(answer) = self.pending.answered(owner, request_id, rejections) {
                    self.answer(answer);
                }
            }
            FromOwner::Revoked(revoked) => {
                if let Some(leases) = revoked.leases.clone() {
                    let leases = crate::session::Decoder::default().leases(leases);
                    self.holding.remove(&leases.partition, leases.epoch, leases.offsets.into_iter());
                }
                self.link.send(encode::frame(Response::Revoked(revoked)));
            }
            FromOwner::Committed(committed) => self.link.send(encode::frame(Response::Committed(committed))),
            FromOwner::Echo { number, held_records, held_bytes } => {
                self.split.echo(owner, number, held_records, held_bytes);
                self.plan();
            }
            FromOwner::Drain => {
                if let Some(seat) = self.seats.get_mut(&owner) {
                    seat.dry = true;
                }
                self.split.set_closing(owner, true);
                self.plan();
            }
            FromOwner::Ended(ended) => return self.on_ended(owner, ended),
        }
        Fate::Lives
    }

    fn on_opened(&mut self, owner: OwnerId, held: Vec<Leases>, sequence: u64, owners: &mut Owners) {
        let Some(seat) = self.seats.get_mut(&owner) else { return };
        seat.opened = true;
        let standing = owners.get(owner).map(super::owners::Owner::standing);
        let ranges = held.iter().flat_map(|leases| &leases.offsets);
        let count = ranges.map(|range| range.last.abs_diff(range.first).saturating_add(1)).fold(0, u64::saturating_add);
        self.split.add(owner, count, standing.is_some_and(|standing| standing.active));
        self.split.set_closing(owner, standing.is_none_or(|standing| standing.draining || !standing.owns));
        self.numbers.add(owner, sequence);
        if let Some((confirmed, _)) = &mut self.greets {
            for leases in held {
                owners.learn(owner, &(leases.partition.clone(), leases.epoch));
                self.holding.add_leases(owner, &leases);
                confirmed.push(leases);
            }
            return self.greet_if_known();
        }
        // The client was told that it does not have these.
        seat.release(held, sequence);
        self.plan();
    }

    fn on_records(&mut self, owner: OwnerId, records: Records, owners: &mut Owners) {
        if self.closing.is_some() {
            // The client reads no more; the owner takes back what was open when it hears of the end.
            return;
        }
        if self.is_told_to_drain() {
            return self.give_back(owner, &records);
        }
        match records {
            Records::Near { sequence, batches } => {
                for batch in &batches {
                    owners.learn(owner, &(batch.partition.clone(), batch.epoch));
                    self.holding.add(owner, batch.partition.clone(), batch.epoch, wire::offsets(batch));
                    self.delivered[0] += batch.records.len() as u64;
                }
                let number = self.numbers.next(owner, sequence);
                self.link.deliver(number, batches);
            }
            Records::Far(Relayed { sequence, batches }) => {
                let (mut records, mut parts) = (0, Vec::with_capacity(batches.len()));
                for batch in batches {
                    let place = owners.place(&batch.topic, batch.partition, batch.epoch);
                    owners.learn(owner, &place);
                    self.holding.add(owner, place.0, place.1, batch.offsets);
                    records += batch.records;
                    parts.push(batch.bytes);
                }
                self.delivered[1] += records as u64;
                let number = self.numbers.next(owner, sequence);
                self.link.relay(number, records, parts);
            }
        }
    }

    /// The owner ended the session: another stream has the consumer now, the owner stops, or the session did something for which
    /// its stream would end on one node too.
    fn on_ended(&mut self, owner: OwnerId, ended: Ended) -> Fate {
        if self.closing.is_some() {
            self.seats.remove(&owner);
            return self.finish_if_answered();
        }
        match ended {
            Ended::Failed { reason, message } if !is_of_the_owner(&reason) => {
                self.seats.remove(&owner);
                let error = Error::of_owner(&reason, message);
                // After a Drain the next stream may open first, and that is no fault.
                let planned = self.is_told_to_drain() && error.reason() == "CONSUMER_SUPERSEDED";
                self.finish(End::Broken, if planned { Ok(()) } else { Err(error) })
            }
            Ended::Planned | Ended::Failed { .. } => {
                self.lose(owner);
                Fate::Lives
            }
        }
    }

    // === what the client says ===

    /// What waits in its inbox. An error ends the stream.
    pub(crate) fn on_input(&mut self, owners: &Owners) -> Result<(), Error> {
        if !self.is_subscribed() {
            return Ok(());
        }
        for input in self.link.take_inputs() {
            match input {
                Input::Window(window) => {
                    self.split.set_window(window);
                    self.plan();
                }
                Input::Settle(settlements) => self.settle(settlements, owners)?,
                Input::Grant { .. } => {}
            }
        }
        Ok(())
    }

    fn answer(&self, (request_id, rejections): Answer) {
        self.link.send(encode::frame(Response::Settled(v1::Settled { request_id, rejections })));
    }
}

/// Ends that are of the owner alone: the client goes on with the others, and with whoever comes after it.
fn is_of_the_owner(reason: &str) -> bool {
    matches!(reason, "SHUTTING_DOWN" | "SUBSCRIPTION_NOT_FOUND" | "TOPIC_MISSING" | "KAFKA_RIGHTS_MISSING")
}
