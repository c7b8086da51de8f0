//! Moments at which something happens without an input: what `tick` works off and `wake_at` looks at.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use crate::partition::Pid;
use crate::session::LeaseKey;
use crate::types::{Millis, SessionId};

/// Why a record that waits is looked at again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wait {
    /// Its backoff is over.
    Retry,
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

/// All timers of an engine.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    /// Leases by expiry; exact, since a settled lease must not cost until its timeout.
    pub(crate) expiries: BTreeMap<(Millis, u64), (SessionId, LeaseKey)>,
    /// Records that wait.
    pub(crate) waits: BinaryHeap<Reverse<Waiting>>,
    /// Broken sessions that wait for a resume.
    pub(crate) resumes: BTreeSet<(Millis, SessionId)>,
    /// Partitions with something to commit, and ends of a revoke's grace.
    pub(crate) partitions: BTreeSet<(Millis, Pid)>,
}

impl Timers {
    pub(crate) fn next(&self) -> Option<Millis> {
        [
            self.expiries.first_key_value().map(|(key, _)| key.0),
            self.waits.peek().map(|w| w.0.due),
            self.resumes.first().map(|r| r.0),
            self.partitions.first().map(|p| p.0),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    pub(crate) fn pop_wait(&mut self, now: Millis) -> Option<Waiting> {
        self.waits.peek().filter(|w| w.0.due <= now)?;
        self.waits.pop().map(|w| w.0)
    }

    pub(crate) fn pop_partition(&mut self, now: Millis) -> Option<Pid> {
        let first = *self.partitions.first().filter(|p| p.0 <= now)?;
        self.partitions.remove(&first);
        Some(first.1)
    }

    /// The partition is forgotten.
    pub(crate) fn forget(&mut self, pid: Pid) {
        self.waits.retain(|w| w.0.pid != pid);
        self.partitions.retain(|p| p.1 != pid);
    }
}
