//! Records that were held by sessions which died alone. Each such death is a mark; with enough marks a record is a suspect,
//! which is dealt by itself. Kept for records that are not done, and only in this epoch: marks are not stored.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use crate::deaths::BreakId;

/// See the module.
#[derive(Debug)]
pub(crate) struct Suspects {
    marks_max: u32,
    marks: BTreeMap<i64, u32>,
    /// Suspects that may be dealt. In the ledger they wait.
    ready: BTreeSet<i64>,
    /// Records of a dead session that wait until it is known whether it died alone.
    undecided: BTreeMap<i64, BreakId>,
}

impl Suspects {
    pub(crate) fn new(marks_max: u32) -> Self {
        Self { marks_max: marks_max.max(1), marks: BTreeMap::new(), ready: BTreeSet::new(), undecided: BTreeMap::new() }
    }

    pub(crate) fn is_suspect(&self, offset: i64) -> bool {
        !self.marks.is_empty() && self.marks.get(&offset).is_some_and(|marks| *marks >= self.marks_max)
    }

    /// The records among these of which something is known.
    pub(super) fn within(&self, offsets: RangeInclusive<i64>) -> impl Iterator<Item = i64> {
        let marked = self.marks.range(offsets.clone()).map(|(offset, _)| *offset);
        marked.chain(self.undecided.range(offsets).map(|(offset, _)| *offset))
    }

    /// Whether nothing is known of any record.
    pub(super) fn is_empty(&self) -> bool {
        self.marks.is_empty() && self.undecided.is_empty()
    }

    /// Whether there is a mark at all.
    pub(super) fn is_any_marked(&self) -> bool {
        !self.marks.is_empty()
    }

    pub(crate) fn mark(&mut self, offset: i64) {
        let marks = self.marks.entry(offset).or_default();
        *marks = marks.saturating_add(1);
    }

    /// The death was nobody's fault. Whether the record waited as a suspect, and is none any more.
    pub(crate) fn unmark(&mut self, offset: i64) -> bool {
        if let Some(marks) = self.marks.get_mut(&offset) {
            *marks -= 1;
            if *marks == 0 {
                self.marks.remove(&offset);
            }
        }
        !self.is_suspect(offset) && self.ready.remove(&offset)
    }

    /// The record is done.
    pub(crate) fn forget(&mut self, offset: i64) {
        if !self.marks.is_empty() {
            self.marks.remove(&offset);
            self.ready.remove(&offset);
        }
        self.undecided.remove(&offset);
    }

    /// How many records are suspects.
    pub(crate) fn count(&self) -> u64 {
        self.marks.values().filter(|marks| **marks >= self.marks_max).count() as u64
    }

    /// Suspects that may be dealt, ascending.
    pub(crate) fn ready(&self) -> &BTreeSet<i64> {
        &self.ready
    }

    pub(super) fn offer(&mut self, offset: i64) {
        self.ready.insert(offset);
    }

    /// It is leased, or fits nobody.
    pub(crate) fn take(&mut self, offset: i64) {
        self.ready.remove(&offset);
    }

    pub(crate) fn undecided(&self) -> &BTreeMap<i64, BreakId> {
        &self.undecided
    }

    pub(crate) fn leave_open(&mut self, offset: i64, of: BreakId) {
        self.undecided.insert(offset, of);
    }

    /// Whether it waited for that.
    pub(crate) fn decide(&mut self, offset: i64, of: BreakId) -> bool {
        let waited = self.undecided.get(&offset) == Some(&of);
        if waited {
            self.undecided.remove(&offset);
        }
        waited
    }
}
