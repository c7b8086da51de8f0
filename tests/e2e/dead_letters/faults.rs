//! Dead letters while something dies. They may be written twice then; they are never lost, and no commit comes before them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sluice_tests::wire::{Wire, dead_letter, retry_now};
use sluice_tests::{
    Act, Broker, Crew, Gateway, GatewayConfig, History, Kafka, Produced, SOON, broker, eventually, unique,
};

use super::{OFFSET, tells, to, told, writes_fail};
use crate::{committed_to_the_end, gateway, has_committed, reaches, subscription};

const LETTERS: &str = "letters";

/// A gateway that soon says that Kafka does not take its letters.
fn impatient(kafka: &Kafka, group: &str, topic: &str, lines: &[&str]) -> Gateway {
    let letters = to(LETTERS);
    let lines: Vec<&str> = lines.iter().copied().chain([letters.as_str()]).collect();
    GatewayConfig::new(kafka)
        .limits("dead_letter_timeout = \"1s\"")
        .subscription(subscription(group, &[topic], &lines))
        .start()
}

/// A topic whose records say when Kafka took them.
fn make_letters(kafka: &Kafka) {
    kafka.create_topic(LETTERS, 1, &[("message.timestamp.type", "LogAppendTime")]);
}

/// When the first letter of each record was written, on the clock of the commits.
fn written_at(kafka: &Kafka) -> BTreeMap<i64, u128> {
    let mut first = BTreeMap::new();
    for letter in kafka.stored(LETTERS, 0) {
        let offset = letter.header(OFFSET).and_then(|offset| offset.parse().ok()).expect("it names its record");
        let at = letter.timestamp.to_millis().and_then(|ms| u128::try_from(ms).ok()).expect("it has a time");
        first.entry(offset).or_insert(at);
    }
    first
}

/// Each of these is in the topic, and was there before the first commit that says that it is done.
fn check_written_before_committed(kafka: &Kafka, group: &str, topic: &str, given_up: &BTreeSet<i64>) {
    let written = written_at(kafka);
    assert_eq!(written.keys().copied().collect::<BTreeSet<_>>(), *given_up, "all of them, and nothing else");
    let commits = kafka.commit_history(group);
    for (offset, at) in &written {
        let first = commits.iter().find(|commit| commit.topic == topic && commit.covers(*offset));
        let first = first.expect("everything is committed");
        assert!(*at <= first.timestamp_ms, "{offset} was written at {at}, after {first:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_outlives_a_broker_that_dies_with_it_on_its_way() {
    let broker = Broker::start();
    let kafka = broker.kafka();
    make_letters(kafka);
    let topic = kafka.topic("broker-dies", 1);
    kafka.fill(&topic, 1, 3, 32);
    let group = unique("broker-dies");
    // The partition stays ours over the broker's restart, so that it is this letter that is written.
    let lines = ["kafka_session_timeout = \"2m\"", "commit_deadline = \"1m\""];
    let gateway = impatient(kafka, &group, &topic, &lines);
    let mut wire = Wire::subscribe(&gateway, &group, 3).await;
    let records = wire.records(3).await;
    broker.kill();
    wire.ack(&records[..1]);
    assert_eq!(wire.settle_answered(&records[1..2], &dead_letter("poison"), false).await, []);
    wire.ack(&records[2..]);
    writes_fail(&gateway, "failed", 1.0).await;
    assert_eq!(gateway.stats(&group).await.dead_lettered, 0, "it is held");
    broker.restart();
    committed_to_the_end(kafka, &group, &topic).await;
    check_written_before_committed(kafka, &group, &topic, &[1].into());
    assert_eq!(gateway.stats(&group).await.dead_lettered, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn brokers_and_gateways_that_die_in_the_middle_of_work_lose_no_dead_letter() {
    const RECORDS: usize = 2_000;
    let broker = Broker::start();
    let kafka = broker.kafka();
    make_letters(kafka);
    let topic = kafka.topic("all-die", 1);
    let produced = kafka.fill(&topic, 1, RECORDS, 32);
    let (given_up, good): (Vec<Produced>, Vec<Produced>) =
        produced.iter().cloned().partition(|one| one.offset % 10 == 0);
    let group = unique("all-die");
    // Longer than a broker takes to start again: what it did not take is held, and not fetched anew.
    let lines = ["kafka_session_timeout = \"30s\"", "commit_deadline = \"25s\""];
    let mut gateway = impatient(kafka, &group, &topic, &lines);
    let history = History::default();
    let crew = |gateway: &Gateway| {
        let habit = |lease: &sluice_tests::Lease| if lease.offset % 10 == 0 { Act::DeadLetter } else { Act::Ack };
        Crew::new(gateway, &group, &history).habit(habit).window(10).work(Duration::from_millis(30)).start(3)
    };
    let at_work = crew(&gateway);
    reaches("work goes on", RECORDS / 10, || history.acked_of(&good)).await;
    has_committed(kafka, &group, &topic, 3).await;
    broker.kill();
    writes_fail(&gateway, "failed", 1.0).await;
    broker.restart();
    reaches("work goes on", RECORDS / 2, || history.acked_of(&good)).await;
    gateway.kill();
    drop(at_work);
    gateway.restart();
    let at_work = crew(&gateway);
    reaches("all the good ones are acked", good.len(), || history.acked_of(&good)).await;
    committed_to_the_end(kafka, &group, &topic).await;
    history.check_no_loss(&good);
    history.check_commits(kafka, &group, &good);
    let given_up = given_up.iter().map(|one| one.offset).collect();
    check_written_before_committed(kafka, &group, &topic, &given_up);
    at_work.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_killed_with_dead_letters_on_their_way_writes_them_when_it_is_back() {
    let kafka = broker();
    let (topic, letters) = (kafka.topic("killed-with", 1), unique("made-later"));
    kafka.fill(&topic, 1, 3, 32);
    let group = unique("killed-with");
    let mut gateway = gateway(&group, &topic, &[&to(&letters), "retry = { max_attempts = 1 }"]);
    let mut wire = Wire::subscribe(&gateway, &group, 3).await;
    let records = wire.records(3).await;
    // Failed too often; given up by the client; done.
    wire.settle(&records[..1], &retry_now());
    wire.settle(&records[1..2], &dead_letter("poison"));
    wire.ack(&records[2..]);
    writes_fail(&gateway, "failed", 2.0).await;
    eventually("attempts and what is done stand in a commit", SOON, async || {
        let commit = kafka.commit_history(&group).into_iter().rfind(|commit| commit.topic == topic);
        let stored = commit.map(|commit| (commit.offset, commit.attempts(0), commit.done_above()));
        if stored == Some((Some(0), 1, vec![(2, 2)])) { Ok(()) } else { Err(stored) }
    })
    .await;
    gateway.kill();
    kafka.create_topic(&letters, 1, &[]);
    gateway.restart();
    let mut wire = Wire::subscribe(&gateway, &group, 3).await;
    // What failed too often is known to have; what a client said of a record that did not fail is not stored.
    let again = wire.record().await;
    assert_eq!((again.offset, again.attempts), (1, 0));
    wire.settle(&[again], &dead_letter("poison"));
    committed_to_the_end(kafka, &group, &topic).await;
    let mut went = told(kafka, &letters);
    went.sort();
    assert_eq!(went, [tells(0, "exhausted", 1), tells(1, "client", 0)]);
    assert_eq!(gateway.stats(&group).await.delivered, 1);
}
