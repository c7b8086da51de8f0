//! A driver as small as can be: it acknowledges each record on receipt and commits what is done, as the gateway's
//! driver would.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use sluice_core::{CommitError, Epoch, NextOffset, TopicPartition};
use sluice_kafka::{
    Assignor, Describer, KafkaCommand, KafkaConfig, KafkaEvent, KafkaState, Protocol, ResetCause, Start, Subscription,
};
use sluice_tests::SOON;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::mpsc::error::TryRecvError;

/// What is known of one assignment.
#[derive(Debug, Clone)]
pub struct Owned {
    pub epoch: Epoch,
    pub start: i64,
    pub next: i64,
    pub metadata: Option<String>,
    pub topic_hash: u32,
}

/// One subscription and what its driver has seen.
pub struct Driver {
    pub subscription: Subscription,
    events: UnboundedReceiver<KafkaEvent>,
    pub owned: HashMap<TopicPartition, Owned>,
    /// Offsets received, by partition, in order of arrival.
    pub received: BTreeMap<TopicPartition, Vec<i64>>,
    pub committed: HashMap<TopicPartition, i64>,
    pub commit_errors: Vec<CommitError>,
    pub revoking: Vec<TopicPartition>,
    pub lost: Vec<TopicPartition>,
    pub resets: Vec<(TopicPartition, ResetCause)>,
    pub retention: Vec<(TopicPartition, i64, i64)>,
    pub rewound: Vec<TopicPartition>,
    pub states: Vec<KafkaState>,
    pub watermarks: HashMap<TopicPartition, (i64, i64)>,
    /// Who is in the group, as it was told last: `client.id` and partitions.
    pub group: Vec<(String, usize)>,
    pub left: bool,
    /// Answer revokes at once, after a last commit. Otherwise the test does.
    pub answers_revokes: bool,
    /// Commit whenever something changed. Otherwise the test does.
    pub commits: bool,
    dirty: HashMap<TopicPartition, bool>,
}

pub fn config(bootstrap: &str, group: &str, topics: &[&str]) -> KafkaConfig {
    KafkaConfig {
        brokers: bootstrap.to_owned(),
        group: group.to_owned(),
        topics: topics.iter().map(|topic| (*topic).to_owned()).collect(),
        client_id: "sluice-test".to_owned(),
        instance: None,
        member_mark: String::new(),
        watch_group: false,
        protocol: Protocol::Classic {
            assignor: Assignor::CooperativeSticky,
            session_timeout: Duration::from_secs(6),
            heartbeat_interval: Duration::from_millis(250),
        },
        start: Start::Earliest,
        revoke_grace: Duration::from_secs(5),
        commit_deadline: Duration::from_secs(10),
        metadata_refresh: Duration::from_secs(1),
        prefetch_kib: 1024,
        properties: BTreeMap::from([("fetch.wait.max.ms".to_owned(), "10".to_owned())]),
    }
}

impl Driver {
    /// Starts and joins.
    pub fn join(config: KafkaConfig) -> Self {
        Self::join_and_ask(config, None)
    }

    /// As well, and asks who is in the group.
    pub fn join_and_ask(config: KafkaConfig, describer: Option<Describer>) -> Self {
        let (subscription, events) = Subscription::start(config, describer).expect("a subscription starts");
        subscription.send(KafkaCommand::Join);
        Self {
            subscription,
            events,
            owned: HashMap::new(),
            received: BTreeMap::new(),
            committed: HashMap::new(),
            commit_errors: Vec::new(),
            revoking: Vec::new(),
            lost: Vec::new(),
            resets: Vec::new(),
            retention: Vec::new(),
            rewound: Vec::new(),
            states: Vec::new(),
            watermarks: HashMap::new(),
            group: Vec::new(),
            left: false,
            answers_revokes: true,
            commits: true,
            dirty: HashMap::new(),
        }
    }

    /// Handles what is there; returns how many events that was.
    pub fn turn(&mut self) -> usize {
        let mut count = 0;
        loop {
            match self.events.try_recv() {
                Ok(event) => {
                    count += 1;
                    self.event(event);
                }
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return count,
            }
        }
    }

    pub fn until(&mut self, what: &str, mut seen: impl FnMut(&mut Self) -> bool) {
        let start = Instant::now();
        loop {
            self.turn();
            if seen(self) {
                return;
            }
            assert!(start.elapsed() < SOON, "not within {SOON:?}: {what}; {}", self.summary());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn total(&self) -> usize {
        self.received.values().map(Vec::len).sum()
    }

    pub fn commit(&mut self, partition: &TopicPartition, offset: i64, metadata: &str) {
        let Some(owned) = self.owned.get(partition) else { return };
        self.subscription.send(KafkaCommand::Commit {
            partition: partition.clone(),
            epoch: owned.epoch,
            offset: NextOffset(offset),
            metadata: metadata.to_owned(),
        });
    }

    /// Leaves the group and waits for the word.
    pub fn leave(&mut self) {
        self.subscription.send(KafkaCommand::Leave(Duration::from_secs(10)));
        self.until("the group is left", |driver| driver.left);
    }

    pub fn summary(&self) -> String {
        let received: Vec<_> =
            self.received.iter().map(|(partition, offsets)| format!("{partition}: {}", offsets.len())).collect();
        format!(
            "owned {:?} received {received:?} committed {:?} errors {:?} states {:?} resets {:?}",
            self.owned.keys().map(ToString::to_string).collect::<Vec<_>>(),
            self.committed,
            self.commit_errors,
            self.states,
            self.resets,
        )
    }

    fn event(&mut self, event: KafkaEvent) {
        match event {
            KafkaEvent::Assigned(assignment) => {
                let owned = Owned {
                    epoch: assignment.epoch,
                    start: assignment.next.0,
                    next: assignment.next.0,
                    metadata: assignment.metadata,
                    topic_hash: assignment.topic_hash,
                };
                self.owned.insert(assignment.partition.clone(), owned);
                if assignment.commit_now {
                    self.commit(&assignment.partition, assignment.next.0, "");
                }
            }
            KafkaEvent::Records { partition, epoch, runs, bytes } => {
                self.subscription.gate().taken(bytes);
                let owned = self.owned.get_mut(&partition).unwrap_or_else(|| panic!("{partition}: records unowned"));
                assert_eq!(owned.epoch, epoch, "{partition}: records of another epoch");
                let offsets: Vec<i64> = runs.iter().flat_map(|run| run.iter().map(|record| record.offset)).collect();
                for offset in &offsets {
                    assert!(*offset >= owned.next, "{partition}: {offset} below {}", owned.next);
                    owned.next = offset + 1;
                }
                self.received.entry(partition.clone()).or_default().extend(offsets);
                self.changed(&partition);
            }
            KafkaEvent::Position { partition, epoch, next } => {
                let owned = self.owned.get_mut(&partition).unwrap_or_else(|| panic!("{partition}: position unowned"));
                assert_eq!(owned.epoch, epoch, "{partition}: a position of another epoch");
                assert!(next.0 > owned.next, "{partition}: a position that says nothing new");
                owned.next = next.0;
                self.changed(&partition);
            }
            KafkaEvent::Group(members) => {
                self.group = members.into_iter().map(|member| (member.client_id, member.partitions)).collect();
            }
            KafkaEvent::Revoking { partitions, .. } => {
                let partitions: Vec<_> = partitions.into_iter().map(|(partition, _)| partition).collect();
                self.revoking.extend(partitions.iter().cloned());
                if self.answers_revokes {
                    for partition in partitions {
                        self.give_back(&partition);
                    }
                }
            }
            KafkaEvent::Lost(partitions) => {
                for partition in &partitions {
                    self.owned.remove(partition);
                    self.dirty.remove(partition);
                }
                self.revoking.retain(|partition| !partitions.contains(partition));
                self.lost.extend(partitions);
            }
            KafkaEvent::Reset { partition, cause } => {
                self.owned.remove(&partition);
                self.resets.push((partition, cause));
            }
            KafkaEvent::LostToRetention { partition, from, to } => {
                self.owned.get_mut(&partition).expect("owned").next = to.0;
                self.retention.push((partition, from.0, to.0));
            }
            KafkaEvent::Committed { partition, epoch, result } => self.replied(partition, epoch, result),
            KafkaEvent::CommitRewound(partition) => self.rewound.push(partition),
            KafkaEvent::Watermarks { partition, low, high } => {
                self.watermarks.insert(partition, (low, high));
            }
            KafkaEvent::Partitions(_) => {}
            KafkaEvent::State(state) => self.states.push(state),
            KafkaEvent::Left => self.left = true,
            KafkaEvent::Panicked(thread) => panic!("{thread} panicked"),
        }
    }

    /// One commit in flight a partition; what changed meanwhile follows when it is answered.
    fn changed(&mut self, partition: &TopicPartition) {
        if !self.commits {
            return;
        }
        if let Some(again) = self.dirty.get_mut(partition) {
            *again = true;
            return;
        }
        self.dirty.insert(partition.clone(), false);
        let next = self.owned[partition].next;
        self.commit(partition, next, "");
    }

    fn replied(&mut self, partition: TopicPartition, epoch: Epoch, result: Result<NextOffset, CommitError>) {
        match result {
            Ok(offset) => {
                self.committed.insert(partition.clone(), offset.0);
            }
            Err(error) => self.commit_errors.push(error),
        }
        let again = self.dirty.remove(&partition);
        let Some(owned) = self.owned.get(&partition).filter(|owned| owned.epoch == epoch) else { return };
        if self.commits && (again == Some(true) || result == Err(CommitError::Retriable)) {
            let next = owned.next;
            self.dirty.insert(partition.clone(), false);
            self.commit(&partition, next, "");
        } else if self.answers_revokes && self.revoking.contains(&partition) {
            self.give_back(&partition);
        }
    }

    /// Answers a revoke, unless a commit is out: then its reply does.
    pub fn give_back(&mut self, partition: &TopicPartition) {
        if self.dirty.contains_key(partition) {
            return;
        }
        self.revoking.retain(|it| it != partition);
        if let Some(owned) = self.owned.remove(partition) {
            self.subscription.send(KafkaCommand::Revoked(partition.clone(), owned.epoch));
        }
    }
}
