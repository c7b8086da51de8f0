//! `raw`: a consumer in a group that copies each record once and commits each second. The floor of reading Kafka.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::source::{Source, properties};
use super::{say, wait_for_word};
use crate::latency::{Latency, Percentiles, intended_ns};
use crate::machine::{cpu_s, now_ns};

const COMMIT_EVERY: Duration = Duration::from_secs(1);
/// An arena that is full is given away, and another begun.
const ARENA_BYTES: usize = 128 << 10;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(long)]
    bootstrap: String,
    #[arg(long)]
    group: String,
    #[arg(long)]
    topic: String,
    /// Ends after so many.
    #[arg(long, default_value_t = u64::MAX)]
    records: u64,
    /// Ends after so many seconds.
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// Latencies of so many first seconds are left out.
    #[arg(long, default_value_t = 0.0)]
    warm: f64,
    /// Values bear their intended send time.
    #[arg(long)]
    latency: bool,
    /// Says each record: its time, partition and offset.
    #[arg(long)]
    trace: bool,
    /// A property of librdkafka: name=value.
    #[arg(short = 'X', long = "property")]
    properties: Vec<String>,
}

/// What it measured.
#[derive(Debug, Serialize, Deserialize)]
pub struct Outcome {
    pub records: u64,
    pub bytes: u64,
    /// From the first record to the last.
    pub seconds: f64,
    pub cpu_s: f64,
    pub records_per_take: f64,
    pub rss_peak_bytes: u64,
    pub latency: Option<Percentiles>,
}

pub fn run(args: &Args) -> Result<()> {
    let me = std::process::id();
    say(&serde_json::json!({ "event": "ready" }));
    wait_for_word();
    let cpu_before = cpu_s(me);
    let mut source = Source::open(&properties(&args.bootstrap, &args.group, &args.properties)?, &args.topic)?;
    let begin = Instant::now();
    let mut committed_at = begin;
    let mut next: Vec<i64> = Vec::new();
    let mut latency = Latency::default();
    let (mut records, mut bytes, mut takes, mut first_ns, mut last_ns) = (0, 0, 0, 0, 0);
    while records < args.records && begin.elapsed().as_secs_f64() < args.seconds {
        // One arena a batch, as a user would have it who hands the batch on: ranges, no handle a record.
        let mut arena: Vec<u8> = Vec::with_capacity(ARENA_BYTES);
        let mut places: Vec<(i64, usize, usize)> = Vec::with_capacity(1_000);
        let warm = begin.elapsed().as_secs_f64() >= args.warm;
        let count = source.take(100, |record| {
            let slot = usize::try_from(record.partition).unwrap_or(0);
            if next.len() <= slot {
                next.resize(slot + 1, -1);
            }
            next[slot] = record.offset + 1;
            let (key, value) = (record.key.unwrap_or_default(), record.value.unwrap_or_default());
            let size = key.len() + value.len();
            if arena.len() + size > arena.capacity() {
                std::hint::black_box(std::mem::replace(&mut arena, Vec::with_capacity(size.max(ARENA_BYTES))));
            }
            arena.extend_from_slice(key);
            let key_end = arena.len();
            arena.extend_from_slice(value);
            bytes += size as u64;
            places.push((record.offset, key_end, arena.len()));
            if args.latency && warm {
                latency.record(intended_ns(record.value));
            }
            if args.trace {
                say(&serde_json::json!({ "at": now_ns(), "partition": record.partition, "offset": record.offset }));
            }
        });
        if count > 0 {
            last_ns = now_ns();
            first_ns = if first_ns == 0 { last_ns } else { first_ns };
            records += count as u64;
            takes += 1;
        }
        std::hint::black_box((&arena, &places));
        if committed_at.elapsed() >= COMMIT_EVERY {
            committed_at = Instant::now();
            commit(&source, &mut next);
        }
    }
    let outcome = Outcome {
        records,
        bytes,
        seconds: (last_ns - first_ns) as f64 / 1e9,
        cpu_s: cpu_s(me) - cpu_before,
        records_per_take: records as f64 / f64::max(1.0, f64::from(takes)),
        rss_peak_bytes: sluice_tests::process::peak_rss(me),
        latency: args.latency.then(|| latency.percentiles()),
    };
    say(&serde_json::to_value(outcome)?);
    // The driver has what it wanted; leaving the group in peace is not part of it.
    std::process::exit(0)
}

fn commit(source: &Source, next: &mut [i64]) {
    let moved = next.iter().enumerate().filter(|(_, offset)| **offset >= 0);
    let moved: Vec<_> = moved.map(|(slot, offset)| (i32::try_from(slot).unwrap_or(0), *offset)).collect();
    source.commit(&moved);
    next.fill(-1);
}
