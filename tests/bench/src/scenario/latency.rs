//! `latency`: from the time at which a record was meant to be sent until a client has it, at a steady rate.

use std::collections::BTreeMap;

use anyhow::Result;
use sluice_tests::unique;

use super::measure::{Contestant, Kind};
use crate::fill::{Produced, Shape};
use crate::floor::raw;
use crate::lab::{Lab, Topic};
use crate::latency::Percentiles;
use crate::load;
use crate::report::{Findings, Table, column};
use crate::spread::Spread;

/// Joining a group takes a while; what comes before is left out.
const WARM_S: f64 = 2.5;
const CONTESTANTS: [(&str, Kind); 3] = [("raw", Kind::Raw), ("naive", Kind::Naive), ("sluice", Kind::Sluice)];

#[derive(Debug, Clone, clap::Args)]
pub struct Latency {
    /// Records a second.
    #[arg(long, value_delimiter = ',', default_value = "1000,5000")]
    pub rates: Vec<u32>,
    #[arg(long, default_value_t = 128)]
    pub size: usize,
    #[arg(long, default_value_t = 1)]
    pub partitions: i32,
    #[arg(long, default_value_t = 2.5)]
    pub seconds: f64,
}

struct Sample {
    latency: Percentiles,
    cpu_s_per_1m: f64,
    produced: Produced,
}

impl Default for Latency {
    fn default() -> Self {
        Self { rates: vec![1_000, 5_000], size: 128, partitions: 1, seconds: 3.0 }
    }
}

impl Latency {
    pub fn run(&self, lab: &Lab) -> Result<Findings> {
        let columns = [
            column("p50 ms", 2),
            column("p90 ms", 2),
            column("p99 ms", 2),
            column("p99.9 ms", 2),
            column("max ms", 1),
            column("CPU-s/1M", 1),
            column("Kafka's ack p50 ms", 2),
            column("sent late", 0),
        ];
        let mut table = Table::new(format!("Latency: {} B, {} partitions", self.size, self.partitions), &columns)
            .note("Against the intended send time, so a sender that is late counts. Idempotence and linger are off.");
        let mut added = Table::new("Latency above raw, pair by pair", &[column("p50 ms", 2), column("p99 ms", 2)]);
        let mut findings = Findings::default();
        warm_up(lab)?;
        for &rate in &self.rates {
            let samples = self.samples(lab, rate)?;
            let case = format!("{rate}/s");
            for (name, _) in CONTESTANTS {
                table.row(&case, name, cells(&samples[name]));
            }
            for name in ["naive", "sluice"] {
                let above = |figure: fn(&Percentiles) -> f64| {
                    let pairs = samples[name].iter().zip(&samples["raw"]);
                    Spread::of(pairs.map(|(one, raw)| figure(&one.latency) - figure(&raw.latency)))
                };
                let (p50, p99) = (above(|found| found.p50_ms), above(|found| found.p99_ms));
                added.row(&case, name, vec![p50, p99]);
                if name == "sluice" {
                    findings.figure("P5", format!("{case}, p50 ms"), p50);
                    findings.figure("P5", format!("{case}, p99 ms"), p99);
                }
            }
        }
        findings.tables = vec![table, added];
        Ok(findings)
    }

    fn samples(&self, lab: &Lab, rate: u32) -> Result<BTreeMap<&'static str, Vec<Sample>>> {
        let mut samples: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for _ in 0..lab.settings.runs {
            for (name, kind) in CONTESTANTS {
                // Empty, so that nothing has to be caught up with.
                let topic = lab.topic(&Shape::new(self.partitions, self.size), 0)?;
                samples.entry(name).or_default().push(self.once(lab, kind, &topic, f64::from(rate))?);
            }
        }
        Ok(samples)
    }

    fn once(&self, lab: &Lab, kind: Kind, topic: &Topic, rate: f64) -> Result<Sample> {
        let seconds = lab.seconds(self.seconds);
        let flags = [
            format!("--seconds={}", if kind == Kind::Raw { WARM_S + seconds } else { seconds }),
            format!("--warm={WARM_S}"),
            "--latency".to_owned(),
        ];
        let server = match kind {
            Kind::Raw => {
                let flags = flags.each_ref().map(String::as_str);
                let mut raw = lab.raw_helper(&topic.name, &unique("raw"), &flags)?;
                let mut producer = lab.produce(topic, rate, WARM_S + seconds + 0.5)?;
                raw.tell("go")?;
                let outcome: raw::Outcome = raw.answer()?;
                let cpu_s_per_1m = outcome.cpu_s / outcome.records as f64 * 1e6;
                let latency = outcome.latency.unwrap_or_default();
                return Ok(Sample { latency, cpu_s_per_1m, produced: producer.answer()? });
            }
            Kind::Naive => lab.naive(topic, 100)?,
            Kind::Tonic | Kind::Sluice => lab.sluice(&topic.name, &[]),
        };
        let mut arguments = Contestant::new("", kind).arguments();
        arguments.extend(flags);
        let mut load = lab.load_helper(server.address(), server.pid(), &arguments)?;
        load.event("subscribed")?;
        let mut producer = lab.produce(topic, rate, WARM_S + seconds + 0.5)?;
        let outcome: load::Outcome = load.answer()?;
        let cpu_s_per_1m = outcome.server_cpu_s / outcome.records as f64 * 1e6;
        Ok(Sample { latency: outcome.latency, cpu_s_per_1m, produced: producer.answer()? })
    }
}

/// A broker that has just started compiles what it runs, on the core that the producer needs.
fn warm_up(lab: &Lab) -> Result<()> {
    let topic = lab.topic(&Shape::new(1, 128), 200_000)?;
    let _warm: Produced = lab.produce(&topic, 2_000.0, 3.0)?.answer()?;
    Ok(())
}

fn cells(samples: &[Sample]) -> Vec<Option<Spread>> {
    let of = |figure: fn(&Sample) -> f64| Spread::of(samples.iter().map(figure));
    vec![
        of(|one| one.latency.p50_ms),
        of(|one| one.latency.p90_ms),
        of(|one| one.latency.p99_ms),
        of(|one| one.latency.p999_ms),
        of(|one| one.latency.max_ms),
        of(|one| one.cpu_s_per_1m),
        of(|one| one.produced.acknowledged.p50_ms),
        of(|one| one.produced.late as f64),
    ]
}
