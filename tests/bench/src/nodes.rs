//! Several gateways that know each other, each on the processor of what is measured.

use anyhow::{Context as _, Result};
use sluice_tests::balancer::{Kind, Settings};
use sluice_tests::seats::{Seat, know, owners};
use sluice_tests::{Balancer, Gateway, GatewayConfig, SubscriptionConfig};

use crate::lab::{Lab, SUBSCRIPTION};
use crate::machine::Role;

/// The nodes, and who leads clients to them.
pub struct Nodes {
    gateways: Vec<Gateway>,
    balancer: Option<Balancer>,
    /// The harness waits asynchronously.
    runtime: tokio::runtime::Runtime,
}

impl Nodes {
    /// One node that knows of no others.
    pub fn alone(lab: &Lab, subscription: &SubscriptionConfig) -> Result<Self> {
        Self::of(lab, &[config(lab, subscription)])
    }

    /// A cluster of so many.
    pub fn start(lab: &Lab, count: usize, subscription: &SubscriptionConfig) -> Result<Self> {
        // One that is alone has an address to dial all the same: as a cluster whose others are away.
        let config = config(lab, subscription).peers("addresses = [\"127.0.0.1:1\"]");
        let seats = Seat::on_loopback(count);
        let configs = if count == 1 {
            vec![seats[0].configure(&config, 0, &["127.0.0.1:1".to_owned()])]
        } else {
            Seat::configure_all(&seats, &config)
        };
        let nodes = Self::of(lab, &configs)?;
        nodes.runtime.block_on(know(&nodes.gateways, count - 1));
        Ok(nodes)
    }

    fn of(lab: &Lab, configs: &[GatewayConfig]) -> Result<Self> {
        let start = || configs.iter().map(GatewayConfig::start).collect();
        let gateways = lab.pinning.start(Role::Measured, start);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { gateways, balancer: None, runtime })
    }

    /// Which node owns each partition, once there are so many and so many nodes own some.
    pub fn owners(&self, partitions: i32, different: usize) -> Result<Vec<usize>> {
        let partitions = usize::try_from(partitions)?;
        if let [alone] = &self.gateways[..] {
            // It has no name by which to be found.
            let owned = self.runtime.block_on(async {
                let look = async || {
                    let found = alone.partitions(SUBSCRIPTION).await.len();
                    if found == partitions { Ok(vec![0; partitions]) } else { Err(found) }
                };
                sluice_tests::eventually("the node owns all partitions", sluice_tests::SOON, look).await
            });
            return Ok(owned);
        }
        Ok(self.runtime.block_on(owners(&self.gateways, SUBSCRIPTION, partitions, different)))
    }

    /// HAProxy, as deploy/ has it, in front of them.
    pub fn balance(&mut self, lab: &Lab) {
        let start = || self.runtime.block_on(Settings::of(Kind::Haproxy).start(&self.gateways));
        self.balancer = Some(lab.pinning.start(Role::Load, start));
    }

    /// Where clients of these nodes connect.
    pub fn addresses(&self, of: &[usize]) -> Vec<&str> {
        match &self.balancer {
            Some(balancer) => vec![balancer.address()],
            None => of.iter().map(|at| self.gateways[*at].address()).collect(),
        }
    }

    pub fn pids(&self) -> Vec<u32> {
        self.gateways.iter().filter(|gateway| gateway.is_running()).map(Gateway::pid).collect()
    }

    pub fn kill(&mut self, at: usize) -> Result<()> {
        self.gateways.get_mut(at).context("there is such a node")?.kill();
        Ok(())
    }
}

fn config(lab: &Lab, subscription: &SubscriptionConfig) -> GatewayConfig {
    GatewayConfig::new(lab.kafka()).limits("max_streams = 20000").subscription(subscription.clone())
}
