//! What is known of topics: their ids, and whether the group had commits in them when we joined.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_core::{Epoch, TopicPartition};

use crate::ffi::{Code, Handle, List, OK, PartitionResult, code_name};
use crate::io::KafkaConfig;

/// A topic's id is waited for this long: it must not delay an assignment.
const ID_WITHIN: Duration = Duration::from_millis(500);
/// After a failure ids are not asked for during this.
const ID_PAUSE: Duration = Duration::from_secs(30);
/// One try to read commits.
const COMMITS_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(super) struct Topics {
    hashes: HashMap<Arc<str>, u32>,
    /// Topics that were made again while we looked: they are read from their beginning, whatever the start policy says.
    made_again: Vec<Arc<str>>,
    /// Topics without any commit when we joined, and how many partitions they had: the start policy is for these.
    fresh: HashMap<String, usize>,
    fresh_wanted: bool,
    fresh_at: Option<Instant>,
    ids_pause_until: Option<Instant>,
    ids_unsupported: bool,
}

impl Topics {
    pub(super) fn hash(&self, topic: &str) -> u32 {
        self.hashes.get(topic).copied().unwrap_or(0)
    }

    /// Reads the id; `true`: it is another one than before.
    pub(super) fn refresh_id(&mut self, handle: &Handle, topic: &Arc<str>) -> bool {
        if self.ids_unsupported || self.ids_pause_until.is_some_and(|until| Instant::now() < until) {
            return false;
        }
        match handle.topic_hash(topic, ID_WITHIN) {
            Ok(0) => false,
            Ok(hash) => {
                let before = self.hashes.insert(Arc::clone(topic), hash);
                let made_again = before.is_some_and(|before| before != hash);
                if made_again {
                    self.made_again.push(Arc::clone(topic));
                }
                made_again
            }
            Err(Code::RD_KAFKA_RESP_ERR__UNSUPPORTED_FEATURE | Code::RD_KAFKA_RESP_ERR_UNSUPPORTED_VERSION) => {
                tracing::warn!(%topic, "the broker does not tell topics' ids: a topic made again may be taken for the old");
                self.ids_unsupported = true;
                false
            }
            Err(Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART) => false,
            Err(code) => {
                tracing::warn!(%topic, code = code_name(code), "the topic's id was not read");
                self.ids_pause_until = Some(Instant::now() + ID_PAUSE);
                false
            }
        }
    }

    pub(super) fn joining(&mut self) {
        self.fresh_wanted = true;
        self.fresh_at = None;
    }

    /// Notes which topics have no commit, before any member of a young group commits. Members that join together would
    /// otherwise take each other's first commits for a sign that their own partitions are new ones.
    pub(super) fn note_fresh(&mut self, handle: &Handle, config: &KafkaConfig, within: Duration) {
        if !self.fresh_wanted || self.fresh_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        self.fresh_at = Some(Instant::now() + within);
        let mut all = true;
        for topic in &config.topics {
            if self.fresh.contains_key(topic) {
                continue;
            }
            match self.commits(handle, topic) {
                Ok(commits) if commits.iter().all(|it| it.offset < 0) => {
                    self.fresh.insert(topic.clone(), commits.len());
                }
                Ok(_) => {}
                Err(_) => all = false,
            }
        }
        self.fresh_wanted = !all;
    }

    /// What the group has committed in all partitions of a topic.
    pub(super) fn commits(&self, handle: &Handle, topic: &str) -> Result<Vec<PartitionResult>, Code> {
        let count = handle.partition_count(topic, COMMITS_WITHIN)?;
        let mut list = List::new();
        for partition in 0..i32::try_from(count).unwrap_or(i32::MAX) {
            list.add(topic, partition, crate::ffi::OFFSET_NONE);
        }
        let commits = handle.committed(&list, COMMITS_WITHIN)?;
        match commits.iter().map(|it| it.code).find(|code| *code != OK) {
            Some(code) => Err(code),
            None => Ok(commits),
        }
    }

    /// Whether the start policy is for this partition, which has no commit: not when it appeared later than others.
    pub(super) fn start_applies(&self, partition: &TopicPartition, commits: &[PartitionResult]) -> bool {
        if self.made_again.contains(&partition.topic) {
            return false;
        }
        let index = usize::try_from(partition.partition).unwrap_or(usize::MAX);
        let was_fresh = self.fresh.get(&*partition.topic).is_some_and(|count| index < *count);
        was_fresh || commits.iter().all(|it| it.offset < 0)
    }
}

/// 63 random bits, not 0.
pub(super) fn new_epoch() -> Epoch {
    let mut bytes = [0; 8];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    let bits = match read {
        Ok(()) => u64::from_ne_bytes(bytes),
        // A hasher's keys are random too, from the system's own source.
        Err(_) => RandomState::new().build_hasher().finish(),
    };
    Epoch(((bits >> 1).max(1)).cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn committed(offsets: &[i64]) -> Vec<PartitionResult> {
        let result = |(partition, offset): (usize, &i64)| PartitionResult {
            partition: TopicPartition::new("t", i32::try_from(partition).expect("few")),
            offset: *offset,
            metadata: None,
            code: OK,
        };
        offsets.iter().enumerate().map(result).collect()
    }

    #[test]
    fn epochs_are_positive_and_differ() {
        let (one, two) = (new_epoch(), new_epoch());
        assert!(one.0 > 0 && two.0 > 0);
        assert_ne!(one, two);
    }

    #[test]
    fn the_start_policy_is_for_a_topic_without_commits() {
        let topics = Topics::default();
        let partition = TopicPartition::new("t", 1);
        assert!(topics.start_applies(&partition, &committed(&[-1001, -1001])));
        assert!(!topics.start_applies(&partition, &committed(&[7, -1001])));
    }

    #[test]
    fn members_that_join_together_do_not_take_each_others_partitions_for_new_ones() {
        let topics = Topics { fresh: HashMap::from([("t".to_owned(), 2)]), ..Topics::default() };
        assert!(topics.start_applies(&TopicPartition::new("t", 1), &committed(&[7, -1001])));
        assert!(!topics.start_applies(&TopicPartition::new("t", 2), &committed(&[7, -1001, -1001])));
    }

    #[test]
    fn a_topic_made_again_is_read_from_its_beginning() {
        let topics = Topics { made_again: vec![Arc::from("t")], ..Topics::default() };
        assert!(!topics.start_applies(&TopicPartition::new("t", 0), &committed(&[-1001])));
    }
}
