//! Every commit ever made, read from `__consumer_offsets`: the evidence of what a group's members wrote.

use rdkafka::message::Message as _;

use crate::kafka::client::Kafka;

/// One commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitEntry {
    /// Its place in the history.
    pub at: i64,
    /// The partition.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The next offset; `None` when the commit was removed (the topic or the group was deleted).
    pub offset: Option<i64>,
    /// What was written beside it.
    pub metadata: String,
    /// When Kafka was asked, in milliseconds.
    pub timestamp_ms: u128,
}

impl CommitEntry {
    /// Whether it says that this offset is done: below the committed one, or in what stands beside it.
    #[must_use]
    pub fn covers(&self, offset: i64) -> bool {
        let done = self.done_above();
        self.offset.is_some_and(|committed| offset < committed)
            || done.iter().any(|(first, last)| (*first..=*last).contains(&offset))
    }

    /// Ranges above the committed offset that it says are done.
    #[must_use]
    pub fn done_above(&self) -> Vec<(i64, i64)> {
        let done = sluice_core::metadata_done(&self.metadata).unwrap_or_default();
        done.into_iter().map(|range| (range.first, range.last)).collect()
    }

    /// Counted failures of a record that it holds; 0 where it says nothing of it.
    #[must_use]
    pub fn attempts(&self, offset: i64) -> u32 {
        let all = sluice_core::metadata_attempts(&self.metadata).unwrap_or_default();
        all.into_iter().find(|(of, _)| *of == offset).map_or(0, |(_, attempts)| attempts)
    }
}

impl Kafka {
    /// All commits of a group, in the order in which Kafka took them.
    #[must_use]
    pub fn commit_history(&self, group: &str) -> Vec<CommitEntry> {
        let mut history = Vec::new();
        // One partition in the harness's broker, fifty in another one.
        for partition in self.end_offsets("__consumer_offsets").into_keys() {
            self.scan("__consumer_offsets", partition, "read_uncommitted", |record| {
                let Some((its_group, topic, partition)) = record.key().and_then(decode_key) else { return };
                if its_group == group {
                    let value = record.payload().map(|value| decode_value(value).expect("a known value version"));
                    let (offset, metadata) = value.map_or((None, String::new()), |(offset, text)| (Some(offset), text));
                    let timestamp_ms =
                        record.timestamp().to_millis().and_then(|ms| u128::try_from(ms).ok()).unwrap_or(0);
                    let at = record.offset();
                    history.push(CommitEntry { at, topic, partition, offset, metadata, timestamp_ms });
                }
            });
        }
        history
    }

    /// The offsets that a group committed for one partition, in order.
    #[must_use]
    pub fn committed_history(&self, group: &str, topic: &str, partition: i32) -> Vec<i64> {
        let all = self.commit_history(group).into_iter();
        all.filter(|entry| entry.topic == topic && entry.partition == partition)
            .filter_map(|entry| entry.offset)
            .collect()
    }
}

/// (group, topic, partition) of an OffsetCommitKey of version 0 or 1; other keys are group metadata.
fn decode_key(bytes: &[u8]) -> Option<(String, String, i32)> {
    let mut reader = Reader(bytes);
    match reader.i16()? {
        0 | 1 => Some((reader.string()?, reader.string()?, reader.i32()?)),
        _ => None,
    }
}

/// (offset, metadata) of an OffsetCommitValue of version 0 to 4.
fn decode_value(bytes: &[u8]) -> Option<(i64, String)> {
    let mut reader = Reader(bytes);
    let version = reader.i16()?;
    let offset = reader.i64()?;
    if version >= 3 {
        let _leader_epoch = reader.i32()?;
    }
    let metadata = if version >= 4 { reader.compact_string()? } else { reader.string()? };
    Some((offset, metadata))
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take(&mut self, count: usize) -> Option<&[u8]> {
        let (head, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn i16(&mut self) -> Option<i16> {
        self.array().map(i16::from_be_bytes)
    }

    fn i32(&mut self) -> Option<i32> {
        self.array().map(i32::from_be_bytes)
    }

    fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_be_bytes)
    }

    fn string(&mut self) -> Option<String> {
        let length = usize::try_from(self.i16()?).ok()?;
        self.text(length)
    }

    fn compact_string(&mut self) -> Option<String> {
        let mut length = 0_usize;
        for shift in (0..35).step_by(7) {
            let byte = self.take(1)?[0];
            length |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        self.text(length.checked_sub(1)?)
    }

    fn text(&mut self, length: usize) -> Option<String> {
        String::from_utf8(self.take(length)?.to_vec()).ok()
    }
}
