//! What the three threads of a subscription say to each other.

use std::sync::mpsc::SyncSender;
use std::time::Duration;

use sluice_core::{Assignment, Epoch, NextOffset, TopicPartition};

use crate::ffi::Code;
use crate::io::ResetCause;

/// Names one assignment of a partition to us, so that an answer about an earlier one is recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Token(pub(crate) u64);

/// To the fetch thread, which alone knows what was announced to the driver, and says it in order.
#[derive(Debug)]
pub(crate) enum FetchCommand {
    /// Ours from now on; where it begins is being looked up.
    Expect(TopicPartition, Token),
    /// Where it begins: announce and fetch it.
    Begin(Token, Assignment),
    /// The answer to [`LookupCommand::OutOfRange`], or a topic made again.
    Decided(Token, TopicPartition, Decision),
    /// Stop, tell the driver, and answer with the partitions that the driver had heard of.
    Revoke { partitions: Vec<TopicPartition>, grace: Duration, answer: SyncSender<Vec<TopicPartition>> },
    /// Stop; the driver hears `Lost` unless it asked to leave.
    Lose { partitions: Vec<TopicPartition>, quiet: bool, answer: SyncSender<()> },
    /// See `KafkaCommand::Hold`.
    Hold(TopicPartition),
    /// See `KafkaCommand::Unhold`.
    Unhold(TopicPartition, NextOffset),
    /// End the thread.
    Stop,
}

/// What becomes of a partition whose position was not in its log.
#[derive(Debug)]
pub(crate) enum Decision {
    /// It is in the log after all.
    Continue,
    /// Retention passed it.
    LostToRetention(NextOffset),
    /// What was known is void.
    Reset(ResetCause, Assignment),
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
    /// Kafka acknowledged a commit.
    Acknowledged(TopicPartition, NextOffset),
    /// Something was refused or failed; the state may have changed.
    Trouble(Code, String),
    /// End the thread.
    Stop,
}
