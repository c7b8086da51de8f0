//! Small tools for people and samples: a producer that says where a record went, and topics made where they are missing.
//! Nothing in the way of a lease uses them.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};

/// What Kafka, or librdkafka, answered.
#[derive(Debug, Clone, thiserror::Error)]
#[error("kafka: {0}")]
pub struct ToolError(String);

impl ToolError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// A record to be written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outgoing {
    /// The topic.
    pub topic: String,
    /// Absent: null.
    pub key: Option<Bytes>,
    /// Absent: null, a tombstone.
    pub value: Option<Bytes>,
    /// In this order.
    pub headers: Vec<(String, Bytes)>,
}

/// A producer that waits for each record's acknowledgement by all in-sync replicas.
#[derive(Clone)]
pub struct Producer {
    inner: FutureProducer,
}

impl Producer {
    /// Connects lazily; `timeout` bounds each record.
    ///
    /// # Errors
    /// When librdkafka refuses a property.
    pub fn new(brokers: &str, properties: &BTreeMap<String, String>, timeout: Duration) -> Result<Self, ToolError> {
        let mut config = client_config(brokers, properties);
        config.set("message.timeout.ms", timeout.as_millis().max(1).to_string());
        let inner = config.create().map_err(|error: KafkaError| ToolError(error.to_string()))?;
        Ok(Self { inner })
    }

    /// Queues a record at once, so that records keep their order; the future says where it went: partition and offset.
    ///
    /// # Errors
    /// When it was not acknowledged in time, or refused.
    pub fn send(&self, record: &Outgoing) -> impl Future<Output = Result<(i32, i64), ToolError>> + Send + use<> {
        let mut outgoing = FutureRecord::<[u8], [u8]>::to(&record.topic);
        outgoing.key = record.key.as_deref();
        outgoing.payload = record.value.as_deref();
        if !record.headers.is_empty() {
            let headers = OwnedHeaders::new_with_capacity(record.headers.len());
            outgoing.headers =
                Some(record.headers.iter().fold(headers, |headers, (key, value)| {
                    headers.insert(Header { key, value: Some(value.as_ref()) })
                }));
        }
        let queued = self.inner.send_result(outgoing).map_err(|(error, _)| tool_error(&error));
        async move {
            let answer = queued?.await.map_err(|_| ToolError::new("the producer ended"))?;
            let delivery = answer.map_err(|(error, _)| tool_error(&error))?;
            Ok((delivery.partition, delivery.offset))
        }
    }

    /// Waits until nothing is in flight, at most `timeout`. Blocks.
    pub fn flush(&self, timeout: Duration) {
        // What is left after the timeout was reported to its sender already.
        let _timed_out = self.inner.flush(timeout);
    }
}

impl std::fmt::Debug for Producer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Producer").finish_non_exhaustive()
    }
}

/// Makes topics with the broker's default replication; one that exists already is left as it is.
///
/// # Errors
/// When no broker answers within `timeout`, or one refuses.
pub async fn create_topics(
    brokers: &str,
    properties: &BTreeMap<String, String>,
    topics: &[(&str, i32)],
    timeout: Duration,
) -> Result<(), ToolError> {
    let config = client_config(brokers, properties);
    let admin: AdminClient<DefaultClientContext> = config.create().map_err(|error| tool_error(&error))?;
    // -1: what the broker has as its default.
    let new: Vec<_> =
        topics.iter().map(|(name, partitions)| NewTopic::new(name, *partitions, TopicReplication::Fixed(-1))).collect();
    let options = AdminOptions::new().request_timeout(Some(timeout)).operation_timeout(Some(timeout));
    let results = admin.create_topics(&new, &options).await.map_err(|error| tool_error(&error))?;
    for result in results {
        match result {
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((topic, code)) => return Err(ToolError::new(format!("cannot make topic {topic}: {code}"))),
        }
    }
    Ok(())
}

fn tool_error(error: &KafkaError) -> ToolError {
    ToolError(error.rdkafka_error_code().map_or_else(|| error.to_string(), |code| code.to_string()))
}

fn client_config(brokers: &str, properties: &BTreeMap<String, String>) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers);
    for (name, value) in properties {
        config.set(name, value);
    }
    config
}
