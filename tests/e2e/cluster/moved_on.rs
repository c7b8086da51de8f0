//! Consumers that come back through another node, whatever their first one still believes.

use std::time::Duration;

use sluice_proto::v1::Subscribe;
use sluice_tests::process::Signal;
use sluice_tests::wire::subscribe;
use sluice_tests::{Broker, Cluster, GatewayConfig, SOON, Wire, broker, eventually, unique};
use tonic::Code;
use tonic_types::StatusExt as _;

use super::{cluster, others};
use crate::{committed_to_the_end, subscription};

/// When it sees its peers again, the first node opens the session of a client that has long been elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_moved_on_keeps_its_session_when_its_first_node_is_back() {
    let (kafka, group, topic) = (broker(), unique("moved-on"), broker().topic("moved-on", 1));
    let cluster = cluster(3, &group, &topic, &[]).await;
    let _first = Wire::subscribe(&cluster.nodes[0], &group, 0).await;
    let owner = cluster.owners(&group, 1).await[0];
    let (before, now) = (others(3, owner)[0], others(3, owner)[1]);
    let peers = async |at: usize, count: f64| {
        let node = &cluster.nodes[at];
        eventually(&format!("node {at} sees {count} peers"), SOON, async || match node.metric("sluice_peers", "") {
            Some(seen) if (seen - count).abs() < f64::EPSILON => Ok(()),
            other => Err(other),
        })
        .await;
    };
    let first = Subscribe { consumer_id: "c".to_owned(), ..subscribe(&group, 20) };
    let mut stale = Wire::connect(&cluster.nodes[before], first.clone()).await;
    kafka.fill(&topic, 1, 20, 32);
    let held = stale.records(20).await;
    // In the dark, as for its client, which comes back elsewhere.
    others(3, before).into_iter().for_each(|other| cluster.set_dark(before, other, true));
    let holding = vec![held[0].range(held[0].offset, held[9].offset)];
    let second = Subscribe { holding, seen: stale.seen, ..first };
    let mut lives = Wire::connect(&cluster.nodes[now], second).await;
    lives.ack(&held[..10]);
    let rest = lives.records(10).await;
    lives.ack(&rest);
    peers(before, 0.0).await;
    peers(owner, 1.0).await;
    others(3, before).into_iter().for_each(|other| cluster.set_dark(before, other, false));
    let end = stale.end().await.expect_err("it is told why");
    assert_eq!(end.code(), Code::Aborted, "{end:?}");
    assert_eq!(end.get_details_error_info().expect("an ErrorInfo").reason, "CONSUMER_SUPERSEDED");
    kafka.fill(&topic, 1, 20, 32);
    let more = lives.records(20).await;
    lives.ack(&more);
    committed_to_the_end(kafka, &group, &topic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_keeps_what_it_works_on_longer_than_its_edge_drains() {
    let (kafka, group, topic) = (broker(), unique("long-work"), broker().topic("long-work", 1));
    let lines = ["resume_timeout = \"60s\""];
    let config = GatewayConfig::new(kafka).node("drain_timeout = \"3s\"");
    let mut cluster = Cluster::start(&config.subscription(subscription(&group, &[&topic], &lines)), 3).await;
    cluster.knows(2).await;
    let _first = Wire::subscribe(&cluster.nodes[0], &group, 0).await;
    let owner = cluster.owners(&group, 1).await[0];
    let (leaves, stays) = (others(3, owner)[0], others(3, owner)[1]);
    let first = Subscribe { consumer_id: "c".to_owned(), ..subscribe(&group, 20) };
    let mut wire = Wire::connect(&cluster.nodes[leaves], first.clone()).await;
    kafka.fill(&topic, 1, 20, 32);
    let held = wire.records(20).await;
    cluster.nodes[leaves].signal(Signal::Term);
    wire.until("it is told", |wire| wire.drained.then_some(())).await;
    // A part of the drain is kept for the last commits: whoever settles within what it was told is in time.
    let told = wire.drain_grace;
    assert!(told > Duration::ZERO && told <= Duration::from_millis(2_400), "{told:?}");
    wire.end().await.expect("a drained stream ends with OK");
    assert!(cluster.nodes[leaves].ended().await.success(), "a drain ends with status 0");
    let holding = vec![held[0].range(held[0].offset, held[19].offset)];
    let second = Subscribe { holding: holding.clone(), seen: wire.seen, ..first };
    let mut wire = Wire::connect(&cluster.nodes[stays], second).await;
    assert_eq!(wire.subscribed.held, holding);
    wire.ack(&held);
    committed_to_the_end(kafka, &group, &topic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_came_before_it_was_known_that_the_topic_is_missing_are_told() {
    let broker = Broker::start();
    let kafka = broker.kafka();
    broker.kill();
    let group = unique("not-there");
    let config = GatewayConfig::new(kafka).subscription(subscription(&group, &["there-is-none"], &[]));
    let cluster = Cluster::start(&config, 2).await;
    let mut streams = Vec::new();
    for node in &cluster.nodes {
        streams.push(Wire::subscribe(node, &group, 1).await);
    }
    broker.restart();
    for mut stream in streams {
        let end = stream.end().await.expect_err("it is told why");
        assert_eq!(end.code(), Code::FailedPrecondition, "{end:?}");
        assert!(end.message().contains("there-is-none"), "{end:?}");
    }
}
