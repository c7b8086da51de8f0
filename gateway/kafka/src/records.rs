//! Records out of librdkafka's buffers: one copy of keys, values and header values, into shared arenas.

use std::sync::Arc;

use bytes::Bytes;
use sluice_core::{Header, Record};

use crate::ffi::MessageView;

/// Small records share an arena of at most this. An arena lives as long as its last record, so a larger one would let
/// one unsettled record pin megabytes.
const ARENA_BYTES_MAX: usize = 64 << 10;
/// A record from this size on has an allocation of its own.
const OWN_BYTES_MIN: usize = 16 << 10;
/// What a record costs beside its bytes.
const RECORD_OVERHEAD_BYTES: usize = 96;

/// Start and end of a part in the arena.
type Span = (usize, usize);

/// Where the parts of a record stand in the arena.
struct Placed {
    offset: i64,
    timestamp_ms: i64,
    key: Option<Span>,
    value: Option<Span>,
    headers: Vec<(Arc<str>, Option<Span>)>,
}

/// Copies records of one partition.
#[derive(Default)]
pub(crate) struct Copier {
    arena: Vec<u8>,
    placed: Vec<Placed>,
    records: Vec<Record>,
    bytes: usize,
}

impl Copier {
    pub(crate) fn push(&mut self, message: MessageView<'_>) {
        let (key, value) = (message.key(), message.value());
        let headers = message.headers();
        let header_bytes: usize = headers.iter().map(|(_, value)| value.map_or(0, <[u8]>::len)).sum();
        let size = key.map_or(0, <[u8]>::len) + value.map_or(0, <[u8]>::len) + header_bytes;
        if size >= OWN_BYTES_MIN || self.arena.len() + size > ARENA_BYTES_MAX {
            self.seal();
        }
        if self.arena.capacity() == 0 {
            self.arena.reserve_exact(if size >= OWN_BYTES_MIN { size } else { ARENA_BYTES_MAX });
        }
        let placed = Placed {
            offset: message.offset(),
            timestamp_ms: message.timestamp_ms(),
            key: key.map(|key| self.place(key)),
            value: value.map(|value| self.place(value)),
            headers: headers
                .into_iter()
                .map(|(name, value)| (Arc::from(name), value.map(|value| self.place(value))))
                .collect(),
        };
        self.placed.push(placed);
        if size >= OWN_BYTES_MIN {
            self.seal();
        }
    }

    fn place(&mut self, part: &[u8]) -> Span {
        let start = self.arena.len();
        self.arena.extend_from_slice(part);
        (start, self.arena.len())
    }

    /// Turns the arena into records.
    fn seal(&mut self) {
        if self.placed.is_empty() {
            return;
        }
        // Given back what is not used: the arena pins what it counts and no more.
        let mut arena = std::mem::take(&mut self.arena);
        arena.shrink_to_fit();
        let arena = Bytes::from(arena);
        let slice = |(start, end): Span| arena.slice(start..end);
        for placed in self.placed.drain(..) {
            let headers: Vec<Header> =
                placed.headers.into_iter().map(|(key, value)| Header { key, value: value.map(slice) }).collect();
            let record = Record {
                offset: placed.offset,
                timestamp_ms: placed.timestamp_ms,
                key: placed.key.map(slice),
                value: placed.value.map(slice),
                headers: if headers.is_empty() { None } else { Some(headers.into()) },
            };
            self.bytes += record.bytes() + RECORD_OVERHEAD_BYTES;
            self.records.push(record);
        }
    }

    /// The records so far, and what they count.
    pub(crate) fn finish(&mut self) -> (Vec<Record>, usize) {
        self.seal();
        (std::mem::take(&mut self.records), std::mem::take(&mut self.bytes))
    }
}
