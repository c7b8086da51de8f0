//! `kill -9` of the gateway.

use std::collections::BTreeSet;

use sluice_tests::wire::{Wire, retry_now};
use sluice_tests::{Crew, History, broker, unique};

use crate::{committed_to_the_end, gateway, reaches};

/// The record that is not done.
const STUCK: i64 = 0;
/// Acked above it, durably.
const DONE: usize = 9_000;
const ALL: usize = 10_000;

#[tokio::test(flavor = "multi_thread")]
async fn after_a_kill_the_stuck_record_comes_again_with_its_attempts_and_none_of_nine_thousand_acked_above_it() {
    let kafka = broker();
    let topic = kafka.topic("killed", 1);
    let produced = kafka.fill(&topic, 1, ALL, 32);
    let group = unique("killed");
    let mut gateway = gateway(&group, &topic, &["ack_timeout = \"10m\""]);
    let history = History::default();
    let mut wire = Wire::subscribe(&gateway, &group, 1_000).await.recorded(&history);
    let stuck = wire.record().await;
    assert_eq!((stuck.offset, stuck.attempts), (STUCK, 0));
    wire.settle(&[stuck], &retry_now());
    let mut durable = BTreeSet::new();
    let mut attempts = 0;
    while durable.len() < DONE {
        let mut batch = wire.records(1).await;
        batch.extend(wire.inbox.drain(..));
        batch.retain(|lease| {
            if lease.offset == STUCK {
                attempts = lease.attempts;
            }
            lease.offset != STUCK
        });
        batch.truncate(DONE - durable.len());
        if !batch.is_empty() {
            assert_eq!(wire.settle_answered(&batch, &sluice_tests::wire::ack(), true).await, []);
            durable.extend(batch.iter().map(|lease| lease.offset));
        }
    }
    assert_eq!(attempts, 1, "the retry was counted");
    gateway.kill();
    let commits: Vec<_> = kafka.commit_history(&group).into_iter().filter(|commit| commit.topic == topic).collect();
    let last = commits.last().expect("durable acks were committed");
    assert!(commits.iter().all(|commit| commit.offset == Some(STUCK)), "no commit passes the stuck record");
    assert!(!last.metadata.is_empty(), "what is done above it stands in the commit");

    gateway.restart();
    let after = History::default();
    let mut wire = Wire::subscribe(&gateway, &group, 1_000).await.recorded(&after);
    let first = wire.record().await;
    assert_eq!((first.offset, first.attempts), (STUCK, 1), "it comes again, with its attempts");
    let mut again: BTreeSet<i64> = [first.offset].into();
    wire.ack(&[first]);
    while again.len() < ALL - DONE {
        let batch = wire.records(1).await;
        wire.ack(&batch);
        again.extend(batch.iter().map(|lease| lease.offset));
    }
    assert!(again.is_disjoint(&durable), "what Kafka had acknowledged does not come again");
    committed_to_the_end(kafka, &group, &topic).await;
    let all: BTreeSet<i64> = again.union(&durable).copied().collect();
    assert_eq!(all.len(), produced.len(), "none is lost");
    assert_eq!(after.deliveries().len(), ALL - DONE, "and nothing else was delivered");
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_in_the_middle_of_work_lose_nothing_and_no_commit_passes_a_record_not_done() {
    let kafka = broker();
    let topic = kafka.topic("killed-often", 3);
    let produced = kafka.fill(&topic, 3, 6_000, 64);
    let group = unique("killed-often");
    let mut gateway = gateway(&group, &topic, &[]);
    let history = History::default();
    for goal in [1_000, 3_000] {
        let crew = Crew::new(&gateway, &group, &history).window(50).work(std::time::Duration::from_millis(2)).start(4);
        reaches("work goes on", goal, || history.acked_of(&produced)).await;
        gateway.kill();
        drop(crew);
        gateway.restart();
    }
    let crew = Crew::new(&gateway, &group, &history).start(4);
    reaches("all are acked", produced.len(), || history.acked_of(&produced)).await;
    committed_to_the_end(kafka, &group, &topic).await;
    history.check_no_loss(&produced);
    history.check_commits(kafka, &group, &produced);
    crew.stop().await;
}
