//! A partition that this node owns: its ledger, what was restored, its commit, and where it stands in the engine.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use crate::commit::CommitState;
use crate::durable::Durable;
use crate::io::{Assignment, Restored};
use crate::ledger::Ledger;
use crate::letters::Letters;
use crate::metadata::{self, Attempts};
use crate::policy::Policy;
use crate::types::{Epoch, Millis, OffsetRange, SessionId, TopicPartition};
use crate::view::Stats;

/// The place of a partition in the engine. Used again once the partition is forgotten, with all that named it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Pid(u32);

/// See the module.
#[derive(Debug)]
pub(crate) struct Partition {
    pub(crate) name: TopicPartition,
    pub(crate) epoch: Epoch,
    pub(crate) topic_hash: u32,
    pub(crate) ledger: Ledger,
    pub(crate) saved: SavedAbove,
    pub(crate) commit: CommitState,
    pub(crate) stats: Stats,
    /// Being handed over: until when open leases may be settled.
    pub(crate) revoking: Option<Millis>,
    /// The grace of the revoke ran out: its leases are gone, its epoch is stale.
    pub(crate) fenced: bool,
    /// Off the fetch handle.
    pub(crate) held_back: bool,
    pub(crate) in_ring: bool,
    /// What the engine's sums contain of this partition.
    pub(crate) counted: Counted,
    /// Released records, and who may not have them yet.
    pub(crate) released: BTreeMap<i64, (SessionId, Millis)>,
    /// Records that fit no connected session's frame, and when they are given up; `None`: they were.
    pub(crate) oversize: BTreeMap<i64, Option<u64>>,
    /// Records on their way to the dead letters.
    pub(crate) letters: Letters,
    /// Settlements that are answered when Kafka has them, and those that were.
    pub(crate) durable: Durable,
    /// When the timers look at it.
    pub(crate) scheduled: Option<Millis>,
}

/// See `Partition::counted`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) ready: u64,
    pub(crate) suspects: u64,
    pub(crate) leased: u64,
    pub(crate) not_done: u64,
    pub(crate) bytes: u64,
    pub(crate) without_ready: u64,
}

/// What the last commit knew of records that were not received again yet.
#[derive(Debug, Default)]
pub(crate) struct SavedAbove {
    pub(crate) done: VecDeque<OffsetRange>,
    pub(crate) attempts: VecDeque<Attempts>,
}

/// All partitions of an engine.
#[derive(Debug, Default)]
pub(crate) struct Partitions {
    places: Vec<Option<Box<Partition>>>,
    free: Vec<Pid>,
    by_name: HashMap<TopicPartition, Pid, BuildHasherDefault<Named>>,
}

/// Hashes a partition's name, for each fetch and each settlement. What is in the table are Kafka's names, so no client can
/// fill it with names that collide, and no seed is needed.
#[derive(Debug, Default)]
struct Named(u64);

impl Hasher for Named {
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }

    fn write(&mut self, bytes: &[u8]) {
        // The multiplier of FxHash, as rustc has it.
        let mut add = |word: u64| self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| add(u64::from_le_bytes(*word)));
        if !rest.is_empty() {
            add(rest.iter().fold(0, |word, byte| word << 8 | u64::from(*byte)));
        }
    }
}

// === impl SavedAbove ===

impl SavedAbove {
    /// Whether nothing of it is above what was received.
    pub(crate) fn is_empty(&self) -> bool {
        self.done.is_empty() && self.attempts.is_empty()
    }

    /// What is known of the next record received: (done, attempts). Records come ascending.
    pub(crate) fn meet(&mut self, offset: i64) -> (bool, u32) {
        while self.done.front().is_some_and(|r| r.last < offset) {
            self.done.pop_front();
        }
        while self.attempts.front().is_some_and(|a| a.offset < offset) {
            self.attempts.pop_front();
        }
        let done = self.done.front().is_some_and(|r| r.first <= offset);
        let attempts = self.attempts.front().filter(|a| a.offset == offset).map_or(0, |a| a.count);
        (done, attempts)
    }
}

// === impl Partition ===

impl Partition {
    pub(crate) fn new(assignment: Assignment, policy: &Policy) -> (Self, Restored) {
        let Assignment { partition, epoch, next, metadata, topic_hash, commit_now } = assignment;
        let text = metadata.filter(|text| !text.is_empty());
        let units = text.as_ref().map_or(0, |text| text.encode_utf16().count());
        let (saved, restored) = match text.map(|text| metadata::decode(&text)) {
            None => (SavedAbove::default(), Restored::Nothing),
            Some(Some(saved)) if saved.topic_hash == topic_hash && saved.base <= next.0 => restore(saved, next.0),
            Some(_) => (SavedAbove::default(), Restored::Ignored),
        };
        let stats = Stats { metadata_ignored: u64::from(restored == Restored::Ignored), ..Stats::default() };
        let commit = CommitState::new((!commit_now).then_some(next), policy.metadata_units_max, units);
        let durable = Durable::restored(saved.done.iter().copied(), saved.attempts.iter().copied());
        let partition = Self {
            name: partition,
            epoch,
            topic_hash,
            ledger: Ledger::new(next.0, policy.ordering, policy.suspect_marks),
            saved,
            commit,
            stats,
            revoking: None,
            fenced: false,
            held_back: false,
            in_ring: false,
            counted: Counted::default(),
            released: BTreeMap::new(),
            oversize: BTreeMap::new(),
            letters: Letters::default(),
            durable,
            scheduled: None,
        };
        (partition, restored)
    }

    /// Nobody outside holds something of it: no lease is open, no dead letter is on its way.
    pub(crate) fn is_quiet(&self) -> bool {
        self.ledger.leased() == 0 && self.letters.is_empty()
    }
}

/// What of the metadata lies at or above `next`.
fn restore(saved: metadata::Saved, next: i64) -> (SavedAbove, Restored) {
    let clip = |r: &OffsetRange| OffsetRange { first: r.first.max(next), last: r.last };
    let done: VecDeque<OffsetRange> = saved.done.iter().map(clip).filter(|r| r.first <= r.last).collect();
    let attempts: VecDeque<Attempts> = saved.attempts.into_iter().filter(|a| a.offset >= next).collect();
    if done.is_empty() && attempts.is_empty() {
        return (SavedAbove::default(), Restored::Nothing);
    }
    let count = done.iter().map(|r| (r.last - r.first) as u64 + 1).sum();
    let restored = Restored::State { done: count, attempts: attempts.len() as u64 };
    (SavedAbove { done, attempts }, restored)
}

// === impl Partitions ===

impl Partitions {
    pub(crate) fn insert(&mut self, partition: Partition) -> Pid {
        let pid = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            Pid(self.places.len() as u32 - 1)
        });
        self.by_name.insert(partition.name.clone(), pid);
        self.places[pid.0 as usize] = Some(Box::new(partition));
        pid
    }

    pub(crate) fn remove(&mut self, pid: Pid) -> Option<Box<Partition>> {
        let partition = self.places.get_mut(pid.0 as usize)?.take()?;
        self.by_name.remove(&partition.name);
        self.free.push(pid);
        Some(partition)
    }

    pub(crate) fn find(&self, name: &TopicPartition) -> Option<Pid> {
        self.by_name.get(name).copied()
    }

    /// The partition, if this epoch of it is live.
    pub(crate) fn live(&self, name: &TopicPartition, epoch: Epoch) -> Option<Pid> {
        self.find(name).filter(|pid| self.get(*pid).is_some_and(|p| p.epoch == epoch && !p.fenced))
    }

    pub(crate) fn get(&self, pid: Pid) -> Option<&Partition> {
        self.places.get(pid.0 as usize)?.as_deref()
    }

    pub(crate) fn get_mut(&mut self, pid: Pid) -> Option<&mut Partition> {
        self.places.get_mut(pid.0 as usize)?.as_deref_mut()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Pid, &Partition)> {
        self.places.iter().enumerate().filter_map(|(i, p)| p.as_deref().map(|p| (Pid(i as u32), p)))
    }

    pub(crate) fn pids(&self) -> Vec<Pid> {
        self.iter().map(|(pid, _)| pid).collect()
    }
}
