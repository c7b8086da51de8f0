//! What an application may want to know beside its records.

use std::{
    sync::{
        Arc,
        atomic::{self, AtomicU64},
    },
    time::Duration,
};

use sluice_proto::v1;
use tokio::sync::mpsc;

/// Events that wait for an application that does not read them; further ones are dropped and counted.
const EVENTS_MAX: usize = 1_024;

/// What the node said of the session when the stream was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionInfo {
    /// Names the session for the unary `Settle`. Whoever has it may settle. Another one where the session was not resumed.
    pub session_id: String,
    /// The name of the subscription.
    pub subscription: String,
    /// The order that the subscription keeps.
    pub ordering: Ordering,
    /// How long a lease lasts.
    pub ack_timeout: Duration,
    /// After how long a silence the node takes this consumer for broken.
    pub session_timeout: Duration,
    /// The revision of the contract that the node speaks.
    pub revision: u32,
}

impl Default for SessionInfo {
    /// The contract's defaults, for what is not told.
    fn default() -> Self {
        Self {
            session_id: String::new(),
            subscription: String::new(),
            ordering: Ordering::Unknown,
            ack_timeout: Duration::from_secs(300),
            session_timeout: Duration::from_secs(30),
            revision: 1,
        }
    }
}

/// The order that a subscription keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ordering {
    /// None.
    None,
    /// Records of one key of one partition are worked one after the other.
    Key,
    /// Records of one partition are worked one after the other.
    Partition,
    /// One that this client does not know.
    Unknown,
}

/// Offsets of one partition, as ranges with both ends included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offsets {
    /// The topic.
    pub topic: String,
    /// The number of the partition.
    pub partition: i32,
    /// First and last offset of each range.
    pub ranges: Vec<(i64, i64)>,
}

/// Why a settlement changed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RejectReason {
    /// The lease was not held any more: it had expired or was lost with its session. The record comes again, here or elsewhere.
    NotHeld,
    /// The partition has moved. The record may come again.
    StaleEpoch,
    /// The node does not take this, such as a delay that is too long. A record that was settled so is retried by the
    /// subscription's backoff instead.
    Invalid,
    /// A reason that this client does not know.
    Unknown,
}

/// Why leases were taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RevokeReason {
    /// The `ack_timeout` passed.
    Expired,
    /// The partition has moved.
    Reassigned,
    /// An operator moved the subscription to another offset.
    Seek,
    /// The connection broke and came back too late: the node had dealt the records again.
    NotResumed,
    /// A reason that this client does not know.
    Unknown,
}

/// What happened beside the records.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The stream is open.
    Connected {
        /// The session, for the unary `Settle`. Whoever has it may settle.
        session_id: String,
    },
    /// The stream ended; the client connects anew.
    Disconnected {
        /// What ended it.
        cause: String,
    },
    /// The node is about to end the stream. Nothing is to be done: the client finishes and connects anew.
    Draining,
    /// Settlements changed nothing.
    Rejected {
        /// Which records.
        offsets: Offsets,
        /// Why.
        reason: RejectReason,
    },
    /// Leases were taken back.
    Revoked {
        /// Which records.
        offsets: Offsets,
        /// Why.
        reason: RevokeReason,
    },
    /// Kafka has acknowledged a commit. Only with `report_commits`.
    Committed {
        /// The topic.
        topic: String,
        /// The number of the partition.
        partition: i32,
        /// The first offset that is not committed.
        offset: i64,
    },
}

impl From<v1::Ordering> for Ordering {
    fn from(ordering: v1::Ordering) -> Self {
        match ordering {
            v1::Ordering::None => Self::None,
            v1::Ordering::Key => Self::Key,
            v1::Ordering::Partition => Self::Partition,
            v1::Ordering::Unspecified => Self::Unknown,
        }
    }
}

impl From<v1::RejectReason> for RejectReason {
    fn from(reason: v1::RejectReason) -> Self {
        match reason {
            v1::RejectReason::NotHeld => Self::NotHeld,
            v1::RejectReason::StaleEpoch => Self::StaleEpoch,
            v1::RejectReason::Invalid => Self::Invalid,
            v1::RejectReason::Unspecified => Self::Unknown,
        }
    }
}

impl From<v1::RevokeReason> for RevokeReason {
    fn from(reason: v1::RevokeReason) -> Self {
        match reason {
            v1::RevokeReason::Expired => Self::Expired,
            v1::RevokeReason::Reassigned => Self::Reassigned,
            v1::RevokeReason::Seek => Self::Seek,
            v1::RevokeReason::Unspecified => Self::Unknown,
        }
    }
}

/// Where the task puts events. Never waits.
pub(crate) struct EventSink {
    events: mpsc::Sender<Event>,
    dropped: Arc<AtomicU64>,
}

impl EventSink {
    pub(crate) fn new() -> (Self, mpsc::Receiver<Event>, Arc<AtomicU64>) {
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        let dropped = Arc::new(AtomicU64::new(0));
        (Self { events, dropped: Arc::clone(&dropped) }, receiver, dropped)
    }

    pub(crate) fn send(&self, event: Event) {
        if self.events.try_send(event).is_err() {
            self.dropped.fetch_add(1, atomic::Ordering::Relaxed);
        }
    }
}
