//! A segment: up to 256 records that came one after another, with what is known of each as bits.

use super::runs::Choice;
use crate::session::{bits_within, offsets_of};
use crate::types::{Millis, Record};

/// Records in a segment.
pub(crate) const SEGMENT_RECORDS: usize = 256;
const WORDS: usize = SEGMENT_RECORDS / 64;
/// Room for so many records is kept when all of them are done and more are to come.
const SPARE_ROOM: usize = 32;

/// A record that is not done.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) record: Record,
    pub(crate) received_at: Millis,
    pub(crate) attempts: u32,
    /// `Record::bytes`, computed once.
    pub(crate) bytes: u32,
}

/// One bit a record.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Bits([u64; WORDS]);

impl Bits {
    pub(crate) fn get(&self, i: usize) -> bool {
        self.0[i / 64] >> (i % 64) & 1 == 1
    }

    fn set(&mut self, i: usize) {
        self.0[i / 64] |= 1 << (i % 64);
    }

    fn clear(&mut self, i: usize) {
        self.0[i / 64] &= !(1 << (i % 64));
    }

    pub(crate) fn count(&self) -> usize {
        self.0.iter().map(|w| w.count_ones() as usize).sum()
    }

    /// These bits, of which the first stands at place `by`.
    fn shifted(bits: u128, by: usize) -> Self {
        let mut shifted = Self::default();
        let (word, bit) = (by / 64, by % 64);
        for (i, part) in [bits as u64, (bits >> 64) as u64].into_iter().enumerate().filter(|(_, part)| *part != 0) {
            if let Some(low) = shifted.0.get_mut(word + i) {
                *low |= part << bit;
            }
            if bit > 0
                && let Some(high) = shifted.0.get_mut(word + i + 1)
            {
                *high |= part >> (64 - bit);
            }
        }
        shifted
    }

    fn and(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] & other.0[i]))
    }

    /// Their places, ascending.
    fn places(self) -> impl Iterator<Item = usize> {
        (0..WORDS).flat_map(move |word| {
            let mut bits = self.0[word];
            std::iter::from_fn(move || {
                let i = (bits != 0).then(|| bits.trailing_zeros() as usize)?;
                bits &= bits - 1;
                Some(word * 64 + i)
            })
        })
    }

    /// The first bit that is clear, from `from` on.
    pub(crate) fn first_clear(&self, from: usize) -> Option<usize> {
        if from >= SEGMENT_RECORDS {
            return None;
        }
        let mut word = from / 64;
        let mut bits = !self.0[word] & (u64::MAX << (from % 64));
        loop {
            if bits != 0 {
                return Some(word * 64 + bits.trailing_zeros() as usize);
            }
            word += 1;
            if word == WORDS {
                return None;
            }
            bits = !self.0[word];
        }
    }
}

/// What was dealt of a segment.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Dealt {
    pub(crate) taken: u64,
    pub(crate) waiting: u64,
    pub(crate) is_stopped: bool,
}

#[derive(Debug)]
enum Offsets {
    /// Without holes: the n-th is `first + n`.
    Contiguous,
    Listed(Vec<i64>),
}

#[derive(Debug)]
enum Slots {
    /// From a place on; what was before is done.
    Dense { from: usize, slots: Vec<Option<Slot>> },
    /// By place, ascending.
    Sparse(Vec<(u16, Slot)>),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) first: i64,
    pub(crate) last: i64,
    pub(crate) len: usize,
    offsets: Offsets,
    slots: Slots,
    pub(crate) done: Bits,
    pub(crate) ready: Bits,
    pub(crate) leased: Bits,
    pub(crate) not_done: usize,
}

/// A segment, or what is left of one that is all done: its bounds.
#[derive(Debug)]
pub(crate) enum Stretch {
    Live(Box<Segment>),
    Done { first: i64, last: i64 },
}

impl Stretch {
    pub(crate) fn first(&self) -> i64 {
        match self {
            Self::Live(s) => s.first,
            Self::Done { first, .. } => *first,
        }
    }

    pub(crate) fn last(&self) -> i64 {
        match self {
            Self::Live(s) => s.last,
            Self::Done { last, .. } => *last,
        }
    }

    pub(crate) fn live(&self) -> Option<&Segment> {
        match self {
            Self::Live(s) => Some(s),
            Self::Done { .. } => None,
        }
    }

    pub(crate) fn live_mut(&mut self) -> Option<&mut Segment> {
        match self {
            Self::Live(s) => Some(s),
            Self::Done { .. } => None,
        }
    }
}

impl Segment {
    /// An empty one, with room for so many.
    pub(crate) fn new(first: i64, room: usize) -> Self {
        Self {
            first,
            last: first,
            len: 0,
            offsets: Offsets::Contiguous,
            slots: Slots::Dense { from: 0, slots: Vec::with_capacity(room.min(SEGMENT_RECORDS)) },
            done: Bits::default(),
            ready: Bits::default(),
            leased: Bits::default(),
            not_done: 0,
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len == SEGMENT_RECORDS
    }

    /// So many records come next.
    pub(crate) fn make_room(&mut self, count: usize) {
        if let Slots::Dense { slots, .. } = &mut self.slots {
            slots.reserve(count.min(SEGMENT_RECORDS - self.len));
        }
    }

    /// Appends a record that is ready.
    pub(crate) fn push(&mut self, slot: Slot) {
        let i = self.append(slot.record.offset);
        self.ready.set(i);
        self.not_done += 1;
        match &mut self.slots {
            Slots::Dense { slots, .. } => slots.push(Some(slot)),
            Slots::Sparse(slots) => slots.push((i as u16, slot)),
        }
    }

    /// Appends a record that is done.
    pub(crate) fn push_done(&mut self, offset: i64) {
        let i = self.append(offset);
        self.done.set(i);
        if let Slots::Dense { slots, .. } = &mut self.slots {
            slots.push(None);
        }
    }

    /// Gives the place.
    fn append(&mut self, offset: i64) -> usize {
        let i = self.len;
        let contiguous = i == 0 || offset == self.last + 1;
        if let Offsets::Listed(list) = &mut self.offsets {
            list.push(offset);
        } else if !contiguous {
            let mut list: Vec<i64> = (0..i as i64).map(|n| self.first + n).collect();
            list.push(offset);
            self.offsets = Offsets::Listed(list);
        }
        self.last = offset;
        self.len += 1;
        i
    }

    pub(crate) fn offset(&self, i: usize) -> i64 {
        match &self.offsets {
            Offsets::Contiguous => self.first + i as i64,
            Offsets::Listed(list) => list[i],
        }
    }

    pub(crate) fn find(&self, offset: i64) -> Option<usize> {
        if offset < self.first || offset > self.last {
            return None;
        }
        match &self.offsets {
            Offsets::Contiguous => Some((offset - self.first) as usize),
            Offsets::Listed(list) => list.binary_search(&offset).ok(),
        }
    }

    pub(crate) fn slot(&self, i: usize) -> Option<&Slot> {
        match &self.slots {
            Slots::Dense { from, slots } => slots.get(i.checked_sub(*from)?)?.as_ref(),
            Slots::Sparse(slots) => slots.binary_search_by_key(&(i as u16), |s| s.0).ok().map(|at| &slots[at].1),
        }
    }

    pub(crate) fn slot_mut(&mut self, i: usize) -> Option<&mut Slot> {
        match &mut self.slots {
            Slots::Dense { from, slots } => slots.get_mut(i.checked_sub(*from)?)?.as_mut(),
            Slots::Sparse(slots) => slots.binary_search_by_key(&(i as u16), |s| s.0).ok().map(|at| &mut slots[at].1),
        }
    }

    /// Makes a record done and gives its slot, whose bytes are freed with it.
    pub(crate) fn finish(&mut self, i: usize) -> Option<Slot> {
        let slot = match &mut self.slots {
            Slots::Dense { from, slots } => slots.get_mut(i.checked_sub(*from)?)?.take(),
            Slots::Sparse(slots) => slots.binary_search_by_key(&(i as u16), |s| s.0).ok().map(|at| slots.remove(at).1),
        }?;
        self.done.set(i);
        self.ready.clear(i);
        self.leased.clear(i);
        self.not_done -= 1;
        self.thin_out();
        Some(slot)
    }

    /// Which of these offsets (`base` and the place of each bit, the first at or above the segment's) are leased here. What
    /// was looked at goes from `bits`: all that lies in the segment, and at least the first.
    pub(crate) fn leased_among(&self, base: i64, bits: &mut u128) -> Bits {
        let here = bits_within(base, *bits, self.first, self.last);
        let lowest = *bits & bits.wrapping_neg();
        *bits &= !(here | lowest);
        let run = match &self.offsets {
            Offsets::Contiguous if base >= self.first => Bits::shifted(here, (base - self.first) as usize),
            Offsets::Contiguous => Bits::shifted(here.checked_shr((self.first - base) as u32).unwrap_or(0), 0),
            Offsets::Listed(list) => {
                let (mut run, mut next) = (Bits::default(), 0);
                for offset in offsets_of(base, here) {
                    let place = if list.get(next) == Some(&offset) { Ok(next) } else { list.binary_search(&offset) };
                    if let Ok(i) = place {
                        run.set(i);
                        next = i + 1;
                    }
                }
                run
            }
        };
        run.and(self.leased)
    }

    /// Makes these done, none of which is, and frees them; each is looked at before.
    pub(crate) fn finish_all(&mut self, run: &Bits, mut last_look: impl FnMut(&Slot)) {
        match &mut self.slots {
            Slots::Dense { from, slots } => {
                for i in run.places() {
                    let Some(place) = i.checked_sub(*from).and_then(|i| slots.get_mut(i)) else { continue };
                    if let Some(slot) = place {
                        last_look(slot);
                        *place = None;
                    }
                }
            }
            Slots::Sparse(slots) => slots.retain(|(i, slot)| {
                let ends = run.get(usize::from(*i));
                if ends {
                    last_look(slot);
                }
                !ends
            }),
        }
        for (word, bits) in run.0.iter().enumerate() {
            self.done.0[word] |= bits;
            self.ready.0[word] &= !bits;
            self.leased.0[word] &= !bits;
        }
        self.not_done -= run.count();
        self.thin_out();
    }

    /// A segment that is mostly done gives back the room of what is gone. One that more records go into stays dense, since
    /// those would be searched for and moved one by one.
    fn thin_out(&mut self) {
        if self.not_done == 0 {
            self.empty();
        } else if self.is_full()
            && self.not_done * 8 <= self.len
            && let Slots::Dense { from, slots } = &mut self.slots
        {
            let places = *from..;
            let rest = places.zip(slots).filter_map(|(i, s)| s.take().map(|s| (i as u16, s)));
            self.slots = Slots::Sparse(rest.collect());
        }
    }

    fn empty(&mut self) {
        match &mut self.slots {
            Slots::Dense { from, slots } if slots.capacity() <= SPARE_ROOM => {
                *from = self.len;
                slots.clear();
            }
            _ => self.slots = Slots::Dense { from: self.len, slots: Vec::new() },
        }
    }

    /// See `Ledger::deal`.
    pub(crate) fn deal(&mut self, count_max: u64, mut choose: impl FnMut(usize, &Slot) -> Choice) -> Dealt {
        let mut dealt = Dealt::default();
        for word in 0..WORDS {
            let (mut unseen, mut taken, mut waiting) = (self.ready.0[word], 0u64, 0u64);
            let mut left = count_max - dealt.taken;
            while unseen != 0 && left > 0 && !dealt.is_stopped {
                let i = unseen.trailing_zeros() as usize;
                unseen &= unseen - 1;
                let Some(slot) = self.slot(word * 64 + i) else { continue };
                match choose(word * 64 + i, slot) {
                    Choice::Take => {
                        taken |= 1 << i;
                        left -= 1;
                    }
                    Choice::Wait => waiting |= 1 << i,
                    Choice::Pass => {}
                    Choice::Stop => dealt.is_stopped = true,
                }
            }
            self.ready.0[word] &= !(taken | waiting);
            self.leased.0[word] |= taken;
            dealt.taken += u64::from(taken.count_ones());
            dealt.waiting += u64::from(waiting.count_ones());
            if left == 0 || dealt.is_stopped {
                break;
            }
        }
        dealt
    }

    pub(crate) fn lease(&mut self, i: usize) {
        self.ready.clear(i);
        self.leased.set(i);
    }

    pub(crate) fn make_ready(&mut self, i: usize) {
        self.leased.clear(i);
        self.ready.set(i);
    }

    pub(crate) fn is_at_work(&self, i: usize) -> bool {
        self.ready.get(i) || self.leased.get(i)
    }

    /// Neither ready nor leased nor done: it waits.
    pub(crate) fn make_waiting(&mut self, i: usize) {
        self.leased.clear(i);
        self.ready.clear(i);
    }
}
