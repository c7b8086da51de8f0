//! One subscription on this node: a cheap handle, and the driver task that owns the engine.
//!
//! Contract: the driver's turn is select → event → synchronous `handle` → outputs. It alone touches the engine and the
//! table of sessions. Requests come through one queue, in order; a session's input is one request however much it holds.

pub(crate) mod clock;
mod driver;
mod events;
mod group;
mod letters;
mod membership;
mod outputs;
mod owned;
mod requests;
mod seek;
mod stuck;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use dashmap::DashMap;
use sluice_core::{Open, PartitionView, Policy, Rejection, SessionId, SessionView, Settlements, Stats, TopicPartition};
use sluice_kafka::{FetchGate, KafkaCommand, KafkaEvent, KafkaState, SeekCommand};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::timeout;

use crate::error::Error;
use crate::session::{Link, Profile};
pub(crate) use group::{Group, Kind, Mark};
pub(crate) use letters::DeadLetters;
pub(crate) use membership::Membership;
pub(crate) use owned::{Owned, OwnedPartition};

/// A driver answers a view within this; else the caller goes on without it.
const VIEW_TIMEOUT: Duration = Duration::from_secs(2);

/// Letters of a session's name that an operator sees: enough to tell sessions apart, too few to settle for one.
pub(crate) const SESSION_PREFIX: usize = 8;

/// From a session's name on the wire to its engine.
pub(crate) type SessionRegistry = DashMap<Arc<str>, (Arc<str>, SessionId)>;

/// What the driver needs to know.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) name: Arc<str>,
    pub(crate) policy: Policy,
    /// See `SubscriptionConfig::policy_hash`.
    pub(crate) policy_hash: u32,
    pub(crate) session_timeout: Duration,
    /// A node that was away for this long has lost its partitions, whatever it thinks.
    pub(crate) kafka_session_timeout: Duration,
    pub(crate) revoke_grace: Duration,
    /// `None`: the group is joined at start and left at the end.
    pub(crate) leave_delay: Option<Duration>,
    /// What a stream that reached its age is given to settle.
    pub(crate) drain_grace: Duration,
    /// A partition whose oldest record not done is older than this is stuck.
    pub(crate) stuck_after_ms: u64,
    /// `None`: the policy has no dead-letter topic.
    pub(crate) dead_letters: Option<DeadLetters>,
    /// Told when what the subscription owns has changed; `None`: the node is alone.
    pub(crate) news: Option<Arc<Notify>>,
    /// Told when the group has other members; `None`: the node is alone.
    pub(crate) group_news: Option<Arc<Notify>>,
}

/// The Kafka threads, as the driver sees them: a closure, so that tests need no broker.
pub(crate) struct KafkaPort {
    pub(crate) send: Box<dyn Fn(KafkaCommand) + Send>,
    pub(crate) gate: Arc<FetchGate>,
    pub(crate) events: mpsc::UnboundedReceiver<KafkaEvent>,
    /// Writes a dead letter. Never called without `Settings::dead_letters`.
    pub(crate) write: Box<dyn Fn(sluice_kafka::Write) + Send>,
}

/// What is asked of the driver.
#[derive(Debug)]
pub(crate) enum Request {
    /// A stream subscribes.
    Open { link: Arc<Link>, open: Open },
    /// A stream's inbox holds something.
    Input(Arc<Link>),
    /// A stream reached its age.
    Drain(Arc<Link>),
    /// A stream ended, with this for its client.
    Close { link: Arc<Link>, end: sluice_core::End, error: Option<Error> },
    /// A unary Settle.
    Settle { session: SessionId, settlements: Settlements, reply: oneshot::Sender<Vec<Rejection>> },
    /// An operator asks.
    View(oneshot::Sender<Snapshot>),
    /// An operator stops the dealing, or lets it go on. Nothing happens when there was a later word.
    SetPaused(Pause, oneshot::Sender<()>),
    /// An operator moves the position in those of these partitions that are this node's.
    Seek(seek::Targets, oneshot::Sender<Vec<TopicPartition>>),
    /// What an operator's seek asks of Kafka.
    Kafka(SeekCommand),
    /// In a cluster: be a member of the group, or be none.
    Wanted(bool),
    /// Drain for this long, leave the group, end.
    Shutdown(Duration),
}

/// The last word of an operator on whether a subscription is dealt from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Pause {
    pub(crate) paused: bool,
    /// When it was said, by the wall clock of the node that was asked; 0: never.
    pub(crate) at_ms: u64,
}

/// How a subscription is, for readiness.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) kafka: KafkaState,
    pub(crate) membership: Membership,
    /// How many partitions the topics have; 0: not known.
    pub(crate) partitions: usize,
    pub(crate) pause: Pause,
    /// Why dead letters are held, as Kafka said it last; `None`: nothing is in their way.
    pub(crate) dead_letter_error: Option<String>,
    /// The driver has ended.
    pub(crate) ended: bool,
}

/// What a shutdown of so long leaves for leases: a part is kept for the last commits and for leaving.
pub(crate) fn drain_time(deadline: Duration) -> Duration {
    deadline - (deadline / 5).min(Duration::from_secs(2))
}

/// A partition, with what Kafka said of its log.
#[derive(Debug, Clone)]
pub(crate) struct PartitionSnapshot {
    pub(crate) view: PartitionView,
    /// Log start and end (last stable offset), where known.
    pub(crate) watermarks: Option<(i64, i64)>,
    /// Who holds the oldest record not done: the session's name and its `consumer_id`.
    pub(crate) holder: Option<(Arc<str>, Option<String>)>,
    pub(crate) stuck: bool,
}

/// A session, with what its stream said.
#[derive(Debug, Clone)]
pub(crate) struct SessionSnapshot {
    pub(crate) view: SessionView,
    pub(crate) token: Arc<str>,
    /// `None` while it waits for a resume.
    pub(crate) live: Option<(Profile, std::time::SystemTime)>,
}

/// All that an operator may ask.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) stats: Stats,
    pub(crate) partitions: Vec<PartitionSnapshot>,
    pub(crate) sessions: Vec<SessionSnapshot>,
    pub(crate) bytes_held: u64,
    pub(crate) queued_bytes: u64,
    pub(crate) ready_bytes: u64,
    pub(crate) remembered: u64,
    pub(crate) letters_pending: u64,
    pub(crate) letters_pending_bytes: u64,
    pub(crate) letters_failing: bool,
    pub(crate) counts: Counts,
}

/// What the driver itself counts.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) rejected_not_held: u64,
    pub(crate) rejected_stale_epoch: u64,
    pub(crate) rejected_invalid: u64,
    pub(crate) commits_rewound: u64,
    pub(crate) lost_to_retention: u64,
    pub(crate) log_truncated: u64,
    pub(crate) topics_recreated: u64,
    pub(crate) self_fenced: u64,
    /// Partitions in which an operator moved the position.
    pub(crate) seeks: u64,
    pub(crate) fetch_rests: u64,
    pub(crate) fetch_resting: bool,
    pub(crate) partition_holds: u64,
    pub(crate) letters_failed: u64,
    pub(crate) letters_too_large: u64,
}

/// The cheap side of a subscription.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) name: Arc<str>,
    pub(crate) policy: Policy,
    /// What nodes must agree on.
    pub(crate) policy_hash: u32,
    pub(crate) session_timeout: Duration,
    requests: mpsc::UnboundedSender<Request>,
    /// In a cluster: who takes what clients' streams ask for.
    front: OnceLock<mpsc::UnboundedSender<Request>>,
    state: watch::Receiver<State>,
    owned: watch::Receiver<Arc<Owned>>,
    group: watch::Receiver<Arc<Group>>,
}

pub(crate) use seek::Targets;

/// Starts the driver.
pub(crate) fn start(
    settings: Settings,
    kafka: KafkaPort,
    sessions: Arc<SessionRegistry>,
    changed: Arc<Notify>,
) -> Arc<Handle> {
    let (requests, inbox) = mpsc::unbounded_channel();
    let first = State {
        kafka: KafkaState::Unknown,
        membership: Membership::Idle,
        partitions: 0,
        pause: Pause::default(),
        dead_letter_error: None,
        ended: false,
    };
    let (state_sender, state) = watch::channel(first);
    let (owned_sender, owned) = watch::channel(Arc::new(Owned::default()));
    let (group_sender, group) = watch::channel(Arc::default());
    let handle = Arc::new(Handle {
        name: settings.name.clone(),
        policy: settings.policy.clone(),
        policy_hash: settings.policy_hash,
        session_timeout: settings.session_timeout,
        requests,
        front: OnceLock::new(),
        state,
        owned,
        group,
    });
    let told = driver::Told {
        state: state_sender,
        owned: settings.news.clone().map(|news| owned::Publisher::new(owned_sender, news)),
        group: group::Watch::new(settings.policy_hash, group_sender, settings.group_news.clone()),
    };
    tokio::spawn(driver::Driver::new(settings, kafka, inbox, sessions, changed, told).run());
    handle
}

// === impl Handle ===

impl Handle {
    /// What a client's stream asks for. Never waits.
    pub(crate) fn accept(&self, request: Request) {
        match self.front.get() {
            None => self.send(request),
            Some(front) => {
                if let Err(mpsc::error::SendError(request)) = front.send(request) {
                    refuse(request);
                }
            }
        }
    }

    /// From now on what clients' streams ask for goes there. Once, before the first stream.
    pub(crate) fn set_front(&self, front: mpsc::UnboundedSender<Request>) {
        let _ = self.front.set(front);
    }

    /// What the subscription owns on this node. Changes only in a cluster.
    pub(crate) fn owned(&self) -> watch::Receiver<Arc<Owned>> {
        self.owned.clone()
    }

    /// Who is in the Kafka group, as it was described last. Empty where nobody is, or nobody looks.
    pub(crate) fn group(&self) -> Arc<Group> {
        self.group.borrow().clone()
    }

    /// Never waits. A driver that has ended drops it.
    pub(crate) fn send(&self, request: Request) {
        if let Err(mpsc::error::SendError(request)) = self.requests.send(request) {
            refuse(request);
        }
    }

    pub(crate) fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Everything an operator may ask.
    pub(crate) async fn view(&self) -> Result<Snapshot, Error> {
        let (reply, answer) = oneshot::channel();
        self.send(Request::View(reply));
        match timeout(VIEW_TIMEOUT, answer).await {
            Ok(Ok(snapshot)) => Ok(snapshot),
            _ => Err(Error::Stopped),
        }
    }

    /// A word of an operator that is later than any before.
    pub(crate) fn pause_now(&self, paused: bool) -> Pause {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        Pause { paused, at_ms: now.max(self.state().pause.at_ms.saturating_add(1)) }
    }

    pub(crate) async fn set_paused(&self, pause: Pause) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        self.send(Request::SetPaused(pause, reply));
        answer.await.map_err(|_| Error::Stopped)
    }

    /// What a peer says of it; nobody waits.
    pub(crate) fn hear_pause(&self, pause: Pause) {
        if pause.at_ms > self.state().pause.at_ms {
            self.send(Request::SetPaused(pause, oneshot::channel().0));
        }
    }

    pub(crate) async fn settle(&self, session: SessionId, settlements: Settlements) -> Result<Vec<Rejection>, Error> {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Settle { session, settlements, reply });
        answer.await.map_err(|_| Error::Stopped)
    }

    /// Drains for at most this long and waits for the end.
    pub(crate) async fn shutdown(&self, deadline: Duration) {
        self.send(Request::Shutdown(deadline));
        let mut state = self.state.clone();
        let _ = state.wait_for(|state| state.ended).await;
    }
}

/// A request that no driver will read: a stream hears so, other callers see their reply dropped.
pub(crate) fn refuse(request: Request) {
    if let Request::Open { link, .. } | Request::Close { link, .. } = request {
        link.end(Err(Error::ShuttingDown.into()));
    }
}

/// A session's row in the driver's table.
#[derive(Debug)]
struct Seat {
    /// The live stream; `None` while the session waits for a resume.
    link: Option<Arc<Link>>,
    /// Its names on the wire, the newest last: each edge gives it one.
    tokens: VecDeque<Arc<str>>,
    /// It has a `consumer_id`: after a break the engine keeps it for a while.
    resumable: bool,
}

/// More names than this a session does not have: the oldest is forgotten.
const TOKENS_MAX: usize = 4;

// === impl Seat ===

impl Seat {
    fn token(&self) -> Arc<str> {
        self.tokens.back().cloned().unwrap_or_else(|| "".into())
    }
}

type Seats = HashMap<SessionId, Seat>;
