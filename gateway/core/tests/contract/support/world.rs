//! One engine with a fake Kafka and clients around it: what a node sees, from its start over crashes to an empty log.

use std::collections::{BTreeMap, BTreeSet};

use sluice_core::{
    Assignment, CommitError, End, Epoch, LetterError, Millis, NextOffset, Open, Ordering, Outcome, Output, Policy,
    Restored, RevokeReason, SessionId, Settlements, TopicPartition,
};

use crate::support::client;
use crate::support::driver::Driver;
use crate::support::kafka::Kafka;
use crate::support::model::Snapshot;
use crate::support::plant::Plant;

/// The id of the topic, as the commit's metadata knows it.
pub(crate) const TOPIC_HASH: u32 = 7;
/// Rounds in which the last client must empty the logs.
const FINALE_ROUNDS: usize = 400;

/// A lease as the client that received it knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) partition: TopicPartition,
    pub(crate) epoch: Epoch,
    pub(crate) offset: i64,
    pub(crate) frame: u64,
}

/// What a client knows: it learns from frames alone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Client {
    pub(crate) consumer_id: Option<String>,
    pub(crate) leases: Vec<Lease>,
    pub(crate) last_frame: u64,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Owned {
    pub(crate) epoch: Epoch,
    pub(crate) fetch_from: i64,
    pub(crate) held_back: bool,
}

pub(crate) struct World {
    pub(crate) driver: Driver,
    pub(crate) kafka: Kafka,
    pub(crate) topics: Vec<TopicPartition>,
    pub(crate) owned: BTreeMap<TopicPartition, Owned>,
    pub(crate) in_flight: BTreeMap<TopicPartition, (Epoch, Snapshot)>,
    /// Dead letters given to the producer that were not answered.
    pub(crate) letters: Vec<(TopicPartition, Epoch, i64)>,
    pub(crate) clients: BTreeMap<SessionId, Client>,
    /// Done in this life or an earlier one.
    pub(crate) done: BTreeSet<(TopicPartition, i64)>,
    /// Offsets below this were skipped by an operator.
    pub(crate) skipped: BTreeMap<TopicPartition, i64>,
    pub(crate) requests: u64,
    policy: Policy,
    plant: Plant,
    epochs: i64,
    resting: bool,
}

impl World {
    pub(crate) fn new(policy: Policy, partitions: i32, plant: Plant) -> Self {
        let driver = Self::driver(&policy, plant);
        let mut world = Self {
            driver,
            kafka: Kafka { keyed: policy.ordering != Ordering::None, ..Kafka::default() },
            topics: (0..partitions).map(|p| TopicPartition::new("orders", p)).collect(),
            owned: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            letters: Vec::new(),
            clients: BTreeMap::new(),
            done: BTreeSet::new(),
            skipped: BTreeMap::new(),
            requests: 0,
            policy,
            plant,
            epochs: 0,
            resting: false,
        };
        world.assign_all();
        world
    }

    fn driver(policy: &Policy, plant: Plant) -> Driver {
        match plant {
            Plant::Nothing => Driver::new(policy.clone(), 1),
            plant => Driver::with_plant(policy.clone(), plant),
        }
    }

    // === Kafka's side ===

    pub(crate) fn assign_all(&mut self) {
        for tp in self.topics.clone() {
            self.assign(&tp);
        }
    }

    pub(crate) fn assign(&mut self, tp: &TopicPartition) {
        if self.owned.contains_key(tp) {
            return;
        }
        self.epochs += 1;
        let epoch = Epoch(self.epochs * 1_000_003);
        let stored = self.kafka.stored.get(tp).cloned();
        let next = stored.as_ref().map_or(0, |s| s.offset);
        let metadata = stored.as_ref().map(|s| s.metadata.clone());
        let spoken = metadata.as_ref().is_some_and(|m| !m.is_empty());
        let assignment = Assignment {
            partition: tp.clone(),
            epoch,
            next: NextOffset(next),
            metadata,
            topic_hash: TOPIC_HASH,
            commit_now: stored.is_none(),
        };
        let restored = self.driver.assigned(assignment, stored.as_ref());
        if spoken && self.plant == Plant::Nothing {
            let says = stored.as_ref().is_some_and(|s| s.whole && !(s.done.is_empty() && s.attempts.is_empty()));
            let believed =
                if says { matches!(restored, Restored::State { .. }) } else { restored != Restored::Ignored };
            assert!(believed, "{restored:?} of {stored:?}");
        }
        self.owned.insert(tp.clone(), Owned { epoch, fetch_from: next, held_back: false });
        self.absorb();
    }

    /// Fetches at most `max` records; `anyway`: although the partition is held back (they were prefetched).
    pub(crate) fn fetch(&mut self, tp: &TopicPartition, max: usize, anyway: bool) {
        let Some(owned) = self.owned.get(tp).copied() else { return };
        if (owned.held_back || self.resting) && !anyway {
            return;
        }
        let records = self.kafka.fetch(tp, owned.fetch_from, max);
        if let Some(last) = records.last() {
            let next = last.offset + 1;
            self.owned.get_mut(tp).expect("looked up above").fetch_from = next;
            self.driver.records(tp, owned.epoch, records);
            self.absorb();
        }
    }

    pub(crate) fn position(&mut self, tp: &TopicPartition) {
        let Some(owned) = self.owned.get_mut(tp) else { return };
        if owned.held_back || self.resting {
            return;
        }
        owned.fetch_from = self.kafka.position(tp, owned.fetch_from);
        let (epoch, next) = (owned.epoch, owned.fetch_from);
        self.driver.position(tp, epoch, NextOffset(next));
        self.absorb();
    }

    /// Kafka's answer to a commit in flight; `applied`: whether it took it, whatever it says.
    pub(crate) fn answer_commit(&mut self, tp: &TopicPartition, applied: bool, error: Option<CommitError>) {
        let Some((epoch, snapshot)) = self.in_flight.remove(tp) else { return };
        let offset = NextOffset(snapshot.offset);
        if applied {
            self.store(tp, snapshot);
        }
        let result = error.map_or(Ok(offset), Err);
        self.driver.commit_result(tp, epoch, result);
        self.absorb();
    }

    /// Of the metadata of the commit in flight.
    pub(crate) fn units_in_flight(&self, tp: &TopicPartition) -> usize {
        self.in_flight.get(tp).map_or(0, |(_, snapshot)| snapshot.metadata.encode_utf16().count())
    }

    /// The producer's answer to one dead letter; `again`: it comes twice.
    pub(crate) fn answer_letter(&mut self, n: usize, result: Result<(), LetterError>, again: bool) {
        if self.letters.is_empty() {
            return;
        }
        let n = n % self.letters.len();
        let (tp, epoch, offset) = self.letters[n].clone();
        if !again {
            self.letters.swap_remove(n);
        }
        self.driver.dead_letter_result(&tp, epoch, offset, result);
        self.absorb();
    }

    pub(crate) fn answer_all_commits(&mut self) {
        for _ in 0..8 {
            for tp in self.topics.clone() {
                self.answer_commit(&tp, true, None);
            }
        }
    }

    /// Kafka has it: nothing below it may be lost by that, and the frontier never goes back.
    pub(crate) fn store(&mut self, tp: &TopicPartition, snapshot: Snapshot) {
        let skipped = self.skipped.get(tp).copied().unwrap_or(0);
        let lost = self
            .kafka
            .fetch(tp, skipped, usize::MAX)
            .into_iter()
            .map(|r| r.offset)
            .find(|o| *o < snapshot.offset && !self.was_done(tp, *o));
        if let Some(lost) = lost {
            self.driver.model.broken(format!("Kafka has {tp} {}, and {lost} was never done", snapshot.offset));
        }
        if self.kafka.stored.get(tp).is_some_and(|s| s.offset > snapshot.offset) {
            self.driver.model.broken(format!("the frontier of {tp} went back to {}", snapshot.offset));
        }
        self.kafka.store(tp, snapshot);
    }

    fn was_done(&self, tp: &TopicPartition, offset: i64) -> bool {
        let key = (tp.clone(), offset);
        self.done.contains(&key) || self.driver.model.ever_done.contains(&key)
    }

    pub(crate) fn lose(&mut self, tp: &TopicPartition, reason: RevokeReason) {
        if self.owned.remove(tp).is_some() {
            self.in_flight.remove(tp);
            self.driver.lost(std::slice::from_ref(tp), reason);
            self.absorb();
        }
    }

    /// An operator's seek: fence, wait for the commit in flight, commit the target with empty metadata, deal again.
    pub(crate) fn seek(&mut self, tp: &TopicPartition, to: i64) {
        if !self.owned.contains_key(tp) {
            return;
        }
        self.lose(tp, RevokeReason::Seek);
        let skipped = self.skipped.entry(tp.clone()).or_default();
        *skipped = (*skipped).max(to);
        self.kafka.store(tp, Snapshot { offset: to, whole: true, ..Snapshot::default() });
        self.assign(tp);
    }

    /// `kill -9` and a new process: all that is left is what Kafka has.
    pub(crate) fn crash(&mut self) {
        self.done.append(&mut self.driver.model.ever_done);
        let mut driver = Self::driver(&self.policy, self.plant);
        driver.model.now = self.driver.model.now;
        driver.model.ticked = driver.model.now;
        driver.views = self.driver.views;
        driver.model.violations.append(&mut self.driver.model.violations);
        self.driver = driver;
        self.owned.clear();
        self.in_flight.clear();
        self.letters.clear();
        self.clients.clear();
        self.resting = false;
        self.assign_all();
    }

    // === clients' side ===

    pub(crate) fn open(&mut self, open: Open) -> SessionId {
        let (consumer_id, seen) = (open.consumer_id.clone(), open.seen);
        let opened = self.driver.open(open);
        let client = self.clients.entry(opened.session).or_default();
        client.consumer_id = consumer_id;
        client.last_frame = client.last_frame.max(seen);
        client.leases.retain(|l| crate::support::model::covers(&opened.held, &l.partition, l.epoch, l.offset));
        self.absorb();
        opened.session
    }

    pub(crate) fn settle(&mut self, session: SessionId, frame: Settlements) {
        self.driver.settle(session, frame);
        self.absorb();
    }

    pub(crate) fn close(&mut self, session: SessionId, end: End) {
        self.driver.close(session, end);
        if !self.driver.model.sessions.contains_key(&session) {
            self.clients.remove(&session);
        }
        self.absorb();
    }

    /// A client acks all it holds, a range a partition and epoch; it forgets the leases.
    pub(crate) fn ack_all(&mut self, session: SessionId) {
        let Some(client) = self.clients.get_mut(&session) else { return };
        let (leases, seen) = (std::mem::take(&mut client.leases), client.last_frame);
        let mut by: BTreeMap<(TopicPartition, i64), Vec<i64>> = BTreeMap::new();
        for lease in leases {
            by.entry((lease.partition, lease.epoch.0)).or_default().push(lease.offset);
        }
        for ((tp, epoch), offsets) in by {
            let leases = client::leases(&tp, Epoch(epoch), client::coalesce(&offsets, 1));
            self.settle(session, client::frame(seen, leases, Outcome::Ack));
        }
    }

    pub(crate) fn advance(&mut self, ms: u64) {
        self.driver.advance(ms);
        self.absorb();
    }

    /// What came out reaches Kafka and the clients.
    pub(crate) fn absorb(&mut self) {
        for output in std::mem::take(&mut self.driver.out) {
            match output {
                Output::Deliver { session, sequence, batches } => {
                    let client = self.clients.entry(session).or_default();
                    client.last_frame = sequence;
                    for batch in batches {
                        client.leases.extend(batch.records.iter().map(|d| Lease {
                            partition: batch.partition.clone(),
                            epoch: batch.epoch,
                            offset: d.record.offset,
                            frame: sequence,
                        }));
                    }
                }
                Output::Commit { partition, epoch, .. } => {
                    let part = self.driver.model.parts.get(&partition);
                    if let Some(snapshot) = part.and_then(|p| p.in_flight.clone()) {
                        self.in_flight.insert(partition, (epoch, snapshot));
                    }
                }
                Output::Drained { partition } => {
                    self.owned.remove(&partition);
                }
                Output::Hold { partition } => self.set_held(&partition, None),
                Output::Unhold { partition, next } => self.set_held(&partition, Some(next)),
                Output::Rest(rest) => self.resting = rest,
                Output::Gone { session } => {
                    self.clients.remove(&session);
                }
                Output::Revoked { session, leases, .. } => {
                    if let Some(client) = self.clients.get_mut(&session) {
                        let revoked = std::slice::from_ref(&leases);
                        let gone = |l: &Lease| crate::support::model::covers(revoked, &l.partition, l.epoch, l.offset);
                        client.leases.retain(|l| !gone(l));
                    }
                }
                Output::DeadLetter { partition, epoch, letter } => {
                    self.letters.push((partition, epoch, letter.record.offset));
                }
                Output::Settled { .. } | Output::SettledUnary { .. } | Output::Committed { .. } => {}
            }
        }
        self.copy_durable();
    }

    fn set_held(&mut self, tp: &TopicPartition, next: Option<NextOffset>) {
        if let Some(owned) = self.owned.get_mut(tp) {
            owned.held_back = next.is_none();
            owned.fetch_from = next.map_or(owned.fetch_from, |n| n.0);
        }
    }

    /// What was answered as durable must survive a restore from what Kafka has.
    fn copy_durable(&mut self) {
        for ((tp, _), past) in &self.driver.model.past {
            if let Some(stored) = self.kafka.stored.get_mut(tp)
                && (past.offset, &past.metadata) == (stored.offset, &stored.metadata)
            {
                stored.durable.extend(&past.durable);
            }
        }
        for (tp, part) in &self.driver.model.parts {
            let acked = part.acked.as_ref();
            if let (Some(acked), Some(stored)) = (acked, self.kafka.stored.get_mut(tp))
                && (acked.offset, &acked.metadata) == (stored.offset, &stored.metadata)
            {
                stored.durable.extend(&acked.durable);
                stored.durable_attempts.extend(&acked.durable_attempts);
            }
            if let (Some(flight), Some((_, held))) = (&part.in_flight, self.in_flight.get_mut(tp)) {
                held.durable.extend(&flight.durable);
                held.durable_attempts.extend(&flight.durable_attempts);
            }
        }
    }

    // === the end ===

    /// All goes well from now on: one client with room works everything off. What is left then was forgotten.
    pub(crate) fn finale(&mut self) {
        self.driver.set_paused(false);
        for session in self.clients.keys().copied().collect::<Vec<_>>() {
            self.close(session, End::HalfClose);
        }
        let last = self.open(client::open(None, 10_000));
        for _ in 0..FINALE_ROUNDS {
            self.answer_all_commits();
            while !self.letters.is_empty() {
                self.answer_letter(0, Ok(()), false);
            }
            self.assign_all();
            for tp in self.topics.clone() {
                self.fetch(&tp, 1_000, false);
                self.position(&tp);
            }
            self.ack_all(last);
            let caught_up = |tp: &TopicPartition| {
                self.kafka.stored.get(tp).is_some_and(|s| s.offset >= self.kafka.end(tp)) && self.owned.contains_key(tp)
            };
            let settled = self.clients.get(&last).is_none_or(|c| c.leases.is_empty());
            if self.in_flight.is_empty() && settled && self.topics.iter().all(caught_up) {
                self.check_all_done();
                return;
            }
            let wake = self.driver.engine.wake_at().unwrap_or(Millis(0)).0;
            self.advance(wake.saturating_sub(self.driver.now().0).clamp(10, 1_000));
        }
        let lag: Vec<_> = self
            .topics
            .iter()
            .map(|tp| {
                format!("{tp}: committed {:?} of {}", self.kafka.stored.get(tp).map(|s| s.offset), self.kafka.end(tp))
            })
            .collect();
        self.driver.model.broken(format!(
            "something was forgotten: {lag:?}; {:?}",
            self.driver.engine.partitions(self.driver.now())
        ));
        assert!(!self.driver.strict, "{}", self.driver.report());
    }

    fn check_all_done(&mut self) {
        for tp in self.topics.clone() {
            let from = self.skipped.get(&tp).copied().unwrap_or(0);
            for record in self.kafka.fetch(&tp, from, usize::MAX) {
                if !self.was_done(&tp, record.offset) {
                    self.driver.model.broken(format!("{tp} {} was never done", record.offset));
                }
            }
        }
        let bytes = self.driver.engine.bytes_held();
        if bytes != 0 {
            self.driver.model.broken(format!("everything is done, and {bytes} bytes are held"));
        }
        assert!(!self.driver.strict || self.driver.model.violations.is_empty(), "{}", self.driver.report());
    }
}
