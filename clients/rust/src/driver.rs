//! The task of a consumer: the only one that reads and writes its stream, and the owner of its [`Session`].
//!
//! It never waits for the application: records go into a queue that the window bounds, and a frame is written only when the
//! stream has room for it. Between connections it goes on taking what the application says.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use sluice_proto::v1::{ConsumeRequest, ConsumeResponse};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until, timeout},
};
use tonic::{Status, Streaming, transport::Endpoint};

use crate::{
    backoff::{Backoff, jitter},
    error::{Error, Verdict, verdict},
    event::{Event, EventSink, SessionInfo},
    lease::Command,
    record::Record,
    session::{Output, Session},
};
use connect::{has_room, open};

mod connect;

pub(crate) use connect::chain;

/// Frames that wait for the transport. Few, so that settlements are folded while it is busy.
const OUTBOUND_MAX: usize = 2;
/// Commands taken in one turn.
const COMMANDS_MAX: usize = 1_024;
/// How long a node has to accept the stream.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(30);
/// The server says something each 20 s at the latest; after this silence the connection is taken for dead.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How long the server has to end the stream after our half-close.
const HALF_CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// A stream that lived this long was a success: the backoff begins anew.
const SUCCESS_AFTER: Duration = Duration::from_secs(10);
/// After a planned end: spreads the clients of one node over this time.
const RECONNECT_JITTER: Duration = Duration::from_millis(500);

pub(crate) struct Driver {
    pub(crate) endpoint: Endpoint,
    pub(crate) session: Session,
    pub(crate) commands: mpsc::UnboundedReceiver<Command>,
    pub(crate) records: mpsc::UnboundedSender<Record>,
    pub(crate) events: EventSink,
    /// What the node said of the session.
    pub(crate) info: watch::Sender<SessionInfo>,
    /// What ended the consumer, for the application.
    pub(crate) ended: Arc<OnceLock<Error>>,
    /// Told when the first stream is open.
    pub(crate) ready: Option<oneshot::Sender<()>>,
    /// What the last attempt met, for one who waits for the first.
    pub(crate) last_fault: Arc<std::sync::Mutex<String>>,
    /// How long a consumer that is dropped waits for records that are still being worked on.
    pub(crate) close_timeout: Duration,
    pub(crate) closing: Option<Closing>,
    pub(crate) flushes: Vec<(u64, oneshot::Sender<()>)>,
    pub(crate) backoff: Backoff,
    /// When queued leases are looked through for extension.
    pub(crate) extend_at: Instant,
}

/// The application is done.
pub(crate) struct Closing {
    until: Instant,
    done: Vec<oneshot::Sender<()>>,
}

/// How a stream ended.
enum End {
    /// The application closed the consumer, and all is said.
    Closed,
    /// As planned: after Drain, or with OK.
    Planned,
    /// The way broke.
    Broken(String),
    /// With a status.
    Status(Status),
}

/// Where a stream is in its life.
#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Live,
    /// The server wants to end it; until then settlements are taken.
    Draining(Instant),
    /// We have ended our side.
    HalfClosed(Instant),
}

struct Stream {
    /// None after the half-close.
    outbound: Option<mpsc::Sender<ConsumeRequest>>,
    inbound: Streaming<ConsumeResponse>,
    phase: Phase,
    subscribed: bool,
    heard_at: Instant,
    opened_at: Instant,
    delivered: bool,
}

/// What one turn of the loop is about.
enum Turn {
    /// There is room for a frame, or there never will be again.
    Write(bool),
    Read(Result<Option<ConsumeResponse>, Status>),
    Commands,
    /// The application dropped the consumer.
    Dropped,
    /// Something is due.
    Time,
}

impl Driver {
    pub(crate) async fn run(mut self) {
        let error = loop {
            match self.connect_and_serve().await {
                End::Closed => break None,
                End::Planned => self.rest(jitter(RECONNECT_JITTER), "the stream ended as planned").await,
                End::Broken(cause) => {
                    let wait = self.backoff.next(None);
                    self.rest(wait, &cause).await;
                }
                End::Status(status) => match verdict(&status) {
                    Verdict::Stop(error) => break Some(error),
                    Verdict::Retry(asked) => {
                        let wait = self.backoff.next(asked);
                        self.rest(wait, &format!("{:?}: {}", status.code(), status.message())).await;
                    }
                },
            }
            if self.closing.is_some() && self.session.waits_for_answers_alone() {
                self.settle_unary().await;
            }
            if self.is_over() {
                break None;
            }
        };
        self.end(error);
    }

    /// The last words: every lease ends, and whoever waits hears it.
    fn end(mut self, error: Option<Error>) {
        self.session.revoke_all();
        if let Some(error) = error {
            tracing::warn!(%error, subscription = self.session.settings().subscription, "the consumer ended");
            let _ = self.ended.set(error);
        }
        for done in self.closing.into_iter().flat_map(|closing| closing.done) {
            let _ = done.send(());
        }
    }

    /// Closing, and nothing is left that a new connection could say; or the time for it is over.
    fn is_over(&self) -> bool {
        let now = Instant::now();
        self.closing.as_ref().is_some_and(|closing| self.session.is_settled() || closing.until <= now)
    }

    /// The application is done and the stream is gone: what was settled needs no new stream. A node that drains takes no
    /// stream any more, but it takes this.
    async fn settle_unary(&mut self) {
        let settling = connect::settle(self.endpoint.clone(), self.session.unary_requests());
        let Some(Some(answers)) = self.while_listening(settling).await else { return };
        for (request, rejections) in answers {
            self.session.on_settled(request, &rejections);
        }
        self.forward_events();
        self.answer_flushes();
    }

    /// Waits before the next attempt, and listens to the application meanwhile.
    async fn rest(&mut self, wait: Duration, cause: &str) {
        if let Ok(mut last) = self.last_fault.lock() {
            cause.clone_into(&mut last);
        }
        tracing::info!(cause, wait_ms = wait.as_millis(), "the stream ended, connecting anew");
        self.events.send(Event::Disconnected { cause: cause.to_owned() });
        let until = Instant::now() + wait;
        self.while_listening(sleep_until(until)).await;
    }

    /// Runs something while commands are taken. None when the application closed the consumer and nothing is left to do.
    async fn while_listening<T>(&mut self, future: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(future);
        let mut batch = Vec::new();
        loop {
            if self.is_over() {
                return None;
            }
            let close_at = self.closing.as_ref().map(|closing| closing.until);
            tokio::select! {
                done = &mut future => return Some(done),
                _ = self.commands.recv_many(&mut batch, COMMANDS_MAX) => self.on_commands(&mut batch),
                () = self.records.closed(), if self.closing.is_none() => self.close(self.close_timeout, None),
                () = sleep_until(close_at.unwrap_or_else(Instant::now)), if close_at.is_some() => {}
            }
            self.forward_events();
        }
    }

    async fn connect_and_serve(&mut self) -> End {
        let (outbound, frames) = mpsc::channel(OUTBOUND_MAX);
        let first = self.session.subscribe();
        let opening = open(self.endpoint.clone(), self.session.settings(), first, &outbound, frames);
        let opened = self.while_listening(timeout(SUBSCRIBE_TIMEOUT, opening)).await;
        let inbound = match opened {
            None => return End::Closed,
            Some(Err(_elapsed)) => return End::Broken("the node did not accept the stream in time".to_owned()),
            Some(Ok(Err(fault))) => return fault,
            Some(Ok(Ok(inbound))) => inbound,
        };
        let now = Instant::now();
        let mut stream = Stream {
            outbound: Some(outbound),
            inbound,
            phase: Phase::Live,
            subscribed: false,
            heard_at: now,
            opened_at: now,
            delivered: false,
        };
        let end = self.serve(&mut stream).await;
        if stream.delivered || stream.opened_at.elapsed() >= SUCCESS_AFTER {
            self.backoff.reset();
        }
        end
    }

    async fn serve(&mut self, stream: &mut Stream) -> End {
        let mut batch = Vec::new();
        loop {
            let now = Instant::now();
            if let Some(end) = self.on_time(stream, now) {
                return end;
            }
            // Until the server has said what it kept, nothing but the first frame is to be said.
            let wants_to_write = stream.subscribed && stream.outbound.is_some() && self.session.has_frame();
            let deadline = self.deadline(stream);
            let turn = tokio::select! {
                room = has_room(stream.outbound.as_ref()), if wants_to_write => Turn::Write(room),
                message = stream.inbound.message() => Turn::Read(message),
                _ = self.commands.recv_many(&mut batch, COMMANDS_MAX) => Turn::Commands,
                () = self.records.closed(), if self.closing.is_none() => Turn::Dropped,
                () = sleep_until(deadline) => Turn::Time,
            };
            match turn {
                Turn::Write(true) => self.write(stream),
                // The transport dropped our side; reading says why.
                Turn::Write(false) => stream.outbound = None,
                Turn::Read(Ok(Some(response))) => {
                    stream.heard_at = Instant::now();
                    self.session.handle(response, stream.heard_at);
                }
                Turn::Read(Ok(None)) if self.closing.is_some() && self.session.is_settled() => return End::Closed,
                Turn::Read(Ok(None)) => return End::Planned,
                Turn::Read(Err(status)) => return End::Status(status),
                Turn::Commands => self.on_commands(&mut batch),
                Turn::Dropped => self.close(self.close_timeout, None),
                Turn::Time => {}
            }
            self.forward(stream);
            self.answer_flushes();
        }
    }

    fn write(&mut self, stream: &Stream) {
        if let (Some(outbound), Some(frame)) = (&stream.outbound, self.session.next_frame()) {
            let sent = outbound.try_send(frame);
            debug_assert!(
                !matches!(sent, Err(mpsc::error::TrySendError::Full(_))),
                "we alone send, and there was room"
            );
        }
    }

    fn forward(&mut self, stream: &mut Stream) {
        while let Some(output) = self.session.next_output() {
            match output {
                Output::Subscribed(info) => {
                    stream.subscribed = true;
                    self.on_subscribed(info);
                }
                Output::Drain(grace) => stream.phase = Phase::Draining(Instant::now() + grace),
                Output::Record(record) => {
                    stream.delivered = true;
                    // Fails only when the consumer was dropped: closing gives the lease back.
                    let _ = self.records.send(record);
                }
                Output::Event(event) => self.events.send(event),
            }
        }
    }

    fn on_subscribed(&mut self, info: SessionInfo) {
        tracing::debug!(subscription = self.session.settings().subscription, "the stream is open");
        self.extend_at = Instant::now() + self.session.extend_interval();
        self.info.send_replace(info);
        if let Some(ready) = self.ready.take() {
            let _ = ready.send(());
        }
    }

    /// What is due, and whether the stream ends here.
    fn on_time(&mut self, stream: &mut Stream, now: Instant) -> Option<End> {
        if now >= self.extend_at {
            self.extend_at = now + self.session.extend_interval();
            self.session.extend_held(now);
        }
        if now >= stream.heard_at + SILENCE_MAX {
            return Some(End::Broken("nothing was heard from the node".to_owned()));
        }
        let settled = self.session.is_settled();
        match (stream.phase, &self.closing) {
            (Phase::HalfClosed(until), closing) if now >= until => {
                return Some(if closing.is_some() { End::Closed } else { End::Planned });
            }
            (Phase::HalfClosed(_), _) => {}
            // Past its time the server returns what is left; so it is better to say that we end.
            (_, Some(closing)) if settled || now >= closing.until => half_close(stream, now),
            // What another process settles would come back with a half-close, and is taken along instead.
            (Phase::Draining(_), None) if settled && self.session.has_handed_over() => return Some(End::Planned),
            (Phase::Draining(_), None) if settled => half_close(stream, now),
            // What is still worked on is kept for us: half-closing would give it back.
            (Phase::Draining(until), _) if now >= until => return Some(End::Planned),
            _ => {}
        }
        None
    }

    fn deadline(&self, stream: &Stream) -> Instant {
        let mut deadline = self.extend_at.min(stream.heard_at + SILENCE_MAX);
        if let Phase::Draining(until) | Phase::HalfClosed(until) = stream.phase {
            deadline = deadline.min(until);
        }
        // After the half-close the time to close is over already.
        match &self.closing {
            Some(closing) if !matches!(stream.phase, Phase::HalfClosed(_)) => deadline.min(closing.until),
            _ => deadline,
        }
    }

    fn on_commands(&mut self, batch: &mut Vec<Command>) {
        let now = Instant::now();
        for command in batch.drain(..) {
            match command {
                Command::Say { lease, verb, durable, waiter } => {
                    self.session.say(&lease, verb, durable, waiter, now);
                }
                Command::Keep { lease, limit } => self.session.keep(&lease, limit, now),
                Command::HandOver(lease) => self.session.hand_over(&lease),
                Command::Window(window) => self.session.set_window(window),
                Command::Flush(answered) => {
                    let last = self.session.fold_pending();
                    self.flushes.push((last, answered));
                }
                Command::Close { limit, done } => self.close(limit, Some(done)),
            }
        }
        self.answer_flushes();
    }

    fn close(&mut self, limit: Duration, done: Option<oneshot::Sender<()>>) {
        self.session.close();
        let until = Instant::now() + limit;
        let closing = self.closing.get_or_insert_with(|| Closing { until, done: Vec::new() });
        closing.until = closing.until.min(until);
        closing.done.extend(done);
    }

    fn answer_flushes(&mut self) {
        let session = &self.session;
        for (_, answered) in self.flushes.extract_if(.., |(request, _)| session.is_answered(*request)) {
            let _ = answered.send(());
        }
    }

    /// Events that arise without a stream.
    fn forward_events(&mut self) {
        while let Some(output) = self.session.next_output() {
            if let Output::Event(event) = output {
                self.events.send(event);
            }
        }
    }
}

fn half_close(stream: &mut Stream, now: Instant) {
    stream.outbound = None;
    stream.phase = Phase::HalfClosed(now + HALF_CLOSE_TIMEOUT);
}
