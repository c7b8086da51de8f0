//! Moments at which something happens without an input: what `tick` works off and `wake_at` looks at.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use crate::oversize::Oversize;
use crate::partition::Pid;
use crate::session::LeaseKey;
use crate::types::{Millis, SessionId};

/// Why a record that waits is looked at again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wait {
    /// Its backoff is over.
    Retry,
    /// Its dead letter is written again.
    Letter,
    /// The session that released it may have it again.
    Release,
}

/// A record that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Waiting {
    pub(crate) due: Millis,
    pub(crate) pid: Pid,
    pub(crate) offset: i64,
    pub(crate) wait: Wait,
}

/// Records that wait, a heap a partition: a partition that goes takes a hundred thousand with it at once.
#[derive(Debug, Default)]
struct Waits {
    heaps: BTreeMap<Pid, BinaryHeap<Reverse<Waiting>>>,
    /// The first of each heap.
    first: BTreeSet<(Millis, Pid)>,
}

/// A heap with this much room for each that is in it gives some back.
const SPARE_MAX: usize = 8;
/// Below this it is not worth it.
const SPARE_FROM: usize = 1_024;

// === impl Waits ===

impl Waits {
    fn next(&self) -> Option<Millis> {
        self.first.first().map(|(due, _)| *due)
    }

    fn push(&mut self, waiting: Waiting) {
        let heap = self.heaps.entry(waiting.pid).or_default();
        let first = heap.peek().map(|w| w.0.due);
        heap.push(Reverse(waiting));
        if first.is_none_or(|first| waiting.due < first) {
            first.map(|first| self.first.remove(&(first, waiting.pid)));
            self.first.insert((waiting.due, waiting.pid));
        }
    }

    fn pop(&mut self, now: Millis) -> Option<Waiting> {
        let first = *self.first.first().filter(|(due, _)| *due <= now)?;
        let heap = self.heaps.get_mut(&first.1)?;
        let waiting = heap.pop()?.0;
        if heap.capacity() > SPARE_FROM && heap.capacity() > SPARE_MAX * heap.len() {
            heap.shrink_to(2 * heap.len());
        }
        let next = heap.peek().map(|w| w.0.due);
        if next != Some(first.0) {
            self.first.remove(&first);
            self.first.extend(next.map(|due| (due, first.1)));
        }
        Some(waiting)
    }

    fn forget(&mut self, pid: Pid) {
        if let Some(Reverse(first)) = self.heaps.remove(&pid).as_ref().and_then(BinaryHeap::peek) {
            self.first.remove(&(first.due, pid));
        }
    }
}

/// All timers of an engine.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    /// Leases by expiry; exact, since a settled lease must not cost until its timeout.
    pub(crate) expiries: BTreeMap<(Millis, u64), (SessionId, LeaseKey)>,
    /// Records that wait.
    waits: Waits,
    /// Records that fit no frame.
    pub(crate) oversize: Oversize,
    /// Broken sessions that wait for a resume.
    pub(crate) resumes: BTreeSet<(Millis, SessionId)>,
    /// Partitions with something to commit, and ends of a revoke's grace.
    pub(crate) partitions: BTreeSet<(Millis, Pid)>,
}

impl Timers {
    pub(crate) fn next(&self) -> Option<Millis> {
        [
            self.expiries.first_key_value().map(|(key, _)| key.0),
            self.waits.next(),
            self.oversize.next(),
            self.resumes.first().map(|r| r.0),
            self.partitions.first().map(|p| p.0),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    pub(crate) fn wait(&mut self, waiting: Waiting) {
        self.waits.push(waiting);
    }

    /// Waits of a partition, for `Engine::check`.
    pub(crate) fn waits_of(&self, pid: Pid) -> impl Iterator<Item = &Waiting> {
        self.waits.heaps.get(&pid).into_iter().flatten().map(|w| &w.0)
    }

    pub(crate) fn pop_wait(&mut self, now: Millis) -> Option<Waiting> {
        self.waits.pop(now)
    }

    pub(crate) fn pop_partition(&mut self, now: Millis) -> Option<Pid> {
        let first = *self.partitions.first().filter(|p| p.0 <= now)?;
        self.partitions.remove(&first);
        Some(first.1)
    }

    /// The partition is forgotten.
    pub(crate) fn forget(&mut self, pid: Pid) {
        self.waits.forget(pid);
        self.oversize.forget(pid);
        self.partitions.retain(|p| p.1 != pid);
    }
}
