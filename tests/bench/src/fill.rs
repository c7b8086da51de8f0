//! Fills topics, and produces at a steady rate.

use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Error, Result, bail};
use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message as _};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};

use crate::floor::say;
use crate::latency::{Latency, Percentiles, intended_ns, stamp};
use crate::load::work::Random;
use crate::machine::{now_ns, sleep_until_ns};

/// Different bytes to cut values from.
const POOL_BYTES: usize = 64 << 10;
const FLUSH: Duration = Duration::from_secs(120);
/// A stamp needs 16 bytes.
const VALUE_BYTES_MIN: usize = 16;

/// Which keys records have.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub enum Keys {
    /// None: partitions in turn.
    None,
    /// So many, each as often.
    Uniform(usize),
    /// So many, the k-th as often as 1 / k to the power of the exponent.
    Zipf(usize, f64),
}

impl FromStr for Keys {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parts: Vec<&str> = text.split(':').collect();
        Ok(match parts[..] {
            ["none"] => Self::None,
            ["uniform", keys] => Self::Uniform(keys.parse()?),
            ["zipf", keys, exponent] => Self::Zipf(keys.parse()?, exponent.parse()?),
            _ => bail!("{text}: none, uniform:KEYS or zipf:KEYS:EXPONENT"),
        })
    }
}

/// What is written.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Shape {
    pub partitions: i32,
    pub value_bytes: usize,
    pub keys: Keys,
    /// As librdkafka names it: none, lz4, zstd, gzip, snappy.
    pub compression: String,
    /// Values that compress about threefold in place of random ones.
    pub text: bool,
    /// `batch.size`.
    pub batch_bytes: usize,
}

impl Shape {
    pub fn new(partitions: i32, value_bytes: usize) -> Self {
        Self {
            partitions,
            value_bytes: value_bytes.max(VALUE_BYTES_MIN),
            keys: Keys::None,
            compression: "none".to_owned(),
            text: false,
            batch_bytes: 1_000_000,
        }
    }
}

#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(long)]
    bootstrap: String,
    #[arg(long)]
    topic: String,
    #[arg(long, default_value_t = 1)]
    partitions: i32,
    #[arg(long, default_value_t = 128)]
    size: usize,
    /// Records a second.
    #[arg(long)]
    rate: f64,
    #[arg(long)]
    seconds: f64,
}

/// What the producer at a rate says.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Produced {
    pub records: u64,
    /// Sent later than meant by more than a millisecond.
    pub late: u64,
    /// From the intended time to Kafka's acknowledgement.
    pub acknowledged: Percentiles,
}

/// Counts what Kafka acknowledged.
#[derive(Default)]
struct Acknowledged {
    good: AtomicU64,
    latency: Option<Mutex<Latency>>,
}

struct Context(Arc<Acknowledged>);

impl ClientContext for Context {}

impl ProducerContext for Context {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let Ok(record) = result else { return };
        self.0.good.fetch_add(1, Ordering::Relaxed);
        if let Some(latency) = &self.0.latency {
            latency.lock().unwrap_or_else(PoisonError::into_inner).record(intended_ns(record.payload()));
        }
    }
}

/// Writes `records` records as fast as it can, and waits until Kafka has them.
pub fn fill(bootstrap: &str, topic: &str, shape: &Shape, records: u64) -> Result<()> {
    let acknowledged = Arc::new(Acknowledged::default());
    let properties = [
        ("enable.idempotence", "true"),
        ("linger.ms", "20"),
        ("batch.size", &shape.batch_bytes.to_string()),
        ("compression.type", &shape.compression),
        ("queue.buffering.max.messages", "500000"),
        ("queue.buffering.max.kbytes", "262144"),
    ];
    let producer = producer(bootstrap, &properties, &acknowledged)?;
    let mut maker = Maker::new(shape);
    for number in 0..records {
        maker.send(&producer, topic, number, now_ns())?;
    }
    producer.flush(FLUSH)?;
    let good = acknowledged.good.load(Ordering::Relaxed);
    if good != records {
        bail!("Kafka acknowledged {good} of {records} records for {topic}");
    }
    Ok(())
}

/// `produce`: at a steady rate, each record at its time whatever became of those before it.
pub fn run(args: &Args) -> Result<()> {
    let acknowledged = Arc::new(Acknowledged { latency: Some(Mutex::default()), ..Acknowledged::default() });
    // Idempotence allows five requests under way; at one record a request librdkafka then spins for room, on the core
    // that the broker needs to make it.
    let properties = [("linger.ms", "0"), ("max.in.flight.requests.per.connection", "1000")];
    let producer = producer(&args.bootstrap, &properties, &acknowledged)?;
    let mut maker = Maker::new(&Shape::new(args.partitions, args.size));
    let records = (args.rate * args.seconds) as u64;
    let begin = now_ns() + 50_000_000;
    let mut late = 0;
    for number in 0..records {
        let intended = begin + (number as f64 * 1e9 / args.rate) as u64;
        sleep_until_ns(intended);
        late += u64::from(now_ns() > intended + 1_000_000);
        maker.send(&producer, &args.topic, number, intended)?;
    }
    producer.flush(FLUSH)?;
    let latency = acknowledged.latency.as_ref().map(|latency| latency.lock().unwrap_or_else(PoisonError::into_inner));
    let acknowledged = latency.map_or_else(Percentiles::default, |latency| latency.percentiles());
    say(&serde_json::to_value(Produced { records, late, acknowledged })?);
    Ok(())
}

fn producer(
    bootstrap: &str,
    properties: &[(&str, &str)],
    acknowledged: &Arc<Acknowledged>,
) -> Result<ThreadedProducer<Context>> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap).set("acks", "all").set("partitioner", "murmur2_random");
    config.set("message.max.bytes", "16777216");
    for (name, value) in properties {
        config.set(*name, *value);
    }
    Ok(config.create_with_context(Context(Arc::clone(acknowledged)))?)
}

/// Makes records of a shape.
struct Maker {
    shape: Shape,
    random: Random,
    pool: Vec<u8>,
    value: Vec<u8>,
    /// How often each key or one before it comes.
    cumulated: Vec<f64>,
}

impl Maker {
    fn new(shape: &Shape) -> Self {
        const TEXT: &[u8] = br#"{"customer":"4711","amount":12.50,"state":"open"},"#;
        let mut random = Random::new(1);
        let byte = |index: usize| if shape.text { TEXT[index % TEXT.len()] } else { (random.next() >> 8) as u8 };
        let pool = (0..POOL_BYTES + shape.value_bytes).map(byte).collect();
        let cumulated = match shape.keys {
            Keys::Zipf(keys, exponent) => zipf(keys, exponent),
            Keys::None | Keys::Uniform(_) => Vec::new(),
        };
        Self { shape: shape.clone(), random, pool, value: vec![0; shape.value_bytes], cumulated }
    }

    fn key(&mut self) -> Option<String> {
        let key = match self.shape.keys {
            Keys::None => return None,
            Keys::Uniform(keys) => self.random.next() as usize % keys,
            Keys::Zipf(..) => {
                let at = self.random.unit();
                self.cumulated.partition_point(|share| *share < at)
            }
        };
        Some(format!("k-{key:011}"))
    }

    fn send(&mut self, to: &ThreadedProducer<Context>, topic: &str, number: u64, intended: u64) -> Result<()> {
        let from = (self.random.next() >> 16) as usize % POOL_BYTES;
        self.value.copy_from_slice(&self.pool[from..from + self.shape.value_bytes]);
        stamp(&mut self.value, number, intended);
        let key = self.key();
        let mut record: BaseRecord<'_, String, [u8]> = BaseRecord::to(topic).payload(&self.value);
        match &key {
            Some(key) => record = record.key(key),
            None => record = record.partition(partition_in_turn(number, self.shape.partitions)),
        }
        loop {
            match to.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    std::thread::sleep(Duration::from_millis(2));
                    record = back;
                }
                Err((error, _)) => return Err(error.into()),
            }
        }
    }
}

/// For records without keys: a run of neighbours for a partition, as a producer that sticks to a batch has it.
fn partition_in_turn(number: u64, partitions: i32) -> i32 {
    const RUN: u64 = 64;
    i32::try_from(number / RUN % u64::from(partitions.unsigned_abs().max(1))).unwrap_or(0)
}

fn zipf(keys: usize, exponent: f64) -> Vec<f64> {
    let mut sum = 0.0;
    let sums = (1..=keys).map(|rank| {
        sum += (rank as f64).powf(-exponent);
        sum
    });
    let sums: Vec<f64> = sums.collect();
    sums.iter().map(|share| share / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zipf_keys_have_their_shares() {
        let shares = zipf(10_000, 1.0);
        // 1 / H(10,000) = 0.1022.
        assert!((shares[0] - 0.1022).abs() < 0.001, "{}", shares[0]);
        assert!((shares[9_999] - 1.0).abs() < 1e-9);
        let mut maker = Maker::new(&Shape { keys: Keys::Zipf(10_000, 1.0), ..Shape::new(1, 128) });
        let first = (0..20_000).filter(|_| maker.key().as_deref() == Some("k-00000000000")).count();
        assert!((1_800..2_300).contains(&first), "{first}");
    }

    #[test]
    fn records_without_keys_go_to_partitions_in_runs() {
        let mut maker = Maker::new(&Shape::new(2, 128));
        assert_eq!(maker.key(), None);
        assert_eq!([0, 63, 64, 127, 128].map(|number| partition_in_turn(number, 2)), [0, 0, 1, 1, 0]);
    }
}
