//! Random schedules against a model of the server that takes the contract at its word: what it applies to a lease must be what
//! the application said of that very lease, whatever was lost, repeated or dealt again on the way.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use sluice_proto::v1::{Settlements, settlement::Outcome as WireOutcome};

use super::*;
use crate::backoff::random_u64;

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
        }
    }

    fn below(&mut self, limit: usize) -> usize {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 33) as usize % limit
    }

    fn step(&mut self) {
        match self.below(20) {
            0..4 => self.deal(),
            4..8 => self.client_reads(),
            8..11 => self.application_takes(),
            11..14 => self.application_settles(),
            14..16 => self.client_writes(),
            16..19 => self.server_reads(),
            _ => self.breaks(),
        }
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
        match letter {
            'a' => record.ack(),
            'r' => record.retry_after(Duration::ZERO),
            _ => drop(record),
        }
        self.harness.pump();
    }

    fn client_writes(&mut self) {
        let written = self.harness.written();
        self.up.extend(written);
    }

    fn server_reads(&mut self) {
        let Some(settlements) = self.up.pop_front() else { return };
        for settlement in &settlements.settlements {
            let letter = match settlement.outcome.as_ref().unwrap() {
                WireOutcome::Ack(_) => 'a',
                WireOutcome::Retry(_) => 'r',
                WireOutcome::Release(_) => 'l',
                WireOutcome::DeadLetter(_) | WireOutcome::Extend(_) => unreachable!("not said here"),
            };
            for (first, last) in ranges_of(settlement) {
                let meant = self.live.range(first..=last).filter(|(_, frame)| **frame <= settlements.seen);
                let meant: Vec<Dealt> = meant.map(|(offset, frame)| (*offset, *frame)).collect();
                for dealt in meant {
                    assert_eq!(self.said.get(&dealt), Some(&letter), "lease {dealt:?}");
                    self.live.remove(&dealt.0);
                    if letter != 'a' {
                        self.ready.insert(dealt.0);
                    }
                }
            }
        }
        let settled = Settled { request_id: settlements.request_id, rejections: vec![] };
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
                lost.insert(offset);
            }
        }
        let held = leases(&kept.keys().map(|offset| (*offset, *offset)).collect::<Vec<_>>());
        self.live = kept;
        self.ready.extend(lost);
        self.frame = first.seen;
        self.harness.handle(Response::Subscribed(Subscribed { held: vec![held], ..Default::default() }));
    }

    /// Everything arrives and is settled: then neither side has anything left.
    fn finish(&mut self) {
        while !self.down.is_empty() || !self.up.is_empty() || !self.harness.session.is_settled() {
            self.client_reads();
            self.application_takes();
            self.application_settles();
            self.client_writes();
            self.server_reads();
        }
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
