//! Who joins the Kafka group.

use std::time::{Duration, Instant};

use sluice_tests::process::Signal;
use sluice_tests::wire::Wire;
use sluice_tests::{Cluster, SOON, broker, eventually, unique};

use super::cluster;
use crate::committed_to_the_end;

#[tokio::test(flavor = "multi_thread")]
async fn of_eight_nodes_at_most_three_are_members_where_there_are_three_partitions() {
    let kafka = broker();
    let topic = kafka.topic("members", 3);
    let group = unique("members");
    let cluster = cluster(8, &group, &topic, &["leave_delay = \"2s\""]).await;
    assert_eq!(kafka.group(&group).1, [""; 0], "nobody has a client");
    // A client on each: members do not follow clients.
    let mut wires = Vec::new();
    for node in &cluster.nodes {
        wires.push(Wire::subscribe(node, &group, 10).await);
    }
    let most = |until: Duration| {
        let start = Instant::now();
        let (mut most, mut last) = (0, Vec::new());
        while start.elapsed() < until {
            let (state, members) = kafka.group(&group);
            if state == "Stable" {
                most = most.max(members.len());
                last = members;
            }
        }
        (most, last)
    };
    eventually("three are members", SOON, async || {
        let (most, members) = tokio::task::block_in_place(|| most(Duration::from_millis(200)));
        assert!(most <= 3, "{most} members at a stable generation: {members:?}");
        if members.len() == 3 { Ok(()) } else { Err(members) }
    })
    .await;
    let (seen, members) = tokio::task::block_in_place(|| most(Duration::from_secs(15)));
    assert_eq!((seen, members.len()), (3, 3), "{members:?}");
    cluster.spread(&group, 3, 3).await;
    // Clients that come and go on all nodes, members or not, move nothing.
    let moves = || {
        let logs = cluster.nodes.iter().map(|node| std::fs::read_to_string(node.log()).expect("a log"));
        let words = ["sluice_kafka::member: assigned", "sluice_kafka::member: revoked", "joining the group"];
        logs.map(|log| words.iter().map(|word| log.matches(word).count()).sum::<usize>()).sum::<usize>()
    };
    let before = moves();
    assert!(before >= 6, "three joined, and were assigned: {before}");
    for wave in 0..25 {
        let mut visitors = Vec::new();
        for at in 0..20 {
            visitors.push(Wire::subscribe(&cluster.nodes[(wave + at) % 8], &group, 10).await);
        }
        visitors.iter_mut().step_by(2).for_each(Wire::half_close);
    }
    let (seen, members) = tokio::task::block_in_place(|| most(Duration::from_secs(5)));
    assert_eq!((seen, members.len(), moves()), (3, 3, before), "{members:?}");
    drop(wires);
    eventually("the group is left", SOON, async || {
        let (_, members) = tokio::task::block_in_place(|| kafka.group(&group));
        if members.is_empty() { Ok(()) } else { Err(members) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_static_member_of_a_cluster_that_restarts_in_time_moves_no_partition() {
    let kafka = broker();
    let (topic, group) = (kafka.topic("static", 2), unique("static"));
    let lines = ["static_membership = true", "kafka_session_timeout = \"20s\""];
    let mut cluster = cluster(3, &group, &topic, &lines).await;
    let mut wire = Wire::subscribe(&cluster.nodes[0], &group, 100).await;
    let owners = cluster.spread(&group, 2, 2).await;
    let stays = owners.iter().copied().find(|owner| *owner != owners[0]).expect("two nodes own one each");
    let epoch_of = async |cluster: &Cluster, partition: usize| {
        let all = cluster.nodes[stays].partitions(&group).await;
        let found = all.into_iter().find(|one| usize::try_from(one.partition) == Ok(partition));
        found.map(|one| (one.node, one.epoch))
    };
    let kept = epoch_of(&cluster, 1).await;
    // A node that has just started counts at once among others that have: this is about one that comes back to old ones.
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(11) {
        wire.read(Duration::from_millis(200)).await;
    }
    drop(wire);
    // With a client elsewhere, so that nobody thinks of leaving.
    wire = Wire::subscribe(&cluster.nodes[stays], &group, 100).await;
    cluster.nodes[owners[0]].signal(Signal::Term);
    assert!(cluster.nodes[owners[0]].ended().await.success(), "a drain ends with status 0");
    cluster.nodes[owners[0]].restart();
    assert_eq!(cluster.owners(&group, 2).await, owners);
    assert_eq!(epoch_of(&cluster, 1).await, kept, "nothing happened to the other");
    kafka.fill(&topic, 2, 20, 32);
    let records = wire.records(20).await;
    wire.ack(&records);
    committed_to_the_end(kafka, &group, &topic).await;
}
