//! What was said of leases and is not written yet, and what is written and not answered.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use crate::{
    lease::{LeaseName, Verb},
    outcome::{Outcome, SettleError, Waiter},
};

/// Durable requests of one partition that may be without an answer: one that Kafka is writing, and one that joins its next
/// commit. What comes meanwhile goes together into the one after.
const DURABLE_IN_FLIGHT_MAX: usize = 2;

/// Some offsets of one partition of which the same is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) name: Arc<LeaseName>,
    pub(super) verb: Verb,
    pub(super) offsets: Vec<i64>,
}

/// Who waits for the answer of which lease.
pub(super) type Waiters = HashMap<(Arc<LeaseName>, i64), Waiter>;

/// What is not written yet. Durable settlements stand apart, each partition for itself: a request is answered when all of it
/// is stored, and no partition is to wait for another's commit.
#[derive(Default)]
pub(super) struct Pending {
    plain: HashMap<(Arc<LeaseName>, Verb), Vec<i64>>,
    durable: HashMap<Arc<LeaseName>, HashMap<Outcome, Vec<i64>>>,
    waiters: Waiters,
}

/// A request that is written, or about to be, and not answered.
pub(super) struct Written {
    pub(super) groups: Vec<Group>,
    pub(super) durable: bool,
    /// The last frame received when it was written.
    pub(super) seen: u64,
    /// It was written on a connection before, too.
    pub(super) again: bool,
    pub(super) waiters: Waiters,
}

/// The requests without an answer.
#[derive(Default)]
pub(super) struct Unanswered {
    requests: BTreeMap<u64, Written>,
    durable: HashMap<Arc<LeaseName>, usize>,
}

// === impl Pending ===

impl Pending {
    pub(super) fn say(&mut self, name: &Arc<LeaseName>, offset: i64, verb: Verb) {
        self.plain.entry((Arc::clone(name), verb)).or_default().push(offset);
    }

    pub(super) fn settle(
        &mut self,
        name: &Arc<LeaseName>,
        offset: i64,
        outcome: Outcome,
        durable: bool,
        waiter: Option<Waiter>,
    ) {
        if let Some(waiter) = waiter {
            self.waiters.insert((Arc::clone(name), offset), waiter);
        }
        if durable {
            self.durable.entry(Arc::clone(name)).or_default().entry(outcome).or_default().push(offset);
        } else {
            self.say(name, offset, Verb::Settle(outcome));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.plain.is_empty() && self.durable.is_empty()
    }

    /// Whether something may be written now.
    pub(super) fn is_ready(&self, unanswered: &Unanswered) -> bool {
        !self.plain.is_empty() || self.durable.keys().any(|name| unanswered.has_room(name))
    }

    pub(super) fn take_plain(&mut self) -> Vec<Group> {
        let groups = self.plain.drain().map(|((name, verb), offsets)| Group { name, verb, offsets });
        let mut groups: Vec<Group> = groups.collect();
        // Extensions first: after the lease was settled in the same frame they would be rejected.
        groups.sort_by_key(|group| !matches!(group.verb, Verb::Extend(_)));
        groups
    }

    /// The durable ones, by partition: all of them, or those that may be written now.
    pub(super) fn take_durable(&mut self, unanswered: &Unanswered, all: bool) -> Vec<Vec<Group>> {
        let ready = self.durable.extract_if(|name, _| all || unanswered.has_room(name));
        ready
            .map(|(name, outcomes)| {
                let group =
                    |(outcome, offsets)| Group { name: Arc::clone(&name), verb: Verb::Settle(outcome), offsets };
                outcomes.into_iter().map(group).collect()
            })
            .collect()
    }

    /// Whoever waits for one of these leases.
    pub(super) fn take_waiters(&mut self, groups: &[Group]) -> Waiters {
        let mut taken = Waiters::new();
        if self.waiters.is_empty() {
            return taken;
        }
        for group in groups {
            let keys = group.offsets.iter().map(|offset| (Arc::clone(&group.name), *offset));
            taken.extend(keys.filter_map(|key| self.waiters.remove_entry(&key)));
        }
        taken
    }

    /// Forgets what was said of leases that are gone.
    pub(super) fn drop_offsets(&mut self, name: &Arc<LeaseName>, offsets: &[i64], why: &SettleError) {
        if offsets.is_empty() {
            return;
        }
        let keeps = |pending: &mut Vec<i64>| {
            pending.retain(|offset| !offsets.contains(offset));
            !pending.is_empty()
        };
        self.plain.retain(|(of, _), pending| of != name || keeps(pending));
        if let Some(outcomes) = self.durable.get_mut(name) {
            outcomes.retain(|_, pending| keeps(pending));
            if outcomes.is_empty() {
                self.durable.remove(name);
            }
        }
        for offset in offsets {
            if let Some(waiter) = self.waiters.remove(&(Arc::clone(name), *offset)) {
                let _ = waiter.send(Err(why.clone()));
            }
        }
    }
}

// === impl Unanswered ===

impl Unanswered {
    pub(super) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Whether all requests up to this one are answered.
    pub(super) fn is_answered(&self, request: u64) -> bool {
        self.requests.first_key_value().is_none_or(|(oldest, _)| *oldest > request)
    }

    pub(super) fn insert(&mut self, request: u64, written: Written) {
        if let Some(name) = written.partition() {
            *self.durable.entry(Arc::clone(name)).or_default() += 1;
        }
        self.requests.insert(request, written);
    }

    pub(super) fn get_mut(&mut self, request: u64) -> Option<&mut Written> {
        self.requests.get_mut(&request)
    }

    pub(super) fn remove(&mut self, request: u64) -> Option<Written> {
        let written = self.requests.remove(&request)?;
        if let Some(name) = written.partition()
            && let Some(count) = self.durable.get_mut(name)
        {
            *count -= 1;
            if *count == 0 {
                self.durable.remove(name);
            }
        }
        Some(written)
    }

    /// All of them, in the order in which they were written.
    pub(super) fn take(&mut self) -> BTreeMap<u64, Written> {
        self.durable.clear();
        std::mem::take(&mut self.requests)
    }

    fn has_room(&self, name: &Arc<LeaseName>) -> bool {
        self.durable.get(name).is_none_or(|count| *count < DURABLE_IN_FLIGHT_MAX)
    }
}

impl Written {
    /// The partition of a durable request.
    fn partition(&self) -> Option<&Arc<LeaseName>> {
        self.groups.first().filter(|_| self.durable).map(|group| &group.name)
    }

    /// What it says of this lease.
    pub(super) fn verb(&self, name: &Arc<LeaseName>, offset: i64) -> Option<&Verb> {
        let mut groups = self.groups.iter().filter(|group| group.name == *name);
        groups.find(|group| group.offsets.binary_search(&offset).is_ok()).map(|group| &group.verb)
    }

    /// Answers who waits for this lease.
    pub(super) fn answer(&mut self, name: &Arc<LeaseName>, offset: i64, why: &SettleError) {
        if let Some(waiter) = self.waiters.remove(&(Arc::clone(name), offset)) {
            let _ = waiter.send(Err(why.clone()));
        }
    }

    /// Answers who still waits: all of it was applied.
    pub(super) fn succeed(&mut self) {
        for (_, waiter) in self.waiters.drain() {
            let _ = waiter.send(Ok(()));
        }
    }
}
