//! Offsets as ranges: a thousand acks in a few bytes.

use sluice_proto::v1::OffsetRange;

/// Folds offsets, ascending and distinct, into ranges. `bridge(a, b)` says whether the offsets between two neighbours `a` and
/// `b` may be covered although they are not among them; offsets that follow each other need no bridge.
pub(crate) fn encode(offsets: &[i64], bridge: impl Fn(i64, i64) -> bool) -> Vec<OffsetRange> {
    debug_assert!(offsets.is_sorted_by(|a, b| a < b), "offsets ascend");
    let mut ranges = Vec::new();
    let mut rest = offsets.iter().copied();
    let Some(mut first) = rest.next() else { return ranges };
    let mut last = first;
    for offset in rest {
        if offset - last > 1 && !bridge(last, offset) {
            ranges.push(range(first, last));
            first = offset;
        }
        last = offset;
    }
    ranges.push(range(first, last));
    ranges
}

fn range(first: i64, last: i64) -> OffsetRange {
    OffsetRange { first, last: (last != first).then_some(last) }
}

/// First and last offset of a range, both included; none where it is reversed.
pub(crate) fn bounds(range: &OffsetRange) -> Option<(i64, i64)> {
    let last = range.last.unwrap_or(range.first);
    (range.first <= last).then_some((range.first, last))
}

/// Those of the offsets, ascending, that lie within a range. Costs two searches, however wide the range is.
pub(crate) fn within<'a>(offsets: &'a [i64], range: &OffsetRange) -> &'a [i64] {
    let Some((first, last)) = bounds(range) else { return &[] };
    let start = offsets.partition_point(|offset| *offset < first);
    let end = offsets.partition_point(|offset| *offset <= last);
    &offsets[start..end]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::backoff::random_u64;

    fn covered(ranges: &[OffsetRange], offset: i64) -> bool {
        ranges.iter().any(|range| !within(&[offset], range).is_empty())
    }

    #[test]
    fn neighbours_are_one_range_and_holes_split() {
        let ranges = encode(&[1, 2, 3, 7, 9], |_, _| false);
        let expected = [(1, Some(3)), (7, None), (9, None)].map(|(first, last)| OffsetRange { first, last });
        assert_eq!(ranges, expected);
    }

    #[test]
    fn a_hole_that_is_nobodys_of_ours_is_bridged() {
        assert_eq!(encode(&[1, 5, 9], |_, _| true), [OffsetRange { first: 1, last: Some(9) }]);
        assert!(encode(&[], |_, _| true).is_empty());
    }

    #[test]
    fn a_reversed_or_endless_range_is_harmless() {
        assert!(within(&[1, 2, 3], &OffsetRange { first: 3, last: Some(1) }).is_empty());
        assert_eq!(within(&[1, 2, 3], &OffsetRange { first: 2, last: Some(i64::MAX) }), [2, 3]);
    }

    /// Random sets of what is settled and what is still held: every settled offset is covered, no held one ever is.
    #[test]
    fn ranges_cover_what_is_settled_and_nothing_that_is_held() {
        for _ in 0..500 {
            let mut state = random_u64();
            let seed = state;
            let mut below = |limit: u64| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) % limit
            };
            let (mut settled, mut held) = (BTreeSet::new(), BTreeSet::new());
            for offset in 0..(1 + below(200)) as i64 {
                match below(4) {
                    0 => drop(held.insert(offset)),
                    1 | 2 => drop(settled.insert(offset)),
                    _ => {}
                }
            }
            let offsets: Vec<i64> = settled.iter().copied().collect();
            let ranges = encode(&offsets, |a, b| held.range(a..b).next().is_none());
            assert!(settled.iter().all(|offset| covered(&ranges, *offset)), "seed {seed}");
            assert!(!held.iter().any(|offset| covered(&ranges, *offset)), "seed {seed}");
            // As few as can be: between two ranges there is something held.
            for pair in ranges.windows(2) {
                let end = pair[0].last.unwrap_or(pair[0].first);
                assert!(held.range(end..pair[1].first).next().is_some(), "seed {seed}");
            }
        }
    }
}
