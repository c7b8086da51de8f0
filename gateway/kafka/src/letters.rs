//! Writes that only Kafka's acknowledgement ends: dead letters, and dead letters that go back to where they came from.
//!
//! Contract: [`LetterWriter::write`] never waits. Each write is answered once, with where it stands or why it does not,
//! within the writer's timeout. The client is idempotent with `acks=all`, and is made with the first write; after a fatal
//! error of it the next write makes another. Dropping the writer never waits for Kafka.

mod headers;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseRecord, ProducerContext, ThreadedProducer};
use sluice_core::{LetterError, Record};

pub use headers::{LetterFacts, LetterOrigin};

use crate::config::check_properties;
use crate::repeats::Repeats;
use crate::signal::Mailbox;
use crate::subscription::{Error, spawn};

/// The largest request that a broker takes unless it is told otherwise (`socket.request.max.bytes`); above it the
/// connection would be cut. What is smaller is the topic's to refuse, not ours.
const REQUEST_BYTES_MAX: u64 = 100_000_000;
/// librdkafka's bounds of `message.max.bytes`.
const MESSAGE_BYTES_BOUNDS: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000;
/// A topic that is made while letters wait for it is found within this.
const METADATA_REFRESH: Duration = Duration::from_secs(2);
/// How long the writer's thread sleeps when nothing is to be written.
const IDLE: Duration = Duration::from_secs(3_600);
/// Properties that an operator may set and that mean something to a consumer alone.
const CONSUMERS_ONLY: &[&str] =
    &["check.crcs", "isolation.level", "max.poll.interval.ms", "max.partition.fetch.bytes", "group.remote.assignor"];

/// One writer's client.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct WriterConfig {
    /// `bootstrap.servers`.
    pub brokers: String,
    /// `client.id`.
    pub client_id: String,
    /// Other librdkafka properties, as in `KafkaConfig::properties`.
    pub properties: BTreeMap<String, String>,
    /// Each write is answered within this.
    pub timeout: Duration,
    /// Bytes on their way at once. A write above it is refused, and may come again.
    pub queue_bytes: u64,
}

/// One record to write.
pub struct Write {
    /// The topic.
    pub topic: String,
    /// `None`: by the key's hash, as Kafka's own clients do it; anywhere without a key.
    pub partition: Option<i32>,
    /// Key, value, headers and timestamp. Its offset is of no meaning.
    pub record: Record,
    /// Headers after the record's own, in this order.
    pub added: Vec<(&'static str, String)>,
    /// Called once, on a thread of the writer: it must not wait.
    pub done: Done,
}

/// Where a write stands: partition and offset.
pub type Written = (i32, i64);

/// Why Kafka did not take a write.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{words}")]
pub struct WriteError {
    /// What kind.
    pub kind: LetterError,
    /// In words for an operator: the topic, and what Kafka said.
    pub words: String,
}

/// Who hears of a write's end. Dropped before that, it says that the write failed.
pub struct Done(Option<Hear>);

type Hear = Box<dyn FnOnce(Result<Written, WriteError>) + Send + Sync>;

/// The handle of a writer's thread. Dropping it ends the thread; what was not written by then is answered as failed.
#[derive(Debug)]
pub struct LetterWriter {
    mailbox: Arc<Mailbox<Command>>,
}

enum Command {
    Write(Box<Write>),
    Stop,
}

// === impl LetterWriter ===

impl LetterWriter {
    /// Starts the thread. No client is made and no broker is asked before the first write.
    ///
    /// # Errors
    /// When librdkafka refuses a property, or no thread can be started.
    pub fn start(config: WriterConfig) -> Result<Self, Error> {
        check_properties(&config.properties)?;
        let client = config.client();
        client.create_native_config().map_err(|error| Error::Config(error.to_string()))?;
        let mailbox = Mailbox::new();
        let mut worker = Worker { client, mailbox: Arc::clone(&mailbox), producer: None };
        spawn("kafka-letters", move || {
            // A panic is a bug, and the letter in hand was answered as failed; those that follow must not wait for ever.
            while catch_unwind(AssertUnwindSafe(|| worker.run())).is_err() {
                worker.retire();
            }
        })?;
        Ok(Self { mailbox })
    }

    /// Hands a record to the thread.
    pub fn write(&self, write: Write) {
        self.mailbox.send(Command::Write(Box::new(write)));
    }
}

impl Drop for LetterWriter {
    fn drop(&mut self) {
        self.mailbox.send(Command::Stop);
    }
}

// === impl WriterConfig ===

impl WriterConfig {
    fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        let mut set = |name: &str, value: String| {
            client.set(name, value);
        };
        // The topic decides what is too large. Where an operator knows a broker that takes more, that stands.
        let asked = self.properties.get("message.max.bytes").and_then(|bytes| bytes.parse().ok()).unwrap_or(0);
        let message_bytes = REQUEST_BYTES_MAX.max(asked).min(self.queue_bytes);
        let message_bytes = message_bytes.clamp(*MESSAGE_BYTES_BOUNDS.start(), *MESSAGE_BYTES_BOUNDS.end());
        for (name, value) in &self.properties {
            if !CONSUMERS_ONLY.contains(&name.as_str()) && !name.starts_with("fetch.") {
                set(name, value.clone());
            }
        }
        set("bootstrap.servers", self.brokers.clone());
        set("client.id", self.client_id.clone());
        set("enable.idempotence", "true".to_owned());
        set("acks", "all".to_owned());
        set("message.timeout.ms", self.timeout.as_millis().max(1).to_string());
        set("message.max.bytes", message_bytes.to_string());
        set("queue.buffering.max.kbytes", (self.queue_bytes >> 10).clamp(1, 2_147_483_647).to_string());
        // A batch that is too large is refused as a whole: then a small letter would pay for a large one.
        set("batch.num.messages", "1".to_owned());
        set("linger.ms", "0".to_owned());
        // Where Kafka's own clients put a key.
        set("partitioner", "murmur2_random".to_owned());
        set("allow.auto.create.topics", "false".to_owned());
        set("topic.metadata.propagation.max.ms", "0".to_owned());
        set("topic.metadata.refresh.interval.ms", METADATA_REFRESH.as_millis().to_string());
        set("reconnect.backoff.ms", "50".to_owned());
        set("reconnect.backoff.max.ms", "1000".to_owned());
        client
    }
}

// === the thread ===

struct Worker {
    client: ClientConfig,
    mailbox: Arc<Mailbox<Command>>,
    producer: Option<ThreadedProducer<Reports>>,
}

impl Worker {
    fn run(&mut self) {
        loop {
            match self.mailbox.take() {
                Some(Command::Write(write)) => self.write(*write),
                Some(Command::Stop) => return self.retire(),
                None => self.mailbox.signal().wait(IDLE),
            }
        }
    }

    fn write(&mut self, write: Write) {
        let Write { topic, partition, record, added, done } = write;
        let mut next = BaseRecord::<[u8], [u8], Box<Done>>::with_opaque_to(&topic, Box::new(done));
        next.partition = partition;
        next.key = record.key.as_deref();
        next.payload = record.value.as_deref();
        // Before 1970 there is no Kafka: a record without a timestamp gets that of its writing.
        next.timestamp = Some(record.timestamp_ms).filter(|ms| *ms >= 0);
        next.headers = headers_of(&record, &added);
        for _ in 0..2 {
            let producer = match self.producer() {
                Ok(producer) => producer,
                Err(error) => return refuse(*next.delivery_opaque, &topic, &error),
            };
            match producer.send(next) {
                Ok(()) => return,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::Fatal), back)) => {
                    tracing::warn!(topic, "the dead-letter producer is broken: it is made anew");
                    self.retire();
                    next = back;
                }
                Err((error, back)) => return refuse(*back.delivery_opaque, &topic, &error),
            }
        }
        // Broken again at once: dropping the opaque says that it failed.
    }

    fn producer(&mut self) -> Result<&ThreadedProducer<Reports>, KafkaError> {
        if self.producer.is_none() {
            self.producer = Some(self.client.create_with_context(Reports::default())?);
        }
        self.producer.as_ref().ok_or(KafkaError::Canceled)
    }

    /// Lets go of the client. It answers what it still has as failed, which may take a second: on a thread of its own.
    fn retire(&mut self) {
        if let Some(producer) = self.producer.take() {
            // Without a thread it is dropped here.
            let _no_thread = spawn("kafka-drop", move || drop(producer));
        }
    }
}

fn headers_of(record: &Record, added: &[(&'static str, String)]) -> Option<OwnedHeaders> {
    let own = record.headers.as_deref().unwrap_or_default();
    if own.is_empty() && added.is_empty() {
        return None;
    }
    let headers = OwnedHeaders::new_with_capacity(own.len() + added.len());
    let headers = own
        .iter()
        .fold(headers, |headers, header| headers.insert(Header { key: &header.key, value: header.value.as_deref() }));
    let add = |headers: OwnedHeaders, (key, value): &(&'static str, String)| {
        headers.insert(Header { key, value: Some(value.as_bytes()) })
    };
    Some(added.iter().fold(headers, add))
}

fn refuse(done: Done, topic: &str, error: &KafkaError) {
    done.end(Err(write_error(topic, error)));
}

fn write_error(topic: &str, error: &KafkaError) -> WriteError {
    use RDKafkaErrorCode as Code;
    let code = match error {
        KafkaError::MessageProduction(code) => Some(*code),
        other => other.rdkafka_error_code(),
    };
    let kind = match code {
        Some(Code::MessageSizeTooLarge | Code::MessageBatchTooLarge) => LetterError::TooLarge,
        _ => LetterError::Failed,
    };
    let why = match code {
        Some(Code::UnknownTopic | Code::UnknownTopicOrPartition) => "the topic is missing".to_owned(),
        Some(Code::TopicAuthorizationFailed) => "writing to the topic is not allowed".to_owned(),
        Some(Code::ClusterAuthorizationFailed) => "idempotent writes are not allowed".to_owned(),
        Some(Code::MessageTimedOut) => "no answer in time".to_owned(),
        Some(Code::QueueFull) => "too many bytes are on their way already".to_owned(),
        Some(Code::MessageSizeTooLarge | Code::MessageBatchTooLarge) => "too large for the topic".to_owned(),
        Some(code) => code.to_string(),
        None => error.to_string(),
    };
    WriteError { kind, words: format!("topic {topic}: {why}") }
}

// === impl Done ===

impl Done {
    /// Calls `hear` with the write's end.
    pub fn new(hear: impl FnOnce(Result<Written, WriteError>) + Send + Sync + 'static) -> Self {
        Self(Some(Box::new(hear)))
    }

    fn end(mut self, result: Result<Written, WriteError>) {
        if let Some(hear) = self.0.take() {
            hear(result);
        }
    }
}

impl Drop for Done {
    fn drop(&mut self) {
        if let Some(hear) = self.0.take() {
            hear(Err(WriteError { kind: LetterError::Failed, words: "the writer ended".to_owned() }));
        }
    }
}

impl std::fmt::Debug for Done {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Done").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Write {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Write").field("topic", &self.topic).field("record", &self.record).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Write(_) => "Write",
            Self::Stop => "Stop",
        })
    }
}

// === impl Reports ===

/// Delivery reports, and the client's log lines, of which it repeats some many times a second.
#[derive(Default)]
struct Reports(Mutex<Repeats>);

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        let admit = || self.0.lock().unwrap_or_else(PoisonError::into_inner).admit((facility, text), Instant::now());
        match level {
            RDKafkaLogLevel::Debug => tracing::debug!(target: "librdkafka", facility, "{text}"),
            RDKafkaLogLevel::Info | RDKafkaLogLevel::Notice => {
                tracing::debug!(target: "librdkafka", facility, "{text}")
            }
            _ => {
                if let Some(suppressed) = admit() {
                    tracing::warn!(target: "librdkafka", client = "letters", facility, suppressed, "{text}");
                }
            }
        }
    }

    /// Said by `log` as well, and by each write that it makes fail.
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", client = "letters", %error, reason, "the dead-letter producer");
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Done>;

    fn delivery(&self, result: &DeliveryResult<'_>, done: Box<Done>) {
        done.end(match result {
            Ok(record) => Ok((record.partition(), record.offset())),
            Err((error, record)) => Err(write_error(record.topic(), error)),
        });
    }
}

#[cfg(test)]
mod tests;
