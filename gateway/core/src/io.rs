//! What goes into the engine beside records and settlements, and what comes out of it.

use std::sync::Arc;

use crate::batch::Batch;
use crate::types::{
    Epoch, Leases, Millis, NextOffset, Record, Rejection, RevokeReason, SessionId, TopicPartition, Window,
};

/// A partition that was given to this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// Which one.
    pub partition: TopicPartition,
    /// New and random for each assignment, seek, and topic made again.
    pub epoch: Epoch,
    /// The offset at which the fetch begins: the committed one, or what the start policy gave.
    pub next: NextOffset,
    /// What stood in the commit; `None` without a commit.
    pub metadata: Option<String>,
    /// Hash of the topic's id; 0: unknown. Metadata of another topic id is not believed.
    pub topic_hash: u32,
    /// Commit `next` at once: there was no commit, and the start policy must not apply a second time.
    pub commit_now: bool,
}

/// What the engine made of the metadata in the commit it started from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restored {
    /// There was none.
    Nothing,
    /// Records done above the frontier, and attempts of records not done.
    State {
        /// Offsets that will not be delivered again.
        done: u64,
        /// Records with attempts.
        attempts: u64,
    },
    /// Another product's, or damaged, or of another topic id: ignored and counted.
    Ignored,
}

/// A stream that asks to be a session.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Open {
    /// Stable per process; `None`: not resumable.
    pub consumer_id: Option<String>,
    /// First window; `None`: nothing is delivered yet.
    pub window: Option<Window>,
    /// Shorter than the policy's; `None`: the policy's. The engine takes the smaller.
    pub ack_timeout_ms: Option<u64>,
    /// The client's receive limit for one frame; 0: 4 MiB.
    pub max_frame_bytes: u32,
    /// Send it `Output::Committed` for partitions in which it settled something.
    pub report_commits: bool,
    /// On reconnect: what the client still works on.
    pub holding: Vec<Leases>,
    /// On reconnect: the last sequence received. Numbering goes on above it. With an edge in between it only says whether
    /// anything was received at all.
    pub seen: u64,
    /// Who stands between this engine and the client.
    pub via: Via,
}

/// Who stands between the engine and a session's client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Via {
    /// Nobody: its frames have this engine's numbers.
    #[default]
    Nobody,
    /// The edge of this node, which gives the frames of several owners numbers of its own.
    NearEdge,
    /// The edge of another node. It numbers likewise, and sessions of this node are dealt to first.
    FarEdge,
}

/// How an `Open` was met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// The session: a new one, or the one that the `consumer_id` had.
    pub session: SessionId,
    /// Whether the session existed.
    pub resumed: Resumed,
    /// What both sides still have. All else was made ready again.
    pub held: Vec<Leases>,
    /// What a lease of this session lasts.
    pub ack_timeout_ms: u64,
}

/// Whether an opened session existed before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resumed {
    /// A new session.
    New,
    /// It was broken and waited for this.
    AfterBreak,
    /// It has a live stream, which this one supersedes: the driver ends that one.
    Superseding,
}

/// Why Kafka did not take a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CommitError {
    /// Not now, and not our fault: repeat (illegal generation, rebalance in progress, coordinator moving, timed out).
    Retriable,
    /// The metadata is more than this broker takes: repeat with half the units.
    MetadataTooLarge,
    /// This node is not a member any more: the partitions are lost, which comes as an event of its own.
    NotMember,
}

/// Names a unary settle whose answer comes later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// How a unary `Settle` is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// At once, with what changed nothing.
    Now(Vec<Rejection>),
    /// It was durable: `Output::SettledUnary` with this ticket follows.
    Later(Ticket),
}

impl Answer {
    /// The rejections, where the answer is there at once.
    #[must_use]
    pub fn now(self) -> Option<Vec<Rejection>> {
        match self {
            Self::Now(rejections) => Some(rejections),
            Self::Later(_) => None,
        }
    }
}

/// Why a record goes to the dead letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LetterCause {
    /// It failed `max_attempts` times.
    Exhausted,
    /// The client said so.
    Client,
    /// It fits no session's frames, or is above the limit for a record.
    TooLarge,
}

/// A record for the dead-letter topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// As it came: key, value, headers, timestamp.
    pub record: Record,
    /// Why.
    pub cause: LetterCause,
    /// Words of whoever failed it last; `None` when nobody said anything.
    pub reason: Option<Arc<str>>,
    /// Its counted failures.
    pub attempts: u32,
    /// Its first failure in this epoch; `None` when it had none.
    pub first_failure: Option<Millis>,
    /// Its last failure in this epoch; `None` when it had none.
    pub last_failure: Option<Millis>,
    /// Refused for its size: write it without headers of ours.
    pub plain: bool,
}

/// Why Kafka did not take a dead letter. It is written again after a backoff, whatever the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LetterError {
    /// Too large for the topic: written once more without our headers, then after the longest backoff.
    TooLarge,
    /// The topic is missing, the write was refused, no broker answers.
    Failed,
}

/// What the driver is to do. Pull until `None` after each input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// One `Delivery` frame.
    Deliver {
        /// To whom.
        session: SessionId,
        /// Rising by one a session.
        sequence: u64,
        /// Its records.
        batches: Vec<Batch>,
    },
    /// The answer to settlements with a `request_id`, or with rejections.
    Settled {
        /// To whom.
        session: SessionId,
        /// As it came.
        request_id: u64,
        /// What changed nothing.
        rejections: Vec<Rejection>,
    },
    /// Stop work on these.
    Revoked {
        /// To whom.
        session: SessionId,
        /// Which.
        leases: Leases,
        /// Why.
        reason: RevokeReason,
    },
    /// Kafka has this offset. Only to sessions that asked.
    Committed {
        /// To whom.
        session: SessionId,
        /// The partition.
        partition: TopicPartition,
        /// The next offset.
        offset: NextOffset,
    },
    /// The answer to a unary settle that was durable.
    SettledUnary {
        /// As `Answer::Later` named it.
        ticket: Ticket,
        /// What changed nothing, or is not known to be stored (`StaleEpoch`).
        rejections: Vec<Rejection>,
    },
    /// Write this to the dead-letter topic, and report by `dead_letter_result`.
    DeadLetter {
        /// The partition it came from.
        partition: TopicPartition,
        /// To be given back.
        epoch: Epoch,
        /// What to write.
        letter: Letter,
    },
    /// Commit, and report by `commit_result`. One in flight a partition.
    Commit {
        /// The partition.
        partition: TopicPartition,
        /// To be given back.
        epoch: Epoch,
        /// At most the frontier.
        offset: NextOffset,
        /// What is done above it, and attempts. Empty: nothing to say.
        metadata: String,
    },
    /// A `revoking` partition has no open lease, and its last commit is answered: answer the rebalance.
    Drained {
        /// The partition. The engine has forgotten it.
        partition: TopicPartition,
    },
    /// Take this partition off the fetch handle: it is at a limit.
    Hold {
        /// The partition.
        partition: TopicPartition,
    },
    /// Put it back, from this offset.
    Unhold {
        /// The partition.
        partition: TopicPartition,
        /// Where to go on.
        next: NextOffset,
    },
    /// Let the whole fetch handle rest (true) or go on (false): the subscription's byte budget.
    Rest(bool),
    /// A broken session was not resumed in time and is gone.
    Gone {
        /// Which.
        session: SessionId,
    },
}
