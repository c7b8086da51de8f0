//! What is measured: an engine in some state, and one call of work on it that handles `RECORDS` records. So microseconds a
//! call are nanoseconds a record.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use sluice_core::{
    Assignment, Engine, Epoch, Leases, Millis, NextOffset, OffsetRange, Open, Outcome, Output, Policy, Record, Run,
    SessionId, Settlement, Settlements, TopicPartition, Window,
};

/// Records that one call of work handles.
pub(crate) const RECORDS: usize = 1_000;
const PAYLOAD_BYTES: usize = 128;
const KEY_BYTES: usize = 8;
const EPOCH: Epoch = Epoch(7);
const NOW: Millis = Millis(1_000);
/// Rounds before what is measured: what sessions remember is full by then.
const WARM_ROUNDS: usize = 24;
/// Records done above the frontier when that is stuck.
const STUCK_SPAN: usize = 100_000;

/// What is kept until the clock stands: to drop it is not the engine's cost.
pub(crate) type Kept = Box<dyn Any>;

/// One piece of work, ready to be done.
pub(crate) type Ready = Box<dyn FnOnce() -> Kept>;

/// A name, and what makes the work ready.
#[derive(Clone, Copy)]
pub(crate) struct Work {
    pub(crate) name: &'static str,
    pub(crate) ready: fn() -> Ready,
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// All work there is.
pub(crate) const ALL: &[Work] = &[
    Work { name: "receive", ready: receive },
    Work { name: "deal_1_session", ready: || deal(1, 1_000, RECORDS) },
    Work { name: "deal_10_sessions", ready: || deal(10, 1_000, RECORDS) },
    Work { name: "deal_1000_sessions", ready: || deal(1_000, 100, 10 * RECORDS) },
    Work { name: "settle_by_frame", ready: settle_by_frame },
    Work { name: "settle_singles", ready: settle_singles },
    Work { name: "settle_behind_stuck", ready: settle_behind_stuck },
    Work { name: "commit_runs", ready: || commit(Done::EverySecond) },
    Work { name: "commit_words", ready: || commit(Done::ThreeOfFour) },
    Work { name: "whole", ready: || whole(10, 1_000) },
    Work { name: "whole_1000_sessions", ready: || whole(1_000, 100) },
];

/// A frame that was dealt: to whom, its number, what.
type Frame = (SessionId, u64, Vec<i64>);

/// An engine with one partition, and its sessions.
struct Bench {
    engine: Engine,
    partition: TopicPartition,
    next: i64,
}

impl Bench {
    fn new(sessions: usize, window: u32) -> Self {
        let mut engine = Engine::new(Policy::default(), 1);
        let partition = TopicPartition::new("orders", 0);
        engine.assigned(
            NOW,
            Assignment {
                partition: partition.clone(),
                epoch: EPOCH,
                next: NextOffset(0),
                metadata: None,
                topic_hash: 5,
                commit_now: false,
            },
        );
        for _ in 0..sessions {
            let window = Some(Window { max_records: window, max_bytes: 0 });
            engine.open(NOW, Open { window, ..Open::default() });
        }
        Self { engine, partition, next: 0 }
    }

    /// Runs as of one fetch.
    fn fetched(&mut self, count: usize) -> Vec<Arc<Run>> {
        let payload = Bytes::from(vec![b'x'; PAYLOAD_BYTES]);
        let record = |i: usize| Record {
            offset: self.next + i as i64,
            timestamp_ms: 0,
            key: Some(payload.slice(..KEY_BYTES)),
            value: Some(payload.slice(KEY_BYTES..)),
            headers: None,
        };
        let records: Vec<Record> = (0..count).map(record).collect();
        self.next += count as i64;
        Run::of(&records)
    }

    fn receive(&mut self, count: usize) {
        let runs = self.fetched(count);
        self.give(runs);
    }

    fn give(&mut self, runs: Vec<Arc<Run>>) {
        self.engine.runs(NOW, &self.partition, EPOCH, runs);
    }

    /// Outputs until `count` records were dealt, or nothing more is.
    fn deal(&mut self, count: usize) -> Vec<Output> {
        let mut outputs = Vec::with_capacity(count);
        let mut dealt = 0;
        while dealt < count {
            let Some(output) = self.engine.poll_output(NOW) else { break };
            if let Output::Deliver { batches, .. } = &output {
                dealt += batches.iter().map(|batch| batch.records.len()).sum::<usize>();
            }
            outputs.push(output);
        }
        outputs
    }

    fn deal_frames(&mut self, count: usize) -> Vec<Frame> {
        let outputs = self.deal(count);
        let partition = self.partition.clone();
        for output in &outputs {
            if let Output::Commit { epoch, offset, .. } = output {
                self.engine.commit_result(NOW, &partition, *epoch, Ok(*offset));
            }
        }
        frames(&outputs)
    }

    fn ack(&mut self, session: SessionId, settlements: Settlements) {
        self.engine.settle(NOW, session, settlements);
    }

    /// An ack of these ranges.
    fn acks(&self, seen: u64, offsets: Vec<OffsetRange>) -> Settlements {
        let leases = Leases { partition: self.partition.clone(), epoch: EPOCH, offsets };
        let settlements = vec![Settlement { leases, outcome: Outcome::Ack }];
        Settlements { request_id: 0, durable: false, seen, settlements }
    }

    fn ack_frames(&mut self, frames: &[Frame]) {
        for (session, settlements) in self.acks_of(frames) {
            self.ack(session, settlements);
        }
    }

    /// A settlement for each frame, of one range.
    fn acks_of(&self, frames: &[Frame]) -> Vec<(SessionId, Settlements)> {
        let whole = |offsets: &[i64]| OffsetRange { first: offsets[0], last: offsets[offsets.len() - 1] };
        frames.iter().map(|(session, seq, offsets)| (*session, self.acks(*seq, vec![whole(offsets)]))).collect()
    }

    fn round(&mut self) {
        self.receive(RECORDS);
        let frames = self.deal_frames(RECORDS);
        self.ack_frames(&frames);
    }

    fn warm(sessions: usize, window: u32) -> Self {
        let mut bench = Self::new(sessions, window);
        (0..WARM_ROUNDS).for_each(|_| bench.round());
        bench
    }
}

fn frames(outputs: &[Output]) -> Vec<Frame> {
    let of = |output: &Output| match output {
        Output::Deliver { session, sequence, batches } => {
            let offsets = batches.iter().flat_map(|b| b.records.iter().map(|d| d.record.offset)).collect();
            Some((*session, *sequence, offsets))
        }
        _ => None,
    };
    outputs.iter().filter_map(of).collect()
}

// === the work ===

fn receive() -> Ready {
    let mut bench = Bench::warm(10, 1_000);
    let runs = bench.fetched(RECORDS);
    Box::new(move || {
        bench.give(runs);
        Box::new(bench)
    })
}

fn deal(sessions: usize, window: u32, received: usize) -> Ready {
    let mut bench = Bench::warm(sessions, window);
    bench.receive(received);
    Box::new(move || {
        let outputs = bench.deal(RECORDS);
        Box::new((bench, outputs))
    })
}

fn settle_by_frame() -> Ready {
    let mut bench = Bench::warm(10, 1_000);
    bench.receive(RECORDS);
    let frames = bench.deal_frames(RECORDS);
    let acks = bench.acks_of(&frames);
    ack_all(bench, acks)
}

/// Each record by itself, a hundred a call, in a mixed order.
fn settle_singles() -> Ready {
    let mut bench = Bench::warm(10, 1_000);
    bench.receive(RECORDS);
    let frames = bench.deal_frames(RECORDS);
    let single = |(session, seq, offsets): &Frame| {
        // 37 and the length of a frame have no common divisor.
        let mixed = (0..offsets.len()).map(|i| OffsetRange::one(offsets[i * 37 % offsets.len()])).collect();
        (*session, bench.acks(*seq, mixed))
    };
    let acks = frames.iter().map(single).collect();
    ack_all(bench, acks)
}

/// By frame, but the first record of all stays open.
fn settle_behind_stuck() -> Ready {
    let mut bench = Bench::new(1, 1);
    bench.receive(1);
    bench.deal(1);
    let window = Some(Window { max_records: 1_000, max_bytes: 0 });
    bench.engine.open(NOW, Open { window, ..Open::default() });
    (0..STUCK_SPAN / RECORDS).for_each(|_| bench.round());
    bench.receive(RECORDS);
    let frames = bench.deal_frames(RECORDS);
    let acks = bench.acks_of(&frames);
    ack_all(bench, acks)
}

fn ack_all(mut bench: Bench, acks: Vec<(SessionId, Settlements)>) -> Ready {
    Box::new(move || {
        for (session, settlements) in acks {
            bench.ack(session, settlements);
        }
        Box::new(bench)
    })
}

/// What is done above the frontier when a commit is made.
#[derive(Clone, Copy)]
enum Done {
    EverySecond,
    ThreeOfFour,
}

/// One commit that has `RECORDS` records above the frontier to speak of.
fn commit(done: Done) -> Ready {
    let mut bench = Bench::new(1, RECORDS as u32);
    bench.receive(RECORDS);
    let frames = bench.deal_frames(RECORDS);
    for (session, seq, offsets) in &frames {
        let is_done = |offset: &&i64| match done {
            Done::EverySecond => **offset % 2 == 1,
            Done::ThreeOfFour => **offset / 64 % 4 != 0,
        };
        let ranges = offsets.iter().filter(is_done).map(|offset| OffsetRange::one(*offset)).collect();
        let acks = bench.acks(*seq, ranges);
        bench.ack(*session, acks);
    }
    bench.deal_frames(0);
    Box::new(move || {
        bench.engine.commit_rewound(NOW, &bench.partition);
        let output = bench.engine.poll_output(NOW);
        Box::new((bench, output))
    })
}

/// Received, dealt and settled by frame.
fn whole(sessions: usize, window: u32) -> Ready {
    let mut bench = Bench::warm(sessions, window);
    let runs = bench.fetched(RECORDS);
    // The next round deals as the last one did, so what it will be answered is known before.
    Box::new(move || {
        bench.give(runs);
        let outputs = bench.deal(RECORDS);
        let frames = frames(&outputs);
        bench.ack_frames(&frames);
        Box::new((bench, outputs))
    })
}
