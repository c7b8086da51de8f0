//! Which records become dead letters, and what becomes of them where there is no topic for them.

use sluice_proto::v1::Subscribe;
use sluice_tests::wire::{Wire, dead_letter, retry_now, subscribe};
use sluice_tests::{NewRecord, SOON, Stored, broker, eventually, unique};

use super::{ATTEMPTS, MESSAGE, blocked_on, tells, to, told};
use crate::{committed_is, committed_to_the_end, gateway};

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_failed_too_often_becomes_a_dead_letter_where_there_is_a_topic() {
    let kafka = broker();
    // Said, and not said: with a topic for them it is the default.
    for on_exhausted in ["", ", on_exhausted = \"dead_letter\""] {
        let (topic, letters) = (kafka.topic("too-often", 1), kafka.topic("letters", 1));
        kafka.fill(&topic, 1, 2, 32);
        let group = unique("too-often");
        let gateway =
            gateway(&group, &topic, &[&to(&letters), &format!("retry = {{ max_attempts = 2{on_exhausted} }}")]);
        let mut wire = Wire::subscribe(&gateway, &group, 1).await;
        for attempts in 0..2 {
            let poison = wire.record().await;
            assert_eq!((poison.offset, poison.attempts), (0, attempts));
            wire.settle(&[poison], &retry_now());
        }
        let good = wire.record().await;
        assert_eq!(good.offset, 1);
        wire.ack(&[good]);
        committed_to_the_end(kafka, &group, &topic).await;
        assert_eq!(told(kafka, &letters), [tells(0, "exhausted", 2)]);
        assert_eq!(kafka.stored(&letters, 0)[0].header(MESSAGE), Some("a test says so"), "the last words");
        let stats = gateway.stats(&group).await;
        assert_eq!((stats.retried, stats.failed, stats.dead_lettered, stats.acked), (2, 1, 1, 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_of_blocking_keeps_what_failed_too_often_from_the_dead_letters_and_not_what_a_client_gives_up() {
    let kafka = broker();
    let (topic, letters) = (kafka.topic("blocks", 1), kafka.topic("letters", 1));
    kafka.fill(&topic, 1, 3, 32);
    let group = unique("blocks");
    let block = "retry = { max_attempts = 1, max_backoff = \"1h\", on_exhausted = \"block\" }";
    let gateway = gateway(&group, &topic, &[&to(&letters), block]);
    let mut wire = Wire::subscribe(&gateway, &group, 3).await;
    let records = wire.records(3).await;
    wire.settle(&records[..1], &dead_letter("no use"));
    wire.settle(&records[1..2], &retry_now());
    wire.ack(&records[2..]);
    committed_is(kafka, &group, &topic, 1).await;
    blocked_on(&gateway, &group, 1, "exhausted").await;
    assert_eq!(told(kafka, &letters), [tells(0, "client", 0)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_topic_a_dead_letter_goes_the_way_of_what_failed_too_often() {
    let kafka = broker();
    for drops in [false, true] {
        let topic = kafka.topic("no-letters", 1);
        kafka.fill(&topic, 1, 3, 32);
        let group = unique("no-letters");
        let lines: &[&str] = if drops { &["retry = { on_exhausted = \"drop\" }"] } else { &[] };
        let gateway = gateway(&group, &topic, lines);
        let mut wire = Wire::subscribe(&gateway, &group, 3).await;
        let records = wire.records(3).await;
        assert_eq!(wire.settle_answered(&records[1..2], &dead_letter("poison"), false).await, [], "it is taken");
        wire.ack(&records[..1]);
        wire.ack(&records[2..]);
        if drops {
            committed_is(kafka, &group, &topic, 3).await;
        } else {
            committed_is(kafka, &group, &topic, 1).await;
            blocked_on(&gateway, &group, 1, "exhausted").await;
        }
        let stats = gateway.stats(&group).await;
        assert_eq!((stats.filtered, stats.dead_lettered, stats.acked), (u64::from(drops), 0, 2));
    }
}

/// Values of the dead letters, by length.
fn lengths(letters: &[Stored]) -> Vec<usize> {
    letters.iter().map(|letter| letter.value.as_ref().map_or(0, Vec::len)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_above_the_limit_becomes_a_dead_letter_without_a_delivery() {
    let kafka = broker();
    let (topic, letters) = (kafka.topic("above", 1), kafka.topic("letters", 1));
    let sizes = [1_025, 1_024, 5_000];
    kafka.produce(&topic, sizes.map(|bytes| NewRecord::to(0, vec![b'x'; bytes])));
    let group = unique("above");
    let gateway = gateway(&group, &topic, &[&to(&letters), "max_record_bytes = \"1KiB\""]);
    let mut wire = Wire::subscribe(&gateway, &group, 10).await;
    let fits = wire.record().await;
    assert_eq!(fits.offset, 1);
    wire.ack(&[fits]);
    committed_is(kafka, &group, &topic, 3).await;
    assert_eq!(told(kafka, &letters), [tells(0, "too_large", 0), tells(2, "too_large", 0)]);
    let stored = kafka.stored(&letters, 0);
    assert_eq!(lengths(&stored), [1_025, 5_000]);
    assert_eq!(stored[0].header(MESSAGE), Some("too large for every client"));
    assert_eq!(gateway.stats(&group).await.delivered, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_fits_the_frame_of_no_session_becomes_a_dead_letter_in_time() {
    let kafka = broker();
    let (topic, letters) = (kafka.topic("no-frame", 1), kafka.topic("letters", 1));
    kafka.produce(&topic, [100_000, 10].map(|bytes| NewRecord::to(0, vec![b'x'; bytes])));
    let group = unique("no-frame");
    let gateway = gateway(&group, &topic, &[&to(&letters), "too_large_after = \"1s\""]);
    let narrow = Subscribe { max_frame_bytes: 65_536, ..subscribe(&group, 10) };
    let mut wire = Wire::connect(&gateway, narrow).await;
    let small = wire.record().await;
    assert_eq!(small.offset, 1);
    wire.ack(&[small]);
    committed_is(kafka, &group, &topic, 2).await;
    assert_eq!(told(kafka, &letters), [tells(0, "too_large", 0)]);
    assert_eq!(lengths(&kafka.stored(&letters, 0)), [100_000]);
    assert_eq!(gateway.stats(&group).await.delivered, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_that_run_out_too_often_end_as_a_dead_letter() {
    let kafka = broker();
    let (topic, letters) = (kafka.topic("runs-out", 1), kafka.topic("letters", 1));
    kafka.fill(&topic, 1, 1, 32);
    let group = unique("runs-out");
    let retry = "retry = { max_attempts = 3, initial_backoff = \"10ms\" }";
    let gateway = gateway(&group, &topic, &[&to(&letters), retry, "ack_timeout = \"1s\""]);
    let mut wire = Wire::subscribe(&gateway, &group, 1).await;
    for attempts in 0..3 {
        assert_eq!(wire.record().await.attempts, attempts);
    }
    committed_is(kafka, &group, &topic, 1).await;
    let letter = eventually("it is written", SOON, async || kafka.stored(&letters, 0).pop().ok_or("not there")).await;
    assert_eq!(letter.header(ATTEMPTS), Some("3"));
    assert_eq!(letter.header(MESSAGE), Some("failed max_attempts times"), "an expiry has no words of its own");
    let stats = gateway.stats(&group).await;
    assert_eq!((stats.expired, stats.retried, stats.failed, stats.dead_lettered), (3, 0, 1, 1));
}
