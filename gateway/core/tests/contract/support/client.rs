//! What clients write: ranges, settlements, opens, in few words.

use sluice_core::{Epoch, Leases, OffsetRange, Open, Outcome, Settlement, Settlements, TopicPartition, Window};

/// The fewest ranges that cover these offsets and whatever lies between neighbours at most `bridge` apart.
pub(crate) fn coalesce(offsets: &[i64], bridge: i64) -> Vec<OffsetRange> {
    let mut sorted = offsets.to_vec();
    sorted.sort_unstable();
    let mut ranges: Vec<OffsetRange> = Vec::new();
    for offset in sorted {
        match ranges.last_mut() {
            Some(last) if offset - last.last <= bridge => last.last = offset,
            _ => ranges.push(OffsetRange::one(offset)),
        }
    }
    ranges
}

pub(crate) fn leases(tp: &TopicPartition, epoch: Epoch, offsets: Vec<OffsetRange>) -> Leases {
    Leases { partition: tp.clone(), epoch, offsets }
}

pub(crate) fn frame(seen: u64, leases: Leases, outcome: Outcome) -> Settlements {
    Settlements { request_id: 0, durable: false, seen, settlements: vec![Settlement { leases, outcome }] }
}

pub(crate) fn retry_now() -> Outcome {
    Outcome::Retry { delay_ms: Some(0), reason: String::new() }
}

pub(crate) fn window(max_records: u32) -> Window {
    Window { max_records, max_bytes: 0 }
}

pub(crate) fn open(consumer_id: Option<&str>, max_records: u32) -> Open {
    Open { consumer_id: consumer_id.map(Into::into), window: Some(window(max_records)), ..Open::default() }
}
