//! What the workers need is away for a while.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::lab::{ALL_JOINED, Lab, Variant, until};
use crate::line::What;
use crate::scenario::{Scenario, trickle};
use crate::table::{Rows, row};
use crate::work::Work;

const PARTITIONS: usize = 6;
const WARM_UP: usize = 60;
const RECORDS: usize = 1_000;
/// 50 records a second, so that the last one is written when the dependency comes back.
const APART: Duration = Duration::from_millis(20);
const SOON: Duration = Duration::from_secs(25);
/// Longer than the longest backoff that a subscription has by default, 5 min ± 20 %.
const LATE: Duration = Duration::from_secs(370);

pub const OUTAGE: Scenario = Scenario {
    name: "outage",
    title: "A dependency is down for 20 s, at 50 records/s",
    setup: "6 partitions, 20 workers × 1 ms. The dependency goes down, and for 20 s 50 records are written a second; every work \
            fails and is given back (`RELEASE`, `Retry`). Counted 25 s and 370 s after it is up again. \"Waits in place\": a \
            worker that fails gives nothing back, sleeps a second with the record in its hands and tries it again.",
    variants: || {
        let (copy, limit) =
            ("group.errors.deadletterqueue.copy.record.enable=true", "group.share.delivery.count.limit=10");
        vec![
            Variant::share("share group"),
            Variant::sluice("Sluice"),
            Variant::share("share group, 10 deliveries (the most a group may have), dead letters with copies")
                .with(limit)
                .with(copy)
                .dead_letters(),
            Variant::sluice("Sluice, `max_attempts = 10`").with("retry.max_attempts = 10"),
            Variant::share("share group, the worker waits in place").argument("failing=wait"),
        ]
    },
    run,
    waits: true,
    rounds: 1,
};

fn run(lab: &Lab, variant: &Variant) -> Rows {
    let contestant = lab.enter(variant, i32::try_from(PARTITIONS).expect("a few"));
    let mut workers = contestant.workers(Work::of(20, 1_000));
    std::thread::sleep(ALL_JOINED);
    contestant.fill(6, WARM_UP);
    until(Duration::from_secs(60), || workers.said().acked.len() == WARM_UP);
    workers.tell("down");
    let warm = workers.said().events.len();
    trickle(&contestant, PARTITIONS, RECORDS, APART);
    workers.tell("up");
    let up = Instant::now();
    let acked = |limit: Duration| {
        until(limit.saturating_sub(up.elapsed()), || workers.said().acked.len() == WARM_UP + RECORDS);
        workers.said().acked.len() - WARM_UP
    };
    let soon = acked(SOON);
    let (soon_waiting, soon_after) = (contestant.waiting(), up.elapsed());
    let late = acked(LATE);
    let all_after = (late == RECORDS).then(|| if soon == RECORDS { soon_after } else { up.elapsed() });

    let waiting = contestant.waiting();
    let mut deliveries: HashMap<_, usize> = HashMap::new();
    for event in workers.said().events[warm..].iter().filter(|event| event.what == What::Delivered) {
        *deliveries.entry(event.record()).or_default() += 1;
    }
    let letters = contestant.dead_letters.as_ref().map(|topic| lab.kafka().read(topic, 0));
    let dead = letters.as_ref().map_or(0, Vec::len);
    vec![
        row("works that were begun", deliveries.values().sum::<usize>()),
        row("most of them for one record", deliveries.values().max().copied().unwrap_or(0)),
        row("done 25 s after it was up", format!("{soon} of {RECORDS}")),
        row("waited for another try then", soon_waiting),
        row("done 370 s after it was up", format!("{late} of {RECORDS}")),
        row("all done after", all_after.map_or("–".to_owned(), |after| format!("{:.1} s", after.as_secs_f64()))),
        row("dead letters", letters.map_or_else(|| "no topic".to_owned(), |_| dead.to_string())),
        row("will never be worked on, and are in no other topic", RECORDS - (late + waiting + dead).min(RECORDS)),
    ]
}
