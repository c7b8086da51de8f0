//! The numbers of a client's frames, and which of an owner's frames each of them was. Pure.

use std::collections::{BTreeMap, VecDeque};

use crate::peer::OwnerId;

/// So many frames an owner are remembered in any case: a client may write with a `seen` that is a little old.
const REMEMBERED_MIN: usize = 64;
/// And never more. An older `seen` then means none of the owner's frames.
const REMEMBERED_MAX: usize = 1 << 16;
/// Above this a client's word for what it has seen is not believed: the numbering must be able to go on.
const SEEN_MAX: u64 = u64::MAX / 2;

/// (The client's number, the owner's), both rising.
type Pairs = VecDeque<(u64, u64)>;

/// See the module.
#[derive(Debug)]
pub(crate) struct Numbers {
    last: u64,
    owners: BTreeMap<OwnerId, Pairs>,
}

impl Numbers {
    /// `seen`: what the client received before, by any node.
    pub(crate) fn new(seen: u64) -> Self {
        Self { last: seen.min(SEEN_MAX), owners: BTreeMap::new() }
    }

    /// An owner at which the session was dealt frames up to this one already.
    pub(crate) fn add(&mut self, owner: OwnerId, sequence: u64) {
        let pairs = self.owners.entry(owner).or_default();
        pairs.clear();
        if sequence > 0 {
            pairs.push_back((0, sequence));
        }
    }

    pub(crate) fn remove(&mut self, owner: OwnerId) {
        self.owners.remove(&owner);
    }

    /// The client's number for the owner's next frame.
    pub(crate) fn next(&mut self, owner: OwnerId, sequence: u64) -> u64 {
        self.last += 1;
        let pairs = self.owners.entry(owner).or_default();
        if pairs.len() == REMEMBERED_MAX {
            pairs.pop_front();
        }
        pairs.push_back((self.last, sequence));
        self.last
    }

    /// The owner's last frame of those that the client had seen; `None`: it had seen none of them.
    pub(crate) fn seen(&mut self, owner: OwnerId, seen: u64) -> Option<u64> {
        let pairs = self.owners.get_mut(&owner)?;
        let count = pairs.partition_point(|(client, _)| *client <= seen);
        let found = pairs.get(count.checked_sub(1)?).map(|(_, sequence)| *sequence);
        let old = (count - 1).min(pairs.len().saturating_sub(REMEMBERED_MIN));
        pairs.drain(..old);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: OwnerId = OwnerId(1);
    const B: OwnerId = OwnerId(2);

    #[test]
    fn frames_of_several_owners_are_numbered_in_one_row() {
        let mut numbers = Numbers::new(0);
        assert_eq!([numbers.next(A, 1), numbers.next(B, 1), numbers.next(A, 2)], [1, 2, 3]);
        assert_eq!((numbers.seen(A, 1), numbers.seen(B, 1)), (Some(1), None));
        assert_eq!((numbers.seen(A, 2), numbers.seen(B, 2)), (Some(1), Some(1)));
        assert_eq!((numbers.seen(A, 3), numbers.seen(B, 9)), (Some(2), Some(1)));
        assert_eq!(numbers.seen(A, 0), None, "not even the first");
    }

    #[test]
    fn what_was_dealt_before_a_resume_was_seen() {
        let mut numbers = Numbers::new(40);
        numbers.add(A, 7);
        assert_eq!(numbers.seen(A, 40), Some(7));
        assert_eq!(numbers.next(A, 8), 41);
        assert_eq!((numbers.seen(A, 40), numbers.seen(A, 41)), (Some(7), Some(8)));
        numbers.add(A, 0);
        assert_eq!(numbers.seen(A, 41), None, "another session");
    }

    #[test]
    fn numbering_can_go_on_whatever_a_client_says() {
        assert_eq!(Numbers::new(u64::MAX).next(A, 1), SEEN_MAX + 1);
    }

    #[test]
    fn old_frames_are_forgotten_but_not_the_last() {
        let mut numbers = Numbers::new(0);
        for sequence in 1..=1_000 {
            numbers.next(A, sequence);
        }
        assert_eq!(numbers.seen(A, 990), Some(990));
        assert_eq!(numbers.owners[&A].len(), REMEMBERED_MIN);
        assert_eq!((numbers.seen(A, 960), numbers.seen(A, 100)), (Some(960), None));
    }
}
