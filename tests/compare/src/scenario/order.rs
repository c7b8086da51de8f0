//! Order of a key.

use std::time::Duration;

use sluice_tests::NewRecord;

use crate::lab::{Lab, Variant, until};
use crate::measure::{Id, disorder, zipf};
use crate::scenario::{Scenario, seconds};
use crate::table::{Rows, row};
use crate::work::Work;

const RECORDS: usize = 3_000;
const KEYS: usize = 200;
const WORKERS: usize = 20;

pub const ORDER: Scenario = Scenario {
    name: "order",
    title: "Order of a key",
    setup: "3,000 records of 200 keys (Zipf: the first has a sixth of them) on 6 partitions, 20 workers × 2 ms; the first \
            delivery of 1 record in 50 fails and is given back (`RELEASE`, `Retry` with the default backoff). A record is begun \
            early when a worker begins it while an earlier record of its key is not done.",
    variants: || {
        vec![
            Variant::share("share group"),
            Variant::sluice("Sluice, `ordering = \"key\"`").with("ordering = \"key\""),
            Variant::sluice("Sluice, no order asked for (default)"),
            Variant::share("share group, 1 record a poll").one_at_a_time(),
        ]
    },
    run,
    waits: false,
    rounds: 1,
};

fn run(lab: &Lab, variant: &Variant) -> Rows {
    let contestant = lab.enter(variant, 6);
    let keys = zipf(RECORDS, KEYS);
    let records = keys.iter().enumerate().map(|(index, key)| NewRecord {
        key: Some(format!("key-{key}").into_bytes()),
        value: Some(format!("{index:08}").into_bytes()),
        ..NewRecord::default()
    });
    let written = lab.write(&contestant.topic, records);
    let mut by_key: Vec<Vec<Id>> = vec![Vec::new(); KEYS];
    for (key, record) in keys.iter().zip(&written) {
        by_key[*key].push((record.partition, record.offset));
    }
    let workers = contestant.workers(Work { fail_first_every: 50, ..Work::of(WORKERS, 2_000) });
    until(Duration::from_secs(60), || workers.said().acked.len() == RECORDS);
    let said = workers.said();
    let broken = disorder(&by_key, &said.events);
    let first = said.events.iter().map(|event| event.at_us).min().unwrap_or(0);
    let last = said.events.iter().map(|event| event.at_us).max().unwrap_or(0);
    vec![
        row("records begun early", format!("{} of {RECORDS}", broken.begun_early)),
        row("records done before an earlier one of their key", broken.done_early),
        row("keys whose order was broken", format!("{} of {KEYS}", broken.keys)),
        row("records acknowledged", said.acked.len()),
        row("from the first delivery to the last ack", seconds(last - first)),
    ]
}
