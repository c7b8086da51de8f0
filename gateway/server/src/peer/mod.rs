//! The other nodes of a cluster. A client lands anywhere; the node with the stream (the edge) relays between it and the nodes
//! with the partitions (the owners), this one among them. See docs/adr/0008-relay.md.
//!
//! Contract: nothing in here is there without `peers.listen`. Correctness never rests on what nodes believe of each other: a
//! lease is settled by the engine in which its epoch lives, or by nobody.

mod connect;
mod dial;
pub(crate) mod edge;
mod found;
mod link;
mod listen;
mod outbox;
mod owner;
mod policies;
mod queue;
mod refusals;
mod settle;
pub(crate) mod tls;
mod transport;
mod views;
mod waiting;
mod wire;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::join_all;
use sluice_kafka::KafkaState;
use sluice_proto::peer::v1::relay_service_server::RelayServiceServer;
use sluice_proto::peer::v1::{Hello, MissingRights, Owned, Status, SubscriptionStatus};
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Server};

use self::edge::{EdgeHandle, EdgeSettings, FromPeer, MembersSettings};
use self::found::Heard;
use self::listen::Door;
use self::policies::Policies;
use self::refusals::{Reason, Refusals, Side};
use self::tls::{Reloads, Tls};
use crate::config::{Config, Join, PeersConfig};
use crate::subscription::{Handle, SessionRegistry};

/// Between nodes a stream carries many sessions.
const HTTP2_STREAM_WINDOW_BYTES: u32 = 4 << 20;
const HTTP2_CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// The largest frame between nodes. What a session may be sent at most is less.
const FRAME_BYTES_MAX: usize = 128 << 20;

/// Names an owner in this process: this node, or a process of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct OwnerId(pub(crate) u32);

impl OwnerId {
    /// This node.
    pub(crate) const SELF: Self = Self(0);
}

/// A peer that is up.
#[derive(Debug)]
pub(crate) struct Peer {
    owner: OwnerId,
    instance: u64,
    /// Where it was dialed.
    address: String,
    /// Its own word for where it is: what nodes agree on.
    rank: Arc<str>,
    node: String,
    /// When it started.
    since: Instant,
    channel: Channel,
    /// Its first connection is over.
    over: CancellationToken,
    policies: Policies,
}

/// The peers' times.
#[derive(Debug, Clone, Copy)]
struct Times {
    ping_interval: Duration,
    timeout: Duration,
}

/// Peers that are up, and the names that processes were given.
#[derive(Debug, Default)]
struct Peers {
    up: HashMap<u64, Arc<Peer>>,
    owners: HashMap<u64, OwnerId>,
}

/// What all parts share.
#[derive(Debug)]
struct Shared {
    config: PeersConfig,
    times: Times,
    node: String,
    address: Arc<str>,
    instance: u64,
    started: Instant,
    /// `None`: peers speak plain.
    tls: Option<Arc<Tls>>,
    refusals: Arc<Refusals>,
    /// By subscription.
    edges: BTreeMap<String, EdgeHandle>,
    sessions: Arc<SessionRegistry>,
    peers: Mutex<Peers>,
    /// What `peers.dns` had last.
    resolved: Mutex<BTreeSet<String>>,
    heard: Heard,
    /// Told when there may be somebody new to dial.
    look: Notify,
    status: watch::Receiver<Status>,
    draining: AtomicBool,
    /// Frames of peers that hold nothing this version knows.
    unknown_frames: AtomicU64,
    /// Connections that were given up because the other side took nothing.
    overflows: AtomicU64,
}

/// This node's place in its cluster.
#[derive(Debug)]
pub(crate) struct Cluster {
    shared: Arc<Shared>,
    news: Arc<Notify>,
    close: CancellationToken,
    address: SocketAddr,
}

/// What the cluster is told of by the subscriptions of this node.
#[derive(Debug, Clone, Default)]
pub(crate) struct News {
    /// What is owned has changed.
    pub(crate) owned: Arc<Notify>,
    /// Who is in a group has.
    pub(crate) group: Arc<Notify>,
}

/// Where this node is among its peers.
#[derive(Debug)]
pub(crate) struct Place {
    listener: TcpListener,
    /// Where it says that they find it.
    pub(crate) address: Arc<str>,
}

/// Binds the listener for other nodes. `None`: the node is alone.
pub(crate) async fn bind(config: &Config) -> anyhow::Result<Option<Place>> {
    let Some(listen) = config.peers.listen else { return Ok(None) };
    let listener = TcpListener::bind(listen).await.with_context(|| format!("binding peers.listen {listen}"))?;
    let bound = listener.local_addr()?;
    let address = match (config.peers.advertise.as_str(), bound.ip().is_unspecified()) {
        ("", false) => bound.to_string().into(),
        ("", true) => format!("{}:{}", config.node_name(), bound.port()).into(),
        (advertise, _) => advertise.into(),
    };
    Ok(Some(Place { listener, address }))
}

/// Serves other nodes, begins to dial them, and stands in front of each subscription's driver.
pub(crate) fn start(
    config: &Config,
    place: Place,
    subscriptions: &BTreeMap<String, Arc<Handle>>,
    sessions: &Arc<SessionRegistry>,
    news: News,
) -> anyhow::Result<Arc<Cluster>> {
    let Place { listener, address: rank } = place;
    let News { owned: news, group } = news;
    let close = CancellationToken::new();
    let tls = match config.peers.tls.is_set() {
        true => Some(Arc::new(Tls::start(&config.peers.tls, close.clone())?)),
        false => None,
    };
    let address = listener.local_addr()?;
    let edges = subscriptions.iter().zip(0..).map(|((name, handle), index)| {
        let of = &config.subscriptions[name];
        let settings = EdgeSettings {
            handle: handle.clone(),
            ordering: handle.policy.ordering,
            grace: config.node.drain_timeout,
            index,
            news: news.clone(),
            members: MembersSettings {
                subscription: name.as_str().into(),
                address: rank.clone(),
                leave_delay: match of.join {
                    Join::AtStart => None,
                    Join::OnSession => Some(of.leave_delay),
                },
                kafka_session_timeout: of.group_session_timeout(),
                static_session: of.static_membership.then(|| of.group_session_timeout()),
            },
        };
        (name.clone(), edge::start(settings))
    });
    let edges = edges.collect();
    let (status_sender, status) = watch::channel(Status::default());
    let shared = Arc::new(Shared {
        times: Times { ping_interval: config.peers.ping_interval, timeout: config.peers.timeout },
        config: config.peers.clone(),
        node: config.node_name(),
        address: rank,
        tls: tls.clone(),
        refusals: Arc::default(),
        instance: crate::random::number(),
        started: Instant::now(),
        edges,
        sessions: sessions.clone(),
        peers: Mutex::default(),
        resolved: Mutex::default(),
        heard: Heard::default(),
        look: Notify::new(),
        status,
        draining: AtomicBool::new(false),
        unknown_frames: AtomicU64::new(0),
        overflows: AtomicU64::new(0),
    });
    // Before anybody connects: a peer that is told of nothing would warn.
    status_sender.send_replace(shared.status_now());
    let service = RelayServiceServer::new(owner::Owner::new(shared.clone()))
        .max_decoding_message_size(FRAME_BYTES_MAX)
        .max_encoding_message_size(FRAME_BYTES_MAX);
    let server = Server::builder()
        .initial_stream_window_size(HTTP2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(HTTP2_CONNECTION_WINDOW_BYTES)
        // Streams have pings of their own; this closes what is left of a connection in the dark.
        .http2_keepalive_interval(Some(config.peers.timeout))
        .http2_keepalive_timeout(Some(config.peers.timeout))
        .add_service(service);
    let door = Door { tls, refusals: shared.refusals.clone(), timeout: config.peers.timeout };
    let incoming = listen::incoming(listener, door, close.clone());
    let closing = close.clone();
    tokio::spawn(async move {
        // Dropped and not drained: edges keep their streams open for as long as this node lives.
        tokio::select! {
            served = server.serve_with_incoming(incoming) => {
                if let Err(error) = served {
                    tracing::error!(%error, "the listener for other nodes failed");
                }
            }
            () = closing.cancelled() => {}
        }
    });
    tokio::spawn(tell_status(shared.clone(), news.clone(), status_sender, close.clone()));
    tokio::spawn(dial::run(shared.clone(), close.clone()));
    tokio::spawn(close.clone().run_until_cancelled_owned(found::follow_groups(shared.clone(), group)));
    tracing::info!(%address, advertised = &*shared.address, encrypted = shared.tls.is_some(), "peers may connect");
    Ok(Arc::new(Cluster { shared, news, close, address }))
}

/// Nothing that the node has works with Kafka.
fn is_away(kafka: &KafkaState) -> bool {
    matches!(kafka, KafkaState::Unreachable(_) | KafkaState::Refused(_))
}

/// Keeps what peers are told up to date.
async fn tell_status(shared: Arc<Shared>, news: Arc<Notify>, status: watch::Sender<Status>, close: CancellationToken) {
    loop {
        status.send_if_modified(|last| {
            let now = shared.status_now();
            let changed = *last != now;
            *last = now;
            changed
        });
        tokio::select! {
            () = close.cancelled() => return,
            () = news.notified() => {}
        }
    }
}

// === impl Shared ===

impl Shared {
    fn hello(&self) -> Hello {
        Hello {
            revision: sluice_proto::REVISION,
            node: self.node.clone(),
            instance: self.instance,
            address: self.address.to_string(),
            control: false,
            age_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }

    fn status_now(&self) -> Status {
        let subscription = |(name, edge): (&String, &EdgeHandle)| {
            let owned = edge.handle.owned().borrow().clone();
            let partition = |one: &crate::subscription::OwnedPartition| Owned {
                topic: one.partition.topic.to_string(),
                partition: one.partition.partition,
                epoch: one.epoch.0,
                backlog: one.backlog,
            };
            let pause = edge.handle.state().pause;
            SubscriptionStatus {
                subscription: name.clone(),
                partitions: owned.partitions.iter().map(partition).collect(),
                streams: edge.counts.streams.load(Ordering::Relaxed),
                idle_room: edge.counts.idle_room.load(Ordering::Relaxed),
                member: owned.member,
                policy: edge.handle.policy_hash,
                paused: pause.paused,
                paused_at_ms: pause.at_ms,
                away: is_away(&edge.handle.state().kafka),
                missing: (!owned.missing.is_empty()).then(|| MissingRights {
                    group: owned.missing.group.clone().unwrap_or_default(),
                    topics: owned.missing.topics.clone(),
                    whole: owned.missing.whole,
                }),
            }
        };
        let draining = self.draining.load(Ordering::Acquire);
        Status { subscriptions: self.edges.iter().map(subscription).collect(), draining }
    }

    /// A peer of a later version says something that this one need not know: what it must, is told by the revision.
    fn unknown_frame(&self) {
        self.unknown_frames.fetch_add(1, Ordering::Relaxed);
    }

    fn count_overflow(&self) {
        self.overflows.fetch_add(1, Ordering::Relaxed);
    }

    fn peers(&self) -> MutexGuard<'_, Peers> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A process answered. `None`: it is connected by another address already.
    fn register(&self, address: &str, link: &link::Link) -> Option<Arc<Peer>> {
        let hello = &link.hello;
        let mut peers = self.peers();
        if peers.up.contains_key(&hello.instance) {
            return None;
        }
        let next = OwnerId(u32::try_from(peers.owners.len() + 1).unwrap_or(u32::MAX));
        let owner = *peers.owners.entry(hello.instance).or_insert(next);
        let peer = Arc::new(Peer {
            owner,
            instance: hello.instance,
            address: address.to_owned(),
            rank: hello.address.as_str().into(),
            node: hello.node.clone(),
            since: Instant::now().checked_sub(Duration::from_millis(hello.age_ms)).unwrap_or(self.started),
            channel: link.channel.clone(),
            over: link.conn.over.clone(),
            policies: Policies::default(),
        });
        peers.up.insert(hello.instance, peer.clone());
        Some(peer)
    }

    fn forget(&self, peer: &Peer) {
        self.peers().up.remove(&peer.instance);
    }

    fn is_up(&self, address: &str) -> bool {
        self.peers().up.values().any(|peer| peer.address == address)
    }

    fn up(&self) -> Vec<Arc<Peer>> {
        let mut up: Vec<_> = self.peers().up.values().cloned().collect();
        up.sort_by_key(|peer| peer.owner);
        up
    }

    fn peer(&self, owner: OwnerId) -> Option<Arc<Peer>> {
        self.peers().up.values().find(|peer| peer.owner == owner).cloned()
    }

    /// Tells all edges.
    fn tell(&self, what: impl Fn() -> FromPeer) {
        for edge in self.edges.values() {
            let _ = edge.peers.send(what());
        }
    }
}

// === impl Cluster ===

impl Cluster {
    /// Where other nodes are served.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Peers that are up.
    pub(crate) fn peers(&self) -> usize {
        self.shared.peers().up.len()
    }

    /// Connections with peers that did not come about.
    pub(crate) fn refusals(&self) -> Vec<(Side, Reason, u64)> {
        self.shared.refusals.counts()
    }

    /// Of each subscription: peers with another policy, and members of the group that are no peers.
    pub(crate) fn disagreements(&self) -> impl Iterator<Item = (&str, usize, usize)> {
        let names = self.shared.edges.keys();
        names.map(|name| (name.as_str(), self.shared.other_policies(name), self.shared.unconnected(name)))
    }

    /// What the files of `peers.tls` have come to; `None`: there are none.
    pub(crate) fn tls_reloads(&self) -> Option<&Reloads> {
        self.shared.tls.as_ref().map(|tls| tls.reloads())
    }

    /// Frames of peers so far that hold nothing this version knows.
    pub(crate) fn unknown_frames(&self) -> u64 {
        self.shared.unknown_frames.load(Ordering::Relaxed)
    }

    /// Connections so far that were given up because a peer took nothing of what waited for it.
    pub(crate) fn overflows(&self) -> u64 {
        self.shared.overflows.load(Ordering::Relaxed)
    }

    /// What each subscription's edge counts.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (&str, &edge::Counts)> {
        self.shared.edges.iter().map(|(name, edge)| (name.as_str(), &*edge.counts))
    }

    /// Tells the peers that this node takes no new sessions, lets clients finish for at most so long, and waits for that.
    pub(crate) async fn drain(&self, deadline: Duration) {
        self.shared.draining.store(true, Ordering::Release);
        self.news.notify_one();
        join_all(self.shared.edges.values().map(|edge| edge.shutdown(deadline))).await;
    }

    /// Ends the listener and all connections.
    pub(crate) fn close(&self) {
        self.close.cancel();
    }
}
