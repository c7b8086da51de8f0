//! Dead letters on a real Kafka.

mod faults;
mod policy;

use sluice_tests::wire::{Wire, dead_letter, retry_now};
use sluice_tests::{Gateway, Kafka, NewRecord, SOON, Stored, broker, eventually, unique};

use crate::{committed_is, committed_to_the_end, gateway};

const OFFSET: &str = "__dlq.errors.offset";
const MESSAGE: &str = "__dlq.errors.message";
const CAUSE: &str = "sluice.dlq.cause";
const ATTEMPTS: &str = "sluice.dlq.attempts";

/// The line that names the dead-letter topic.
fn to(letters: &str) -> String {
    format!("dead_letter_topic = {letters:?}")
}

/// What stands in partition 0 of a dead-letter topic: offset of the record, cause, attempts, in the order of writing.
fn told(kafka: &Kafka, letters: &str) -> Vec<(String, String, String)> {
    let of = |letter: &Stored| {
        [OFFSET, CAUSE, ATTEMPTS].map(|name| letter.header(name).unwrap_or_default().to_owned()).into()
    };
    kafka.stored(letters, 0).iter().map(of).collect()
}

fn tells(offset: i64, cause: &str, attempts: u32) -> (String, String, String) {
    (offset.to_string(), cause.to_owned(), attempts.to_string())
}

/// Waits until the oldest record not done of partition 0 is this one, and this is why.
async fn blocked_on(gateway: &Gateway, group: &str, offset: i64, why: &str) {
    eventually(&format!("it is blocked on {why}"), SOON, async || {
        let partitions = gateway.partitions(group).await;
        let told = partitions.iter().any(|one| one.oldest_undone_offset == Some(offset) && one.blocked_on == why);
        if told { Ok(()) } else { Err(partitions) }
    })
    .await;
}

/// Waits until this many of a subscription's writes failed, and the node says that writing fails.
async fn writes_fail(gateway: &Gateway, reason: &str, least: f64) {
    eventually("writes fail", SOON, async || {
        let failed = gateway.metric("sluice_dead_letter_writes_failed_total", &format!("reason=\"{reason}\""));
        let failing = gateway.metric("sluice_dead_letters_failing", "");
        if failed >= Some(least) && failing == Some(1.0) { Ok(()) } else { Err((failed, failing)) }
    })
    .await;
}

fn now_ms() -> i64 {
    i64::try_from(sluice_tests::history::now_ms()).expect("these days it fits")
}

fn text(headers: &[(&str, &str)]) -> Vec<(String, Option<Vec<u8>>)> {
    headers.iter().map(|(name, value)| ((*name).to_owned(), Some(value.as_bytes().to_vec()))).collect()
}

/// Keys, values and headers that are easily lost on the way.
fn odd_records() -> Vec<NewRecord> {
    let none = NewRecord { partition: Some(0), ..NewRecord::default() };
    let mut headers = text(&[("trace", "2"), ("trace", "1"), ("", "no name"), ("trace", "2"), ("empty", "")]);
    headers.insert(2, ("trace".to_owned(), None));
    headers.push(("bytes".to_owned(), Some(vec![0xff, 0x00])));
    // Whoever was here before does not hide what is added.
    headers.extend(text(&[(OFFSET, "of another product")]));
    let an_hour_ago = Some(now_ms() - 3_600_000);
    vec![
        NewRecord { headers, timestamp_ms: an_hour_ago, ..NewRecord::to(0, "value").key("key") },
        none.clone(),
        none.clone().key("no value"),
        NewRecord::to(0, "").key(""),
        NewRecord { timestamp_ms: an_hour_ago.map(|ms| ms + 1), ..NewRecord::to(0, [0xff, 0x00, 0xfe]) },
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_is_its_record_byte_for_byte_and_says_where_it_came_from() {
    let kafka = broker();
    let (topic, letters) = (kafka.topic("given-up", 1), kafka.topic("letters", 1));
    let odd = odd_records();
    kafka.produce(&topic, odd.clone());
    let group = unique("given-up");
    let gateway = gateway(&group, &topic, &[&to(&letters)]);
    let mut wire = Wire::subscribe(&gateway, &group, 5).await;
    let records = wire.records(odd.len()).await;
    let before = now_ms();
    wire.settle(&records[..1], &retry_now());
    let again = wire.record().await;
    assert_eq!((again.offset, again.attempts), (0, 1));
    wire.settle(&[again], &dead_letter("no such customer"));
    wire.settle(&records[1..], &dead_letter(""));
    committed_to_the_end(kafka, &group, &topic).await;

    let (came, mut went) = (kafka.stored(&topic, 0), kafka.stored(&letters, 0));
    went.sort_by_key(|letter| letter.header(OFFSET).map(str::to_owned));
    assert_eq!((came.len(), went.len()), (odd.len(), odd.len()), "each once");
    for (record, letter) in came.iter().zip(&went) {
        assert_eq!((&letter.key, &letter.value), (&record.key, &record.value));
        assert_eq!(letter.timestamp, record.timestamp);
        let (own, added) = letter.headers.split_at(record.headers.len());
        assert_eq!(own, record.headers, "in their order, duplicates and nulls included");
        let first = record.offset == 0;
        let offset = record.offset.to_string();
        let mut expected = text(&[
            ("__dlq.errors.topic", &topic),
            ("__dlq.errors.partition", "0"),
            (OFFSET, &offset),
            ("__dlq.errors.group", &group),
            ("__dlq.errors.delivery.count", if first { "2" } else { "1" }),
            (MESSAGE, if first { "no such customer" } else { "given up by the client" }),
            (CAUSE, "client"),
            (ATTEMPTS, if first { "1" } else { "0" }),
        ]);
        let times =
            ["sluice.dlq.first_failure_ms", "sluice.dlq.last_failure_ms"].map(|name| (name, letter.header(name)));
        for (name, time) in times.into_iter().filter(|_| first) {
            let ms: i64 = time.and_then(|time| time.parse().ok()).expect("milliseconds");
            assert!((before - 1..=now_ms() + 1).contains(&ms), "{name}: {ms} is not between {before} and now");
            expected.extend(text(&[(name, &ms.to_string())]));
        }
        assert_eq!(added, expected);
    }
    let stats = gateway.stats(&group).await;
    assert_eq!((stats.dead_lettered, stats.retried, stats.acked, stats.failed), (5, 1, 0, 0));
    assert_eq!(gateway.metric("sluice_records_dead_lettered_total", &group), Some(5.0));
    assert_eq!(gateway.metric("sluice_dead_letters_failing", &group), Some(0.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_holds_the_commit_until_its_topic_is_there() {
    let kafka = broker();
    let (topic, letters) = (kafka.topic("held", 1), unique("made-later"));
    kafka.fill(&topic, 1, 10, 32);
    let group = unique("held");
    let gateway = gateway(&group, &topic, &[&to(&letters)]);
    let mut wire = Wire::subscribe(&gateway, &group, 10).await;
    let records = wire.records(10).await;
    wire.ack(&records[..3]);
    wire.settle(&records[3..5], &dead_letter("poison"));
    wire.ack(&records[5..]);
    committed_is(kafka, &group, &topic, 3).await;
    blocked_on(&gateway, &group, 3, "dead_letter").await;
    // More than once each: they are not given up.
    writes_fail(&gateway, "failed", 4.0).await;
    let told_why = gateway.subscription(&group).await.dead_letter_error;
    assert!(told_why.contains(&letters) && told_why.contains("missing"), "{told_why}");
    let (status, page) = gateway.page("/readyz");
    assert!(status == 200 && page.contains(&told_why), "{status} {page}");
    // Others are worked meanwhile.
    let more = kafka.fill(&topic, 1, 5, 32);
    let behind = wire.records(more.len()).await;
    assert_eq!(behind[0].offset, 10);
    wire.ack(&behind);
    eventually("what is done behind them stands in a commit, and they do not", SOON, async || {
        let commit = kafka.commit_history(&group).into_iter().rfind(|commit| commit.topic == topic);
        let stored = commit.map(|commit| (commit.offset, commit.done_above()));
        if stored == Some((Some(3), vec![(5, 14)])) { Ok(()) } else { Err(stored) }
    })
    .await;
    assert_eq!(gateway.stats(&group).await.dead_lettered, 0);

    kafka.create_topic(&letters, 1, &[]);
    committed_is(kafka, &group, &topic, 15).await;
    let mut went = told(kafka, &letters);
    went.sort();
    assert_eq!(went, [tells(3, "client", 0), tells(4, "client", 0)], "each once");
    assert_eq!(gateway.stats(&group).await.dead_lettered, 2);
    eventually("an operator hears that it is over", SOON, async || {
        let failing = gateway.metric("sluice_dead_letters_failing", "");
        let why = gateway.subscription(&group).await.dead_letter_error;
        if failing == Some(0.0) && why.is_empty() { Ok(()) } else { Err((failing, why)) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_its_topic_refuses_for_its_size_is_written_bare_or_held() {
    let kafka = broker();
    let (topic, letters) = (kafka.topic("sizes", 1), unique("small-letters"));
    kafka.create_topic(&letters, 1, &[("max.message.bytes", "1000")]);
    let own = text(&[("trace", "1")]);
    // Too large with what is added to it; too large by itself; small.
    let sizes = [800, 2_000, 50];
    kafka.produce(&topic, sizes.map(|bytes| NewRecord { headers: own.clone(), ..NewRecord::to(0, vec![b'x'; bytes]) }));
    let group = unique("sizes");
    let gateway = gateway(&group, &topic, &[&to(&letters)]);
    let mut wire = Wire::subscribe(&gateway, &group, 10).await;
    let records = wire.records(3).await;
    wire.settle(&records, &dead_letter("poison"));
    committed_is(kafka, &group, &topic, 1).await;
    blocked_on(&gateway, &group, 1, "dead_letter").await;
    let lengths = |letters: &[Stored]| -> Vec<usize> {
        letters.iter().map(|letter| letter.value.as_ref().map_or(0, Vec::len)).collect()
    };
    let written = eventually("the two that fit are written", SOON, async || {
        let mut written = kafka.stored(&letters, 0);
        written.sort_by_key(|letter| letter.value.as_ref().map(Vec::len));
        if written.len() == 2 { Ok(written) } else { Err(written) }
    });
    let written = written.await;
    assert_eq!(lengths(&written), [50, 800]);
    assert_eq!(written[0].header(OFFSET), Some("2"));
    assert_eq!(written[1].headers, own, "bare: only the record's own");
    // The first time of 0, both of 1, and again.
    writes_fail(&gateway, "too_large", 4.0).await;
    let told_why = gateway.subscription(&group).await.dead_letter_error;
    assert!(told_why.contains(&letters) && told_why.contains("too large"), "{told_why}");
    assert_eq!(gateway.stats(&group).await.dead_lettered, 2, "held, and never dropped");

    kafka.configure_topic(&letters, "max.message.bytes", "100000");
    committed_is(kafka, &group, &topic, 3).await;
    let all = kafka.stored(&letters, 0);
    assert_eq!((all.len(), lengths(&all[2..])), (3, vec![2_000]));
}
