//! What Kafka says of a group: nodes find each other by it, and warn of who does not belong there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use sluice_tests::wire::Wire;
use sluice_tests::{Broker, Cluster, Crew, Gateway, GatewayConfig, History, Kafka, SOON, broker, eventually, unique};

use crate::{owns, subscription};

const MEMBERS: &str = "sluice_group_members";
const OTHER: &str = "sluice_peers_of_other_policy";
/// The group is looked at as often.
const SOONER: &str = "metadata_refresh = \"500ms\"";
/// A node without peers looks at it only when told to.
const DESCRIBED: &str = "describe_group = true";
const PROTOCOLS: [&str; 2] = ["classic", "consumer"];

/// A consumer of the group that is no node.
struct Foreign {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Foreign {
    fn join(kafka: &Kafka, group: &str, topic: &str, protocol: &str) -> Self {
        let config = kafka.config(&[("group.id", group), ("client.id", "reports"), ("group.protocol", protocol)]);
        let mut config = config;
        if protocol == "classic" {
            // One that is dropped in a rebalance leaves no word: the group forgets it soon.
            config.set("partition.assignment.strategy", "cooperative-sticky").set("session.timeout.ms", "6000");
        }
        let consumer: BaseConsumer = config.create().expect("a consumer");
        consumer.subscribe(&[topic]).expect("subscribe");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let _ = consumer.poll(Duration::from_millis(50));
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

async fn shows(node: &Gateway, metric: &str, labels: &str, goal: f64) {
    eventually(&format!("{metric}{{{labels}}} is {goal}"), SOON, async || match node.metric(metric, labels) {
        Some(count) if (count - goal).abs() < f64::EPSILON => Ok(()),
        other => Err(other),
    })
    .await;
}

fn log(node: &Gateway) -> String {
    std::fs::read_to_string(node.log()).expect("read the log")
}

fn config(name: &str, topic: &str, protocol: &str, lines: &[&str]) -> GatewayConfig {
    config_on(broker(), name, topic, protocol, lines)
}

fn config_on(kafka: &Kafka, name: &str, topic: &str, protocol: &str, lines: &[&str]) -> GatewayConfig {
    let protocol = format!("protocol = {protocol:?}");
    let lines: Vec<&str> = [&protocol, SOONER].into_iter().chain(lines.iter().copied()).collect();
    GatewayConfig::new(kafka).subscription(subscription(name, &[topic], &lines))
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_with_different_policies_warn_of_each_other() {
    for protocol in PROTOCOLS {
        let topic = broker().topic("disagree", 2);
        let group = unique("disagree");
        let other = config(&group, &topic, protocol, &["retry = { max_attempts = 7 }"]);
        let cluster = Cluster::of(&[config(&group, &topic, protocol, &[]), other]).await;
        cluster.knows(1).await;
        // Peers say it though nobody is in the group.
        for node in &cluster.nodes {
            shows(node, OTHER, "", 1.0).await;
            shows(node, MEMBERS, "", 0.0).await;
            assert!(log(node).contains("a peer has another policy for this subscription"));
        }
        let _one = Wire::subscribe(&cluster.nodes[0], &group, 10).await;
        cluster.spread(&group, 2, 2).await;
        for node in &cluster.nodes {
            shows(node, MEMBERS, "kind=\"other_policy\"", 1.0).await;
            shows(node, MEMBERS, "kind=\"same_policy\"", 1.0).await;
            shows(node, MEMBERS, "kind=\"foreign\"", 0.0).await;
            shows(node, "sluice_group_members_not_connected", "", 0.0).await;
            assert!(log(node).contains("a node of the group has another policy for this subscription"));
        }
        let server = format!("http://{}", cluster.nodes[0].address());
        let mut command = std::process::Command::new(sluice_tests::gateway::executable());
        let shown = command.args(["nodes", "--server", &server]).output().expect("run sluice nodes");
        let text = String::from_utf8_lossy(&shown.stdout);
        let hashes: Vec<_> =
            text.lines().filter(|line| line.contains("node-")).map(|line| line.split_whitespace().last()).collect();
        assert_eq!(hashes.len(), 2, "{text}");
        assert!(hashes[0] != hashes[1] && hashes.iter().all(|hash| hash.is_some_and(|hash| hash.len() == 8)), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_one_policy_warn_of_nothing() {
    let topic = broker().topic("agree", 2);
    let group = unique("agree");
    // What is a node's own matter, and topics in another order, are no disagreement.
    let other = config(&group, &topic, "classic", &["commit_interval = \"100ms\"", "leave_delay = \"20s\""]);
    let cluster = Cluster::of(&[config(&group, &topic, "classic", &[]), other]).await;
    cluster.knows(1).await;
    let _one = Wire::subscribe(&cluster.nodes[0], &group, 10).await;
    cluster.spread(&group, 2, 2).await;
    for node in &cluster.nodes {
        shows(node, MEMBERS, "kind=\"same_policy\"", 2.0).await;
        shows(node, OTHER, "", 0.0).await;
        assert!(!log(node).contains("another policy"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_were_told_no_address_find_each_other_by_the_group_and_relay() {
    for protocol in PROTOCOLS {
        let kafka = broker();
        let topic = kafka.topic("found", 2);
        let group = unique("found");
        let node = |name: &str| {
            config(&group, &topic, protocol, &[])
                .node(&format!("name = {name:?}"))
                .peers("listen = \"127.0.0.1:0\"")
                .peers("from_group = true")
                .start()
        };
        let first = node("node-0");
        let _stays = Wire::subscribe(&first, &group, 0).await;
        owns(&first, &group, 2).await;
        let second = node("node-1");
        let mut wire = Wire::subscribe(&second, &group, 20).await;
        for node in [&first, &second] {
            shows(node, "sluice_peers", "", 1.0).await;
        }
        eventually("each owns one partition", SOON, async || {
            let mut owners: Vec<_> = second.partitions(&group).await.into_iter().map(|one| one.node).collect();
            owners.sort();
            if owners == ["node-0", "node-1"] { Ok(()) } else { Err(owners) }
        })
        .await;
        kafka.fill(&topic, 2, 20, 32);
        let leases = wire.records(20).await;
        wire.ack(&leases);
        let relayed = second.metric("sluice_edge_records_delivered_total", "from=\"other_nodes\"");
        assert_eq!(relayed, Some(10.0), "what the first one owns");
        // One that goes is forgotten, and not dialed again.
        drop(first);
        shows(&second, "sluice_peers", "", 0.0).await;
        owns(&second, &group, 2).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_is_no_node_is_warned_of_while_it_is_there() {
    for protocol in PROTOCOLS {
        let topic = broker().topic("foreign", 2);
        let group = unique("foreign");
        let node = config(&group, &topic, protocol, &[DESCRIBED]).start();
        let _wire = Wire::subscribe(&node, &group, 10).await;
        owns(&node, &group, 2).await;
        shows(&node, MEMBERS, "kind=\"same_policy\"", 1.0).await;
        let foreign = Foreign::join(broker(), &group, &topic, protocol);
        shows(&node, MEMBERS, "kind=\"foreign\"", 1.0).await;
        let said = log(&node);
        assert!(said.contains("client_id=\"reports\"") && said.contains("is no node of sluice"), "{said}");
        drop(foreign);
        shows(&node, MEMBERS, "kind=\"foreign\"", 0.0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_of_the_group_that_is_no_peer_is_warned_of_and_not_dialed_unasked() {
    let topic = broker().topic("apart", 2);
    let group = unique("apart");
    let node = || {
        config(&group, &topic, "classic", &["join = \"at_start\""])
            .peers("listen = \"127.0.0.1:0\"")
            .peers("addresses = [\"127.0.0.1:1\"]")
            .peers("resolve_interval = \"200ms\"")
            .start()
    };
    let nodes = [node(), node()];
    for node in &nodes {
        shows(node, "sluice_group_members_not_connected", "", 1.0).await;
        eventually("the log says it", SOON, async || {
            let said = log(node);
            if said.contains("is a member of a group and no peer of this one") { Ok(()) } else { Err(said) }
        })
        .await;
        assert_eq!(node.metric("sluice_peers", ""), Some(0.0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_asks_who_is_in_its_group_outlives_brokers_that_go_away_meanwhile() {
    for protocol in PROTOCOLS {
        let broker = Broker::start();
        let kafka = broker.kafka();
        let topic = kafka.topic("outlives", 2);
        let group = unique("outlives");
        let node = config_on(kafka, &group, &topic, protocol, &[DESCRIBED]).start();
        // A client that reads nothing is silent, and the group is left when its last one is gone.
        let crew = Crew::new(&node, &group, &History::default()).start(1);
        owns(&node, &group, 2).await;
        shows(&node, MEMBERS, "kind=\"same_policy\"", 1.0).await;
        broker.kill();
        eventually("the group could not be described", SOON, async || {
            let said = log(&node);
            if said.contains("the group is not described") { Ok(()) } else { Err(said) }
        })
        .await;
        broker.restart();
        node.ready().await;
        let foreign = Foreign::join(kafka, &group, &topic, protocol);
        shows(&node, MEMBERS, "kind=\"foreign\"", 1.0).await;
        drop(foreign);
        shows(&node, MEMBERS, "kind=\"foreign\"", 0.0).await;
        crew.stop().await;
    }
}
