//! `kill -9`.

use std::time::Duration;

use crate::lab::{ALL_JOINED, Lab, Variant, until};
use crate::line::What;
use crate::measure::{delivered_after_ack, first, now_us};
use crate::scenario::{Scenario, acked, events, seconds};
use crate::table::{Rows, row};
use crate::work::Work;

const RECORDS: usize = 6_000;
/// Acks before the kill.
const AT: usize = 1_500;

pub const CRASH: Scenario = Scenario {
    name: "crash",
    title: "`kill -9`",
    setup: "6,000 records on 6 partitions, two processes of 5 workers × 5 ms. After 1,500 acks one process, or the gateway, gets \
            `kill -9`; a killed gateway is started again at once.",
    variants: || {
        vec![
            Variant::share("share group, a worker process"),
            Variant::sluice("Sluice, a worker process"),
            Variant::share("share group, 1 record a poll, a worker process").one_at_a_time(),
            Variant::sluice("Sluice, the gateway").kills_gateway(),
        ]
    },
    run,
    waits: true,
};

fn run(lab: &Lab, variant: &Variant) -> Rows {
    let mut contestant = lab.enter(variant, 6);
    let survivor = contestant.workers(Work::of(5, 5_000));
    let mut victim = contestant.workers(Work::of(5, 5_000));
    std::thread::sleep(ALL_JOINED);
    contestant.fill(6, RECORDS);
    until(Duration::from_secs(30), || acked(&[&survivor, &victim]).len() >= AT && !victim.said().acked.is_empty());
    let killed_us = now_us();
    if variant.kills_gateway {
        contestant.restart_gateway();
    } else {
        victim.kill();
    }
    until(Duration::from_secs(60), || acked(&[&survivor, &victim]).len() == RECORDS);

    let all = events(&[&survivor, &victim]);
    let done = acked(&[&survivor, &victim]);
    let last = first(&all, What::Acked).values().max().copied().unwrap_or(killed_us);
    let mut begun = first(&victim.said().events, What::Delivered);
    begun.retain(|record, at| *at < killed_us && !victim.said().acked.contains(record));
    let survived = survivor.said();
    let mut again: Vec<i64> = first(&survived.events, What::Delivered)
        .iter()
        .filter(|(record, at)| begun.contains_key(*record) && **at > killed_us)
        .map(|(_, at)| at - killed_us)
        .collect();
    again.sort_unstable();
    let came_again = match (again.first(), again.last()) {
        (Some(first), Some(last)) => format!("{} – {}", seconds(*first), seconds(*last)),
        _ => "–".to_owned(),
    };
    vec![
        row("records lost", RECORDS - done.len()),
        row("delivered again after an ack", delivered_after_ack(&all)),
        row("begun by the killed worker: came again after", came_again),
        row("all done after the kill", seconds(last - killed_us)),
    ]
}
