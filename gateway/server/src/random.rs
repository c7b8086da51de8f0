//! Randomness from the operating system: session ids are capabilities, so they must not be guessed.

/// Sixty-four random bits.
pub(crate) fn number() -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).expect("the operating system has randomness");
    u64::from_le_bytes(bytes)
}

/// A session's name on the wire: 160 bits, in hexadecimal.
pub(crate) fn session_token() -> String {
    use std::fmt::Write as _;
    let mut bytes = [0_u8; 20];
    getrandom::fill(&mut bytes).expect("the operating system has randomness");
    bytes.iter().fold(String::with_capacity(40), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
