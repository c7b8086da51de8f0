//! Several gateways that know each other, with a balancer in front of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sluice_proto::v1::Partition;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

use crate::gateway::{Gateway, GatewayConfig};
use crate::way::Way;
use crate::{SOON, eventually, scratch};

/// Nodes of one cluster. Each reaches each other one by a way of its own.
#[derive(Debug)]
pub struct Cluster {
    /// The nodes.
    pub nodes: Vec<Gateway>,
    /// From a node to another.
    ways: BTreeMap<(usize, usize), Way>,
    balancer: Balancer,
}

/// Leads each new connection to the next node that takes it.
#[derive(Debug)]
struct Balancer {
    address: SocketAddr,
    targets: Arc<Mutex<Vec<String>>>,
}

impl Cluster {
    /// So many nodes of this configuration. One that is started again has its addresses.
    pub async fn start(config: &GatewayConfig, count: usize) -> Self {
        Self::of(&vec![config.clone(); count]).await
    }

    /// A node of each configuration.
    pub async fn of(configs: &[GatewayConfig]) -> Self {
        let count = configs.len();
        // Nodes must know each other's before they start.
        let ports = scratch::free_ports(count);
        let own = scratch::free_ports(2 * count);
        let mut ways = BTreeMap::new();
        for from in 0..count {
            for to in (0..count).filter(|to| *to != from) {
                ways.insert((from, to), Way::to(&format!("127.0.0.1:{}", ports[to])).await);
            }
        }
        let nodes = configs.iter().enumerate().map(|(at, config)| {
            let addresses: Vec<String> = ways
                .iter()
                .filter(|((from, _), _)| *from == at)
                .map(|(_, way)| format!("{:?}", way.address().to_string()))
                .collect();
            config
                .clone()
                .node(&format!("name = \"node-{at}\""))
                .node(&format!("listen = \"127.0.0.1:{}\"", own[2 * at]))
                .node(&format!("admin_listen = \"127.0.0.1:{}\"", own[2 * at + 1]))
                .peers(&format!("listen = \"127.0.0.1:{}\"", ports[at]))
                .peers(&format!("addresses = [{}]", addresses.join(", ")))
                .peers("connections = 2")
                .start()
        });
        let nodes: Vec<Gateway> = nodes.collect();
        let targets = nodes.iter().map(|node| node.address().to_owned()).collect();
        let balancer = Balancer::start(targets).await;
        Self { nodes, ways, balancer }
    }

    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> String {
        self.balancer.address.to_string()
    }

    /// From now on new clients are led to these nodes only.
    pub fn lead_to(&self, nodes: &[usize]) {
        let targets = nodes.iter().map(|at| self.nodes[*at].address().to_owned()).collect();
        *self.balancer.targets.lock().expect("not poisoned") = targets;
    }

    /// The way by which one node reaches another.
    #[must_use]
    pub fn way(&self, from: usize, to: usize) -> &Way {
        &self.ways[&(from, to)]
    }

    /// Both ways between two nodes: nothing gets through, or everything does again.
    pub fn set_dark(&self, one: usize, other: usize, dark: bool) {
        self.way(one, other).set_dark(dark);
        self.way(other, one).set_dark(dark);
    }

    /// Of what one node sends another, nothing gets through, or everything does again: whoever dialed.
    pub fn set_dark_one_way(&self, from: usize, to: usize, dark: bool) {
        self.way(from, to).set_dark_to(dark);
        self.way(to, from).set_dark_from(dark);
    }

    /// Waits until each node has so many peers.
    pub async fn knows(&self, peers: usize) {
        for node in &self.nodes {
            eventually("the node knows its peers", SOON, async || {
                let seen = node.metric("sluice_peers", "");
                if seen == Some(peers as f64) { Ok(()) } else { Err(seen) }
            })
            .await;
        }
    }

    /// Which node owns each partition of a subscription, once there are so many, asked by way of any node.
    pub async fn owners(&self, subscription: &str, partitions: usize) -> Vec<usize> {
        self.spread(subscription, partitions, 1).await
    }

    /// The same, once so many nodes own some of them. The group's first member has all of them for a while.
    pub async fn spread(&self, subscription: &str, partitions: usize, nodes: usize) -> Vec<usize> {
        let asked = self.nodes.iter().position(Gateway::is_running).expect("a node runs");
        self.owned(asked, subscription, partitions, |owners| owners.len() >= nodes).await
    }

    /// The same, asked by way of this node, once only these own anything.
    pub async fn owned_by(&self, nodes: &[usize], subscription: &str, partitions: usize) -> Vec<usize> {
        let all = |owners: &BTreeSet<usize>| owners.iter().all(|owner| nodes.contains(owner));
        self.owned(nodes[0], subscription, partitions, all).await
    }

    async fn owned(
        &self,
        asked: usize,
        subscription: &str,
        partitions: usize,
        is_it: impl Fn(&BTreeSet<usize>) -> bool,
    ) -> Vec<usize> {
        eventually("all partitions are owned", SOON, async || {
            let seen: Vec<Partition> = self.nodes[asked].partitions(subscription).await;
            let owners: Vec<usize> =
                seen.iter().filter_map(|one| one.node.strip_prefix("node-")?.parse().ok()).collect();
            let known: BTreeSet<_> = seen.iter().map(|one| (&one.topic, one.partition)).collect();
            let different = owners.iter().copied().collect();
            if owners.len() == partitions && known.len() == partitions && is_it(&different) {
                Ok(owners)
            } else {
                Err(owners)
            }
        })
        .await
    }
}

impl Balancer {
    async fn start(targets: Vec<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("a bound address");
        let targets = Arc::new(Mutex::new(targets));
        let all = Arc::clone(&targets);
        tokio::spawn(async move {
            let next = AtomicUsize::new(0);
            while let Ok((mut near, _)) = listener.accept().await {
                let targets = all.lock().expect("not poisoned").clone();
                let first = next.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(async move {
                    for at in 0..targets.len() {
                        let target = &targets[(first + at) % targets.len()];
                        let far = tokio::time::timeout(Duration::from_secs(1), TcpStream::connect(target)).await;
                        if let Ok(Ok(mut far)) = far {
                            let _ = (near.set_nodelay(true), far.set_nodelay(true));
                            let _ = copy_bidirectional(&mut near, &mut far).await;
                            return;
                        }
                    }
                });
            }
        });
        Self { address, targets }
    }
}
