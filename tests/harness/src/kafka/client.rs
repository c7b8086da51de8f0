//! What the tests ask of a broker. All calls block, and panic with what Kafka said.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

const TIMEOUT: Duration = Duration::from_secs(30);

/// A broker's address, and all that tests do there.
#[derive(Debug, Clone)]
pub struct Kafka {
    bootstrap: String,
}

/// A record to be written.
#[derive(Debug, Clone, Default)]
pub struct NewRecord {
    /// Absent: by the key's hash.
    pub partition: Option<i32>,
    /// Absent: null.
    pub key: Option<Vec<u8>>,
    /// Absent: a tombstone.
    pub value: Option<Vec<u8>>,
    /// Names and values, in their order.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    /// In milliseconds since 1970. Absent: that of its writing.
    pub timestamp_ms: Option<i64>,
}

/// A record that Kafka acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Produced {
    /// Its topic.
    pub topic: String,
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// Its value.
    pub value: Option<Vec<u8>>,
}

impl NewRecord {
    /// A record with this value for a partition.
    #[must_use]
    pub fn to(partition: i32, value: impl Into<Vec<u8>>) -> Self {
        Self { partition: Some(partition), value: Some(value.into()), ..Self::default() }
    }

    /// With a key.
    #[must_use]
    pub fn key(mut self, key: impl Into<Vec<u8>>) -> Self {
        self.key = Some(key.into());
        self
    }
}

impl Kafka {
    /// A broker at `host:port`.
    #[must_use]
    pub fn new(bootstrap: impl Into<String>) -> Self {
        Self { bootstrap: bootstrap.into() }
    }

    /// `host:port`.
    #[must_use]
    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// A librdkafka configuration for this broker.
    #[must_use]
    pub fn config(&self, properties: &[(&str, &str)]) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.bootstrap);
        for (key, value) in properties {
            config.set(*key, *value);
        }
        config
    }

    /// Whether it answers a question for metadata.
    #[must_use]
    pub fn answers(&self) -> bool {
        self.consumer(&[]).fetch_metadata(None, Duration::from_secs(2)).is_ok_and(|found| !found.brokers().is_empty())
    }

    fn consumer(&self, properties: &[(&str, &str)]) -> BaseConsumer {
        let mut config = self.config(&[
            ("group.id", "sluice-tests"),
            ("enable.auto.commit", "false"),
            ("fetch.wait.max.ms", "20"),
            ("isolation.level", "read_uncommitted"),
        ]);
        for (key, value) in properties {
            config.set(*key, *value);
        }
        config.create().expect("create a consumer")
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.config(&[]).create().expect("create an admin client")
    }

    /// A group's state and the client ids of its members, as the broker has them now.
    #[must_use]
    pub fn group(&self, group: &str) -> (String, Vec<String>) {
        let found = self.consumer(&[]).client().fetch_group_list(Some(group), TIMEOUT).expect("describe the group");
        let Some(one) = found.groups().iter().find(|one| one.name() == group) else { return Default::default() };
        (one.state().to_owned(), one.members().iter().map(|member| member.client_id().to_owned()).collect())
    }

    // === topics ===

    /// Creates a topic and waits until it has leaders.
    pub fn create_topic(&self, topic: &str, partitions: i32, configs: &[(&str, &str)]) {
        let mut new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
        for (key, value) in configs {
            new = new.set(key, value);
        }
        let answer = block_on(self.admin().create_topics(&[new], &options())).expect("ask for a topic");
        answer[0].as_ref().unwrap_or_else(|(topic, code)| panic!("create {topic}: {code}"));
        self.wait_for_partitions(topic, partitions);
    }

    /// A topic with a name of its own.
    #[must_use]
    pub fn topic(&self, name: &str, partitions: i32) -> String {
        let topic = crate::unique(name);
        self.create_topic(&topic, partitions, &[]);
        topic
    }

    /// Deletes a topic and waits until it is gone.
    pub fn delete_topic(&self, topic: &str) {
        let answer = block_on(self.admin().delete_topics(&[topic], &options())).expect("ask to delete a topic");
        answer[0].as_ref().unwrap_or_else(|(topic, code)| panic!("delete {topic}: {code}"));
        let consumer = self.consumer(&[]);
        crate::eventually_blocking("the topic is gone", TIMEOUT, || {
            let found = consumer.fetch_metadata(None, TIMEOUT).map_err(|error| error.to_string())?;
            if found.topics().iter().any(|known| known.name() == topic) {
                Err("still there".to_owned())
            } else {
                Ok(())
            }
        });
    }

    /// Raises the number of partitions to `total`.
    pub fn add_partitions(&self, topic: &str, total: i32) {
        let count = usize::try_from(total).expect("not negative");
        let answer = block_on(self.admin().create_partitions(&[NewPartitions::new(topic, count)], &options()));
        answer.expect("ask for partitions")[0]
            .as_ref()
            .unwrap_or_else(|(topic, code)| panic!("extend {topic}: {code}"));
        self.wait_for_partitions(topic, total);
    }

    /// Moves the log's start: records below `before` are gone, as retention does it.
    pub fn delete_records(&self, topic: &str, partition: i32, before: i64) {
        let list = offsets(&[(topic, partition, before)]);
        let answer = block_on(self.admin().delete_records(&list, &options())).expect("ask to delete records");
        for element in answer.elements() {
            element.error().unwrap_or_else(|error| panic!("delete records of {topic}: {error}"));
        }
    }

    /// Sets one value of a topic's configuration; the others are as they were made by default.
    pub fn configure_topic(&self, topic: &str, key: &str, value: &str) {
        let config = AlterConfig::new(ResourceSpecifier::Topic(topic)).set(key, value);
        let answer = block_on(self.admin().alter_configs(&[config], &options())).expect("ask to configure a topic");
        answer[0].as_ref().unwrap_or_else(|(_, code)| panic!("configure {topic}: {code}"));
    }

    fn wait_for_partitions(&self, topic: &str, partitions: i32) {
        let consumer = self.consumer(&[]);
        crate::eventually_blocking("the topic's partitions have leaders", TIMEOUT, || {
            let found = consumer.fetch_metadata(Some(topic), TIMEOUT).map_err(|error| error.to_string())?;
            let led = found.topics()[0].partitions().iter().filter(|one| one.error().is_none() && one.leader() >= 0);
            let led = led.count();
            if i32::try_from(led) == Ok(partitions) { Ok(()) } else { Err(format!("{led} of {partitions}")) }
        });
    }

    // === offsets ===

    /// The end of each partition's log, control records counted.
    #[must_use]
    pub fn end_offsets(&self, topic: &str) -> BTreeMap<i32, i64> {
        self.watermarks(topic).into_iter().map(|(partition, (_, high))| (partition, high)).collect()
    }

    /// Start and end of each partition's log.
    #[must_use]
    pub fn watermarks(&self, topic: &str) -> BTreeMap<i32, (i64, i64)> {
        let consumer = self.consumer(&[]);
        let found = consumer.fetch_metadata(Some(topic), TIMEOUT).expect("fetch metadata");
        let partitions = found.topics()[0].partitions().iter().map(|one| one.id());
        partitions.map(|id| (id, consumer.fetch_watermarks(topic, id, TIMEOUT).expect("fetch watermarks"))).collect()
    }

    /// A group's committed offsets and their metadata, for the partitions that have one.
    #[must_use]
    pub fn committed(&self, group: &str, topic: &str) -> BTreeMap<i32, (i64, String)> {
        let consumer = self.consumer(&[("group.id", group)]);
        let found = consumer.fetch_metadata(Some(topic), TIMEOUT).expect("fetch metadata");
        let asked: Vec<_> = found.topics()[0].partitions().iter().map(|one| (topic, one.id(), 0)).collect();
        let answer = consumer.committed_offsets(offsets(&asked), TIMEOUT).expect("fetch committed offsets");
        let of = |element: &rdkafka::topic_partition_list::TopicPartitionListElem<'_>| match element.offset() {
            Offset::Offset(offset) => Some((element.partition(), (offset, element.metadata().to_owned()))),
            _ => None,
        };
        answer.elements().iter().filter_map(of).collect()
    }

    /// A group's committed offset of one partition; `None` without one.
    #[must_use]
    pub fn committed_offset(&self, group: &str, topic: &str, partition: i32) -> Option<i64> {
        self.committed(group, topic).get(&partition).map(|(offset, _)| *offset)
    }

    // === records ===

    /// Writes records and waits for Kafka's word on each; in the order given.
    pub fn produce(&self, topic: &str, records: impl IntoIterator<Item = NewRecord>) -> Vec<Produced> {
        self.produce_with(&[], topic, records)
    }

    /// As `produce`, with properties of librdkafka's that win over the harness's.
    pub fn produce_with(
        &self,
        properties: &[(&str, &str)],
        topic: &str,
        records: impl IntoIterator<Item = NewRecord>,
    ) -> Vec<Produced> {
        let acknowledged = Arc::new(Mutex::new(Vec::new()));
        let usual = [
            ("enable.idempotence", "true"),
            ("linger.ms", "5"),
            ("queue.buffering.max.messages", "2000000"),
            // The topic decides what is too large.
            ("message.max.bytes", "33554432"),
        ];
        let producer: BaseProducer<Acknowledged> = self
            .config(&[&usual, properties].concat())
            .create_with_context(Acknowledged(Arc::clone(&acknowledged)))
            .expect("create a producer");
        let mut written = 0;
        for record in records {
            send(&producer, topic, &record, written);
            written += 1;
        }
        producer.flush(TIMEOUT * 4).expect("flush the producer");
        let mut all = std::mem::take(&mut *acknowledged.lock().expect("no panic in the callback"));
        assert_eq!(all.len(), written, "each record is acknowledged");
        all.sort_by_key(|(index, _)| *index);
        all.into_iter().map(|(_, produced)| produced).collect()
    }

    /// Writes `count` records of `bytes` bytes (at least their number), round robin over the partitions.
    pub fn fill(&self, topic: &str, partitions: i32, count: usize, bytes: usize) -> Vec<Produced> {
        self.produce(
            topic,
            (0..count).map(|index| {
                let partition = i32::try_from(index).expect("a test's count fits") % partitions;
                NewRecord::to(partition, numbered(index, bytes))
            }),
        )
    }

    /// Writes each batch in a transaction of its own, and aborts it where the batch says so. Only what was committed is
    /// answered.
    pub fn produce_transactions(&self, topic: &str, batches: &[(Vec<NewRecord>, End)]) -> Vec<Produced> {
        let acknowledged = Arc::new(Mutex::new(Vec::new()));
        let producer: BaseProducer<Acknowledged> = self
            .config(&[("transactional.id", &crate::unique("tx")), ("linger.ms", "0")])
            .create_with_context(Acknowledged(Arc::clone(&acknowledged)))
            .expect("create a producer");
        producer.init_transactions(TIMEOUT).expect("init transactions");
        let mut committed = Vec::new();
        for (records, end) in batches {
            producer.begin_transaction().expect("begin a transaction");
            for (index, record) in records.iter().enumerate() {
                send(&producer, topic, record, index);
            }
            producer.flush(TIMEOUT).expect("flush the producer");
            let written = std::mem::take(&mut *acknowledged.lock().expect("no panic in the callback"));
            match end {
                End::Commit => {
                    producer.commit_transaction(TIMEOUT).expect("commit a transaction");
                    committed.extend(written.into_iter().map(|(_, produced)| produced));
                }
                End::Abort => producer.abort_transaction(TIMEOUT).expect("abort a transaction"),
            }
        }
        committed
    }

    /// What a partition holds now, as a read_committed consumer sees it: (offset, value).
    #[must_use]
    pub fn read(&self, topic: &str, partition: i32) -> Vec<(i64, Option<Vec<u8>>)> {
        let mut seen = Vec::new();
        self.scan(topic, partition, "read_committed", |record| {
            seen.push((record.offset(), record.payload().map(<[u8]>::to_vec)));
        });
        seen
    }

    /// Hands each record from the log's start to its present end to `look`.
    pub(crate) fn scan(
        &self,
        topic: &str,
        partition: i32,
        isolation: &str,
        mut look: impl FnMut(&rdkafka::message::BorrowedMessage<'_>),
    ) {
        let consumer = self.consumer(&[
            ("isolation.level", isolation),
            ("enable.partition.eof", "false"),
            ("auto.offset.reset", "earliest"),
        ]);
        let (low, high) = self.watermarks(topic)[&partition];
        consumer.assign(&offsets(&[(topic, partition, low)])).expect("assign");
        let start = Instant::now();
        loop {
            match consumer.poll(Duration::from_millis(20)) {
                Some(record) => look(&record.unwrap_or_else(|error| panic!("read {topic}: {error}"))),
                None if position(&consumer, topic, partition) >= high => return,
                None => assert!(start.elapsed() < TIMEOUT * 4, "reading {topic} does not reach its end"),
            }
        }
    }
}

/// How a transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Its records are there.
    Commit,
    /// They never were.
    Abort,
}

/// A value of at least `bytes` bytes that begins with a number.
#[must_use]
pub fn numbered(index: usize, bytes: usize) -> Vec<u8> {
    let mut value = format!("{index:08}").into_bytes();
    value.resize(bytes.max(value.len()), b'.');
    value
}

/// Delivery reports: the index that a record was sent with, and where it went.
struct Acknowledged(Arc<Mutex<Vec<(usize, Produced)>>>);

impl ClientContext for Acknowledged {}

impl ProducerContext for Acknowledged {
    type DeliveryOpaque = Box<usize>;

    fn delivery(&self, result: &DeliveryResult<'_>, index: Self::DeliveryOpaque) {
        let Ok(record) = result else { return };
        let produced = Produced {
            topic: record.topic().to_owned(),
            partition: record.partition(),
            offset: record.offset(),
            value: record.payload().map(<[u8]>::to_vec),
        };
        self.0.lock().expect("no panic holds this lock").push((*index, produced));
    }
}

fn send(producer: &BaseProducer<Acknowledged>, topic: &str, record: &NewRecord, index: usize) {
    let mut next = BaseRecord::with_opaque_to(topic, Box::new(index));
    next.partition = record.partition;
    next.key = record.key.as_deref();
    next.payload = record.value.as_deref();
    next.timestamp = record.timestamp_ms;
    if !record.headers.is_empty() {
        let add = |headers: OwnedHeaders, (key, value): &(String, Option<Vec<u8>>)| {
            headers.insert(Header { key, value: value.as_deref() })
        };
        next.headers = Some(record.headers.iter().fold(OwnedHeaders::new_with_capacity(record.headers.len()), add));
    }
    loop {
        match producer.send(next) {
            Ok(()) => return,
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                producer.poll(Duration::from_millis(10));
                next = back;
            }
            Err((error, _)) => panic!("produce to {topic}: {error}"),
        }
    }
}

fn position(consumer: &BaseConsumer, topic: &str, partition: i32) -> i64 {
    let positions = consumer.position().expect("read the position");
    match positions.find_partition(topic, partition).map(|element| element.offset()) {
        Some(Offset::Offset(offset)) => offset,
        _ => match consumer.fetch_watermarks(topic, partition, TIMEOUT) {
            // An empty log never gives a position.
            Ok((low, high)) if low == high => high,
            _ => -1,
        },
    }
}

fn offsets(all: &[(&str, i32, i64)]) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for (topic, partition, offset) in all {
        list.add_partition_offset(topic, *partition, Offset::Offset(*offset)).expect("a valid offset");
    }
    list
}

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(TIMEOUT)).request_timeout(Some(TIMEOUT))
}

/// Waits for one of rdkafka's futures, which its own threads wake: works inside a runtime and without one.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = std::pin::pin!(future);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
        std::thread::park_timeout(Duration::from_millis(100));
    }
}
