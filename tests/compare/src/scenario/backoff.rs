//! A record that fails.

use std::time::Duration;

use crate::lab::{Lab, Variant, until};
use crate::line::What;
use crate::scenario::Scenario;
use crate::table::{Rows, row};
use crate::work::Work;

/// From the first delivery on.
const WATCHED: Duration = Duration::from_secs(20);

pub const BACKOFF: Scenario = Scenario {
    name: "backoff",
    title: "A record that fails",
    setup: "One record, 2 workers; each delivery fails at once and is given back (`RELEASE`, `Retry`). Watched for 20 s from its \
            first delivery.",
    variants: || vec![Variant::share("share group"), Variant::sluice("Sluice")],
    run,
    waits: true,
    rounds: 1,
};

fn run(lab: &Lab, variant: &Variant) -> Rows {
    let contestant = lab.enter(variant, 1);
    contestant.fill(1, 1);
    let workers = contestant.workers(Work { down: true, ..Work::of(2, 0) });
    until(Duration::from_secs(30), || !workers.said().events.is_empty());
    std::thread::sleep(WATCHED);
    let said = workers.said();
    let delivered: Vec<i64> =
        said.events.iter().filter(|event| event.what == What::Delivered).map(|event| event.at_us).collect();
    let first = delivered.first().copied().unwrap_or(0);
    let after: Vec<String> = delivered.iter().map(|at| format!("{:.3}", (at - first) as f64 / 1e6)).collect();
    vec![
        row("deliveries", delivered.len()),
        row("seconds after the first", after.join(", ")),
        row("waits for another try", contestant.waiting()),
    ]
}
