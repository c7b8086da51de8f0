//! One bit for each record of a segment.

use std::ops::Range;

use super::SEGMENT_RECORDS;

const WORDS: usize = SEGMENT_RECORDS / 64;

/// See the module.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Bits([u64; WORDS]);

impl Bits {
    pub(super) fn get(&self, i: usize) -> bool {
        self.0[i / 64] >> (i % 64) & 1 == 1
    }

    pub(super) fn set(&mut self, i: usize) {
        self.0[i / 64] |= 1 << (i % 64);
    }

    pub(super) fn clear(&mut self, i: usize) {
        self.0[i / 64] &= !(1 << (i % 64));
    }

    pub(super) fn count(&self) -> usize {
        self.0.iter().map(|w| w.count_ones() as usize).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0 == [0; WORDS]
    }

    /// These places.
    pub(super) fn of(range: &Range<usize>) -> Self {
        let below = |end: usize, word: usize| match end.saturating_sub(word * 64) {
            bits @ 0..64 => (1 << bits) - 1,
            _ => u64::MAX,
        };
        Self(std::array::from_fn(|word| below(range.end, word) & !below(range.start, word)))
    }

    /// These bits, of which the first stands at place `by`.
    pub(super) fn shifted(bits: u128, by: usize) -> Self {
        let mut shifted = Self::default();
        let (word, bit) = (by / 64, by % 64);
        for (i, part) in [bits as u64, (bits >> 64) as u64].into_iter().enumerate().filter(|(_, part)| *part != 0) {
            if let Some(low) = shifted.0.get_mut(word + i) {
                *low |= part << bit;
            }
            if bit > 0
                && let Some(high) = shifted.0.get_mut(word + i + 1)
            {
                *high |= part >> (64 - bit);
            }
        }
        shifted
    }

    pub(super) fn and(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] & other.0[i]))
    }

    pub(super) fn without(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] & !other.0[i]))
    }

    pub(super) fn or(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] | other.0[i]))
    }

    /// The first bit that is set, from `from` on.
    pub(super) fn first_set(&self, from: usize) -> Option<usize> {
        self.first(from, 0)
    }

    /// The first bit that is clear, from `from` on.
    pub(super) fn first_clear(&self, from: usize) -> Option<usize> {
        self.first(from, u64::MAX)
    }

    fn first(&self, from: usize, flip: u64) -> Option<usize> {
        let mut word = from / 64;
        let mut bits = (self.0.get(word)? ^ flip) & (u64::MAX << (from % 64));
        loop {
            if bits != 0 {
                return Some(word * 64 + bits.trailing_zeros() as usize);
            }
            word += 1;
            bits = self.0.get(word)? ^ flip;
        }
    }

    /// Neighbours that are set, ascending.
    pub(super) fn ranges(self) -> impl Iterator<Item = Range<usize>> + Clone {
        let mut from = 0;
        std::iter::from_fn(move || {
            let start = self.first_set(from)?;
            from = self.first_clear(start).unwrap_or(SEGMENT_RECORDS);
            Some(start..from)
        })
    }
}
