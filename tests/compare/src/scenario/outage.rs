//! What the workers need is away for a while.

use std::collections::HashMap;
use std::time::Duration;

use crate::lab::{ALL_JOINED, Lab, Variant, until};
use crate::line::What;
use crate::scenario::Scenario;
use crate::table::{Rows, row};
use crate::work::Work;

const WARM_UP: usize = 60;
const RECORDS: usize = 600;
const DOWN: Duration = Duration::from_secs(20);
const WATCHED: Duration = Duration::from_secs(25);

pub const OUTAGE: Scenario = Scenario {
    name: "outage",
    title: "A dependency is down for 20 s",
    setup: "600 records on 6 partitions, 20 workers × 1 ms. Every work fails while the dependency is down, 20 s from just before \
            the records are written, and is given back (`RELEASE`, `Retry`). Counted 25 s after it is up again.",
    variants: || {
        let (copy, limit) =
            ("group.errors.deadletterqueue.copy.record.enable=true", "group.share.delivery.count.limit=10");
        vec![
            Variant::share("share group"),
            Variant::sluice("Sluice"),
            Variant::share("share group, limit 10 (the most a group may have), dead letters with copies")
                .with(limit)
                .with(copy)
                .dead_letters(),
            Variant::sluice("Sluice, `max_attempts = 10`").with("retry.max_attempts = 10"),
        ]
    },
    run,
    waits: true,
};

fn run(lab: &Lab, variant: &Variant) -> Rows {
    let contestant = lab.enter(variant, 6);
    let mut workers = contestant.workers(Work::of(20, 1_000));
    std::thread::sleep(ALL_JOINED);
    contestant.fill(6, WARM_UP);
    until(Duration::from_secs(30), || workers.said().acked.len() == WARM_UP);
    workers.tell("down");
    let warm = workers.said().events.len();
    contestant.fill(6, RECORDS);
    std::thread::sleep(DOWN);
    workers.tell("up");
    until(WATCHED, || workers.said().acked.len() == WARM_UP + RECORDS);

    let (waiting, acked) = (contestant.waiting(), workers.said().acked.len() - WARM_UP);
    let mut deliveries: HashMap<_, usize> = HashMap::new();
    for event in workers.said().events[warm..].iter().filter(|event| event.what == What::Delivered) {
        *deliveries.entry(event.record()).or_default() += 1;
    }
    let letters = contestant.dead_letters.as_ref().map(|topic| lab.kafka().read(topic, 0));
    let dead = letters.as_ref().map_or(0, Vec::len);
    vec![
        row("deliveries", deliveries.values().sum::<usize>()),
        row("most deliveries of a record", deliveries.values().max().copied().unwrap_or(0)),
        row("records acknowledged", format!("{acked} of {RECORDS}")),
        row("wait for another try", waiting),
        row("dead letters", letters.map_or_else(|| "no topic".to_owned(), |_| dead.to_string())),
        row("will never be worked on, and are in no other topic", RECORDS - (acked + waiting + dead).min(RECORDS)),
    ]
}
