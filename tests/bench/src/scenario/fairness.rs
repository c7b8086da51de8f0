//! `fairness`: many workers that take a while for each record, on few partitions.

use anyhow::Result;

use super::measure::{Contestant, Kind};
use crate::fill::Shape;
use crate::lab::Lab;
use crate::load;
use crate::report::{Findings, Table, column};
use crate::spread::Spread;

const PARTITIONS: i32 = 6;
/// The default window of our clients.
const WINDOW: i32 = 100;
const WARM_S: f64 = 3.0;

#[derive(Debug, Clone, clap::Args)]
pub struct Fairness {
    #[arg(long, default_value_t = 300)]
    pub workers: usize,
    /// What a worker does with a record, one after another.
    #[arg(long, default_value = "5ms")]
    pub work: String,
    #[arg(long, default_value_t = 6.0)]
    pub seconds: f64,
}

impl Default for Fairness {
    fn default() -> Self {
        Self { workers: 300, work: "5ms".to_owned(), seconds: 6.0 }
    }
}

impl Fairness {
    pub fn run(&self, lab: &Lab) -> Result<Findings> {
        let seconds = lab.seconds(self.seconds);
        // No worker can be faster than a record in five milliseconds, so this is enough for all of them.
        let records = (self.workers as f64 / 0.005 * (WARM_S + seconds + 2.0)) as u64;
        let topic = lab.topic(&Shape::new(PARTITIONS, 128), records)?;
        let contestant = Contestant::new("sluice", Kind::Sluice).streams(self.workers, WINDOW);
        let mut outcomes = Vec::new();
        for _ in 0..lab.settings.runs {
            let server = lab.sluice(&topic.name, &[]);
            let mut arguments = contestant.arguments();
            arguments.push(format!("--work=work:{}", self.work));
            arguments.extend([format!("--seconds={seconds}"), format!("--warm={WARM_S}")]);
            outcomes.push(lab.load(&server, &arguments)?);
        }
        let share = |one: &load::Outcome| {
            let ideal = self.workers as f64 / (one.hold.mean_ms / 1_000.0);
            one.records as f64 / one.seconds / ideal
        };
        let of = |figure: &dyn Fn(&load::Outcome) -> f64| Spread::of(outcomes.iter().map(figure));
        let columns = [
            column("% of the ideal", 1),
            column("records/s", 0),
            column("mean hold ms", 2),
            column("client core", 2),
            column("CPU-s/1M", 1),
            column("least of a worker", 0),
            column("most of a worker", 0),
        ];
        let title = format!("Fairness: {} workers, {} a record, {PARTITIONS} partitions", self.workers, self.work);
        let mut table = Table::new(title, &columns).note(
            "The ideal is workers ÷ the measured mean hold time. A client core near 1 means that the load client, not \
             the gateway, was the limit.",
        );
        let cells = vec![
            of(&|one| share(one) * 100.0),
            of(&|one| one.records as f64 / one.seconds),
            of(&|one| one.hold.mean_ms),
            of(&|one| one.client_cpu_s / one.seconds),
            of(&|one| one.server_cpu_s / one.records as f64 * 1e6),
            of(&|one| one.by_stream.0 as f64),
            of(&|one| one.by_stream.1 as f64),
        ];
        table.row(format!("{} workers", self.workers), "sluice", cells);
        let mut findings = Findings { tables: vec![table], figures: Vec::new() };
        findings.figure("P11", "% of the ideal", of(&|one| share(one) * 100.0));
        Ok(findings)
    }
}
