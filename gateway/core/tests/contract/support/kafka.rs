//! A fake Kafka: logs with holes, and what the group has committed.

use std::collections::BTreeMap;

use bytes::Bytes;
use sluice_core::{Record, TopicPartition};

use crate::support::model::Snapshot;

/// A partition's log: what is fetched from it, ascending, and the offset after all of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log {
    pub(crate) records: Vec<Record>,
    pub(crate) end: i64,
}

#[derive(Debug, Default)]
pub(crate) struct Kafka {
    pub(crate) logs: BTreeMap<TopicPartition, Log>,
    /// What `__consumer_offsets` holds, with what the model knows it to mean.
    pub(crate) stored: BTreeMap<TopicPartition, Snapshot>,
    /// Every commit that Kafka ever took, in its order.
    pub(crate) history: Vec<(TopicPartition, i64)>,
    /// The longest metadata that it ever took, in UTF-16 units.
    pub(crate) units_taken: usize,
    /// Whether new records have keys.
    pub(crate) keyed: bool,
}

/// A few keys, one of them hot; the empty one is a key, a missing one is not.
pub(crate) fn key(offset: i64) -> Option<Bytes> {
    let key = match offset.wrapping_mul(2_654_435_761) / 7 % 16 {
        0..=7 => "hot",
        8..=10 => "warm",
        11 => "cold",
        12 => "",
        _ => return None,
    };
    Some(Bytes::from_static(key.as_bytes()))
}

/// A record whose bytes tell its place, so that a mix-up shows.
pub(crate) fn record(tp: &TopicPartition, offset: i64, padding: usize) -> Record {
    let mut value = format!("{tp}@{offset}").into_bytes();
    value.resize(value.len() + padding, b'.');
    Record { offset, timestamp_ms: offset, key: None, value: Some(Bytes::from(value)), headers: None }
}

impl Kafka {
    /// `gaps`: for each new record, how many offsets before it have none (compacted, or transaction markers).
    pub(crate) fn produce(&mut self, tp: &TopicPartition, gaps: &[u8], padding: usize) {
        let log = self.logs.entry(tp.clone()).or_default();
        for gap in gaps {
            let offset = log.end + i64::from(*gap);
            let key = self.keyed.then(|| key(offset)).flatten();
            log.records.push(Record { key, ..record(tp, offset, padding) });
            log.end = offset + 1;
        }
    }

    /// Control records at the log's end: offsets without records.
    pub(crate) fn produce_markers(&mut self, tp: &TopicPartition, count: u8) {
        self.logs.entry(tp.clone()).or_default().end += i64::from(count);
    }

    pub(crate) fn end(&self, tp: &TopicPartition) -> i64 {
        self.logs.get(tp).map_or(0, |l| l.end)
    }

    /// At most `max` records from an offset on.
    pub(crate) fn fetch(&self, tp: &TopicPartition, from: i64, max: usize) -> Vec<Record> {
        let records = self.logs.get(tp).map(|l| l.records.as_slice()).unwrap_or_default();
        let at = records.partition_point(|r| r.offset < from);
        records[at..].iter().take(max).cloned().collect()
    }

    /// The fetch position at `from`: past holes, up to the next record or the log's end.
    pub(crate) fn position(&self, tp: &TopicPartition, from: i64) -> i64 {
        self.fetch(tp, from, 1).first().map_or_else(|| self.end(tp).max(from), |r| r.offset)
    }

    pub(crate) fn store(&mut self, tp: &TopicPartition, snapshot: Snapshot) {
        self.units_taken = self.units_taken.max(snapshot.metadata.encode_utf16().count());
        self.history.push((tp.clone(), snapshot.offset));
        self.stored.insert(tp.clone(), snapshot);
    }
}
