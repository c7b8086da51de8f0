//! How Kafka is, for readiness.

use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;

use crate::ffi::{Code, Handle, code_name};
use crate::io::{KafkaEvent, KafkaState};

/// How often a broker is asked while all is well.
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// And while it is not, or after an error.
const PROBE_SOON: Duration = Duration::from_secs(1);
/// A broker that does not answer within this is away.
const PROBE_WITHIN: Duration = Duration::from_secs(3);
/// A refusal is believed to be why nothing answers for this long.
const REFUSAL_HOLDS: Duration = Duration::from_secs(60);

pub(super) struct Health {
    events: UnboundedSender<KafkaEvent>,
    joined: bool,
    told: Option<KafkaState>,
    partitions: usize,
    probe_at: Instant,
    /// The connection is refused: told by the member handle, cleared when a broker answers.
    connection_refused: Option<(String, Instant)>,
    /// The group is refused: librdkafka says so once and is silent then; cleared by an assignment.
    group_refused: Option<String>,
}

impl Health {
    pub(super) fn new(events: UnboundedSender<KafkaEvent>) -> Self {
        Self {
            events,
            joined: false,
            told: None,
            partitions: 0,
            probe_at: Instant::now(),
            connection_refused: None,
            group_refused: None,
        }
    }

    pub(super) fn joined(&mut self, joined: bool) {
        self.joined = joined;
        self.group_refused = None;
        self.probe_at = Instant::now();
    }

    pub(super) fn a_group_answered(&mut self) {
        if self.group_refused.take().is_some() {
            self.probe_at = Instant::now();
        }
    }

    pub(super) fn trouble(&mut self, code: Code, text: &str) {
        let text = || format!("{}: {text}", code_name(code));
        match code {
            Code::RD_KAFKA_RESP_ERR__AUTHENTICATION
            | Code::RD_KAFKA_RESP_ERR_SASL_AUTHENTICATION_FAILED
            | Code::RD_KAFKA_RESP_ERR__SSL
            | Code::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED => {
                self.connection_refused = Some((text(), Instant::now()));
            }
            Code::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED => self.group_refused = Some(text()),
            _ => {}
        }
        self.probe_at = self.probe_at.min(Instant::now() + PROBE_SOON);
    }

    /// Asks for the topics' metadata when it is time, and tells what changed.
    pub(super) fn probe(&mut self, handle: &Handle, topics: &[String]) {
        if Instant::now() < self.probe_at {
            return;
        }
        let state = self.state(handle, topics);
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

    fn state(&mut self, handle: &Handle, topics: &[String]) -> KafkaState {
        let mut partitions = 0;
        for topic in topics {
            let count = handle.partition_count(topic, PROBE_WITHIN);
            partitions += count.unwrap_or(0);
            match count {
                Ok(0) | Err(Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART | Code::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC) => {
                    return KafkaState::TopicMissing(topic.clone());
                }
                Err(code @ Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED) => {
                    return KafkaState::Refused(format!("{}: topic {topic}", code_name(code)));
                }
                // Some leader is being elected: a broker answered.
                Ok(_) | Err(Code::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE) => self.connection_refused = None,
                Err(code) => {
                    let refused = self.connection_refused.as_ref().filter(|(_, at)| at.elapsed() < REFUSAL_HOLDS);
                    return match refused {
                        Some((text, _)) => KafkaState::Refused(text.clone()),
                        None => KafkaState::Unreachable(code_name(code).to_owned()),
                    };
                }
            }
        }
        if self.partitions != partitions {
            self.partitions = partitions;
            let _receiver_gone = self.events.send(KafkaEvent::Partitions(partitions));
        }
        match &self.group_refused {
            Some(text) => KafkaState::Refused(text.clone()),
            None if self.joined => KafkaState::Reachable,
            None => KafkaState::Idle,
        }
    }
}
