//! An operator's seek, as the owner of partitions carries it out: fence, begin anew, commit the new position, only then deal.
//!
//! What was committed before is out of the way first: the Kafka threads take no commit of the new epoch while one of an earlier
//! epoch has no reply.

use std::collections::HashMap;

use sluice_core::{Epoch, Millis, NextOffset, RevokeReason, TopicPartition};
use sluice_kafka::{KafkaCommand, SeekCommand, SeekError, SeekTarget, SeekTo};
use tokio::sync::oneshot;

use super::driver::Driver;
use super::membership::Membership;
use super::{Handle, Request};
use crate::error::Error;

/// Where to, in some partitions.
pub(crate) type Targets = Vec<(TopicPartition, NextOffset)>;

/// What an operator asked for once.
#[derive(Debug)]
pub(super) struct Seek {
    waiting: HashMap<TopicPartition, Sought>,
    done: Vec<TopicPartition>,
    reply: oneshot::Sender<Vec<TopicPartition>>,
}

#[derive(Debug)]
struct Sought {
    to: NextOffset,
    /// In which it begins anew, once it does.
    epoch: Option<Epoch>,
}

impl Driver {
    /// Those of the partitions that are this node's, and on their way to nobody. Answers with those that were sought.
    pub(super) fn on_seek(&mut self, targets: Targets, reply: oneshot::Sender<Vec<TopicPartition>>) {
        let mut seek = Seek { waiting: HashMap::new(), done: Vec::new(), reply };
        let is_settled = self.member.state() == Membership::Joined && self.stopping.is_none();
        for (partition, to) in targets.into_iter().filter(|_| is_settled) {
            let Some(epoch) = self.assigned.get(&partition).copied() else { continue };
            if self.revoking.contains_key(&partition) || self.is_sought(&partition) {
                continue;
            }
            (self.kafka.send)(KafkaCommand::Seek(SeekCommand::Begin(partition.clone(), epoch, to)));
            seek.waiting.insert(partition, Sought { to, epoch: None });
        }
        self.seeks.push(seek);
        self.answer_seeks();
    }

    fn is_sought(&self, partition: &TopicPartition) -> bool {
        self.seeks.iter().any(|seek| seek.waiting.contains_key(partition))
    }

    fn sought(&mut self, partition: &TopicPartition) -> Option<&mut Sought> {
        self.seeks.iter_mut().find_map(|seek| seek.waiting.get_mut(partition))
    }

    /// It is about to begin anew: its leases are void.
    pub(super) fn on_sought(&mut self, now: Millis, partition: &TopicPartition) {
        tracing::info!(subscription = %self.settings.name, %partition, "an operator moves the position");
        self.counts.seeks += 1;
        self.engine.lost(now, std::slice::from_ref(partition), RevokeReason::Seek);
        self.assigned.remove(partition);
    }

    /// It began, in this epoch.
    pub(super) fn sought_begins(&mut self, partition: &TopicPartition, epoch: Epoch) {
        if let Some(sought) = self.sought(partition) {
            sought.epoch = Some(epoch);
        }
    }

    /// Kafka has a commit of this epoch. The first one of a partition that was sought is its new position.
    pub(super) fn sought_is_committed(&mut self, partition: &TopicPartition, epoch: Epoch) {
        let Some(to) = self.sought(partition).filter(|sought| sought.epoch == Some(epoch)).map(|sought| sought.to)
        else {
            return;
        };
        (self.kafka.send)(KafkaCommand::Unhold(partition.clone(), epoch, to));
        for seek in &mut self.seeks {
            if seek.waiting.remove(partition).is_some() {
                seek.done.push(partition.clone());
            }
        }
        self.answer_seeks();
    }

    /// It is not this node's any more.
    pub(super) fn seek_is_off(&mut self, partition: &TopicPartition) {
        for seek in &mut self.seeks {
            seek.waiting.remove(partition);
        }
        self.answer_seeks();
    }

    /// No partition is this node's any more.
    pub(super) fn seeks_are_off(&mut self) {
        self.seeks.iter_mut().for_each(|seek| seek.waiting.clear());
        self.answer_seeks();
    }

    fn answer_seeks(&mut self) {
        for seek in self.seeks.extract_if(.., |seek| seek.waiting.is_empty()) {
            let _ = seek.reply.send(seek.done);
        }
    }
}

impl Handle {
    /// Where each partition would go, whoever owns it.
    pub(crate) async fn find(&self, to: SeekTo) -> Result<Vec<SeekTarget>, Error> {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Kafka(SeekCommand::Find { to, reply }));
        answer.await.map_err(|_| Error::Stopped)?.map_err(Error::from)
    }

    /// Seeks in those of the partitions that this node owns, and answers with them once Kafka has their new positions.
    pub(crate) async fn seek(&self, targets: Targets) -> Result<Vec<TopicPartition>, Error> {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Seek(targets, reply));
        answer.await.map_err(|_| Error::Stopped)
    }

    /// Commits for a group that has no members.
    pub(crate) async fn commit_for_nobody(&self, targets: Targets) -> Result<(), SeekError> {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Kafka(SeekCommand::CommitForNobody { targets, reply }));
        answer.await.unwrap_or_else(|_| Err(SeekError::Unavailable("the subscription has stopped".to_owned())))
    }
}
