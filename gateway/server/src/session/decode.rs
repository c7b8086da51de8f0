//! From the wire's messages to the engine's words.

use std::sync::Arc;

use prost_types::Duration as ProtoDuration;
use sluice_core::{
    Epoch, Leases, OffsetRange, Open, Outcome, RejectReason, Rejection, Settlement, Settlements, TopicPartition, Via,
    Window,
};
use sluice_proto::v1;

use crate::error::Error;

/// Longest text of a client that is kept: ids, reasons.
const TEXT_BYTES_MAX: usize = 1_024;
/// Most labels of a client.
const LABELS_MAX: usize = 64;

/// Reads leases; remembers the topic's name, which is nearly always the one before.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    topic: Option<Arc<str>>,
}

impl Decoder {
    pub(crate) fn settlements(
        &mut self,
        request_id: u64,
        durable: bool,
        seen: u64,
        settlements: Vec<v1::Settlement>,
    ) -> Settlements {
        let settlements = settlements.into_iter().map(|s| self.settlement(s)).collect();
        Settlements { request_id, durable, seen, settlements }
    }

    fn settlement(&mut self, settlement: v1::Settlement) -> Settlement {
        // Without leases it cannot be meant, and the client hears so.
        let outcome = if settlement.leases.is_some() { outcome(settlement.outcome) } else { Outcome::Unreadable };
        Settlement { leases: self.leases(settlement.leases.unwrap_or_default()), outcome }
    }

    /// Leases on the wire.
    pub(crate) fn leases(&mut self, leases: v1::Leases) -> Leases {
        let topic = match &self.topic {
            Some(topic) if **topic == *leases.topic => topic.clone(),
            _ => self.topic.insert(leases.topic.into()).clone(),
        };
        let offsets = leases
            .offsets
            .into_iter()
            .map(|range| OffsetRange { first: range.first, last: range.last.unwrap_or(range.first) })
            .collect();
        Leases { partition: TopicPartition { topic, partition: leases.partition }, epoch: Epoch(leases.epoch), offsets }
    }

    /// Checks a Subscribe; its target is the caller's business.
    pub(crate) fn open(&mut self, subscribe: v1::Subscribe) -> Result<Open, Error> {
        if subscribe.consumer_id.len() > TEXT_BYTES_MAX {
            return Err(invalid("subscribe.consumer_id", format!("is longer than {TEXT_BYTES_MAX} bytes")));
        }
        let labels_bytes: usize = subscribe.labels.iter().map(|(key, value)| key.len() + value.len()).sum();
        if subscribe.labels.len() > LABELS_MAX || labels_bytes > 8 * TEXT_BYTES_MAX {
            return Err(invalid("subscribe.labels", "are more than 64, or longer than 8 KiB together"));
        }
        let ack_timeout_ms = match subscribe.ack_timeout {
            None => None,
            Some(timeout) => match duration_ms(&timeout) {
                None | Some(0) => return Err(invalid("subscribe.ack_timeout", "is not a positive duration")),
                ms => ms,
            },
        };
        let max_frame_bytes = u32::try_from(subscribe.max_frame_bytes)
            .map_err(|_| invalid("subscribe.max_frame_bytes", "is negative"))?;
        Ok(Open {
            consumer_id: (!subscribe.consumer_id.is_empty()).then_some(subscribe.consumer_id),
            window: subscribe.flow.map(window).transpose()?,
            ack_timeout_ms,
            max_frame_bytes,
            report_commits: subscribe.report_commits,
            holding: subscribe.holding.into_iter().map(|leases| self.leases(leases)).collect(),
            seen: subscribe.seen,
            via: Via::Nobody,
        })
    }
}

/// A window; negative numbers are a bug in the client.
pub(crate) fn window(flow: v1::Flow) -> Result<Window, Error> {
    let max_records = u32::try_from(flow.max_records).map_err(|_| invalid("flow.max_records", "is negative"))?;
    let max_bytes = u64::try_from(flow.max_bytes).map_err(|_| invalid("flow.max_bytes", "is negative"))?;
    Ok(Window { max_records, max_bytes })
}

fn invalid(field: &'static str, problem: impl Into<String>) -> Error {
    Error::Invalid { field, problem: problem.into() }
}

/// What cannot be read is `Unreadable`: the engine answers INVALID, and nothing is ever acked by accident.
fn outcome(outcome: Option<v1::settlement::Outcome>) -> Outcome {
    use v1::settlement::Outcome as Wire;
    match outcome {
        None => Outcome::Unreadable,
        Some(Wire::Ack(v1::Ack {})) => Outcome::Ack,
        Some(Wire::Release(v1::Release {})) => Outcome::Release,
        Some(Wire::DeadLetter(dead_letter)) => Outcome::DeadLetter { reason: short(dead_letter.reason) },
        Some(Wire::Retry(retry)) => match optional_ms(retry.delay) {
            Ok(delay_ms) => Outcome::Retry { delay_ms, reason: short(retry.reason) },
            Err(Unreadable) => Outcome::Unreadable,
        },
        Some(Wire::Extend(extend)) => match optional_ms(extend.ack_timeout) {
            Ok(ack_timeout_ms) => Outcome::Extend { ack_timeout_ms },
            Err(Unreadable) => Outcome::Unreadable,
        },
    }
}

struct Unreadable;

fn optional_ms(duration: Option<ProtoDuration>) -> Result<Option<u64>, Unreadable> {
    duration.map(|duration| duration_ms(&duration).ok_or(Unreadable)).transpose()
}

/// Milliseconds, rounded up so that "a little" is not "now". `None`: negative or malformed.
fn duration_ms(duration: &ProtoDuration) -> Option<u64> {
    let seconds = u64::try_from(duration.seconds).ok()?;
    let nanos = u64::try_from(duration.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    Some(seconds.saturating_mul(1_000).saturating_add(nanos.div_ceil(1_000_000)))
}

/// A reason, cut at a character's border.
fn short(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        let end = (0..=TEXT_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
        text.truncate(end);
    }
    text
}

/// The answer to settlements of a session that this node does not know: nothing is held.
pub(crate) fn all_not_held(settlements: Settlements) -> Vec<Rejection> {
    settlements
        .settlements
        .into_iter()
        .map(|settlement| {
            let unreadable = settlement.outcome == Outcome::Unreadable;
            let reason = if unreadable { RejectReason::Invalid } else { RejectReason::NotHeld };
            Rejection { leases: settlement.leases, reason }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retry(seconds: i64, nanos: i32) -> Outcome {
        let delay = Some(ProtoDuration { seconds, nanos });
        outcome(Some(v1::settlement::Outcome::Retry(v1::Retry { delay, reason: String::new() })))
    }

    #[test]
    fn an_unset_outcome_is_never_an_ack() {
        assert_eq!(outcome(None), Outcome::Unreadable);
    }

    #[test]
    fn a_settlement_without_leases_is_unreadable() {
        let ack = Some(v1::settlement::Outcome::Ack(v1::Ack {}));
        let settlement = v1::Settlement { leases: None, outcome: ack };
        assert_eq!(Decoder::default().settlement(settlement).outcome, Outcome::Unreadable);
    }

    #[test]
    fn durations_are_read_or_unreadable() {
        assert_eq!(retry(0, 0), Outcome::Retry { delay_ms: Some(0), reason: String::new() });
        assert_eq!(retry(1, 1), Outcome::Retry { delay_ms: Some(1_001), reason: String::new() });
        assert_eq!(retry(i64::MAX, 0), Outcome::Retry { delay_ms: Some(u64::MAX), reason: String::new() });
        assert_eq!(retry(-1, 0), Outcome::Unreadable);
        assert_eq!(retry(0, -1), Outcome::Unreadable);
        assert_eq!(retry(0, i32::MAX), Outcome::Unreadable);
    }

    #[test]
    fn a_range_without_last_is_one_offset() {
        let leases = v1::Leases {
            topic: "t".into(),
            partition: 1,
            epoch: 2,
            offsets: vec![v1::OffsetRange { first: 5, last: None }, v1::OffsetRange { first: 9, last: Some(7) }],
        };
        let read = Decoder::default().leases(leases);
        assert_eq!(read.offsets, [OffsetRange::one(5), OffsetRange { first: 9, last: 7 }]);
    }

    #[test]
    fn negative_windows_name_the_field() {
        let error = window(v1::Flow { max_records: -1, max_bytes: 0 }).unwrap_err();
        assert!(matches!(error, Error::Invalid { field: "flow.max_records", .. }));
        let error = window(v1::Flow { max_records: 1, max_bytes: -5 }).unwrap_err();
        assert!(matches!(error, Error::Invalid { field: "flow.max_bytes", .. }));
    }

    #[test]
    fn a_subscribe_is_checked() {
        let bad = v1::Subscribe { ack_timeout: Some(ProtoDuration { seconds: -1, nanos: 0 }), ..Default::default() };
        assert!(Decoder::default().open(bad).is_err());
        let bad = v1::Subscribe { max_frame_bytes: -1, ..Default::default() };
        assert!(Decoder::default().open(bad).is_err());
        let open = Decoder::default().open(v1::Subscribe::default()).unwrap();
        assert_eq!(open, Open::default());
    }

    #[test]
    fn long_reasons_are_cut_at_a_character() {
        assert_eq!(short("ä".repeat(TEXT_BYTES_MAX)).len(), TEXT_BYTES_MAX);
        assert_eq!(short(format!("x{}", "ä".repeat(TEXT_BYTES_MAX))).len(), TEXT_BYTES_MAX - 1);
    }
}
