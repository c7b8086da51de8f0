//! What a frame has of one partition: ranges of runs, so that a record dealt costs no copy and no reference count of its
//! own.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::run::{RecordRef, Run};
use crate::session::LEASE_SPAN;
use crate::types::{Epoch, Record, TopicPartition};

/// Records of one partition in a frame, ascending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The partition.
    pub partition: TopicPartition,
    /// Its epoch.
    pub epoch: Epoch,
    /// The records.
    pub records: Records,
}

/// Records as they are dealt.
#[derive(Clone, Default)]
pub struct Records {
    parts: Vec<Part>,
    /// Of those that have some: which record, how many.
    attempts: Vec<(usize, u32)>,
    len: usize,
}

/// A record as it is dealt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dealt<'a> {
    /// The record.
    pub record: RecordRef<'a>,
    /// Its counted failures so far.
    pub attempts: u32,
}

/// Neighbours in a run.
#[derive(Debug, Clone)]
struct Part {
    run: Arc<Run>,
    range: Range<usize>,
}

// === impl Records ===

impl Records {
    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All of them, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Dealt<'_>> {
        let mut attempts = self.attempts.iter().peekable();
        let records = self.parts.iter().flat_map(|part| part.range.clone().map(|index| part.run.record(index)));
        records.enumerate().map(move |(i, record)| {
            let attempts = attempts.next_if(|(of, _)| *of == i).map_or(0, |(_, attempts)| *attempts);
            Dealt { record, attempts }
        })
    }

    /// Above those that are here.
    pub(crate) fn push(&mut self, run: &Arc<Run>, range: &Range<usize>) {
        self.len += range.len();
        match self.parts.last_mut() {
            Some(last) if last.range.end == range.start && Arc::ptr_eq(&last.run, run) => last.range.end = range.end,
            _ => self.parts.push(Part { run: run.clone(), range: range.clone() }),
        }
    }

    /// What is counted of failures: of these records, which ascend, as of others.
    pub(crate) fn set_attempts(&mut self, of: &BTreeMap<i64, u32>) {
        let mut before = 0;
        for Part { run, range } in self.parts.iter().filter(|_| !of.is_empty()) {
            for (offset, attempts) in of.range(run.offset(range.start)..=run.offset(range.end - 1)) {
                let index = run.index_from(*offset);
                if run.offset(index) == *offset {
                    self.attempts.push((before + index - range.start, *attempts));
                }
            }
            before += range.len();
        }
    }

    /// As few lease entries as name them all: base, and a bit for each offset above it.
    pub(crate) fn leases(&self, mut entry: impl FnMut(i64, u128)) {
        let mut open: Option<(i64, u128)> = None;
        for Part { run, range } in &self.parts {
            let is_gapless = run.is_gapless(range);
            let mut next = range.start;
            while next < range.end {
                let offset = run.offset(next);
                let (base, bits) = match open {
                    Some((base, bits)) if offset - base < LEASE_SPAN => (base, bits),
                    full => {
                        if let Some((base, bits)) = full {
                            entry(base, bits);
                        }
                        (offset, 0)
                    }
                };
                let room = (base + LEASE_SPAN - offset) as usize;
                let count = if is_gapless { room.min(range.end - next) } else { 1 };
                let these = u128::MAX >> (LEASE_SPAN as usize - count) << (offset - base);
                open = Some((base, bits | these));
                next += count;
            }
        }
        if let Some((base, bits)) = open {
            entry(base, bits);
        }
    }
}

/// Copies records, each with its attempts.
impl FromIterator<(Record, u32)> for Records {
    fn from_iter<I: IntoIterator<Item = (Record, u32)>>(dealt: I) -> Self {
        let mut records = Self::default();
        for (record, attempts) in dealt {
            if attempts > 0 {
                records.attempts.push((records.len, attempts));
            }
            Run::of([&record]).iter().for_each(|run| records.push(run, &(0..1)));
        }
        records
    }
}

impl PartialEq for Records {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Records {}

impl fmt::Debug for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
