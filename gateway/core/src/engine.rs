//! The engine of one subscription.

use crate::io::{Assignment, CommitError, Open, Opened, Output, Restored};
use crate::policy::Policy;
use crate::types::{End, Epoch, Millis, NextOffset, Record, Rejection, SessionId, Settlements, TopicPartition, Window};
use crate::view::{PartitionView, SessionView, Stats};

/// The engine of one subscription on this node. See the crate's page for how to drive it.
#[derive(Debug)]
pub struct Engine {
    policy: Policy,
}

impl Engine {
    /// A new engine. `seed` feeds the jitter of retries.
    #[must_use]
    pub fn new(policy: Policy, seed: u64) -> Self {
        let _ = seed;
        Self { policy }
    }

    /// Its policy.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    // === Kafka ===

    /// A partition was assigned (or begins anew: after a seek, or when its topic was made again; call `lost` first).
    pub fn assigned(&mut self, _now: Millis, _assignment: Assignment) -> Restored {
        todo!()
    }

    /// Records of one partition, ascending. Of another epoch than the live one, or of a partition not assigned: dropped.
    pub fn records(&mut self, _now: Millis, _partition: &TopicPartition, _epoch: Epoch, _records: Vec<Record>) {
        todo!()
    }

    /// The fetch position after control records and holes; everything polled before it has been given to `records`.
    pub fn position(&mut self, _now: Millis, _partition: &TopicPartition, _epoch: Epoch, _next: NextOffset) {
        todo!()
    }

    /// These are to be handed over: nothing more is dealt from them; each ends with `Output::Drained`, once no lease is
    /// open (or at `deadline`, when what is open is fenced) and its last commit is answered.
    pub fn revoking(&mut self, _now: Millis, _partitions: &[TopicPartition], _deadline: Millis) {
        todo!()
    }

    /// These are gone: fenced at once, no commit, holders hear `Revoked{reason}`. Ends a `revoking` too, without `Drained`.
    pub fn lost(&mut self, _now: Millis, _partitions: &[TopicPartition], _reason: crate::types::RevokeReason) {
        todo!()
    }

    /// What Kafka said of an `Output::Commit`.
    pub fn commit_result(
        &mut self,
        _now: Millis,
        _partition: &TopicPartition,
        _epoch: Epoch,
        _result: Result<NextOffset, CommitError>,
    ) {
        todo!()
    }

    /// The committed value was read back from Kafka and is not what was acknowledged: commit again, even with nothing new.
    pub fn commit_rewound(&mut self, _now: Millis, _partition: &TopicPartition) {
        todo!()
    }

    // === sessions ===

    /// A stream subscribes.
    pub fn open(&mut self, _now: Millis, _open: Open) -> Opened {
        todo!()
    }

    /// A new window.
    pub fn window(&mut self, _now: Millis, _session: SessionId, _window: Window) {
        todo!()
    }

    /// Settlements of a stream; answered by `Output::Settled`.
    pub fn settle(&mut self, _now: Millis, _session: SessionId, _settlements: Settlements) {
        todo!()
    }

    /// Settlements of a unary `Settle`; answered at once. A session that is not known: all `NotHeld`.
    pub fn settle_unary(
        &mut self,
        _now: Millis,
        _session: Option<SessionId>,
        _settlements: Settlements,
    ) -> Vec<Rejection> {
        todo!()
    }

    /// Deal nothing more to this session: it was told to drain. What it holds stays its own until it ends.
    pub fn drain_session(&mut self, _now: Millis, _session: SessionId) {
        todo!()
    }

    /// The stream ended. An unknown session: nothing happens.
    pub fn close(&mut self, _now: Millis, _session: SessionId, _end: End) {
        todo!()
    }

    // === the subscription ===

    /// Stop dealing, or go on (an operator's pause; a draining node).
    pub fn set_paused(&mut self, _now: Millis, _paused: bool) {
        todo!()
    }

    /// Time went on: expiries, retries, resume timeouts, commits by interval.
    pub fn tick(&mut self, _now: Millis) {
        todo!()
    }

    /// The moment at which `tick` has something to do.
    #[must_use]
    pub fn wake_at(&self) -> Option<Millis> {
        todo!()
    }

    /// What the driver is to do next. Dealing happens here: call until `None` after one or more inputs.
    pub fn poll_output(&mut self, _now: Millis) -> Option<Output> {
        todo!()
    }

    // === views ===

    /// The subscription's counters.
    #[must_use]
    pub fn stats(&self) -> Stats {
        todo!()
    }

    /// All partitions, sorted.
    #[must_use]
    pub fn partitions(&self, _now: Millis) -> Vec<PartitionView> {
        todo!()
    }

    /// All sessions, by number.
    #[must_use]
    pub fn sessions(&self) -> Vec<SessionView> {
        todo!()
    }

    /// Leases open in the whole subscription.
    #[must_use]
    pub fn leases_open(&self) -> u64 {
        todo!()
    }

    /// Bytes held in the whole subscription.
    #[must_use]
    pub fn bytes_held(&self) -> u64 {
        todo!()
    }
}
