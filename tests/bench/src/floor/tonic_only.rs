//! `tonic`: a bare server of the gateway's shape, with records from memory instead of Kafka.

use std::sync::Arc;
use std::task::{Context, Poll};

use anyhow::Result;
use bytes::Bytes;
use sluice_proto::v1::Record;

use super::competing::Parcel;
use super::service::{Dealer, Floor};

/// As many different records as a fetched batch would have, so that the cache holds no more than it would there.
const POOL_RECORDS: usize = 4_096;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Bytes of a value.
    #[arg(long, default_value_t = 128)]
    size: usize,
    /// Records in a frame.
    #[arg(long, default_value_t = 100)]
    frame_records: usize,
    /// Bytes in a frame.
    #[arg(long, default_value_t = 128 << 10)]
    frame_bytes: usize,
}

type Pool = Arc<Vec<(Bytes, Bytes)>>;

/// One stream counts by itself.
struct FromMemory {
    pool: Pool,
    frame_records: usize,
    next: i64,
}

pub fn run(args: &Args) -> Result<()> {
    let block: Bytes = (0..args.size + POOL_RECORDS).map(|index| (index * 131 % 251) as u8).collect();
    let of = |index: usize| (Bytes::from(format!("k-{index:011}")), block.slice(index..index + args.size));
    let pool: Pool = Arc::new((0..POOL_RECORDS).map(of).collect());
    let frame_records = args.frame_records.min(args.frame_bytes / (args.size + 13) + 1);
    let dealer = move || FromMemory { pool: Arc::clone(&pool), frame_records, next: 0 };
    let floor = Floor::new("orders", frame_records, dealer);
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(floor.serve())
}

impl Dealer for FromMemory {
    fn poll_deal(&mut self, _context: &mut Context<'_>, room: usize) -> Poll<Parcel> {
        let count = self.frame_records.min(room);
        let record = |offset: i64| {
            let (key, value) = &self.pool[usize::try_from(offset).unwrap_or(0) % POOL_RECORDS];
            Record {
                offset,
                timestamp_ms: 1_790_000_000_000 + offset,
                key: Some(key.clone()),
                value: Some(value.clone()),
                headers: Vec::new(),
                origin: None,
                attempts: 0,
            }
        };
        let end = self.next + i64::try_from(count).unwrap_or(0);
        let records = (self.next..end).map(record).collect();
        self.next = end;
        Poll::Ready(Parcel { partition: 3, records })
    }

    fn done(&mut self, _partition: i32, _first: i64, _last: i64) {}
}
