use super::*;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

fn bytes(most: usize) -> impl Strategy<Value = Option<Bytes>> {
    option::of(vec(any::<u8>(), 0..most).prop_map(Bytes::from))
}

fn record() -> impl Strategy<Value = (i64, Record)> {
    let header = (".{0,3}", bytes(9)).prop_map(|(key, value)| Header { key: key.as_str().into(), value });
    let headers = option::of(vec(header, 1..4).prop_map(Into::into));
    let large = prop_oneof![9 => Just(9usize), 1 => Just(40_000)];
    let value = large.prop_flat_map(|most| option::of((0..most).prop_map(|n| Bytes::from(vec![b'x'; n]))));
    let gap = prop_oneof![4 => Just(1i64), 1 => 2..9i64];
    (gap, any::<i64>(), bytes(5), value, headers).prop_map(|(gap, timestamp_ms, key, value, headers)| {
        (gap, Record { offset: 0, timestamp_ms, key, value, headers })
    })
}

fn records() -> impl Strategy<Value = Vec<Record>> {
    vec(record(), 1..40).prop_map(|records| {
        let mut next = 0;
        let place = |(gap, record)| {
            next += gap;
            Record { offset: next, ..record }
        };
        records.into_iter().map(place).collect()
    })
}

proptest! {
    #[test]
    fn a_run_gives_back_what_went_into_it(records in records(), cut in any::<(prop::sample::Index, prop::sample::Index)>()) {
        let runs = Run::of(&records);
        let back: Vec<Record> = runs.iter().flat_map(|run| run.iter().map(|record| record.to_record())).collect();
        prop_assert_eq!(&back, &records);
        let mut records = &records[..];
        for run in runs {
            let (these, rest) = records.split_at(run.len());
            records = rest;
            prop_assert!(run.len() == 1 || run.bytes() <= RUN_BYTES_MAX && run.bytes_most() < OWN_BYTES_MIN);
            prop_assert_eq!(run.bytes_most(), these.iter().map(Record::bytes).max().unwrap());
            let (a, b) = (cut.0.index(run.len() + 1), cut.1.index(run.len() + 1));
            let range = a.min(b)..a.max(b);
            let picked = &these[range.clone()];
            prop_assert_eq!(run.bytes_of(&range), picked.iter().map(Record::bytes).sum::<usize>());
            let headers = |r: &Record| r.headers.as_deref().map_or(0, <[_]>::len);
            prop_assert_eq!(run.headers_of(&range), picked.iter().map(headers).sum::<usize>());
            let odd = |r: &&Record| r.offset % 2 == 1;
            let copy = run.pick((0..run.len()).filter(|i| run.offset(*i) % 2 == 1).collect::<Vec<_>>().into_iter());
            let copy: Vec<Record> = copy.iter().map(|record| record.to_record()).collect();
            prop_assert_eq!(copy, these.iter().filter(odd).cloned().collect::<Vec<_>>());
        }
    }
}
