//! Bytes as UTF-16 units of 15 bits, with a length and a checksum before them.

/// Of this format. A later one has another character.
const VERSION: char = 'T';
/// The first of 32,768 code points in a row, none a space, a surrogate or a control character: U+3400 to U+B3FF.
const FIRST: u32 = 0x3400;
const BITS: usize = 15;
/// Length and checksum.
pub(super) const HEADER_BYTES: usize = 2 + 4;

/// How many bytes, header included, go into so many units.
pub(super) fn bytes_of(units: usize) -> usize {
    units.saturating_sub(1) * BITS / 8
}

/// The text, and its UTF-16 units.
pub(super) fn write(body: &[u8]) -> (String, usize) {
    let length = u16::try_from(body.len()).expect("the units are limited far below this");
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&checksum(body).to_be_bytes());
    bytes.extend_from_slice(body);
    let units = 1 + (bytes.len() * 8).div_ceil(BITS);
    let mut text = String::with_capacity(units * 3);
    text.push(VERSION);
    let (mut pending, mut count) = (0u32, 0);
    for byte in bytes {
        pending = pending << 8 | u32::from(byte);
        count += 8;
        if count >= BITS {
            count -= BITS;
            text.push(symbol(pending >> count));
            pending &= (1 << count) - 1;
        }
    }
    if count > 0 {
        text.push(symbol(pending << (BITS - count)));
    }
    (text, units)
}

/// The body; `None` when it is not ours or damaged.
pub(super) fn read(text: &str) -> Option<Vec<u8>> {
    let rest = text.strip_prefix(VERSION)?;
    let mut bytes = Vec::with_capacity(rest.len() / 3 * BITS / 8 + 1);
    let (mut pending, mut count) = (0u32, 0);
    for c in rest.chars() {
        let value = u32::from(c).checked_sub(FIRST).filter(|v| *v < 1 << BITS)?;
        pending = pending << BITS | value;
        count += BITS;
        while count >= 8 {
            count -= 8;
            bytes.push((pending >> count) as u8);
            pending &= (1 << count) - 1;
        }
    }
    let (length, rest) = bytes.split_first_chunk::<2>()?;
    let (sum, body) = rest.split_first_chunk::<4>()?;
    let body = body.get(..usize::from(u16::from_be_bytes(*length)))?;
    let whole = 1 + ((HEADER_BYTES + body.len()) * 8).div_ceil(BITS) == 1 + rest_units(text);
    (whole && checksum(body) == u32::from_be_bytes(*sum)).then(|| body.to_vec())
}

fn rest_units(text: &str) -> usize {
    text.chars().count() - 1
}

fn symbol(value: u32) -> char {
    char::from_u32(FIRST + value).expect("the block has no surrogates")
}

/// FNV-1a: against damage, not against malice.
fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |sum, byte| (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}
