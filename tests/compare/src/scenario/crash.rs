//! `kill -9`.

use std::time::Duration;

use crate::lab::{ALL_JOINED, Lab, Variant, until};
use crate::line::{Event, What};
use crate::measure::{delivered_after, first, last_partition_resumed, now_us};
use crate::scenario::{Scenario, acked, events, seconds};
use crate::table::{Rows, row};
use crate::work::Work;

const RECORDS: usize = 6_000;
/// Acks before the kill.
const AT: usize = 1_500;
const LIMIT: Duration = Duration::from_secs(120);

pub const CRASH: Scenario = Scenario {
    name: "crash",
    title: "`kill -9`, more members than partitions",
    setup: "6,000 records on 6 partitions, two processes of 5 workers × 5 ms, so 10 share consumers. After 1,500 acks one \
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
    run: |lab, variant| run(lab, variant, 5),
    waits: true,
    rounds: 1,
};

pub const FEW: Scenario = Scenario {
    name: "few",
    title: "`kill -9`, fewer members than partitions",
    setup: "The same with two processes of 1 worker: 2 members, 6 partitions.",
    variants: || vec![Variant::share("share group, a worker process"), Variant::sluice("Sluice, a worker process")],
    run: |lab, variant| run(lab, variant, 1),
    waits: true,
    rounds: 1,
};

fn run(lab: &Lab, variant: &Variant, each: usize) -> Rows {
    let mut contestant = lab.enter(variant, 6);
    let survivor = contestant.workers(Work::of(each, 5_000));
    let mut victim = contestant.workers(Work::of(each, 5_000));
    std::thread::sleep(ALL_JOINED);
    contestant.fill(6, RECORDS);
    until(LIMIT, || acked(&[&survivor, &victim]).len() >= AT && !victim.said().acked.is_empty());
    let killed_us = now_us();
    if variant.kills_gateway {
        contestant.restart_gateway();
    } else {
        victim.kill();
    }
    until(LIMIT, || acked(&[&survivor, &victim]).len() == RECORDS);

    let all = events(&[&survivor, &victim]);
    let done = acked(&[&survivor, &victim]);
    let last = first(&all, What::Acked).values().max().copied().unwrap_or(killed_us);
    let confirmed = all.iter().any(|event| event.what == What::Confirmed);
    let again = if confirmed { delivered_after(What::Confirmed, &all).to_string() } else { "none are".to_owned() };
    let resumed = if variant.kills_gateway { &all } else { &survivor.said().events };
    vec![
        row("records lost", RECORDS - done.len()),
        row("delivered again after the worker acked it", delivered_after(What::Acked, &all)),
        row("delivered again after an ack that was confirmed", again),
        row("begun by the killed workers: came again after", came_again(&victim.said().events, &all, killed_us)),
        row(
            "each partition's first record elsewhere, the last after",
            last_partition_resumed(killed_us, resumed).map_or("–".to_owned(), seconds),
        ),
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
