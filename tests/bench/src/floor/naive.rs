//! `naive`: the simplest honest gateway. One thread reads Kafka as `raw` does, streams compete for its frames, offsets are
//! committed up to the first frame that is not acked. No leases, no retries, no redelivery when a stream breaks (its
//! partition then commits no further, so nothing is lost), no fairness, one topic.

use std::collections::{HashMap, VecDeque};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::BytesMut;
use sluice_proto::v1::Record;

use super::competing::{Parcel, Place, Queue};
use super::service::{Dealer, Floor};
use super::source::{Source, Taken, properties};

/// Frames that wait for a stream.
const QUEUE_PARCELS_MAX: usize = 64;
const COMMIT_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(long)]
    bootstrap: String,
    #[arg(long)]
    group: String,
    #[arg(long)]
    topic: String,
    /// Records in a frame.
    #[arg(long, default_value_t = 100)]
    frame_records: usize,
    /// Bytes in a frame.
    #[arg(long, default_value_t = 128 << 10)]
    frame_bytes: usize,
    /// A property of librdkafka: name=value.
    #[arg(short = 'X', long = "property")]
    properties: Vec<String>,
}

/// Frames sent and not yet committed, a partition.
#[derive(Debug, Default)]
struct Ledger {
    /// First and last offset, and whether it is acked.
    frames: VecDeque<(i64, i64, bool)>,
    /// The next offset to commit, when it has moved.
    moved: Option<i64>,
}

#[derive(Debug, Default)]
struct Ledgers(Mutex<HashMap<i32, Ledger>>);

/// One stream's share.
struct Competing {
    queue: Arc<Queue>,
    place: Place,
    ledgers: Arc<Ledgers>,
}

pub fn run(args: Args) -> Result<()> {
    let queue = Queue::new(QUEUE_PARCELS_MAX);
    let ledgers = Arc::new(Ledgers::default());
    // Like the gateway it joins its group with the first stream.
    let (first_stream, joined) = sync_channel(1);
    let floor = Floor::new(&args.topic, args.frame_records, {
        let (queue, ledgers) = (Arc::clone(&queue), Arc::clone(&ledgers));
        move || Competing::new(&queue, &ledgers, &first_stream)
    });
    std::thread::Builder::new().name("kafka".to_owned()).spawn(move || {
        if let Err(error) = read_kafka(&args, &joined, &queue, &ledgers) {
            eprintln!("naive: {error:#}");
            std::process::exit(1);
        }
    })?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(floor.serve())
}

fn read_kafka(args: &Args, joined: &Receiver<()>, queue: &Queue, ledgers: &Ledgers) -> Result<()> {
    joined.recv()?;
    let mut source = Source::open(&properties(&args.bootstrap, &args.group, &args.properties)?, &args.topic)?;
    let mut packer = Packer::new(args.frame_records, args.frame_bytes);
    let mut committed_at = Instant::now();
    loop {
        source.take(100, |record| packer.push(record));
        packer.seal();
        ledgers.sent(&packer.parcels);
        packer.parcels.drain(..).for_each(|parcel| queue.put(parcel));
        if committed_at.elapsed() >= COMMIT_EVERY {
            committed_at = Instant::now();
            source.commit(&ledgers.moved());
        }
    }
}

/// Packs records into frames: one copy into an arena a frame.
struct Packer {
    frame_records: usize,
    frame_bytes: usize,
    arena: BytesMut,
    bytes: usize,
    open: Option<Parcel>,
    parcels: Vec<Parcel>,
}

impl Packer {
    fn new(frame_records: usize, frame_bytes: usize) -> Self {
        Self { frame_records, frame_bytes, arena: BytesMut::new(), bytes: 0, open: None, parcels: Vec::new() }
    }

    fn push(&mut self, record: Taken<'_>) {
        let size = record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len);
        let fits = self.open.as_ref().is_some_and(|open| {
            open.partition == record.partition
                && open.records.len() < self.frame_records
                && self.bytes + size <= self.frame_bytes
        });
        if !fits {
            self.seal();
            self.arena = BytesMut::with_capacity((self.frame_records * size).min(self.frame_bytes).max(size));
            let records = self.frame_records.min(self.frame_bytes / size.max(1) + 1);
            self.open = Some(Parcel { partition: record.partition, records: Vec::with_capacity(records) });
        }
        self.bytes += size;
        let arena = &mut self.arena;
        let mut place = |part: &[u8]| {
            arena.extend_from_slice(part);
            arena.split().freeze()
        };
        let record = Record {
            offset: record.offset,
            timestamp_ms: record.timestamp_ms,
            key: record.key.map(&mut place),
            value: record.value.map(&mut place),
            headers: Vec::new(),
            origin: None,
            attempts: 0,
        };
        if let Some(open) = &mut self.open {
            open.records.push(record);
        }
    }

    fn seal(&mut self) {
        self.parcels.extend(self.open.take());
        self.bytes = 0;
    }
}

// === impl Ledgers ===

impl Ledgers {
    fn lock(&self) -> MutexGuard<'_, HashMap<i32, Ledger>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sent(&self, parcels: &[Parcel]) {
        let mut ledgers = self.lock();
        for parcel in parcels {
            if let (Some(first), Some(last)) = (parcel.records.first(), parcel.records.last()) {
                ledgers.entry(parcel.partition).or_default().frames.push_back((first.offset, last.offset, false));
            }
        }
    }

    fn acked(&self, partition: i32, first: i64) {
        let mut ledgers = self.lock();
        let Some(ledger) = ledgers.get_mut(&partition) else { return };
        if let Ok(index) = ledger.frames.binary_search_by_key(&first, |frame| frame.0) {
            ledger.frames[index].2 = true;
        }
        while let Some((_, last, true)) = ledger.frames.front() {
            ledger.moved = Some(last + 1);
            ledger.frames.pop_front();
        }
    }

    fn moved(&self) -> Vec<(i32, i64)> {
        self.lock().iter_mut().filter_map(|(partition, ledger)| Some((*partition, ledger.moved.take()?))).collect()
    }
}

// === impl Competing ===

impl Competing {
    fn new(queue: &Arc<Queue>, ledgers: &Arc<Ledgers>, first_stream: &SyncSender<()>) -> Self {
        // Full: there was one before.
        let _ = first_stream.try_send(());
        Self { queue: Arc::clone(queue), place: Place::default(), ledgers: Arc::clone(ledgers) }
    }
}

impl Dealer for Competing {
    fn poll_deal(&mut self, context: &mut Context<'_>, _room: usize) -> Poll<Parcel> {
        self.queue.poll_take(&self.place, context)
    }

    fn rest(&mut self) {
        self.queue.pass(&self.place);
    }

    fn done(&mut self, partition: i32, first: i64, _last: i64) {
        self.ledgers.acked(partition, first);
    }
}

impl Drop for Competing {
    fn drop(&mut self) {
        self.queue.pass(&self.place);
    }
}
