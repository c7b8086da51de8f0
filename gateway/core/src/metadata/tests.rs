use proptest::prelude::*;

use super::*;

fn ranges(base: i64, runs: &[(i64, i64)]) -> Vec<OffsetRange> {
    let mut at = base;
    let of = |(undone, done): &(i64, i64)| {
        let first = at + undone;
        at = first + done;
        OffsetRange { first, last: at - 1 }
    };
    runs.iter().map(of).collect()
}

fn saved() -> impl Strategy<Value = Saved> {
    let runs = proptest::collection::vec((1..300i64, 1..300i64), 0..400);
    let dense = proptest::collection::vec((1..3i64, 1..3i64), 0..4_000);
    let attempts = proptest::collection::btree_map(0..5_000i64, (1..9u32, any::<bool>()), 0..50);
    (any::<u32>(), 0..1i64 << 40, prop_oneof![runs, dense], attempts).prop_map(|(topic_hash, base, runs, attempts)| {
        let attempts = attempts
            .into_iter()
            .map(|(offset, (count, durable))| Attempts { offset: base + offset, count, durable })
            .collect();
        Saved { topic_hash: topic_hash.max(1), base, done: ranges(base, &runs), attempts }
    })
}

fn failed(offset: i64, count: u32) -> Attempts {
    Attempts { offset, count, durable: false }
}

/// Whether every offset of `part` is in `whole`.
fn is_within(part: &[OffsetRange], whole: &[OffsetRange]) -> bool {
    part.iter().all(|p| whole.iter().any(|w| w.first <= p.first && p.last <= w.last))
}

proptest! {
    #[test]
    fn what_fits_comes_back_and_what_is_cut_is_a_prefix(saved in saved(), units_max in 0usize..4_097) {
        let encoded = encode(&saved, &[], units_max);
        prop_assert_eq!(encoded.text.encode_utf16().count(), encoded.units);
        prop_assert!(encoded.units <= units_max && encoded.text.len() < 32_767);
        if encoded.text.is_empty() {
            prop_assert!(encoded.truncated);
            return Ok(());
        }
        let back = decode(&encoded.text).unwrap();
        prop_assert_eq!((back.topic_hash, back.base), (saved.topic_hash, saved.base));
        if encoded.truncated {
            let others: Vec<Attempts> = saved.attempts.iter().filter(|a| !a.durable).copied().collect();
            let kept: Vec<Attempts> = back.attempts.iter().filter(|a| !a.durable).copied().collect();
            prop_assert!(others.starts_with(&kept));
            prop_assert!(is_within(&back.done, &saved.done));
            if let Some(last) = back.done.last() {
                let before = saved.done.iter().filter(|r| r.last < last.last).count();
                prop_assert_eq!(back.done.len(), before + 1);
            }
        } else {
            prop_assert_eq!(back, saved);
        }
    }

    #[test]
    fn what_must_stand_stands_wherever_it_is_said_to_have_room(
        saved in saved(),
        chosen in proptest::collection::vec(any::<prop::sample::Index>(), 0..40),
        units_max in 0usize..4_097,
        later in 0..20_000i64,
    ) {
        let mut must: Vec<OffsetRange> = chosen.iter().filter(|_| !saved.done.is_empty()).map(|i| *i.get(&saved.done)).collect();
        must.sort_unstable_by_key(|r| r.first);
        must.dedup();
        let durable: Vec<Attempts> = saved.attempts.iter().filter(|a| a.durable).copied().collect();
        prop_assume!(has_room(saved.base, &must, &durable, units_max));
        // The frontier rises, and what stands between two ranges becomes done.
        let base = saved.base + later;
        let mut done: Vec<OffsetRange> = Vec::new();
        for range in saved.done.iter().filter(|r| r.last >= base) {
            let range = OffsetRange { first: range.first.max(base + 1), ..*range };
            match done.last_mut() {
                Some(last) if last.last + 3 > range.first => last.last = range.last,
                _ if range.first <= range.last => done.push(range),
                _ => {}
            }
        }
        let attempts: Vec<Attempts> = saved.attempts.iter().filter(|a| a.offset >= base).copied().collect();
        let must: Vec<OffsetRange> =
            done.iter().filter(|d| must.iter().any(|m| m.first <= d.last && d.first <= m.last)).copied().collect();
        let now = Saved { base, done, attempts, ..saved };
        let back = decode(&encode(&now, &must, units_max).text).unwrap();
        prop_assert!(is_within(&must, &back.done), "{must:?} in {:?}", back.done);
        prop_assert!(is_within(&back.done, &now.done));
        let durable = |all: &[Attempts]| all.iter().filter(|a| a.durable).copied().collect::<Vec<_>>();
        prop_assert_eq!(durable(&back.attempts), durable(&now.attempts));
    }

    #[test]
    fn a_text_cut_or_changed_is_not_believed(saved in saved(), at in any::<prop::sample::Index>()) {
        let text = encode(&saved, &[], 4_096).text;
        let chars: Vec<char> = text.chars().collect();
        let at = at.index(chars.len());
        let cut: String = chars[..at].iter().collect();
        prop_assert_eq!(decode(&cut), None);
        let mut changed = chars;
        changed[at] = if changed[at] == '\u{3456}' { '\u{3457}' } else { '\u{3456}' };
        let changed: String = changed.into_iter().collect();
        prop_assert!(decode(&changed).is_none_or(|back| back == decode(&text).unwrap()));
    }

    #[test]
    fn any_text_is_read_without_a_panic(text in any::<String>(), body in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = decode(&text);
        let _ = decode(&format!("T{text}"));
        // A right checksum before nonsense.
        let _ = decode(&text::write(&body).0);
    }
}

#[test]
fn it_is_cut_at_every_length_and_longer_never_says_less() {
    let done: Vec<OffsetRange> = (0..300).map(|n| OffsetRange { first: 10 + n * 40, last: 20 + n * 40 }).collect();
    let saved = Saved { topic_hash: 1, base: 5, done, attempts: vec![failed(5, 1), failed(31, 2)] };
    let whole = encode(&saved, &[], 4_096);
    assert!(!whole.truncated);
    let (mut known, mut attempts) = (0, 0);
    for units in 0..=whole.units + 10 {
        let encoded = encode(&saved, &[], units);
        assert!(encoded.units <= units);
        let back = decode(&encoded.text).unwrap_or_default();
        let covered: i64 = back.done.iter().map(|r| r.last - r.first + 1).sum();
        assert!(covered >= known && back.attempts.len() >= attempts, "at {units} units");
        assert!(back.done.is_empty() || back.attempts.len() == 2, "attempts come first");
        (known, attempts) = (covered, back.attempts.len());
    }
    assert_eq!(known, 300 * 11);
}

#[test]
fn foreign_metadata_is_not_ours() {
    for text in ["", "T", "NO_METADATA", "bTAA", "{\"offset\":1}", "\u{0}\u{0}", "T\u{3400}\u{3400}\u{3400}"] {
        assert_eq!(decode(text), None, "{text:?}");
    }
}
