//! The model's view of lanes: what must wait for an earlier record, looked up record by record.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use sluice_core::{Ordering, Record};

use crate::support::model::{Part, State};

/// What stands before a record in its lane.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    /// These have an earlier one that is surely not done, the one named.
    pub(crate) behind: BTreeMap<i64, i64>,
    /// These have one that may or may not be done.
    pub(crate) perhaps: BTreeSet<i64>,
}

/// The lane of a record, as a name.
fn lane(ordering: Ordering, record: &Record) -> Option<Option<Bytes>> {
    match ordering {
        Ordering::None => None,
        Ordering::Key => record.key.clone().map(Some),
        Ordering::Partition => Some(None),
    }
}

impl Part {
    pub(crate) fn turns(&self, ordering: Ordering) -> Turns {
        let mut turns = Turns::default();
        let mut heads: BTreeMap<Option<Bytes>, i64> = BTreeMap::new();
        let mut unsure: BTreeSet<Option<Bytes>> = BTreeSet::new();
        for (offset, slot) in &self.slots {
            let Some(lane) = lane(ordering, &slot.record) else { continue };
            if let Some(head) = heads.get(&lane) {
                turns.behind.insert(*offset, *head);
            }
            if unsure.contains(&lane) {
                turns.perhaps.insert(*offset);
            }
            match slot.state {
                State::Done => {}
                State::Unsure => drop(unsure.insert(lane)),
                State::Idle { .. } | State::Leased { .. } | State::Letter { .. } | State::Undecided { .. } => {
                    heads.entry(lane).or_insert(*offset);
                }
            }
        }
        turns
    }
}
