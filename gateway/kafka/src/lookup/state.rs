//! How Kafka is, for readiness.
//!
//! A connection that is refused is the node's matter: nothing that it has works. A right that is missing is the subscription's: the
//! others go on, and its clients are told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;

use crate::ffi::{Code, Handle, code_name};
use crate::io::{KafkaConfig, KafkaEvent, KafkaState, MissingRights};
use crate::messages::Silence;

/// How often a broker is asked while all is well.
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// And while it is not, or after an error.
const PROBE_SOON: Duration = Duration::from_secs(1);
/// A broker that does not answer within this is away.
const PROBE_WITHIN: Duration = Duration::from_secs(3);
/// A refusal is believed to be why nothing answers for this long.
const REFUSAL_HOLDS: Duration = Duration::from_secs(60);
/// A broker says within this whether a topic may be read.
const RIGHTS_WITHIN: Duration = Duration::from_secs(1);

pub(super) struct Health {
    events: UnboundedSender<KafkaEvent>,
    silence: Arc<Silence>,
    joined: bool,
    told: Option<KafkaState>,
    partitions: usize,
    probe_at: Instant,
    /// Some broker answered something at the last look.
    answered: bool,
    /// The connection is refused: told by the handles, cleared when a broker answers.
    connection_refused: Option<(String, Instant)>,
    /// The group may not be read: librdkafka says so once and tries on in silence; cleared by an assignment or a commit, and
    /// where nobody tries any more.
    group_unreadable: bool,
    /// Topics that were not to be read though they may be described, and whether the broker has confirmed it.
    unreadable: BTreeMap<String, bool>,
}

impl Health {
    pub(super) fn new(events: UnboundedSender<KafkaEvent>, silence: Arc<Silence>) -> Self {
        Self {
            events,
            silence,
            joined: false,
            told: None,
            partitions: 0,
            probe_at: Instant::now(),
            answered: false,
            connection_refused: None,
            group_unreadable: false,
            unreadable: BTreeMap::new(),
        }
    }

    pub(super) fn joined(&mut self, joined: bool) {
        self.joined = joined;
        self.group_unreadable = false;
        // A broker that does not say what may be read is believed until the next try.
        self.unreadable.retain(|_, confirmed| *confirmed);
        self.probe_at = Instant::now();
    }

    pub(super) fn a_group_answered(&mut self) {
        if std::mem::take(&mut self.group_unreadable) {
            self.probe_at = Instant::now();
        }
    }

    /// A fetch or a commit was refused. A broker is asked whether it is so.
    pub(super) fn unreadable(&mut self, topic: &str) {
        if !self.unreadable.contains_key(topic) {
            self.unreadable.insert(topic.to_owned(), false);
            self.probe_at = Instant::now();
        }
    }

    pub(super) fn read_again(&mut self, topic: &str) {
        if self.unreadable.remove(topic).is_some() {
            self.probe_at = Instant::now();
        }
    }

    pub(super) fn trouble(&mut self, code: Code, text: &str) {
        let text = || format!("{}: {text}", code_name(code));
        match code {
            Code::RD_KAFKA_RESP_ERR__AUTHENTICATION
            | Code::RD_KAFKA_RESP_ERR_SASL_AUTHENTICATION_FAILED
            | Code::RD_KAFKA_RESP_ERR__SSL => {
                self.connection_refused = Some((text(), Instant::now()));
            }
            // Said while nobody wants to join it would be there for ever: the next join finds out.
            Code::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED => self.group_unreadable = self.joined,
            _ => {}
        }
        self.probe_at = self.probe_at.min(Instant::now() + PROBE_SOON);
    }

    /// Asks for the topics' metadata when it is time, and tells what changed.
    pub(super) fn probe(&mut self, handle: &Handle, config: &KafkaConfig) {
        for (code, text) in handle.take_errors() {
            self.trouble(code, &text);
        }
        if Instant::now() < self.probe_at {
            return;
        }
        let asked = Instant::now();
        self.answered = false;
        let state = self.state(handle, config);
        // The answer before this silence came up to a look earlier.
        let since = asked.checked_sub(PROBE_EVERY).unwrap_or(asked);
        self.silence.note(self.answered, if self.answered { asked } else { since });
        let well = matches!(state, KafkaState::Reachable | KafkaState::Idle);
        self.probe_at = Instant::now() + if well { PROBE_EVERY } else { PROBE_SOON };
        if self.told.as_ref() == Some(&state) {
            return;
        }
        if well {
            tracing::info!(?state, "kafka's state");
        } else {
            tracing::warn!(?state, "kafka's state");
        }
        self.told = Some(state.clone());
        // The receiver is gone only when the subscription is being dropped: then nobody needs to hear it.
        let _receiver_gone = self.events.send(KafkaEvent::State(state));
    }

    fn state(&mut self, handle: &Handle, config: &KafkaConfig) -> KafkaState {
        let mut rights = MissingRights::default();
        let (mut partitions, mut missing) = (0, None);
        for topic in &config.topics {
            let found = handle.partition_count(topic, PROBE_WITHIN);
            // Codes of librdkafka's own are negative: no broker said them.
            self.answered |= found.as_ref().map_or_else(|code| *code as i32 > 0, |_| true);
            match found {
                Ok(0) | Err(Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART | Code::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC) => {
                    missing = missing.or(Some(topic));
                }
                Err(Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED) => rights.topics.push(topic.clone()),
                Ok(count) => {
                    partitions += count;
                    if self.is_unreadable(handle, topic) {
                        rights.topics.push(topic.clone());
                    }
                }
                // Some leader is being elected: a broker answered.
                Err(Code::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE) => {}
                Err(code) => {
                    let refused = self.connection_refused.as_ref().filter(|(_, at)| at.elapsed() < REFUSAL_HOLDS);
                    return match refused {
                        Some((text, _)) => KafkaState::Refused(text.clone()),
                        None => KafkaState::Unreachable(code_name(code).to_owned()),
                    };
                }
            }
            self.connection_refused = None;
        }
        rights.group = self.group_unreadable.then(|| config.group.clone());
        rights.whole = rights.group.is_some() || rights.topics.len() == config.topics.len();
        if !rights.is_empty() {
            return KafkaState::RightsMissing(rights);
        }
        if let Some(topic) = missing {
            return KafkaState::TopicMissing(topic.clone());
        }
        if self.partitions != partitions {
            self.partitions = partitions;
            let _receiver_gone = self.events.send(KafkaEvent::Partitions(partitions));
        }
        if self.joined { KafkaState::Reachable } else { KafkaState::Idle }
    }

    /// Whether a topic that was not to be read still is not. Where no broker can say, it is until something is read.
    fn is_unreadable(&mut self, handle: &Handle, topic: &str) -> bool {
        let Some(confirmed) = self.unreadable.get_mut(topic) else { return false };
        match handle.may_read(topic, RIGHTS_WITHIN) {
            Ok(Some(true)) => {
                self.unreadable.remove(topic);
                false
            }
            Ok(Some(false)) => {
                *confirmed = true;
                true
            }
            Ok(None) | Err(_) => true,
        }
    }
}
