//! What the three threads of a subscription say to each other.

use std::collections::HashMap;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sluice_core::{Assignment, Epoch, NextOffset, TopicPartition};

use crate::ffi::Code;
use crate::io::{ResetCause, SeekCommand};

/// Names one assignment of a partition to us, so that an answer about an earlier one is recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Token(pub(crate) u64);

/// The epoch in which each partition was announced to the driver last, as long as it is ours. What the driver says in
/// another one is of an earlier life of the partition: it has not heard of its end yet.
#[derive(Debug, Default)]
pub(crate) struct Epochs(Mutex<HashMap<TopicPartition, Epoch>>);

impl Epochs {
    /// It is about to be announced.
    pub(crate) fn begin(&self, partition: &TopicPartition, epoch: Epoch) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(partition.clone(), epoch);
    }

    /// Not ours any more, or ours anew and not announced yet.
    pub(crate) fn end(&self, partition: &TopicPartition) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(partition);
    }

    pub(crate) fn is_live(&self, partition: &TopicPartition, epoch: Epoch) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(partition) == Some(&epoch)
    }
}

/// Since when no broker has answered: the lookup thread, which asks each few seconds, or the member.
#[derive(Debug, Default)]
pub(crate) struct Silence(Mutex<Option<Instant>>);

impl Silence {
    pub(crate) fn note(&self, answered: bool, now: Instant) {
        let mut since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *since = if answered { None } else { since.or(Some(now)) };
    }

    pub(crate) fn lasts(&self, now: Instant) -> Duration {
        let since = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}

/// To the fetch thread, which alone knows what was announced to the driver, and says it in order.
#[derive(Debug)]
pub(crate) enum FetchCommand {
    /// Ours from now on; where it begins is being looked up.
    Expect(TopicPartition, Token),
    /// Where it begins: announce and fetch it.
    Begin(Token, Assignment),
    /// The answer to [`LookupCommand::OutOfRange`], or a topic made again.
    Decided(Token, TopicPartition, Decision),
    /// Stop, tell the driver, and answer with the partitions that the driver had heard of, and their epochs.
    Revoke { partitions: Vec<TopicPartition>, grace: Duration, answer: SyncSender<Vec<(TopicPartition, Epoch)>> },
    /// Stop; the driver hears `Lost` unless it asked to leave.
    Lose { partitions: Vec<TopicPartition>, quiet: bool, answer: SyncSender<()> },
    /// See `KafkaCommand::Hold`.
    Hold(TopicPartition, Epoch),
    /// See `KafkaCommand::Unhold`.
    Unhold(TopicPartition, Epoch, NextOffset),
    /// End the thread.
    Stop,
}

/// What becomes of a partition whose position was not in its log, or that is sought.
#[derive(Debug)]
pub(crate) enum Decision {
    /// It is in the log after all.
    Continue,
    /// Retention passed it.
    LostToRetention(NextOffset),
    /// What was known is void.
    Reset(ResetCause, Assignment),
    /// As `Reset`, when it is still of this epoch; held until the driver says that the new position is committed.
    Seek(Epoch, Assignment),
}

/// To the lookup thread, which alone waits for answers of a broker.
#[derive(Debug)]
pub(crate) enum LookupCommand {
    /// We are about to join: note which topics have no commit at all.
    Joining,
    /// We left.
    Idle,
    /// Find out where it begins.
    Begin(TopicPartition, Token),
    /// Not ours any more.
    Forget(TopicPartition),
    /// Its position is not in its log.
    OutOfRange { partition: TopicPartition, token: Token, epoch: Epoch, next: NextOffset },
    /// An operator's seek.
    Seek(SeekCommand),
    /// Kafka acknowledged a commit.
    Acknowledged(TopicPartition, NextOffset),
    /// Something was refused or failed; the state may have changed.
    Trouble(Code, String),
    /// A broker does not let us read this topic.
    Unreadable(Arc<str>),
    /// Records of such a topic came after all.
    ReadAgain(Arc<str>),
    /// End the thread.
    Stop,
}
