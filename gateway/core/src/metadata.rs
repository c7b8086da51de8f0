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

const KIND_RUNS: u8 = 0;
const KIND_BITMAP: u8 = 1;

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
    pub(crate) attempts: Vec<(i64, u32)>,
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

/// The text for `saved` in at most `units_max` UTF-16 units; empty when there is nothing to say, or no room.
pub(crate) fn encode(saved: &Saved, units_max: usize) -> Encoded {
    if saved.done.is_empty() && saved.attempts.is_empty() && saved.topic_hash == 0 {
        return Encoded::default();
    }
    let room = text::bytes_of(units_max.min(UNITS_LIMIT));
    let mut head = Vec::new();
    head.extend_from_slice(&saved.topic_hash.to_be_bytes());
    put(&mut head, saved.base as u64);
    // Attempts' count and kind and end of the runs: at most 3 + 1 + 10 bytes.
    let spare = text::HEADER_BYTES + head.len() + 14;
    let Some(room) = room.checked_sub(spare) else {
        return Encoded { truncated: true, ..Encoded::default() };
    };
    let (attempts, attempts_kept) = encode_attempts(saved, room);
    put(&mut head, attempts_kept as u64);
    head.extend_from_slice(&attempts);
    let cut = attempts_kept < saved.attempts.len();
    let done = encode_done(saved, if cut { 0 } else { room - attempts.len() });
    head.push(done.kind);
    put(&mut head, (done.end - saved.base) as u64);
    head.extend_from_slice(&done.bytes);
    let (text, units) = text::write(&head);
    Encoded { text, units, truncated: !done.whole || cut }
}

fn encode_attempts(saved: &Saved, room: usize) -> (Vec<u8>, usize) {
    let (mut bytes, mut before, mut kept) = (Vec::new(), saved.base, 0);
    for (offset, attempts) in &saved.attempts {
        let len = bytes.len();
        put(&mut bytes, (offset - before) as u64);
        put(&mut bytes, u64::from(*attempts));
        if bytes.len() > room {
            bytes.truncate(len);
            break;
        }
        before = *offset;
        kept += 1;
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

fn encode_done(saved: &Saved, room: usize) -> Done {
    let runs = encode_runs(saved, room);
    let Some(last) = saved.done.last() else { return runs };
    let bits_all = (last.last + 1).saturating_sub(saved.base) as u64;
    let bits = bits_all.min(room as u64 * 8);
    let bitmap_end = saved.base + bits as i64;
    let smaller = if runs.whole {
        bits == bits_all && (bits_all.div_ceil(8) as usize) < runs.bytes.len()
    } else {
        bitmap_end > runs.end
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

/// The longest prefix of (not done, done) runs that fits.
fn encode_runs(saved: &Saved, room: usize) -> Done {
    let (mut bytes, mut end) = (Vec::new(), saved.base);
    for range in &saved.done {
        let len = bytes.len();
        put(&mut bytes, (range.first - end) as u64);
        put(&mut bytes, (range.last - range.first + 1) as u64);
        if bytes.len() > room {
            bytes.truncate(len);
            return Done { kind: KIND_RUNS, bytes, end, whole: false };
        }
        end = range.last + 1;
    }
    Done { kind: KIND_RUNS, bytes, end, whole: true }
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
        attempts.push((offset, u32::try_from(take(&mut rest)?).ok()?));
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
