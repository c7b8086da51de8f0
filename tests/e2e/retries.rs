//! Records that failed and come again.

use std::time::Duration;

use sluice_tests::process::Signal;
use sluice_tests::wire::{Wire, retry, retry_after, retry_now};
use sluice_tests::{GatewayConfig, Kafka, Lease, SOON, broker, eventually, unique};

use crate::{committed_to_the_end, gateway, subscription};

/// Longer than any test.
const NEVER: Duration = Duration::from_secs(3_600);

/// Waits until this many records of the only partition wait for their retry.
async fn waiting(gateway: &sluice_tests::Gateway, group: &str, count: i64) {
    eventually("they wait for their retry", SOON, async || {
        let partitions = gateway.partitions(group).await;
        if partitions.iter().any(|one| one.waiting_retry == count) { Ok(()) } else { Err(partitions) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_waits_for_its_retry_holds_the_commit_and_no_window() {
    let kafka = broker();
    let topic = kafka.topic("waits", 1);
    kafka.fill(&topic, 1, 10, 32);
    let group = unique("waits");
    let gateway = gateway(&group, &topic, &[]);
    let mut wire = Wire::subscribe(&gateway, &group, 1).await;
    let poison = wire.record().await;
    assert_eq!(poison.offset, 0);
    wire.settle(&[poison], &retry_after(NEVER));
    for offset in 1..10 {
        let next = wire.record().await;
        assert_eq!((next.offset, next.attempts), (offset, 0), "a window of one has room");
        wire.ack(&[next]);
    }
    waiting(&gateway, &group, 1).await;
    let partition = gateway.partitions(&group).await.remove(0);
    assert_eq!((partition.blocked_on.as_str(), partition.oldest_undone_offset), ("retry_wait", Some(0)));
    assert_eq!((partition.leased, gateway.consumers(&group).await[0].leased), (0, 0));
    eventually("the commit says what is done behind it", SOON, async || {
        let commit = kafka.commit_history(&group).into_iter().rfind(|commit| commit.topic == topic);
        let stored = commit.map(|commit| (commit.offset, commit.attempts(0), commit.done_above()));
        if stored == Some((Some(0), 1, vec![(1, 9)])) { Ok(()) } else { Err(stored) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clients_delay_wins_over_the_backoff_and_counts_like_it() {
    let kafka = broker();
    let topic = kafka.topic("delays", 1);
    kafka.fill(&topic, 1, 1, 32);
    let group = unique("delays");
    // The first failure comes again at once; the second would wait for longer than any test.
    let grows = "retry = { initial_backoff = \"10ms\", multiplier = 1000000.0, max_backoff = \"1h\" }";
    let gateway = gateway(&group, &topic, &[grows]);
    let mut wire = Wire::subscribe(&gateway, &group, 1).await;
    let mut lease = wire.record().await;
    for (attempts, outcome) in [(1, retry()), (2, retry_now()), (3, retry_after(Duration::from_millis(10)))] {
        wire.settle(&[lease], &outcome);
        lease = wire.record().await;
        assert_eq!(lease.attempts, attempts);
    }
    wire.settle(&[lease], &retry());
    waiting(&gateway, &group, 1).await;
    wire.barrier().await;
    assert!(wire.inbox.is_empty(), "the policy's backoff has grown");
    assert_eq!(gateway.stats(&group).await.retried, 4);
}

/// Waits until a commit holds so many attempts of record 0.
async fn stored(kafka: &Kafka, group: &str, topic: &str, attempts: u32) {
    eventually("the attempts stand in a commit", SOON, async || {
        let commit = kafka.commit_history(group).into_iter().rfind(|commit| commit.topic == topic);
        let stored = commit.map_or(0, |commit| commit.attempts(0));
        if stored == attempts { Ok(()) } else { Err(stored) }
    })
    .await;
}

/// Fails the record, and takes nothing more: each delivery ends in a failure.
async fn fail(wire: &mut Wire, lease: Lease) {
    wire.flow(0, 0);
    assert_eq!(wire.settle_answered(&[lease], &retry_now(), false).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn five_attempts_are_five_failures_over_two_kills_and_a_handover() {
    let kafka = broker();
    let (topic, letters) = (kafka.topic("five", 1), kafka.topic("letters", 1));
    kafka.fill(&topic, 1, 2, 32);
    let group = unique("five");
    let lines = [&format!("dead_letter_topic = {letters:?}"), "retry = { max_attempts = 5 }", "join = \"at_start\""];
    let config = GatewayConfig::new(kafka).subscription(subscription(&group, &[&topic], &lines));
    let mut first = config.start();
    let mut seen = Vec::new();

    let mut wire = Wire::subscribe(&first, &group, 2).await;
    let mut records = wire.records(2).await;
    wire.ack(&records.split_off(1));
    seen.extend(records.iter().map(|lease| (lease.offset, lease.attempts)));
    fail(&mut wire, records.remove(0)).await;
    stored(kafka, &group, &topic, 1).await;
    first.kill();

    first.restart();
    let mut wire = Wire::subscribe(&first, &group, 2).await;
    for _ in 0..2 {
        wire.flow(2, 0);
        let lease = wire.record().await;
        seen.push((lease.offset, lease.attempts));
        fail(&mut wire, lease).await;
    }
    stored(kafka, &group, &topic, 3).await;
    first.kill();

    first.restart();
    let mut wire = Wire::subscribe(&first, &group, 2).await;
    let lease = wire.record().await;
    seen.push((lease.offset, lease.attempts));
    let second = config.start();
    fail(&mut wire, lease).await;
    drop(wire);
    // At once: what was counted is handed over with the partition.
    first.signal(Signal::Term);
    assert!(first.ended().await.success(), "a drain ends with status 0");

    let mut wire = Wire::subscribe(&second, &group, 2).await;
    let lease = wire.record().await;
    seen.push((lease.offset, lease.attempts));
    fail(&mut wire, lease).await;
    committed_to_the_end(kafka, &group, &topic).await;
    assert_eq!(seen, [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4)], "five deliveries, each a failure, and no other");
    let went = kafka.stored(&letters, 0);
    let told: Vec<_> = went.iter().map(|letter| letter.header("sluice.dlq.attempts")).collect();
    assert_eq!(told, [Some("5")]);
    wire.flow(2, 0);
    wire.barrier().await;
    assert!(wire.inbox.is_empty(), "nothing is left");
}
