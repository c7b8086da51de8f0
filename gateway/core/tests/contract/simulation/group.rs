//! Kafka's side of the simulation: who owns what, commits on their way, nodes that die and freeze.

use sluice_core::{Assignment, CommitError, Epoch, Millis, NextOffset, RevokeReason, TopicPartition};

use super::{Away, Commit, Owned, Owner, READ_BACK_MS, SESSION_TIMEOUT_MS, Sim};
use crate::support::world::TOPIC_HASH;

impl Sim {
    pub(super) fn break_something(&mut self) {
        let n = usize::try_from(self.rng.below(self.nodes.len() as u64)).expect("an index");
        if self.nodes[n].away.is_some() {
            return;
        }
        match self.rng.below(1_000) {
            0..4 => self.kill_node(n),
            4..8 => self.nodes[n].away = Some(Away::Frozen { until: self.now + 200 + self.rng.below(1_500) }),
            8..28 => {
                let tp = self.any_partition();
                self.move_away(&tp);
            }
            28..32 => {
                let tp = self.any_partition();
                if self.owners[&tp] == Owner::Node(n) {
                    self.nodes[n].driver.model.now = self.now;
                    self.take_away(n, std::slice::from_ref(&tp));
                    self.owners.insert(tp, Owner::Nobody { until: self.now });
                }
            }
            _ => {}
        }
    }

    /// `kill -9`: the group gives its partitions to others a session timeout later.
    fn kill_node(&mut self, n: usize) {
        self.absorb(n);
        let driver = self.new_driver();
        self.nodes[n].driver = driver;
        let owned = std::mem::take(&mut self.nodes[n].owned);
        let until = self.now + SESSION_TIMEOUT_MS;
        for tp in owned.into_keys() {
            self.park_commits(n, &tp);
            self.owners.insert(tp, Owner::Nobody { until });
        }
        self.nodes[n].resting = false;
        self.nodes[n].away = Some(Away::Dead { until: self.now + self.rng.below(800) });
        self.hang_up(n);
    }

    /// A rebalance moves a partition: its owner drains it.
    fn move_away(&mut self, tp: &TopicPartition) {
        let Some(Owner::Node(n)) = self.owners.get(tp).copied() else { return };
        let leaving = self.nodes[n].driver.model.parts.get(tp).is_some_and(|p| p.revoking.is_some());
        if self.nodes[n].away.is_none() && !leaving {
            self.nodes[n].driver.model.now = self.now;
            let deadline = Millis(self.now + self.rng.below(500));
            self.nodes[n].driver.revoking(std::slice::from_ref(tp), deadline);
            self.absorb(n);
        }
    }

    /// Partitions are lost: fenced at once, all together. A commit in flight is forgotten or parked.
    fn take_away(&mut self, n: usize, partitions: &[TopicPartition]) {
        let owned = |tp: &&TopicPartition| self.nodes[n].owned.contains_key(*tp);
        let lost: Vec<TopicPartition> = partitions.iter().filter(owned).cloned().collect();
        for tp in &lost {
            self.nodes[n].owned.remove(tp);
            self.park_commits(n, tp);
        }
        self.nodes[n].driver.lost(&lost, RevokeReason::Reassigned);
        self.absorb(n);
    }

    fn park_commits(&mut self, n: usize, tp: &TopicPartition) {
        let (now, zombie) = (self.now, self.rng.chance(40));
        let late = now + self.rng.below(2 * SESSION_TIMEOUT_MS);
        self.commits.retain(|c| zombie || c.node != n || c.partition != *tp);
        for commit in self.commits.iter_mut().filter(|c| c.node == n && c.partition == *tp) {
            commit.parked = true;
            commit.due = late;
        }
    }

    /// The coordinator gives partitions to nodes, and takes them from those that it has not heard of.
    pub(super) fn balance(&mut self) {
        for n in 0..self.nodes.len() {
            match self.nodes[n].away {
                Some(Away::Dead { until }) if until <= self.now => self.nodes[n].away = None,
                Some(Away::Frozen { until }) if until <= self.now => self.thaw(n),
                _ => {}
            }
        }
        // A node is in the group while it has clients.
        let has_people = |n: &usize| self.people.iter().any(|p| p.at.is_some_and(|(at, _)| at == *n));
        let running = (0..self.nodes.len()).filter(|n| self.nodes[*n].away.is_none());
        let running: Vec<usize> = running.filter(has_people).collect();
        for tp in self.topics.clone() {
            let lonely = matches!(self.owners[&tp], Owner::Node(n) if !running.contains(&n));
            if lonely && !running.is_empty() {
                self.move_away(&tp);
            }
            let free = matches!(self.owners[&tp], Owner::Nobody { until } if until <= self.now);
            if let (true, Some(n)) = (free, self.rng.pick(&running).copied()) {
                self.give(n, &tp);
            }
        }
    }

    /// A frozen node goes on. Away for longer than the session timeout, it fences itself before anything else.
    fn thaw(&mut self, n: usize) {
        self.nodes[n].away = None;
        let stale: Vec<_> =
            self.nodes[n].owned.keys().filter(|tp| self.owners[*tp] != Owner::Node(n)).cloned().collect();
        self.nodes[n].driver.model.now = self.now;
        self.take_away(n, &stale);
    }

    fn give(&mut self, n: usize, tp: &TopicPartition) {
        // Whoever had it and is frozen does not know yet.
        self.epochs += 1;
        let epoch = Epoch(self.epochs * 7_919);
        let stored = self.kafka.stored.get(tp).cloned();
        let next = stored.as_ref().map_or(0, |s| s.offset);
        if self.rewound.remove(tp) {
            // The owner was gone before it could repair what a zombie did: nobody can know of it any more.
            let knows = |o: &i64| stored.as_ref().is_some_and(|s| *o < s.offset || s.done.contains(o));
            self.durable.retain(|(other, offset)| other != tp || knows(offset));
        }
        let assignment = Assignment {
            partition: tp.clone(),
            epoch,
            next: NextOffset(next),
            metadata: stored.as_ref().map(|s| s.metadata.clone()),
            topic_hash: TOPIC_HASH,
            commit_now: stored.is_none(),
        };
        let read_back_at = self.now + SESSION_TIMEOUT_MS;
        self.nodes[n].driver.model.now = self.now;
        self.nodes[n].driver.assigned(assignment, stored.as_ref());
        self.nodes[n].owned.insert(tp.clone(), Owned { epoch, fetch_from: next, held_back: false, read_back_at });
        self.owners.insert(tp.clone(), Owner::Node(n));
        self.absorb(n);
    }

    pub(super) fn run_node(&mut self, n: usize) {
        match self.nodes[n].away {
            None => {}
            Some(Away::Frozen { until }) => {
                // Frozen for longer than the session timeout: the group goes on without it.
                if until > self.now + SESSION_TIMEOUT_MS / 2 {
                    for tp in self.nodes[n].owned.keys().cloned().collect::<Vec<_>>() {
                        if self.owners[&tp] == Owner::Node(n) {
                            self.park_commits(n, &tp);
                            self.owners.insert(tp, Owner::Nobody { until: self.now + 100 });
                        }
                    }
                }
                return;
            }
            Some(Away::Dead { .. }) => return,
        }
        self.nodes[n].driver.model.now = self.now;
        self.nodes[n].driver.tick();
        self.absorb(n);
        for tp in self.nodes[n].owned.keys().cloned().collect::<Vec<_>>() {
            self.fetch(n, &tp);
            self.read_back(n, &tp);
        }
    }

    fn fetch(&mut self, n: usize, tp: &TopicPartition) {
        let max = usize::try_from(self.rng.below(12)).expect("few");
        let node = &mut self.nodes[n];
        let Some(owned) = node.owned.get_mut(tp).filter(|o| !o.held_back && !node.resting) else { return };
        let epoch = owned.epoch;
        let records = self.kafka.fetch(tp, owned.fetch_from, max);
        owned.fetch_from = records.last().map_or(owned.fetch_from, |r| r.offset + 1);
        // The position goes behind the records it stands above.
        let next = self.kafka.position(tp, owned.fetch_from);
        owned.fetch_from = next;
        if !records.is_empty() {
            node.driver.records(tp, epoch, records);
        }
        node.driver.position(tp, epoch, NextOffset(next));
        self.absorb(n);
    }

    /// The owner reads its committed value back; one that was rewound is committed again.
    fn read_back(&mut self, n: usize, tp: &TopicPartition) {
        let now = self.now;
        let in_flight = self.commits.iter().any(|c| c.node == n && c.partition == *tp && !c.parked);
        let node = &mut self.nodes[n];
        let Some(owned) = node.owned.get_mut(tp).filter(|o| o.read_back_at <= now && !in_flight) else { return };
        owned.read_back_at = now + READ_BACK_MS;
        let acked = node.driver.model.parts.get(tp).and_then(|p| p.acked.as_ref());
        let stored = self.kafka.stored.get(tp);
        let rewound = acked.zip(stored).is_some_and(|(a, s)| (a.offset, &a.metadata) != (s.offset, &s.metadata));
        if rewound {
            node.driver.commit_rewound(tp);
            self.absorb(n);
        }
    }

    // === commits ===

    pub(super) fn send_commit(&mut self, n: usize, tp: &TopicPartition, epoch: Epoch) {
        let part = self.nodes[n].driver.model.parts.get(tp);
        let Some(snapshot) = part.and_then(|p| p.in_flight.clone()) else { return };
        let slow = self.faults && !self.calm && self.rng.chance(5);
        let due = self.now + self.rng.below(if slow { 900 } else { 40 });
        let partition = tp.clone();
        self.commits.push(Commit { node: n, partition, epoch, snapshot, due, parked: false });
    }

    pub(super) fn run_commits(&mut self) {
        let (due, later) = std::mem::take(&mut self.commits).into_iter().partition(|c| c.due <= self.now);
        self.commits = later;
        let due: Vec<Commit> = due;
        for commit in due {
            let node = &self.nodes[commit.node];
            if commit.parked {
                self.apply_zombie(commit);
                continue;
            }
            if node.away.is_some() {
                // Its answer waits until the node reads it.
                self.commits.push(Commit { due: self.now + 20, ..commit });
                continue;
            }
            let refused = self.faults && !self.calm && self.rng.chance(8);
            // Refused, or taken and the answer lost.
            let taken = !refused || self.rng.chance(30);
            let offset = NextOffset(commit.snapshot.offset);
            let (n, tp, epoch) = (commit.node, commit.partition.clone(), commit.epoch);
            if taken {
                self.store(commit);
            }
            let result = if refused { Err(CommitError::Retriable) } else { Ok(offset) };
            self.nodes[n].driver.model.now = self.now;
            self.nodes[n].driver.commit_result(&tp, epoch, result);
            if !refused {
                self.rewound.remove(&tp);
            }
            self.absorb(n);
        }
    }

    /// A commit of an owner that lost the partition: nobody fences it.
    fn apply_zombie(&mut self, commit: Commit) {
        let tp = commit.partition.clone();
        let stored = self.kafka.stored.get(&tp).map(|s| s.offset);
        if stored.is_none_or(|s| s <= commit.snapshot.offset) && !self.moved_on(&commit) {
            self.store(commit);
            return;
        }
        self.check_below(&commit);
        self.rewound.insert(tp.clone());
        self.kafka.store(&tp, commit.snapshot);
        // Whatever the present owner reads back from now on is not its own.
    }

    /// Whether a later owner committed already.
    fn moved_on(&self, commit: &Commit) -> bool {
        let tp = &commit.partition;
        let later = self.committed_in.get(tp).is_some_and(|epoch| *epoch > commit.epoch.0);
        later || matches!(self.owners[tp], Owner::Node(_))
    }

    fn store(&mut self, commit: Commit) {
        self.check_below(&commit);
        let tp = commit.partition;
        self.committed_in.insert(tp.clone(), commit.epoch.0);
        let before = self.kafka.stored.get(&tp).map_or(0, |s| s.offset);
        if before > commit.snapshot.offset && !self.rewound.contains(&tp) {
            self.wrong.push(format!("S3: {tp} went back from {before} to {}", commit.snapshot.offset));
        }
        self.kafka.store(&tp, commit.snapshot);
    }

    /// S2: below every commit that Kafka ever took, each record was acked by a client that held it.
    fn check_below(&mut self, commit: &Commit) {
        let (tp, offset) = (&commit.partition, commit.snapshot.offset);
        let records = self.kafka.fetch(tp, 0, usize::MAX).into_iter().map(|r| r.offset);
        let undone = records.take_while(|o| *o < offset).find(|o| !self.acked.contains(&(tp.clone(), *o)));
        if let Some(undone) = undone {
            self.wrong.push(format!("S2: {tp} was committed at {offset}, and {undone} was never acked"));
        }
    }

    // === the end ===

    pub(super) fn heal(&mut self) {
        self.calm = true;
        for n in 0..self.nodes.len() {
            if let Some(Away::Dead { until } | Away::Frozen { until }) = &mut self.nodes[n].away {
                *until = self.now;
            }
        }
        self.people.iter_mut().for_each(super::people::Person::calm_down);
    }

    pub(super) fn is_well(&self) -> bool {
        self.commits.is_empty()
            && self.topics.iter().all(|tp| self.kafka.stored.get(tp).map_or(0, |s| s.offset) >= self.kafka.end(tp))
    }

    pub(super) fn lag(&self) -> String {
        let lag = |tp: &TopicPartition| {
            let stored = self.kafka.stored.get(tp).map_or(0, |s| s.offset);
            let views: Vec<_> = self.nodes.iter().flat_map(|n| n.driver.engine.partitions(Millis(self.now))).collect();
            let view = views.iter().find(|v| v.partition == *tp);
            format!("{tp} {stored} of {}, owner {:?}, {view:?}\n", self.kafka.end(tp), self.owners[tp])
        };
        self.topics.iter().map(lag).collect()
    }
}
