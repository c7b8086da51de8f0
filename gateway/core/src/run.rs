//! Records of one partition that came together: one arena with their bytes, one table with an entry a record. What goes
//! from hand to hand is a range of a run, so most work is done once a range and not once a record.

#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::types::{Header, Record};

/// Small records share an arena of at most this. A run lives as long as its last record, so a larger one would let one
/// unsettled record pin megabytes.
pub(crate) const RUN_BYTES_MAX: usize = 64 << 10;
/// A record from this size on has a run of its own.
pub(crate) const OWN_BYTES_MIN: usize = 16 << 10;
/// What a record costs beside its bytes.
pub(crate) const ENTRY_BYTES: usize = size_of::<Entry>();

/// See the module. Offsets ascend.
pub struct Run {
    entries: Box<[Entry]>,
    /// Of each record one after another: key, value, values of headers.
    arena: Box<[u8]>,
    headers: Box<[HeaderEntry]>,
    /// Names of headers, one after another.
    names: Box<str>,
    /// Of its largest record.
    bytes_most: usize,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    offset: i64,
    timestamp_ms: i64,
    /// Where its bytes begin in the arena.
    start: u32,
    key: Length,
    value: Length,
    /// Headers of the run up to this record's last.
    headers_end: u32,
}

#[derive(Debug, Clone, Copy)]
struct HeaderEntry {
    name_end: u32,
    value: Length,
}

/// Of bytes that may be null: 0, or their number and one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Length(u32);

/// Puts a run together, record by record.
#[derive(Debug)]
pub struct RunBuilder {
    entries: Vec<Entry>,
    arena: Vec<u8>,
    headers: Vec<HeaderEntry>,
    names: String,
    /// Of the largest key and value together.
    bytes_most: usize,
}

/// A record of a run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RecordRef<'a> {
    /// Its offset in the partition.
    pub offset: i64,
    /// Milliseconds since 1970 as Kafka has it; -1 when the broker keeps none.
    pub timestamp_ms: i64,
    /// Absent: null.
    pub key: Option<&'a [u8]>,
    /// Absent: a tombstone.
    pub value: Option<&'a [u8]>,
    /// In Kafka's order.
    pub headers: Headers<'a>,
}

/// Headers of a record.
#[derive(Clone, Copy)]
pub struct Headers<'a> {
    entries: &'a [HeaderEntry],
    /// From the first one's name on.
    names: &'a str,
    /// Where in `names` of the run that is.
    names_start: usize,
    /// Values, one after another.
    values: &'a [u8],
}

// === impl Length ===

impl Length {
    fn of(bytes: Option<&[u8]>) -> Self {
        // No record of Kafka's is that large: the protocol counts in 31 bits.
        Self(bytes.map_or(0, |bytes| u32::try_from(bytes.len() + 1).unwrap_or(u32::MAX)))
    }

    /// 0 for null.
    fn get(self) -> usize {
        self.0.saturating_sub(1) as usize
    }

    /// Takes so many bytes off the front, unless it is null.
    fn take<'a>(self, from: &mut &'a [u8]) -> Option<&'a [u8]> {
        let (bytes, rest) = from.split_at(self.get());
        *from = rest;
        (self.0 > 0).then_some(bytes)
    }
}

// === impl Run ===

impl Run {
    /// Copies records into runs: a new one where the last is full, or where offsets do not ascend.
    pub fn of<'a>(records: impl IntoIterator<Item = &'a Record>) -> Vec<Arc<Self>> {
        let (mut runs, mut next) = (Vec::new(), RunBuilder::default());
        for record in records {
            if !next.takes(record.offset, record.bytes()) {
                runs.push(Arc::new(std::mem::take(&mut next).build()));
            }
            next.push(record.offset, record.timestamp_ms, record.key.as_deref(), record.value.as_deref());
            for header in record.headers.as_deref().unwrap_or_default() {
                next.header(&header.key, header.value.as_deref());
            }
        }
        if !next.is_empty() {
            runs.push(Arc::new(next.build()));
        }
        runs
    }

    /// How many records.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What a window and a budget count of its records: keys, values, header names and values.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.arena.len() + self.names.len()
    }

    /// What it takes of memory.
    pub(crate) fn memory(&self) -> usize {
        self.bytes() + self.len() * ENTRY_BYTES + self.headers.len() * size_of::<HeaderEntry>()
    }

    pub(crate) fn offset(&self, index: usize) -> i64 {
        self.entries[index].offset
    }

    /// Whether these follow each other without a hole.
    pub(crate) fn is_gapless(&self, range: &Range<usize>) -> bool {
        self.offset(range.end - 1) - self.offset(range.start) == (range.len() - 1) as i64
    }

    /// The first record at or above this offset.
    pub(crate) fn index_from(&self, offset: i64) -> usize {
        if self.entries.first().is_none_or(|first| first.offset >= offset) {
            return 0;
        }
        self.entries.partition_point(|entry| entry.offset < offset)
    }

    pub(crate) fn bytes_most(&self) -> usize {
        self.bytes_most
    }

    fn headers_before(&self, index: usize) -> usize {
        index.checked_sub(1).map_or(0, |before| self.entries[before].headers_end as usize)
    }

    fn names_before(&self, header: usize) -> usize {
        header.checked_sub(1).map_or(0, |before| self.headers[before].name_end as usize)
    }

    fn bytes_before(&self, index: usize) -> usize {
        let start = self.entries.get(index).map_or(self.arena.len(), |entry| entry.start as usize);
        if self.headers.is_empty() { start } else { start + self.names_before(self.headers_before(index)) }
    }

    /// `bytes` of some of its records.
    pub(crate) fn bytes_of(&self, range: &Range<usize>) -> usize {
        self.bytes_before(range.end) - self.bytes_before(range.start)
    }

    pub(crate) fn headers_of(&self, range: &Range<usize>) -> usize {
        if self.headers.is_empty() { 0 } else { self.headers_before(range.end) - self.headers_before(range.start) }
    }

    pub(crate) fn key(&self, index: usize) -> Option<&[u8]> {
        let entry = &self.entries[index];
        entry.key.take(&mut &self.arena[entry.start as usize..])
    }

    /// The record at this place.
    ///
    /// # Panics
    /// Beyond `len`.
    #[must_use]
    #[inline]
    pub fn record(&self, index: usize) -> RecordRef<'_> {
        let entry = &self.entries[index];
        let mut bytes = &self.arena[entry.start as usize..];
        let (key, value) = (entry.key.take(&mut bytes), entry.value.take(&mut bytes));
        let headers = if self.headers.is_empty() { Headers::NONE } else { self.headers_at(index, bytes) };
        RecordRef { offset: entry.offset, timestamp_ms: entry.timestamp_ms, key, value, headers }
    }

    fn headers_at<'a>(&'a self, index: usize, values: &'a [u8]) -> Headers<'a> {
        let first = self.headers_before(index);
        let names_start = self.names_before(first);
        let entries = &self.headers[first..self.entries[index].headers_end as usize];
        Headers { entries, names: &self.names[names_start..], names_start, values }
    }

    /// All records.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = RecordRef<'_>> {
        (0..self.len()).map(|index| self.record(index))
    }

    /// A copy of these records alone.
    pub(crate) fn pick(&self, indices: impl Iterator<Item = usize> + Clone) -> Self {
        let sizes = indices.clone().map(|i| self.bytes_of(&(i..i + 1)));
        let mut picked = RunBuilder::with_capacity(indices.clone().count(), sizes.sum());
        for record in indices.map(|i| self.record(i)) {
            picked.push(record.offset, record.timestamp_ms, record.key, record.value);
            record.headers.iter().for_each(|(name, value)| picked.header(name, value));
        }
        picked.build()
    }
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

// === impl RunBuilder ===

impl RunBuilder {
    /// With room for so many records of so many bytes in keys, values and values of headers.
    #[must_use]
    pub fn with_capacity(records: usize, bytes: usize) -> Self {
        Self {
            entries: Vec::with_capacity(records),
            arena: Vec::with_capacity(bytes),
            headers: Vec::new(),
            names: String::new(),
            bytes_most: 0,
        }
    }

    /// How many of the next records share a run, by the bytes of each: at least one, if there is one. And their bytes.
    pub fn share(sizes: impl IntoIterator<Item = usize>) -> (usize, usize) {
        let (mut count, mut sum) = (0, 0);
        for size in sizes {
            if count > 0 && (size >= OWN_BYTES_MIN || sum + size > RUN_BYTES_MAX) {
                break;
            }
            count += 1;
            sum += size;
            if size >= OWN_BYTES_MIN {
                break;
            }
        }
        (count, sum)
    }

    /// Whether a record of this offset and so many bytes belongs into it. The first always does.
    #[must_use]
    pub fn takes(&self, offset: i64, bytes: usize) -> bool {
        let Some(last) = self.entries.last() else { return true };
        let (sum, last_bytes) = (self.arena.len() + self.names.len(), self.arena.len() - last.start as usize);
        last.offset < offset && bytes.max(last_bytes) < OWN_BYTES_MIN && sum + bytes <= RUN_BYTES_MAX
    }

    /// Whether it has none yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The next record, which it `takes`. Its headers follow.
    #[inline]
    pub fn push(&mut self, offset: i64, timestamp_ms: i64, key: Option<&[u8]>, value: Option<&[u8]>) {
        debug_assert!(self.entries.last().is_none_or(|last| last.offset < offset), "offsets ascend");
        self.entries.push(Entry {
            offset,
            timestamp_ms,
            start: self.arena.len() as u32,
            key: Length::of(key),
            value: Length::of(value),
            headers_end: self.headers.len() as u32,
        });
        let (key, value) = (key.unwrap_or_default(), value.unwrap_or_default());
        self.arena.extend_from_slice(key);
        self.arena.extend_from_slice(value);
        self.bytes_most = self.bytes_most.max(key.len() + value.len());
    }

    /// The next header of the last record.
    pub fn header(&mut self, name: &str, value: Option<&[u8]>) {
        self.names.push_str(name);
        self.headers.push(HeaderEntry { name_end: self.names.len() as u32, value: Length::of(value) });
        self.arena.extend_from_slice(value.unwrap_or_default());
        if let Some(last) = self.entries.last_mut() {
            last.headers_end = self.headers.len() as u32;
        }
    }

    /// The run.
    #[must_use]
    pub fn build(self) -> Run {
        let mut run = Run {
            entries: self.entries.into_boxed_slice(),
            arena: self.arena.into_boxed_slice(),
            headers: self.headers.into_boxed_slice(),
            names: self.names.into_boxed_str(),
            bytes_most: self.bytes_most,
        };
        if !run.headers.is_empty() {
            run.bytes_most = (0..run.len()).map(|i| run.bytes_of(&(i..i + 1))).max().unwrap_or(0);
        }
        run
    }
}

impl Default for RunBuilder {
    fn default() -> Self {
        Self::with_capacity(0, 0)
    }
}

// === impl RecordRef ===

impl RecordRef<'_> {
    /// What a window and a budget count: key + value + header names and values.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let headers = self.headers.iter().map(|(name, value)| name.len() + value.map_or(0, <[u8]>::len));
        self.key.map_or(0, <[u8]>::len) + self.value.map_or(0, <[u8]>::len) + headers.sum::<usize>()
    }

    /// A record of its own.
    #[must_use]
    pub fn to_record(&self) -> Record {
        let header = |(name, value): (&str, Option<&[u8]>)| Header {
            key: name.into(),
            value: value.map(Bytes::copy_from_slice),
        };
        Record {
            offset: self.offset,
            timestamp_ms: self.timestamp_ms,
            key: self.key.map(Bytes::copy_from_slice),
            value: self.value.map(Bytes::copy_from_slice),
            headers: (self.headers.len() > 0).then(|| self.headers.iter().map(header).collect()),
        }
    }
}

impl fmt::Debug for RecordRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_record().fmt(f)
    }
}

impl PartialEq<RecordRef<'_>> for Record {
    fn eq(&self, other: &RecordRef<'_>) -> bool {
        *self == other.to_record()
    }
}

// === impl Headers ===

impl<'a> Headers<'a> {
    const NONE: Self = Self { entries: &[], names: "", names_start: 0, values: &[] };

    /// How many.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "nobody asks")]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Name and value of each; absent: null, not empty.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, Option<&'a [u8]>)> + use<'a> {
        let Self { entries, names, names_start, mut values } = *self;
        let mut from = 0;
        entries.iter().map(move |entry| {
            let end = entry.name_end as usize - names_start;
            let name = &names[std::mem::replace(&mut from, end)..end];
            (name, entry.value.take(&mut values))
        })
    }
}

impl PartialEq for Headers<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Headers<'_> {}
