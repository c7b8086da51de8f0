//! What one worker sees: the delay of a record, and how fast records come when there is nothing to do with them.

use std::time::{Duration, Instant};

use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use crate::lab::{ALL_JOINED, Contestant, Lab, Variant, until};
use crate::line::What;
use crate::measure::{first, now_us, quantile};
use crate::scenario::Scenario;
use crate::table::{Rows, row};
use crate::work::Work;

/// Written one by one before the measured ones: the JVM compiles what it runs often.
const SINGLES_BEFORE: usize = 200;
const SINGLES: usize = 300;
const APART: Duration = Duration::from_millis(10);
const BACKLOG_BEFORE: u64 = 100_000;
const BACKLOG: u64 = 300_000;
const LIMIT: Duration = Duration::from_secs(60);

pub const ONE: Scenario = Scenario {
    name: "one",
    title: "One worker that does nothing",
    setup: "Delay: records written one by one, 10 ms apart, to one partition; from before the write to the worker, 300 records \
            after 200 of warm-up. Speed: a backlog of 400,000 records of 100 bytes on 6 partitions, measured over the last \
            300,000.",
    variants: || vec![Variant::share("share group"), Variant::sluice("Sluice")],
    run,
    waits: false,
};

fn run(lab: &Lab, variant: &Variant) -> Rows {
    let mut rows = delay(&lab.enter(variant, 1));
    rows.extend(speed(&lab.enter(variant, 6)));
    rows
}

fn delay(contestant: &Contestant<'_>) -> Rows {
    let workers = contestant.workers(Work::of(1, 0));
    std::thread::sleep(ALL_JOINED);
    let producer: BaseProducer = contestant.kafka().config(&[("linger.ms", "0")]).create().expect("create a producer");
    let written: Vec<i64> = (0..SINGLES_BEFORE + SINGLES).map(|_| write_one(&producer, &contestant.topic)).collect();
    producer.flush(LIMIT).expect("flush the producer");
    until(LIMIT, || workers.said().acked.len() == written.len());
    let delivered = first(&workers.said().events, What::Delivered);
    let mut delays: Vec<i64> = written
        .iter()
        .enumerate()
        .skip(SINGLES_BEFORE)
        .filter_map(|(offset, at)| delivered.get(&(0, i64::try_from(offset).ok()?)).map(|seen| seen - at))
        .collect();
    let [half, most] = [0.5, 0.99].map(|share| quantile(&mut delays, share) as f64 / 1e3);
    vec![row("delay of a record, p50 / p99", format!("{half:.1} / {most:.1} ms"))]
}

fn write_one(producer: &BaseProducer, topic: &str) -> i64 {
    let at = now_us();
    let record: BaseRecord<'_, (), [u8]> = BaseRecord::to(topic).payload(b"one");
    producer.send(record).unwrap_or_else(|(error, _)| panic!("produce to {topic}: {error}"));
    let next = Instant::now() + APART;
    while Instant::now() < next {
        producer.poll(next.saturating_duration_since(Instant::now()));
    }
    at
}

fn speed(contestant: &Contestant<'_>) -> Rows {
    let all = BACKLOG_BEFORE + BACKLOG;
    contestant.fill(6, usize::try_from(all).expect("a few"));
    let workers = contestant.workers(Work { quiet: true, ..Work::of(1, 0) });
    let from = workers.reach(BACKLOG_BEFORE, LIMIT);
    let cpu = contestant.cpu(&workers);
    let Some((from, until)) = from.zip(workers.reach(all, LIMIT)) else {
        return vec![row("records/s", "not done in 60 s")];
    };
    let [broker, gateway, own] = std::array::from_fn(|index| contestant.cpu(&workers)[index] - cpu[index]);
    vec![
        row("records/s", format!("{:.0}", BACKLOG as f64 * 1e6 / (until - from) as f64)),
        row(
            "CPU seconds: broker + gateway + worker",
            format!("{:.1} + {:.1} + {:.1}", broker.as_secs_f64(), gateway.as_secs_f64(), own.as_secs_f64()),
        ),
        row("processes beside the broker", 1 + usize::from(contestant.gateway.is_some())),
    ]
}
