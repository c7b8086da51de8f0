//! `durable`: settlements that are answered, by the node or by Kafka.

use anyhow::Result;

use super::measure::{Contestant, Kind};
use crate::fill::Shape;
use crate::lab::Lab;
use crate::load;
use crate::report::{Findings, Table, column};
use crate::spread::Spread;

const WARM_S: f64 = 2.0;
const SECONDS: f64 = 5.0;
/// More than any of them acks in that time.
const RECORDS: u64 = 3_000_000;
/// Streams and their window. With a window of 1 a stream asks for its next record with each ack, and never waits for the
/// answer: settlements of one record each.
const CASES: [(usize, i32); 3] = [(1, 1), (50, 1), (50, 100)];

pub fn run(lab: &Lab) -> Result<Findings> {
    let columns = [
        column("settlements/s", 0),
        column("records/s", 0),
        column("answer p50 ms", 2),
        column("answer p99 ms", 2),
        column("CPU-s/1M", 2),
    ];
    let mut table = Table::new("Durable settlements: 128 B, 6 partitions", &columns)
        .note("Each settlement is one request and one answer. Plain: this node has it. Durable: Kafka has it.");
    let topic = lab.topic(&Shape::new(6, 128), lab.count(RECORDS))?;
    for (streams, window) in CASES {
        let mut outcomes: [Vec<load::Outcome>; 2] = Default::default();
        for _ in 0..lab.settings.runs {
            for (ask, outcomes) in ["plain", "durable"].into_iter().zip(&mut outcomes) {
                outcomes.push(once(lab, &topic, streams, window, ask)?);
            }
        }
        for (ask, outcomes) in ["plain", "durable"].into_iter().zip(&outcomes) {
            let of = |figure: &dyn Fn(&load::Outcome) -> f64| Spread::of(outcomes.iter().map(figure));
            let cells = vec![
                of(&|one| one.answered as f64 / one.seconds),
                of(&|one| one.records as f64 / one.seconds),
                of(&|one| one.answer.p50_ms),
                of(&|one| one.answer.p99_ms),
                of(&|one| one.server_cpu_s / one.records as f64 * 1e6),
            ];
            table.row(format!("{streams} streams, window {window}"), ask, cells);
        }
    }
    Ok(Findings { tables: vec![table], ..Findings::default() })
}

fn once(lab: &Lab, topic: &crate::lab::Topic, streams: usize, window: i32, ask: &str) -> Result<load::Outcome> {
    let server = lab.sluice(&topic.name, &[]);
    let mut arguments = Contestant::new("sluice", Kind::Sluice).streams(streams, window).arguments();
    let seconds = lab.seconds(SECONDS);
    arguments.extend([format!("--ask={ask}"), format!("--seconds={seconds}"), format!("--warm={WARM_S}")]);
    lab.load(&server, &arguments)
}
