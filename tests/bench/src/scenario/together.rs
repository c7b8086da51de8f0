//! `together`: two subscriptions drained at once, by one alone: whether they are in each other's way.

use std::time::Instant;

use anyhow::Result;
use sluice_tests::unique;

use crate::fill::Shape;
use crate::lab::{Lab, Topic};
use crate::load;
use crate::machine::cpu_s;
use crate::report::{Findings, Table, column};
use crate::spread::Spread;

const COUNTS: [usize; 2] = [1, 2];

struct Run {
    cpu_s_per_1m: f64,
    records_per_s: f64,
    core: f64,
}

pub fn run(lab: &Lab) -> Result<Findings> {
    let shape = Shape::new(6, 128);
    let topics = [lab.topic(&shape, lab.count(800_000))?, lab.topic(&shape, lab.count(800_000))?];
    let mut runs: [Vec<Run>; 2] = Default::default();
    for _ in 0..lab.settings.runs {
        for (of, count) in runs.iter_mut().zip(COUNTS) {
            of.push(drain(lab, &topics[..count])?);
        }
    }
    let columns = [column("CPU-s/1M", 3), column("records/s", 0), column("core", 2)];
    let mut table = Table::new("Subscriptions drained at once: 128 B, 6 partitions and 10 streams each", &columns);
    for (of, count) in runs.iter().zip(COUNTS) {
        let spread = |figure: fn(&Run) -> f64| Spread::of(of.iter().map(figure));
        let cells = vec![spread(|run| run.cpu_s_per_1m), spread(|run| run.records_per_s), spread(|run| run.core)];
        table.row(count.to_string(), "sluice", cells);
    }
    let each = |index: usize, figure: fn(&Run) -> f64| runs[index].iter().map(figure).collect::<Vec<_>>();
    let ratio = |figure| Spread::ratios(&each(1, figure), &each(0, figure));
    let mut ratios = Table::new("Two by one", &[column("CPU a record", 2), column("records/s", 2)]).note(
        "More records/s needs a core that is free: with the broker and the clients on one and the gateway on the other \
         there is none.",
    );
    ratios.row("", "2 ÷ 1", vec![ratio(|run| run.cpu_s_per_1m), ratio(|run| run.records_per_s)]);
    Ok(Findings { tables: vec![table, ratios], figures: Vec::new() })
}

fn drain(lab: &Lab, topics: &[Topic]) -> Result<Run> {
    let name = |index: usize| format!("bench-{index}");
    let subscription =
        |(index, topic): (usize, &Topic)| lab.subscription(&name(index), &topic.name, &unique("sluice"), &[]);
    let gateway = lab.gateway(topics.iter().enumerate().map(subscription).collect());
    let (cpu, from) = (cpu_s(gateway.pid()), Instant::now());
    let mut loads = Vec::new();
    for (index, topic) in topics.iter().enumerate() {
        let arguments = [
            format!("--subscription={}", name(index)),
            "--streams=10".to_owned(),
            "--connections=2".to_owned(),
            "--window=1000".to_owned(),
            format!("--records={}", topic.records),
        ];
        loads.push(lab.load_helper(gateway.address(), gateway.pid(), &arguments)?);
    }
    let mut records = 0;
    for mut load in loads {
        load.event("subscribed")?;
        records += load.answer::<load::Outcome>()?.records;
    }
    let (cpu, seconds) = (cpu_s(gateway.pid()) - cpu, from.elapsed().as_secs_f64());
    Ok(Run { cpu_s_per_1m: cpu / records as f64 * 1e6, records_per_s: records as f64 / seconds, core: cpu / seconds })
}
