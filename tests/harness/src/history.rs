//! What happened, as clients and Kafka saw it, and what must hold of it. The gateway's own word is no evidence.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use bytes::Bytes;
use sluice_proto::v1::Leases;
use sluice_proto::v1::settlement::Outcome;

use crate::causes::{self, Fault};
use crate::holders;
use crate::kafka::client::{Kafka, Produced};
use crate::lanes::{self, Lane, Step};
use crate::wire::{Lease, LeaseName};

/// A record by its place: topic, partition, offset.
pub type Place = (String, i32, i64);

/// A record of what all sessions of a test were dealt and settled, on one clock.
#[derive(Debug, Clone, Default)]
pub struct History(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    sessions: u64,
    events: Vec<Event>,
    /// When each record was first acked by a session that held it, in milliseconds of the wall clock (the commits' clock).
    acked: BTreeMap<Place, u128>,
    /// Of each record that was dealt.
    keys: BTreeMap<Place, Option<Bytes>>,
}

/// What a session saw or did, in the order in which all of them did.
#[derive(Debug)]
pub(crate) enum Event {
    /// And when, in milliseconds of the wall clock.
    Delivered(u64, LeaseName, u128),
    /// And whether the record is done by it.
    Settled(u64, LeaseName, bool),
    Revoked(u64, Leases),
    /// And whether its stream ended OK.
    Ended(u64, bool),
}

impl History {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(crate) fn session(&self) -> u64 {
        let mut inner = self.inner();
        inner.sessions += 1;
        inner.sessions
    }

    pub(crate) fn delivered(&self, session: u64, lease: &Lease) {
        let place = (lease.topic.to_string(), lease.partition, lease.offset);
        let mut inner = self.inner();
        inner.keys.entry(place).or_insert_with(|| lease.key.clone());
        inner.events.push(Event::Delivered(session, lease.name(), now_ms()));
    }

    pub(crate) fn settled(&self, session: u64, leases: &[Lease], outcome: &Outcome) {
        if matches!(outcome, Outcome::Extend(_)) {
            return;
        }
        let now = now_ms();
        let mut inner = self.inner();
        for lease in leases {
            let done = matches!(outcome, Outcome::Ack(_) | Outcome::DeadLetter(_));
            inner.events.push(Event::Settled(session, lease.name(), done));
            if matches!(outcome, Outcome::Ack(_)) {
                let place = (lease.topic.to_string(), lease.partition, lease.offset);
                inner.acked.entry(place).or_insert(now);
            }
        }
    }

    pub(crate) fn revoked(&self, session: u64, leases: &Leases) {
        self.inner().events.push(Event::Revoked(session, leases.clone()));
    }

    pub(crate) fn ended(&self, session: u64, well: bool) {
        self.inner().events.push(Event::Ended(session, well));
    }

    /// A moment in it: how much has happened so far.
    #[must_use]
    pub fn moment(&self) -> usize {
        self.inner().events.len()
    }

    /// How many records each session has done since a moment.
    #[must_use]
    pub fn done_since(&self, moment: usize) -> BTreeMap<u64, usize> {
        let mut done = BTreeMap::new();
        for event in &self.inner().events[moment..] {
            if let Event::Settled(session, _, true) = event {
                *done.entry(*session).or_default() += 1;
            }
        }
        done
    }

    /// Of which partitions each session has done something since a moment.
    #[must_use]
    pub fn worked_since(&self, moment: usize) -> BTreeMap<u64, BTreeSet<i32>> {
        let mut worked: BTreeMap<_, BTreeSet<i32>> = BTreeMap::new();
        for event in &self.inner().events[moment..] {
            if let Event::Settled(session, (_, partition, _, _), true) = event {
                worked.entry(*session).or_default().insert(*partition);
            }
        }
        worked
    }

    /// The epochs of each partition in which anything was dealt.
    #[must_use]
    pub fn epochs(&self) -> BTreeMap<(String, i32), BTreeSet<i64>> {
        let mut epochs: BTreeMap<_, BTreeSet<i64>> = BTreeMap::new();
        for event in &self.inner().events {
            if let Event::Delivered(_, (topic, partition, epoch, _), _) = event {
                epochs.entry((topic.to_string(), *partition)).or_default().insert(*epoch);
            }
        }
        epochs
    }

    /// How many records were acked.
    #[must_use]
    pub fn acked(&self) -> usize {
        self.inner().acked.len()
    }

    /// How many of these were acked.
    #[must_use]
    pub fn acked_of(&self, produced: &[Produced]) -> usize {
        let inner = self.inner();
        produced.iter().filter(|one| inner.acked.contains_key(&place(one))).count()
    }

    /// Whether this one was acked.
    #[must_use]
    pub fn has_acked(&self, one: &Produced) -> bool {
        self.inner().acked.contains_key(&place(one))
    }

    /// How often each record was dealt.
    #[must_use]
    pub fn deliveries(&self) -> BTreeMap<Place, usize> {
        let mut count = BTreeMap::new();
        for event in &self.inner().events {
            if let Event::Delivered(_, (topic, partition, _, offset), _) = event {
                *count.entry((topic.to_string(), *partition, *offset)).or_default() += 1;
            }
        }
        count
    }

    /// Records that were dealt more than once.
    #[must_use]
    pub fn duplicates(&self) -> Vec<Place> {
        self.deliveries().into_iter().filter(|(_, count)| *count > 1).map(|(place, _)| place).collect()
    }

    /// How many records are held by sessions now: dealt, and neither settled nor taken back.
    #[must_use]
    pub fn held(&self) -> usize {
        let mut held = BTreeSet::new();
        for event in &self.inner().events {
            match event {
                Event::Delivered(session, name, _) => {
                    held.insert((*session, name.clone()));
                }
                Event::Settled(session, name, _) => {
                    held.remove(&(*session, name.clone()));
                }
                Event::Revoked(session, leases) => held.retain(|(one, name)| one != session || !covers(leases, name)),
                Event::Ended(session, _) => held.retain(|(one, _)| one != session),
            }
        }
        held.len()
    }

    /// How many streams have ended otherwise than OK.
    #[must_use]
    pub fn broken(&self) -> usize {
        self.inner().events.iter().filter(|event| matches!(event, Event::Ended(_, false))).count()
    }

    /// When a record was acked, in milliseconds of the wall clock.
    #[must_use]
    pub fn acked_at_ms(&self, place: &Place) -> Option<u128> {
        self.inner().acked.get(place).copied()
    }

    // === what must hold ===

    /// S1: each of these was acked by a session that held it.
    pub fn check_no_loss(&self, produced: &[Produced]) {
        let inner = self.inner();
        let lost: Vec<_> = produced.iter().map(place).filter(|one| !inner.acked.contains_key(one)).collect();
        assert!(
            lost.is_empty(),
            "S1: {} of {} records were never acked: {:?}",
            lost.len(),
            produced.len(),
            first(&lost)
        );
    }

    /// S2 and S3: for each commit that the group ever made, each of these records that it says is done, below its offset or
    /// in its metadata, had been acked before; and no partition's offset went back.
    pub fn check_commits(&self, kafka: &Kafka, group: &str, produced: &[Produced]) {
        let acked = self.inner().acked.clone();
        let mut partitions: BTreeMap<(&str, i32), BTreeSet<i64>> = BTreeMap::new();
        for one in produced {
            partitions.entry((&one.topic, one.partition)).or_default().insert(one.offset);
        }
        let mut last: BTreeMap<(String, i32), i64> = BTreeMap::new();
        for commit in kafka.commit_history(group) {
            let Some(offset) = commit.offset else { continue };
            let before = last.insert((commit.topic.clone(), commit.partition), offset).unwrap_or(0);
            assert!(before <= offset, "S3: the frontier went back from {before}: {commit:?}");
            let Some(known) = partitions.get(&(commit.topic.as_str(), commit.partition)) else { continue };
            // What lies below an earlier commit was looked at with that one.
            let above = commit.done_above().into_iter().flat_map(|(first, last)| known.range(first..=last));
            for record in known.range(before..offset).chain(above) {
                let at = acked.get(&(commit.topic.clone(), commit.partition, *record));
                let in_time = at.is_some_and(|at| *at <= commit.timestamp_ms);
                assert!(in_time, "S2: {record} was acked at {at:?}, but it is done in {commit:?}");
            }
        }
    }

    /// S5 in a run without faults: nothing was dealt twice.
    pub fn check_no_duplicates(&self) {
        let duplicates = self.duplicates();
        let stories: Vec<_> = first(&duplicates).iter().map(|place| self.story(place)).collect();
        assert!(duplicates.is_empty(), "S5: {} records were dealt twice:\n{}", duplicates.len(), stories.join("\n"));
    }

    /// What happened to a record, for a person who wonders: numbers are those of sessions and events.
    fn story(&self, place: &Place) -> String {
        let is_this = |(topic, partition, _, offset): &LeaseName| {
            (&**topic, *partition, *offset) == (place.0.as_str(), place.1, place.2)
        };
        let (mut had, mut story) = (BTreeSet::new(), format!("{}/{}:", place.1, place.2));
        for (at, event) in self.inner().events.iter().enumerate() {
            let what = match event {
                Event::Delivered(session, name, at) if is_this(name) => {
                    had.insert(*session);
                    format!("dealt to {session} in epoch {:x} at {at} ms", name.2)
                }
                Event::Settled(session, name, done) if is_this(name) => format!("settled by {session}, done: {done}"),
                Event::Revoked(session, leases)
                    if leases.offsets.iter().any(|range| {
                        leases.topic == place.0
                            && leases.partition == place.1
                            && (range.first..=range.last.unwrap_or(range.first)).contains(&place.2)
                    }) =>
                {
                    format!("taken back from {session}")
                }
                Event::Ended(session, well) if had.contains(session) => format!("{session} ended, well: {well}"),
                _ => continue,
            };
            story.push_str(&format!(" {at}: {what};"));
        }
        story
    }

    /// S5 in a run with faults: what was dealt twice has a cause (see `causes::check`).
    pub fn check_causes(&self, kafka: &Kafka, group: &str, faults: &[Fault]) {
        let causeless = causes::check(&self.inner().events, &kafka.commit_history(group), faults);
        let stories: Vec<_> =
            causeless.iter().take(5).map(|(place, why)| format!("{why}: {}", self.story(place))).collect();
        assert!(
            causeless.is_empty(),
            "S5: {} of {} records that were dealt twice have no cause; faults: {faults:?}\n{}",
            causeless.len(),
            self.duplicates().len(),
            stories.join("\n")
        );
    }

    /// S6: in an epoch no record was dealt to a session while another one still had it (see `holders::check`).
    pub fn check_one_holder(&self) {
        holders::check(&self.inner().events).unwrap_or_else(|what| panic!("S6: {what}"));
    }

    /// S7: records of a lane come one after another (see `lanes::check`), and never two holders in an epoch.
    pub fn check_lanes(&self, lane: Lane) {
        self.check_one_holder();
        let inner = self.inner();
        let lost = holders::lost(&inner.events);
        let steps: Vec<Step> = inner
            .events
            .iter()
            .zip(lost)
            .filter_map(|(event, lost)| match event {
                Event::Delivered(_, name, _) => Some(step(name, false, lost.is_some())),
                Event::Settled(_, name, true) => Some(step(name, true, false)),
                _ => None,
            })
            .collect();
        lanes::check(lane, &inner.keys, &steps).unwrap_or_else(|what| panic!("S7: {what}"));
    }
}

pub(crate) fn covers(leases: &Leases, (topic, partition, epoch, offset): &LeaseName) -> bool {
    leases.topic == **topic
        && leases.partition == *partition
        && leases.epoch == *epoch
        && leases.offsets.iter().any(|range| (range.first..=range.last.unwrap_or(range.first)).contains(offset))
}

fn step((topic, partition, epoch, offset): &LeaseName, done: bool, stale: bool) -> Step {
    Step { partition: (topic.to_string(), *partition), epoch: *epoch, offset: *offset, done, stale }
}

fn place(one: &Produced) -> Place {
    (one.topic.clone(), one.partition, one.offset)
}

fn first(places: &[Place]) -> &[Place] {
    &places[..places.len().min(5)]
}

/// The wall clock, in milliseconds.
#[must_use]
pub fn now_ms() -> u128 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis())
}
