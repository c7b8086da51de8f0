//! A record with its lease, as the application sees it.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use sluice_proto::v1;
use tokio::sync::{mpsc, oneshot};

/// The lease waits in the queue: the application has not seen the record.
const QUEUED: u8 = 0;
/// The application has the record.
const GIVEN: u8 = 1;
/// The lease is no longer ours.
const REVOKED: u8 = 2;

/// What names the leases of one partition in one epoch.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct LeaseName {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) epoch: i64,
}

/// What the task and the records of one batch share. The states are the only thing that both sides write: `QUEUED` becomes
/// `GIVEN` by the application or `REVOKED` by the task, whoever is first.
pub(crate) struct LeaseBatch {
    pub(crate) name: Arc<LeaseName>,
    commands: mpsc::UnboundedSender<Command>,
    states: Box<[AtomicU8]>,
}

impl LeaseBatch {
    pub(crate) fn new(name: Arc<LeaseName>, len: usize, commands: mpsc::UnboundedSender<Command>) -> Self {
        Self { name, commands, states: (0..len).map(|_| AtomicU8::new(QUEUED)).collect() }
    }

    pub(crate) fn is_queued(&self, index: u32) -> bool {
        self.state(index).load(Ordering::Acquire) == QUEUED
    }

    pub(crate) fn is_revoked(&self, index: u32) -> bool {
        self.state(index).load(Ordering::Acquire) == REVOKED
    }

    /// Takes the lease back, whoever has it.
    pub(crate) fn revoke(&self, index: u32) {
        self.state(index).store(REVOKED, Ordering::Release);
    }

    /// Takes the record back if the application has not seen it.
    pub(crate) fn revoke_queued(&self, index: u32) -> bool {
        self.change(index, REVOKED)
    }

    /// Gives the record to the application, unless it was taken back before.
    fn give(&self, index: u32) -> bool {
        self.change(index, GIVEN)
    }

    fn change(&self, index: u32, to: u8) -> bool {
        self.state(index).compare_exchange(QUEUED, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    fn state(&self, index: u32) -> &AtomicU8 {
        &self.states[index as usize]
    }
}

/// What becomes of a lease.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    Ack,
    Retry { delay: Option<Duration>, reason: String },
    DeadLetter { reason: String },
    Release,
    Extend { ack_timeout: Option<Duration> },
}

/// What records and handles ask of the task.
pub(crate) enum Command {
    Settle { batch: Arc<LeaseBatch>, index: u32, offset: i64, outcome: Outcome },
    Window(v1::Flow),
    Flush(oneshot::Sender<()>),
    Close { limit: Duration, done: oneshot::Sender<()> },
}

/// A record of Kafka that this consumer has the lease of: to be settled with [`ack`](Self::ack), [`retry`](Self::retry),
/// [`dead_letter`](Self::dead_letter) or [`release`](Self::release), on any task and in any order.
///
/// **A record that is dropped unsettled is released**: it was not tried, counts no attempt, and is dealt again. Otherwise a
/// record lost in an early return would hang until its `ack_timeout`.
///
/// Settling does not wait: the outcome is written in the background, batched with others.
/// [`Consumer::flush`](crate::Consumer::flush) waits for the answers.
pub struct Record {
    batch: Arc<LeaseBatch>,
    index: u32,
    settled: bool,
    inner: v1::Record,
}

impl Record {
    pub(crate) fn new(batch: Arc<LeaseBatch>, index: u32, inner: v1::Record) -> Self {
        Self { batch, index, settled: false, inner }
    }

    /// The application takes the record; false if its lease was taken back while it was queued.
    pub(crate) fn give(&self) -> bool {
        self.batch.give(self.index)
    }

    /// The topic.
    pub fn topic(&self) -> &str {
        &self.batch.name.topic
    }

    /// The number of the partition.
    pub fn partition(&self) -> i32 {
        self.batch.name.partition
    }

    /// The epoch of the lease: which assignment of the partition it belongs to. Random; only equality has a meaning.
    pub fn epoch(&self) -> i64 {
        self.batch.name.epoch
    }

    /// The offset in the partition.
    pub fn offset(&self) -> i64 {
        self.inner.offset
    }

    /// Kafka's timestamp of the record. None where it has none.
    pub fn timestamp(&self) -> Option<SystemTime> {
        let ms = u64::try_from(self.inner.timestamp_ms).ok()?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(ms))
    }

    /// Kafka's timestamp of the record, in milliseconds since 1970. -1 where it has none.
    pub fn timestamp_ms(&self) -> i64 {
        self.inner.timestamp_ms
    }

    /// The key. None is null, which is not the same as empty.
    pub fn key(&self) -> Option<&Bytes> {
        self.inner.key.as_ref()
    }

    /// The value. None is null: a tombstone.
    pub fn value(&self) -> Option<&Bytes> {
        self.inner.value.as_ref()
    }

    /// The headers in Kafka's order, duplicates included. A value of None is null.
    pub fn headers(&self) -> impl ExactSizeIterator<Item = (&str, Option<&Bytes>)> {
        self.inner.headers.iter().map(|header| (header.key.as_str(), header.value.as_ref()))
    }

    /// How often the record failed before: 0 on the first try.
    pub fn attempts(&self) -> u32 {
        self.inner.attempts
    }

    /// Whether the lease is no longer ours: it expired, or the partition moved. Work on it is in vain, and settling it
    /// changes nothing.
    pub fn is_revoked(&self) -> bool {
        self.batch.is_revoked(self.index)
    }

    /// The record is done.
    pub fn ack(self) {
        self.settle(Outcome::Ack);
    }

    /// The record failed: try it again after the subscription's backoff. Counts as an attempt.
    pub fn retry(self) {
        self.settle(Outcome::Retry { delay: None, reason: String::new() });
    }

    /// The record failed: try it again after `delay`, at most 1 h. Counts as an attempt.
    pub fn retry_after(self, delay: Duration) {
        self.settle(Outcome::Retry { delay: Some(delay), reason: String::new() });
    }

    /// The record failed for a reason that operators are to see (at most 4 KiB of it are sent): try it again after the
    /// subscription's backoff. Counts as an attempt.
    pub fn retry_because(self, reason: impl Into<String>) {
        self.settle(Outcome::Retry { delay: None, reason: cut(reason.into()) });
    }

    /// The record cannot be done: write it to the dead-letter topic, with the reason (at most 4 KiB of it are sent). A node
    /// that has no dead letters refuses this; the record is then retried instead, and
    /// [`Event::Rejected`](crate::Event::Rejected) says so.
    pub fn dead_letter(self, reason: impl Into<String>) {
        self.settle(Outcome::DeadLetter { reason: cut(reason.into()) });
    }

    /// The record was not tried: let it be dealt again, uncounted. Dropping the record does the same.
    pub fn release(self) {
        self.settle(Outcome::Release);
    }

    /// The work takes longer: the lease begins anew, for the stream's `ack_timeout`.
    pub fn extend(&self) {
        self.send(Outcome::Extend { ack_timeout: None });
    }

    /// The work takes longer: the lease begins anew, for `ack_timeout` (at most 12 h).
    pub fn extend_for(&self, ack_timeout: Duration) {
        self.send(Outcome::Extend { ack_timeout: Some(ack_timeout) });
    }

    fn settle(mut self, outcome: Outcome) {
        self.settled = true;
        self.send(outcome);
    }

    fn send(&self, outcome: Outcome) {
        let batch = Arc::clone(&self.batch);
        // Fails only when the consumer has ended: its leases have gone with it.
        let _ =
            self.batch.commands.send(Command::Settle { batch, index: self.index, offset: self.inner.offset, outcome });
    }
}

/// The most bytes of a reason that are sent, so that a settlement always fits a frame.
const REASON_BYTES_MAX: usize = 4_096;

fn cut(mut reason: String) -> String {
    let mut len = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(len) {
        len -= 1;
    }
    reason.truncate(len);
    reason
}

impl Drop for Record {
    fn drop(&mut self) {
        let given = !self.settled && !self.batch.is_queued(self.index) && !self.batch.is_revoked(self.index);
        if given {
            self.send(Outcome::Release);
        }
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("topic", &self.topic())
            .field("partition", &self.partition())
            .field("offset", &self.offset())
            .field("attempts", &self.attempts())
            .field("value_bytes", &self.value().map(Bytes::len))
            .finish_non_exhaustive()
    }
}
