//! Random schedules against a model of the server that takes the contract at its word: what it applies to a lease must be what
//! the application said of that very lease, whatever was lost, repeated or dealt again on the way.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use futures_util::FutureExt as _;
use sluice_proto::v1::{Rejection, Settlements, settlement::Outcome as WireOutcome};

use super::*;
use crate::{backoff::random_u64, outcome::Settling};

const RUNS: usize = 300;
const STEPS: usize = 400;

/// A lease: the offset, and the frame it was dealt in.
type Dealt = (i64, u64);

struct Simulation {
    harness: Harness,
    state: u64,
    /// The server's leases of this session, with the frame of each.
    live: BTreeMap<i64, u64>,
    ready: BTreeSet<i64>,
    next_offset: i64,
    frame: u64,
    up: VecDeque<Settlements>,
    down: VecDeque<Response>,
    /// The client's side: the frame in which it last got an offset, and what the application has.
    got: HashMap<i64, u64>,
    given: Vec<(Dealt, Record)>,
    /// What the application said of a lease.
    said: HashMap<Dealt, char>,
    /// Durable settlements that the application waits for.
    waiting: Vec<(Dealt, Settling)>,
    /// How each lease of this session ended that the server has seen end: an `x` is none of the application's words.
    ended: BTreeMap<i64, (u64, char)>,
    /// What the server has applied.
    applied: HashMap<Dealt, char>,
    /// Durable requests that are not stored yet, with what was rejected of them.
    storing: Vec<Settled>,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        Self {
            harness: Harness::new(),
            state: seed,
            live: BTreeMap::new(),
            ready: BTreeSet::new(),
            next_offset: 0,
            frame: 0,
            up: VecDeque::new(),
            down: VecDeque::new(),
            got: HashMap::new(),
            given: Vec::new(),
            said: HashMap::new(),
            waiting: Vec::new(),
            ended: BTreeMap::new(),
            applied: HashMap::new(),
            storing: Vec::new(),
        }
    }

    fn below(&mut self, limit: usize) -> usize {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 33) as usize % limit
    }

    fn step(&mut self) {
        match self.below(24) {
            0..4 => self.deal(),
            4..8 => self.client_reads(),
            8..11 => self.application_takes(),
            11..14 => self.application_settles(),
            14..16 => self.client_writes(),
            16..19 => self.server_reads(),
            19..21 => self.server_stores(),
            21..23 => self.server_expires(),
            _ => self.breaks(),
        }
        self.application_hears();
    }

    fn deal(&mut self) {
        let mut offsets = BTreeSet::new();
        for _ in 0..=self.below(5) {
            if self.below(3) == 0
                && let Some(offset) = self.ready.pop_first()
            {
                offsets.insert(offset);
            } else {
                // What lies between is a hole, or another session's.
                self.next_offset += 1 + self.below(3) as i64;
                offsets.insert(self.next_offset);
            }
        }
        self.frame += 1;
        self.live.extend(offsets.iter().map(|offset| (*offset, self.frame)));
        let records = offsets.iter().map(|offset| v1::Record { offset: *offset, ..Default::default() }).collect();
        let batch = Batch { topic: "orders".to_owned(), partition: 1, epoch: EPOCH, records };
        self.down.push_back(Response::Delivery(Delivery { sequence: self.frame, batches: vec![batch] }));
    }

    fn client_reads(&mut self) {
        let Some(response) = self.down.pop_front() else { return };
        if let Response::Delivery(delivery) = &response {
            let offsets = delivery.batches.iter().flat_map(|batch| &batch.records).map(|record| record.offset);
            self.got.extend(offsets.map(|offset| (offset, delivery.sequence)));
        }
        self.harness.handle(response);
    }

    fn application_takes(&mut self) {
        if let Some((offset, record)) = self.harness.records.pop_first()
            && record.give()
        {
            self.given.push(((offset, self.got[&offset]), record));
        }
    }

    fn application_settles(&mut self) {
        if self.given.is_empty() {
            return;
        }
        let index = self.below(self.given.len());
        let (dealt, record) = self.given.swap_remove(index);
        let letter = ['a', 'a', 'a', 'r', 'l'][self.below(5)];
        self.said.insert(dealt, letter);
        let outcome = match letter {
            'a' => Outcome::Ack,
            'r' => Outcome::Retry { delay: Some(Duration::ZERO), reason: String::new() },
            _ => Outcome::Release,
        };
        match self.below(3) {
            0 => self.waiting.push((dealt, record.settle_durable(outcome))),
            // Dropping it says the same.
            _ if outcome == Outcome::Release => drop(record),
            _ => record.settle(outcome),
        }
        self.harness.pump();
    }

    /// What was answered is true.
    fn application_hears(&mut self) {
        let applied = &self.applied;
        let said = &self.said;
        self.waiting.retain_mut(|(dealt, settling)| match settling.now_or_never() {
            None => true,
            Some(Ok(())) => {
                assert_eq!(applied.get(dealt), said.get(dealt), "answered as done: lease {dealt:?}");
                false
            }
            Some(Err(_)) => false,
        });
    }

    fn client_writes(&mut self) {
        let written = self.harness.written();
        self.up.extend(written);
    }

    fn server_reads(&mut self) {
        let Some(settlements) = self.up.pop_front() else { return };
        let mut rejections = Vec::new();
        for settlement in &settlements.settlements {
            let letter = match settlement.outcome.as_ref().unwrap() {
                WireOutcome::Ack(_) => 'a',
                WireOutcome::Retry(_) => 'r',
                WireOutcome::Release(_) => 'l',
                WireOutcome::DeadLetter(_) | WireOutcome::Extend(_) => unreachable!("not said here"),
            };
            for (first, last) in ranges_of(settlement) {
                rejections.extend(self.server_applies(first, last, letter, settlements.seen));
            }
        }
        let settled = Settled { request_id: settlements.request_id, rejections };
        if settlements.durable {
            self.storing.push(settled);
        } else {
            self.down.push_back(Response::Settled(settled));
        }
    }

    fn server_applies(&mut self, first: i64, last: i64, letter: char, seen: u64) -> Vec<Rejection> {
        let meant = self.live.range(first..=last).filter(|(_, frame)| **frame <= seen);
        let meant: Vec<Dealt> = meant.map(|(offset, frame)| (*offset, *frame)).collect();
        let past = self.ended.range(first..=last).filter(|(offset, _)| !self.live.contains_key(offset));
        let single_unknown =
            first == last && meant.is_empty() && self.ended.get(&first).map(|(_, how)| *how) != Some(letter);
        if single_unknown {
            return vec![rejection(&[(first, last)], v1::RejectReason::NotHeld)];
        }
        let otherwise: Vec<i64> = past.filter(|(_, (_, how))| *how != letter).map(|(offset, _)| *offset).collect();
        for dealt in meant {
            assert_eq!(self.said.get(&dealt), Some(&letter), "lease {dealt:?}");
            self.live.remove(&dealt.0);
            self.applied.insert(dealt, letter);
            self.ended.insert(dealt.0, (dealt.1, letter));
            if letter != 'a' {
                self.ready.insert(dealt.0);
            }
        }
        otherwise.into_iter().map(|offset| rejection(&[(offset, offset)], v1::RejectReason::NotHeld)).collect()
    }

    /// A lease runs out.
    fn server_expires(&mut self) {
        if self.live.is_empty() {
            return;
        }
        let index = self.below(self.live.len());
        let (offset, frame) = self.live.iter().nth(index).map(|(offset, frame)| (*offset, *frame)).unwrap();
        self.live.remove(&offset);
        self.ended.insert(offset, (frame, 'x'));
        self.ready.insert(offset);
        let revoked =
            v1::Revoked { leases: Some(leases(&[(offset, offset)])), reason: v1::RevokeReason::Expired.into() };
        self.down.push_back(Response::Revoked(revoked));
    }

    /// A commit is acknowledged; or the partition has moved, and nobody knows.
    fn server_stores(&mut self) {
        if self.storing.is_empty() {
            return;
        }
        let index = self.below(self.storing.len());
        let mut settled = self.storing.swap_remove(index);
        if self.below(4) == 0 {
            settled.rejections = vec![rejection(&[(0, i64::MAX)], v1::RejectReason::StaleEpoch)];
        }
        self.down.push_back(Response::Settled(settled));
    }

    /// The connection breaks: some of what is on its way still arrives, the rest is lost.
    fn breaks(&mut self) {
        for _ in 0..self.below(3) {
            self.server_reads();
            self.client_reads();
        }
        self.up.clear();
        self.down.clear();
        self.storing.clear();
        let Some(Request::Subscribe(first)) = self.harness.session.subscribe().request else { panic!("first frame") };
        let claimed: Vec<_> =
            first.holding.iter().flat_map(|leases| &leases.offsets).filter_map(ranges::bounds).collect();
        let (mut kept, mut lost) = (BTreeMap::new(), BTreeSet::new());
        for (offset, frame) in std::mem::take(&mut self.live) {
            // Now and then nothing is kept, as after the resume_timeout: here, of one lease in eight.
            let both = frame <= first.seen && claimed.iter().any(|(from, to)| *from <= offset && offset <= *to);
            if both && self.below(8) > 0 {
                kept.insert(offset, frame);
            } else {
                self.ended.insert(offset, (frame, 'x'));
                lost.insert(offset);
            }
        }
        let held = leases(&kept.keys().map(|offset| (*offset, *offset)).collect::<Vec<_>>());
        self.live = kept;
        self.ready.extend(lost);
        self.frame = self.frame.max(first.seen);
        // The session is the one that it was: only of such a one does the server keep leases.
        let session_id = self.harness.session.info.session_id.clone();
        self.harness.handle(Response::Subscribed(Subscribed { session_id, held: vec![held], ..Default::default() }));
    }

    /// Everything arrives and is settled: then neither side has anything left.
    fn finish(&mut self) {
        let is_over = |of: &Self| {
            of.down.is_empty() && of.up.is_empty() && of.storing.is_empty() && of.harness.session.is_settled()
        };
        while !is_over(self) {
            self.client_reads();
            self.application_takes();
            self.application_settles();
            self.client_writes();
            self.server_reads();
            self.server_stores();
        }
        self.application_hears();
        assert!(self.waiting.is_empty(), "nobody answers {:?}", self.waiting);
        assert!(self.live.is_empty(), "the client has forgotten {:?}", self.live);
    }
}

#[test]
fn what_the_server_applies_is_what_the_application_said() {
    for _ in 0..RUNS {
        let seed = random_u64();
        let run = std::panic::catch_unwind(|| {
            let mut simulation = Simulation::new(seed);
            (0..STEPS).for_each(|_| simulation.step());
            simulation.finish();
        });
        assert!(run.is_ok(), "seed {seed}");
    }
}
