//! One stream: reads frames, works on records, settles them.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use anyhow::{Result, bail};
use sluice_proto::v1::consume_request::Request;
use sluice_proto::v1::consume_response::Response;
use sluice_proto::v1::consumer_service_client::ConsumerServiceClient;
use sluice_proto::v1::{ConsumeRequest, Delivery, Flow, Pong, Settlement, Settlements, Subscribe, subscribe};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::time::{Duration, Instant, sleep, sleep_until};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Channel;

use super::settle::{Lease, ack, retry, settlements};
use super::tally::{Tally, add};
use super::work::{Random, Work};
use super::{Args, Ask};
use crate::floor::say;
use crate::latency::intended_ns;
use crate::machine::now_ns;

const FRAME_BYTES_MAX: usize = 64 << 20;

/// A record that is worked on: when it is done, when it began, and whether it is then retried.
type Task = (Reverse<Instant>, Instant, Lease, bool);

struct Worker<'a> {
    index: usize,
    args: &'a Args,
    tally: &'a Tally,
    /// `None`: half-closed.
    requests: Option<UnboundedSender<ConsumeRequest>>,
    random: Random,
    topic: String,
    /// The last frame read.
    seen: u64,
    /// Read and not begun: for a worker that does one thing at a time.
    inbox: VecDeque<(Lease, bool)>,
    busy: BinaryHeap<Task>,
    holds: bool,
    draining: bool,
    /// The last request that is to be answered. 1 is the question at the end.
    asked: u64,
    /// Requests without an answer, in their order, and when they went out.
    unanswered: VecDeque<(u64, Instant)>,
}

pub(super) async fn run(index: usize, args: &Args, tally: &Tally, channel: Channel) -> Result<()> {
    let (requests, outgoing) = unbounded_channel();
    let holds = args.hold_first && index == 0;
    let window = match (args.idle, holds) {
        (true, _) => 0,
        (false, true) => 1,
        (false, false) => args.window,
    };
    let first = Subscribe {
        target: Some(subscribe::Target::Subscription(args.subscription.clone())),
        flow: Some(Flow { max_records: window, max_bytes: 0 }),
        revision: sluice_proto::REVISION,
        ..Subscribe::default()
    };
    requests.send(ConsumeRequest { request: Some(Request::Subscribe(first)) })?;
    tally.requests.borrow_mut().push(requests.downgrade());
    let mut client = ConsumerServiceClient::new(channel).max_decoding_message_size(FRAME_BYTES_MAX);
    let mut responses = client.consume(UnboundedReceiverStream::new(outgoing)).await?.into_inner();
    let mut worker = Worker {
        index,
        args,
        tally,
        requests: Some(requests),
        random: Random::new(index as u64 + 1),
        topic: String::new(),
        seen: 0,
        inbox: VecDeque::new(),
        busy: BinaryHeap::new(),
        holds,
        draining: false,
        asked: 1,
        unanswered: VecDeque::new(),
    };
    let slow = index < args.slow_streams;
    loop {
        let due = worker.busy.peek().map(|(Reverse(due), ..)| *due);
        tokio::select! {
            frame = responses.message() => {
                match frame? {
                    Some(frame) => worker.on_frame(frame.response),
                    // Told to drain, and done.
                    None if worker.requests.is_none() => return Ok(()),
                    None => bail!("the stream has ended"),
                }
                if slow {
                    sleep(Duration::from_millis(args.slow_ms)).await;
                }
            }
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => worker.settle_due(),
        }
    }
}

impl Worker<'_> {
    fn on_frame(&mut self, response: Option<Response>) {
        match response {
            Some(Response::Delivery(delivery)) => self.on_delivery(delivery),
            Some(Response::Subscribed(_)) => self.tally.subscribed.set(self.tally.subscribed.get() + 1),
            Some(Response::Ping(_)) => self.send(Request::Pong(Pong {})),
            Some(Response::Settled(settled)) => {
                add(&self.tally.rejected, settled.rejections.len());
                self.on_answer(settled.request_id);
                if settled.request_id == 1 {
                    self.tally.confirmed.set(self.tally.confirmed.get() + 1);
                }
            }
            Some(Response::Drain(_)) => {
                self.draining = true;
                self.half_close_when_done();
            }
            Some(Response::Revoked(_) | Response::Committed(_)) | None => {}
        }
    }

    /// Answers to durable settlements need not come in order.
    fn on_answer(&mut self, request_id: u64) {
        let Some(at) = self.unanswered.iter().position(|(id, _)| *id == request_id) else { return };
        let Some((_, asked)) = self.unanswered.remove(at) else { return };
        let took = u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.tally.answer.borrow_mut().add_us(took);
        self.tally.answered.set(self.tally.answered.get() + 1);
    }

    fn on_delivery(&mut self, delivery: Delivery) {
        self.seen = delivery.sequence;
        let (mut records, mut bytes) = (0, 0);
        let (mut acks, mut retries) = (Vec::new(), Vec::new());
        for batch in delivery.batches {
            if self.topic != batch.topic {
                self.topic.clone_from(&batch.topic);
            }
            records += batch.records.len();
            for record in &batch.records {
                bytes += record.key.as_ref().map_or(0, bytes::Bytes::len);
                bytes += record.value.as_ref().map_or(0, bytes::Bytes::len);
                if self.args.latency {
                    self.tally.latency.borrow_mut().record(intended_ns(record.value.as_deref()));
                }
                let lease = Lease { partition: batch.partition, epoch: batch.epoch, offset: record.offset };
                if self.args.trace {
                    let (partition, offset) = (lease.partition, lease.offset);
                    say(
                        &serde_json::json!({ "at": now_ns(), "partition": partition, "epoch": lease.epoch, "offset": offset }),
                    );
                }
                let retries_it = record.attempts == 0
                    && self.args.retry_permille > 0
                    && self.random.next() % 1_000 < self.args.retry_permille;
                match self.args.work {
                    _ if self.holds => {}
                    Work::None if retries_it => retries.push(lease),
                    Work::None => acks.push(lease),
                    Work::SideBySide(_) => self.begin(lease, retries_it, Instant::now()),
                    Work::InTurn(_) => self.inbox.push_back((lease, retries_it)),
                }
            }
        }
        self.tally.frame(self.index, records, bytes);
        self.settle(acks, retries);
        self.begin_next();
    }

    fn begin(&mut self, lease: Lease, retries: bool, now: Instant) {
        let takes = match self.args.work {
            Work::SideBySide(takes) | Work::InTurn(takes) => takes.sample(&mut self.random),
            Work::None => Duration::ZERO,
        };
        self.busy.push((Reverse(now + takes), now, lease, retries));
    }

    /// A worker that does one thing at a time goes on to the next.
    fn begin_next(&mut self) {
        if self.busy.is_empty()
            && let Some((lease, retries)) = self.inbox.pop_front()
        {
            self.begin(lease, retries, Instant::now());
        }
    }

    fn settle_due(&mut self) {
        let now = Instant::now();
        let (mut acks, mut retried) = (Vec::new(), Vec::new());
        while self.busy.peek().is_some_and(|(Reverse(due), ..)| *due <= now) {
            let Some((_, began, lease, retries)) = self.busy.pop() else { break };
            let held = now.duration_since(began);
            self.tally.hold.borrow_mut().add_us(u64::try_from(held.as_micros()).unwrap_or(u64::MAX));
            if retries { retried.push(lease) } else { acks.push(lease) }
        }
        self.settle(acks, retried);
        self.begin_next();
        self.half_close_when_done();
    }

    fn settle(&mut self, mut acks: Vec<Lease>, mut retries: Vec<Lease>) {
        let mut all: Vec<Settlement> = Vec::new();
        if !acks.is_empty() {
            add(&self.tally.acked, acks.len());
            all.extend(settlements(&self.topic, &mut acks, &ack()));
        }
        if !retries.is_empty() {
            add(&self.tally.retried, retries.len());
            all.extend(settlements(&self.topic, &mut retries, &retry(self.args.retry_delay_ms)));
        }
        if !all.is_empty() {
            let mut frame = Settlements { seen: self.seen, settlements: all, ..Settlements::default() };
            if let Some(ask) = self.args.ask {
                self.asked += 1;
                self.unanswered.push_back((self.asked, Instant::now()));
                (frame.request_id, frame.durable) = (self.asked, ask == Ask::Durable);
            }
            self.send(Request::Settle(frame));
        }
    }

    fn half_close_when_done(&mut self) {
        if self.draining && self.busy.is_empty() && self.inbox.is_empty() {
            self.requests = None;
        }
    }

    /// A stream that has ended says so where it is read.
    fn send(&self, request: Request) {
        if let Some(requests) = &self.requests {
            let _ = requests.send(ConsumeRequest { request: Some(request) });
        }
    }
}
