//! Runs of contestants in turn, in the figures that all scenarios share.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::floor::raw;
use crate::lab::{Lab, Topic};
use crate::load;
use crate::report::{Column, Table, column};
use crate::spread::Spread;

pub const COLUMNS: [Column; 8] = [
    column("CPU-s/1M", 3),
    column("records/s", 0),
    column("MB/s", 1),
    column("core", 2),
    column("RSS peak MiB", 0),
    column("records/frame", 0),
    column("client CPU-s/1M", 3),
    column("M records/s/core", 2),
];

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Raw,
    Naive,
    Tonic,
    Sluice,
}

/// One that is measured, with its load.
#[derive(Debug, Clone)]
pub struct Contestant {
    pub name: &'static str,
    pub kind: Kind,
    pub streams: usize,
    pub connections: usize,
    pub window: i32,
    /// Lines of the gateway's subscription.
    pub lines: &'static [&'static str],
    /// More arguments of the load client.
    pub load: Vec<String>,
    /// Records of the topic that it leaves.
    pub left: u64,
}

/// One run of one contestant.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    pub cpu_s_per_1m: f64,
    pub records_per_s: f64,
    pub mb_per_s: f64,
    pub core: f64,
    pub rss_mib: f64,
    pub records_per_frame: f64,
    pub client_cpu_s_per_1m: Option<f64>,
}

/// The runs of one case, by contestant, in their order.
#[derive(Debug, Default)]
pub struct Runs(BTreeMap<&'static str, Vec<Run>>);

// === impl Contestant ===

impl Contestant {
    pub fn new(name: &'static str, kind: Kind) -> Self {
        Self { name, kind, streams: 10, connections: 2, window: 1_000, lines: &[], load: Vec::new(), left: 0 }
    }

    /// With so many streams, ten a connection, on 2 to 100 connections.
    pub fn streams(self, streams: usize, window: i32) -> Self {
        Self { streams, window, connections: (streams / 10).clamp(2, 100), ..self }
    }

    /// With an argument for its load client.
    pub fn load(mut self, argument: &str) -> Self {
        self.load.push(argument.to_owned());
        self
    }

    /// Reads the topic once.
    pub fn run(&self, lab: &Lab, topic: &Topic) -> Result<Run> {
        let server = match self.kind {
            Kind::Raw => return Ok((&lab.raw(topic)?).into()),
            Kind::Naive => lab.naive(topic, self.window)?,
            Kind::Tonic => lab.tonic(topic.shape.value_bytes, self.window)?,
            Kind::Sluice => lab.sluice(&topic.name, self.lines),
        };
        let mut arguments = self.arguments();
        arguments.push(format!("--records={}", topic.records - self.left));
        Ok((&lab.load(&server, &arguments)?).into())
    }

    /// For the load client.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![
            format!("--streams={}", self.streams),
            format!("--connections={}", self.connections),
            format!("--window={}", self.window),
        ];
        arguments.extend(self.load.iter().cloned());
        arguments
    }
}

// === impl Run ===

impl From<&raw::Outcome> for Run {
    fn from(outcome: &raw::Outcome) -> Self {
        Self {
            cpu_s_per_1m: outcome.cpu_s / outcome.records as f64 * 1e6,
            records_per_s: outcome.records as f64 / outcome.seconds,
            mb_per_s: outcome.bytes as f64 / 1e6 / outcome.seconds,
            core: outcome.cpu_s / outcome.seconds,
            rss_mib: outcome.rss_peak_bytes as f64 / f64::from(1 << 20),
            records_per_frame: outcome.records_per_take,
            client_cpu_s_per_1m: None,
        }
    }
}

impl From<&load::Outcome> for Run {
    fn from(outcome: &load::Outcome) -> Self {
        let millions = outcome.records as f64 / 1e6;
        Self {
            cpu_s_per_1m: outcome.server_cpu_s / millions,
            records_per_s: outcome.records as f64 / outcome.seconds,
            mb_per_s: outcome.bytes as f64 / 1e6 / outcome.seconds,
            core: outcome.server_cpu_s / outcome.seconds,
            rss_mib: outcome.server_rss_peak_bytes as f64 / f64::from(1 << 20),
            records_per_frame: outcome.records_per_frame,
            client_cpu_s_per_1m: Some(outcome.client_cpu_s / millions),
        }
    }
}

// === impl Runs ===

impl Runs {
    /// A B A B on one topic.
    pub fn of(lab: &Lab, topic: &Topic, contestants: &[Contestant]) -> Result<Self> {
        let mut runs = Self::default();
        for _ in 0..lab.settings.runs {
            for contestant in contestants {
                let run = contestant.run(lab, topic)?;
                if lab.settings.verbose {
                    eprintln!("{}: {run:?}", contestant.name);
                }
                runs.0.entry(contestant.name).or_default().push(run);
            }
        }
        Ok(runs)
    }

    fn each(&self, who: &str, figure: impl Fn(&Run) -> f64) -> Vec<f64> {
        self.0.get(who).into_iter().flatten().map(figure).collect()
    }

    /// CPU seconds for a million records, run by run.
    pub fn cpu(&self, who: &str) -> Vec<f64> {
        self.each(who, |run| run.cpu_s_per_1m)
    }

    /// CPU time of one for a record, by that of another in the same pair.
    pub fn cpu_ratio(&self, of: &str, to: &str) -> Option<Spread> {
        Spread::ratios(&self.cpu(of), &self.cpu(to))
    }

    /// Records a second that one core can do, by those of another.
    pub fn rate_ratio(&self, of: &str, to: &str) -> Option<Spread> {
        let rate = |who| self.each(who, |run| 1.0 / run.cpu_s_per_1m);
        Spread::ratios(&rate(of), &rate(to))
    }

    /// A row a contestant.
    pub fn rows(&self, table: &mut Table, case: &str, contestants: &[Contestant]) {
        for who in contestants.iter().map(|contestant| contestant.name) {
            let spread = |figure: fn(&Run) -> f64| Spread::of(self.each(who, figure));
            let client = self.0.get(who).into_iter().flatten().filter_map(|run| run.client_cpu_s_per_1m);
            let cells = vec![
                spread(|run| run.cpu_s_per_1m),
                spread(|run| run.records_per_s),
                spread(|run| run.mb_per_s),
                spread(|run| run.core),
                spread(|run| run.rss_mib),
                spread(|run| run.records_per_frame),
                Spread::of(client),
                spread(|run| 1.0 / run.cpu_s_per_1m),
            ];
            table.row(case, who, cells);
        }
    }
}
