//! What is compared. Each scenario gives every contestant the same records and the same work, and counts alike.

mod backoff;
mod crash;
mod crowd;
mod one;
mod order;
mod outage;
mod stuck;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use crate::crew::Workers;
use crate::lab::{Contestant, Lab, Variant};
use crate::line::Event;
use crate::measure::{Id, now_us};
use crate::table::Rows;

/// One table of the page.
pub struct Scenario {
    /// For `--only`.
    pub name: &'static str,
    /// Its heading.
    pub title: &'static str,
    /// What was done, for the page.
    pub setup: &'static str,
    /// Who takes part.
    pub variants: fn() -> Vec<Variant>,
    /// Runs one contestant.
    pub run: fn(&Lab, &Variant) -> Rows,
    /// Mostly waits, so that all contestants run at the same time; else one after the other, in the order of `variants`.
    pub waits: bool,
    /// How often the contestants run by turns; 1 where they run at the same time.
    pub rounds: usize,
}

/// All of them, in the page's order.
pub const ALL: [&Scenario; 8] = [
    &order::ORDER,
    &backoff::BACKOFF,
    &outage::OUTAGE,
    &stuck::STUCK,
    &crash::CRASH,
    &crash::FEW,
    &crowd::CROWD,
    &one::ONE,
];

/// What several processes said, together.
fn events(processes: &[&Workers]) -> Vec<Event> {
    processes.iter().flat_map(|workers| workers.said().events.clone()).collect()
}

/// The records that several processes acknowledged, together.
fn acked(processes: &[&Workers]) -> HashSet<Id> {
    processes.iter().flat_map(|workers| workers.said().acked.clone()).collect()
}

/// Writes so many records one by one, so far apart, round robin over the partitions; when each was written.
fn trickle(contestant: &Contestant<'_>, partitions: usize, count: usize, apart: Duration) -> Vec<i64> {
    let producer: BaseProducer = contestant.kafka().config(&[("linger.ms", "0")]).create().expect("create a producer");
    let mut next = Instant::now();
    let written = (0..count).map(|index| {
        let at = now_us();
        let partition = i32::try_from(index % partitions).expect("a few partitions");
        let record: BaseRecord<'_, (), [u8]> =
            BaseRecord::to(&contestant.topic).partition(partition).payload(b"one of a trickle");
        producer.send(record).unwrap_or_else(|(error, _)| panic!("produce to {}: {error}", contestant.topic));
        next += apart;
        while Instant::now() < next {
            producer.poll(next.saturating_duration_since(Instant::now()));
        }
        at
    });
    let written = written.collect();
    producer.flush(Duration::from_secs(60)).expect("flush the producer");
    written
}

fn cpu_seconds(parts: [Duration; 3]) -> String {
    parts.map(|part| format!("{:.2}", part.as_secs_f64())).join(" + ")
}

fn seconds(us: i64) -> String {
    format!("{:.2} s", us as f64 / 1e6)
}
