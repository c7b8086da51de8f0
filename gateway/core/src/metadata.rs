//! What is done above the frontier, and attempts, as the text that stands in a commit.
//!
//! A version character, then 15 bits in each UTF-16 unit (base 32768, a block of the basic plane without surrogates):
//! length, checksum, hash of the topic's id, base offset, attempts, and what is done from the base to a written end,
//! as alternating runs or as a bitmap. What does not fit is cut from the end; a string of someone else is no error.

#[cfg(test)]
mod tests;
mod text;

use crate::types::OffsetRange;

/// Kafka drops the connection of a commit above 32,767 bytes, and a unit costs three.
const UNITS_LIMIT: usize = 10_000;
/// More offsets than any commit can say something of.
const ATTEMPTS_MAX: u64 = 1 << 20;

/// Between a text of so many units and the units that it needs at most to be written again.
pub(crate) const UNITS_SPARE: usize = (3 + 1 + 2 * LEB_BYTES_MAX) * 8 / 15 + 1;

const KIND_RUNS: u8 = 0;
const KIND_BITMAP: u8 = 1;

/// Counted failures of a record that is not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attempts {
    pub(crate) offset: i64,
    pub(crate) count: u32,
    /// Somebody was told, or waits to be told, that they are stored.
    pub(crate) durable: bool,
}

impl Attempts {
    fn value(&self) -> u64 {
        u64::from(self.count) << 1 | u64::from(self.durable)
    }
}

/// What a commit says beside its offset.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Saved {
    /// Hash of the topic's id; 0: unknown.
    pub(crate) topic_hash: u32,
    /// The offset committed with it.
    pub(crate) base: i64,
    /// Ascending, not touching one another, above `base`.
    pub(crate) done: Vec<OffsetRange>,
    /// Ascending, from `base` on.
    pub(crate) attempts: Vec<Attempts>,
}

/// The text of a commit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Encoded {
    pub(crate) text: String,
    /// UTF-16 units.
    pub(crate) units: usize,
    /// Something did not fit.
    pub(crate) truncated: bool,
}

/// The hash of the topic's id that stands in a commit's metadata; `None` when the text is not ours or damaged.
#[must_use]
pub fn metadata_topic_hash(text: &str) -> Option<u32> {
    decode(text).map(|saved| saved.topic_hash)
}

/// What the text in a commit says is done above its offset, ascending; `None` when the text is not ours or damaged.
#[must_use]
pub fn metadata_done(text: &str) -> Option<Vec<OffsetRange>> {
    decode(text).map(|saved| saved.done)
}

/// The attempts of records not done that the text in a commit holds: offset and count, ascending; `None` when the text is
/// not ours or damaged.
#[must_use]
pub fn metadata_attempts(text: &str) -> Option<Vec<(i64, u32)>> {
    decode(text).map(|saved| saved.attempts.iter().map(|one| (one.offset, one.count)).collect())
}

/// The text for `saved` in at most `units_max` UTF-16 units; empty when there is nothing to say, or no room. What does not
/// fit is cut in this order: what is done, from the highest on, but for `must`, which are some of its ranges; attempts, from
/// the highest on, but for the durable ones.
pub(crate) fn encode(saved: &Saved, must: &[OffsetRange], units_max: usize) -> Encoded {
    if saved.done.is_empty() && saved.attempts.is_empty() && saved.topic_hash == 0 {
        return Encoded::default();
    }
    let mut head = Vec::new();
    head.extend_from_slice(&saved.topic_hash.to_be_bytes());
    put(&mut head, saved.base as u64);
    let Some(room) = room_of(units_max, HEAD_BYTES_MAX) else {
        return Encoded { truncated: true, ..Encoded::default() };
    };
    let for_attempts = room.saturating_sub(cost_of(saved.base, must));
    let (attempts, attempts_kept) = encode_attempts(saved, for_attempts);
    put(&mut head, attempts_kept as u64);
    head.extend_from_slice(&attempts);
    let cut = attempts_kept < saved.attempts.len();
    let done = if cut && must.is_empty() {
        Done { kind: KIND_RUNS, bytes: Vec::new(), end: saved.base, whole: saved.done.is_empty() }
    } else {
        encode_done(saved, must, room.saturating_sub(attempts.len()))
    };
    head.push(done.kind);
    put(&mut head, (done.end - saved.base) as u64);
    head.extend_from_slice(&done.bytes);
    let (text, units) = text::write(&head);
    Encoded { text, units, truncated: !done.whole || cut }
}

/// Whether all of this fits `units_max` units in this commit and in every later one, as the frontier rises and more becomes
/// done around it: gaps only shrink and ranges only join, so it is the lengths that are taken at their largest. `attempts` are
/// the durable ones.
pub(crate) fn has_room(base: i64, must: &[OffsetRange], attempts: &[Attempts], units_max: usize) -> bool {
    const LENGTH_BYTES_MAX: usize = 5;
    const COUNT_BYTES_MAX: usize = 3;
    let Some(room) = room_of(units_max, HEAD_BYTES_MAX) else { return false };
    let (mut runs, mut end) = (0, base);
    for range in must {
        runs += len_of((range.first - end) as u64) + LENGTH_BYTES_MAX;
        end = range.last + 1;
    }
    let (mut failures, mut before) = (0, base);
    for one in attempts {
        failures += len_of((one.offset - before) as u64) + COUNT_BYTES_MAX;
        before = one.offset;
    }
    runs.min(bitmap_bytes(base, must)) + failures <= room
}

/// Whether all of this fits `units_max` units just now. `attempts` are the durable ones.
pub(crate) fn holds(base: i64, must: &[OffsetRange], attempts: &[Attempts], units_max: usize) -> bool {
    let mut before = base;
    let failures: usize = attempts
        .iter()
        .map(|one| len_of((one.offset - std::mem::replace(&mut before, one.offset)) as u64) + len_of(one.value()))
        .sum();
    room_of(units_max, HEAD_BYTES_MAX).is_some_and(|room| cost_of(base, must) + failures <= room)
}

/// Bytes for attempts and what is done, beside a head of so many bytes.
fn room_of(units_max: usize, head_bytes: usize) -> Option<usize> {
    // Attempts' count and kind and end of the runs: at most 3 + 1 + 10 bytes.
    let spare = text::HEADER_BYTES + head_bytes + 3 + 1 + LEB_BYTES_MAX;
    text::bytes_of(units_max.min(UNITS_LIMIT)).checked_sub(spare)
}

/// What these ranges cost alone.
fn cost_of(base: i64, ranges: &[OffsetRange]) -> usize {
    let mut end = base;
    let mut runs = 0;
    for range in ranges {
        runs += len_of((range.first - end) as u64) + len_of((range.last - range.first + 1) as u64);
        end = range.last + 1;
    }
    runs.min(bitmap_bytes(base, ranges))
}

fn bitmap_bytes(base: i64, ranges: &[OffsetRange]) -> usize {
    ranges.last().map_or(0, |last| ((last.last + 1).saturating_sub(base) as u64).div_ceil(8) as usize)
}

/// One thing of an ascending list in which each says how far it is from the one before.
#[derive(Debug, Clone, Copy)]
struct Entry {
    start: i64,
    /// From where the next one counts.
    end: i64,
    /// What it costs beside the distance.
    bytes: usize,
    must: bool,
}

/// The entries that fit `room`: those that must stand, and of the others the longest prefix: how many. Without room for all
/// that must stand, only a prefix.
fn choose(base: i64, entries: &[Entry], room: usize) -> (usize, bool) {
    let distance = |from: i64, entry: &Entry| len_of((entry.start - from) as u64) + entry.bytes;
    // From each place on: the first entry that must stand, and what those after it cost.
    let mut beyond = vec![None; entries.len() + 1];
    for (i, entry) in entries.iter().enumerate().rev() {
        beyond[i] = if entry.must {
            let after = beyond[i + 1].map_or(0, |(j, after): (usize, usize)| distance(entry.end, &entries[j]) + after);
            Some((i, after))
        } else {
            beyond[i + 1]
        };
    }
    let (mut prefix, mut end) = (0, base);
    let (mut best, mut best_alone) = (None, 0);
    for (k, next_must) in beyond.iter().enumerate() {
        let musts = next_must.map_or(0, |(j, after)| distance(end, &entries[j]) + after);
        if prefix + musts <= room {
            best = Some(k);
        }
        if prefix <= room {
            best_alone = k;
        } else {
            break;
        }
        if let Some(entry) = entries.get(k) {
            prefix += distance(end, entry);
            end = entry.end;
        }
    }
    best.map_or((best_alone, false), |k| (k, true))
}

fn encode_attempts(saved: &Saved, room: usize) -> (Vec<u8>, usize) {
    let entry =
        |one: &Attempts| Entry { start: one.offset, end: one.offset, bytes: len_of(one.value()), must: one.durable };
    // An entry costs two bytes at least, so what lies further cannot fit unless it must.
    let near = room / 2 + 1;
    let entries: Vec<Entry> = saved
        .attempts
        .iter()
        .enumerate()
        .filter(|(i, one)| *i < near || one.durable)
        .map(|(_, one)| entry(one))
        .collect();
    let (prefix, musts) = choose(saved.base, &entries, room);
    let (mut bytes, mut before, mut kept) = (Vec::new(), saved.base, 0);
    let listed = saved.attempts.iter().enumerate().filter(|(i, one)| *i < near || one.durable);
    for (i, (_, one)) in listed.enumerate() {
        if i < prefix || (musts && one.durable) {
            put(&mut bytes, (one.offset - before) as u64);
            put(&mut bytes, one.value());
            before = one.offset;
            kept += 1;
        }
    }
    (bytes, kept)
}

struct Done {
    kind: u8,
    bytes: Vec<u8>,
    /// What lies from here on is not said.
    end: i64,
    whole: bool,
}

fn encode_done(saved: &Saved, must: &[OffsetRange], room: usize) -> Done {
    let (runs, prefix_end, musts) = encode_runs(saved, must, room);
    let Some(last) = saved.done.last() else { return runs };
    let bits_all = (last.last + 1).saturating_sub(saved.base) as u64;
    let bits = bits_all.min(room as u64 * 8);
    let bitmap_end = saved.base + bits as i64;
    let smaller = if runs.whole {
        bits == bits_all && (bits_all.div_ceil(8) as usize) < runs.bytes.len()
    } else {
        let has_musts = must.last().is_none_or(|last| last.last < bitmap_end);
        has_musts && (!musts || bitmap_end > prefix_end)
    };
    if !smaller {
        return runs;
    }
    let mut bytes = vec![0u8; bits.div_ceil(8) as usize];
    for range in saved.done.iter().take_while(|r| r.first < bitmap_end) {
        for offset in range.first..=range.last.min(bitmap_end - 1) {
            let bit = (offset - saved.base) as usize;
            bytes[bit / 8] |= 1 << (bit % 8);
        }
    }
    Done { kind: KIND_BITMAP, bytes, end: bitmap_end, whole: bits == bits_all }
}

/// (not done, done) runs: the longest prefix that fits beside what must stand. Gives the end of the prefix, and whether what
/// must stand does.
fn encode_runs(saved: &Saved, must: &[OffsetRange], room: usize) -> (Done, i64, bool) {
    let mut musts = must.iter().peekable();
    let near = room / 2 + 1;
    let mut entries = Vec::new();
    for (i, range) in saved.done.iter().enumerate() {
        while musts.peek().is_some_and(|m| m.last < range.first) {
            musts.next();
        }
        let must = musts.peek().is_some_and(|m| m.first <= range.last);
        if i < near || must {
            let bytes = len_of((range.last - range.first + 1) as u64);
            entries.push(Entry { start: range.first, end: range.last + 1, bytes, must });
        } else if musts.peek().is_none() {
            break;
        }
    }
    let (prefix, has_musts) = choose(saved.base, &entries, room);
    let (mut bytes, mut end, mut kept) = (Vec::new(), saved.base, 0);
    let prefix_end = prefix.checked_sub(1).map_or(saved.base, |last| entries[last].end);
    for (i, entry) in entries.iter().enumerate() {
        if i < prefix || (has_musts && entry.must) {
            put(&mut bytes, (entry.start - end) as u64);
            put(&mut bytes, (entry.end - entry.start) as u64);
            end = entry.end;
            kept += 1;
        }
    }
    (Done { kind: KIND_RUNS, bytes, end, whole: kept == saved.done.len() }, prefix_end, has_musts)
}

/// What stands in a commit; `None`: not ours, or damaged.
pub(crate) fn decode(text: &str) -> Option<Saved> {
    let bytes = text::read(text)?;
    let (hash, rest) = bytes.split_first_chunk::<4>()?;
    let mut rest = rest;
    let base = take_offset(&mut rest)?;
    let count = take(&mut rest)?;
    if count > ATTEMPTS_MAX {
        return None;
    }
    let (mut attempts, mut offset) = (Vec::new(), base);
    for _ in 0..count {
        offset = offset.checked_add(take_offset(&mut rest)?)?;
        let value = take(&mut rest)?;
        attempts.push(Attempts { offset, count: u32::try_from(value >> 1).ok()?, durable: value & 1 == 1 });
    }
    let (kind, tail) = rest.split_first()?;
    rest = tail;
    let end = base.checked_add(take_offset(&mut rest)?)?;
    let done = match *kind {
        KIND_RUNS => decode_runs(rest, base, end)?,
        KIND_BITMAP => decode_bitmap(rest, base, end)?,
        _ => return None,
    };
    Some(Saved { topic_hash: u32::from_be_bytes(*hash), base, done, attempts })
}

fn decode_runs(mut rest: &[u8], base: i64, end: i64) -> Option<Vec<OffsetRange>> {
    let (mut done, mut at) = (Vec::new(), base);
    while !rest.is_empty() {
        let first = at.checked_add(take_offset(&mut rest)?)?;
        at = first.checked_add(take_offset(&mut rest)?)?;
        if at <= first || at > end {
            return None;
        }
        done.push(OffsetRange { first, last: at - 1 });
    }
    (at == end).then_some(done)
}

fn decode_bitmap(rest: &[u8], base: i64, end: i64) -> Option<Vec<OffsetRange>> {
    let bits = (end - base) as u64;
    if bits.div_ceil(8) != rest.len() as u64 {
        return None;
    }
    let mut done: Vec<OffsetRange> = Vec::new();
    for bit in (0..bits as usize).filter(|bit| rest[bit / 8] >> (bit % 8) & 1 == 1) {
        let offset = base + bit as i64;
        match done.last_mut() {
            Some(last) if last.last + 1 == offset => last.last = offset,
            _ => done.push(OffsetRange::one(offset)),
        }
    }
    Some(done)
}

/// Bytes of the largest number in LEB128.
const LEB_BYTES_MAX: usize = 10;
/// The topic's hash and the base. Always counted as long as they can be: as the frontier rises they need no more.
const HEAD_BYTES_MAX: usize = 4 + LEB_BYTES_MAX;

fn len_of(value: u64) -> usize {
    (u64::BITS - value.leading_zeros()).div_ceil(7).max(1) as usize
}

/// LEB128.
fn put(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn take(bytes: &mut &[u8]) -> Option<u64> {
    let (mut value, mut shift) = (0u64, 0u32);
    loop {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return None;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
        shift += 7;
        if shift > 63 {
            return None;
        }
    }
}

fn take_offset(bytes: &mut &[u8]) -> Option<i64> {
    i64::try_from(take(bytes)?).ok()
}
