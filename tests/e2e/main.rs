//! The whole path on a real Kafka: a gateway as a process of its own, clients on the wire.

mod bad_input;
mod balancers;
mod basics;
mod clients;
mod cluster;
mod consume;
mod crash;
mod dead_letters;
mod durable;
mod expiry;
mod handover;
mod lanes;
mod limits;
mod outage;
mod poison;
mod retries;
mod rights;
mod rust_client;
mod seek;
mod services;
mod settlements;
mod stock_grpc;
mod topics;
mod windows;

use std::time::Duration;

use sluice_tests::{Gateway, GatewayConfig, Kafka, SOON, SubscriptionConfig, broker, eventually};

/// A gateway with one subscription of one topic; group and subscription have this name.
fn gateway(name: &str, topic: &str, lines: &[&str]) -> Gateway {
    gateway_on(broker(), name, &[topic], lines)
}

fn gateway_on(kafka: &Kafka, name: &str, topics: &[&str], lines: &[&str]) -> Gateway {
    GatewayConfig::new(kafka).subscription(subscription(name, topics, lines)).start()
}

fn subscription(name: &str, topics: &[&str], lines: &[&str]) -> SubscriptionConfig {
    lines.iter().fold(SubscriptionConfig::new(name, topics), |config, line| config.with(line))
}

/// Waits until the group's committed offset of each partition is the end of its log.
async fn committed_to_the_end(kafka: &Kafka, group: &str, topic: &str) {
    let ends = kafka.end_offsets(topic);
    eventually("everything is committed", SOON, async || {
        let committed: std::collections::BTreeMap<_, _> =
            kafka.committed(group, topic).into_iter().map(|(partition, (offset, _))| (partition, offset)).collect();
        if committed == ends { Ok(()) } else { Err(format!("committed {committed:?}, ends {ends:?}")) }
    })
    .await;
}

/// Waits until the committed offset of partition 0 is this one.
async fn committed_is(kafka: &Kafka, group: &str, topic: &str, offset: i64) {
    eventually("the committed offset is there", SOON, async || match kafka.committed_offset(group, topic, 0) {
        Some(found) if found == offset => Ok(()),
        other => Err(other),
    })
    .await;
}

/// Waits until the group has made so many commits of a topic that move its offset: a fault before that shows little.
async fn has_committed(kafka: &Kafka, group: &str, topic: &str, commits: usize) {
    eventually("commits are made", SOON, async || {
        let history = kafka.commit_history(group);
        let moved = history.iter().filter(|commit| commit.topic == topic && commit.offset > Some(0)).count();
        if moved >= commits { Ok(()) } else { Err(moved) }
    })
    .await;
}

/// Waits until the gateway says that nothing is left to do.
async fn lag_is_zero(gateway: &Gateway, subscription: &str) {
    eventually("the lag is 0", SOON, async || {
        let partitions = gateway.partitions(subscription).await;
        let lags: Vec<_> = partitions.iter().map(|one| (one.topic.clone(), one.partition, one.lag)).collect();
        if !lags.is_empty() && lags.iter().all(|(_, _, lag)| *lag == 0) { Ok(()) } else { Err(lags) }
    })
    .await;
}

/// Waits until the gateway owns so many partitions of a subscription.
async fn owns(gateway: &Gateway, subscription: &str, count: usize) {
    eventually("the gateway owns its partitions", SOON, async || {
        let owned = gateway.partitions(subscription).await.len();
        if owned == count { Ok(()) } else { Err(owned) }
    })
    .await;
}

/// As `eventually`, for a count that must reach `goal`.
async fn reaches(what: &str, goal: usize, mut count: impl FnMut() -> usize) {
    let deadline = Duration::from_secs(120);
    eventually(what, deadline, async || {
        let seen = count();
        if seen >= goal { Ok(()) } else { Err(seen) }
    })
    .await;
}
