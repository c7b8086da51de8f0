//! Two gateways in one group.

use std::time::Duration;

use sluice_tests::history::now_ms;
use sluice_tests::process::Signal;
use sluice_tests::{Crew, Gateway, GatewayConfig, History, Wire, broker, unique};

use crate::{committed_to_the_end, owns, reaches, subscription};

/// Two gateways with two of four partitions each.
async fn two_gateways(group: &str, topic: &str, lines: &[&str]) -> (Gateway, Gateway) {
    let lines: Vec<&str> = lines.iter().copied().chain(["join = \"at_start\""]).collect();
    let config = GatewayConfig::new(broker()).node("drain_timeout = \"20s\"").subscription(subscription(
        group,
        &[topic],
        &lines,
    ));
    let both = (config.start(), config.start());
    owns(&both.0, group, 2).await;
    owns(&both.1, group, 2).await;
    both
}

/// Both have joined before the first record is there: no duplicate has an excuse.
async fn a_terminated_gateway_hands_over(name: &str, lines: &[&str]) {
    const RECORDS: usize = 4_000;
    let kafka = broker();
    let topic = kafka.topic(name, 4);
    let group = unique(name);
    let (mut leaves, stays) = two_gateways(&group, &topic, lines).await;
    let history = History::default();
    let work = Duration::from_millis(20);
    let first = Crew::new(&leaves, &group, &history).or(&stays).window(20).work(work).start(3);
    let second = Crew::new(&stays, &group, &history).window(20).work(work).start(3);
    let produced = kafka.fill(&topic, 4, RECORDS, 32);
    reaches("both are at work", RECORDS / 4, || history.acked_of(&produced)).await;
    leaves.signal(Signal::Term);
    assert!(leaves.ended().await.success(), "a drain ends with status 0");
    reaches("the other one takes over", RECORDS, || history.acked_of(&produced)).await;
    committed_to_the_end(kafka, &group, &topic).await;
    history.check_no_loss(&produced);
    history.check_no_duplicates();
    history.check_one_holder();
    history.check_commits(kafka, &group, &produced);
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_terminated_hands_over_without_a_duplicate() {
    a_terminated_gateway_hands_over("terminated", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_terminated_hands_over_without_a_duplicate_under_the_consumer_protocol() {
    a_terminated_gateway_hands_over("terminated-848", &["protocol = \"consumer\""]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_terminated_hands_over_without_a_duplicate_under_the_range_assignor() {
    a_terminated_gateway_hands_over("terminated-range", &["assignor = \"range\""]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_joins_takes_its_share_without_a_duplicate() {
    const RECORDS: usize = 4_000;
    let kafka = broker();
    let topic = kafka.topic("joins", 4);
    let group = unique("joins");
    let config = GatewayConfig::new(kafka).subscription(subscription(&group, &[&topic], &["join = \"at_start\""]));
    let old = config.start();
    let history = History::default();
    let work = Duration::from_millis(20);
    let first = Crew::new(&old, &group, &history).window(10).work(work).start(3);
    let produced = kafka.fill(&topic, 4, RECORDS, 32);
    reaches("the first is at work", RECORDS / 8, || history.acked_of(&produced)).await;
    let new = config.start();
    let second = Crew::new(&new, &group, &history).window(10).work(work).start(3);
    owns(&new, &group, 2).await;
    reaches("all are acked", RECORDS, || history.acked_of(&produced)).await;
    committed_to_the_end(kafka, &group, &topic).await;
    history.check_no_loss(&produced);
    history.check_no_duplicates();
    history.check_commits(kafka, &group, &produced);
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_killed_costs_at_most_its_leases_and_one_commit_interval() {
    const RECORDS: usize = 2_400;
    let kafka = broker();
    let topic = kafka.topic("killed-one", 4);
    let group = unique("killed-one");
    let (mut dies, stays) = two_gateways(&group, &topic, &["commit_interval = \"250ms\""]).await;
    let (of_dead, of_other) = (History::default(), History::default());
    // Slow enough that what is acked in an interval is a small part of what was acked before.
    let work = Duration::from_millis(50);
    let first = Crew::new(&dies, &group, &of_dead).window(5).work(work).start(3);
    let second = Crew::new(&stays, &group, &of_other).window(5).work(work).start(3);
    let produced = kafka.fill(&topic, 4, RECORDS, 32);
    reaches("the first is at work", RECORDS / 3, || of_dead.acked_of(&produced)).await;
    let killed_at = now_ms();
    dies.kill();
    drop(first);
    let commits = kafka.commit_history(&group);
    let together = || produced.iter().filter(|one| of_dead.has_acked(one) || of_other.has_acked(one)).count();
    reaches("the other one takes over", RECORDS, together).await;
    committed_to_the_end(kafka, &group, &topic).await;
    // What the dead one's sessions were dealt and the other's were too.
    let to_other = of_other.deliveries();
    let again: Vec<_> = of_dead.deliveries().into_keys().filter(|place| to_other.contains_key(place)).collect();
    for (topic, partition, offset) in &again {
        let last = commits.iter().rfind(|commit| commit.topic == *topic && commit.partition == *partition);
        assert!(!last.is_some_and(|commit| commit.covers(*offset)), "{partition}/{offset} was done in {last:?}");
    }
    // The interval, and what a busy machine adds to it.
    let since = killed_at.saturating_sub(250 + 750);
    let stale: Vec<_> = again.iter().filter(|place| of_dead.acked_at_ms(place).is_some_and(|at| at < since)).collect();
    assert!(stale.is_empty(), "{} of {} were acked long before the kill: {stale:?}", stale.len(), again.len());
    of_other.check_no_duplicates();
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_static_member_that_comes_back_in_time_moves_no_partition_and_one_that_does_not_is_missed() {
    static_members("static", &["kafka_session_timeout = \"12s\""]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_static_member_comes_back_under_the_consumer_protocol() {
    static_members("static-848", &["protocol = \"consumer\""]).await;
}

async fn static_members(name: &str, lines: &[&str]) {
    let kafka = broker();
    let (topic, group) = (kafka.topic(name, 4), unique(name));
    let lines = [lines, &["static_membership = true", "join = \"at_start\""]].concat();
    let config = GatewayConfig::new(kafka).subscription(subscription(&group, &[&topic], &lines));
    let start = |name: &str| config.clone().node(&format!("name = {:?}", unique(name))).start();
    let (mut back, stays) = (start("back"), start("stays"));
    owns(&back, &group, 2).await;
    owns(&stays, &group, 2).await;
    let names = async |of: &Gateway| {
        let mut seen: Vec<_> = of.partitions(&group).await.into_iter().map(|one| (one.partition, one.epoch)).collect();
        seen.sort_unstable();
        seen
    };
    let (had, kept) = (names(&back).await, names(&stays).await);
    let moves =
        || std::fs::read_to_string(stays.log()).expect("a log").matches("sluice_kafka::member: assigned").count();
    let before = moves();
    back.signal(Signal::Term);
    assert!(back.ended().await.success(), "a drain ends with status 0");
    back.restart();
    owns(&back, &group, 2).await;
    let partitions = |of: &[(i32, i64)]| of.iter().map(|(partition, _)| *partition).collect::<Vec<_>>();
    assert_eq!(partitions(&names(&back).await), partitions(&had));
    assert_eq!((names(&stays).await, moves()), (kept, before), "nothing happened to the other");
    kafka.fill(&topic, 4, 40, 32);
    let mut wire = Wire::subscribe(&back, &group, 100).await;
    let records = wire.records(20).await;
    wire.ack(&records);
    wire.barrier().await;
    drop(wire);
    back.signal(Signal::Term);
    assert!(back.ended().await.success(), "a drain ends with status 0");
    owns(&stays, &group, 4).await;
}
