//! How a lease ends, and how one hears of it.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::sync::oneshot;

use crate::{error::Error, event::RejectReason};

/// How a lease ends.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The record is done.
    Ack,
    /// The record failed and is to be tried again. Counts as an attempt.
    Retry {
        /// How long to wait, at most `max_retry_delay` (1 h). None: the subscription's backoff.
        delay: Option<Duration>,
        /// Why, for operators; at most 4 KiB of it are sent. Empty: no reason given.
        reason: String,
    },
    /// The record cannot be done: it goes to the dead-letter topic.
    DeadLetter {
        /// Why, for operators; at most 4 KiB of it are sent, and stand in a header of the dead letter.
        reason: String,
    },
    /// The record was not tried: it is dealt again, uncounted.
    Release,
}

impl Outcome {
    /// With a reason that fits a frame.
    pub(crate) fn cut(mut self) -> Self {
        if let Self::Retry { reason, .. } | Self::DeadLetter { reason } = &mut self {
            cut(reason);
        }
        self
    }

    /// Whether Kafka has anything to store of it.
    pub(crate) fn can_be_durable(&self) -> bool {
        !matches!(self, Self::Release)
    }
}

/// The most bytes of a reason that are sent, so that a settlement always fits a frame.
const REASON_BYTES_MAX: usize = 4_096;

fn cut(reason: &mut String) {
    let mut len = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(len) {
        len -= 1;
    }
    reason.truncate(len);
}

/// Why a settlement that was waited for did not take place, or is not known to have.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SettleError {
    /// The lease had expired, was lost with its session, or was settled otherwise before. The record comes again, here or
    /// elsewhere, unless another session has settled it.
    #[error("the lease is not held any more: the record comes again, here or elsewhere")]
    NotHeld,
    /// The partition moved, or was sought in, before Kafka was known to have the settlement. The record may come again.
    #[error("the partition moved before the settlement was known to be stored: the record may come again")]
    StaleEpoch,
    /// The node does not take this outcome, such as a dead letter where it has none, or a delay that is too long. What a
    /// consumer settled so is retried by the subscription's backoff instead.
    #[error("the node refused the settlement as invalid: the record comes again")]
    Invalid,
    /// The node refused it for a reason that this client does not know.
    #[error("the node refused the settlement: the record may come again")]
    Unknown,
    /// No answer came, so it is not known whether the node has it. The record may come again.
    #[error("no answer to the settlement: the record may come again: {0}")]
    NoAnswer(Error),
}

impl From<RejectReason> for SettleError {
    fn from(reason: RejectReason) -> Self {
        match reason {
            RejectReason::NotHeld => Self::NotHeld,
            RejectReason::StaleEpoch => Self::StaleEpoch,
            RejectReason::Invalid => Self::Invalid,
            RejectReason::Unknown => Self::Unknown,
        }
    }
}

/// Who waits for an answer.
pub(crate) type Waiter = oneshot::Sender<Result<(), SettleError>>;

/// The answer to a durable settlement: a future. It resolves to `Ok` when Kafka has the settlement, so that no crash of any
/// node brings the record back. Dropping it takes nothing back.
#[derive(Debug)]
#[must_use = "the settlement is on its way; only awaiting this tells whether Kafka has it"]
pub struct Settling(pub(crate) oneshot::Receiver<Result<(), SettleError>>);

impl Future for Settling {
    type Output = Result<(), SettleError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // Dropped unanswered only when the consumer has ended.
        Pin::new(&mut self.0).poll(context).map(|answer| answer.unwrap_or(Err(SettleError::NoAnswer(Error::Closed))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_cut_at_a_character() {
        let long = Outcome::DeadLetter { reason: format!("x{}", "ä".repeat(REASON_BYTES_MAX)) }.cut();
        let Outcome::DeadLetter { reason } = long else { panic!("it is what it was") };
        assert_eq!(reason.len(), REASON_BYTES_MAX - 1);
    }

    #[test]
    fn an_error_says_that_the_record_may_come_again() {
        for error in [SettleError::StaleEpoch, SettleError::Unknown, SettleError::NoAnswer(Error::Closed)] {
            assert!(error.to_string().contains("may come again"), "{error}");
        }
    }
}
