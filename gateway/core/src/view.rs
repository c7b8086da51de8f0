//! What an operator may ask the engine.

use crate::types::{Epoch, NextOffset, SessionId, TopicPartition, Window};

/// Why something does not move, in words an operator acts on. The names are the contract's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlockedOn {
    /// No session is connected.
    NoSession,
    /// No session has free window.
    NoWindow,
    /// The head is leased.
    Leased,
    /// The head waits for its retry.
    RetryWait,
    /// The head waits for an earlier record of its lane.
    Lane,
    /// The head is a suspect, and every session with room holds one.
    Suspect,
    /// The head is on its way to the dead letters, and Kafka has not taken it.
    DeadLetter,
    /// A session that settles nothing is dealt one record at a time.
    Unresponsive,
    /// The head failed `max_attempts` times.
    Exhausted,
    /// The partition is at its span limit.
    SpanLimit,
    /// The partition, or the subscription, is at its byte budget.
    MemoryBudget,
    /// What is done above the frontier does not fit a commit.
    MetadataFull,
    /// An operator paused it.
    Paused,
    /// It is being handed over.
    Draining,
    /// Kafka does not answer.
    Broker,
}

impl BlockedOn {
    /// The contract's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoSession => "no_session",
            Self::NoWindow => "no_window",
            Self::Leased => "leased",
            Self::RetryWait => "retry_wait",
            Self::Lane => "lane",
            Self::Suspect => "suspect",
            Self::DeadLetter => "dead_letter",
            Self::Unresponsive => "unresponsive",
            Self::Exhausted => "exhausted",
            Self::SpanLimit => "span_limit",
            Self::MemoryBudget => "memory_budget",
            Self::MetadataFull => "metadata_full",
            Self::Paused => "paused",
            Self::Draining => "draining",
            Self::Broker => "broker",
        }
    }
}

/// Counters since start. A subscription's, or a partition's since its assignment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Records received from Kafka.
    pub received: u64,
    /// Deliveries, redeliveries included.
    pub delivered: u64,
    /// Acked.
    pub acked: u64,
    /// Settled by Retry.
    pub retried: u64,
    /// Leases that expired.
    pub expired: u64,
    /// Settled by Release, or returned uncounted by a session's end.
    pub released: u64,
    /// Dead-lettered: Kafka acknowledged that write.
    pub dead_lettered: u64,
    /// Writes of dead letters that Kafka did not take.
    pub dead_letters_failed: u64,
    /// Records given up as too large.
    pub too_large: u64,
    /// Dropped or filtered by policy.
    pub filtered: u64,
    /// Attempts that reached `max_attempts`.
    pub failed: u64,
    /// Records below acknowledged commits.
    pub committed: u64,
    /// Records that came below `next` and were dropped (refetched after a hold).
    pub refetched: u64,
    /// Records skipped because the commit said that they are done.
    pub restored_done: u64,
    /// Sessions that died alone: what they held is marked.
    pub sessions_died: u64,
    /// Sessions that broke together with more than half of the others, and did not come back: nobody is to blame.
    pub sessions_broke_together: u64,
    /// Requests that were durable and were answered once Kafka had everything, or that it may come again.
    pub durable_answered: u64,
    /// Settlements rejected.
    pub rejected: u64,
    /// Commits acknowledged.
    pub commits: u64,
    /// Commits refused.
    pub commits_failed: u64,
    /// Commits whose metadata was cut: what was cut may come again after a crash.
    pub metadata_truncated: u64,
    /// Metadata that was not ours, or damaged.
    pub metadata_ignored: u64,
    /// Invariants seen broken (a bug in the engine; panics in debug builds).
    pub invariants_broken: u64,
}

/// A partition, as an operator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionView {
    /// Which one.
    pub partition: TopicPartition,
    /// Its epoch.
    pub epoch: Epoch,
    /// What Kafka acknowledged last.
    pub committed: Option<NextOffset>,
    /// The frontier: what may be committed.
    pub committable: NextOffset,
    /// What will be fetched next.
    pub next: NextOffset,
    /// Records received above the frontier, done or not.
    pub span: u64,
    /// Bytes held.
    pub bytes: u64,
    /// Records ready to be dealt.
    pub ready: u64,
    /// Records leased.
    pub leased: u64,
    /// Records that wait for their retry.
    pub waiting_retry: u64,
    /// Records that wait for an earlier one of their lane.
    pub lane_waiting: u64,
    /// Records that several sessions died with: each is dealt by itself.
    pub suspects: u64,
    /// Records on their way to the dead letters.
    pub dead_letters_pending: u64,
    /// Settled records whose durable settlement Kafka does not have yet.
    pub durable_waiting: u64,
    /// Records done above the frontier.
    pub done_above_frontier: u64,
    /// The first record not done, if one was received.
    pub oldest_undone_offset: Option<i64>,
    /// For how long it was received, in milliseconds.
    pub oldest_undone_age_ms: u64,
    /// Who holds it.
    pub oldest_undone_holder: Option<SessionId>,
    /// Off the fetch handle.
    pub held_back: bool,
    /// Why it does not move.
    pub blocked_on: Option<BlockedOn>,
    /// Counters since the assignment.
    pub stats: Stats,
}

/// A session, as an operator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionView {
    /// Which one.
    pub session: SessionId,
    /// As it came.
    pub consumer_id: Option<String>,
    /// Another node relays it.
    pub relayed: bool,
    /// The last window read.
    pub window: Window,
    /// Records it holds.
    pub leased: u64,
    /// Bytes it holds.
    pub leased_bytes: u64,
    /// Waits for a resume.
    pub broken: bool,
    /// Its leases expired and it settled nothing since.
    pub unresponsive: bool,
    /// Why it gets nothing.
    pub blocked_on: Option<BlockedOn>,
}
