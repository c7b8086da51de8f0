//! The edge of one subscription: the one task that owns the streams of clients that landed on this node.
//!
//! Contract: a turn is select → event → synchronous `handle`. It waits for nobody: what it says to owners and clients goes into
//! queues that are bounded by windows or give their connection up.

mod clients;
mod grants;
mod handle;
mod holding;
mod members;
mod numbers;
mod owners;
mod peers;
mod pending;
mod stream;
mod way;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sluice_core::{End, Settlements};
use sluice_proto::v1;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};

use self::handle::Ask;
pub(crate) use self::handle::{ClientView, Counts, EdgeHandle, FromPeer, Routed};
use self::members::Members;
use self::owners::{Owners, Standing};
use self::stream::{Fate, Greeting, Stream};
use super::OwnerId;
use crate::session::{EdgeFrames, Frame};
use crate::subscription::{Handle, Request, refuse};

/// Events of each kind in one turn.
const EVENTS_PER_TURN: usize = 1_024;
/// How often streams that wait for time are looked at.
const TICK: Duration = Duration::from_millis(50);
/// How often membership is thought over.
const MEMBERS_TICK: Duration = Duration::from_millis(500);
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
    near: EdgeFrames,
    counts: Arc<Counts>,
    /// Somebody has owned something.
    ever_owned: bool,
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
        near: EdgeFrames::near(near),
        counts: counts.clone(),
        ever_owned: false,
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
                // What is rare comes first: queues of clients and owners may never be empty, and have their turn below.
                biased;
                _ = members_tick.tick() => self.on_members_tick(),
                _ = tick.tick(), if !self.restless.is_empty() || self.splits_late || self.end_at.is_some() => self.on_tick(),
                changed = owned.changed(), if is_owned_live => {
                    is_owned_live = changed.is_ok();
                    let own = if is_owned_live { owned.borrow_and_update().clone() } else { Arc::default() };
                    self.on_owned(&own);
                }
                Some(ask) = inputs.asked.recv() => self.on_ask(ask),
                Some(request) = inputs.requests.recv() => self.on_request(request),
                Some((session, frame)) = inputs.frames.recv() => self.on_frame(session, frame),
                Some(said) = inputs.from_peers.recv() => self.on_peer(said),
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
            // With a consumer_id the client may be on its way back: its leases at other nodes wait for it.
            let end = if stream.open.consumer_id.is_some() { End::Broken } else { End::Drained };
            stream.finish(end, Ok(()));
        }
        inputs.requests.close();
        while let Ok(request) = inputs.requests.try_recv() {
            refuse(request);
        }
        ended.send_replace(true);
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
                let grace = crate::subscription::drain_time(deadline);
                let all: Vec<u64> = self.streams.keys().copied().collect();
                for number in all {
                    self.with_stream(number, |stream, _, _| {
                        stream.drain(grace, v1::DrainReason::Shutdown);
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
        let state = self.settings.handle.state();
        self.members.partitions(state.partitions);
        let away = super::is_away(&state.kafka);
        if std::mem::replace(&mut self.owners.entry(OwnerId::SELF).away, away) != away {
            self.settings.news.notify_one();
        }
        self.tell_of_missing_topic(state.kafka);
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
