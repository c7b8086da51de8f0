//! What ties one stream to the driver: the inbox one way, the queue of frames the other.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use bytes::Bytes;
use sluice_core::{Batch, Leases, Millis, SessionId, Window};
use sluice_proto::v1::consume_response::Response;
use sluice_proto::v1::{ConsumeResponse, Rejection};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::codec::Outgoing;
use super::edge::EdgeFrames;
use super::encode;
use super::inbox::{Flood, Inbox, Input};
use super::silence::Life;

/// Ranges of answers that wait for a client: one that settles on and on and reads nothing would fill our memory.
const ANSWERS_WAITING_MAX: usize = 1 << 18;

/// What goes to the client, in order.
#[derive(Debug)]
pub(crate) enum Frame {
    /// Written only when the transport takes it, on the connection's task and not on the driver's.
    Deliver {
        sequence: u64,
        batches: Vec<Batch>,
    },
    /// Records of another node: so many, in batches as they came from it.
    Relay {
        sequence: u64,
        records: usize,
        batches: Vec<Bytes>,
    },
    Message(Box<ConsumeResponse>),
    /// To an edge only: the session is open. What both sides have, and the last frame's number.
    Opened {
        held: Vec<Leases>,
        sequence: u64,
    },
    /// To an edge only: answers a grant, behind all that was dealt before it.
    Echo {
        number: u64,
        held_records: u64,
        held_bytes: u64,
    },
    Ping,
    /// Not sent: tells the reader that the transport still takes frames (see `reader`).
    Probe,
    /// The end: OK, or a status.
    End(Result<(), Status>),
}

/// Where a session's frames go.
#[derive(Debug)]
pub(crate) enum Outlet {
    /// To the transport of its client.
    Client(mpsc::UnboundedSender<Frame>),
    /// To an edge, which knows the session by this number.
    Edge { session: u64, frames: EdgeFrames },
}

/// What an operator may know of a client.
#[derive(Debug, Clone)]
pub(crate) struct Profile {
    pub(crate) peer: String,
    pub(crate) labels: HashMap<String, String>,
    pub(crate) connected_at: SystemTime,
    /// The same by `clock`, which nobody sets and which no sleep stops: of two streams of one consumer the later has the session.
    pub(crate) subscribed_at: Millis,
    /// Of the contract, the lower of the client's and ours: nothing that a later one added is sent on this stream.
    pub(crate) revision: u32,
}

/// Times at which the transport took something, shared by the stream and the reader.
#[derive(Debug)]
pub(crate) struct Transport {
    began: Instant,
    heard: AtomicU64,
    sent: AtomicU64,
    taken: AtomicU64,
    /// 0: none since the last sign of life.
    ping_taken: AtomicU64,
    /// Ranges of answers that it has not taken.
    answers: AtomicUsize,
    /// Records that it has not taken.
    unread: AtomicUsize,
    /// The transport passed a `Frame::Probe`.
    pub(super) probed: Notify,
}

/// The driver's side of a stream; shared with its reader.
#[derive(Debug)]
pub(crate) struct Link {
    /// Set by the driver when the engine opened the session.
    session: OnceLock<SessionId>,
    inbox: Mutex<Inbox>,
    /// The driver has been told that the inbox holds something.
    queued: AtomicBool,
    outlet: Outlet,
    /// The name that an edge gave to its client for this session; `None`: the driver gives one.
    pub(crate) token: Option<Arc<str>>,
    /// The driver ended the stream: the reader has nothing more to do.
    pub(crate) over: CancellationToken,
    /// It was told to drain: being superseded is then no fault.
    pub(crate) drained: AtomicBool,
    pub(super) transport: Arc<Transport>,
    pub(crate) profile: Profile,
}

/// Counts something, a stream say, for as long as it lives.
#[derive(Debug)]
pub(crate) struct Permit {
    count: Arc<AtomicUsize>,
    places: usize,
}

/// The response stream. Dropped before its end was taken: the client is gone.
#[derive(Debug)]
pub(crate) struct ConsumeStream {
    frames: mpsc::UnboundedReceiver<Frame>,
    transport: Arc<Transport>,
    ended: bool,
    _permit: Permit,
}

/// Both ends of the queue of frames, before the client said what it wants.
pub(crate) fn channel(permit: Permit) -> (mpsc::UnboundedSender<Frame>, Arc<Transport>, ConsumeStream) {
    let (sender, frames) = mpsc::unbounded_channel();
    let transport = Transport::new();
    (sender, transport.clone(), ConsumeStream { frames, transport, ended: false, _permit: permit })
}

/// What a message counts among the answers that wait.
fn answers(message: &ConsumeResponse) -> usize {
    match &message.response {
        Some(Response::Settled(settled)) => {
            // A rejection of nothing costs as much as one of a range.
            let ranges = |r: &Rejection| r.leases.as_ref().map_or(1, |leases| leases.offsets.len().max(1));
            1 + settled.rejections.iter().map(ranges).sum::<usize>()
        }
        _ => 0,
    }
}

fn records(batches: &[Batch]) -> usize {
    batches.iter().map(|batch| batch.records.len()).sum()
}

// === impl Frame ===

impl Frame {
    /// What it counts among the answers that wait for an edge. Records are bounded by windows and count nothing.
    pub(crate) fn answers(&self) -> usize {
        match self {
            Self::Deliver { .. } | Self::Relay { .. } => 0,
            Self::Message(message) => answers(message).max(1),
            Self::Opened { held, .. } => 1 + held.iter().map(|leases| leases.offsets.len()).sum::<usize>(),
            Self::Echo { .. } | Self::Ping | Self::Probe | Self::End(_) => 1,
        }
    }
}

// === impl Transport ===

impl Transport {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            began: Instant::now(),
            heard: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            ping_taken: AtomicU64::new(0),
            answers: AtomicUsize::new(0),
            unread: AtomicUsize::new(0),
            probed: Notify::new(),
        })
    }

    /// Milliseconds since the stream began.
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Something came from the client.
    pub(super) fn hear(&self) {
        self.heard.store(self.now(), Ordering::Relaxed);
        self.ping_taken.store(0, Ordering::Relaxed);
    }

    fn take(&self, ping: bool) {
        let now = self.now();
        self.sent.store(now, Ordering::Relaxed);
        if ping {
            // At most one writer sets it, so a lost race with `hear` costs one ping interval and no more.
            let _ = self.ping_taken.compare_exchange(0, now.max(1), Ordering::Relaxed, Ordering::Relaxed);
        } else {
            self.taken.store(now, Ordering::Relaxed);
        }
    }

    pub(super) fn life(&self, ping_queued: u64) -> Life {
        let ping_taken = self.ping_taken.load(Ordering::Relaxed);
        Life {
            heard: self.heard.load(Ordering::Relaxed),
            sent: self.sent.load(Ordering::Relaxed),
            taken: self.taken.load(Ordering::Relaxed),
            ping_queued,
            ping_taken: (ping_taken != 0).then_some(ping_taken),
        }
    }
}

// === impl Outlet ===

impl Outlet {
    /// After the end, or when nobody takes them any more, frames go nowhere.
    fn send(&self, frame: Frame) {
        match self {
            Self::Client(frames) => drop(frames.send(frame)),
            Self::Edge { session, frames } => frames.send(*session, frame),
        }
    }
}

// === impl Link ===

impl Link {
    /// A session that an edge relays: its frames go there, each with this number.
    pub(crate) fn relayed(session: u64, frames: EdgeFrames, token: Arc<str>, profile: Profile) -> Arc<Self> {
        let outlet = Outlet::Edge { session, frames };
        Arc::new(Self { token: Some(token), ..Self::of(outlet, Transport::new(), Window::default(), profile) })
    }

    fn of(outlet: Outlet, transport: Arc<Transport>, window: Window, profile: Profile) -> Self {
        Self {
            session: OnceLock::new(),
            inbox: Mutex::new(Inbox::new(window)),
            queued: AtomicBool::new(false),
            outlet,
            token: None,
            over: CancellationToken::new(),
            drained: AtomicBool::new(false),
            transport,
            profile,
        }
    }

    pub(crate) fn new(
        frames: mpsc::UnboundedSender<Frame>,
        transport: Arc<Transport>,
        window: Window,
        profile: Profile,
    ) -> Arc<Self> {
        Arc::new(Self::of(Outlet::Client(frames), transport, window, profile))
    }

    /// The session, once the engine opened it.
    pub(crate) fn session(&self) -> Option<SessionId> {
        self.session.get().copied()
    }

    /// Called once, by the driver.
    pub(crate) fn set_session(&self, session: SessionId) {
        let _ = self.session.set(session);
    }

    /// Adds to the inbox; `true` when the driver has to be told.
    pub(crate) fn push(&self, input: Input) -> Result<bool, Flood> {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(input, Input::Settle(_)) {
            if self.transport.answers.load(Ordering::Acquire) > ANSWERS_WAITING_MAX {
                return Err(Flood(ANSWERS_WAITING_MAX));
            }
            // More unread than two windows: it settles records that it has not read, and each makes room for another.
            if self.transport.unread.load(Ordering::Acquire) > inbox.ranges_max() {
                return Err(Flood(inbox.ranges_max()));
            }
        }
        inbox.push(input)?;
        drop(inbox);
        Ok(!self.queued.swap(true, Ordering::AcqRel))
    }

    /// Empties the inbox. The flag falls first: what comes later tells the driver again.
    pub(crate) fn take_inputs(&self) -> VecDeque<Input> {
        self.queued.store(false, Ordering::Release);
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Sends a frame. After the end, or when the client is gone, it goes nowhere.
    pub(crate) fn send(&self, message: ConsumeResponse) {
        if self.has_reader() {
            self.transport.answers.fetch_add(answers(&message), Ordering::AcqRel);
        }
        self.outlet.send(Frame::Message(Box::new(message)));
    }

    /// Sends records of another node.
    pub(crate) fn relay(&self, sequence: u64, records: usize, batches: Vec<Bytes>) {
        if self.has_reader() {
            self.transport.unread.fetch_add(records, Ordering::AcqRel);
        }
        self.outlet.send(Frame::Relay { sequence, records, batches });
    }

    /// Sends records.
    pub(crate) fn deliver(&self, sequence: u64, batches: Vec<Batch>) {
        if self.has_reader() {
            self.transport.unread.fetch_add(records(&batches), Ordering::AcqRel);
        }
        self.outlet.send(Frame::Deliver { sequence, batches });
    }

    /// Ends the stream, after what was sent before, and its reader at once.
    pub(crate) fn end(&self, result: Result<(), Status>) {
        self.outlet.send(Frame::End(result));
        self.over.cancel();
    }

    /// Sends what only an edge understands: `Frame::Opened`, `Frame::Echo`.
    pub(crate) fn tell_edge(&self, frame: Frame) {
        self.outlet.send(frame);
    }

    /// Another node relays it, or another part of this one does.
    pub(crate) fn is_relayed(&self) -> bool {
        matches!(self.outlet, Outlet::Edge { .. })
    }

    /// What the transport has not taken is counted here. An edge counts for its clients itself.
    fn has_reader(&self) -> bool {
        !self.is_relayed()
    }

    /// Something came for this session.
    pub(crate) fn hear(&self) {
        self.transport.hear();
    }

    /// When something came from the client last.
    pub(crate) fn last_seen(&self) -> SystemTime {
        let heard = std::time::Duration::from_millis(self.transport.heard.load(Ordering::Relaxed));
        self.profile.connected_at + heard
    }
}

// === impl ConsumeStream ===

impl Stream for ConsumeStream {
    type Item = Result<Outgoing, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if self.ended {
                return Poll::Ready(None);
            }
            let Some(frame) = ready!(self.frames.poll_recv(cx)) else {
                self.ended = true;
                return Poll::Ready(None);
            };
            let message = match frame {
                Frame::Deliver { sequence, batches } => {
                    self.transport.unread.fetch_sub(records(&batches), Ordering::AcqRel);
                    Outgoing::Delivery { sequence, batches }
                }
                Frame::Relay { sequence, records, batches } => {
                    self.transport.unread.fetch_sub(records, Ordering::AcqRel);
                    Outgoing::Relayed { sequence, batches }
                }
                Frame::Message(message) => {
                    self.transport.answers.fetch_sub(answers(&message), Ordering::AcqRel);
                    Outgoing::Message(message)
                }
                Frame::Ping => {
                    self.transport.take(true);
                    return Poll::Ready(Some(Ok(Outgoing::Message(Box::new(encode::ping())))));
                }
                // No client is told these.
                Frame::Opened { .. } | Frame::Echo { .. } => continue,
                Frame::Probe => {
                    self.transport.probed.notify_one();
                    continue;
                }
                Frame::End(result) => {
                    self.ended = true;
                    self.frames.close();
                    return Poll::Ready(result.err().map(Err));
                }
            };
            self.transport.take(false);
            return Poll::Ready(Some(Ok(message)));
        }
    }
}

// === impl Permit ===

impl Permit {
    /// Takes a place among `max`, or none.
    pub(crate) fn take(count: &Arc<AtomicUsize>, max: usize) -> Option<Self> {
        Self::take_many(count, 1, max)
    }

    /// Takes so many places among `max`, or none.
    pub(crate) fn take_many(count: &Arc<AtomicUsize>, places: usize, max: usize) -> Option<Self> {
        let more = |n: usize| n.checked_add(places).filter(|n| *n <= max);
        let taken = count.fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
        taken.is_ok().then(|| Self { count: count.clone(), places })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.count.fetch_sub(self.places, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nobody() -> Profile {
        Profile {
            peer: String::new(),
            labels: HashMap::new(),
            connected_at: SystemTime::now(),
            subscribed_at: Millis(0),
            revision: 1,
        }
    }

    #[test]
    fn a_permit_is_given_back() {
        let count = Arc::new(AtomicUsize::new(0));
        let first = Permit::take(&count, 1).unwrap();
        assert!(Permit::take(&count, 1).is_none());
        drop(first);
        assert!(Permit::take(&count, 1).is_some());
        let many = Permit::take_many(&count, 7, 10).unwrap();
        assert!(Permit::take_many(&count, 4, 10).is_none());
        assert!(Permit::take_many(&count, usize::MAX, 10).is_none());
        drop(many);
        assert!(Permit::take_many(&count, 10, 10).is_some());
    }

    #[tokio::test]
    async fn a_client_that_settles_and_reads_no_answer_is_a_flood() {
        use tokio_stream::StreamExt as _;
        let permit = Permit::take(&Arc::new(AtomicUsize::new(0)), 1).unwrap();
        let (sender, transport, mut stream) = channel(permit);
        let profile = nobody();
        let link = Link::new(sender, transport, Window { max_records: 10, max_bytes: 0 }, profile);
        let settle = || link.push(Input::Settle(sluice_core::Settlements { request_id: 1, ..Default::default() }));
        for request in 0..=ANSWERS_WAITING_MAX {
            assert!(settle().is_ok());
            link.take_inputs();
            link.send(encode::settled(request as u64, Vec::new()));
        }
        assert_eq!(settle(), Err(Flood(ANSWERS_WAITING_MAX)));
        assert!(link.push(Input::Window(Window::default())).is_ok());
        stream.next().await.unwrap().unwrap();
        assert!(settle().is_ok());
    }

    #[tokio::test]
    async fn a_client_that_settles_what_it_has_not_read_is_a_flood() {
        use sluice_core::{Epoch, Record, TopicPartition};
        use tokio_stream::StreamExt as _;
        let permit = Permit::take(&Arc::new(AtomicUsize::new(0)), 1).unwrap();
        let (sender, transport, mut stream) = channel(permit);
        let profile = nobody();
        let link = Link::new(sender, transport, Window { max_records: 10, max_bytes: 0 }, profile);
        let record = Record { offset: 0, timestamp_ms: 0, key: None, value: None, headers: None };
        let records = vec![(record, 0); 511].into_iter().collect();
        let batch = Batch { partition: TopicPartition::new("t", 0), epoch: Epoch(1), records };
        let settle = || link.push(Input::Settle(sluice_core::Settlements::default()));
        link.deliver(1, vec![batch.clone()]);
        assert!(settle().is_ok());
        link.deliver(2, vec![batch]);
        assert_eq!(settle(), Err(Flood(1_020)));
        stream.next().await.unwrap().unwrap();
        assert!(settle().is_ok());
    }

    #[tokio::test]
    async fn nothing_is_sent_after_the_end() {
        use tokio_stream::StreamExt as _;
        let permit = Permit::take(&Arc::new(AtomicUsize::new(0)), 1).unwrap();
        let (sender, _, mut stream) = channel(permit);
        sender.send(Frame::Probe).unwrap();
        sender.send(Frame::Ping).unwrap();
        sender.send(Frame::End(Ok(()))).unwrap();
        sender.send(Frame::Ping).unwrap();
        assert!(stream.next().await.is_some());
        assert!(stream.next().await.is_none());
        assert!(stream.next().await.is_none());
    }
}
