//! Who owns what of one subscription, as far as this node knows. Pure. Stale knowledge costs a STALE_EPOCH or a redelivery.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use sluice_core::{Epoch, TopicPartition};
use sluice_kafka::MissingRights;

use crate::peer::OwnerId;
use crate::peer::queue::Conn;

/// A lease's partition and epoch: what says who settles it.
pub(crate) type Place = (TopicPartition, Epoch);

/// A node that owns something, or may.
#[derive(Debug, Default)]
pub(crate) struct Owner {
    /// Connections that are up; of this node: none.
    pub(crate) conns: BTreeMap<usize, Conn>,
    pub(crate) places: HashMap<Place, u64>,
    /// It shuts down: no new session there.
    pub(crate) draining: bool,
    /// Clients of this subscription that landed there.
    pub(crate) streams: u64,
    /// It is a member of the group, or on its way in or out.
    pub(crate) member: bool,
    /// Kafka does not answer it, or refuses it.
    pub(crate) away: bool,
    /// What Kafka does not let it read.
    pub(crate) missing: MissingRights,
}

/// What of an owner counts for a client's sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    /// A session there has a meaning.
    pub(crate) owns: bool,
    /// It has something ready.
    pub(crate) active: bool,
    pub(crate) draining: bool,
}

/// All of them. This node is always there.
#[derive(Debug)]
pub(crate) struct Owners {
    all: BTreeMap<OwnerId, Owner>,
    /// From a lease to who settles it.
    routes: HashMap<Place, OwnerId>,
    topic: Option<Arc<str>>,
}

impl Owner {
    pub(crate) fn standing(&self) -> Standing {
        let active = self.places.values().any(|backlog| *backlog > 0);
        let owns = self.places.keys().any(|(partition, _)| self.missing.may_read(&partition.topic));
        Standing { owns, active, draining: self.draining }
    }
}

impl Owners {
    pub(crate) fn new() -> Self {
        Self { all: BTreeMap::from([(OwnerId::SELF, Owner::default())]), routes: HashMap::new(), topic: None }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (OwnerId, &Owner)> {
        self.all.iter().map(|(id, owner)| (*id, owner))
    }

    pub(crate) fn get(&self, id: OwnerId) -> Option<&Owner> {
        self.all.get(&id)
    }

    /// The owner; it is there from now on.
    pub(crate) fn entry(&mut self, id: OwnerId) -> &mut Owner {
        self.all.entry(id).or_default()
    }

    /// The peer is gone: what was known of it.
    pub(crate) fn remove(&mut self, id: OwnerId) -> Option<Owner> {
        self.routes.retain(|_, owner| *owner != id);
        self.all.remove(&id)
    }

    /// The owner's own word about what it has.
    pub(crate) fn set_places(&mut self, id: OwnerId, places: HashMap<Place, u64>) {
        self.routes.retain(|place, owner| *owner != id || places.contains_key(place));
        self.routes.extend(places.keys().map(|place| (place.clone(), id)));
        self.entry(id).places = places;
    }

    /// A place by its names on the wire; the topic's name is nearly always the one before.
    pub(crate) fn place(&mut self, topic: &str, partition: i32, epoch: Epoch) -> Place {
        let topic = match &self.topic {
            Some(known) if **known == *topic => known.clone(),
            _ => self.topic.insert(topic.into()).clone(),
        };
        (TopicPartition { topic, partition }, epoch)
    }

    /// The owner dealt something of a place that it has not told of yet.
    pub(crate) fn learn(&mut self, id: OwnerId, place: &Place) {
        if self.routes.get(place) != Some(&id) {
            self.routes.insert(place.clone(), id);
        }
    }

    pub(crate) fn route(&self, place: &Place) -> Option<OwnerId> {
        self.routes.get(place).copied()
    }

    /// What Kafka does not let somebody read, where that is all of the subscription and nobody owns anything that may be read.
    pub(crate) fn missing(&self) -> Option<&MissingRights> {
        let missing = self.all.values().map(|owner| &owner.missing).find(|missing| missing.whole)?;
        self.all.values().all(|owner| !owner.standing().owns).then_some(missing)
    }

    pub(crate) fn standings(&self) -> BTreeMap<OwnerId, Standing> {
        self.all.iter().map(|(id, owner)| (*id, owner.standing())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(partition: i32, epoch: i64) -> Place {
        (TopicPartition::new("t", partition), Epoch(epoch))
    }

    #[test]
    fn a_lease_is_settled_where_its_epoch_lives() {
        let (a, b) = (OwnerId(1), OwnerId(2));
        let mut owners = Owners::new();
        owners.set_places(a, HashMap::from([(place(0, 5), 0), (place(1, 6), 3)]));
        assert_eq!((owners.route(&place(0, 5)), owners.route(&place(0, 9))), (Some(a), None));
        assert!(owners.get(a).unwrap().standing().active);
        owners.learn(b, &place(0, 9));
        owners.set_places(a, HashMap::from([(place(1, 6), 0)]));
        assert_eq!((owners.route(&place(0, 5)), owners.route(&place(0, 9))), (None, Some(b)));
        owners.remove(a);
        assert_eq!(owners.route(&place(1, 6)), None);
    }

    #[test]
    fn what_may_not_be_read_is_owned_by_nobody_and_settled_all_the_same() {
        let (a, b) = (OwnerId(1), OwnerId(2));
        let mut owners = Owners::new();
        owners.set_places(a, HashMap::from([(place(0, 5), 3)]));
        assert_eq!(owners.missing(), None);
        let missing = MissingRights { group: None, topics: vec!["t".to_owned()], whole: true };
        owners.entry(a).missing = missing.clone();
        assert!(!owners.get(a).unwrap().standing().owns);
        assert_eq!((owners.missing(), owners.route(&place(0, 5))), (Some(&missing), Some(a)));
        // Another node may, or of another topic.
        owners.set_places(b, HashMap::from([(place(1, 6), 0)]));
        assert_eq!(owners.missing(), None);
        owners.set_places(b, HashMap::new());
        owners.set_places(a, HashMap::from([(place(0, 5), 3), ((TopicPartition::new("u", 0), Epoch(7)), 0)]));
        assert_eq!(owners.missing(), None);
    }
}
