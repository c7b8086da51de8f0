//! Which nodes are members of a subscription's Kafka group: it does not follow clients. Pure.
//!
//! While any node has a client of the subscription, its members are the first min(nodes, partitions) by rendezvous hash: more
//! would hold nothing, and would make every rebalance larger. A node knows the partitions from what owners say they have; while
//! nobody has any, one member is enough to find out. Nodes may disagree for a while. That costs a rebalance and no record, and a
//! partition that nobody has for twice Kafka's session timeout makes every node that sees it a member.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use sluice_core::TopicPartition;
use tokio::time::Instant;

use super::owners::{Owner, Owners};
use crate::peer::OwnerId;

/// A node that has just started listens for the others this long before it thinks that it is alone.
const START_WAIT: Duration = Duration::from_secs(1);
/// A node that comes later counts when it has run this long: one that comes and goes moves nothing. Nodes that began within this
/// of the oldest count at once. All nodes see the same, the one that came too.
const ALIVE_FOR: Duration = Duration::from_secs(10);
/// A peer that is gone counts for so long after: a connection that is made again moves nothing.
const GONE_FOR: Duration = Duration::from_secs(2);
/// A partition that no owner has told of for this long is forgotten.
const REMEMBERED_FOR: Duration = Duration::from_secs(120);
/// Who became a member because a partition had none stays one for so long.
const REGARDLESS_FOR: Duration = Duration::from_secs(60);

/// What it is decided by.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) subscription: Arc<str>,
    /// This node's address among its peers.
    pub(crate) address: Arc<str>,
    /// `None`: members whether there are clients or not.
    pub(crate) leave_delay: Option<Duration>,
    pub(crate) kafka_session_timeout: Duration,
    /// Members are static: one that is away is one until its session, this long, is over, and takes its place again when it is back.
    pub(crate) static_session: Option<Duration>,
}

#[derive(Debug)]
struct Peer {
    address: Arc<str>,
    since: Instant,
    gone: Option<Instant>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Members {
    settings: Settings,
    started: Instant,
    peers: BTreeMap<OwnerId, Peer>,
    /// When somebody had clients last.
    clients_at: Option<Instant>,
    /// Since when somebody has.
    clients_since: Option<Instant>,
    /// When each partition was owned last.
    partitions: HashMap<TopicPartition, Instant>,
    regardless_until: Option<Instant>,
    /// Peers that Kafka does not answer though it answers this node, and since when.
    away: BTreeMap<OwnerId, Instant>,
    /// How many there are, as Kafka says; 0: not known.
    known: usize,
    told: Option<bool>,
}

/// FNV-1a with the finalizer of MurmurHash3: the same on every node, whatever it was built with.
fn hash(subscription: &str, address: &str) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in subscription.bytes().chain([0]).chain(address.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

// === impl Members ===

impl Members {
    pub(crate) fn new(settings: Settings, now: Instant) -> Self {
        Self {
            settings,
            started: now,
            peers: BTreeMap::new(),
            clients_at: None,
            clients_since: None,
            partitions: HashMap::new(),
            regardless_until: None,
            away: BTreeMap::new(),
            known: 0,
            told: None,
        }
    }

    /// A peer is there, which has run since then.
    pub(crate) fn up(&mut self, owner: OwnerId, address: Arc<str>, since: Instant) {
        // The same node on another connection, or again.
        let before = self.peers.iter().find(|(other, peer)| **other != owner && peer.address == address);
        let before = before.map(|(_, peer)| peer.since).filter(|_| self.settings.static_session.is_some());
        self.peers.retain(|other, peer| *other == owner || peer.address != address);
        let since = before.map_or(since, |before| before.min(since));
        let peer = self.peers.entry(owner).or_insert_with(|| Peer { address, since, gone: None });
        peer.gone = None;
    }

    /// A peer is gone, for now; for good when it had drained. A static member keeps its place all the same.
    pub(crate) fn gone(&mut self, owner: OwnerId, drained: bool, now: Instant) {
        // Who is replaced stays replaced while nothing is heard of it.
        if self.is_away(owner, now) || (drained && self.settings.static_session.is_none()) {
            self.peers.remove(&owner);
        } else if let Some(peer) = self.peers.get_mut(&owner) {
            peer.gone = Some(now);
        }
    }

    /// So many partitions are there, as Kafka says.
    pub(crate) fn partitions(&mut self, known: usize) {
        self.known = known;
    }

    /// Whether to be a member; `None`: as before.
    pub(crate) fn think(&mut self, now: Instant, clients: u64, owners: &Owners) -> Option<bool> {
        self.look(now, clients, owners);
        self.look_who_is_away(now, owners);
        if now < self.started + START_WAIT {
            return None;
        }
        // Partitions of a static member that is away have no owner, and one that is back has to know of them.
        let known = if self.settings.static_session.is_some() { self.known } else { 0 };
        let limit = self.partitions.len().max(known).max(1);
        // Who comes for another waits until that one has left: there are never more than there should be.
        let is_other = |id: OwnerId| id != OwnerId::SELF && !self.is_away(id, now);
        let others = owners.iter().filter(|(id, owner)| is_other(*id) && owner.member).count();
        let has_place = self.told == Some(true) || others < limit;
        let is_called = self.is_first(owners, limit, now) && has_place;
        let wanted = self.has_clients(now) && (is_called || self.is_regardless(now));
        (self.told.replace(wanted) != Some(wanted)).then_some(wanted)
    }

    fn look(&mut self, now: Instant, clients: u64, owners: &Owners) {
        let gone_for = self.settings.static_session.unwrap_or(GONE_FOR);
        self.peers.retain(|_, peer| peer.gone.is_none_or(|gone| now < gone + gone_for));
        if clients > 0 || owners.iter().any(|(_, owner)| owner.streams > 0) {
            self.clients_at = Some(now);
        }
        let owned: BTreeSet<&TopicPartition> =
            owners.iter().flat_map(|(_, owner)| owner.places.keys().map(|(partition, _)| partition)).collect();
        for partition in owned {
            match self.partitions.get_mut(partition) {
                Some(at) => *at = now,
                None => drop(self.partitions.insert(partition.clone(), now)),
            }
        }
        self.partitions.retain(|_, at| now < *at + REMEMBERED_FOR);
        self.clients_since = self.has_clients(now).then(|| self.clients_since.unwrap_or(now));
        let without = 2 * self.settings.kafka_session_timeout;
        // Before that nobody was meant to have any.
        let long_wanted = self.clients_since.is_some_and(|since| since.max(self.started + START_WAIT) + without <= now);
        let orphaned = self.partitions.values().any(|at| *at + without <= now);
        if long_wanted && (orphaned || self.partitions.is_empty()) && self.regardless_until.is_none() {
            self.regardless_until = Some(now + REGARDLESS_FOR);
        }
        // Others have all of them: there is nothing to be had.
        let is_elsewhere = |partition: &TopicPartition| {
            let has = |(id, owner): (OwnerId, &Owner)| {
                id != OwnerId::SELF && owner.places.keys().any(|(place, _)| place == partition)
            };
            owners.iter().any(has)
        };
        let settled = !self.partitions.is_empty() && self.partitions.keys().all(is_elsewhere);
        self.regardless_until = self.regardless_until.filter(|until| now < *until && !settled);
    }

    /// When Kafka answers nobody, nobody is away.
    fn look_who_is_away(&mut self, now: Instant, owners: &Owners) {
        let well = owners.get(OwnerId::SELF).is_some_and(|own| !own.away);
        // One look of ours that fails moves nobody back, and neither does a link that is made again.
        let stays = |id: OwnerId| self.is_away(id, now);
        let known = owners.iter().filter(|(id, owner)| owner.away && (well || stays(*id))).map(|(id, _)| id);
        let unheard = self.away.keys().copied().filter(|id| owners.get(*id).is_none() && stays(*id));
        let away: BTreeSet<OwnerId> = known.chain(unheard).filter(|id| *id != OwnerId::SELF).collect();
        self.away = away.into_iter().map(|id| (id, self.away.get(&id).copied().unwrap_or(now))).collect();
    }

    /// It is in no group any more, whatever it says: Kafka has not heard of it for a session.
    fn is_away(&self, id: OwnerId, now: Instant) -> bool {
        self.away.get(&id).is_some_and(|since| *since + self.settings.kafka_session_timeout <= now)
    }

    fn has_clients(&self, now: Instant) -> bool {
        match self.settings.leave_delay {
            None => true,
            Some(delay) => self.clients_at.is_some_and(|at| now < at + delay),
        }
    }

    fn is_regardless(&self, now: Instant) -> bool {
        self.regardless_until.is_some_and(|until| now < until)
    }

    /// Whether this node is among the first, of all that count.
    fn is_first(&self, owners: &Owners, limit: usize, now: Instant) -> bool {
        let all = self.peers.values().map(|peer| peer.since);
        let oldest = all.chain([self.started]).min().unwrap_or(now);
        let is_old = |since: Instant| since + ALIVE_FOR <= now || since <= oldest + ALIVE_FOR;
        // A static member that was away has no time to lose: its place is kept.
        if !is_old(self.started) && self.settings.static_session.is_none() {
            return false;
        }
        let stays = |id| self.settings.static_session.is_some() || owners.get(id).is_none_or(|owner| !owner.draining);
        let counts = |(id, peer): &(&OwnerId, &Peer)| is_old(peer.since) && stays(**id) && !self.is_away(**id, now);
        let rank = |address: &str| hash(&self.settings.subscription, address);
        let own = (rank(&self.settings.address), &*self.settings.address);
        let before = |peer: &Peer| (rank(&peer.address), &*peer.address) > own;
        let ahead = self.peers.iter().filter(counts).filter(|(_, peer)| before(peer)).count();
        ahead < limit
    }
}

#[cfg(test)]
mod tests {
    use sluice_core::Epoch;

    use super::*;

    const SESSION: Duration = Duration::from_secs(6);

    /// Nodes that all see each other, and what they own.
    struct Cluster {
        nodes: Vec<(Members, Owners)>,
        now: Instant,
    }

    fn address(n: usize) -> Arc<str> {
        format!("node-{n}:7072").into()
    }

    fn settings(n: usize) -> Settings {
        Settings {
            subscription: "orders".into(),
            address: address(n),
            leave_delay: Some(Duration::from_secs(10)),
            kafka_session_timeout: SESSION,
            static_session: None,
        }
    }

    fn id(n: usize) -> OwnerId {
        OwnerId(u32::try_from(n).unwrap() + 1)
    }

    impl Cluster {
        fn new(count: usize) -> Self {
            let now = Instant::now();
            let nodes = (0..count).map(|n| (Members::new(settings(n), now), Owners::new())).collect();
            let mut cluster = Self { nodes, now };
            for n in 0..count {
                cluster.meet(n);
            }
            cluster
        }

        fn meet(&mut self, n: usize) {
            for other in (0..self.nodes.len()).filter(|other| *other != n) {
                let since = [self.nodes[n].0.started, self.nodes[other].0.started];
                self.nodes[n].0.up(id(other), address(other), since[1]);
                self.nodes[other].0.up(id(n), address(n), since[0]);
            }
        }

        /// Another node starts.
        fn grow(&mut self) {
            let n = self.nodes.len();
            self.nodes.push((Members::new(settings(n), self.now), Owners::new()));
            self.meet(n);
        }

        fn members(&self) -> Vec<usize> {
            (0..self.nodes.len()).filter(|n| self.nodes[*n].0.told == Some(true)).collect()
        }

        /// As Kafka would deal partitions to members.
        fn rebalance(&mut self, partitions: usize) {
            let members = self.members();
            let of = |node: usize| -> HashMap<_, _> {
                let own = (0..partitions).filter(|p| members.get(p % members.len().max(1)) == Some(&node));
                own.map(|p| ((TopicPartition::new("t", i32::try_from(p).unwrap()), Epoch(1)), 0)).collect()
            };
            for viewer in 0..self.nodes.len() {
                for node in 0..self.nodes.len() {
                    let owner = if node == viewer { OwnerId::SELF } else { id(node) };
                    self.nodes[viewer].1.set_places(owner, of(node));
                    self.nodes[viewer].1.entry(owner).member = members.contains(&node);
                }
            }
        }

        fn pass(&mut self, seconds: u64, partitions: usize, clients: u64) {
            for _ in 0..seconds * 2 {
                self.now += Duration::from_millis(500);
                for (n, (members, owners)) in self.nodes.iter_mut().enumerate() {
                    // All clients are on the first node; the others hear so.
                    if n > 0 {
                        owners.entry(id(0)).streams = clients;
                    }
                    members.think(self.now, if n == 0 { clients } else { 0 }, owners);
                }
                self.rebalance(partitions);
                assert!(self.members().len() <= self.nodes.len().min(partitions.max(1)), "{:?}", self.members());
            }
        }
    }

    #[test]
    fn of_eight_nodes_as_many_are_members_as_there_are_partitions_and_never_more() {
        let mut cluster = Cluster::new(8);
        cluster.pass(5, 3, 0);
        assert_eq!(cluster.members(), [0; 0], "nobody has a client");
        cluster.pass(10, 3, 1);
        assert_eq!(cluster.members().len(), 3);
        let before = cluster.members();
        cluster.pass(60, 3, 1);
        assert_eq!(cluster.members(), before, "and they stay");
        cluster.pass(9, 3, 0);
        assert_eq!(cluster.members(), before, "clients may come back");
        cluster.pass(3, 3, 0);
        assert_eq!(cluster.members(), [0; 0]);
    }

    #[test]
    fn clients_that_come_late_make_no_more_members_than_those_that_come_early() {
        let mut cluster = Cluster::new(8);
        cluster.pass(100, 3, 0);
        cluster.pass(30, 3, 1);
        assert_eq!(cluster.members().len(), 3);
        cluster.pass(60, 3, 0);
        assert_eq!(cluster.members(), [0; 0]);
        cluster.pass(30, 3, 1);
        assert_eq!(cluster.members().len(), 3);
    }

    #[test]
    fn nodes_that_come_one_by_one_make_no_more_members_at_any_moment() {
        // `pass` looks at each moment.
        let mut cluster = Cluster::new(1);
        cluster.pass(30, 2, 1);
        for pause in [3, 1, 20, 0, 40, 40] {
            cluster.grow();
            cluster.pass(pause, 2, 1);
        }
        let first = |of: &Cluster| {
            let mut all: Vec<usize> = (0..of.nodes.len()).collect();
            all.sort_by_key(|n| std::cmp::Reverse(hash("orders", &address(*n))));
            all.truncate(2);
            all.sort_unstable();
            all
        };
        assert_eq!(cluster.members(), first(&cluster), "in the end those whom the hash says");
    }

    #[test]
    fn a_member_that_is_gone_is_replaced_and_one_that_comes_back_at_once_is_not() {
        let mut cluster = Cluster::new(4);
        cluster.pass(10, 2, 1);
        let before = cluster.members();
        let (dead, now) = (before[0], cluster.now);
        for n in (0..4).filter(|n| *n != dead) {
            cluster.nodes[n].0.gone(id(dead), false, now);
        }
        cluster.pass(1, 2, 1);
        assert_eq!(cluster.members(), before);
        cluster.meet(dead);
        cluster.pass(5, 2, 1);
        assert_eq!(cluster.members(), before);
        let now = cluster.now;
        for n in (0..4).filter(|n| *n != dead) {
            cluster.nodes[n].0.gone(id(dead), false, now);
            cluster.nodes[n].1.remove(id(dead));
        }
        cluster.nodes[dead].0.told = Some(false);
        let others: Vec<usize> = (0..4).filter(|n| *n != dead).collect();
        for _ in 0..10 {
            cluster.now += Duration::from_millis(500);
            for n in &others {
                let (members, owners) = &mut cluster.nodes[*n];
                members.think(cluster.now, 1, owners);
            }
        }
        assert_eq!(cluster.members().len(), 2);
    }

    #[test]
    fn whoever_took_over_from_a_drained_node_stays_when_that_node_ends() {
        let mut cluster = Cluster::new(2);
        cluster.pass(10, 1, 1);
        let (drains, stays) = (cluster.members()[0], 1 - cluster.members()[0]);
        let step = |cluster: &mut Cluster| {
            cluster.now += Duration::from_millis(500);
            let (members, owners) = &mut cluster.nodes[stays];
            members.think(cluster.now, 1, owners);
            members.told
        };
        let owner = cluster.nodes[stays].1.entry(id(drains));
        (owner.draining, owner.member) = (true, false);
        cluster.nodes[stays].1.set_places(id(drains), HashMap::new());
        assert_eq!(step(&mut cluster), Some(true));
        let now = cluster.now;
        let drained = cluster.nodes[stays].1.remove(id(drains)).is_some_and(|owner| owner.draining);
        cluster.nodes[stays].0.gone(id(drains), drained, now);
        for _ in 0..10 {
            assert_eq!(step(&mut cluster), Some(true));
        }
    }

    #[test]
    fn a_node_that_kafka_does_not_answer_is_replaced_for_as_long_as_that_lasts() {
        let mut cluster = Cluster::new(2);
        cluster.pass(10, 1, 1);
        let (away, takes) = (cluster.members()[0], 1 - cluster.members()[0]);
        let pass = |cluster: &mut Cluster, seconds: u64| {
            for _ in 0..seconds * 2 {
                cluster.now += Duration::from_millis(500);
                for (members, owners) in &mut cluster.nodes {
                    members.think(cluster.now, 1, owners);
                }
            }
            cluster.members()
        };
        cluster.nodes[takes].1.entry(id(away)).away = true;
        cluster.nodes[away].1.entry(OwnerId::SELF).away = true;
        assert_eq!(pass(&mut cluster, 5), [away], "Kafka has not given it up yet");
        // It still says that it owns the partition, and for minutes nothing lapses.
        for _ in 0..40 {
            assert_eq!(pass(&mut cluster, 5), [0, 1]);
        }
        cluster.nodes[takes].1.entry(id(away)).away = false;
        assert_eq!(pass(&mut cluster, 1), [away], "it is heard again");
        // A look of the other one's that fails, and a link that is made again, move nobody back.
        cluster.nodes[takes].1.entry(id(away)).away = true;
        assert_eq!(pass(&mut cluster, 10), [0, 1]);
        cluster.nodes[takes].1.entry(OwnerId::SELF).away = true;
        assert_eq!(pass(&mut cluster, 2), [0, 1]);
        cluster.nodes[takes].1.entry(OwnerId::SELF).away = false;
        assert_eq!(pass(&mut cluster, 2), [0, 1]);
        cluster.nodes[takes].1.remove(id(away));
        let now = cluster.now;
        cluster.nodes[takes].0.gone(id(away), false, now);
        assert_eq!(pass(&mut cluster, 3), [0, 1]);
        let since = cluster.nodes[away].0.started;
        cluster.nodes[takes].0.up(id(away), address(away), since);
        let own = HashMap::from([((TopicPartition::new("t", 0), Epoch(1)), 0)]);
        cluster.nodes[takes].1.set_places(id(away), own);
        cluster.nodes[takes].1.entry(id(away)).member = true;
        assert_eq!(pass(&mut cluster, 1), [away], "it is heard again");
        // Kafka is away from both: nobody moves.
        for n in [away, takes] {
            cluster.nodes[n].1.entry(id(1 - n)).away = true;
            cluster.nodes[n].1.entry(OwnerId::SELF).away = true;
        }
        assert_eq!(pass(&mut cluster, 9), [away]);
    }

    #[test]
    fn who_joined_for_an_orphan_leaves_when_another_has_it() {
        let mut cluster = Cluster::new(2);
        cluster.pass(20, 1, 1);
        let (owner, isolated) = (cluster.members()[0], 1 - cluster.members()[0]);
        let step = |cluster: &mut Cluster, seconds: u64| {
            for _ in 0..seconds * 2 {
                cluster.now += Duration::from_millis(500);
                let (members, owners) = &mut cluster.nodes[isolated];
                members.think(cluster.now, 1, owners);
            }
            cluster.nodes[isolated].0.told
        };
        let now = cluster.now;
        cluster.nodes[isolated].1.remove(id(owner));
        cluster.nodes[isolated].0.gone(id(owner), false, now);
        assert_eq!(step(&mut cluster, 15), Some(true), "it sees nobody who owns the partition");
        let since = cluster.nodes[owner].0.started;
        cluster.nodes[isolated].0.up(id(owner), address(owner), since);
        let own = HashMap::from([((TopicPartition::new("t", 0), Epoch(1)), 0)]);
        cluster.nodes[isolated].1.set_places(id(owner), own);
        assert_eq!(step(&mut cluster, 1), Some(false));
    }

    #[test]
    fn a_static_member_that_is_away_keeps_its_place_until_its_session_is_over() {
        let mut cluster = Cluster::new(4);
        cluster.nodes.iter_mut().for_each(|(members, _)| members.settings.static_session = Some(SESSION));
        cluster.pass(30, 2, 1);
        let before = cluster.members();
        let away = before[0];
        let others: Vec<usize> = (0..4).filter(|n| *n != away).collect();
        let leave = |cluster: &mut Cluster, who: OwnerId| {
            for n in &others {
                cluster.nodes[*n].0.gone(who, true, cluster.now);
                cluster.nodes[*n].1.remove(who);
            }
        };
        let pass = |cluster: &mut Cluster, seconds: u64| {
            for _ in 0..seconds * 2 {
                cluster.now += Duration::from_millis(500);
                for n in &others {
                    let (members, owners) = &mut cluster.nodes[*n];
                    members.think(cluster.now, 1, owners);
                }
            }
            others.iter().filter(|n| cluster.nodes[**n].0.told == Some(true)).count()
        };
        // It drains, ends, and another process of its address is there within the session: nobody has taken its place.
        others.iter().for_each(|n| cluster.nodes[*n].1.entry(id(away)).draining = true);
        assert_eq!(pass(&mut cluster, 3), 1);
        leave(&mut cluster, id(away));
        assert_eq!(pass(&mut cluster, 4), 1);
        let again = OwnerId(99);
        for n in &others {
            cluster.nodes[*n].0.up(again, address(away), cluster.now);
            let own = HashMap::from([((TopicPartition::new("t", 0), Epoch(2)), 0)]);
            cluster.nodes[*n].1.set_places(again, own);
        }
        let mut back = Members::new(Settings { static_session: Some(SESSION), ..settings(away) }, cluster.now);
        for n in &others {
            back.up(id(*n), address(*n), cluster.nodes[*n].0.started);
        }
        assert_eq!(pass(&mut cluster, 8), 1);
        let wanted = back.think(cluster.now - Duration::from_secs(6), 1, &Owners::new());
        assert_eq!(wanted, Some(true), "it does not wait to be old");
        // It does not come back: its session is over, and it is replaced.
        leave(&mut cluster, again);
        assert_eq!(pass(&mut cluster, 5), 1);
        assert_eq!(pass(&mut cluster, 3), 2);
    }

    #[test]
    fn a_partition_that_nobody_has_makes_a_member_of_whoever_sees_it() {
        let mut cluster = Cluster::new(3);
        let members = |cluster: &mut Cluster, seconds: u64| {
            // Whoever should be a member cannot reach Kafka.
            for _ in 0..seconds * 2 {
                cluster.now += Duration::from_millis(500);
                for (members, owners) in &mut cluster.nodes {
                    members.think(cluster.now, 1, owners);
                }
            }
            cluster.members().len()
        };
        assert_eq!(members(&mut cluster, 10), 1);
        assert_eq!(members(&mut cluster, 10), 3);
    }

    #[test]
    fn hashes_are_the_same_in_every_build() {
        assert_eq!(hash("orders", "node-1:7072"), hash("orders", "node-1:7072"));
        assert_ne!(hash("orders", "node-1:7072"), hash("orders", "node-2:7072"));
        let first = |subscription: &str| (0..8).max_by_key(|n| hash(subscription, &address(*n))).unwrap();
        let spread: BTreeSet<usize> = (0..50).map(|n| first(&format!("subscription-{n}"))).collect();
        assert!(spread.len() >= 6, "subscriptions are spread over nodes: {spread:?}");
    }
}
