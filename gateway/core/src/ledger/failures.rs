//! What is known of the failures of records that are not done: for the headers of a dead letter. Kept only for records
//! that have something to tell, and gone with them.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::types::Millis;

/// A client's words are cut here.
pub(crate) const REASON_BYTES_MAX: usize = 256;
/// Different words of one partition; beyond it new ones are not kept, since a client may say something else each time.
pub(crate) const REASONS_BYTES_MAX: usize = 1 << 20;

/// What is known of a record's failures.
#[derive(Debug, Clone, Default)]
pub(crate) struct Failure {
    pub(crate) first: Option<Millis>,
    pub(crate) last: Option<Millis>,
    /// The last words.
    pub(crate) reason: Option<Arc<str>>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    of: BTreeMap<i64, Failure>,
    /// Each text once, with the number of records that have it: a hundred thousand failures of one cause cost one text.
    reasons: BTreeMap<Arc<str>, u32>,
    reasons_bytes: usize,
}

/// The beginning of a client's words, at the boundary of a character; `None`: nothing was said.
pub(crate) fn cut(reason: &str) -> Option<&str> {
    let mut end = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    (end > 0).then(|| &reason[..end])
}

impl Failures {
    /// A counted failure.
    pub(crate) fn count(&mut self, now: Millis, offset: i64, reason: Option<&str>) {
        let failure = self.of.entry(offset).or_default();
        failure.first.get_or_insert(now);
        failure.last = Some(now);
        // The last words stand, also when an expiry, which says nothing, follows.
        if reason.is_some() {
            self.say(offset, reason);
        }
    }

    /// Words without a failure.
    pub(crate) fn say(&mut self, offset: i64, reason: Option<&str>) {
        let Some(reason) = reason.and_then(cut) else { return };
        let reason = self.share(reason);
        let old = std::mem::replace(&mut self.of.entry(offset).or_default().reason, reason);
        self.release(old);
    }

    pub(crate) fn get(&self, offset: i64) -> Option<&Failure> {
        self.of.get(&offset)
    }

    /// The records among these that have something to tell.
    pub(super) fn within(&self, offsets: RangeInclusive<i64>) -> impl Iterator<Item = i64> {
        self.of.range(offsets).map(|(offset, _)| *offset)
    }

    /// How many records have something to tell.
    pub(crate) fn len(&self) -> usize {
        self.of.len()
    }

    /// Bytes of words.
    pub(crate) fn reasons_bytes(&self) -> u64 {
        self.reasons_bytes as u64
    }

    /// The record is done.
    pub(crate) fn forget(&mut self, offset: i64) {
        if !self.of.is_empty()
            && let Some(failure) = self.of.remove(&offset)
        {
            self.release(failure.reason);
        }
    }

    fn share(&mut self, reason: &str) -> Option<Arc<str>> {
        if let Some((shared, count)) = self.reasons.get_key_value(reason) {
            let (shared, count) = (shared.clone(), *count + 1);
            self.reasons.insert(shared.clone(), count);
            return Some(shared);
        }
        if self.reasons_bytes + reason.len() > REASONS_BYTES_MAX {
            return None;
        }
        let shared: Arc<str> = reason.into();
        self.reasons_bytes += reason.len();
        self.reasons.insert(shared.clone(), 1);
        Some(shared)
    }

    fn release(&mut self, reason: Option<Arc<str>>) {
        let Some(reason) = reason else { return };
        let Some(count) = self.reasons.get_mut(&reason) else { return };
        *count -= 1;
        if *count == 0 {
            self.reasons.remove(&reason);
            self.reasons_bytes -= reason.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_kept_once_and_goes_with_the_last_record_that_has_it() {
        let mut failures = Failures::default();
        for offset in 0..1_000 {
            failures.count(Millis(5), offset, Some("no database"));
            failures.count(Millis(9), offset, None);
        }
        let failure = failures.get(3).unwrap();
        assert_eq!((failure.first, failure.last), (Some(Millis(5)), Some(Millis(9))));
        assert_eq!(failure.reason.as_deref(), Some("no database"));
        assert_eq!((failures.reasons.len(), failures.reasons_bytes), (1, 11));
        (0..1_000).for_each(|offset| failures.forget(offset));
        assert_eq!((failures.of.len(), failures.reasons.len(), failures.reasons_bytes), (0, 0, 0));
    }

    #[test]
    fn words_are_cut_at_a_character_and_bounded_in_sum() {
        assert_eq!(cut(""), None);
        assert_eq!(cut(&"é".repeat(200)).unwrap().len(), REASON_BYTES_MAX);
        assert_eq!(cut(&format!("x{}", "é".repeat(200))).unwrap().len(), REASON_BYTES_MAX - 1);
        let mut failures = Failures::default();
        for offset in 0..10_000 {
            failures.count(Millis(0), offset, Some(&format!("{offset:>256}")));
        }
        assert!(failures.reasons_bytes <= REASONS_BYTES_MAX);
        assert!(failures.get(0).unwrap().reason.is_some() && failures.get(9_999).unwrap().reason.is_none());
    }
}
