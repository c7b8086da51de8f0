//! Who is in the group, as Kafka says: nothing rests on it, and nothing waits for it.
//!
//! Only where it is asked for: requests of librdkafka's Admin API that go to a coordinator abort the process when the broker goes
//! away under them (librdkafka issue 4605).

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::ffi::{Code, GroupRequest, Handle, code_name};
use crate::io::{GroupMember, KafkaConfig};

/// One try. Nothing waits for it, and one that is given up is what librdkafka may die of.
const WITHIN: Duration = Duration::from_secs(60);
/// A member that has just joined is there soon after.
const AFTER_JOINING: Duration = Duration::from_secs(1);
/// After a failure, at least.
const PAUSE: Duration = Duration::from_secs(30);

pub(super) struct Group {
    /// When to ask next; `None`: nobody wants to know.
    at: Option<Instant>,
    asked: Option<GroupRequest>,
    told: Vec<GroupMember>,
    failed: Option<Code>,
}

impl Group {
    pub(super) fn new(config: &KafkaConfig) -> Self {
        Self {
            at: (config.watch_group && config.describe_group).then(Instant::now),
            asked: None,
            told: Vec::new(),
            failed: None,
        }
    }

    pub(super) fn joining(&mut self, config: &KafkaConfig) {
        self.at = config.describe_group.then_some(Instant::now() + AFTER_JOINING);
    }

    /// What is to be told: that nobody looks any more.
    pub(super) fn left(&mut self, config: &KafkaConfig) -> Option<Vec<GroupMember>> {
        if config.watch_group {
            return None;
        }
        (self.at, self.asked) = (None, None);
        let known = !std::mem::take(&mut self.told).is_empty();
        known.then(Vec::new)
    }

    /// Asks when it is time; the members, where they are others than before. To be called now and then.
    pub(super) fn look(&mut self, handle: &Arc<Handle>, config: &KafkaConfig) -> Option<Vec<GroupMember>> {
        if let Some(asked) = &self.asked {
            let answer = asked.answer()?;
            self.asked = None;
            return self.hear(answer, config);
        }
        if self.at.is_some_and(|at| Instant::now() >= at) {
            self.asked = Some(GroupRequest::new(handle, &config.group, WITHIN));
        }
        None
    }

    fn hear(&mut self, answer: Result<Vec<GroupMember>, Code>, config: &KafkaConfig) -> Option<Vec<GroupMember>> {
        let every = config.metadata_refresh;
        match answer {
            Ok(mut members) => {
                self.at = Some(Instant::now() + every);
                self.failed = None;
                members.sort();
                if members == self.told {
                    return None;
                }
                self.told.clone_from(&members);
                Some(members)
            }
            Err(code) => {
                self.at = Some(Instant::now() + every.max(PAUSE));
                if self.failed.replace(code) != Some(code) {
                    let (group, code) = (&config.group, code_name(code));
                    tracing::info!(group, code, "the group is not described: who else is in it is not known");
                }
                None
            }
        }
    }
}
