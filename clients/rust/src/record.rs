//! A record with its lease, as the application sees it.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use sluice_proto::v1;
use tokio::sync::oneshot;

use crate::{
    lease::{Command, LeaseBatch, LeaseHandle, Verb},
    outcome::{Outcome, Settling, Waiter},
    settler::Receipt,
};

/// A record of Kafka that this consumer has the lease of: to be settled with [`ack`](Self::ack), [`retry`](Self::retry),
/// [`dead_letter`](Self::dead_letter) or [`release`](Self::release), on any task and in any order.
///
/// **A record that is dropped unsettled is released**: it was not tried, counts no attempt, and is dealt again. Otherwise a
/// record lost in an early return would hang until its `ack_timeout`.
///
/// Settling does not wait: the outcome is written in the background, batched with others.
/// [`Consumer::flush`](crate::Consumer::flush) waits for the answers. Where Kafka must have it before the application goes on,
/// [`ack_durable`](Self::ack_durable) and [`settle_durable`](Self::settle_durable) can be awaited.
///
/// Work that may take longer than the `ack_timeout` says so once, with [`keep_extending`](Self::keep_extending).
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

    /// The record is done, and it matters that no crash brings it back: the answer comes when Kafka has the commit. What is
    /// acked so at the same time shares a commit.
    ///
    /// # Errors
    /// [`SettleError::StaleEpoch`](crate::SettleError::StaleEpoch) and [`NoAnswer`](crate::SettleError::NoAnswer): not known to
    /// be stored, the record may come again. [`NotHeld`](crate::SettleError::NotHeld): the lease was lost before.
    pub fn ack_durable(self) -> Settling {
        self.settle_durable(Outcome::Ack)
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
        self.settle(Outcome::Retry { delay: None, reason: reason.into() });
    }

    /// The record cannot be done: write it to the dead-letter topic, with the reason (at most 4 KiB of it are sent). Where the
    /// subscription has no such topic the record goes the way of its `on_exhausted`: kept and tried again, or dropped.
    pub fn dead_letter(self, reason: impl Into<String>) {
        self.settle(Outcome::DeadLetter { reason: reason.into() });
    }

    /// The record was not tried: let it be dealt again, uncounted. Dropping the record does the same.
    pub fn release(self) {
        self.settle(Outcome::Release);
    }

    /// Ends the lease with this outcome: what the verbs above do, for an outcome that comes from elsewhere.
    pub fn settle(mut self, outcome: Outcome) {
        self.settled = true;
        self.say(Verb::Settle(outcome.cut()), false, None);
    }

    /// Ends the lease with this outcome; the answer comes when Kafka has it: of an ack the commit, of a retry its attempt, of a
    /// dead letter the write and the commit. A release is answered at once.
    ///
    /// # Errors
    /// As [`ack_durable`](Self::ack_durable).
    pub fn settle_durable(mut self, outcome: Outcome) -> Settling {
        self.settled = true;
        let (waiter, answer) = oneshot::channel();
        self.say(Verb::Settle(outcome.cut()), true, Some(waiter));
        Settling(answer)
    }

    /// The work takes longer: the lease begins anew, for the stream's `ack_timeout`.
    pub fn extend(&self) {
        self.say(Verb::Extend(None), false, None);
    }

    /// The work takes longer: the lease begins anew, for `ack_timeout` (at most 12 h).
    pub fn extend_for(&self, ack_timeout: Duration) {
        self.say(Verb::Extend(Some(ack_timeout)), false, None);
    }

    /// The work takes longer, nobody knows how long: the client extends the lease by itself until the record is settled or
    /// dropped, but no longer than `limit` from now, so that work which hangs loses it in the end.
    /// [`Builder::extend_while_held`](crate::Builder::extend_while_held) does this for every record.
    pub fn keep_extending(&self, limit: Duration) {
        self.command(Command::Keep { lease: self.lease(), limit });
    }

    /// Leaves it to another process to settle this record, with a [`Settler`](crate::Settler). The lease keeps its time, counts
    /// against this consumer's window, and ends with this consumer: when it is closed, what was handed over and not settled is
    /// dealt again.
    pub fn hand_over(mut self) -> Receipt {
        self.settled = true;
        self.command(Command::HandOver(self.lease()));
        Receipt {
            topic: self.batch.name.topic.clone(),
            partition: self.batch.name.partition,
            epoch: self.batch.name.epoch,
            offset: self.inner.offset,
            frame: self.batch.frame,
            session_id: self.batch.session_id.to_string(),
        }
    }

    fn lease(&self) -> LeaseHandle {
        LeaseHandle { batch: Arc::clone(&self.batch), index: self.index, offset: self.inner.offset }
    }

    fn say(&self, verb: Verb, durable: bool, waiter: Option<Waiter>) {
        self.command(Command::Say { lease: self.lease(), verb, durable, waiter });
    }

    fn command(&self, command: Command) {
        // Fails only when the consumer has ended: its leases have gone with it.
        let _ = self.batch.commands.send(command);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let given = !self.settled && !self.batch.is_queued(self.index) && !self.batch.is_revoked(self.index);
        if given {
            self.say(Verb::Settle(Outcome::Release), false, None);
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
