//! One record that a worker holds and never settles.

use std::time::Duration;

use crate::lab::{Lab, Variant, until};
use crate::line::What;
use crate::measure::now_us;
use crate::scenario::{Scenario, acked, seconds};
use crate::table::{Rows, row};
use crate::work::Work;

const RECORDS: usize = 10_000;
/// No further ack for so long: nothing moves any more.
const STILL: Duration = Duration::from_secs(4);

pub const STUCK: Scenario = Scenario {
    name: "stuck",
    title: "One stuck record",
    setup: "10,000 records on one partition. A worker that takes one record at a time holds the first and renews it for ever \
            (`RENEW`, `Extend`); 10 workers work on the others, until nothing moves for 4 s. Then all workers, and the gateway, \
            get `kill -9`, and new ones start.",
    variants: || {
        vec![
            Variant::share("share group"),
            Variant::sluice("Sluice"),
            Variant::share("share group, 4,000 locks a partition (the most a group may have)")
                .with("group.share.partition.max.record.locks=4000"),
        ]
    },
    run,
    waits: true,
    rounds: 1,
};

fn run(lab: &Lab, variant: &Variant) -> Rows {
    let mut contestant = lab.enter(variant, 1);
    contestant.fill(1, RECORDS);
    let mut holder = contestant.holder();
    until(Duration::from_secs(30), || !holder.said().events.is_empty());
    let held = holder.said().events.first().map(|event| event.record());
    let mut others = contestant.workers(Work::of(10, 0));
    until(Duration::from_secs(30), || !others.said().acked.is_empty());
    let done = settled(|| others.said().acked.len());

    holder.kill();
    others.kill();
    let killed_us = now_us();
    contestant.restart_gateway();
    let after = contestant.workers(Work::of(10, 0));
    until(Duration::from_secs(60), || acked(&[&others, &after]).len() == RECORDS);
    let before = acked(&[&others]);
    let said = after.said();
    let delivered = || said.events.iter().filter(|event| event.what == What::Delivered);
    let came_again = delivered().find(|event| Some(event.record()) == held).map(|event| event.at_us);
    let again = delivered().filter(|event| before.contains(&event.record())).count();
    let last = said.events.iter().map(|event| event.at_us).max().unwrap_or(killed_us);
    drop(said);
    vec![
        row("done while it was held", format!("{done} of {}", RECORDS - 1)),
        row("done before the kill and delivered again", again),
        row("the held record came again after", came_again.map_or("not in 60 s".into(), |at| seconds(at - killed_us))),
        row("done in the end", format!("{} of {RECORDS}", acked(&[&others, &after]).len())),
        row("from the kill to the last ack", seconds(last - killed_us)),
    ]
}

/// The number, once it has not grown for a while.
fn settled(number: impl Fn() -> usize) -> usize {
    let mut last = number();
    while until(STILL, || number() > last) {
        last = number();
    }
    last
}
