//! Nodes that know each other, wherever they are and whatever is between them.

use std::collections::BTreeSet;

use sluice_proto::v1::Partition;

use crate::gateway::{Gateway, GatewayConfig};
use crate::{SOON, eventually, scratch};

/// Where a node listens.
#[derive(Debug, Clone)]
pub struct Seat {
    /// Its address, without a port.
    pub host: String,
    /// For clients, for operators, and for other nodes.
    pub ports: [u16; 3],
}

impl Seat {
    /// So many, on loopback. The ports are below those of outgoing connections, and were free just now.
    #[must_use]
    pub fn on_loopback(count: usize) -> Vec<Self> {
        let ports = scratch::free_ports(3 * count);
        let seat = |three: &[u16]| Self { host: "127.0.0.1".to_owned(), ports: [three[0], three[1], three[2]] };
        ports.chunks(3).map(seat).collect()
    }

    /// Where other nodes reach it.
    #[must_use]
    pub fn for_peers(&self) -> String {
        format!("{}:{}", self.host, self.ports[2])
    }

    /// The configuration of a node that listens here, and reaches the others by these addresses.
    #[must_use]
    pub fn configure(&self, config: &GatewayConfig, at: usize, others: &[String]) -> GatewayConfig {
        let [grpc, admin, _] = self.ports;
        let others: Vec<String> = others.iter().map(|address| format!("{address:?}")).collect();
        config
            .clone()
            .node(&format!("name = \"node-{at}\""))
            .node(&format!("listen = \"{}:{grpc}\"", self.host))
            .node(&format!("admin_listen = \"{}:{admin}\"", self.host))
            .peers(&format!("listen = \"{}\"", self.for_peers()))
            .peers(&format!("addresses = [{}]", others.join(", ")))
    }

    /// Configurations of nodes that reach each other without any way in between.
    #[must_use]
    pub fn configure_all(seats: &[Self], config: &GatewayConfig) -> Vec<GatewayConfig> {
        let others = |at: usize| -> Vec<String> {
            let others = seats.iter().enumerate().filter(|(other, _)| *other != at);
            others.map(|(_, seat)| seat.for_peers()).collect()
        };
        seats.iter().enumerate().map(|(at, seat)| seat.configure(config, at, &others(at))).collect()
    }
}

/// Waits until each of these nodes has so many peers.
pub async fn know(nodes: &[Gateway], peers: usize) {
    for node in nodes {
        eventually("the node knows its peers", SOON, async || {
            let seen = node.metric("sluice_peers", "");
            if seen == Some(peers as f64) { Ok(()) } else { Err(seen) }
        })
        .await;
    }
}

/// Which of these nodes owns each partition of a subscription, once there are so many and so many nodes own some of them.
pub async fn owners(nodes: &[Gateway], subscription: &str, partitions: usize, different: usize) -> Vec<usize> {
    let live = nodes.iter().find(|node| node.is_running()).expect("a node runs");
    eventually("all partitions are owned", SOON, async || {
        let seen: Vec<Partition> = live.partitions(subscription).await;
        let owners: Vec<usize> = seen.iter().filter_map(|one| one.node.strip_prefix("node-")?.parse().ok()).collect();
        let found = owners.iter().collect::<BTreeSet<_>>().len();
        if owners.len() == partitions && found >= different { Ok(owners) } else { Err(owners) }
    })
    .await
}
