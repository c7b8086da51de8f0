//! `Retry(0)` of 11, followed by a coalesced ack of 10 to 12, must not swallow 11: under **all** interleavings of what
//! clients write and read, what the server reads, and ticks.
//!
//! Each schedule is replayed from the start, so that the engine under test is always one that lived through it.

use std::collections::{BTreeSet, VecDeque};

use sluice_core::{
    Assignment, Epoch, NextOffset, OffsetRange, Outcome, Output, Policy, SessionId, Settlements, TopicPartition,
};

use crate::support::client;
use crate::support::driver::Driver;
use crate::support::kafka::record;
use crate::support::plant::Plant;

const EPOCH: Epoch = Epoch(9);
/// Where the search gives up: far above what the cases need, so that a growing case is noticed.
const SCHEDULES_MAX: usize = 2_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The client takes one frame from its stream.
    ClientReads(usize),
    /// The client writes the next thing it has to say.
    ClientWrites(usize),
    /// The server takes one frame from the client's stream.
    ServerReads(usize),
    Tick,
}

/// One client, and the two directions of its stream.
#[derive(Debug)]
struct Peer {
    session: SessionId,
    to_server: VecDeque<Settlements>,
    to_client: VecDeque<(u64, Vec<(i64, u32)>)>,
    /// The last frame it received.
    seen: u64,
    /// What it received: offset and attempts, not yet acked in its eyes.
    open: Vec<(i64, u32)>,
    /// How far it is: 0 nothing written, 1 the retry, 2 the coalesced ack.
    wrote: usize,
}

struct Case {
    driver: Driver,
    peers: Vec<Peer>,
    ticks: usize,
    /// Two sessions have schedules enough with one tick.
    ticks_max: usize,
    /// An ack that covers 11 was written by a client that had received its second delivery.
    eleven_was_acked: bool,
    /// Who received the second delivery of 11.
    again: BTreeSet<usize>,
}

/// What a search found.
#[derive(Debug, Default)]
struct Found {
    schedules: usize,
    again: BTreeSet<usize>,
}

fn orders() -> TopicPartition {
    TopicPartition::new("orders", 0)
}

impl Case {
    fn new(sessions: usize, frame_records_max: usize, plant: Plant) -> Self {
        let policy = Policy { frame_records_max, ..Policy::default() };
        let mut driver = match plant {
            Plant::Nothing => Driver::new(policy, 1),
            plant => Driver::with_plant(policy, plant),
        };
        driver.telling = false;
        driver.assigned(
            Assignment {
                partition: orders(),
                epoch: EPOCH,
                next: NextOffset(10),
                metadata: None,
                topic_hash: 0,
                commit_now: false,
            },
            None,
        );
        let mut case = Self {
            driver,
            peers: Vec::new(),
            ticks: 0,
            ticks_max: 3 - sessions,
            eleven_was_acked: false,
            again: BTreeSet::new(),
        };
        case.join(3);
        let records = (10..=12).map(|o| record(&orders(), o, 0)).collect();
        case.driver.records(&orders(), EPOCH, records);
        case.carry();
        for n in 1..sessions {
            // It holds a record of its own first, so that the retried one comes now to one, now to the other.
            case.join(1);
            let offset = 12 + i64::try_from(n).expect("few");
            case.driver.records(&orders(), EPOCH, vec![record(&orders(), offset, 0)]);
            case.carry();
        }
        case
    }

    fn join(&mut self, window: u32) {
        let session = self.driver.open(client::open(None, window)).session;
        let (to_server, to_client) = Default::default();
        self.peers.push(Peer { session, to_server, to_client, seen: 0, open: Vec::new(), wrote: 0 });
        self.carry();
    }

    /// Deliveries go onto the streams; commits are taken at once.
    fn carry(&mut self) {
        for output in std::mem::take(&mut self.driver.out) {
            match output {
                Output::Deliver { session, sequence, batches } => {
                    let records = batches.iter().flat_map(|b| b.records.iter()).map(|d| (d.record.offset, d.attempts));
                    let peer = self.peers.iter_mut().find(|p| p.session == session).expect("a session of ours");
                    peer.to_client.push_back((sequence, records.collect()));
                }
                Output::Commit { partition, epoch, offset, .. } => {
                    self.driver.commit_result(&partition, epoch, Ok(offset));
                }
                _ => {}
            }
        }
    }

    fn enabled(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        for (n, peer) in self.peers.iter().enumerate() {
            if !peer.to_client.is_empty() {
                steps.push(Step::ClientReads(n));
            }
            if peer.next_words(n).is_some() {
                steps.push(Step::ClientWrites(n));
            }
            if !peer.to_server.is_empty() {
                steps.push(Step::ServerReads(n));
            }
        }
        if self.ticks < self.ticks_max {
            steps.push(Step::Tick);
        }
        steps
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::ClientReads(n) => {
                let peer = &mut self.peers[n];
                let (sequence, records) = peer.to_client.pop_front().expect("the step was enabled");
                peer.seen = sequence;
                if records.contains(&(11, 1)) {
                    self.again.insert(n);
                }
                peer.open.extend(records);
            }
            Step::ClientWrites(n) => {
                let peer = &mut self.peers[n];
                let (range, outcome) = peer.next_words(n).expect("the step was enabled");
                let again = peer.open.contains(&(11, 1));
                let covers = range.first <= 11 && 11 <= range.last;
                self.eleven_was_acked |= outcome == Outcome::Ack && covers && again;
                let first_retry = matches!(outcome, Outcome::Retry { .. });
                peer.open.retain(
                    |(o, a)| if first_retry { (*o, *a) != (11, 0) } else { *o < range.first || *o > range.last },
                );
                peer.wrote += 1;
                let leases = client::leases(&orders(), EPOCH, vec![range]);
                let frame = client::frame(peer.seen, leases, outcome);
                peer.to_server.push_back(frame);
            }
            Step::ServerReads(n) => {
                let peer = &mut self.peers[n];
                let frame = peer.to_server.pop_front().expect("the step was enabled");
                let session = peer.session;
                self.driver.settle(session, frame);
            }
            Step::Tick => {
                self.ticks += 1;
                self.driver.advance(1);
            }
        }
        self.carry();
    }

    /// Whether 11 is done, as the engine itself shows it.
    fn eleven_is_done(&self) -> bool {
        let view = self.driver.engine.partitions(self.driver.now()).remove(0);
        let done = self.driver.model.ever_done.contains(&(orders(), 11));
        done || view.committable.0 > 11
    }

    fn wrong(&self) -> Option<String> {
        if !self.driver.model.violations.is_empty() {
            return Some(self.driver.report());
        }
        (self.eleven_is_done() && !self.eleven_was_acked)
            .then(|| "11 is done, and nobody acked its second delivery".into())
    }

    /// All streams are read to their end, all that is open is acked: nothing may be left.
    fn finish(&mut self) -> Option<String> {
        for _ in 0..40 {
            let step = self.enabled().into_iter().find(|s| *s != Step::Tick);
            match step {
                Some(step) => self.take(step),
                None => {
                    self.driver.advance(300);
                    self.carry();
                }
            }
        }
        let frontier = self.driver.engine.partitions(self.driver.now()).remove(0).committable;
        let end = NextOffset(12 + i64::try_from(self.peers.len()).expect("few"));
        let left = (frontier != end).then(|| format!("the frontier ends at {frontier:?}"));
        self.wrong().or(left)
    }
}

impl Peer {
    /// The first client: retry 11, then ack 10 and 12 in one range, then whatever comes again. Others: ack what comes.
    fn next_words(&self, n: usize) -> Option<(OffsetRange, Outcome)> {
        match (n, self.wrote) {
            (0, 0) => self.open.contains(&(11, 0)).then(|| (OffsetRange::one(11), client::retry_now())),
            (0, 1) => {
                let both = [10, 12].iter().all(|o| self.open.contains(&(*o, 0)));
                both.then_some((OffsetRange { first: 10, last: 12 }, Outcome::Ack))
            }
            _ => self.open.first().map(|(offset, _)| (OffsetRange::one(*offset), Outcome::Ack)),
        }
    }
}

/// Runs every schedule; the first wrong one, with its story.
fn explore(sessions: usize, frame_records_max: usize, plant: Plant) -> Result<Found, String> {
    let mut prefixes = vec![Vec::<Step>::new()];
    let mut found = Found::default();
    while let Some(mut steps) = prefixes.pop() {
        let mut case = Case::new(sessions, frame_records_max, plant);
        steps.iter().for_each(|step| case.take(*step));
        // Walk down by the first choice, and leave the others for later.
        loop {
            if let Some(wrong) = case.wrong() {
                return Err(format!("{steps:?}: {wrong}"));
            }
            let enabled = case.enabled();
            let Some((first, others)) = enabled.split_first() else { break };
            for other in others {
                let mut branch = steps.clone();
                branch.push(*other);
                prefixes.push(branch);
            }
            case.take(*first);
            steps.push(*first);
        }
        if let Some(wrong) = case.finish() {
            return Err(format!("{steps:?}, then to the end: {wrong}"));
        }
        found.schedules += 1;
        found.again.append(&mut case.again);
        assert!(found.schedules < SCHEDULES_MAX, "the case grew beyond what can be enumerated");
    }
    Ok(found)
}

fn search(sessions: usize, frame_records_max: usize) -> Found {
    let found = explore(sessions, frame_records_max, Plant::Nothing).unwrap_or_else(|wrong| panic!("{wrong}"));
    assert!(found.schedules > 100, "only {} schedules: the case does not do what it is for", found.schedules);
    found
}

#[test]
fn a_retried_record_is_not_swallowed_by_a_coalesced_ack_with_one_session() {
    for frame_records_max in [100, 1] {
        let found = search(1, frame_records_max);
        assert_eq!(found.again, BTreeSet::from([0]));
    }
}

#[test]
fn a_retried_record_is_not_swallowed_by_a_coalesced_ack_with_two_sessions() {
    let found = search(2, 100);
    assert_eq!(found.again, BTreeSet::from([0, 1]), "it came again to one of the sessions only");
}

#[test]
fn an_engine_that_ignores_what_the_writer_had_seen_is_caught() {
    let wrong = explore(1, 100, Plant::IgnoreSeen).expect_err("11 was swallowed in no schedule");
    assert!(wrong.contains("11"), "{wrong}");
}
