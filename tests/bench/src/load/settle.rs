//! Settlements of many leases in as few ranges as they need.

use sluice_proto::v1::settlement::Outcome;
use sluice_proto::v1::{Ack, Leases, OffsetRange, Retry, Settlement};

/// A lease by its name, but for the topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Lease {
    pub(super) partition: i32,
    pub(super) epoch: i64,
    pub(super) offset: i64,
}

/// Settles these, in any order, with one outcome.
pub(super) fn settlements(topic: &str, leases: &mut [Lease], outcome: &Outcome) -> Vec<Settlement> {
    leases.sort_unstable();
    let of_partition = leases.chunk_by(|one, other| (one.partition, one.epoch) == (other.partition, other.epoch));
    let settle = |run: &[Lease]| Settlement {
        leases: Some(Leases {
            topic: topic.to_owned(),
            partition: run[0].partition,
            epoch: run[0].epoch,
            offsets: ranges(run.iter().map(|lease| lease.offset)),
        }),
        outcome: Some(outcome.clone()),
    };
    of_partition.map(settle).collect()
}

/// Ascending offsets as ranges.
pub(super) fn ranges(offsets: impl Iterator<Item = i64>) -> Vec<OffsetRange> {
    let mut ranges: Vec<OffsetRange> = Vec::new();
    for offset in offsets {
        match ranges.last_mut() {
            Some(range) if range.last.unwrap_or(range.first) + 1 == offset => range.last = Some(offset),
            _ => ranges.push(OffsetRange { first: offset, last: None }),
        }
    }
    ranges
}

pub(super) fn ack() -> Outcome {
    Outcome::Ack(Ack {})
}

pub(super) fn retry(delay_ms: u64) -> Outcome {
    let delay = tonic_duration(delay_ms);
    Outcome::Retry(Retry { delay: Some(delay), reason: "the load says so".to_owned() })
}

fn tonic_duration(ms: u64) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(ms / 1_000).unwrap_or(i64::MAX),
        nanos: i32::try_from(ms % 1_000 * 1_000_000).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one_range() {
        let of = |partition, offset| Lease { partition, epoch: 1, offset };
        let mut leases = [of(1, 7), of(0, 3), of(0, 1), of(0, 2), of(0, 9)];
        let found = settlements("t", &mut leases, &ack());
        let ranges: Vec<_> = found
            .iter()
            .filter_map(|settlement| settlement.leases.as_ref())
            .map(|leases| (leases.partition, leases.offsets.iter().map(|r| (r.first, r.last)).collect::<Vec<_>>()))
            .collect();
        assert_eq!(ranges, [(0, vec![(1, Some(3)), (9, None)]), (1, vec![(7, None)])]);
    }
}
