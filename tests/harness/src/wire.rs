//! A session on the generated stubs, with nothing between the test and the wire: it decides what is read, settled,
//! answered and when. It keeps what it holds, and panics when it was dealt more than its window.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sluice_proto::v1::consume_request::Request;
use sluice_proto::v1::consume_response::Response;
use sluice_proto::v1::consumer_service_client::ConsumerServiceClient;
use sluice_proto::v1::settlement::Outcome;
use sluice_proto::v1::{
    Ack, ConsumeRequest, ConsumeResponse, DeadLetter, Delivery, DrainReason, Flow, Leases, OffsetRange, Pong,
    Rejection, Release, Retry, Revoked, Settlement, Settlements, Subscribe, Subscribed, subscribe,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::SOON;
use crate::gateway::Gateway;
use crate::history::History;

/// A lease by its name: topic, partition, epoch, offset.
pub type LeaseName = (Arc<str>, i32, i64, i64);

/// One record that was dealt to a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Its topic.
    pub topic: Arc<str>,
    /// Its partition.
    pub partition: i32,
    /// Its epoch.
    pub epoch: i64,
    /// Its offset.
    pub offset: i64,
    /// Its key.
    pub key: Option<Bytes>,
    /// Its value.
    pub value: Option<Bytes>,
    /// Counted failures.
    pub attempts: u32,
    /// The frame it came in.
    pub sequence: u64,
}

impl Lease {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> LeaseName {
        (Arc::clone(&self.topic), self.partition, self.epoch, self.offset)
    }

    /// An operand of a settlement: this lease alone.
    #[must_use]
    pub fn leases(&self) -> Leases {
        self.range(self.offset, self.offset)
    }

    /// A range of offsets in this lease's partition and epoch.
    #[must_use]
    pub fn range(&self, first: i64, last: i64) -> Leases {
        Leases {
            topic: self.topic.to_string(),
            partition: self.partition,
            epoch: self.epoch,
            offsets: vec![OffsetRange { first, last: (last != first).then_some(last) }],
        }
    }

    /// Bytes that count against a window: key and value (the harness writes no headers).
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let length = |part: &Option<Bytes>| part.as_ref().map_or(0, Bytes::len) as u64;
        length(&self.key) + length(&self.value)
    }
}

/// What a read of the stream gave.
#[derive(Debug)]
pub enum Seen {
    /// A frame, already taken into the session's fields.
    Frame,
    /// The end of the stream.
    Ended(Result<(), Status>),
    /// Nothing in that time.
    Nothing,
}

/// One session.
#[derive(Debug)]
pub struct Wire {
    requests: Option<mpsc::UnboundedSender<ConsumeRequest>>,
    responses: Streaming<ConsumeResponse>,
    history: Option<(History, u64)>,
    next_request: u64,
    window: Flow,
    topics: HashMap<String, Arc<str>>,
    /// How it was welcomed.
    pub subscribed: Subscribed,
    /// Answer Pings while reading. On by default.
    pub answers_pings: bool,
    /// `Delivery.sequence` of the last frame read.
    pub seen: u64,
    /// What it holds, and how many bytes each counts.
    pub held: BTreeMap<LeaseName, u64>,
    /// Records read and not yet asked for.
    pub inbox: VecDeque<Lease>,
    /// Each `Revoked` so far.
    pub revoked: Vec<Revoked>,
    /// Answers to settlements, by `request_id`; unasked ones at 0.
    pub settled: BTreeMap<u64, Vec<Rejection>>,
    /// The last `Committed` of each partition.
    pub committed: BTreeMap<(String, i32), i64>,
    /// Pings read.
    pub pings: u64,
    /// A `Drain` was read.
    pub drained: bool,
    /// Why, when it was told to drain.
    pub drain_reason: DrainReason,
    /// How long it was told that it has then.
    pub drain_grace: Duration,
    /// Frames read that hold nothing this contract knows: of a later revision.
    pub unknown: u64,
    ended_well: bool,
}

/// A first frame for a subscription, with a window of records.
#[must_use]
pub fn subscribe(subscription: &str, max_records: i32) -> Subscribe {
    Subscribe {
        target: Some(subscribe::Target::Subscription(subscription.to_owned())),
        flow: Some(Flow { max_records, max_bytes: 0 }),
        revision: sluice_proto::REVISION,
        ..Subscribe::default()
    }
}

/// The operands of a settlement for these leases, consecutive offsets as ranges.
#[must_use]
pub fn ranges(leases: &[Lease]) -> Vec<Leases> {
    let mut partitions: BTreeMap<(Arc<str>, i32, i64), Vec<i64>> = BTreeMap::new();
    for lease in leases {
        let partition = (Arc::clone(&lease.topic), lease.partition, lease.epoch);
        partitions.entry(partition).or_default().push(lease.offset);
    }
    let of = |((topic, partition, epoch), offsets): ((Arc<str>, i32, i64), Vec<i64>)| Leases {
        topic: topic.to_string(),
        partition,
        epoch,
        offsets: coalesced(offsets),
    };
    partitions.into_iter().map(of).collect()
}

fn coalesced(mut offsets: Vec<i64>) -> Vec<OffsetRange> {
    offsets.sort_unstable();
    let mut ranges: Vec<OffsetRange> = Vec::new();
    for offset in offsets {
        match ranges.last_mut() {
            Some(range) if range.last.unwrap_or(range.first) + 1 == offset => range.last = Some(offset),
            _ => ranges.push(OffsetRange { first: offset, last: None }),
        }
    }
    ranges
}

/// A settlement of these leases.
#[must_use]
pub fn settlement(leases: Leases, outcome: Outcome) -> Settlement {
    Settlement { leases: Some(leases), outcome: Some(outcome) }
}

/// `Ack`.
#[must_use]
pub fn ack() -> Outcome {
    Outcome::Ack(Ack {})
}

/// `Retry`, now.
#[must_use]
pub fn retry_now() -> Outcome {
    Outcome::Retry(Retry { delay: Some(prost_types::Duration::default()), reason: "a test says so".to_owned() })
}

/// `Retry`, after this long.
#[must_use]
pub fn retry_after(delay: Duration) -> Outcome {
    let delay = delay.try_into().expect("a test's delay fits");
    Outcome::Retry(Retry { delay: Some(delay), reason: "a test says so".to_owned() })
}

/// `Retry`, after the policy's backoff.
#[must_use]
pub fn retry() -> Outcome {
    Outcome::Retry(Retry { delay: None, reason: "a test says so".to_owned() })
}

/// `DeadLetter`, with this reason.
#[must_use]
pub fn dead_letter(reason: &str) -> Outcome {
    Outcome::DeadLetter(DeadLetter { reason: reason.to_owned() })
}

/// `Release`.
#[must_use]
pub fn release() -> Outcome {
    Outcome::Release(Release {})
}

impl Wire {
    /// Opens a stream with this first frame and waits for the welcome.
    ///
    /// # Errors
    /// The status with which the gateway ended the stream instead.
    pub async fn open(channel: Channel, first: Subscribe) -> Result<Self, Status> {
        let window = first.flow.unwrap_or_default();
        let seen = first.seen;
        let (requests, outgoing) = mpsc::unbounded_channel();
        let _ = requests.send(ConsumeRequest { request: Some(Request::Subscribe(first)) });
        let mut client = ConsumerServiceClient::new(channel).max_decoding_message_size(64 << 20);
        let mut responses = client.consume(UnboundedReceiverStream::new(outgoing)).await?.into_inner();
        let welcome = tokio::time::timeout(SOON, responses.message()).await.expect("a welcome, or an end")?;
        let subscribed = match welcome.and_then(|frame| frame.response) {
            Some(Response::Subscribed(subscribed)) => subscribed,
            other => panic!("the first frame is {other:?}, not Subscribed"),
        };
        Ok(Self {
            requests: Some(requests),
            responses,
            history: None,
            next_request: 0,
            window,
            topics: HashMap::new(),
            subscribed,
            answers_pings: true,
            seen,
            held: BTreeMap::new(),
            inbox: VecDeque::new(),
            revoked: Vec::new(),
            settled: BTreeMap::new(),
            committed: BTreeMap::new(),
            pings: 0,
            drained: false,
            drain_reason: DrainReason::Unspecified,
            drain_grace: Duration::ZERO,
            unknown: 0,
            ended_well: false,
        })
    }

    /// A session of a subscription with a window of records, on a connection of its own.
    pub async fn subscribe(gateway: &Gateway, subscription: &str, max_records: i32) -> Self {
        Self::connect(gateway, subscribe(subscription, max_records)).await
    }

    /// A session with this first frame, on a connection of its own.
    pub async fn connect(gateway: &Gateway, first: Subscribe) -> Self {
        Self::open(gateway.channel().await, first).await.unwrap_or_else(|status| panic!("subscribe: {status:?}"))
    }

    /// Writes down what it is dealt and what it settles.
    #[must_use]
    pub fn recorded(mut self, history: &History) -> Self {
        self.history = Some((history.clone(), history.session()));
        self
    }

    // === writing ===

    /// Writes a frame. One that cannot be sent any more is dropped: the stream's end is seen by reading.
    pub fn send(&self, request: Request) {
        if let Some(requests) = &self.requests {
            let _ = requests.send(ConsumeRequest { request: Some(request) });
        }
    }

    /// A new window.
    pub fn flow(&mut self, max_records: i32, max_bytes: i64) {
        self.window = Flow { max_records, max_bytes };
        self.send(Request::Flow(self.window));
    }

    /// Settles leases that it holds; nothing is answered unless something is rejected.
    pub fn settle(&mut self, leases: &[Lease], outcome: &Outcome) {
        self.note(leases, outcome);
        let settlements = ranges(leases).into_iter().map(|one| settlement(one, outcome.clone())).collect();
        self.send(Request::Settle(Settlements { request_id: 0, durable: false, seen: self.seen, settlements }));
    }

    /// Acks leases that it holds.
    pub fn ack(&mut self, leases: &[Lease]) {
        self.settle(leases, &ack());
    }

    /// Settles leases that it holds and waits for the answer: what was rejected.
    pub async fn settle_answered(&mut self, leases: &[Lease], outcome: &Outcome, durable: bool) -> Vec<Rejection> {
        self.note(leases, outcome);
        let settlements = ranges(leases).into_iter().map(|one| settlement(one, outcome.clone())).collect();
        self.ask(Settlements { request_id: 0, durable, seen: self.seen, settlements }).await
    }

    /// Writes settlements as they are, gives them a `request_id`, and waits for the answer. What it holds is not noted.
    pub async fn ask(&mut self, settlements: Settlements) -> Vec<Rejection> {
        self.next_request += 1;
        let request_id = self.next_request;
        self.send(Request::Settle(Settlements { request_id, ..settlements }));
        self.until("the settlements are answered", move |wire| wire.settled.remove(&request_id)).await
    }

    /// Waits until the gateway has worked all that was written before.
    pub async fn barrier(&mut self) {
        let rejections = self.ask(Settlements::default()).await;
        assert_eq!(rejections, [], "nothing was asked, so nothing is rejected");
    }

    fn note(&mut self, leases: &[Lease], outcome: &Outcome) {
        if let Some((history, session)) = &self.history {
            // What it has read to be taken back is not its to settle.
            let held: Vec<Lease> = leases.iter().filter(|one| self.held.contains_key(&one.name())).cloned().collect();
            history.settled(*session, &held, outcome);
        }
        if !matches!(outcome, Outcome::Extend(_)) {
            for lease in leases {
                self.held.remove(&lease.name());
            }
        }
    }

    /// Closes its own side: nothing more can be written, reading goes on.
    pub fn half_close(&mut self) {
        self.requests = None;
    }

    // === reading ===

    /// Reads one frame, or waits no longer than this.
    pub async fn read(&mut self, within: Duration) -> Seen {
        let frame = match tokio::time::timeout(within, self.responses.message()).await {
            Err(_) => return Seen::Nothing,
            Ok(Ok(None)) => {
                self.ended_well = true;
                return Seen::Ended(Ok(()));
            }
            Ok(Err(status)) => return Seen::Ended(Err(status)),
            Ok(Ok(Some(frame))) => frame,
        };
        match frame.response {
            Some(Response::Delivery(delivery)) => self.delivery(delivery),
            Some(Response::Revoked(revoked)) => self.take_back(revoked),
            Some(Response::Settled(settled)) => {
                self.settled.entry(settled.request_id).or_default().extend(settled.rejections);
            }
            Some(Response::Committed(one)) => {
                self.committed.insert((one.topic, one.partition), one.offset);
            }
            Some(Response::Ping(_)) => {
                self.pings += 1;
                if self.answers_pings {
                    self.send(Request::Pong(Pong {}));
                }
            }
            Some(Response::Drain(drain)) => {
                self.drained = true;
                self.drain_reason = drain.reason();
                self.drain_grace = drain.grace.and_then(|grace| grace.try_into().ok()).unwrap_or_default();
            }
            // A frame without any content is one of a later revision, as its reader sees it.
            None => self.unknown += 1,
            other => panic!("an unexpected frame: {other:?}"),
        }
        Seen::Frame
    }

    /// Reads until `look` finds something; panics at the deadline or at the stream's end.
    pub async fn until<T>(&mut self, what: &str, mut look: impl FnMut(&mut Self) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            assert!(start.elapsed() < SOON, "not within {SOON:?}: {what}; {}", self.state());
            if let Seen::Ended(end) = self.read(Duration::from_millis(100)).await {
                panic!("the stream ended with {end:?} before: {what}; {}", self.state());
            }
        }
    }

    /// The next `count` records.
    pub async fn records(&mut self, count: usize) -> Vec<Lease> {
        self.until(&format!("{count} records"), |wire| (wire.inbox.len() >= count).then_some(())).await;
        self.inbox.drain(..count).collect()
    }

    /// The next record.
    pub async fn record(&mut self) -> Lease {
        self.records(1).await.remove(0)
    }

    /// Reads until the stream ends, and answers how.
    pub async fn end(&mut self) -> Result<(), Status> {
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < SOON, "the stream does not end; {}", self.state());
            if let Seen::Ended(end) = self.read(Duration::from_millis(100)).await {
                return end;
            }
        }
    }

    fn state(&self) -> String {
        format!(
            "inbox {}, held {}, seen {}, revoked {:?}, drained {}",
            self.inbox.len(),
            self.held.len(),
            self.seen,
            self.revoked,
            self.drained
        )
    }

    fn delivery(&mut self, delivery: Delivery) {
        assert!(!self.drained, "a delivery comes behind the Drain");
        assert!(delivery.sequence > self.seen, "sequences rise: {} after {}", delivery.sequence, self.seen);
        self.seen = delivery.sequence;
        for batch in delivery.batches {
            let topic = Arc::clone(self.topics.entry(batch.topic).or_insert_with_key(|name| Arc::from(name.as_str())));
            for record in batch.records {
                let lease = Lease {
                    topic: Arc::clone(&topic),
                    partition: batch.partition,
                    epoch: batch.epoch,
                    offset: record.offset,
                    key: record.key,
                    value: record.value,
                    attempts: record.attempts,
                    sequence: delivery.sequence,
                };
                self.held.insert(lease.name(), lease.bytes());
                if let Some((history, session)) = &self.history {
                    history.delivered(*session, &lease);
                }
                self.inbox.push_back(lease);
            }
        }
        self.check_window();
    }

    /// Invariant 4. The last window counts: a test that lowers its window below what it holds switches to reading frames.
    fn check_window(&self) {
        let (records, bytes) = (self.held.len(), self.held.values().sum::<u64>());
        let max_records = usize::try_from(self.window.max_records).unwrap_or(0);
        assert!(records <= max_records, "dealt {records} records into a window of {max_records}");
        let max_bytes = u64::try_from(self.window.max_bytes).unwrap_or(0);
        let within = max_bytes == 0 || bytes <= max_bytes || records == 1;
        assert!(within, "dealt {bytes} bytes in {records} records into a window of {max_bytes} bytes");
    }

    fn take_back(&mut self, revoked: Revoked) {
        if let Some(leases) = &revoked.leases {
            let inside = |offset: i64| {
                leases.offsets.iter().any(|range| (range.first..=range.last.unwrap_or(range.first)).contains(&offset))
            };
            let of_this = |(topic, partition, epoch, offset): &LeaseName| {
                **topic == *leases.topic && *partition == leases.partition && *epoch == leases.epoch && inside(*offset)
            };
            self.held.retain(|name, _| !of_this(name));
            if let Some((history, session)) = &self.history {
                history.revoked(*session, leases);
            }
        }
        self.revoked.push(revoked);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if let Some((history, session)) = &self.history {
            history.ended(*session, self.ended_well);
        }
    }
}
