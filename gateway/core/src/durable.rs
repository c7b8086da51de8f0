//! Settlements that are answered only when Kafka has them, and what follows from such an answer: what was answered stands in
//! every later commit until the frontier passes it, so no crash gives it again, however full the metadata gets.

mod requests;

use std::collections::{BTreeMap, BTreeSet};

use crate::commit::Flight;
use crate::metadata::{self, Attempts, Saved};
use crate::partition::Pid;
use crate::types::OffsetRange;

use requests::RequestId;
pub(crate) use requests::{Asker, Requests};

/// What must be stored of a record before its settlement is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    Done,
    Attempts(u32),
}

/// A settled record whose answer waits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pid: Pid,
    offset: i64,
    want: Want,
}

/// A partition's part of a request.
#[derive(Debug)]
struct Wait {
    request: RequestId,
    done: Vec<OffsetRange>,
    attempts: Vec<(i64, u32)>,
}

/// What a commit was made to hold whatever is cut.
#[derive(Debug, Default)]
pub(crate) struct Sealed {
    /// Some of the ranges that are done, whole.
    pub(crate) done: Vec<OffsetRange>,
    attempts: Vec<Attempts>,
    /// It has room just now, and perhaps no longer when ranges grow: nothing may be answered by it.
    is_tight: bool,
}

/// What durable settlements of a partition wait for, and what was answered.
#[derive(Debug, Default)]
pub(crate) struct Durable {
    /// First → last: done, above the frontier, and answered as durable. What the commit said that this epoch began with is
    /// among it: whether somebody was told of it is not known any more.
    told: BTreeMap<i64, i64>,
    /// Records whose attempts were answered as durable.
    told_attempts: BTreeSet<i64>,
    waits: Vec<Wait>,
    full: bool,
}

/// Something that would be in the way of a crash if it were cut, and is not promised yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    offset: i64,
    last: i64,
    attempts: bool,
}

// === impl Durable ===

impl Durable {
    /// From what the commit said that the epoch began with.
    pub(crate) fn restored(done: impl Iterator<Item = OffsetRange>, attempts: impl Iterator<Item = Attempts>) -> Self {
        Self {
            told: done.map(|r| (r.first, r.last)).collect(),
            told_attempts: attempts.filter(|a| a.durable).map(|a| a.offset).collect(),
            ..Self::default()
        }
    }

    pub(crate) fn is_waiting(&self) -> bool {
        !self.waits.is_empty()
    }

    /// Offsets whose settlement is not answered.
    pub(crate) fn waiting(&self) -> u64 {
        let of = |wait: &Wait| wait.done.iter().map(count).sum::<u64>() + wait.attempts.len() as u64;
        self.waits.iter().map(of).sum()
    }

    /// Something waits for the frontier, since a commit has no room for it.
    pub(crate) fn is_full(&self) -> bool {
        self.full && self.is_waiting()
    }

    fn is_told(&self, offset: i64) -> bool {
        self.told.range(..=offset).next_back().is_some_and(|(_, last)| *last >= offset)
    }

    fn tell(&mut self, range: OffsetRange) {
        let OffsetRange { mut first, mut last } = range;
        while let Some((from, to)) = self.told.range(..=last.saturating_add(1)).next_back().map(|(f, l)| (*f, *l)) {
            if to < first.saturating_sub(1) {
                break;
            }
            self.told.remove(&from);
            first = first.min(from);
            last = last.max(to);
        }
        self.told.insert(first, last);
    }

    /// What a commit of `saved` must hold: all that was answered, and of what waits the lowest that fits. Marks the attempts.
    pub(crate) fn seal(&mut self, saved: &mut Saved, units_max: usize) -> Sealed {
        self.forget_below(saved.base);
        self.full = false;
        if self.told.is_empty() && self.told_attempts.is_empty() && self.waits.is_empty() {
            return Sealed::default();
        }
        let candidates = self.candidates();
        let all = self.sealed(saved, &candidates);
        if metadata::has_room(saved.base, &all.done, &all.attempts, units_max) {
            return mark(saved, all);
        }
        self.full = self.is_waiting();
        let fits = |count: &usize| {
            let sealed = self.sealed(saved, &candidates[..*count]);
            metadata::has_room(saved.base, &sealed.done, &sealed.attempts, units_max)
        };
        if !fits(&0) {
            return self.seal_answered(saved, units_max);
        }
        // More candidates never need less room.
        let (mut low, mut high) = (0, candidates.len());
        while low < high {
            let middle = (low + high).div_ceil(2);
            if fits(&middle) { low = middle } else { high = middle - 1 }
        }
        let sealed = self.sealed(saved, &candidates[..low]);
        mark(saved, sealed)
    }

    /// What was answered has grown together with what was not, or is all that a commit from before a crash said, and has no
    /// room to grow. Then the highest of it is said as it was answered, and no more: that had room. Changes `saved`.
    fn seal_answered(&self, saved: &mut Saved, units_max: usize) -> Sealed {
        let Sealed { done, attempts, .. } = self.sealed(saved, &[]);
        let narrow = |whole: usize| -> Vec<OffsetRange> {
            let from = whole.checked_sub(1).map_or(saved.base, |last| done[last].last + 1);
            let parts = done[whole..].iter().flat_map(|range| self.told_in(*range));
            done[..whole].iter().copied().chain(parts.filter(|part| part.first >= from)).collect()
        };
        let (mut low, mut high) = (0, done.len());
        while low < high {
            let middle = (low + high).div_ceil(2);
            let holds = metadata::holds(saved.base, &narrow(middle), &attempts, units_max);
            if holds { low = middle } else { high = middle - 1 }
        }
        if low < done.len() {
            let narrowed = narrow(low);
            let above = done[low].first;
            saved.done.retain(|range| range.first < above);
            saved.done.extend(narrowed[low..].iter());
            return mark(saved, Sealed { done: narrowed, attempts, is_tight: true });
        }
        mark(saved, Sealed { done, attempts, is_tight: true })
    }

    /// What was answered of a range that is done.
    fn told_in(&self, range: OffsetRange) -> impl Iterator<Item = OffsetRange> {
        let from = self.told.range(..=range.first).next_back().map_or(range.first, |(first, _)| *first);
        let within = self.told.range(from..=range.last).filter(move |(_, last)| **last >= range.first);
        within.map(move |(first, last)| OffsetRange { first: range.first.max(*first), last: range.last.min(*last) })
    }

    /// What a commit is to look at however much is done below it: ascending, not touching one another.
    pub(crate) fn kept(&self) -> Vec<OffsetRange> {
        let told = self.told.iter().map(|(first, last)| OffsetRange { first: *first, last: *last });
        let mut kept: Vec<OffsetRange> = told.collect();
        if self.is_waiting() || !self.told_attempts.is_empty() {
            let candidates = self.candidates();
            kept.extend(candidates.iter().map(|c| OffsetRange { first: c.offset, last: c.last }));
            kept.sort_unstable_by_key(|r| r.first);
            kept.dedup_by(|next, before| {
                let touches = next.first <= before.last.saturating_add(1);
                before.last = if touches { before.last.max(next.last) } else { before.last };
                touches
            });
        }
        kept
    }

    fn forget_below(&mut self, base: i64) {
        if self.told.first_key_value().is_some_and(|(first, _)| *first < base) {
            let above = self.told.split_off(&base);
            let crossing = self.told.pop_last().filter(|(_, last)| *last >= base);
            self.told = above;
            self.told.extend(crossing.map(|(_, last)| (base, last)));
        }
        if self.told_attempts.first().is_some_and(|offset| *offset < base) {
            self.told_attempts = self.told_attempts.split_off(&base);
        }
    }

    /// Ascending. A record whose attempts were promised, or are asked for, and that is done by now is one: its attempts go
    /// nowhere else.
    fn candidates(&self) -> Vec<Candidate> {
        let done = self.waits.iter().flat_map(|wait| &wait.done);
        let attempts = self.waits.iter().flat_map(|wait| &wait.attempts).map(|(offset, _)| *offset);
        let of = |offset, last, attempts| Candidate { offset, last, attempts };
        let mut all: Vec<Candidate> = done.map(|r| of(r.first, r.last, false)).collect();
        all.extend(attempts.flat_map(|offset| [of(offset, offset, true), of(offset, offset, false)]));
        all.extend(self.told_attempts.iter().map(|offset| of(*offset, *offset, false)));
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The done ranges with something that was told or is among these, and likewise the attempts.
    fn sealed(&self, saved: &Saved, candidates: &[Candidate]) -> Sealed {
        let mut told = self.told.iter().map(|(first, last)| (*first, *last)).peekable();
        let mut chosen = candidates.iter().filter(|c| !c.attempts).peekable();
        let mut sealed = Sealed::default();
        for range in &saved.done {
            while told.peek().is_some_and(|(_, last)| *last < range.first) {
                told.next();
            }
            // Candidates may lie over each other, so one that ends early may stand after one that ends late: none is lost,
            // for a later one begins later too.
            while chosen.peek().is_some_and(|c| c.last < range.first) {
                chosen.next();
            }
            let is_told = told.peek().is_some_and(|(first, _)| *first <= range.last);
            if is_told || chosen.peek().is_some_and(|c| c.offset <= range.last) {
                sealed.done.push(*range);
            }
        }
        let waits: BTreeSet<i64> = candidates.iter().filter(|c| c.attempts).map(|c| c.offset).collect();
        let durable = |one: &&Attempts| self.told_attempts.contains(&one.offset) || waits.contains(&one.offset);
        sealed.attempts.extend(saved.attempts.iter().filter(durable).map(|one| Attempts { durable: true, ..*one }));
        sealed
    }

    /// Nobody waits for others than these.
    fn keep_waits(&mut self, is_open: impl Fn(RequestId) -> bool) {
        self.waits.retain(|wait| is_open(wait.request));
    }

    /// Kafka acknowledged a commit. Gives the requests that have their part.
    fn stored(&mut self, flight: &Flight) -> Vec<RequestId> {
        let nothing = Sealed::default();
        let (base, sealed) = (flight.base, if flight.sealed.is_tight { &nothing } else { &flight.sealed });
        let mut waits = std::mem::take(&mut self.waits);
        let holds = |offset: i64| offset < base || sealed.covers(offset);
        let mut met = Vec::new();
        waits.retain_mut(|wait| {
            let mut left = Vec::new();
            for range in wait.done.drain(..) {
                self.tell_stored(range, base, sealed, &mut left);
            }
            wait.done = left;
            wait.attempts.retain(|(offset, count)| {
                let counted = sealed.count_of(*offset).is_some_and(|stored| stored >= *count);
                if counted {
                    self.told_attempts.insert(*offset);
                }
                !counted && !holds(*offset)
            });
            let is_met = wait.done.is_empty() && wait.attempts.is_empty();
            if is_met {
                met.push(wait.request);
            }
            !is_met
        });
        self.waits = waits;
        met
    }

    /// What of the range is stored is told from now on; the rest goes on waiting.
    fn tell_stored(&mut self, range: OffsetRange, base: i64, sealed: &Sealed, left: &mut Vec<OffsetRange>) {
        let mut from = range.first.max(base);
        let near = sealed.done.partition_point(|s| s.last < from);
        for stored in sealed.done[near..].iter().take_while(|s| s.first <= range.last) {
            if from < stored.first {
                left.push(OffsetRange { first: from, last: stored.first - 1 });
            }
            let told = OffsetRange { first: from.max(stored.first), last: range.last.min(stored.last) };
            self.tell(told);
            from = told.last + 1;
        }
        if from <= range.last {
            left.push(OffsetRange { first: from, last: range.last });
        }
    }
}

// === impl Sealed ===

impl Sealed {
    fn covers(&self, offset: i64) -> bool {
        let after = self.done.partition_point(|r| r.last < offset);
        self.done.get(after).is_some_and(|r| r.first <= offset)
    }

    fn count_of(&self, offset: i64) -> Option<u32> {
        self.attempts.binary_search_by_key(&offset, |a| a.offset).ok().map(|i| self.attempts[i].count)
    }
}

/// Marks the attempts that are sealed as durable.
fn mark(saved: &mut Saved, sealed: Sealed) -> Sealed {
    for one in &mut saved.attempts {
        one.durable = sealed.count_of(one.offset).is_some();
    }
    sealed
}

fn count(range: &OffsetRange) -> u64 {
    (range.last - range.first) as u64 + 1
}
