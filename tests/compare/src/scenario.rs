//! What is compared. Each scenario gives every contestant the same records and the same work, and counts alike.

mod backoff;
mod crash;
mod crowd;
mod one;
mod order;
mod outage;
mod stuck;

use std::collections::HashSet;

use crate::lab::{Lab, Variant, Workers};
use crate::line::Event;
use crate::measure::Id;
use crate::table::Rows;

/// One table of the page.
pub struct Scenario {
    /// For `--only`.
    pub name: &'static str,
    /// Its heading.
    pub title: &'static str,
    /// What was done, for the page.
    pub setup: &'static str,
    /// Who takes part.
    pub variants: fn() -> Vec<Variant>,
    /// Runs one contestant.
    pub run: fn(&Lab, &Variant) -> Rows,
    /// Mostly waits, so that all contestants run at the same time; else one after the other, in the order of `variants`.
    pub waits: bool,
}

/// All of them, in the page's order.
pub const ALL: [&Scenario; 7] =
    [&order::ORDER, &backoff::BACKOFF, &outage::OUTAGE, &stuck::STUCK, &crash::CRASH, &crowd::CROWD, &one::ONE];

/// What several processes said, together.
fn events(processes: &[&Workers]) -> Vec<Event> {
    processes.iter().flat_map(|workers| workers.said().events.clone()).collect()
}

/// The records that several processes acknowledged, together.
fn acked(processes: &[&Workers]) -> HashSet<Id> {
    processes.iter().flat_map(|workers| workers.said().acked.clone()).collect()
}

fn seconds(us: i64) -> String {
    format!("{:.2} s", us as f64 / 1e6)
}
