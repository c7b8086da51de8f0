//! Nodes that find each other by a name: each has a file of names of its own, which the test changes.

use std::net::TcpListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use sluice_tests::wire::Wire;
use sluice_tests::{Gateway, GatewayConfig, SOON, broker, eventually, gateway, scratch, unique};

use crate::subscription;

const NAME: &str = "sluice-peers";

/// A file of names that nodes read in place of the machine's.
struct Names(PathBuf);

impl Names {
    fn new() -> Self {
        let names = Self(scratch::folder("names").join("hosts"));
        names.are(&[]);
        names
    }

    /// From now on the name has these addresses.
    fn are(&self, nodes: &[usize]) {
        let lines = nodes.iter().map(|node| format!("{} {NAME}\n", address(*node)));
        let text: String = std::iter::once("127.0.0.1 localhost\n".to_owned()).chain(lines).collect();
        std::fs::write(&self.0, text).expect("write the names");
    }
}

/// All of this machine.
fn address(node: usize) -> String {
    format!("127.0.0.{}", node + 1)
}

async fn know(nodes: &[&Gateway], peers: f64) {
    for node in nodes {
        eventually("the node knows its peers", SOON, async || match node.metric("sluice_peers", "") {
            Some(seen) if (seen - peers).abs() < f64::EPSILON => Ok(()),
            seen => Err(seen),
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_follow_a_name_whose_addresses_change() {
    if let Err(why) = gateway::own_names() {
        eprintln!(
            "skipped: a process cannot be given names of its own here, which takes root or user namespaces: {why}"
        );
        return;
    }
    let kafka = broker();
    let topic = kafka.topic("dns", 3);
    let group = unique("dns");
    let names = Names::new();
    let port = scratch::free_ports(1)[0];
    let node = |at: usize| {
        GatewayConfig::new(kafka)
            .subscription(subscription(&group, &[&topic], &[]))
            .node(&format!("name = \"node-{at}\""))
            .peers(&format!("listen = \"{}:{port}\"", address(at)))
            .peers(&format!("dns = \"{NAME}:{port}\""))
            .peers("resolve_interval = \"200ms\"")
            .peers("connections = 1")
            .names(&names.0)
            .start()
    };
    names.are(&[0, 1]);
    let (first, second) = (node(0), node(1));
    know(&[&first, &second], 1.0).await;
    let mut wire = Wire::subscribe(&first, &group, 30).await;

    // A node that comes is found when the name has it, and no sooner.
    let mut third = node(2);
    know(&[&third], 2.0).await;
    know(&[&first, &second], 1.0).await;
    names.are(&[0, 1, 2]);
    know(&[&first, &second, &third], 2.0).await;
    eventually("each owns one partition", SOON, async || {
        let mut owners: Vec<_> = first.partitions(&group).await.into_iter().map(|one| one.node).collect();
        owners.sort();
        if owners == ["node-0", "node-1", "node-2"] { Ok(()) } else { Err(owners) }
    })
    .await;
    kafka.fill(&topic, 3, 30, 32);
    let leases = wire.records(30).await;
    wire.ack(&leases);
    assert_eq!(first.metric("sluice_edge_records_delivered_total", "from=\"other_nodes\""), Some(20.0));

    // A name that nobody knows, for a while, makes no peer disappear: one that is away is found again.
    names.are(&[]);
    eventually("the failure is said", SOON, async || {
        let said = std::fs::read_to_string(first.log()).expect("read the log");
        if said.contains("peers.dns cannot be resolved") { Ok(()) } else { Err(said) }
    })
    .await;
    third.kill();
    know(&[&first, &second], 1.0).await;
    third.restart();
    know(&[&first, &second], 2.0).await;

    // One that is gone from the name, and away, is dialed no more.
    names.are(&[0, 1]);
    third.kill();
    know(&[&first, &second], 1.0).await;
    let listener = TcpListener::bind((address(2), port)).expect("its place");
    listener.set_nonblocking(true).expect("not blocking");
    let mut quiet_since = Instant::now();
    eventually("nobody dials it", SOON, async || {
        while listener.accept().is_ok() {
            quiet_since = Instant::now();
        }
        // Who is away is tried again each 200 ms.
        if quiet_since.elapsed() > Duration::from_secs(3) { Ok(()) } else { Err("dialed") }
    })
    .await;
    names.are(&[0, 1, 2]);
    eventually("it is dialed when the name has it again", SOON, async || listener.accept().map(drop)).await;
}
