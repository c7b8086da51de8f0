//! Several nodes, one address: a client lands anywhere, and never notices who holds the partition.

mod dns;
mod draining;
mod faults;
mod group;
mod members;
mod numbers;
mod seek;
mod tls;
mod views;
mod windows;

use sluice_tests::{Cluster, GatewayConfig, broker};

use crate::subscription;

/// So many nodes with one subscription of one topic; group and subscription have this name.
async fn cluster(nodes: usize, name: &str, topic: &str, lines: &[&str]) -> Cluster {
    let config = GatewayConfig::new(broker()).subscription(subscription(name, &[topic], lines));
    let cluster = Cluster::start(&config, nodes).await;
    cluster.knows(nodes - 1).await;
    cluster
}

/// All but this one.
fn others(nodes: usize, but: usize) -> Vec<usize> {
    (0..nodes).filter(|node| *node != but).collect()
}
