//! What this crate tells the driver, and what the driver tells it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sluice_core::{Assignment, CommitError, Epoch, NextOffset, Run, TopicPartition};

use tokio::sync::oneshot;

use crate::signal::Signal;

/// Where a group without a commit begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Start {
    /// At the beginning of the log.
    #[default]
    Earliest,
    /// At its end.
    Latest,
    /// At the first record of this time or later.
    Time(SystemTime),
}

/// How members agree who has which partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Protocol {
    /// The classic protocol: session timeout and heartbeat are ours.
    Classic {
        /// `cooperative-sticky`, `range` or `roundrobin`.
        assignor: Assignor,
        /// A silent member is out after this.
        session_timeout: Duration,
        /// How often it says that it lives.
        heartbeat_interval: Duration,
    },
    /// KIP-848: the broker's settings rule.
    Consumer,
}

/// Assignors of the classic protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Assignor {
    /// Partitions that stay are untouched.
    #[default]
    CooperativeSticky,
    /// Eager.
    Range,
    /// Eager.
    RoundRobin,
}

/// One subscription, as Kafka needs to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KafkaConfig {
    /// `bootstrap.servers`.
    pub brokers: String,
    /// `group.id`.
    pub group: String,
    /// Names of topics.
    pub topics: Vec<String>,
    /// `client.id`: at most 200 bytes.
    pub client_id: String,
    /// `group.instance.id`: a static member of this name.
    pub instance: Option<String>,
    /// Appended to the `client.id` of the member, where others of the group see it. Quotas by `client.id` are of what is fetched
    /// and written, which goes without it.
    pub member_mark: String,
    /// Tell who is in the group while we are not, too; needs a `Describer`.
    pub watch_group: bool,
    /// How members agree.
    pub protocol: Protocol,
    /// Where a group without a commit begins.
    pub start: Start,
    /// A revoke is drained at most this long.
    pub revoke_grace: Duration,
    /// A commit without a reply after this is given up, and the member handle made anew when it was for a revoke.
    pub commit_deadline: Duration,
    /// New partitions are seen after this at the latest (`topic.metadata.refresh.interval.ms`).
    pub metadata_refresh: Duration,
    /// Prefetch, in KiB (`queued.max.messages.kbytes`).
    pub prefetch_kib: u32,
    /// Other librdkafka properties, already checked by `check_properties`.
    pub properties: BTreeMap<String, String>,
}

/// Where an operator's seek goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SeekTo {
    /// In each partition where the group would begin.
    Start(Start),
    /// In these partitions to these offsets; the others stay.
    Offsets(Vec<(TopicPartition, i64)>),
}

/// A partition, and where a seek leads in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeekTarget {
    /// The partition.
    pub partition: TopicPartition,
    /// Where to.
    pub offset: i64,
    /// What is committed now.
    pub committed: Option<i64>,
}

/// Why a seek is not possible.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SeekError {
    /// What was asked for makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// Kafka did not answer, or refused.
    #[error("{0}")]
    Unavailable(String),
    /// The group has members that were not asked: partitions are on their way between them.
    #[error("the group has members that own partitions of it, and they did not seek")]
    Moving,
}

/// A member of the group, as Kafka describes it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GroupMember {
    /// Its `client.id`.
    pub client_id: String,
    /// Where it connects from, as the broker writes it: `/10.0.0.3`.
    pub host: String,
    /// How many partitions it has.
    pub partitions: usize,
}

/// Why what was known of a partition is void.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ResetCause {
    /// The topic was deleted and made again.
    TopicRecreated,
    /// The log ends below the position.
    LogTruncated,
    /// An operator moved the position: see `SeekCommand::Begin`.
    Seek,
}

/// What Kafka does not let this node read, whoever it is to Kafka: the right READ is missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MissingRights {
    /// The subscription's group: nothing is assigned, or nothing can be committed.
    pub group: Option<String>,
    /// Topics of it: nothing of them is fetched. Others of the subscription are.
    pub topics: Vec<String>,
    /// Nothing of the subscription may be read: the group is missing, or each topic is.
    pub whole: bool,
}

/// How Kafka is, for readiness and `blocked_on`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KafkaState {
    /// Nobody has asked it yet, or it has not answered.
    Unknown,
    /// Not joined, by our own wish.
    Idle,
    /// It answers.
    Reachable,
    /// No broker answers.
    Unreachable(String),
    /// A topic is not there.
    TopicMissing(String),
    /// It answers, and does not let us read what is ours.
    RightsMissing(MissingRights),
    /// It refuses the connection: authentication, TLS.
    Refused(String),
}

// === impl MissingRights ===

impl MissingRights {
    /// Nothing is missing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.group.is_none() && self.topics.is_empty()
    }

    /// Whether records of this topic can be fetched, as far as topics go.
    #[must_use]
    pub fn may_read(&self, topic: &str) -> bool {
        !self.topics.iter().any(|missing| missing == topic)
    }
}

impl fmt::Display for MissingRights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let group = self.group.iter().map(|group| ("group", group));
        let all = group.chain(self.topics.iter().map(|topic| ("topic", topic)));
        for (index, (what, name)) in all.enumerate() {
            write!(f, "{}READ on {what} {name:?}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// What the Kafka threads tell the driver, in order, through one queue.
#[derive(Debug)]
pub enum KafkaEvent {
    /// A partition is ours, and will be fetched from `assignment.next`.
    Assigned(Assignment),
    /// Records, ascending. Taken off `FetchGate::queued_bytes` by the driver with `FetchGate::taken`.
    Records {
        /// The partition.
        partition: TopicPartition,
        /// As in its `Assigned`.
        epoch: Epoch,
        /// The records.
        runs: Vec<Arc<Run>>,
        /// What they count in the gate.
        bytes: usize,
    },
    /// The position is past control records or a hole; everything before it was sent.
    Position {
        /// The partition.
        partition: TopicPartition,
        /// As in its `Assigned`.
        epoch: Epoch,
        /// The next offset to fetch.
        next: NextOffset,
    },
    /// The group wants these back. Already off the fetch handle. Answer with `KafkaCommand::Revoked` for each.
    Revoking {
        /// Which, and the epoch of each `Assigned`.
        partitions: Vec<(TopicPartition, Epoch)>,
        /// How long the drain may take.
        grace: Duration,
    },
    /// These are lost without a word. Nothing to answer.
    Lost(Vec<TopicPartition>),
    /// The log and the position disagree, or an operator moved it: what was known is void. An `Assigned` with a new epoch follows.
    Reset {
        /// Which.
        partition: TopicPartition,
        /// Why.
        cause: ResetCause,
    },
    /// Retention passed the position: records from `from` up to `to` were never seen. The fetch goes on at `to`.
    LostToRetention {
        /// Which.
        partition: TopicPartition,
        /// The position that was.
        from: NextOffset,
        /// The log's start.
        to: NextOffset,
    },
    /// The answer to a `KafkaCommand::Commit`.
    Committed {
        /// The partition.
        partition: TopicPartition,
        /// As in the command.
        epoch: Epoch,
        /// What Kafka said.
        result: Result<NextOffset, CommitError>,
    },
    /// The committed value was read back and another had rewound it.
    CommitRewound(TopicPartition),
    /// Watermarks, now and then: for lag.
    Watermarks {
        /// The partition.
        partition: TopicPartition,
        /// Log start.
        low: i64,
        /// The high watermark, or the last stable offset of a read_committed fetch.
        high: i64,
    },
    /// Who is in the group, ourselves included, each `metadata_refresh` where it has changed. A description, not a fence.
    Group(Vec<GroupMember>),
    /// How Kafka is.
    State(KafkaState),
    /// How many partitions the subscription's topics have, whether we are a member or not.
    Partitions(usize),
    /// After `Leave` or `Shutdown`: the group is left and both handles are gone.
    Left,
    /// A thread panicked, which is a bug: nothing that follows can be relied on. Drop the subscription.
    Panicked(&'static str),
}

/// What an operator's seek needs of Kafka.
#[derive(Debug)]
pub enum SeekCommand {
    /// Say where each partition would go, whoever owns it. Nothing changes.
    Find {
        /// Where to.
        to: SeekTo,
        /// The answer.
        reply: oneshot::Sender<Result<Vec<SeekTarget>, SeekError>>,
    },
    /// Begin the partition anew at this offset: `Reset` and `Assigned` follow, held. `Unhold` it when the new position is
    /// committed. Of another epoch than the live one: nothing happens.
    Begin(TopicPartition, Epoch, NextOffset),
    /// Commit for a group that has no members.
    CommitForNobody {
        /// What.
        targets: Vec<(TopicPartition, NextOffset)>,
        /// The answer.
        reply: oneshot::Sender<Result<(), SeekError>>,
    },
}

/// What the driver tells the Kafka threads.
#[derive(Debug)]
pub enum KafkaCommand {
    /// An operator's seek.
    Seek(SeekCommand),
    /// Join the group (again).
    Join,
    /// Commit one partition; answered by `KafkaEvent::Committed`.
    Commit {
        /// The partition.
        partition: TopicPartition,
        /// Given back in the answer.
        epoch: Epoch,
        /// The next offset.
        offset: NextOffset,
        /// Empty: none.
        metadata: String,
    },
    /// This partition of a `Revoking` is drained and committed. Of another epoch than the one that `Revoking` named it is
    /// the late answer to an earlier revoke: nothing happens.
    Revoked(TopicPartition, Epoch),
    /// Take it off the fetch handle, its epoch stays. Of another epoch than the live one: nothing happens.
    Hold(TopicPartition, Epoch),
    /// Put it back. Of another epoch than the live one: nothing happens.
    Unhold(TopicPartition, Epoch, NextOffset),
    /// Leave the group and close both handles, within the duration. Everything must be drained before.
    Leave(Duration),
    /// As `Leave`, and the threads end.
    Shutdown(Duration),
}

/// How much the fetch thread may put into the queue, shared with the driver. At the limit the thread stops taking from
/// librdkafka; nothing that was prefetched is thrown away.
#[derive(Debug)]
pub struct FetchGate {
    /// Bytes of records in the queue to the driver.
    pub queued_bytes: AtomicUsize,
    /// At most this many.
    pub queued_bytes_max: usize,
    /// Set by the driver: take nothing.
    pub resting: AtomicBool,
    fetch: OnceLock<Arc<Signal>>,
}

impl FetchGate {
    /// A gate with a limit.
    #[must_use]
    pub fn new(queued_bytes_max: usize) -> Arc<Self> {
        Arc::new(Self {
            queued_bytes: AtomicUsize::new(0),
            queued_bytes_max,
            resting: AtomicBool::new(false),
            fetch: OnceLock::new(),
        })
    }

    /// The driver took records that count `bytes` out of the queue.
    pub fn taken(&self, bytes: usize) {
        let before = self.queued_bytes.fetch_sub(bytes, Ordering::AcqRel);
        let opened = before >= self.queued_bytes_max && before.saturating_sub(bytes) < self.queued_bytes_max;
        if opened {
            self.wake();
        }
    }

    /// Take nothing (true), or go on (false).
    pub fn rest(&self, resting: bool) {
        self.resting.store(resting, Ordering::Release);
        if !resting {
            self.wake();
        }
    }

    pub(crate) fn wakes(&self, fetch: &Arc<Signal>) {
        // The first thread stays: a gate belongs to one subscription.
        let _already_set = self.fetch.set(Arc::clone(fetch));
    }

    pub(crate) fn is_open(&self) -> bool {
        !self.resting.load(Ordering::Acquire) && self.queued_bytes.load(Ordering::Acquire) < self.queued_bytes_max
    }

    pub(crate) fn put(&self, bytes: usize) {
        self.queued_bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    fn wake(&self) {
        if let Some(fetch) = self.fetch.get() {
            fetch.notify();
        }
    }
}
