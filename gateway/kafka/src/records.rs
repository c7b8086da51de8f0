//! Records out of librdkafka's buffers: one copy of keys, values and header values, into shared arenas.

use bytes::Bytes;
use sluice_core::{Header, Record};

use crate::ffi::{MessageView, Run};

/// Small records share an arena of at most this. An arena lives as long as its last record, so a larger one would let
/// one unsettled record pin megabytes.
const ARENA_BYTES_MAX: usize = 64 << 10;
/// A record from this size on has an allocation of its own.
const OWN_BYTES_MIN: usize = 16 << 10;
/// What a record costs beside its bytes.
const RECORD_OVERHEAD_BYTES: usize = 96;

/// The parts of a record, in librdkafka's memory.
struct Parts<'a> {
    offset: i64,
    timestamp_ms: i64,
    key: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
    headers: Vec<(&'a str, Option<&'a [u8]>)>,
}

/// Records that will share an arena. Its size is known before it is made: it pins what it counts and no more.
struct Copier<'a> {
    waiting: Vec<Parts<'a>>,
    size: usize,
    records: Vec<Record>,
    bytes: usize,
}

/// Copies records of one partition; also tells what they count.
pub(crate) fn copy(run: Run<'_>) -> (Vec<Record>, usize) {
    let messages = run.iter();
    let mut copier = Copier { waiting: Vec::new(), size: 0, records: Vec::with_capacity(messages.len()), bytes: 0 };
    for message in messages {
        copier.push(Parts::of(message));
    }
    copier.seal();
    (copier.records, copier.bytes)
}

// === impl Parts ===

impl<'a> Parts<'a> {
    fn of(message: MessageView<'a>) -> Self {
        Self {
            offset: message.offset(),
            timestamp_ms: message.timestamp_ms(),
            key: message.key(),
            value: message.value(),
            headers: message.headers(),
        }
    }

    /// In the order in which they stand in the arena.
    fn bytes(&self) -> impl Iterator<Item = &'a [u8]> {
        self.key.into_iter().chain(self.value).chain(self.headers.iter().filter_map(|(_, value)| *value))
    }

    fn size(&self) -> usize {
        self.bytes().map(<[u8]>::len).sum()
    }

    /// Takes the record's bytes off the front of the arena.
    fn into_record(self, arena: &mut Bytes) -> Record {
        let mut take = |part: &[u8]| arena.split_to(part.len());
        let key = self.key.map(&mut take);
        let value = self.value.map(&mut take);
        let header = |(name, value): (&str, Option<&[u8]>)| Header { key: name.into(), value: value.map(&mut take) };
        let headers = if self.headers.is_empty() { None } else { Some(self.headers.into_iter().map(header).collect()) };
        Record { offset: self.offset, timestamp_ms: self.timestamp_ms, key, value, headers }
    }
}

// === impl Copier ===

impl<'a> Copier<'a> {
    fn push(&mut self, parts: Parts<'a>) {
        let size = parts.size();
        if size >= OWN_BYTES_MIN || self.size + size > ARENA_BYTES_MAX {
            self.seal();
        }
        self.size += size;
        self.waiting.push(parts);
        if size >= OWN_BYTES_MIN {
            self.seal();
        }
    }

    /// Makes the arena, and records that share it.
    fn seal(&mut self) {
        let mut arena = Vec::with_capacity(std::mem::take(&mut self.size));
        for part in self.waiting.iter().flat_map(Parts::bytes) {
            arena.extend_from_slice(part);
        }
        let mut arena = Bytes::from(arena);
        for parts in self.waiting.drain(..) {
            let record = parts.into_record(&mut arena);
            self.bytes += record.bytes() + RECORD_OVERHEAD_BYTES;
            self.records.push(record);
        }
    }
}
