//! Far more workers than partitions.

use std::time::Duration;

use crate::lab::{ALL_JOINED, Lab, Variant, until};
use crate::measure::{crowd, now_us};
use crate::scenario::{Scenario, cpu_seconds};
use crate::table::{Rows, row};
use crate::work::Work;

const WORKERS: usize = 300;
const WARM_UP: u64 = 6_000;
const RECORDS: u64 = 400_000;
/// The end of a backlog, when there is not enough for all, is not measured.
const MEASURED_RECORDS: u64 = RECORDS / 10 * 9;
const MEASURED: Duration = Duration::from_secs(8);
const LIMIT: Duration = Duration::from_secs(90);

pub const CROWD: Scenario = Scenario {
    name: "crowd",
    title: "300 workers × 5 ms on 6 partitions",
    setup: "300 workers in one process, each with a consumer of its own, or with 12 consumers between them. After a warm-up of \
            6,000 records the workers pause, 400,000 records of 100 bytes are written, and they go on; measured from there for \
            8 s, or until nine tenths are done. The ideal is workers ÷ the mean time that a worker really had a record in work: \
            a sleep of 5 ms is longer when its process waits for a processor.",
    variants: || {
        vec![
            Variant::share("share group"),
            Variant::sluice("Sluice"),
            Variant::share("share group, 10 records a poll, acks with the next poll")
                .with("consumer.share.acquire.mode=record_limit")
                .with("consumer.max.poll.records=10")
                .argument("commit=poll"),
            Variant::share("share group, 12 consumers share 300 threads").argument("consumers=12"),
            Variant::sluice("Sluice, 12 consumers share 300 tasks").argument("consumers=12"),
        ]
    },
    run,
    waits: false,
    rounds: 3,
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
    workers.tell("pause");
    fill(RECORDS);
    workers.report(WORKERS);
    let (cpu, from) = (contestant.cpu(&workers), now_us());
    workers.tell("go");
    until(MEASURED, || workers.said().totals.last().is_some_and(|(_, total)| *total >= WARM_UP + MEASURED_RECORDS));
    let (until, now) = (now_us(), contestant.cpu(&workers));
    let total = workers.said().totals.last().map_or(0, |(_, total)| *total);
    let shares = workers.report(WORKERS);
    let parts: [Duration; 3] = std::array::from_fn(|index| now[index] - cpu[index]);
    let found = crowd(&shares);
    let count = total.saturating_sub(WARM_UP);
    let rate = count as f64 * 1e6 / (until - from) as f64;
    let used = parts.iter().sum::<Duration>().as_secs_f64() * 1e6 / (until - from) as f64;
    let cpu_a_million = parts.map(|part| part.mul_f64(1e6 / count.max(1) as f64));
    vec![
        row("records/s", format!("{rate:.0}")),
        row("of the ideal", format!("{:.0} %", 100.0 * rate / found.ideal.max(1.0))),
        row("of 60,000/s, exactly 5 ms each", format!("{:.0} %", rate / 600.0)),
        row("mean time in work", format!("{:.2} ms", found.hold_us / 1e3)),
        row("workers that got nothing", found.without_any),
        row("records a worker: least / median / most", format!("{} / {} / {}", found.least, found.median, found.most)),
        row("workers that failed", workers.said().errors),
        row("CPU-s a million records: broker + gateway + workers", cpu_seconds(cpu_a_million)),
        row("processors in use by these", format!("{used:.1}")),
    ]
}
