//! A Kafka that asks who comes, and that does not let the gateway do everything: a password, and the right to read.

use std::collections::HashMap;

use sluice_tests::wire::{Wire, dead_letter, subscribe};
use sluice_tests::{
    Cluster, Gateway, GatewayConfig, Guarded, On, Operation, PASSWORD, SOON, eventually, guarded, unique,
};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{committed_is, committed_to_the_end, subscription};

/// A topic with three records, and a group. The gateway may do nothing with them.
fn topic_and_group(name: &str) -> (String, String) {
    let kafka = guarded().kafka();
    let topic = kafka.topic(name, 1);
    kafka.fill(&topic, 1, 3, 16);
    (topic, unique(name))
}

fn may_read(of: &Guarded, topic: &str, group: &str) {
    of.allow(Operation::Read, On::Topic(topic));
    of.allow(Operation::Read, On::Group(group));
}

/// A gateway that logs in, with these subscriptions of one topic each.
fn node(subscriptions: &[(&str, &str)], lines: &[&str]) -> GatewayConfig {
    let with = |config: GatewayConfig, (group, topic): &(&str, &str)| {
        config.subscription(subscription(group, &[topic], lines))
    };
    subscriptions.iter().fold(guarded().gateway(PASSWORD), with)
}

/// How a stream of this subscription ends that nobody serves: it may be welcome before it is known.
async fn refusal(gateway: &Gateway, group: &str) -> Status {
    match Wire::open(gateway.channel().await, subscribe(group, 3)).await {
        Err(status) => status,
        Ok(mut wire) => wire.end().await.expect_err("it is told why"),
    }
}

/// Streams are told what is missing, and it shows where an operator looks; the node is ready all the same.
async fn is_told(gateway: &Gateway, group: &str, what: &str, metadata: (&str, &str)) {
    let status = refusal(gateway, group).await;
    let details = status.get_error_details();
    let info = details.error_info().expect("a reason").clone();
    assert_eq!((status.code(), info.reason.as_str()), (Code::FailedPrecondition, "KAFKA_RIGHTS_MISSING"), "{status:?}");
    assert!(status.message().contains(what) && status.message().contains(group), "{status:?}");
    let named = |key: &str| info.metadata.get(key).cloned();
    assert_eq!(named("subscription").as_deref(), Some(group));
    assert_eq!(info.metadata.get(metadata.0).map(String::as_str), Some(metadata.1), "{info:?}");
    shows(gateway, group, "rights_missing", what).await;
}

/// Waits until the page says this of a subscription. The node is ready.
async fn shows(gateway: &Gateway, group: &str, state: &str, detail: &str) {
    eventually("the page shows it", SOON, async || {
        let (status, page) = gateway.page("/readyz");
        let all: serde_json::Value = serde_json::from_str(&page).expect("JSON");
        let row = &all["subscriptions"][group];
        let seen = row["kafka"] == state && row["detail"].as_str().unwrap_or_default().contains(detail);
        if status == 200 && seen { Ok(()) } else { Err((status, page)) }
    })
    .await;
}

/// A stream gets all there is and settles it, once it may: until then it is refused.
async fn is_served(gateway: &Gateway, group: &str, topic: &str, records: usize) -> Wire {
    let mut wire = eventually("a stream is served", SOON, async || {
        let mut wire = Wire::open(gateway.channel().await, subscribe(group, 3)).await?;
        let start = std::time::Instant::now();
        while wire.inbox.is_empty() && start.elapsed() < SOON {
            if let sluice_tests::wire::Seen::Ended(end) = wire.read(std::time::Duration::from_millis(100)).await {
                return Err(end.expect_err("it does not end well"));
            }
        }
        Ok(wire)
    })
    .await;
    let records = wire.records(records).await;
    wire.ack(&records);
    committed_to_the_end(guarded().kafka(), group, topic).await;
    wire
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_a_wrong_password_is_never_ready_and_says_why() {
    let (topic, group) = topic_and_group("password");
    may_read(guarded(), &topic, &group);
    let gateway = guarded().gateway("wrong").subscription(subscription(&group, &[&topic], &[])).start();
    eventually("it says why", SOON, async || match gateway.page("/readyz") {
        (503, page) if page.contains("kafka refuses") && page.contains("uthentication failed") => Ok(()),
        // Not for a moment: a roll-out would go on.
        (503, page) => Err(page),
        other => panic!("{other:?}"),
    })
    .await;
    assert_eq!(gateway.page("/healthz").0, 200, "a restart mends nothing");

    let gateway = node(&[(&group, &topic)], &[]).start();
    gateway.ready().await;
    is_served(&gateway, &group, &topic, 3).await;
}

/// What the gateway may do to begin with, and what is missing then.
async fn a_topic_that_may_not_be_read(name: &str, to_begin_with: Option<Operation>) {
    let (topic, group) = topic_and_group(name);
    let (other, its_group) = topic_and_group(name);
    guarded().allow(Operation::Read, On::Group(&group));
    may_read(guarded(), &other, &its_group);
    if let Some(operation) = to_begin_with {
        guarded().allow(operation, On::Topic(&topic));
    }
    let gateway = node(&[(&group, &topic), (&its_group, &other)], &["metadata_refresh = \"1s\""]).start();
    gateway.ready().await;
    let missing = format!("READ on topic {topic:?}");
    is_told(&gateway, &group, &missing, ("topics", &topic)).await;
    // The node's other subscription is none the worse.
    let mut wire = is_served(&gateway, &its_group, &other, 3).await;
    is_told(&gateway, &group, &missing, ("topics", &topic)).await;

    guarded().allow(Operation::Read, On::Topic(&topic));
    let mut healed = is_served(&gateway, &group, &topic, 3).await;
    shows(&gateway, &group, "reachable", "").await;
    // And it is taken while a stream is there.
    guarded().take(Operation::Read, On::Topic(&topic));
    let status = healed.end().await.expect_err("it is told why");
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    guarded().kafka().fill(&topic, 1, 3, 16);
    is_told(&gateway, &group, &missing, ("topics", &topic)).await;
    wire.barrier().await;
    guarded().allow(Operation::Read, On::Topic(&topic));
    is_served(&gateway, &group, &topic, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_a_topic_that_may_not_be_read_are_told_and_served_once_it_may() {
    a_topic_that_may_not_be_read("no-read", Some(Operation::Describe)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_a_topic_that_may_not_even_be_seen_are_told_and_served_once_it_may() {
    a_topic_that_may_not_be_read("no-sight", None).await;
}

async fn a_group_that_may_not_be_joined(name: &str, to_begin_with: Option<Operation>, lines: &[&str]) {
    let (topic, group) = topic_and_group(name);
    let (other, its_group) = topic_and_group(name);
    guarded().allow(Operation::Read, On::Topic(&topic));
    may_read(guarded(), &other, &its_group);
    if let Some(operation) = to_begin_with {
        guarded().allow(operation, On::Group(&group));
    }
    let lines: Vec<&str> = lines.iter().copied().chain(["leave_delay = \"2s\""]).collect();
    let gateway = node(&[(&group, &topic), (&its_group, &other)], &lines).start();
    gateway.ready().await;
    let missing = format!("READ on group {group:?}");
    is_told(&gateway, &group, &missing, ("group", &group)).await;
    is_served(&gateway, &its_group, &other, 3).await;
    // Nobody tries to join any more, and whoever comes then is told again.
    shows(&gateway, &group, "idle", "").await;
    is_told(&gateway, &group, &missing, ("group", &group)).await;

    guarded().allow(Operation::Read, On::Group(&group));
    is_served(&gateway, &group, &topic, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_a_group_that_may_not_be_joined_are_told_and_served_once_it_may() {
    a_group_that_may_not_be_joined("no-join", Some(Operation::Describe), &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_a_group_that_may_not_even_be_seen_are_told_and_served_once_it_may() {
    a_group_that_may_not_be_joined("no-group", None, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_a_group_that_may_not_be_joined_by_the_new_protocol_are_told_and_served_once_it_may() {
    a_group_that_may_not_be_joined("no-848", Some(Operation::Describe), &["protocol = \"consumer\""]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_may_not_be_read_stops_no_other_topic_of_its_subscription() {
    let (topic, group) = topic_and_group("one-of-two");
    let (other, _) = topic_and_group("one-of-two");
    may_read(guarded(), &topic, &group);
    guarded().allow(Operation::Describe, On::Topic(&other));
    let config = guarded().gateway(PASSWORD).subscription(subscription(&group, &[&topic, &other], &[]));
    let gateway = config.start();
    let mut wire = Wire::subscribe(&gateway, &group, 10).await;
    let records = wire.records(3).await;
    assert!(records.iter().all(|record| *record.topic == topic));
    wire.ack(&records);
    committed_to_the_end(guarded().kafka(), &group, &topic).await;
    shows(&gateway, &group, "rights_missing", &format!("READ on topic {other:?}")).await;
    let blocked: HashMap<_, _> =
        gateway.partitions(&group).await.into_iter().map(|one| (one.topic, one.blocked_on)).collect();
    assert_eq!((blocked[&topic].as_str(), blocked[&other].as_str()), ("", "broker"));
    guarded().allow(Operation::Read, On::Topic(&other));
    let records = wire.records(3).await;
    assert!(records.iter().all(|record| *record.topic == other));
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_that_may_not_be_written_are_held_until_they_may() {
    let kafka = guarded().kafka();
    let (topic, group) = topic_and_group("no-write");
    let letters = kafka.topic("no-write-letters", 1);
    may_read(guarded(), &topic, &group);
    let gateway = node(&[(&group, &topic)], &[&format!("dead_letter_topic = {letters:?}")]).start();
    let mut wire = Wire::subscribe(&gateway, &group, 3).await;
    let records = wire.records(3).await;
    wire.ack(&records[..1]);
    wire.settle(&records[1..2], &dead_letter("poison"));
    wire.ack(&records[2..]);
    committed_is(kafka, &group, &topic, 1).await;
    eventually("it is told why it is held", SOON, async || {
        let why = gateway.subscription(&group).await.dead_letter_error;
        let tries = gateway.metric("sluice_dead_letter_writes_failed_total", &group);
        // More than once: it is not given up.
        if why.contains(&letters) && tries >= Some(2.0) { Ok(()) } else { Err((why, tries)) }
    })
    .await;
    assert_eq!((gateway.page("/readyz").0, gateway.stats(&group).await.dead_lettered), (200, 0));
    guarded().allow(Operation::Write, On::Topic(&letters));
    committed_to_the_end(kafka, &group, &topic).await;
    let written: Vec<_> = kafka.stored(&letters, 0).into_iter().map(|letter| letter.value).collect();
    assert_eq!(written, [records[1].value.as_ref().map(|value| value.to_vec())], "once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_any_node_of_a_cluster_is_told_what_may_not_be_read() {
    let (topic, group) = topic_and_group("edges");
    guarded().allow(Operation::Describe, On::Topic(&topic));
    let config = node(&[(&group, &topic)], &["leave_delay = \"2s\""]);
    let cluster = Cluster::start(&config, 2).await;
    cluster.knows(1).await;
    // The group first: only the node that is to join it can know. Then the topic: only its owner can.
    let group_missing = format!("READ on group {group:?}");
    for at in [0, 1, 0, 1] {
        is_told_by(&cluster.nodes[at], &group, &group_missing).await;
    }
    guarded().allow(Operation::Read, On::Group(&group));
    let topic_missing = format!("READ on topic {topic:?}");
    for at in [0, 1, 0, 1] {
        eventually("the topic is told of", SOON, async || {
            let status = refusal(&cluster.nodes[at], &group).await;
            if status.message().contains(&topic_missing) { Ok(()) } else { Err(status) }
        })
        .await;
    }
    assert!(cluster.nodes.iter().all(|node| node.page("/readyz").0 == 200));
    guarded().allow(Operation::Read, On::Topic(&topic));
    drop(is_served(&cluster.nodes[0], &group, &topic, 3).await);
    guarded().kafka().fill(&topic, 1, 3, 16);
    is_served(&cluster.nodes[1], &group, &topic, 3).await;
}

async fn is_told_by(gateway: &Gateway, group: &str, what: &str) {
    let status = refusal(gateway, group).await;
    let told = (status.code(), status.message().contains(what) && status.message().contains(group));
    assert_eq!(told, (Code::FailedPrecondition, true), "{status:?}");
}
