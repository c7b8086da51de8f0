//! Requests of a client that wait for the answers of owners. Pure.

use std::collections::BTreeMap;

use sluice_core::{Leases, RejectReason, Rejection};
use sluice_proto::v1;

use super::handle::Rejected;
use crate::peer::OwnerId;
use crate::session::encode;

/// Ranges in requests that are not answered yet, a client. Beyond it the client asks faster than Kafka answers.
pub(crate) const PENDING_RANGES_MAX: usize = 1 << 18;

/// An answer is complete: the client's `request_id`, and what changed nothing.
pub(crate) type Answer = (u64, Vec<v1::Rejection>);

/// One request.
#[derive(Debug)]
struct Waiting {
    request_id: u64,
    /// Who has not answered, and what it was asked to settle.
    owners: BTreeMap<OwnerId, Vec<Leases>>,
    rejections: Vec<v1::Rejection>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    requests: BTreeMap<u64, Waiting>,
    tickets: u64,
    ranges: usize,
}

fn ranges(leases: &[Leases]) -> usize {
    leases.iter().map(|one| one.offsets.len().max(1)).sum()
}

impl Pending {
    /// A request to these owners. Gives the number under which they are asked; `None`: too much waits.
    pub(crate) fn begin(
        &mut self,
        request_id: u64,
        owners: BTreeMap<OwnerId, Vec<Leases>>,
        rejections: Vec<v1::Rejection>,
    ) -> Option<u64> {
        let more: usize = 1 + owners.values().map(|leases| ranges(leases)).sum::<usize>();
        if self.ranges + more > PENDING_RANGES_MAX {
            return None;
        }
        self.ranges += more;
        self.tickets += 1;
        self.requests.insert(self.tickets, Waiting { request_id, owners, rejections });
        Some(self.tickets)
    }

    /// An owner answered.
    pub(crate) fn answered(&mut self, owner: OwnerId, ticket: u64, rejections: Vec<v1::Rejection>) -> Option<Answer> {
        let waiting = self.requests.get_mut(&ticket)?;
        let asked = waiting.owners.remove(&owner)?;
        self.ranges -= ranges(&asked);
        waiting.rejections.extend(rejections);
        self.complete(ticket)
    }

    /// An owner will not answer any more: what it was asked to settle may be stored or not.
    pub(crate) fn lost(&mut self, owner: OwnerId, rejected: &Rejected) -> Vec<Answer> {
        let mut touched = Vec::new();
        for (ticket, waiting) in &mut self.requests {
            let Some(asked) = waiting.owners.remove(&owner) else { continue };
            self.ranges -= ranges(&asked);
            asked.iter().for_each(|_| rejected.count(v1::RejectReason::StaleEpoch));
            let stale = |leases| encode::rejection(Rejection { leases, reason: RejectReason::StaleEpoch });
            waiting.rejections.extend(asked.into_iter().map(stale));
            touched.push(*ticket);
        }
        touched.into_iter().filter_map(|ticket| self.complete(ticket)).collect()
    }

    fn complete(&mut self, ticket: u64) -> Option<Answer> {
        self.requests.get(&ticket).filter(|waiting| waiting.owners.is_empty())?;
        let waiting = self.requests.remove(&ticket)?;
        self.ranges -= 1;
        Some((waiting.request_id, waiting.rejections))
    }

    /// Whether this owner is asked for something.
    pub(crate) fn waits_for(&self, owner: OwnerId) -> bool {
        self.requests.values().any(|waiting| waiting.owners.contains_key(&owner))
    }
}

#[cfg(test)]
mod tests {
    use sluice_core::{Epoch, OffsetRange, TopicPartition};

    use super::*;

    const A: OwnerId = OwnerId(1);
    const B: OwnerId = OwnerId(2);

    fn leases(partition: i32) -> Leases {
        let offsets = vec![OffsetRange { first: 3, last: 5 }];
        Leases { partition: TopicPartition::new("t", partition), epoch: Epoch(7), offsets }
    }

    #[test]
    fn a_request_is_answered_when_all_owners_have_answered() {
        let mut pending = Pending::default();
        let owners = BTreeMap::from([(A, vec![leases(0)]), (B, vec![leases(1)])]);
        let ticket = pending.begin(9, owners, Vec::new()).unwrap();
        assert_eq!(pending.answered(A, ticket, Vec::new()), None);
        assert_eq!(pending.answered(A, ticket, Vec::new()), None, "once");
        assert!(pending.waits_for(B) && !pending.waits_for(A));
        assert_eq!(pending.answered(B, ticket, Vec::new()), Some((9, Vec::new())));
        assert_eq!((pending.answered(B, ticket, Vec::new()), pending.ranges), (None, 0));
    }

    #[test]
    fn what_a_lost_owner_was_asked_may_come_again_and_the_client_hears_so() {
        let mut pending = Pending::default();
        let owners = BTreeMap::from([(A, vec![leases(0)]), (B, vec![leases(1)])]);
        let both = pending.begin(1, owners, Vec::new()).unwrap();
        pending.begin(2, BTreeMap::from([(A, vec![leases(2)])]), Vec::new()).unwrap();
        let stale =
            |partition| encode::rejection(Rejection { leases: leases(partition), reason: RejectReason::StaleEpoch });
        assert_eq!(pending.lost(A, &Rejected::default()), [(2, vec![stale(2)])]);
        assert_eq!(pending.answered(B, both, Vec::new()), Some((1, vec![stale(0)])));
        assert_eq!(pending.ranges, 0);
    }

    #[test]
    fn too_much_that_waits_is_refused() {
        let mut pending = Pending::default();
        let ask = |pending: &mut Pending| pending.begin(1, BTreeMap::from([(A, vec![leases(0)])]), Vec::new());
        let asked = (0..PENDING_RANGES_MAX).take_while(|_| ask(&mut pending).is_some()).count();
        assert_eq!(asked, PENDING_RANGES_MAX / 2);
    }
}
