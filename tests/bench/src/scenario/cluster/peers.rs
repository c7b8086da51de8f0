//! `peers`: what `[peers]` costs clients whose records are all on their own node.

use anyhow::Result;

use super::super::measure::{Contestant, Kind};
use super::{COLUMNS, Layout, Run, ratio, row};
use crate::fill::Shape;
use crate::lab::Lab;
use crate::report::{Findings, Table, column};

pub fn run(lab: &Lab) -> Result<Findings> {
    let mut table = Table::new("Peers: the drain with [peers] and without, 10 streams, window 1,000, 128 B", &COLUMNS);
    let mut ratios = Table::new("Peers: ratios of pairs", &[column("CPU a record", 2), column("records/s", 2)]);
    let mut findings = Findings::default();
    let clients = Contestant::new("", Kind::Sluice);
    let cases: [(i32, &[(&str, Layout)]); 2] = [
        (12, &[("without", Layout::Alone), ("a cluster of one", Layout::OfOne)]),
        (
            1,
            &[("without", Layout::Alone), ("a cluster of one", Layout::OfOne), ("the owner of three", Layout::OnOwner)],
        ),
    ];
    for (partitions, layouts) in cases {
        let topic = lab.topic(&Shape::new(partitions, 128), lab.count(1_000_000))?;
        let mut runs: Vec<Vec<Run>> = vec![Vec::new(); layouts.len()];
        for _ in 0..lab.settings.runs {
            for (runs, (_, layout)) in runs.iter_mut().zip(layouts) {
                runs.push(layout.drain(lab, &topic, &clients)?);
            }
        }
        let case = format!("{partitions} p");
        for (runs, (name, _)) in runs.iter().zip(layouts) {
            row(&mut table, &case, name, runs);
        }
        for (with, (name, _)) in runs.iter().zip(layouts).skip(1) {
            let cpu = ratio(with, &runs[0], |run| run.cpu_s_per_1m);
            ratios.row(&case, format!("{name} ÷ without"), vec![cpu, ratio(with, &runs[0], |run| run.records_per_s)]);
            findings.figure("P20", format!("{case}, {name}"), cpu);
        }
    }
    findings.tables = vec![table, ratios];
    Ok(findings)
}
