//! Who is in the group, as Kafka says: nothing rests on it, and nothing waits for it.

use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use crate::describe::{Answer, Describer};
use crate::io::{GroupMember, KafkaConfig};

/// A member that has just joined is there soon after.
const AFTER_JOINING: Duration = Duration::from_secs(1);
/// After a failure, at least.
const PAUSE: Duration = Duration::from_secs(10);

pub(super) struct Group {
    describer: Option<Describer>,
    /// When to ask next; `None`: nobody wants to know.
    at: Option<Instant>,
    asked: Option<Receiver<Answer>>,
    told: Vec<GroupMember>,
    failed: Option<String>,
}

impl Group {
    pub(super) fn new(config: &KafkaConfig, describer: Option<Describer>) -> Self {
        let at = config.watch_group.then(Instant::now);
        Self { describer, at, asked: None, told: Vec::new(), failed: None }
    }

    pub(super) fn joining(&mut self) {
        self.at = Some(Instant::now() + AFTER_JOINING);
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
    pub(super) fn look(&mut self, config: &KafkaConfig) -> Option<Vec<GroupMember>> {
        let describer = self.describer.as_ref()?;
        if let Some(asked) = &self.asked {
            let answer = match asked.try_recv() {
                Ok(answer) => answer,
                Err(TryRecvError::Empty) => return None,
                Err(TryRecvError::Disconnected) => Err("the thread that asks is gone".to_owned()),
            };
            self.asked = None;
            return self.hear(answer, config);
        }
        if self.at.is_some_and(|at| Instant::now() >= at) {
            self.asked = Some(describer.ask(config.properties_for_questions(), config.group.clone()));
        }
        None
    }

    fn hear(&mut self, answer: Answer, config: &KafkaConfig) -> Option<Vec<GroupMember>> {
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
            Err(why) => {
                self.at = Some(Instant::now() + every.max(PAUSE));
                if self.failed.as_ref() != Some(&why) {
                    tracing::warn!(
                        group = config.group,
                        why,
                        "the group is not described: who else is in it is not known"
                    );
                    self.failed = Some(why);
                }
                None
            }
        }
    }
}
