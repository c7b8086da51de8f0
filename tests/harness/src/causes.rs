//! S5 of a history with faults: a record is dealt again only for a cause.

use std::collections::{BTreeMap, BTreeSet};

use crate::history::{Event, Place, now_ms};
use crate::holders;
use crate::kafka::commits::CommitEntry;
use crate::wire::LeaseName;

/// A time in which something was broken that may cost a redelivery: a process was killed or stood still, a link was cut. In
/// milliseconds of the wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// From then on.
    pub from_ms: u128,
    /// Until then.
    pub until_ms: u128,
}

impl Fault {
    /// A blow. What was on its way before may be read a moment later.
    #[must_use]
    pub fn during(blow: impl FnOnce()) -> Self {
        let from_ms = now_ms();
        blow();
        Self { from_ms, until_ms: now_ms() + 1_000 }
    }
}

/// The last delivery of a record.
struct Last<'a> {
    session: u64,
    name: &'a LeaseName,
    event: usize,
    at_ms: u128,
    /// Whether it was settled, and if so whether the record was done by it.
    settled: Option<bool>,
}

/// Records that were dealt again though they should not have been, and why.
///
/// A record is dealt again when its last lease came to nothing: it was settled and not done, was taken back, or its session
/// ended with it (or with an ack that may not have got through: its stream did not end OK). Or when a fault was between both
/// deliveries. But never, fault or not, is a record dealt in an epoch that began after a commit said that it is done.
pub(crate) fn check(events: &[Event], commits: &[CommitEntry], faults: &[Fault]) -> Vec<(Place, &'static str)> {
    let lost = holders::lost(events);
    let ends = events.iter().filter_map(|event| if let Event::Ended(one, true) = event { Some(*one) } else { None });
    let ended_well: BTreeSet<u64> = ends.collect();
    let mut first: BTreeMap<(&str, i32, i64), u128> = BTreeMap::new();
    for event in events {
        if let Event::Delivered(_, (topic, partition, epoch, _), at) = event {
            first.entry((topic, *partition, *epoch)).or_insert(*at);
        }
    }
    let mut before: BTreeMap<(&str, i32, i64), Option<&CommitEntry>> = BTreeMap::new();
    for (&(topic, partition, epoch), began) in &first {
        let mut of_this = commits.iter().filter(|one| one.topic == topic && one.partition == partition);
        before.insert((topic, partition, epoch), of_this.rfind(|one| one.timestamp_ms < *began));
    }
    let mut last: BTreeMap<(&str, i32, i64), Last<'_>> = BTreeMap::new();
    let mut causeless = BTreeMap::new();
    for (event_at, event) in events.iter().enumerate() {
        match event {
            Event::Delivered(session, name, at_ms) => {
                let (topic, partition, epoch, offset) = name;
                let dealt = Last { session: *session, name, event: event_at, at_ms: *at_ms, settled: None };
                let Some(old) = last.insert((topic, *partition, *offset), dealt) else { continue };
                let committed = before[&(&**topic, *partition, *epoch)].is_some_and(|commit| commit.covers(*offset));
                let in_fault = faults.iter().any(|fault| fault.from_ms <= *at_ms && old.at_ms <= fault.until_ms);
                let came_to_nothing = match (old.settled, lost[old.event]) {
                    (Some(false), _) | (_, Some(holders::Lost::TakenBack)) | (None, Some(holders::Lost::Ended)) => true,
                    (Some(true), Some(holders::Lost::Ended)) => !ended_well.contains(&old.session),
                    (_, None) => false,
                };
                let is_old_epoch =
                    first[&(&**topic, *partition, *epoch)] < first[&(&*old.name.0, old.name.1, old.name.2)];
                let why = if committed && old.name.2 != *epoch && !is_old_epoch {
                    "a commit said before that it is done"
                } else if !in_fault && !came_to_nothing {
                    "nothing had happened"
                } else {
                    continue;
                };
                causeless.entry((topic.to_string(), *partition, *offset)).or_insert(why);
            }
            Event::Settled(session, name, done) => {
                let of = last.get_mut(&(&*name.0, name.1, name.3));
                if let Some(of) = of.filter(|of| of.session == *session && of.name == name) {
                    of.settled = Some(*done);
                }
            }
            Event::Revoked(..) | Event::Ended(..) => {}
        }
    }
    causeless.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use sluice_proto::v1::{Leases, OffsetRange};

    use super::*;

    const FAULT: Fault = Fault { from_ms: 100, until_ms: 200 };

    fn dealt(session: u64, epoch: i64, at_ms: u128) -> Event {
        Event::Delivered(session, ("t".into(), 0, epoch, 5), at_ms)
    }

    fn settled(session: u64, epoch: i64, done: bool) -> Event {
        Event::Settled(session, ("t".into(), 0, epoch, 5), done)
    }

    fn taken_back(session: u64, epoch: i64) -> Event {
        let offsets = vec![OffsetRange { first: 5, last: None }];
        Event::Revoked(session, Leases { topic: "t".into(), partition: 0, epoch, offsets })
    }

    fn commit(offset: i64, timestamp_ms: u128) -> CommitEntry {
        let (topic, metadata) = ("t".to_owned(), String::new());
        CommitEntry { at: 0, topic, partition: 0, offset: Some(offset), metadata, timestamp_ms }
    }

    fn causeless(events: &[Event], commits: &[CommitEntry], faults: &[Fault]) -> usize {
        check(events, commits, faults).len()
    }

    #[test]
    fn a_record_that_was_done_comes_again_for_a_fault_alone() {
        let twice = |first: u128, second: u128| [dealt(1, 7, first), settled(1, 7, true), dealt(2, 8, second)];
        assert_eq!(causeless(&twice(10, 20), &[], &[]), 1);
        assert_eq!(causeless(&twice(10, 20), &[], &[FAULT]), 1, "before it");
        assert_eq!(causeless(&twice(210, 220), &[], &[FAULT]), 1, "after it");
        for (first, second) in [(10, 110), (10, 300), (110, 120), (150, 300)] {
            assert_eq!(causeless(&twice(first, second), &[], &[FAULT]), 0, "{first} {second}");
        }
        assert_eq!(causeless(&twice(10, 150), &[commit(6, 120)], &[FAULT]), 1, "its commit was there before");
        assert_eq!(causeless(&twice(10, 150), &[commit(5, 120), commit(6, 150)], &[FAULT]), 0, "it was not");
    }

    #[test]
    fn a_lease_that_came_to_nothing_is_a_cause() {
        assert_eq!(causeless(&[dealt(1, 7, 1), settled(1, 7, false), dealt(2, 7, 2)], &[], &[]), 0);
        assert_eq!(causeless(&[dealt(1, 7, 1), taken_back(1, 7), dealt(2, 7, 2)], &[], &[]), 0);
        assert_eq!(causeless(&[dealt(1, 7, 1), dealt(2, 7, 2), taken_back(1, 7)], &[], &[]), 0, "read late");
        assert_eq!(causeless(&[dealt(1, 7, 1), dealt(2, 7, 2), Event::Ended(1, true)], &[], &[]), 0);
        assert_eq!(causeless(&[dealt(1, 7, 1), dealt(2, 7, 2)], &[], &[]), 1);
        let acked = |well| [dealt(1, 7, 1), settled(1, 7, true), Event::Ended(1, well), dealt(2, 7, 2)];
        assert_eq!(causeless(&acked(true), &[], &[]), 1, "whoever ends well was heard");
        assert_eq!(causeless(&acked(false), &[], &[]), 0);
    }
}
