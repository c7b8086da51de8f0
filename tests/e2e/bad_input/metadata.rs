//! What others left beside a committed offset.

use std::collections::BTreeSet;

use sluice_tests::wire::{Wire, retry};
use sluice_tests::{History, SOON, broker, eventually, unique};

use crate::{committed_to_the_end, gateway};

const RECORDS: usize = 100;
/// Where the planted commit stands.
const COMMITTED: i64 = 10;

/// A text of ours, as a gateway wrote it: with everything but a few records done.
async fn ours(topic: &str, group: &str) -> String {
    let kafka = broker();
    let gateway = gateway(group, topic, &[]);
    let mut wire = Wire::subscribe(&gateway, group, 100).await;
    let records = wire.records(RECORDS).await;
    let (few, most): (Vec<_>, Vec<_>) = records.into_iter().partition(|lease| lease.offset % 7 == 3);
    wire.settle(&few, &retry());
    wire.ack(&most);
    eventually("what is done stands in a commit", SOON, async || {
        let metadata = kafka.committed(group, topic).remove(&0).map(|(_, metadata)| metadata).unwrap_or_default();
        let done = sluice_core::metadata_done(&metadata).unwrap_or_default();
        if done.iter().any(|range| range.last == 99) { Ok(metadata) } else { Err(done.len()) }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_of_another_product_is_taken_for_its_offset_and_its_metadata_ignored_and_counted() {
    let kafka = broker();
    let topic = kafka.topic("foreign", 1);
    let produced = kafka.fill(&topic, 1, RECORDS, 16);
    let ours = ours(&topic, &unique("foreign-first")).await;
    let half = ours.chars().take(ours.chars().count() / 2).collect::<String>();
    let changed: String = ours.chars().enumerate().map(|(at, char)| if at == 5 { 'x' } else { char }).collect();
    // Our own of another topic says that this one was made again: `topics` has that.
    let cases: [(&str, Vec<u8>); 8] = [
        ("a word", b"offset by hand".to_vec()),
        ("another gateway's", br#"{"v":1,"incomplete":[11,12]}"#.to_vec()),
        ("one character", b"A".to_vec()),
        ("our own, cut in half", half.into_bytes()),
        ("our own, changed in one place", changed.into_bytes()),
        ("as long as it may be", "\u{4e00}".repeat(4_096).into_bytes()),
        ("with NUL", b"a\0b\0".to_vec()),
        ("not UTF-8", vec![0xff, 0xfe, 0x80, 0x00, 0xc3]),
    ];
    for (what, metadata) in cases {
        let group = unique("foreign");
        kafka.plant_commit(&group, &topic, 0, COMMITTED, &metadata);
        let gateway = gateway(&group, &topic, &[]);
        let history = History::default();
        let mut wire = Wire::subscribe(&gateway, &group, 100).await.recorded(&history);
        let records = wire.records(RECORDS - 10).await;
        let offsets: BTreeSet<_> = records.iter().map(|lease| lease.offset).collect();
        assert_eq!(offsets, (COMMITTED..100).collect(), "{what}: everything from the committed offset on");
        assert!(records.iter().all(|lease| lease.attempts == 0), "{what}: nothing is known of attempts");
        assert_eq!(gateway.metric("sluice_metadata_ignored_total", &group), Some(1.0), "{what}: counted");
        let log = std::fs::read_to_string(gateway.log()).expect("the log");
        assert!(log.contains("the commit's metadata is not ours"), "{what}: logged");
        wire.ack(&records);
        committed_to_the_end(kafka, &group, &topic).await;
        history.check_no_loss(&produced[10..]);
        history.check_no_duplicates();
        let last = kafka.committed(&group, &topic).remove(&0).map(|(_, metadata)| metadata).unwrap_or_default();
        assert!(sluice_core::metadata_done(&last).is_some(), "{what}: and the next commit is ours again: {last:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_beyond_anything_in_the_log_or_below_its_start_is_no_reason_to_stop() {
    let kafka = broker();
    let topic = kafka.topic("absurd-offset", 1);
    kafka.fill(&topic, 1, RECORDS, 16);
    let group = unique("absurd-offset");
    kafka.plant_commit(&group, &topic, 0, i64::MAX - 1, b"");
    let gateway = gateway(&group, &topic, &[]);
    let mut wire = Wire::subscribe(&gateway, &group, 100).await;
    eventually("it is taken for a log that was cut, aloud", SOON, async || {
        match gateway.metric("sluice_log_truncated_total", &group) {
            Some(count) if count >= 1.0 => Ok(()),
            other => Err(other),
        }
    })
    .await;
    let produced = kafka.fill(&topic, 1, 10, 16);
    let records = wire.records(10).await;
    assert_eq!(records[0].offset, produced[0].offset, "what comes from then on is delivered");
    wire.ack(&records);
    committed_to_the_end(kafka, &group, &topic).await;
}
