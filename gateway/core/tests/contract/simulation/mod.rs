//! A whole group by seed: several nodes (an engine each) on one fake Kafka, clients that ack, fail, hang, die and come
//! back, rebalances, crashes, frozen nodes, and commits that are delayed, refused, parked, and applied late by a zombie.
//!
//! Evidence is what clients received and wrote and what Kafka stored, never what an engine says of itself; beside that
//! each node is checked against its model. `SLUICE_SEEDS=1..2000` or `SLUICE_SEEDS=17` chooses the seeds.

mod group;
mod people;

use std::collections::{BTreeMap, BTreeSet};

use sluice_core::{Epoch, Output, Policy, SessionId, TopicPartition};

use crate::support::driver::Driver;
use crate::support::kafka::Kafka;
use crate::support::model::Snapshot;
use crate::support::rng::Rng;

use people::Person;

/// Seeds of a run without `SLUICE_SEEDS`.
const SEEDS: u64 = 200;
/// Virtual time of Kafka's session timeout: how long after an assignment the committed value is read back.
const SESSION_TIMEOUT_MS: u64 = 1_000;
/// And then this often.
const READ_BACK_MS: u64 = 3_000;
/// Steps of trouble in one run, and the most steps until all is well again.
const TROUBLE_STEPS: usize = 400;
const HEALING_STEPS: usize = 6_000;

/// A partition that a node owns.
#[derive(Debug)]
struct Owned {
    epoch: Epoch,
    fetch_from: i64,
    held_back: bool,
    read_back_at: u64,
}

/// One process.
struct Node {
    driver: Driver,
    owned: BTreeMap<TopicPartition, Owned>,
    resting: bool,
    /// Down, or frozen, until then; `None`: it runs.
    away: Option<Away>,
}

#[derive(Debug, Clone, Copy)]
enum Away {
    Dead { until: u64 },
    Frozen { until: u64 },
}

/// A commit on its way to Kafka.
#[derive(Debug)]
struct Commit {
    node: usize,
    partition: TopicPartition,
    epoch: Epoch,
    snapshot: Snapshot,
    due: u64,
    /// Its sender does not own the partition any more.
    parked: bool,
}

struct Sim {
    rng: Rng,
    now: u64,
    policy: Policy,
    kafka: Kafka,
    topics: Vec<TopicPartition>,
    nodes: Vec<Node>,
    people: Vec<Person>,
    commits: Vec<Commit>,
    /// Sessions whose clients left without a word: when the node notices, where, which.
    ghosts: Vec<(u64, usize, SessionId)>,
    /// Who may own what; `None`: nobody yet, from then on.
    owners: BTreeMap<TopicPartition, Owner>,
    epochs: i64,
    faults: bool,
    /// The trouble is over.
    calm: bool,
    /// Written as an ack by a client that had received the lease: all that "done" may rest on.
    acked: BTreeSet<(TopicPartition, i64)>,
    /// Answered as durable.
    durable: BTreeSet<(TopicPartition, i64)>,
    /// The epoch of what Kafka took last; later ones are larger here.
    committed_in: BTreeMap<TopicPartition, i64>,
    /// A zombie's commit went over the owner's: what was durable may be forgotten until it is repaired.
    rewound: BTreeSet<TopicPartition>,
    deliveries: BTreeMap<(TopicPartition, i64), u32>,
    wrong: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Node(usize),
    Nobody { until: u64 },
}

impl Sim {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        // One run in five has no fault at all: there nothing may come twice.
        let faults = !rng.chance(20);
        let policy = Policy {
            ack_timeout_ms: if faults { 400 } else { 60_000 },
            resume_timeout_ms: 150,
            metadata_units_max: if rng.chance(20) { 40 } else { 4_096 },
            span_max: if rng.chance(20) { 30 } else { 1_000 },
            frame_records_max: if rng.chance(30) { 3 } else { 100 },
            backoff: sluice_core::Backoff { initial_ms: 20, multiplier: 2.0, max_ms: 200, jitter: 0.2 },
            ..Policy::default()
        };
        let nodes = 1 + rng.below(3);
        let partitions = 1 + i32::try_from(rng.below(4)).expect("few");
        let people = 1 + rng.below(6);
        let mut sim = Self {
            now: 0,
            kafka: Kafka::default(),
            topics: (0..partitions).map(|p| TopicPartition::new("orders", p)).collect(),
            nodes: Vec::new(),
            people: (0..people).map(|n| Person::new(n, faults, &mut rng)).collect(),
            commits: Vec::new(),
            ghosts: Vec::new(),
            owners: BTreeMap::new(),
            epochs: 0,
            faults,
            calm: false,
            acked: BTreeSet::new(),
            durable: BTreeSet::new(),
            committed_in: BTreeMap::new(),
            rewound: BTreeSet::new(),
            deliveries: BTreeMap::new(),
            wrong: Vec::new(),
            policy,
            rng,
        };
        for _ in 0..nodes {
            let driver = sim.new_driver();
            sim.nodes.push(Node { driver, owned: BTreeMap::new(), resting: false, away: None });
        }
        for tp in sim.topics.clone() {
            sim.owners.insert(tp, Owner::Nobody { until: 0 });
        }
        sim
    }

    fn new_driver(&mut self) -> Driver {
        let mut driver = Driver::new(self.policy.clone(), self.rng.next());
        driver.strict = false;
        driver.model.now = self.now;
        driver.model.ticked = self.now;
        driver
    }

    /// One turn of the world.
    fn step(&mut self, trouble: bool) {
        let ms = 1 + self.rng.below(30);
        self.now += ms;
        if trouble {
            let (tp, count) = (self.any_partition(), self.rng.below(8));
            let gaps: Vec<u8> = (0..count)
                .map(|_| if self.rng.chance(20) { u8::try_from(self.rng.below(4)).expect("few") } else { 0 })
                .collect();
            self.kafka.produce(&tp, &gaps, 0);
            if self.rng.chance(5) {
                self.kafka.produce_markers(&tp, 1);
            }
        }
        if trouble && self.faults {
            self.break_something();
        }
        self.balance();
        for n in 0..self.nodes.len() {
            self.run_node(n);
        }
        self.run_commits();
        self.run_people(trouble);
        for n in 0..self.nodes.len() {
            self.absorb(n);
        }
    }

    fn any_partition(&mut self) -> TopicPartition {
        self.rng.pick(&self.topics).expect("there is one").clone()
    }

    /// What came out of a node goes its ways.
    fn absorb(&mut self, n: usize) {
        for output in std::mem::take(&mut self.nodes[n].driver.out) {
            match output {
                Output::Deliver { session, sequence, batches } => self.delivered(n, session, sequence, &batches),
                Output::Commit { partition, epoch, .. } => self.send_commit(n, &partition, epoch),
                Output::Drained { partition } => {
                    self.nodes[n].owned.remove(&partition);
                    self.owners.insert(partition, Owner::Nobody { until: self.now });
                }
                Output::Hold { partition } => self.hold(n, &partition, None),
                Output::Unhold { partition, next } => self.hold(n, &partition, Some(next.0)),
                Output::Rest(rest) => self.nodes[n].resting = rest,
                Output::Revoked { session, leases, .. } => self.revoked(n, session, &leases),
                Output::Settled { session, request_id, rejections } => {
                    self.settled(n, session, request_id, &rejections)
                }
                Output::SettledUnary { .. }
                | Output::DeadLetter { .. }
                | Output::Gone { .. }
                | Output::Committed { .. } => {}
            }
        }
    }

    fn hold(&mut self, n: usize, tp: &TopicPartition, next: Option<i64>) {
        if let Some(owned) = self.nodes[n].owned.get_mut(tp) {
            owned.held_back = next.is_none();
            owned.fetch_from = next.unwrap_or(owned.fetch_from);
        }
    }

    fn delivered(&mut self, n: usize, session: SessionId, sequence: u64, batches: &[sluice_core::Batch]) {
        for batch in batches {
            for dealt in batch.records.iter() {
                let key = (batch.partition.clone(), dealt.record.offset);
                if self.durable.contains(&key) && !self.rewound.contains(&key.0) {
                    self.wrong.push(format!("S4: {key:?} was answered as durable and is delivered again"));
                }
                let times = self.deliveries.entry(key.clone()).or_default();
                *times += 1;
                if *times > 1 && !self.faults {
                    self.wrong.push(format!("S5: {key:?} came twice in a run without faults"));
                }
            }
        }
        if let Some(person) = self.people.iter_mut().find(|p| p.at == Some((n, session))) {
            person.receive(sequence, batches);
        }
    }

    /// The run's verdict: what went wrong, in the order it did.
    fn verdict(&self) -> Option<String> {
        let node = self.nodes.iter().find(|n| !n.driver.model.violations.is_empty());
        let told = node.map(|n| n.driver.report());
        (!self.wrong.is_empty() || told.is_some())
            .then(|| format!("{}\n{}", self.wrong.join("\n"), told.unwrap_or_default()))
    }

    fn run(&mut self) -> Result<(), String> {
        for _ in 0..TROUBLE_STEPS {
            self.step(true);
            if let Some(wrong) = self.verdict() {
                return Err(wrong);
            }
        }
        self.heal();
        for _ in 0..HEALING_STEPS {
            self.step(false);
            if let Some(wrong) = self.verdict() {
                return Err(wrong);
            }
            if self.is_well() {
                return self.check_nothing_lost();
            }
        }
        Err(format!("L1: all was healed, and the lag does not return to 0: {}", self.lag()))
    }

    /// S1: every record that was produced was acked by a client that held it.
    fn check_nothing_lost(&self) -> Result<(), String> {
        for tp in &self.topics {
            for record in self.kafka.fetch(tp, 0, usize::MAX) {
                if !self.acked.contains(&(tp.clone(), record.offset)) {
                    return Err(format!("S1: {tp} {} was committed, and never acked", record.offset));
                }
            }
        }
        Ok(())
    }
}

fn seeds() -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("SLUICE_SEEDS") else { return 0..SEEDS };
    let number = |s: &str| s.trim().parse::<u64>().unwrap_or_else(|e| panic!("SLUICE_SEEDS={text}: {e}"));
    match text.split_once("..") {
        Some((from, to)) => number(from)..number(to),
        None => number(&text)..number(&text) + 1,
    }
}

#[test]
fn a_group_under_faults_loses_nothing_by_any_seed() {
    for seed in seeds() {
        let outcome = std::panic::catch_unwind(|| Sim::new(seed).run());
        let again = format!("SLUICE_SEEDS={seed} cargo test -p sluice-core --test contract simulation");
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(wrong)) => panic!("seed {seed} (again with: {again})\n{wrong}"),
            Err(_) => panic!("seed {seed} panicked (again with: {again})"),
        }
    }
}
