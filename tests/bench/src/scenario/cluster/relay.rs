//! `relay`: all clients on nodes that own nothing, by all clients on the one that does.

use anyhow::Result;

use super::super::measure::{Contestant, Kind};
use super::{COLUMNS, Layout, Run, SHARED_CORE, drive, ratio, row};
use crate::fill::{Produced, Shape};
use crate::lab::Lab;
use crate::report::{Findings, Table, column};
use crate::spread::Spread;

/// What comes before is left out.
const WARM_S: f64 = 1.5;

#[derive(Debug, Clone, clap::Args)]
pub struct Relay {
    #[arg(long, value_delimiter = ',', default_value = "128")]
    pub sizes: Vec<usize>,
    #[arg(long, default_value_t = 30)]
    pub clients: usize,
    #[arg(long, default_value_t = 1_000)]
    pub window: i32,
    /// Records a second, for the latency.
    #[arg(long, default_value_t = 1_000)]
    pub rate: u32,
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
}

impl Default for Relay {
    fn default() -> Self {
        Self { sizes: vec![128], clients: 30, window: 1_000, rate: 1_000, seconds: 3.0 }
    }
}

const LAYOUTS: [(&str, Layout); 3] = [
    ("one node", Layout::Alone),
    ("3 nodes, clients on the owner", Layout::OnOwner),
    ("3 nodes, clients on the others", Layout::OffOwner),
];

impl Relay {
    pub fn run(&self, lab: &Lab) -> Result<Findings> {
        let title = format!("Relay: {} clients, window {}, 1 partition", self.clients, self.window);
        let mut table = Table::new(title, &COLUMNS).note(SHARED_CORE);
        let by = [column("CPU a record", 2), column("records/s", 2), column("records/s, a core a node", 2)];
        let mut ratios = Table::new("Relay: ratios of pairs", &by);
        let mut findings = Findings::default();
        for &size in &self.sizes {
            let records = lab.count(if size > 256 { 400_000 } else { 1_000_000 });
            let topic = lab.topic(&Shape::new(1, size), records)?;
            let clients = self.clients();
            let mut runs: [Vec<Run>; 3] = Default::default();
            for _ in 0..lab.settings.runs {
                for (runs, (_, layout)) in runs.iter_mut().zip(LAYOUTS) {
                    runs.push(layout.drain(lab, &topic, &clients)?);
                }
            }
            let case = format!("{size} B");
            for (runs, (name, _)) in runs.iter().zip(LAYOUTS) {
                row(&mut table, &case, name, runs);
            }
            let [alone, near, far] = &runs;
            for (name, to) in [("relayed ÷ one node", alone), ("relayed ÷ on the owner", near)] {
                let cpu = ratio(far, to, |run| run.cpu_s_per_1m);
                let clock = ratio(far, to, |run| run.records_per_s);
                let apart = ratio(far, to, |run| 1.0 / run.busiest);
                ratios.row(&case, name, vec![cpu, clock, apart]);
                findings.figure("P16", format!("{case}, {name}, records/s"), clock);
                findings.figure("P16", format!("{case}, {name}, records/s, a core a node"), apart);
                findings.figure("P16", format!("{case}, {name}, CPU"), cpu);
            }
        }
        findings.tables = vec![table, ratios];
        findings.add(self.latency(lab)?);
        Ok(findings)
    }

    fn clients(&self) -> Contestant {
        Contestant::new("", Kind::Sluice).streams(self.clients, self.window)
    }

    fn latency(&self, lab: &Lab) -> Result<Findings> {
        let mut samples: [Vec<Run>; 3] = Default::default();
        for _ in 0..lab.settings.runs {
            for (samples, (_, layout)) in samples.iter_mut().zip(LAYOUTS) {
                samples.push(self.once(lab, layout)?);
            }
        }
        let mut table = Table::new(
            format!("Relay: latency at {}/s, 128 B", self.rate),
            &[column("p50 ms", 2), column("CPU-s/1M", 1)],
        );
        for (samples, (name, _)) in samples.iter().zip(LAYOUTS) {
            let of = |figure: fn(&Run) -> f64| Spread::of(samples.iter().map(figure));
            table.row(format!("{}/s", self.rate), name, vec![of(|one| one.p50_ms), of(|one| one.cpu_s_per_1m)]);
        }
        let [alone, near, far] = &samples;
        let mut findings = Findings::default();
        let mut added = Table::new("Relay: latency above all-local, pair by pair", &[column("p50 ms", 2)]);
        for (name, to) in [("one node", alone), ("clients on the owner", near)] {
            let above = Spread::of(far.iter().zip(to).map(|(far, near)| far.p50_ms - near.p50_ms));
            added.row(format!("{}/s", self.rate), format!("relayed − {name}"), vec![above]);
            findings.figure("P16", format!("p50 ms above {name}"), above);
        }
        findings.tables = vec![table, added];
        Ok(findings)
    }

    fn once(&self, lab: &Lab, layout: Layout) -> Result<Run> {
        let seconds = lab.seconds(self.seconds);
        let topic = lab.topic(&Shape::new(1, 128), 0)?;
        let (nodes, on) = layout.start(lab, &topic)?;
        let mut arguments = self.clients().arguments();
        arguments.extend([format!("--seconds={seconds}"), format!("--warm={WARM_S}"), "--latency".to_owned()]);
        let mut producer = lab.produce(&topic, f64::from(self.rate), WARM_S + seconds + 0.5)?;
        let outcome = drive(lab, &nodes, &on, &arguments)?;
        let _produced: Produced = producer.answer()?;
        Ok(Run::from(&outcome))
    }
}
