//! Bugs that the driver can plant between the engine and the model, so that the checker is tested too.

use sluice_core::{Engine, Millis, NextOffset, Open, Outcome, Output, Policy, Settlements, TopicPartition, Window};

use crate::support::model::{Model, State};

/// Which bug, if any. Each is one that a gateway of this kind was seen with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plant {
    Nothing,
    /// What was delivered is committed, as if delivery were the end of it.
    CommitOnDelivery,
    /// The highest acked offset is committed, whatever is open below it.
    CommitHighestAcked,
    /// The frontier stops at the first offset that no record has.
    StopAtAHole,
    /// Commits forget what is done above the frontier.
    CommitWithoutMetadata,
    /// A settlement is applied whatever frames its writer had seen.
    IgnoreSeen,
    /// A settlement of another life's lease is applied to this life's.
    AcceptAStaleEpoch,
    /// Time never reaches the engine, so no lease expires.
    ForgetExpiry,
    /// A resume gives the old window and the new one.
    DoubleTheWindowOnReconnect,
    /// Settlements of a partition that is handed over are dropped.
    DropAcksAtRevoke,
    /// The holder of a lease is not told that it was taken.
    RevokeInSilence,
    /// Two sessions get the same record.
    DeliverTwice,
    /// A dead letter counts as written once it was handed to the producer.
    DoneBeforeTheLetterIsWritten,
    /// A release counts as a failure.
    CountReleases,
    /// A durable settlement is answered as any other.
    AnswerDurableAtOnce,
    /// Sessions that break together are taken for dead by their records.
    BlameTheBalancer,
    /// A record that kills its workers is dealt on with all others.
    TrustTheDead,
    /// Metadata that is too long is left out, durable or not.
    StripWhatDoesNotFit,
}

impl Plant {
    pub(crate) fn policy(self, policy: Policy) -> Policy {
        match self {
            Self::BlameTheBalancer => Policy { together_ms: 0, ..policy },
            Self::TrustTheDead => Policy { suspect_marks: u32::MAX, ..policy },
            _ => policy,
        }
    }

    pub(crate) fn settlements(self, mut frame: Settlements, model: &Model) -> Option<Settlements> {
        match self {
            Self::CountReleases => {
                for outcome in frame.settlements.iter_mut().map(|s| &mut s.outcome) {
                    if *outcome == Outcome::Release {
                        *outcome =
                            Outcome::Retry { delay_ms: Some(model.policy.release_delay_ms), reason: String::new() };
                    }
                }
            }
            Self::AnswerDurableAtOnce => frame.durable = false,
            Self::IgnoreSeen => frame.seen = u64::MAX,
            Self::AcceptAStaleEpoch => {
                for leases in frame.settlements.iter_mut().map(|s| &mut s.leases) {
                    if let Some(part) = model.parts.get(&leases.partition) {
                        leases.epoch = part.epoch;
                    }
                }
            }
            Self::DropAcksAtRevoke => {
                let leaving = |tp: &TopicPartition| model.parts.get(tp).is_some_and(|p| p.revoking.is_some());
                frame.settlements.retain(|s| !leaving(&s.leases.partition));
                if frame.settlements.is_empty() {
                    return None;
                }
            }
            _ => {}
        }
        Some(frame)
    }

    pub(crate) fn open(self, mut open: Open, model: &Model) -> Open {
        let id = open.consumer_id.as_ref();
        let known = model.sessions.values().any(|s| id.is_some() && s.consumer_id.as_ref() == id);
        if self == Self::DoubleTheWindowOnReconnect && known {
            open.window = open.window.map(|w| Window { max_records: w.max_records * 2, max_bytes: w.max_bytes * 2 });
        }
        open
    }

    pub(crate) fn tick(self, now: Millis) -> Millis {
        if self == Self::ForgetExpiry { Millis(0) } else { now }
    }

    /// What the engine is told behind the model's back.
    pub(crate) fn meddle(self, engine: &mut Engine, output: &Output, now: u64) {
        if let (Self::DoneBeforeTheLetterIsWritten, Output::DeadLetter { partition, epoch, letter }) = (self, output) {
            engine.dead_letter_result(Millis(now), partition, *epoch, letter.record.offset, Ok(()));
        }
    }

    /// What becomes of an output on its way to the checker: none, one, or two.
    pub(crate) fn output(self, output: Output, model: &Model) -> Vec<Output> {
        match (self, output) {
            (Self::RevokeInSilence, Output::Revoked { .. }) => Vec::new(),
            (Self::DeliverTwice, Output::Deliver { session, sequence, batches }) => {
                let again = Output::Deliver { session, sequence: sequence + 1, batches: batches.clone() };
                vec![Output::Deliver { session, sequence, batches }, again]
            }
            (_, Output::Commit { partition, epoch, mut offset, mut metadata }) => {
                let part = model.parts.get(&partition);
                let highest = |wanted: fn(&State) -> bool| {
                    let slots = part.into_iter().flat_map(|p| &p.slots);
                    slots.filter(|(_, s)| wanted(&s.state)).map(|(o, _)| o + 1).max()
                };
                let lied = match self {
                    Self::CommitOnDelivery => highest(|s| !matches!(s, State::Idle { .. })),
                    Self::CommitHighestAcked => highest(|s| *s == State::Done),
                    Self::StopAtAHole => part.and_then(|p| {
                        let first = *p.slots.keys().next()?;
                        let hole = (first..p.next).find(|o| !p.slots.contains_key(o))?;
                        Some(hole.min(offset.0))
                    }),
                    _ => None,
                };
                offset = lied.map_or(offset, NextOffset);
                let is_long = metadata.encode_utf16().count() > model.policy.metadata_units_max / 2;
                if self == Self::CommitWithoutMetadata || (self == Self::StripWhatDoesNotFit && is_long) {
                    metadata.clear();
                }
                vec![Output::Commit { partition, epoch, offset, metadata }]
            }
            (_, output) => vec![output],
        }
    }
}
