//! Fault-free runs.

use std::sync::Arc;
use std::time::Duration;

use sluice_tests::kafka::client::{End, numbered};
use sluice_tests::{Crew, GatewayConfig, History, NewRecord, SOON, Wire, broker, eventually, unique};
use tokio::sync::Barrier;

use crate::{committed_is, committed_to_the_end, gateway, gateway_on, lag_is_zero, reaches, subscription};

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_records_of_three_topics_are_acked_once_each_by_five_sessions() {
    let kafka = broker();
    let topics: Vec<String> = (0..3).map(|index| kafka.topic(&format!("basic-{index}"), 3)).collect();
    let counts = [3_334, 3_333, 3_333];
    let produced: Vec<_> =
        topics.iter().zip(counts).flat_map(|(topic, count)| kafka.fill(topic, 3, count, 32)).collect();
    assert_eq!(produced.len(), 10_000);
    let group = unique("basic");
    let names: Vec<&str> = topics.iter().map(String::as_str).collect();
    let gateway = gateway_on(kafka, &group, &names, &[]);
    let history = History::default();
    let crew = Crew::new(&gateway, &group, &history).start(5);
    reaches("all are acked", 10_000, || history.acked_of(&produced)).await;
    for topic in &topics {
        committed_to_the_end(kafka, &group, topic).await;
    }
    lag_is_zero(&gateway, &group).await;
    history.check_no_loss(&produced);
    history.check_no_duplicates();
    history.check_one_holder();
    history.check_commits(kafka, &group, &produced);
    let stats = gateway.stats(&group).await;
    assert_eq!((stats.received, stats.delivered, stats.acked, stats.committed), (10_000, 10_000, 10_000, 10_000));
    crew.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_workers_on_two_partitions_all_hold_a_record_at_once_for_twenty_rounds() {
    const WORKERS: usize = 100;
    const ROUNDS: usize = 20;
    let kafka = broker();
    let topic = kafka.topic("hundred", 2);
    let produced = kafka.fill(&topic, 2, WORKERS * ROUNDS, 32);
    let group = unique("hundred");
    let config = GatewayConfig::new(kafka).subscription(subscription(&group, &[&topic], &[]));
    let gateway = config.start();
    let history = History::default();
    let all_hold = Arc::new(Barrier::new(WORKERS));
    let mut workers = Vec::new();
    for _ in 0..WORKERS {
        let mut wire = Wire::subscribe(&gateway, &group, 1).await.recorded(&history);
        let all_hold = Arc::clone(&all_hold);
        workers.push(tokio::spawn(async move {
            for _ in 0..ROUNDS {
                let record = wire.record().await;
                all_hold.wait().await;
                wire.ack(&[record]);
            }
            wire
        }));
    }
    let mut wires = Vec::new();
    for worker in workers {
        wires.push(worker.await.expect("a worker never held its record together with all others"));
    }
    committed_to_the_end(kafka, &group, &topic).await;
    history.check_no_loss(&produced);
    history.check_no_duplicates();
    drop(wires);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commit_stays_below_a_slow_record_and_jumps_when_it_is_acked() {
    let kafka = broker();
    let topic = kafka.topic("slow-head", 1);
    let produced = kafka.fill(&topic, 1, 3, 32);
    let group = unique("slow-head");
    let gateway = gateway(&group, &topic, &[]);
    let history = History::default();
    let mut wire = Wire::subscribe(&gateway, &group, 10).await.recorded(&history);
    let records = wire.records(3).await;
    wire.ack(&records[2..]);
    // What is done above the frontier stands in the commit's metadata: once it is there, the third ack was worked.
    let stored = async |what: &str, before: String| {
        eventually(what, SOON, async || match kafka.committed(&group, &topic).get(&0) {
            Some((0, metadata)) if !metadata.is_empty() && *metadata != before => Ok(metadata.clone()),
            other => Err(other.cloned()),
        })
        .await
    };
    let third = stored("the third record's ack is stored", String::new()).await;
    wire.ack(&records[1..2]);
    stored("the second record's ack is stored", third).await;
    wire.ack(&records[..1]);
    committed_is(kafka, &group, &topic, 3).await;
    let offsets = kafka.committed_history(&group, &topic, 0);
    assert!(offsets.iter().all(|offset| [0, 3].contains(offset)), "it jumps over all three: {offsets:?}");
    history.check_commits(kafka, &group, &produced);
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_aborted_transactions_are_not_delivered_and_markers_hold_nothing_up() {
    let kafka = broker();
    let topic = kafka.topic("transactions", 2);
    let batches: Vec<_> = (0..50_usize)
        .map(|batch| {
            let record = |index: usize| NewRecord::to(i32::from(index % 2 == 1), numbered(batch * 20 + index, 32));
            let end = if batch % 5 == 4 { End::Abort } else { End::Commit };
            ((0..20).map(record).collect(), end)
        })
        .collect();
    let produced = kafka.produce_transactions(&topic, &batches);
    assert_eq!(produced.len(), 800, "a fifth is aborted");
    let group = unique("transactions");
    let gateway = gateway(&group, &topic, &[]);
    let history = History::default();
    let crew = Crew::new(&gateway, &group, &history).start(2);
    reaches("all committed records are acked", 800, || history.acked_of(&produced)).await;
    committed_to_the_end(kafka, &group, &topic).await;
    lag_is_zero(&gateway, &group).await;
    assert_eq!(history.acked(), 800, "nothing of an aborted transaction came");
    history.check_no_duplicates();
    crew.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compacted_topic_is_consumed_to_its_end_over_its_holes() {
    let kafka = broker();
    let topic = unique("compacted");
    let configs = [
        ("cleanup.policy", "compact"),
        ("segment.ms", "50"),
        ("min.cleanable.dirty.ratio", "0.001"),
        ("max.compaction.lag.ms", "100"),
        ("delete.retention.ms", "0"),
    ];
    kafka.create_topic(&topic, 1, &configs);
    let keyed = |index: usize| NewRecord::to(0, numbered(index, 32)).key(format!("key-{}", index % 5));
    // A segment is closed when a later record arrives, and only closed ones are compacted: a few each time, until it shows.
    let mut written = 0;
    let left = eventually("the log is compacted", Duration::from_secs(90), async || {
        kafka.produce(&topic, (written..written + 10).map(keyed));
        written += 10;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let left = kafka.read(&topic, 0);
        if written >= 200 && left.len() * 2 < written { Ok(left) } else { Err((written, left.len())) }
    })
    .await;
    let group = unique("compacted");
    let gateway = gateway(&group, &topic, &[]);
    let history = History::default();
    let crew = Crew::new(&gateway, &group, &history).start(2);
    committed_to_the_end(kafka, &group, &topic).await;
    lag_is_zero(&gateway, &group).await;
    let (acked, written) = (history.acked(), written);
    assert!(
        acked >= 5 && acked <= left.len().max(5) && acked < written,
        "{acked} of {written} acked, {} left",
        left.len()
    );
    history.check_no_duplicates();
    crew.stop().await;
}
