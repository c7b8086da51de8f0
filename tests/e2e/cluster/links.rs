//! Links that are cut for longer than anybody waits: between nodes, one way and both, and between a node and Kafka.

use std::time::Duration;

use sluice_tests::history::now_ms;
use sluice_tests::{Broker, Cluster, Crew, Fault, GatewayConfig, History, Kafka, SOON, Wire, broker, unique};
use tokio::time::{Instant, sleep_until};

use super::{Load, all_work, all_work_on_all, cluster, ends_well};
use crate::{committed_to_the_end, has_committed, subscription};

const SESSIONS: usize = 12;
/// Longer than `peers.timeout`, and than Kafka's session.
const DARK: Duration = Duration::from_secs(10);

/// What of what two nodes say to each other gets lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// What the edge says to the owner.
    ToOwner,
    /// What the owner says to the edge.
    FromOwner,
    Both,
}

fn set_dark(cluster: &Cluster, cut: Cut, edge: usize, owner: usize, dark: bool) {
    if cut != Cut::FromOwner {
        cluster.set_dark_one_way(edge, owner, dark);
    }
    if cut != Cut::ToOwner {
        cluster.set_dark_one_way(owner, edge, dark);
    }
}

async fn the_link_between_two_nodes_is_dark(name: &str, cut: Cut) {
    let kafka = broker();
    let topic = kafka.topic(name, 3);
    let group = unique(name);
    let cluster = cluster(3, &group, &topic, &[]).await;
    let history = History::default();
    let crew = Crew::by(&cluster.address(), &group, &history).window(5).work(Duration::from_millis(20)).start(SESSIONS);
    // Each node owns one, and is an edge for the others.
    let owners = cluster.spread(&group, 3, 3).await;
    let (edge, owner) = (owners[0], owners[1]);
    let mut produced = all_work_on_all(&history, SESSIONS, kafka, &topic, 3).await;
    let load = Load::start(kafka, &topic, 3);
    has_committed(kafka, &group, &topic, 3).await;

    let (from_ms, dark_at) = (now_ms(), Instant::now());
    set_dark(&cluster, cut, edge, owner, true);
    // Both have noticed by half of it. Nobody has nothing to do then.
    sleep_until(dark_at + DARK / 2).await;
    for at in [edge, owner] {
        assert_eq!(cluster.nodes[at].metric("sluice_peers", ""), Some(1.0), "node {at} sees the third node alone");
    }
    all_work(&history, SESSIONS, history.moment()).await;
    sleep_until(dark_at + DARK).await;
    set_dark(&cluster, cut, edge, owner, false);
    cluster.knows(2).await;
    let fault = Fault { from_ms, until_ms: now_ms() };

    cluster.spread(&group, 3, 3).await;
    produced.extend(all_work_on_all(&history, SESSIONS, kafka, &topic, 3).await);
    produced.extend(load.stop().await);
    ends_well(kafka, &group, &topic, &history, &produced, &[fault]).await;
    crew.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_an_edge_cannot_reach_for_ten_seconds_is_found_again() {
    the_link_between_two_nodes_is_dark("dark-to", Cut::ToOwner).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_cannot_reach_an_edge_for_ten_seconds_is_found_again() {
    the_link_between_two_nodes_is_dark("dark-from", Cut::FromOwner).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_cannot_reach_each_other_for_ten_seconds_find_each_other_again() {
    the_link_between_two_nodes_is_dark("dark-both", Cut::Both).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_kafka_has_given_up_relays_for_its_clients_until_it_owns_again() {
    let (broker, way) = Broker::start_with_way().await;
    let kafka = broker.kafka();
    let topic = kafka.topic("no-kafka", 3);
    let group = unique("no-kafka");
    let node = |kafka: &Kafka| GatewayConfig::new(kafka).subscription(subscription(&group, &[&topic], &[]));
    let by_way = Kafka::new(way.address().to_string());
    let cluster = Cluster::of(&[node(&by_way), node(kafka), node(kafka)]).await;
    cluster.knows(2).await;
    let history = History::default();
    let crew = Crew::by(&cluster.address(), &group, &history).window(5).work(Duration::from_millis(20)).start(SESSIONS);
    cluster.spread(&group, 3, 3).await;
    let mut produced = all_work_on_all(&history, SESSIONS, kafka, &topic, 3).await;
    let load = Load::start(kafka, &topic, 3);
    has_committed(kafka, &group, &topic, 3).await;

    let (from_ms, dark_at) = (now_ms(), Instant::now());
    way.set_dark(true);
    cluster.owned_by(&[1, 2], &group, 3).await;
    // Its clients, too.
    produced.extend(all_work_on_all(&history, SESSIONS, kafka, &topic, 3).await);
    sleep_until(dark_at + DARK).await;
    way.set_dark(false);
    cluster.spread(&group, 3, 3).await;
    cluster.nodes[0].ready().await;
    let fault = Fault { from_ms, until_ms: now_ms() };

    produced.extend(all_work_on_all(&history, SESSIONS, kafka, &topic, 3).await);
    produced.extend(load.stop().await);
    ends_well(kafka, &group, &topic, &history, &produced, &[fault]).await;
    crew.stop().await;
}

/// One node is enough for each of these groups, so the other takes its place only if it does not count any more.
async fn the_only_member_is_cut_off_from_kafka(protocol: &str) {
    let (broker, way) = Broker::start_with_way().await;
    let kafka = broker.kafka();
    let topic = kafka.topic("only-member", 1);
    // Which node is the member is for the hash to say.
    let groups: Vec<String> = (0..10).map(|_| unique("only-member")).collect();
    let line = format!("protocol = {protocol:?}");
    let node = |kafka: &Kafka| {
        let config = GatewayConfig::new(kafka);
        groups.iter().fold(config, |config, group| config.subscription(subscription(group, &[&topic], &[&line])))
    };
    let by_way = Kafka::new(way.address().to_string());
    let cluster = Cluster::of(&[node(&by_way), node(kafka)]).await;
    cluster.knows(1).await;
    let mut sessions = Vec::new();
    for group in &groups {
        sessions.push((group, Wire::subscribe(&cluster.nodes[1], group, 20).await));
    }
    let mut cut_off = None;
    for (group, wire) in sessions {
        if cut_off.is_none() && cluster.owners(group, 1).await == [0] {
            cut_off = Some((group, wire));
        }
    }
    let (group, mut wire) = cut_off.expect("one of ten is of the first node");
    kafka.fill(&topic, 1, 10, 32);
    let leases = wire.records(10).await;
    wire.ack(&leases);
    committed_to_the_end(kafka, group, &topic).await;
    // By the consumer protocol the session is the broker's, of 45 s. A client that reads nothing would be silent meanwhile.
    let owned_by = async |wire: &mut Wire, owner: &str| {
        let start = Instant::now();
        loop {
            let seen = cluster.nodes[1].partitions(group).await;
            if seen.iter().any(|one| one.node == owner) {
                return;
            }
            assert!(start.elapsed() < 3 * SOON, "{owner} does not own it: {seen:?}");
            let _ = wire.read(Duration::from_millis(100)).await;
        }
    };

    way.set_dark(true);
    owned_by(&mut wire, "node-1").await;
    kafka.fill(&topic, 1, 10, 32);
    let leases = wire.records(10).await;
    wire.ack(&leases);
    committed_to_the_end(kafka, group, &topic).await;
    way.set_dark(false);
    cluster.nodes[0].ready().await;
    owned_by(&mut wire, "node-0").await;
    kafka.fill(&topic, 1, 10, 32);
    let leases = wire.records(10).await;
    wire.ack(&leases);
    committed_to_the_end(kafka, group, &topic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_member_that_kafka_does_not_answer_is_replaced_until_it_does() {
    the_only_member_is_cut_off_from_kafka("classic").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_member_by_kip_848_that_kafka_does_not_answer_is_replaced_until_it_does() {
    the_only_member_is_cut_off_from_kafka("consumer").await;
}
