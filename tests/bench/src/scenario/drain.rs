//! `drain`: how much a record costs when a full topic is read as fast as it goes.

use anyhow::Result;

use super::measure::{COLUMNS, Contestant, Kind, Runs};
use crate::fill::{Keys, Shape};
use crate::lab::{Lab, Topic};
use crate::report::{Findings, Table, column};

const CONTESTANTS: [(&str, Kind); 4] =
    [("raw", Kind::Raw), ("naive", Kind::Naive), ("tonic", Kind::Tonic), ("sluice", Kind::Sluice)];

#[derive(Debug, Clone, clap::Args)]
pub struct Drain {
    /// Bytes of a value.
    #[arg(long, value_delimiter = ',', default_value = "128,1024")]
    pub sizes: Vec<usize>,
    #[arg(long, value_delimiter = ',', default_value = "12")]
    pub partitions: Vec<i32>,
    #[arg(long, value_delimiter = ',', default_value = "raw,naive,tonic,sluice", value_parser = ["raw", "naive", "tonic", "sluice"])]
    pub contestants: Vec<String>,
    #[arg(long, default_value_t = 10)]
    pub streams: usize,
    #[arg(long, default_value_t = 2)]
    pub connections: usize,
    #[arg(long, default_value_t = 1_000)]
    pub window: i32,
    /// Records, in place of as many as take a second or so.
    #[arg(long)]
    pub records: Option<u64>,
    /// `none`, `uniform:KEYS` or `zipf:KEYS:EXPONENT`.
    #[arg(long, default_value = "none")]
    pub keys: Keys,
    /// As librdkafka names it: none, lz4, zstd, gzip, snappy. Values are then text.
    #[arg(long, default_value = "none")]
    pub compression: String,
}

impl Drain {
    /// Two sides on a small topic, for a quick look.
    pub fn small() -> Self {
        Self {
            sizes: vec![128],
            partitions: vec![12],
            contestants: ["naive", "sluice"].map(str::to_owned).to_vec(),
            streams: 10,
            connections: 2,
            window: 1_000,
            records: Some(400_000),
            keys: Keys::None,
            compression: "none".to_owned(),
        }
    }

    /// All that P1 and P3 ask for.
    pub fn full() -> Self {
        Self {
            sizes: vec![128, 1_024, 16_384],
            partitions: vec![1, 12],
            contestants: ["raw", "naive", "sluice"].map(str::to_owned).to_vec(),
            records: None,
            ..Self::small()
        }
    }

    pub fn run(&self, lab: &Lab) -> Result<Findings> {
        let title = format!("Drain: {} streams, window {}", self.streams, self.window);
        let mut table = Table::new(title, &COLUMNS).note(
            "CPU time is of the whole process, user and system, from before the clients connect until the last ack is \
             confirmed. Below 0.9 of a core the process was not the bottleneck, and records/s is not its limit: \
             M records/s/core is.",
        );
        let mut ratios = Table::new("Drain: ratios of pairs", &[column("CPU", 2), column("records/s of a core", 2)]);
        let mut findings = Findings::default();
        let contestants = self.contestants();
        for &size in &self.sizes {
            for &partitions in &self.partitions {
                let case = format!("{}, {partitions} p", bytes(size));
                let runs = Runs::of(lab, &self.topic(lab, partitions, size)?, &contestants)?;
                runs.rows(&mut table, &case, &contestants);
                for (of, to) in [("naive", "raw"), ("sluice", "naive"), ("sluice", "raw"), ("sluice", "tonic")] {
                    if let Some(cpu) = runs.cpu_ratio(of, to) {
                        ratios.row(&case, format!("{of} ÷ {to}"), vec![Some(cpu), runs.rate_ratio(of, to)]);
                    }
                }
                findings.figure("P1", &case, runs.cpu_ratio("sluice", "naive"));
                if size == 128 {
                    findings.figure("P3", &case, runs.rate_ratio("sluice", "raw"));
                }
            }
        }
        findings.tables = vec![table, ratios];
        Ok(findings)
    }

    fn topic(&self, lab: &Lab, partitions: i32, size: usize) -> Result<Topic> {
        let records = self.records.unwrap_or_else(|| lab.count(records_of(size)));
        let text = self.compression != "none";
        let (keys, compression) = (self.keys, self.compression.clone());
        lab.topic(&Shape { keys, compression, text, ..Shape::new(partitions, size) }, records)
    }

    fn contestants(&self) -> Vec<Contestant> {
        let asked = CONTESTANTS.into_iter().filter(|(name, _)| self.contestants.iter().any(|asked| asked == name));
        let of = |(name, kind)| Contestant {
            streams: self.streams,
            connections: self.connections,
            window: self.window,
            ..Contestant::new(name, kind)
        };
        asked.map(of).collect()
    }
}

/// As many as take a second or so.
fn records_of(size: usize) -> u64 {
    match size {
        ..=256 => 1_500_000,
        257..=2_048 => 500_000,
        _ => 60_000,
    }
}

fn bytes(size: usize) -> String {
    if size >= 1_024 && size.is_multiple_of(1_024) { format!("{} KiB", size / 1_024) } else { format!("{size} B") }
}
