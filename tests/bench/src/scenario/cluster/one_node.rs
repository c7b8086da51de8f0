//! `one-node`: all clients on one node of three that own some partitions each, by clients on all of them.

use anyhow::Result;

use super::super::measure::{Contestant, Kind};
use super::{COLUMNS, Layout, Run, SHARED_CORE, ratio, row};
use crate::fill::Shape;
use crate::lab::Lab;
use crate::report::{Findings, Table, column};

const CLIENTS: usize = 30;
const PARTITIONS: i32 = 12;

pub fn run(lab: &Lab) -> Result<Findings> {
    let topic = lab.topic(&Shape::new(PARTITIONS, 128), lab.count(1_000_000))?;
    let clients = Contestant::new("", Kind::Sluice).streams(CLIENTS, 1_000);
    let layouts = [("clients on all", Layout::Spread), ("clients on one", Layout::OnOne)];
    let mut runs: [Vec<Run>; 2] = Default::default();
    for _ in 0..lab.settings.runs {
        for (runs, (_, layout)) in runs.iter_mut().zip(layouts) {
            runs.push(layout.drain(lab, &topic, &clients)?);
        }
    }
    let title = format!("One node: {CLIENTS} clients, 128 B, {PARTITIONS} partitions on 3 nodes");
    let mut table = Table::new(title, &COLUMNS).note(SHARED_CORE);
    for (runs, (name, _)) in runs.iter().zip(layouts) {
        row(&mut table, "128 B", name, runs);
    }
    let [all, one] = &runs;
    let (clock, apart) = (ratio(one, all, |run| run.records_per_s), ratio(one, all, |run| 1.0 / run.busiest));
    let mut ratios =
        Table::new("One by all", &[column("records/s", 2), column("records/s, a core a node", 2)]).note(
            "With a core a node, three cores serve clients in the one case and one in the other: a third is all that a node \
             without peers could do.",
        );
    ratios.row("128 B", "one ÷ all", vec![clock, apart]);
    let mut findings = Findings { tables: vec![table, ratios], figures: Vec::new() };
    findings.figure("P18", "records/s", clock);
    findings.figure("P18", "records/s, a core a node", apart);
    Ok(findings)
}
