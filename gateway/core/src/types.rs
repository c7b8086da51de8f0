//! The words of the engine: names of partitions, records, leases, windows, outcomes.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

/// A moment, in milliseconds since an origin that the driver chose (the boot-time clock). Never the wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Millis(pub u64);

/// A topic's partition.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// The topic's name.
    pub topic: Arc<str>,
    /// The partition's number.
    pub partition: i32,
}

/// Which assignment of a partition (or seek in it) a lease belongs to. Random, never 0, compared for equality only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epoch(pub i64);

/// The offset after the last one that is done: what Kafka calls a committed offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextOffset(pub i64);

/// One session of the subscription, as this engine numbers them. Kept over a resume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// A Kafka header. Kafka keeps order and duplicates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The header's name.
    pub key: Arc<str>,
    /// Absent: null, not empty.
    pub value: Option<Bytes>,
}

/// One Kafka record. Clones share the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its offset in the partition.
    pub offset: i64,
    /// Milliseconds since 1970 as Kafka has it; -1 when the broker keeps none.
    pub timestamp_ms: i64,
    /// Absent: null.
    pub key: Option<Bytes>,
    /// Absent: a tombstone.
    pub value: Option<Bytes>,
    /// In Kafka's order. `None` when there are none, so that the common case costs nothing.
    pub headers: Option<Arc<[Header]>>,
}

impl Record {
    /// What a window and a budget count: key + value + header names and values.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let headers = self.headers.as_deref().unwrap_or_default();
        self.key.as_ref().map_or(0, Bytes::len)
            + self.value.as_ref().map_or(0, Bytes::len)
            + headers.iter().map(|h| h.key.len() + h.value.as_ref().map_or(0, Bytes::len)).sum::<usize>()
    }
}

/// Offsets from `first` to `last`, both included. `first > last` is representable because a client may send it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OffsetRange {
    /// The first offset.
    pub first: i64,
    /// The last offset, included.
    pub last: i64,
}

/// Leases of one partition in one epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leases {
    /// The partition.
    pub partition: TopicPartition,
    /// Their epoch.
    pub epoch: Epoch,
    /// Their offsets.
    pub offsets: Vec<OffsetRange>,
}

/// The most a session may hold. Absolute: it replaces the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Window {
    /// Records; 0 pauses.
    pub max_records: u32,
    /// Bytes of key + value + headers; 0: no limit.
    pub max_bytes: u64,
}

/// How a client ends a lease, or keeps it (`Extend`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Done.
    Ack,
    /// Failed: counted, dealt again after the delay, or after the policy's backoff when absent.
    Retry {
        /// Absent: the policy's backoff. 0: now.
        delay_ms: Option<u64>,
        /// The client's words.
        reason: String,
    },
    /// To the dead letters.
    DeadLetter {
        /// The client's words.
        reason: String,
    },
    /// Not tried: not counted, dealt again.
    Release,
    /// Keep it this long from now; absent: the session's `ack_timeout`.
    Extend {
        /// Absent: the session's `ack_timeout`.
        ack_timeout_ms: Option<u64>,
    },
    /// The outcome was unset, or a value in it could not be read (a negative duration): answered INVALID.
    Unreadable,
}

/// One outcome for some leases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settlement {
    /// Which leases.
    pub leases: Leases,
    /// What of them.
    pub outcome: Outcome,
}

/// One `Settlements` frame, or one unary `Settle`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settlements {
    /// Not 0: answer even if nothing was rejected.
    pub request_id: u64,
    /// Answer only when Kafka has it.
    pub durable: bool,
    /// `Delivery.sequence` of the last frame received when this was written; 0: absent.
    pub seen: u64,
    /// In the client's order.
    pub settlements: Vec<Settlement>,
}

/// Why a settlement changed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RejectReason {
    /// The session does not hold it.
    NotHeld,
    /// The epoch does not live here.
    StaleEpoch,
    /// It cannot be meant: reversed, without `seen`, no outcome, a duration out of bounds.
    Invalid,
}

/// Settlements that changed nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// Which leases.
    pub leases: Leases,
    /// Why.
    pub reason: RejectReason,
}

/// Why a lease was taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RevokeReason {
    /// Its `ack_timeout` ran out.
    Expired,
    /// The partition went elsewhere, or its topic was made again.
    Reassigned,
    /// An operator moved the position.
    Seek,
}

/// How a session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    /// The client closed its side: its leases return at once, uncounted.
    HalfClose,
    /// The connection is gone, or silent for `session_timeout`. With a `consumer_id` the leases wait `resume_timeout`.
    Broken,
    /// What outlived a Drain's grace: returned, uncounted.
    Drained,
    /// The node that relayed it is gone, and took all of its sessions with it: as `Broken`, and nobody's fault.
    EdgeGone,
}

impl TopicPartition {
    /// A partition of a topic.
    #[must_use]
    pub fn new(topic: impl Into<Arc<str>>, partition: i32) -> Self {
        Self { topic: topic.into(), partition }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.topic, self.partition)
    }
}

impl OffsetRange {
    /// One offset.
    #[must_use]
    pub fn one(offset: i64) -> Self {
        Self { first: offset, last: offset }
    }
}

impl Millis {
    /// So many milliseconds later.
    #[must_use]
    pub fn plus(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}
