//! `spread`: many clients that take a while for each record, led to three nodes in turn.

use anyhow::Result;

use super::super::measure::{Contestant, Kind};
use super::{Layout, drive};
use crate::fill::Shape;
use crate::lab::Lab;
use crate::load;
use crate::report::{Findings, Table, column};
use crate::spread::Spread;

const PARTITIONS: i32 = 12;
/// The default window of our clients.
const WINDOW: i32 = 100;
const WARM_S: f64 = 3.0;

#[derive(Debug, Clone, clap::Args)]
pub struct Share {
    #[arg(long, default_value_t = 300)]
    pub clients: usize,
    /// What a client does with a record, one after another, in milliseconds. With 5, three hundred clients would settle
    /// 60,000 records a second one by one, which is more than one processor does for three nodes: then records wait a while.
    #[arg(long, default_value_t = 5.0)]
    pub work_ms: f64,
    #[arg(long, default_value_t = 6.0)]
    pub seconds: f64,
    /// Through HAProxy, as deploy/ has it, in place of a load client that goes to each node in turn.
    #[arg(long)]
    pub haproxy: bool,
}

impl Default for Share {
    fn default() -> Self {
        Self { clients: 300, work_ms: 5.0, seconds: 6.0, haproxy: false }
    }
}

impl Share {
    pub fn run(&self, lab: &Lab) -> Result<Findings> {
        let seconds = lab.seconds(self.seconds);
        // No client can be faster than that, so this is enough for all of them.
        let records = (self.clients as f64 * 1_000.0 / self.work_ms * (WARM_S + seconds + 2.0)) as u64;
        let topic = lab.topic(&Shape::new(PARTITIONS, 128), records)?;
        let mut outcomes = Vec::new();
        for _ in 0..lab.settings.runs {
            let (mut nodes, on) = Layout::Spread.start(lab, &topic)?;
            if self.haproxy {
                nodes.balance(lab);
            }
            let mut clients = Contestant::new("", Kind::Sluice).streams(self.clients, WINDOW);
            // As many on each node.
            clients.connections = clients.connections.next_multiple_of(on.len());
            let mut arguments = clients.arguments();
            arguments.push(format!("--work=work:{}ms", self.work_ms));
            arguments.extend([format!("--seconds={seconds}"), format!("--warm={WARM_S}")]);
            outcomes.push(drive(lab, &nodes, &on, &arguments)?);
        }
        Ok(self.findings(&outcomes))
    }

    fn findings(&self, outcomes: &[load::Outcome]) -> Findings {
        let share = |one: &load::Outcome| {
            let ideal = self.clients as f64 / (one.hold.mean_ms / 1_000.0);
            one.records as f64 / one.seconds / ideal * 100.0
        };
        let ends = |one: &load::Outcome| {
            let each = one.servers_cpu_s.iter().copied();
            each.clone().fold(0.0, f64::max) / each.fold(f64::INFINITY, f64::min)
        };
        let of = |figure: &dyn Fn(&load::Outcome) -> f64| Spread::of(outcomes.iter().map(figure));
        let columns = [
            column("% of the ideal", 1),
            column("% of clients ÷ work", 1),
            column("records/s", 0),
            column("mean hold ms", 2),
            column("nodes' core", 2),
            column("busiest ÷ idlest node", 2),
            column("client core", 2),
            column("CPU-s/1M", 1),
            column("least of a client", 0),
            column("most of a client", 0),
        ];
        let (clients, work_ms) = (self.clients, self.work_ms);
        let by = if self.haproxy { "HAProxy" } else { "turns" };
        let title =
            format!("Spread: {clients} clients by {by}, {work_ms} ms a record, {PARTITIONS} partitions, 3 nodes");
        let mut table = Table::new(title, &columns).note(
            "The ideal is clients ÷ the measured mean hold time; clients ÷ work leaves out that timers are late. A client core or a nodes' core near 1 means that this \
             machine was the limit: all nodes share one processor.",
        );
        let cells = vec![
            of(&share),
            of(&|one| one.records as f64 / one.seconds * self.work_ms / 1_000.0 / self.clients as f64 * 100.0),
            of(&|one| one.records as f64 / one.seconds),
            of(&|one| one.hold.mean_ms),
            of(&|one| one.server_cpu_s / one.seconds),
            of(&ends),
            of(&|one| one.client_cpu_s / one.seconds),
            of(&|one| one.server_cpu_s / one.records as f64 * 1e6),
            of(&|one| one.by_stream.0 as f64),
            of(&|one| one.by_stream.1 as f64),
        ];
        table.row(format!("{clients} clients"), "sluice", cells);
        let mut findings = Findings { tables: vec![table], figures: Vec::new() };
        findings.figure("P17", "% of the ideal", of(&share));
        findings.figure("P17", "CPU-s, busiest ÷ idlest node", of(&ends));
        findings
    }
}
