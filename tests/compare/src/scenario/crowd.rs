//! Far more workers than partitions.

use std::time::Duration;

use crate::lab::{ALL_JOINED, Lab, Variant};
use crate::measure::crowd;
use crate::scenario::Scenario;
use crate::table::{Rows, row};
use crate::work::Work;

const WORKERS: usize = 300;
const WARM_UP: u64 = 6_000;
const RECORDS: u64 = 60_000;
const LIMIT: Duration = Duration::from_secs(60);
const MEASURED: Duration = Duration::from_secs(15);

pub const CROWD: Scenario = Scenario {
    name: "crowd",
    title: "300 workers × 5 ms on 6 partitions",
    setup: "300 workers in one process, each with a consumer of its own. After a warm-up of 6,000 records, 60,000 records of \
            100 bytes are written at once; measured from the first of them that is done to the last, or for 15 s.",
    variants: || {
        vec![
            Variant::share("share group"),
            Variant::sluice("Sluice"),
            Variant::share("share group, 1 record a poll").one_at_a_time(),
            Variant::share("share group, 10 records a poll")
                .with("consumer.share.acquire.mode=record_limit")
                .with("consumer.max.poll.records=10"),
            Variant::share("share group, 10 records a poll, commit=poll")
                .with("consumer.share.acquire.mode=record_limit")
                .with("commit=poll")
                .with("consumer.max.poll.records=10"),
        ]
    },
    run,
    waits: false,
};

fn run(lab: &Lab, variant: &Variant) -> Rows {
    let contestant = lab.enter(variant, 6);
    let mut workers = contestant.workers(Work { quiet: true, ..Work::of(WORKERS, 5_000) });
    std::thread::sleep(ALL_JOINED);
    let fill = |count: u64| contestant.fill(6, usize::try_from(count).expect("a few"));
    fill(WARM_UP);
    workers.reach(WARM_UP, LIMIT).expect("the warm-up is worked on");
    // Again: with 300 members the first assignments come late.
    std::thread::sleep(ALL_JOINED);
    workers.report(WORKERS);
    let cpu = contestant.cpu(&workers);
    fill(RECORDS);
    let from = workers.reach(WARM_UP + 1, LIMIT).expect("the first record is done");
    workers.reach(WARM_UP + RECORDS, MEASURED);
    let (until, total) = workers.said().totals.last().copied().expect("something is done");
    let [broker, gateway, own] = std::array::from_fn(|index| contestant.cpu(&workers)[index] - cpu[index]);
    let found = crowd(&workers.report(WORKERS), until - from);
    let errors = workers.said().errors;
    vec![
        row("records/s", format!("{:.0}", (total - WARM_UP) as f64 * 1e6 / (until - from) as f64)),
        row("share of all workers' time without work", format!("{:.0} %", found.idle_percent)),
        row("workers that got nothing", format!("{} of {WORKERS}", found.without_any)),
        row("records a worker: least / median / most", format!("{} / {} / {}", found.least, found.median, found.most)),
        row("workers that failed", errors),
        row(
            "CPU seconds: broker + gateway + workers",
            format!("{:.1} + {:.1} + {:.1}", broker.as_secs_f64(), gateway.as_secs_f64(), own.as_secs_f64()),
        ),
    ]
}
