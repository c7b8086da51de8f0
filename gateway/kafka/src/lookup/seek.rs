//! An operator's seek: where it leads, and how it begins.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_core::{Epoch, NextOffset, TopicPartition};

use super::offsets::{self, Found};
use super::{FOR_ALL, Lookup, TRY_WITHIN};
use crate::ffi::{Code, Event, List, OK, Queue, code_name};
use crate::io::{SeekCommand, SeekError, SeekTarget, SeekTo};
use crate::messages::{Decision, FetchCommand};

impl Lookup {
    pub(super) fn on_seek(&mut self, command: SeekCommand) {
        // Who asked may be gone: others wait behind what takes long.
        match command {
            SeekCommand::Find { reply, .. } if reply.is_closed() => {}
            SeekCommand::CommitForNobody { reply, .. } if reply.is_closed() => {}
            SeekCommand::Find { to, reply } => drop(reply.send(self.find(to))),
            SeekCommand::Begin(partition, epoch, to) => self.seek(partition, epoch, to),
            SeekCommand::CommitForNobody { targets, reply } => drop(reply.send(self.commit_for_nobody(&targets))),
        }
    }

    /// Where each partition of the subscription would go. Nothing changes.
    fn find(&self, to: SeekTo) -> Result<Vec<SeekTarget>, SeekError> {
        let mut all = Vec::new();
        for topic in &self.config.topics {
            let count = self.handle.partition_count(topic, TRY_WITHIN).map_err(|code| unavailable(topic, code))?;
            let topic: Arc<str> = topic.as_str().into();
            let count = i32::try_from(count).unwrap_or(i32::MAX);
            all.extend((0..count).map(|partition| TopicPartition { topic: Arc::clone(&topic), partition }));
        }
        let targets = match to {
            SeekTo::Start(start) => each(offsets::starts(&self.handle, &all, start, FOR_ALL))?,
            SeekTo::Offsets(wanted) => {
                let known: HashSet<_> = all.iter().collect();
                let mut sought = HashMap::new();
                for (partition, offset) in wanted {
                    if !known.contains(&partition) {
                        return Err(SeekError::Invalid(format!("{partition} is no partition of the subscription")));
                    }
                    if sought.insert(partition.clone(), offset).is_some() {
                        return Err(SeekError::Invalid(format!("{partition} is named twice")));
                    }
                }
                let of: Vec<_> = sought.keys().cloned().collect();
                for (partition, (low, high)) in each(offsets::watermarks(&self.handle, &of, FOR_ALL))? {
                    let offset = sought.get(&partition).copied().unwrap_or_default();
                    if offset < low || offset > high {
                        let problem = format!("{offset} is outside of the log of {partition}: {low} to {high}");
                        return Err(SeekError::Invalid(problem));
                    }
                }
                sought.into_iter().collect()
            }
        };
        let list = List::of(targets.iter().map(|(partition, _)| partition));
        let committed = self.handle.committed(&list, TRY_WITHIN).map_err(|code| unavailable("the group", code))?;
        let committed: HashMap<_, _> = committed.into_iter().map(|one| (one.partition, one.offset)).collect();
        let target = |(partition, offset): (TopicPartition, i64)| {
            let committed = committed.get(&partition).copied().filter(|committed| *committed >= 0);
            SeekTarget { partition, offset, committed }
        };
        let mut targets: Vec<_> = targets.into_iter().map(target).collect();
        targets.sort_by(|a, b| {
            (&a.partition.topic, a.partition.partition).cmp(&(&b.partition.topic, b.partition.partition))
        });
        Ok(targets)
    }

    /// Begins one of our partitions anew. One that is not ours any more: the driver hears of that by itself.
    fn seek(&mut self, partition: TopicPartition, epoch: Epoch, to: NextOffset) {
        let assignment = self.anew(&partition, to.0);
        let Some(active) = self.active.get_mut(&partition) else { return };
        tracing::info!(%partition, to = to.0, "sought by an operator");
        // What was acknowledged before is void: a lower value is no rewind.
        active.acknowledged = None;
        // And so is what was to be found out about the position.
        self.out_of_range.retain(|it| it.partition != partition);
        self.fetch.send(FetchCommand::Decided(active.token, partition, Decision::Seek(epoch, assignment)));
    }

    /// Commits for a group without members. Kafka refuses it to a group that has some.
    fn commit_for_nobody(&self, targets: &[(TopicPartition, NextOffset)]) -> Result<(), SeekError> {
        let mut list = List::new();
        for (partition, offset) in targets {
            list.add(&partition.topic, partition.partition, offset.0);
        }
        // A plain commit, as of a consumer that is in no group. Not by the Admin API: its requests to a coordinator abort the process
        // when the broker goes away under them (librdkafka issue 4605).
        let queue = Queue::new(&self.handle);
        queue.commit(&list, 0).map_err(|code| unavailable("the group", code))?;
        let until = Instant::now() + TRY_WITHIN;
        let code = loop {
            match queue.poll() {
                Some(Event::Committed { code, partitions, .. }) => {
                    let of_one = partitions.into_iter().map(|one| one.code).find(|code| *code != OK);
                    break of_one.or_else(|| (code != OK).then_some(code));
                }
                Some(_) => {}
                None if Instant::now() >= until => break Some(Code::RD_KAFKA_RESP_ERR__TIMED_OUT),
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        match code {
            None => Ok(()),
            Some(
                Code::RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID
                | Code::RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION
                | Code::RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS
                | Code::RD_KAFKA_RESP_ERR_STALE_MEMBER_EPOCH,
            ) => Err(SeekError::Moving),
            Some(code) => Err(unavailable("the group", code)),
        }
    }
}

fn each<T>(found: Found<T>) -> Result<Vec<(TopicPartition, T)>, SeekError> {
    let known = |(partition, found): (TopicPartition, Result<T, Code>)| match found {
        Ok(found) => Ok((partition, found)),
        Err(code) => Err(unavailable(&partition.to_string(), code)),
    };
    found.into_iter().map(known).collect()
}

fn unavailable(what: &str, code: Code) -> SeekError {
    SeekError::Unavailable(format!("Kafka did not say where {what} stands: {}", code_name(code)))
}
