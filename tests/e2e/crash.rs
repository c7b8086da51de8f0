//! `kill -9` of the gateway.

use std::time::Duration;

use sluice_tests::wire::{Wire, retry_now};
use sluice_tests::{Crew, History, SOON, broker, eventually, unique};

use crate::{committed_to_the_end, gateway, has_committed, reaches};

/// The record that is not done.
const STUCK: i64 = 0;
/// Acked above it.
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
    // The retried one comes again in between, and stays with this session.
    let mut acked = 0;
    while acked < DONE {
        let mut batch = wire.records(1).await;
        batch.extend(wire.inbox.drain(..));
        batch.retain(|lease| lease.offset != STUCK);
        batch.truncate(DONE - acked);
        acked += batch.len();
        wire.ack(&batch);
    }
    let stored = || kafka.commit_history(&group).into_iter().rfind(|commit| commit.topic == topic);
    eventually("what is done above the stuck record stands in a commit", SOON, async || {
        let commit = stored();
        let done =
            commit.as_ref().map_or(0, |commit| commit.done_above().iter().map(|(first, last)| last - first + 1).sum());
        if usize::try_from(done) == Ok(DONE) { Ok(()) } else { Err((done, commit.map(|commit| commit.offset))) }
    })
    .await;
    gateway.kill();
    let commits: Vec<_> = kafka.commit_history(&group).into_iter().filter(|commit| commit.topic == topic).collect();
    assert!(commits.iter().all(|commit| commit.offset == Some(STUCK)), "no commit passes the stuck record");
    let last = commits.last().expect("there is one with nine thousand");

    gateway.restart();
    let after = History::default();
    let mut wire = Wire::subscribe(&gateway, &group, 1_000).await.recorded(&after);
    let first = wire.record().await;
    assert_eq!((first.offset, first.attempts), (STUCK, 1), "it comes again, with its attempts");
    wire.ack(&[first]);
    while after.acked() < ALL - DONE {
        let batch = wire.records(1).await;
        wire.ack(&batch);
    }
    let again = after.deliveries();
    let twice: Vec<_> = again.keys().filter(|(_, _, offset)| last.covers(*offset)).collect();
    assert!(twice.is_empty(), "what Kafka had acknowledged comes again: {twice:?}");
    committed_to_the_end(kafka, &group, &topic).await;
    let lost: Vec<_> = produced.iter().filter(|one| !history.has_acked(one) && !after.has_acked(one)).collect();
    assert!(lost.is_empty(), "{} are lost: {:?}", lost.len(), lost.first());
    assert_eq!(again.len(), ALL - DONE, "and nothing else was delivered");
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_in_the_middle_of_work_lose_nothing_and_no_commit_passes_a_record_not_done() {
    let kafka = broker();
    let topic = kafka.topic("killed-often", 3);
    let produced = kafka.fill(&topic, 3, 6_000, 64);
    let group = unique("killed-often");
    let mut gateway = gateway(&group, &topic, &[]);
    let history = History::default();
    for (goal, commits) in [(1_000, 4), (3_000, 8)] {
        let work = Duration::from_millis(20);
        let crew = Crew::new(&gateway, &group, &history).window(10).work(work).start(4);
        reaches("work goes on", goal, || history.acked_of(&produced)).await;
        has_committed(kafka, &group, &topic, commits).await;
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
