//! The edge of one subscription: the one task that owns the streams of clients that landed on this node.
//!
//! Contract: a turn is select → event → synchronous `handle`. It waits for nobody: what it says to owners and clients goes into
//! queues that are bounded by windows or give their connection up.

mod grants;
mod handle;
mod holding;
mod members;
mod numbers;
mod owners;
mod pending;
mod stream;
mod way;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sluice_core::{End, Epoch, SessionId, Settlements, TopicPartition};
use sluice_kafka::KafkaState;
use sluice_proto::v1;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};

use self::handle::Ask;
pub(crate) use self::handle::{ClientView, Counts, EdgeHandle, FromPeer, Routed};
use self::members::Members;
use self::owners::{Owners, Standing};
use self::stream::{Fate, Greeting, Stream};
use self::way::Way;
use super::OwnerId;
use super::queue::Share;
use super::wire::{self, FromOwner};
use crate::error::Error;
use crate::session::{Frame, Link};
use crate::subscription::{Handle, Owned, Request, refuse};

/// Events of each kind in one turn.
const EVENTS_PER_TURN: usize = 1_024;
/// How often streams that wait for time are looked at.
const TICK: Duration = Duration::from_millis(50);
/// How often membership is thought over.
const MEMBERS_TICK: Duration = Duration::from_millis(500);
/// Ranges that fit beside two windows, as in a client's inbox.
const RANGES_EXTRA: usize = 1_000;
/// However large a window is.
const RANGES_MAX: usize = 1 << 20;
/// What splitting all windows anew may cost: the more streams there are, the less often it is done for a backlog alone.
const SPLIT_GAP: Duration = Duration::from_micros(20);
/// The low bits of a session's number count, the high ones say whose it is.
const SESSION_BITS: u32 = 48;

/// What an edge is started with.
#[derive(Debug)]
pub(crate) struct EdgeSettings {
    pub(crate) handle: Arc<Handle>,
    pub(crate) ordering: sluice_core::Ordering,
    pub(crate) grace: Duration,
    /// Its place among the node's subscriptions.
    pub(crate) index: u64,
    /// Told when what peers should know has changed.
    pub(crate) news: Arc<Notify>,
    pub(crate) members: members::Settings,
}

pub(crate) use members::Settings as MembersSettings;

/// Whose session it is, by its number.
pub(crate) fn index_of(session: u64) -> u64 {
    session >> SESSION_BITS
}

struct Edge {
    settings: EdgeSettings,
    greeting: Greeting,
    streams: BTreeMap<u64, Stream>,
    stream_numbers: u64,
    by_consumer: HashMap<String, u64>,
    by_token: HashMap<Arc<str>, u64>,
    /// Names of sessions whose clients may come back, and until when.
    kept: HashMap<String, (Arc<str>, Instant)>,
    /// From a session at an owner to its stream.
    sessions: HashMap<u64, (u64, OwnerId)>,
    session_numbers: u64,
    owners: Owners,
    standings: BTreeMap<OwnerId, Standing>,
    split_at: Instant,
    /// Backlogs have changed since.
    splits_late: bool,
    /// Streams that wait for time.
    restless: BTreeSet<u64>,
    members: Members,
    near: mpsc::UnboundedSender<(u64, Frame)>,
    counts: Arc<Counts>,
    /// The node shuts down; then all streams end.
    end_at: Option<Instant>,
}

/// Starts the edge in front of the subscription's driver.
pub(crate) fn start(settings: EdgeSettings) -> EdgeHandle {
    let (front, requests) = mpsc::unbounded_channel();
    let (near, frames) = mpsc::unbounded_channel();
    let (peers, from_peers) = mpsc::unbounded_channel();
    let (asks, asked) = mpsc::unbounded_channel();
    let (ended_sender, ended) = watch::channel(false);
    let counts = Arc::new(Counts::default());
    let handle = settings.handle.clone();
    handle.set_front(front);
    let greeting = Greeting {
        subscription: handle.name.clone(),
        ack_timeout_ms: handle.policy.ack_timeout_ms,
        session_timeout: handle.session_timeout,
        ordering: settings.ordering,
        max_retry_delay_ms: handle.policy.max_retry_delay_ms,
    };
    let members = Members::new(settings.members.clone(), Instant::now());
    let edge = Edge {
        settings,
        greeting,
        streams: BTreeMap::new(),
        stream_numbers: 0,
        by_consumer: HashMap::new(),
        by_token: HashMap::new(),
        kept: HashMap::new(),
        sessions: HashMap::new(),
        session_numbers: 0,
        owners: Owners::new(),
        standings: BTreeMap::new(),
        split_at: Instant::now(),
        splits_late: false,
        restless: BTreeSet::new(),
        members,
        near,
        counts: counts.clone(),
        end_at: None,
    };
    tokio::spawn(edge.run(Inputs { requests, frames, from_peers, asked }, ended_sender));
    EdgeHandle { handle, peers, counts, asks, ended }
}

struct Inputs {
    requests: mpsc::UnboundedReceiver<Request>,
    frames: mpsc::UnboundedReceiver<(u64, Frame)>,
    from_peers: mpsc::UnboundedReceiver<FromPeer>,
    asked: mpsc::UnboundedReceiver<Ask>,
}

// === impl Edge ===

impl Edge {
    async fn run(mut self, mut inputs: Inputs, ended: watch::Sender<bool>) {
        let mut owned = self.settings.handle.owned();
        let (mut tick, mut members_tick) = (interval(TICK), interval(MEMBERS_TICK));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        members_tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_owned_live = true;
        loop {
            tokio::select! {
                biased;
                Some(request) = inputs.requests.recv() => self.on_request(request),
                Some((session, frame)) = inputs.frames.recv() => self.on_frame(session, frame),
                Some(said) = inputs.from_peers.recv() => self.on_peer(said),
                Some(ask) = inputs.asked.recv() => self.on_ask(ask),
                changed = owned.changed(), if is_owned_live => {
                    is_owned_live = changed.is_ok();
                    let own = if is_owned_live { owned.borrow_and_update().clone() } else { Arc::default() };
                    self.on_owned(&own);
                }
                _ = tick.tick(), if !self.restless.is_empty() || self.splits_late || self.end_at.is_some() => self.on_tick(),
                _ = members_tick.tick() => self.on_members_tick(),
            }
            for _ in 0..EVENTS_PER_TURN {
                let Ok(request) = inputs.requests.try_recv() else { break };
                self.on_request(request);
            }
            for _ in 0..EVENTS_PER_TURN {
                let Ok((session, frame)) = inputs.frames.try_recv() else { break };
                self.on_frame(session, frame);
            }
            for _ in 0..EVENTS_PER_TURN {
                let Ok(said) = inputs.from_peers.try_recv() else { break };
                self.on_peer(said);
            }
            if self.end_at.is_some_and(|at| self.streams.is_empty() || at <= Instant::now()) {
                break;
            }
        }
        for (_, mut stream) in std::mem::take(&mut self.streams) {
            stream.finish(End::Drained, Ok(()));
        }
        inputs.requests.close();
        while let Ok(request) = inputs.requests.try_recv() {
            refuse(request);
        }
        ended.send_replace(true);
    }

    // === what clients ask ===

    fn on_request(&mut self, request: Request) {
        match request {
            Request::Open { link, open } => self.on_open(link, open),
            Request::Input(link) => self.with(&link, |stream, owners, _| match stream.on_input(owners) {
                Ok(()) => Fate::Lives,
                Err(error) => stream.finish(End::Broken, Err(error)),
            }),
            Request::Drain(link) => self.with(&link, |stream, _, grace| {
                stream.drain(grace, v1::DrainReason::MaxAge);
                Fate::Lives
            }),
            Request::Close { link, end, error } => {
                if link.session().is_some_and(|id| self.streams.contains_key(&id.0)) {
                    self.with(&link, |stream, owners, _| match stream.on_input(owners) {
                        Ok(()) => stream.close(end, error),
                        Err(error) => stream.finish(End::Broken, Err(error)),
                    });
                } else {
                    link.end(error.map_or(Ok(()), |error| Err(error.into())));
                }
            }
            // Streams ask for nothing else.
            other => self.settings.handle.send(other),
        }
    }

    fn on_open(&mut self, link: Arc<Link>, open: sluice_core::Open) {
        if self.end_at.is_some() {
            return link.end(Err(Error::ShuttingDown.into()));
        }
        let nobody_owns = self.standings.values().all(|standing| !standing.owns);
        if let KafkaState::TopicMissing(topic) = self.settings.handle.state().kafka
            && nobody_owns
        {
            return link.end(Err(Error::TopicMissing(topic).into()));
        }
        self.stream_numbers += 1;
        let number = self.stream_numbers;
        link.set_session(SessionId(number));
        if let Some(consumer) = open.consumer_id.clone()
            && let Some(mut old) = self.by_consumer.insert(consumer, number).and_then(|old| self.take(old))
        {
            old.supersede(link.profile.peer.clone());
        }
        let kept = open.consumer_id.as_ref().and_then(|consumer| self.kept.remove(consumer));
        let token = kept.map_or_else(|| crate::random::session_token().into(), |(token, _)| token);
        self.by_token.insert(token.clone(), number);
        let turn = usize::try_from(number).unwrap_or_default();
        let stream = Stream::new(link.clone(), open, token, self.greeting.clone(), turn);
        self.streams.insert(number, stream);
        self.seat(number);
        self.with(&link, |stream, _, _| {
            stream.greet_if_known();
            Fate::Lives
        });
        self.count();
    }

    /// Does something to a stream, and what follows from it.
    fn with(&mut self, link: &Arc<Link>, act: impl FnOnce(&mut Stream, &mut Owners, Duration) -> Fate) {
        if let Some(session) = link.session() {
            self.with_stream(session.0, act);
        }
    }

    fn with_stream(&mut self, number: u64, act: impl FnOnce(&mut Stream, &mut Owners, Duration) -> Fate) {
        let Some(stream) = self.streams.get_mut(&number) else { return };
        let was_subscribed = stream.is_subscribed();
        let before = stream.delivered;
        let mut fate = act(stream, &mut self.owners, self.settings.grace);
        let [near, far] = stream.delivered;
        self.counts.delivered_local.fetch_add(near - before[0], Ordering::Relaxed);
        self.counts.delivered_relayed.fetch_add(far - before[1], Ordering::Relaxed);
        // What it said before it was subscribed waited for that.
        if fate == Fate::Lives
            && !was_subscribed
            && stream.is_subscribed()
            && let Err(error) = stream.on_input(&self.owners)
        {
            fate = stream.finish(End::Broken, Err(error));
        }
        if fate == Fate::Lives {
            stream.mind_drain(Instant::now());
        }
        if fate == Fate::Over {
            self.take(number);
            self.count();
        } else if stream.is_restless() {
            self.restless.insert(number);
        } else {
            self.restless.remove(&number);
        }
    }

    /// The stream is forgotten.
    fn take(&mut self, number: u64) -> Option<Stream> {
        let stream = self.streams.remove(&number)?;
        self.restless.remove(&number);
        self.by_token.remove(&stream.token);
        if let Some(consumer) = &stream.open.consumer_id
            && self.by_consumer.get(consumer) == Some(&number)
        {
            self.by_consumer.remove(consumer);
        }
        if let Some(consumer) = &stream.open.consumer_id {
            let resume_timeout = Duration::from_millis(self.settings.handle.policy.resume_timeout_ms);
            self.kept.insert(consumer.clone(), (stream.token.clone(), Instant::now() + resume_timeout));
        }
        for session in &stream.sessions {
            self.sessions.remove(session);
        }
        Some(stream)
    }

    /// Opens sessions for a stream at owners where it has none.
    fn seat(&mut self, number: u64) {
        let Some(stream) = self.streams.get_mut(&number).filter(|stream| stream.is_open()) else { return };
        for (id, owner) in self.owners.iter() {
            let standing = owner.standing();
            if !standing.owns || standing.draining || stream.seats.contains_key(&id) {
                continue;
            }
            self.session_numbers += 1;
            let session = (self.settings.index << SESSION_BITS) | self.session_numbers;
            let (at, way) = if id == OwnerId::SELF {
                let (token, profile) = (stream.token.clone(), stream.link.profile.clone());
                let link = Link::relayed(session, self.near.clone(), token, profile);
                (0, Way::Near { handle: self.settings.handle.clone(), link })
            } else {
                let pick = usize::try_from(number).unwrap_or_default() % owner.conns.len().max(1);
                let Some((at, conn)) = owner.conns.iter().nth(pick) else { continue };
                let records = usize::try_from(stream.window().max_records).unwrap_or(usize::MAX);
                let max = records.saturating_mul(2).saturating_add(RANGES_EXTRA).min(RANGES_MAX);
                (*at, Way::Far { conn: conn.clone(), share: Share::new(max) })
            };
            self.sessions.insert(session, (number, id));
            stream.seat(id, session, at, way);
        }
    }

    // === what owners say ===

    fn on_frame(&mut self, session: u64, frame: Frame) {
        if let Some(said) = wire::from_frame(frame) {
            self.on_session(session, said);
        }
    }

    fn on_session(&mut self, session: u64, said: FromOwner) {
        let Some((number, owner)) = self.sessions.get(&session).copied() else { return };
        if matches!(said, FromOwner::Ended(_)) {
            self.sessions.remove(&session);
        }
        let is_current = |stream: &Stream| stream.seats.get(&owner).is_some_and(|seat| seat.session == session);
        self.with_stream(
            number,
            |stream, owners, _| {
                if is_current(stream) { stream.on_owner(owner, said, owners) } else { Fate::Lives }
            },
        );
    }

    fn on_owned(&mut self, owned: &Owned) {
        let places = owned.partitions.iter().map(|one| ((one.partition.clone(), one.epoch), one.backlog)).collect();
        self.owners.set_places(OwnerId::SELF, places);
        self.reconcile();
    }

    fn on_peer(&mut self, said: FromPeer) {
        match said {
            FromPeer::Session { session, said } => self.on_session(session, said),
            FromPeer::Up { owner, address, since, number, conn } => {
                self.members.up(owner, address, since);
                self.owners.entry(owner).conns.insert(number, conn);
                self.seat_all();
            }
            FromPeer::Down { owner, number } => {
                self.owners.entry(owner).conns.remove(&number);
                self.lose(owner, Some(number));
                self.seat_all();
            }
            FromPeer::Gone(owner) => {
                self.owners.remove(owner);
                self.members.gone(owner, Instant::now());
                self.lose(owner, None);
                self.reconcile();
            }
            FromPeer::Status { owner, status, draining } => {
                let of = self.owners.entry(owner);
                (of.draining, of.streams, of.member) = (draining, status.streams, status.member);
                let place = |one: sluice_proto::peer::v1::Owned| {
                    let partition = TopicPartition::new(one.topic, one.partition);
                    ((partition, Epoch(one.epoch)), one.backlog)
                };
                self.owners.set_places(owner, status.partitions.into_iter().map(place).collect());
                self.reconcile();
            }
        }
    }

    /// Sessions at an owner, of one connection or of all, are gone.
    fn lose(&mut self, owner: OwnerId, conn: Option<usize>) {
        let lost = |seat: &stream::Seat| conn.is_none_or(|number| seat.conn == number);
        let hit = |(number, stream): (&u64, &Stream)| {
            stream.seats.get(&owner).filter(|seat| lost(seat)).map(|seat| (*number, seat.session))
        };
        for (number, session) in self.streams.iter().filter_map(hit).collect::<Vec<_>>() {
            self.sessions.remove(&session);
            self.with_stream(number, |stream, _, _| {
                stream.lose(owner);
                if stream.is_draining() || stream.is_open() { Fate::Lives } else { stream.tick(Instant::now()) }
            });
        }
    }

    /// Who owns what has changed: sessions are opened where there are none, and windows split anew.
    fn reconcile(&mut self) {
        let standings = self.owners.standings();
        self.splits_late = false;
        if standings == self.standings {
            return;
        }
        let moved = |(a, b): ((&OwnerId, &Standing), (&OwnerId, &Standing))| {
            a.0 != b.0 || Standing { active: b.1.active, ..*a.1 } != *b.1
        };
        let moved = standings.len() != self.standings.len() || standings.iter().zip(&self.standings).any(moved);
        let gap = SPLIT_GAP * u32::try_from(self.streams.len()).unwrap_or(u32::MAX);
        if !moved && self.split_at.elapsed() < gap {
            self.splits_late = true;
            return;
        }
        self.split_at = Instant::now();
        self.standings = standings;
        if moved {
            self.seat_all();
        }
        let all: Vec<u64> = self.streams.keys().copied().collect();
        for number in all {
            self.with_stream(number, |stream, owners, _| {
                stream.stand(owners);
                Fate::Lives
            });
        }
    }

    fn seat_all(&mut self) {
        let all: Vec<u64> = self.streams.keys().copied().collect();
        all.into_iter().for_each(|number| self.seat(number));
    }

    // === what others ask ===

    fn on_ask(&mut self, ask: Ask) {
        match ask {
            Ask::Route { token, settlements, reply } => drop(reply.send(self.route(&token, settlements))),
            Ask::View(reply) => {
                let view = |stream: &Stream| ClientView {
                    token: stream.token.clone(),
                    consumer_id: stream.open.consumer_id.clone(),
                    profile: stream.link.profile.clone(),
                    last_seen: stream.link.last_seen(),
                    window: stream.window(),
                    held: stream.room().0,
                    draining: stream.is_draining(),
                };
                let _ = reply.send(self.streams.values().map(view).collect());
            }
            Ask::Shutdown(deadline) => {
                self.end_at = Some(Instant::now() + deadline);
                let all: Vec<u64> = self.streams.keys().copied().collect();
                for number in all {
                    self.with_stream(number, |stream, _, _| {
                        stream.drain(deadline, v1::DrainReason::Shutdown);
                        Fate::Lives
                    });
                }
            }
        }
    }

    fn route(&mut self, token: &str, of: Settlements) -> Routed {
        let mut routed: BTreeMap<OwnerId, Settlements> = BTreeMap::new();
        let mut nobody = Settlements { settlements: Vec::new(), ..of };
        let mut stream = self.by_token.get(token).and_then(|number| self.streams.get_mut(number));
        for settlement in of.settlements {
            let place = (settlement.leases.partition.clone(), settlement.leases.epoch);
            let Some(owner) = self.owners.route(&place) else {
                nobody.settlements.push(settlement);
                continue;
            };
            // Without the stream nobody knows what the client's number stands for: all that it holds.
            let seen = |stream: &mut Stream| stream.seen(owner, of.seen).unwrap_or(0);
            let seen = if of.seen == 0 { 0 } else { stream.as_deref_mut().map_or(u64::MAX, seen) };
            if let Some(stream) = &mut stream {
                stream.settled_elsewhere(&settlement, of.seen);
            }
            let part = || Settlements { request_id: 0, durable: of.durable, seen, settlements: Vec::new() };
            routed.entry(owner).or_insert_with(part).settlements.push(settlement);
        }
        (routed, nobody)
    }

    // === time ===

    fn on_tick(&mut self) {
        let now = Instant::now();
        if self.splits_late {
            self.reconcile();
        }
        for number in self.restless.iter().copied().collect::<Vec<_>>() {
            self.with_stream(number, |stream, _, _| stream.tick(now));
        }
    }

    fn on_members_tick(&mut self) {
        let now = Instant::now();
        self.kept.retain(|_, (_, until)| now < *until);
        let idle_room = self.streams.values().map(|stream| stream.room().1).sum::<u64>();
        self.counts.idle_room.store(idle_room, Ordering::Relaxed);
        let wanted = self.members.think(Instant::now(), self.streams.len() as u64, &self.owners);
        if let Some(wanted) = wanted.filter(|_| self.end_at.is_none()) {
            tracing::info!(subscription = %self.greeting.subscription, wanted, "membership of the Kafka group");
            self.settings.handle.send(Request::Wanted(wanted));
        }
    }

    /// Brings up to date what peers are told of the clients here.
    fn count(&mut self) {
        let streams = self.streams.len() as u64;
        if self.counts.streams.swap(streams, Ordering::Relaxed) != streams {
            self.settings.news.notify_one();
        }
    }
}
