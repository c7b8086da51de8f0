//! Lanes: records that are worked one after another, in the order of their offsets.
//!
//! A lane is a key of the partition, or the partition. Its head, the first record that is not done, is the only one that
//! is ever ready, leased or waiting for its retry; those behind it wait here and cost eight bytes each. A lane exists
//! as long as it has a head, so what is kept follows what is not done, not the number of keys ever seen.
//!
//! Two keys with the same hash share a lane: they wait for each other, and nothing worse.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, DefaultHasher, Hasher};

use super::Slot;
use crate::policy::Ordering;

/// What a lane costs: an entry of 48 bytes in a table that is up to 7/16 full after it grew, and a queue's first room.
pub(crate) const LANE_BYTES: u64 = 160;
/// What a record behind the head costs: eight bytes in a queue that is up to half full after it grew.
pub(crate) const LANE_WAITING_BYTES: u64 = 16;
/// Room for so many is never given back before the partition is.
const ROOM_MIN: usize = 64;

/// All lanes of a partition.
#[derive(Debug)]
pub(crate) struct Lanes {
    by_key: bool,
    lanes: HashMap<u64, Lane, BuildHasherDefault<Hashed>>,
    /// Records behind a head.
    waiting: u64,
}

/// Sequences of what is not done in a lane.
#[derive(Debug)]
struct Lane {
    head: u64,
    /// Ascending.
    behind: VecDeque<u64>,
}

/// A lane's number is a hash already.
#[derive(Debug, Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }

    fn write(&mut self, _: &[u8]) {
        debug_assert!(false, "lanes are numbered by u64");
    }
}

// === impl Lanes ===

impl Lanes {
    /// `None`: nothing has an order, and nothing is kept.
    pub(crate) fn new(ordering: Ordering) -> Option<Box<Self>> {
        let by_key = match ordering {
            Ordering::None => return None,
            Ordering::Key => true,
            Ordering::Partition => false,
        };
        Some(Box::new(Self { by_key, lanes: HashMap::default(), waiting: 0 }))
    }

    /// The lane of a record with this key. A null key has none; an empty one has. The hash has no seed: a run can be repeated, and
    /// nothing of it leaves the process.
    pub(super) fn of(&self, key: Option<&[u8]>) -> Option<u64> {
        if !self.by_key {
            return Some(0);
        }
        let mut hasher = DefaultHasher::new();
        hasher.write(key?);
        Some(hasher.finish())
    }

    /// A record of this lane with this sequence, above all that came before. Whether it may be worked now.
    pub(super) fn join(&mut self, lane: Option<u64>, sequence: u64) -> bool {
        let Some(number) = lane else { return true };
        match self.lanes.entry(number) {
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(Lane { head: sequence, behind: VecDeque::new() });
                true
            }
            std::collections::hash_map::Entry::Occupied(mut lane) => {
                lane.get_mut().behind.push_back(sequence);
                self.waiting += 1;
                false
            }
        }
    }

    /// The record is done. Gives the sequence of the one whose turn it is by that.
    pub(super) fn leave(&mut self, lane: Option<u64>, sequence: u64) -> Option<u64> {
        let number = lane?;
        let lane = self.lanes.get_mut(&number)?;
        if lane.head != sequence {
            // Done out of its turn: nobody worked it.
            if let Ok(place) = lane.behind.binary_search(&sequence) {
                lane.behind.remove(place);
                self.waiting -= 1;
            }
            return None;
        }
        let Some(next) = lane.behind.pop_front() else {
            self.lanes.remove(&number);
            if is_roomy(self.lanes.capacity(), self.lanes.len()) {
                self.lanes.shrink_to(self.lanes.len() * 2);
            }
            return None;
        };
        lane.head = next;
        self.waiting -= 1;
        if is_roomy(lane.behind.capacity(), lane.behind.len()) {
            lane.behind.shrink_to(lane.behind.len() * 2);
        }
        Some(next)
    }

    /// Whether nothing before this record of the lane, which is not done, holds it up.
    pub(super) fn has_turn(&self, lane: Option<u64>, sequence: u64) -> bool {
        let lane = lane.and_then(|number| self.lanes.get(&number));
        lane.is_none_or(|lane| lane.head == sequence)
    }

    pub(crate) fn waiting(&self) -> u64 {
        self.waiting
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.lanes.len() as u64 * LANE_BYTES + self.waiting * LANE_WAITING_BYTES
    }

    #[cfg(test)]
    pub(crate) fn room(&self) -> usize {
        self.lanes.capacity()
    }

    /// Invariant 6 from these records, which are all that are not done, ascending: sequence, record, and whether it is
    /// ready or leased. Gives what is wrong.
    pub(crate) fn check<'a>(&self, records: impl Iterator<Item = (u64, Slot<'a>, bool)>) -> Result<(), String> {
        let mut found: HashMap<u64, Vec<u64>> = HashMap::new();
        for (sequence, slot, at_work) in records {
            let Some(number) = self.of(slot.key()) else { continue };
            let lane = found.entry(number).or_default();
            lane.push(sequence);
            if at_work && lane.len() > 1 {
                return Err(format!("offset {} is ready or leased before its turn", slot.offset()));
            }
        }
        let kept: HashMap<u64, Vec<u64>> = self
            .lanes
            .iter()
            .map(|(number, lane)| (*number, [lane.head].iter().chain(&lane.behind).copied().collect()))
            .collect();
        let behind = self.lanes.values().map(|lane| lane.behind.len() as u64).sum::<u64>();
        if kept != found {
            return Err(format!("lanes {kept:?}, the records make {found:?}"));
        }
        if behind == self.waiting { Ok(()) } else { Err(format!("{behind} wait, counted {}", self.waiting)) }
    }
}

fn is_roomy(capacity: usize, len: usize) -> bool {
    capacity > ROOM_MIN && capacity > len * 4
}
