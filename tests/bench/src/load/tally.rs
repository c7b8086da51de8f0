//! What all streams together have done.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sluice_proto::v1::consume_request::Request;
use sluice_proto::v1::{ConsumeRequest, Settlements};
use tokio::sync::mpsc::WeakUnboundedSender;

use super::Args;
use crate::latency::{Latency, Percentiles};
use crate::machine::{cpu_s, now_ns};

/// Streams must confirm the last acks within this.
const CONFIRM: Duration = Duration::from_secs(10);

/// Counters of one process: its streams share a thread.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) subscribed: Cell<usize>,
    pub(super) failed: Cell<usize>,
    pub(super) delivered: Cell<u64>,
    pub(super) acked: Cell<u64>,
    pub(super) retried: Cell<u64>,
    pub(super) rejected: Cell<u64>,
    pub(super) bytes: Cell<u64>,
    pub(super) frames: Cell<u64>,
    pub(super) confirmed: Cell<usize>,
    first_ns: Cell<u64>,
    last_ns: Cell<u64>,
    pub(super) latency: RefCell<Latency>,
    pub(super) hold: RefCell<Latency>,
    pub(super) answer: RefCell<Latency>,
    pub(super) answered: Cell<u64>,
    pub(super) by_stream: RefCell<Vec<u64>>,
    pub(super) requests: RefCell<Vec<WeakUnboundedSender<ConsumeRequest>>>,
    series: RefCell<Vec<(u64, f64)>>,
}

/// Where the counters stood.
#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    at_ns: u64,
    delivered: u64,
    acked: u64,
    retried: u64,
    bytes: u64,
    frames: u64,
    servers_cpu_s: Vec<f64>,
    client_cpu_s: f64,
}

/// What the process says at its end.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// Acked.
    pub records: u64,
    pub delivered: u64,
    pub retried: u64,
    pub rejected: u64,
    pub bytes: u64,
    /// From the first record to the last, or as long as was measured.
    pub seconds: f64,
    pub records_per_frame: f64,
    /// Of all servers together.
    pub server_cpu_s: f64,
    /// Of each, in their order.
    pub servers_cpu_s: Vec<f64>,
    pub client_cpu_s: f64,
    /// Of the server that had most.
    pub server_rss_peak_bytes: u64,
    pub latency: Percentiles,
    /// From a record's start at a worker to its settlement.
    pub hold: Percentiles,
    /// From a settlement to its answer, where one was asked for.
    pub answer: Percentiles,
    /// Settlements answered.
    pub answered: u64,
    /// Records of the stream that got least, and most.
    pub by_stream: (u64, u64),
    pub streams_failed: usize,
    /// Acked records and the server's CPU seconds, a few times a second.
    pub series: Vec<(u64, f64)>,
}

pub(super) fn add(counter: &Cell<u64>, count: usize) {
    counter.set(counter.get() + count as u64);
}

impl Tally {
    /// A frame of records came.
    pub(super) fn frame(&self, stream: usize, records: usize, bytes: usize) {
        self.last_ns.set(now_ns());
        if self.first_ns.get() == 0 {
            self.first_ns.set(self.last_ns.get());
        }
        add(&self.frames, 1);
        add(&self.delivered, records);
        add(&self.bytes, bytes);
        let mut by_stream = self.by_stream.borrow_mut();
        if by_stream.len() <= stream {
            by_stream.resize(stream + 1, 0);
        }
        by_stream[stream] += records as u64;
    }

    pub(super) fn snapshot(&self, servers: &[u32]) -> Snapshot {
        Snapshot {
            at_ns: now_ns(),
            delivered: self.delivered.get(),
            acked: self.acked.get(),
            retried: self.retried.get(),
            bytes: self.bytes.get(),
            frames: self.frames.get(),
            servers_cpu_s: servers.iter().map(|server| cpu_s(*server)).collect(),
            client_cpu_s: cpu_s(std::process::id()),
        }
    }

    pub(super) fn forget_warm_up(&self) {
        *self.latency.borrow_mut() = Latency::default();
        *self.hold.borrow_mut() = Latency::default();
        *self.answer.borrow_mut() = Latency::default();
        self.answered.set(0);
        self.by_stream.borrow_mut().fill(0);
    }

    pub(super) fn point(&self, servers: &[u32]) {
        let cpu_s = servers.iter().map(|server| cpu_s(*server)).sum();
        self.series.borrow_mut().push((self.acked.get(), cpu_s));
    }

    /// Asks each stream to say that its settlements are applied: an ack that is still on its way is none.
    pub(super) async fn confirm(&self, streams: usize) {
        for requests in self.requests.borrow().iter() {
            let question = Settlements { request_id: 1, ..Settlements::default() };
            if let Some(requests) = requests.upgrade() {
                let _ = requests.send(ConsumeRequest { request: Some(Request::Settle(question)) });
            }
        }
        let all = async {
            while self.confirmed.get() + self.failed.get() < streams {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        if tokio::time::timeout(CONFIRM, all).await.is_err() {
            eprintln!("only {} of {streams} streams confirmed their last acks", self.confirmed.get());
        }
    }

    pub(super) fn outcome(&self, args: &Args, from: &Snapshot) -> Outcome {
        let to = self.snapshot(&args.server_pid);
        let servers_cpu_s: Vec<f64> =
            to.servers_cpu_s.iter().zip(&from.servers_cpu_s).map(|(to, from)| to - from).collect();
        let seconds = match args.records {
            Some(_) => self.last_ns.get().saturating_sub(self.first_ns.get()),
            None => to.at_ns - from.at_ns,
        };
        let by_stream = self.by_stream.borrow();
        let least = if by_stream.len() < args.streams { 0 } else { by_stream.iter().min().copied().unwrap_or(0) };
        Outcome {
            records: to.acked - from.acked,
            delivered: to.delivered - from.delivered,
            retried: to.retried - from.retried,
            rejected: self.rejected.get(),
            bytes: to.bytes - from.bytes,
            seconds: seconds as f64 / 1e9,
            records_per_frame: (to.delivered - from.delivered) as f64 / (to.frames - from.frames).max(1) as f64,
            server_cpu_s: servers_cpu_s.iter().sum(),
            servers_cpu_s,
            client_cpu_s: to.client_cpu_s - from.client_cpu_s,
            server_rss_peak_bytes: {
                let pids = args.server_pid.iter().filter(|pid| **pid != 0);
                pids.map(|pid| sluice_tests::process::peak_rss(*pid)).max().unwrap_or(0)
            },
            latency: self.latency.borrow().percentiles(),
            hold: self.hold.borrow().percentiles(),
            answer: self.answer.borrow().percentiles(),
            answered: self.answered.get(),
            by_stream: (least, by_stream.iter().max().copied().unwrap_or(0)),
            streams_failed: self.failed.get(),
            series: self.series.borrow().clone(),
        }
    }
}
