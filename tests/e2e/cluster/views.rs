//! One view, whichever node is asked.

use std::process::Command;

use sluice_proto::v1::subscription_service_client::SubscriptionServiceClient;
use sluice_proto::v1::{PauseSubscriptionRequest, ResumeSubscriptionRequest, Subscribe};
use sluice_tests::process::Signal;
use sluice_tests::wire::{Wire, subscribe};
use sluice_tests::{SOON, broker, eventually, unique};

use super::cluster;
use crate::committed_to_the_end;

#[tokio::test(flavor = "multi_thread")]
async fn every_node_shows_pauses_and_resumes_the_whole_cluster() {
    let kafka = broker();
    let topic = kafka.topic("views", 3);
    let group = unique("views");
    let cluster = cluster(3, &group, &topic, &[]).await;
    let named = |name: &str| Subscribe { consumer_id: name.to_owned(), ..subscribe(&group, 10) };
    let mut first = Wire::connect(&cluster.nodes[0], named("first")).await;
    let mut second = Wire::connect(&cluster.nodes[1], named("second")).await;
    cluster.spread(&group, 3, 3).await;
    for node in &cluster.nodes {
        let mut consumers: Vec<_> = node
            .consumers(&group)
            .await
            .into_iter()
            .map(|one| (one.consumer_id, one.node, one.window_records))
            .collect();
        consumers.sort();
        let expected = [("first", "node-0", 10), ("second", "node-1", 10)];
        assert_eq!(consumers, expected.map(|(name, node, window)| (name.to_owned(), node.to_owned(), window)));
    }
    let mut operator = SubscriptionServiceClient::new(cluster.nodes[2].channel().await);
    operator.pause_subscription(PauseSubscriptionRequest { name: group.clone() }).await.expect("pause");
    kafka.fill(&topic, 3, 30, 32);
    eventually("all is fetched, and paused", SOON, async || {
        let partitions = cluster.nodes[0].partitions(&group).await;
        let seen: Vec<_> = partitions.iter().map(|one| (one.lag, one.blocked_on.clone())).collect();
        if seen.iter().all(|(lag, blocked)| *lag == 10 && blocked == "paused") { Ok(()) } else { Err(seen) }
    })
    .await;
    first.barrier().await;
    second.barrier().await;
    assert!(first.inbox.is_empty() && second.inbox.is_empty());
    operator.resume_subscription(ResumeSubscriptionRequest { name: group.clone() }).await.expect("resume");
    let mut acked = 0;
    while acked < 30 {
        for wire in [&mut first, &mut second] {
            wire.barrier().await;
            let batch: Vec<_> = wire.inbox.drain(..).collect();
            acked += batch.len();
            wire.ack(&batch);
        }
    }
    eventually("every node counts what all have done", SOON, async || {
        let stats = cluster.nodes[2].stats(&group).await;
        if (stats.received, stats.acked) == (30, 30) { Ok(()) } else { Err(stats) }
    })
    .await;
    let server = format!("http://{}", cluster.nodes[1].address());
    let mut command = Command::new(sluice_tests::gateway::executable());
    let shown = command.args(["nodes", "--server", &server]).output().expect("run sluice nodes");
    let text = String::from_utf8_lossy(&shown.stdout);
    assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
    for node in ["node-0", "node-1", "node-2"] {
        let row = text.lines().find(|line| line.contains(node)).unwrap_or_default();
        let cells: Vec<&str> = row.split_whitespace().collect();
        let clients = if node == "node-2" { "0" } else { "1" };
        assert_eq!(cells.get(2..5), Some(&["yes", "1", clients][..]), "{text}");
    }
}

/// The last word of all nodes holds: whoever was away, or comes later, takes it over.
#[tokio::test(flavor = "multi_thread")]
async fn a_paused_subscription_stays_paused_when_a_node_restarts() {
    let kafka = broker();
    let (topic, group) = (kafka.topic("stays-paused", 2), unique("stays-paused"));
    let mut cluster = cluster(2, &group, &topic, &[]).await;
    let mut wire = Wire::subscribe(&cluster.nodes[0], &group, 100).await;
    cluster.spread(&group, 2, 2).await;
    let mut operator = SubscriptionServiceClient::new(cluster.nodes[0].channel().await);
    operator.pause_subscription(PauseSubscriptionRequest { name: group.clone() }).await.expect("pause");
    cluster.nodes[1].signal(Signal::Term);
    assert!(cluster.nodes[1].ended().await.success());
    cluster.nodes[1].restart();
    cluster.knows(1).await;
    cluster.spread(&group, 2, 2).await;
    kafka.fill(&topic, 2, 20, 32);
    eventually("all is fetched, and paused", SOON, async || {
        let partitions = cluster.nodes[0].partitions(&group).await;
        let seen: Vec<_> = partitions.iter().map(|one| (one.lag, one.blocked_on.clone())).collect();
        if seen.iter().all(|(lag, blocked)| *lag == 10 && blocked == "paused") { Ok(()) } else { Err(seen) }
    })
    .await;
    wire.barrier().await;
    assert!(wire.inbox.is_empty(), "{} records of a paused subscription", wire.inbox.len());
    assert!(cluster.nodes[1].subscription(&group).await.paused, "the node that came back says so");
    let mut operator = SubscriptionServiceClient::new(cluster.nodes[1].channel().await);
    operator.resume_subscription(ResumeSubscriptionRequest { name: group.clone() }).await.expect("resume");
    let records = wire.records(20).await;
    wire.ack(&records);
    committed_to_the_end(kafka, &group, &topic).await;
}
