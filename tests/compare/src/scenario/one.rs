//! What one worker sees: the delay of a record, and how fast records come when there is nothing to do with them.

use std::time::Duration;

use crate::lab::{ALL_JOINED, Contestant, Lab, Variant, until};
use crate::line::What;
use crate::measure::{first, quantile};
use crate::scenario::{Scenario, cpu_seconds, trickle};
use crate::table::{Rows, row};
use crate::work::Work;

/// Written one by one before the measured ones: the JVM compiles what it runs often.
const SINGLES_BEFORE: usize = 500;
const SINGLES: usize = 500;
const APART: Duration = Duration::from_millis(10);
const IDLE: Duration = Duration::from_secs(10);
const BACKLOG_BEFORE: u64 = 200_000;
const BACKLOG: u64 = 600_000;
const LIMIT: Duration = Duration::from_secs(90);

pub const ONE: Scenario = Scenario {
    name: "one",
    title: "One worker that does nothing",
    setup: "Idle: one worker and no record, for 10 s. Delay: records written one by one, 10 ms apart, to one partition; from \
            before the write to the worker, 500 records after 500 of warm-up. Speed: a backlog of 800,000 records of 100 bytes \
            on 6 partitions, measured over the last 600,000.",
    variants: || {
        vec![
            Variant::share("share group"),
            Variant::sluice("Sluice"),
            Variant::share("share group, acks with the next poll").argument("commit=poll"),
        ]
    },
    run,
    waits: false,
    rounds: 3,
};

fn run(lab: &Lab, variant: &Variant) -> Rows {
    let mut rows = delay(&lab.enter(variant, 1));
    rows.extend(speed(&lab.enter(variant, 6)));
    rows
}

fn delay(contestant: &Contestant<'_>) -> Rows {
    let workers = contestant.workers(Work::of(1, 0));
    std::thread::sleep(ALL_JOINED);
    let cpu = contestant.cpu(&workers);
    std::thread::sleep(IDLE);
    let now = contestant.cpu(&workers);
    let idle: [Duration; 3] = std::array::from_fn(|index| now[index] - cpu[index]);
    let written = trickle(contestant, 1, SINGLES_BEFORE + SINGLES, APART);
    until(LIMIT, || workers.said().acked.len() == written.len());
    let delivered = first(&workers.said().events, What::Delivered);
    let mut delays: Vec<i64> = written
        .iter()
        .enumerate()
        .skip(SINGLES_BEFORE)
        .filter_map(|(offset, at)| delivered.get(&(0, i64::try_from(offset).ok()?)).map(|seen| seen - at))
        .collect();
    let [half, most] = [0.5, 0.99].map(|share| quantile(&mut delays, share) as f64 / 1e3);
    vec![
        row("processes beside the broker", 1 + usize::from(contestant.gateway.is_some())),
        row("idle for 10 s, CPU-s: broker + gateway + worker", cpu_seconds(idle)),
        row("delay of a record, p50", format!("{half:.1} ms")),
        row("p99", format!("{most:.1} ms")),
    ]
}

fn speed(contestant: &Contestant<'_>) -> Rows {
    let all = BACKLOG_BEFORE + BACKLOG;
    contestant.fill(6, usize::try_from(all).expect("a few"));
    let workers = contestant.workers(Work { quiet: true, ..Work::of(1, 0) });
    let from = workers.reach(BACKLOG_BEFORE, LIMIT);
    let cpu = contestant.cpu(&workers);
    let Some((from, until)) = from.zip(workers.reach(all, LIMIT)) else {
        return vec![row("backlog, records/s", "not done in 90 s")];
    };
    let now = contestant.cpu(&workers);
    let parts = std::array::from_fn(|index| (now[index] - cpu[index]).mul_f64(1e6 / BACKLOG as f64));
    vec![
        row("backlog, records/s", format!("{:.0}", BACKLOG as f64 * 1e6 / (until - from) as f64)),
        row("CPU-s a million records: broker + gateway + worker", cpu_seconds(parts)),
    ]
}
