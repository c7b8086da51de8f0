//! `takeover-cluster`: an owner is killed. How long until clients on other nodes have records of its partitions, by a raw group.

use std::time::Duration;

use anyhow::{Context as _, Result};
use sluice_tests::unique;

use super::super::takeover::{AWAY, JOIN, SESSION, SHARED, Traced, until};
use super::NODES;
use crate::fill::Shape;
use crate::lab::{Helper, Lab, SUBSCRIPTION, Topic};
use crate::machine::now_ns;
use crate::nodes::Nodes;
use crate::report::{Findings, Table, column};
use crate::spread::Spread;

const RATE: f64 = 400.0;
const CASES: [(&str, i32); 2] = [("every node owns some", 4), ("one node owns all, another follows", 1)];

/// A group at work, one member of which will be killed.
struct Group {
    partitions: i32,
    /// What the survivors' clients get.
    stays: Traced,
    goes: Goes,
    _producer: Helper,
}

enum Goes {
    /// A raw consumer, whose records show which partitions it has.
    Raw(Traced),
    Node(Nodes, usize, Vec<i64>),
}

pub fn run(lab: &Lab) -> Result<Findings> {
    let columns = [column("raw s", 2), column("cluster s", 2), column("cluster ÷ raw", 2)];
    let title = format!("Takeover in a cluster: {NODES} nodes, an owner is killed, {RATE} records/s, session 6 s");
    let mut table = Table::new(title, &columns).note(
        "Until clients on other nodes have had a record of each of its partitions from a new owner. All groups go through it at \
         the same time.",
    );
    let mut found: [(Vec<f64>, Vec<f64>); 2] = Default::default();
    // A session's timeout each: fewer turns, or it takes minutes.
    for _ in 0..lab.settings.runs.min(2) {
        let mut groups = Vec::new();
        for (_, partitions) in CASES {
            groups.push(raw(lab, partitions)?);
            groups.push(cluster(lab, partitions)?);
        }
        std::thread::sleep(SHARED);
        let mut killed = Vec::new();
        for group in &mut groups {
            killed.push(group.kill()?);
        }
        let mut times = Vec::new();
        for (group, (at, lost)) in groups.iter().zip(&killed) {
            times.push(group.taken(*at, lost)?);
        }
        for ((raws, clusters), pair) in found.iter_mut().zip(times.chunks(2)) {
            raws.push(pair[0]);
            clusters.push(pair[1]);
        }
    }
    let mut findings = Findings::default();
    for ((name, partitions), (raws, clusters)) in CASES.iter().zip(&found) {
        let ratio = Spread::ratios(clusters, raws);
        let of = |times: &[f64]| Spread::of(times.iter().copied());
        let case = format!("{partitions} p");
        table.row(&case, *name, vec![of(raws), of(clusters), ratio]);
        findings.figure("P19", format!("{case}, kill -9 ÷ raw"), ratio);
    }
    findings.tables = vec![table];
    Ok(findings)
}

fn raw(lab: &Lab, partitions: i32) -> Result<Group> {
    let (topic, producer) = topic(lab, partitions)?;
    let group = unique("takeover");
    let goes = Traced::raw(lab, &topic, &group)?;
    until("the first member has all partitions", JOIN, || goes.since(0).len() == partitions as usize)?;
    let stays = Traced::raw(lab, &topic, &group)?;
    // With one partition the second has nothing: it waits for the first to go.
    until("the second member has some", JOIN, || stays.since(0).len() == partitions as usize / 2)?;
    Ok(Group { partitions, stays, goes: Goes::Raw(goes), _producer: producer })
}

fn cluster(lab: &Lab, partitions: i32) -> Result<Group> {
    let (topic, producer) = topic(lab, partitions)?;
    let subscription = lab.subscription(SUBSCRIPTION, &topic.name, &unique("takeover"), &SESSION);
    let subscription = subscription.with(super::JOIN);
    let nodes = Nodes::start(lab, NODES, &subscription)?;
    let owners = nodes.owners(partitions, NODES.min(partitions as usize))?;
    let goes = owners[0];
    let lost = owners.iter().zip(0..).filter(|(owner, _)| **owner == goes).map(|(_, partition)| partition).collect();
    let others: Vec<usize> = (0..NODES).filter(|node| *node != goes).collect();
    let stays = Traced::clients(lab, &nodes.addresses(&others))?;
    until("clients have all partitions", JOIN, || stays.since(0).len() == partitions as usize)?;
    Ok(Group { partitions, stays, goes: Goes::Node(nodes, goes, lost), _producer: producer })
}

fn topic(lab: &Lab, partitions: i32) -> Result<(Topic, Helper)> {
    let topic = lab.topic(&Shape::new(partitions, 64), 0)?;
    let producer = lab.produce(&topic, RATE, 120.0)?;
    Ok((topic, producer))
}

impl Group {
    /// When, and whose partitions are without an owner now.
    fn kill(&mut self) -> Result<(u64, Vec<i64>)> {
        let at = now_ns();
        let lost = match &mut self.goes {
            Goes::Raw(goes) => {
                goes.kill();
                goes.since(at - 1_000_000_000)
            }
            Goes::Node(nodes, node, lost) => {
                nodes.kill(*node)?;
                lost.clone()
            }
        };
        Ok((at, lost))
    }

    /// Seconds until the last of them came from another owner.
    fn taken(&self, at: u64, lost: &[i64]) -> Result<f64> {
        let first = |partition: &i64| match self.goes {
            Goes::Raw(_) => self.stays.first_since(*partition, at),
            Goes::Node(..) => self.stays.first_of_another(*partition, at),
        };
        until("survivors have all partitions", AWAY + Duration::from_secs(30), || {
            lost.iter().all(|partition| first(partition).is_some())
        })?;
        let last = lost.iter().filter_map(|partition| Some(first(partition)?.at_ns)).max();
        let last = last.with_context(|| format!("one of {} partitions had an owner", self.partitions))?;
        Ok((last - at) as f64 / 1e9)
    }
}
