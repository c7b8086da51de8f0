//! Scenarios of several nodes: what a record costs that another node relays, and how the work spreads.

mod one_node;
mod peers;
mod relay;
mod share;
mod takeover;

use anyhow::Result;
use sluice_tests::unique;

use super::measure::Contestant;
use crate::lab::{Lab, SUBSCRIPTION, Topic};
use crate::load;
use crate::nodes::Nodes;
use crate::report::{Column, Table, column};
use crate::spread::Spread;

pub use one_node::run as one_node;
pub use peers::run as peers;
pub use relay::Relay;
pub use share::Share;
pub use takeover::run as takeover;

/// Of every cluster here.
const NODES: usize = 3;
/// Groups are joined before clients come: who owns what is known, and joining is in no one's figures.
const JOIN: &str = "join = \"at_start\"";

const COLUMNS: [Column; 8] = [
    column("CPU-s/1M", 3),
    column("records/s", 0),
    column("core", 2),
    column("records/frame", 0),
    column("busiest node CPU-s/1M", 3),
    column("idlest node CPU-s/1M", 3),
    column("M records/s, a core a node", 2),
    column("client core", 2),
];

/// Which nodes there are, and on which of them the clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// One node without `[peers]`.
    Alone,
    /// One node with `[peers]`.
    OfOne,
    /// Three, and all clients on the one that owns the first partition.
    OnOwner,
    /// Three, and all clients on those that do not own it.
    OffOwner,
    /// Three that own some each, and all clients on one.
    OnOne,
    /// Three that own some each, and clients on each of them.
    Spread,
}

/// One run.
#[derive(Debug, Clone, Copy)]
struct Run {
    /// Of all nodes together.
    cpu_s_per_1m: f64,
    records_per_s: f64,
    core: f64,
    records_per_frame: f64,
    busiest: f64,
    idlest: f64,
    client_core: f64,
    p50_ms: f64,
}

impl Layout {
    /// The nodes with a subscription of this topic, all partitions owned; and on which of them clients are to be.
    fn start(self, lab: &Lab, topic: &Topic) -> Result<(Nodes, Vec<usize>)> {
        let subscription = lab.subscription(SUBSCRIPTION, &topic.name, &unique("cluster"), &[JOIN]);
        let partitions = topic.shape.partitions;
        let owners_least = if matches!(self, Self::OnOne | Self::Spread) { NODES } else { 1 };
        let nodes = match self {
            Self::Alone => Nodes::alone(lab, &subscription)?,
            Self::OfOne => Nodes::start(lab, 1, &subscription)?,
            _ => Nodes::start(lab, NODES, &subscription)?,
        };
        let owner = nodes.owners(partitions, owners_least)?[0];
        let on = match self {
            Self::Alone | Self::OfOne | Self::OnOwner => vec![owner],
            Self::OffOwner => (0..NODES).filter(|node| *node != owner).collect(),
            Self::OnOne => vec![0],
            Self::Spread => (0..NODES).collect(),
        };
        Ok((nodes, on))
    }

    /// Reads the topic once.
    fn drain(self, lab: &Lab, topic: &Topic, clients: &Contestant) -> Result<Run> {
        let (nodes, on) = self.start(lab, topic)?;
        let mut arguments = clients.arguments();
        arguments.push(format!("--records={}", topic.records));
        let run = Run::from(&drive(lab, &nodes, &on, &arguments)?);
        if lab.settings.verbose {
            eprintln!("{self:?}: {run:?}");
        }
        Ok(run)
    }
}

/// Drives the nodes, and waits for the end.
fn drive(lab: &Lab, nodes: &Nodes, on: &[usize], arguments: &[String]) -> Result<load::Outcome> {
    let mut load = lab.load_of_many(&nodes.addresses(on), &nodes.pids(), arguments)?;
    load.event("subscribed")?;
    load.answer()
}

impl From<&load::Outcome> for Run {
    fn from(outcome: &load::Outcome) -> Self {
        let millions = outcome.records as f64 / 1e6;
        let each = || outcome.servers_cpu_s.iter().map(|cpu_s| cpu_s / millions);
        Self {
            cpu_s_per_1m: outcome.server_cpu_s / millions,
            records_per_s: outcome.records as f64 / outcome.seconds,
            core: outcome.server_cpu_s / outcome.seconds,
            records_per_frame: outcome.records_per_frame,
            busiest: each().fold(0.0, f64::max),
            idlest: each().fold(f64::INFINITY, f64::min),
            client_core: outcome.client_cpu_s / outcome.seconds,
            p50_ms: outcome.latency.p50_ms,
        }
    }
}

fn row(table: &mut Table, case: &str, who: &str, runs: &[Run]) {
    let of = |figure: fn(&Run) -> f64| Spread::of(runs.iter().map(figure));
    let cells = vec![
        of(|run| run.cpu_s_per_1m),
        of(|run| run.records_per_s),
        of(|run| run.core),
        of(|run| run.records_per_frame),
        of(|run| run.busiest),
        of(|run| run.idlest),
        of(|run| 1.0 / run.busiest),
        of(|run| run.client_core),
    ];
    table.row(case, who, cells);
}

/// Run by run.
fn ratio(of: &[Run], to: &[Run], figure: fn(&Run) -> f64) -> Option<Spread> {
    let each = |runs: &[Run]| runs.iter().map(figure).collect::<Vec<_>>();
    Spread::ratios(&each(of), &each(to))
}

/// What a reader of these tables must know.
const SHARED_CORE: &str = "All nodes share one processor, so records/s by the clock is what the whole cluster's CPU time allows, \
                           and the more nodes take part in a record the less it is. \"A core a node\" is what the busiest of them \
                           would allow if each had a processor of its own.";
