//! `kill -9`.

use std::time::Duration;

use crate::lab::{ALL_JOINED, Lab, Variant, until};
use crate::line::{Event, What};
use crate::measure::{delivered_after, first, longest_pause, now_us};
use crate::scenario::{Scenario, acked, events, seconds};
use crate::table::{Rows, row};
use crate::work::Work;

/// How big it is. The kill comes in the middle of a share consumer's first batch, 148 records of one fetched batch here.
struct Size {
    workers_a_process: usize,
    records: usize,
    /// Acks before the kill.
    acks: usize,
}

const MANY: Size = Size { workers_a_process: 20, records: 24_000, acks: 3_000 };
const TWO: Size = Size { workers_a_process: 1, records: 6_000, acks: 1_400 };
const LIMIT: Duration = Duration::from_secs(120);

pub const CRASH: Scenario = Scenario {
    name: "crash",
    title: "`kill -9`, more members than partitions",
    setup: "24,000 records on 6 partitions, two processes of 20 workers × 5 ms, so 40 share consumers. After 3,000 acks one \
            process, or the gateway, gets `kill -9`; a killed gateway is started again at once.",
    variants: || {
        vec![
            Variant::share("share group, a worker process"),
            Variant::sluice("Sluice, a worker process"),
            Variant::share("share group, 1 record a poll, a worker process").one_at_a_time(),
            Variant::sluice("Sluice, the gateway").kills_gateway(),
            Variant::sluice("Sluice, durable acks, the gateway").argument("ack=durable").kills_gateway(),
        ]
    },
    run: |lab, variant| run(lab, variant, &MANY),
    waits: true,
    rounds: 1,
};

pub const FEW: Scenario = Scenario {
    name: "few",
    title: "`kill -9`, fewer members than partitions",
    setup: "The same with two processes of 1 worker, so 2 share consumers, 6,000 records and a kill after 1,400 acks.",
    variants: || vec![Variant::share("share group, a worker process"), Variant::sluice("Sluice, a worker process")],
    run: |lab, variant| run(lab, variant, &TWO),
    waits: true,
    rounds: 1,
};

fn run(lab: &Lab, variant: &Variant, size: &Size) -> Rows {
    let (each, records) = (size.workers_a_process, size.records);
    let mut contestant = lab.enter(variant, 6);
    let survivor = contestant.workers(Work::of(each, 5_000));
    let mut victim = contestant.workers(Work::of(each, 5_000));
    std::thread::sleep(ALL_JOINED);
    contestant.fill(6, records);
    until(LIMIT, || acked(&[&survivor, &victim]).len() >= size.acks && !victim.said().acked.is_empty());
    let killed_us = now_us();
    if variant.kills_gateway {
        contestant.restart_gateway();
    } else {
        victim.kill();
    }
    until(LIMIT, || acked(&[&survivor, &victim]).len() == records);

    let all = events(&[&survivor, &victim]);
    let done = acked(&[&survivor, &victim]);
    let last = first(&all, What::Acked).values().max().copied().unwrap_or(killed_us);
    let confirmed = all.iter().any(|event| event.what == What::Confirmed);
    let again = if confirmed { delivered_after(What::Confirmed, &all).to_string() } else { "none are".to_owned() };
    vec![
        row("records lost", records - done.len()),
        row("delivered again after the worker acked it", delivered_after(What::Acked, &all)),
        row("delivered again after an ack that was confirmed", again),
        row("begun by the killed workers: came again after", came_again(&victim.said().events, &all, killed_us)),
        row("longest pause of a partition", seconds(longest_pause(killed_us, &all))),
        row("all done after the kill", seconds(last - killed_us)),
    ]
}

/// From when to when records came again that the victim had begun and not acked.
fn came_again(victim: &[Event], all: &[Event], killed_us: i64) -> String {
    let mut begun = first(victim, What::Delivered);
    let acked = first(victim, What::Acked);
    begun.retain(|record, at| *at < killed_us && !acked.contains_key(record));
    let mut again: Vec<i64> = all
        .iter()
        .filter(|event| event.what == What::Delivered && event.at_us > killed_us)
        .filter(|event| begun.contains_key(&event.record()))
        .map(|event| event.at_us - killed_us)
        .collect();
    again.sort_unstable();
    match (again.first(), again.last()) {
        (Some(first), Some(last)) => format!("{} – {}", seconds(*first), seconds(*last)),
        _ => "–".to_owned(),
    }
}
