//! What a client holds, as its edge sees it: what is told the client when an owner is gone. Pure.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

use sluice_core::{Epoch, Leases, OffsetRange, TopicPartition};

use crate::peer::OwnerId;

/// Offsets as ranges that do not touch: first → last.
#[derive(Debug, Default)]
struct Offsets(BTreeMap<i64, i64>);

#[derive(Debug)]
struct Held {
    owner: OwnerId,
    offsets: Offsets,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Holding {
    partitions: HashMap<(TopicPartition, Epoch), Held>,
}

// === impl Offsets ===

impl Offsets {
    /// Costs as much as there are ranges that it touches.
    fn add(&mut self, first: i64, last: i64) {
        if first > last {
            return;
        }
        let touches = |end: i64| end >= first.saturating_sub(1);
        let before = self.0.range(..=first).next_back().filter(|(_, end)| touches(**end));
        let (first, mut last) = before.map_or((first, last), |(from, to)| (*from, last.max(*to)));
        let until = |last: i64| (Bound::Excluded(first), Bound::Included(last.saturating_add(1)));
        while let Some((&from, &to)) = self.0.range(until(last)).next() {
            self.0.remove(&from);
            last = last.max(to);
        }
        self.0.insert(first, last);
    }

    /// Costs as much as there are ranges within.
    fn remove(&mut self, first: i64, last: i64) {
        if first > last {
            return;
        }
        let before = self.0.range(..first).next_back().map(|(from, to)| (*from, *to)).filter(|(_, to)| *to >= first);
        let within: Vec<(i64, i64)> = self.0.range(first..=last).map(|(from, to)| (*from, *to)).collect();
        for (from, to) in before.into_iter().chain(within) {
            self.0.remove(&from);
            if from < first {
                self.0.insert(from, first - 1);
            }
            if to > last {
                self.0.insert(last + 1, to);
            }
        }
    }

    fn count(&self) -> u64 {
        // A peer may say anything.
        self.0.iter().map(|(first, last)| last.abs_diff(*first).saturating_add(1)).fold(0, u64::saturating_add)
    }
}

// === impl Holding ===

impl Holding {
    /// The owner dealt these.
    pub(crate) fn add(
        &mut self,
        owner: OwnerId,
        partition: TopicPartition,
        epoch: Epoch,
        ranges: impl IntoIterator<Item = OffsetRange>,
    ) {
        let held =
            self.partitions.entry((partition, epoch)).or_insert_with(|| Held { owner, offsets: Offsets::default() });
        held.owner = owner;
        ranges.into_iter().for_each(|range| held.offsets.add(range.first, range.last));
    }

    /// The owner confirmed these after a resume.
    pub(crate) fn add_leases(&mut self, owner: OwnerId, leases: &Leases) {
        self.add(owner, leases.partition.clone(), leases.epoch, leases.offsets.iter().copied());
    }

    /// These are settled, or taken back.
    pub(crate) fn remove(
        &mut self,
        partition: &TopicPartition,
        epoch: Epoch,
        ranges: impl Iterator<Item = OffsetRange>,
    ) {
        let key = (partition.clone(), epoch);
        let Some(held) = self.partitions.get_mut(&key) else { return };
        ranges.for_each(|range| held.offsets.remove(range.first, range.last));
        if held.offsets.0.is_empty() {
            self.partitions.remove(&key);
        }
    }

    /// All that the owner dealt is gone: this.
    pub(crate) fn remove_owner(&mut self, owner: OwnerId) -> Vec<Leases> {
        let gone = self.partitions.extract_if(|_, held| held.owner == owner);
        let leases = gone.map(|((partition, epoch), held)| {
            let offsets = held.offsets.0.into_iter().map(|(first, last)| OffsetRange { first, last }).collect();
            Leases { partition, epoch, offsets }
        });
        leases.collect()
    }

    /// Records held, of all owners.
    pub(crate) fn count(&self) -> u64 {
        self.partitions.values().map(|held| held.offsets.count()).sum()
    }

    /// Records held of one owner.
    pub(crate) fn count_of(&self, owner: OwnerId) -> u64 {
        self.partitions.values().filter(|held| held.owner == owner).map(|held| held.offsets.count()).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn offsets_are_a_set(ops in proptest::collection::vec((any::<bool>(), 0i64..40, 0i64..10), 0..80)) {
            let (mut offsets, mut set) = (Offsets::default(), BTreeSet::new());
            for (add, at, more) in ops {
                if add {
                    offsets.add(at, at + more - 1);
                    set.extend(at..at + more);
                } else {
                    offsets.remove(at, at + more - 1);
                    set.retain(|offset| *offset < at || *offset >= at + more);
                }
                let all: Vec<i64> = offsets.0.iter().flat_map(|(first, last)| *first..=*last).collect();
                prop_assert_eq!(&all, &set.iter().copied().collect::<Vec<_>>());
                prop_assert_eq!(offsets.count(), set.len() as u64);
                let mut ends = offsets.0.iter().zip(offsets.0.iter().skip(1));
                prop_assert!(ends.all(|((_, last), (next, _))| last + 1 < *next), "ranges that touch are one");
            }
        }
    }

    #[test]
    fn what_an_owner_dealt_goes_with_it() {
        let (near, far) = (OwnerId(0), OwnerId(1));
        let (p, q) = (TopicPartition::new("t", 0), TopicPartition::new("t", 1));
        let mut holding = Holding::default();
        let range = |first, last| std::iter::once(OffsetRange { first, last });
        holding.add(near, p.clone(), Epoch(1), range(0, 4));
        holding.add(far, q.clone(), Epoch(2), range(7, 8));
        let leases = |partition: &TopicPartition, epoch, first, last| Leases {
            partition: partition.clone(),
            epoch: Epoch(epoch),
            offsets: vec![OffsetRange { first, last }],
        };
        holding.remove(&p, Epoch(1), range(0, 2));
        holding.remove(&p, Epoch(9), range(0, 9));
        assert_eq!((holding.count_of(near), holding.count_of(far), holding.count()), (2, 2, 4));
        assert_eq!(holding.remove_owner(near), [leases(&p, 1, 3, 4)]);
        assert_eq!(holding.remove_owner(far), [leases(&q, 2, 7, 8)]);
        assert_eq!(holding.count(), 0);
    }
}
