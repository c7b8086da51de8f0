//! The consumer, as the application sees it.

use std::{
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::Stream;
use sluice_proto::v1::Flow;
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    builder::Builder,
    error::Error,
    event::{Event, SessionInfo},
    lease::Command,
    record::Record,
};

/// One consumer of one subscription: a stream of records, each with its lease.
///
/// The stream is held by a task in the background. It answers the node's pings, extends what waits in the queue, connects
/// anew when a connection breaks or a node drains, and takes its leases along. What the application sees of all this are at
/// most [events](Self::events).
///
/// Records may be worked on by many tasks at once and settled in any order. At most the window's number of records is held
/// at a time, queued ones included; window × work per worker should stay below the `ack_timeout`.
///
/// Dropping the consumer closes it in the background. [`close`](Self::close) waits for it.
pub struct Consumer {
    records: mpsc::UnboundedReceiver<Record>,
    handle: Handle,
    events: Option<mpsc::Receiver<Event>>,
    events_dropped: Arc<AtomicU64>,
    /// The error that ended the consumer was told.
    told: bool,
}

/// What can be asked of a consumer while another task reads its records.
#[derive(Clone)]
pub struct Handle {
    pub(crate) commands: mpsc::UnboundedSender<Command>,
    pub(crate) ended: Arc<OnceLock<Error>>,
    pub(crate) info: watch::Receiver<SessionInfo>,
}

impl Consumer {
    /// Sets up a consumer of a subscription on the node, or load balancer, at an address such as `http://127.0.0.1:7070`.
    pub fn builder(address: impl Into<String>, subscription: impl Into<String>) -> Builder {
        Builder::new(address.into(), subscription.into())
    }

    pub(crate) fn new(
        records: mpsc::UnboundedReceiver<Record>,
        handle: Handle,
        events: mpsc::Receiver<Event>,
        events_dropped: Arc<AtomicU64>,
    ) -> Self {
        Self { records, handle, events: Some(events), events_dropped, told: false }
    }

    /// The next record. Waits as long as there is none, also while there is no connection. None after
    /// [`Handle::close`]; an error, once, when the consumer has ended for good.
    ///
    /// May be cancelled: no record is lost by it.
    pub async fn next(&mut self) -> Result<Option<Record>, Error> {
        std::future::poll_fn(|context| self.poll_record(context)).await
    }

    fn poll_record(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Record>, Error>> {
        loop {
            match ready!(self.records.poll_recv(context)) {
                Some(record) if record.give() => return Poll::Ready(Ok(Some(record))),
                // Its lease was taken back while it waited here.
                Some(_) => {}
                None if self.told => return Poll::Ready(Ok(None)),
                None => {
                    self.told = true;
                    return Poll::Ready(self.handle.ended.get().map_or(Ok(None), |error| Err(error.clone())));
                }
            }
        }
    }

    /// Replaces the window: at most so many records, and so many bytes of them (0: no limit in bytes). 0 records is a pause.
    /// What is held already stays.
    pub fn set_window(&self, max_records: u32, max_bytes: u64) {
        self.handle.set_window(max_records, max_bytes);
    }

    /// See [`Handle::flush`].
    pub async fn flush(&self) -> Result<(), Error> {
        self.handle.flush().await
    }

    /// Ends the consumer: no more records; those that the application has not seen go back; those that it works on may be
    /// settled for up to `limit`; then the node has answered every settlement. What is not settled by then goes back too.
    /// None of it counts as an attempt.
    ///
    /// # Errors
    /// The error that had ended the consumer before, if there is one.
    pub async fn close(self, limit: Duration) -> Result<(), Error> {
        self.handle.close(limit).await
    }

    /// See [`Handle::session`].
    pub fn session(&self) -> SessionInfo {
        self.handle.session()
    }

    /// A handle for other tasks.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// What happens beside the records: connections, rejected settlements, leases taken back, commits. Can be taken once. The
    /// newest are dropped while 1,024 wait to be read.
    pub fn events(&mut self) -> Option<mpsc::Receiver<Event>> {
        self.events.take()
    }

    /// How many events were dropped because nobody read them.
    pub fn events_dropped(&self) -> u64 {
        self.events_dropped.load(Ordering::Relaxed)
    }
}

impl Handle {
    /// See [`Consumer::set_window`].
    pub fn set_window(&self, max_records: u32, max_bytes: u64) {
        // Fails only when the consumer has ended.
        let _ = self.commands.send(Command::Window(flow(max_records, max_bytes)));
    }

    /// Waits until the node has answered every settlement that was made before: it has applied them, or an
    /// [`Event::Rejected`] tells of those that it has not. With [`Builder::durable`] Kafka has them too.
    ///
    /// # Errors
    /// [`Error::Closed`], or what ended the consumer, if that came first.
    pub async fn flush(&self) -> Result<(), Error> {
        let (answered, answer) = oneshot::channel();
        let sent = self.commands.send(Command::Flush(answered)).is_ok();
        if sent && answer.await.is_ok() {
            return Ok(());
        }
        Err(self.ended.get().cloned().unwrap_or(Error::Closed))
    }

    /// What the node said of the session when the stream was opened last: its id, the order that is kept, the timeouts.
    pub fn session(&self) -> SessionInfo {
        self.info.borrow().clone()
    }

    /// See [`Consumer::close`]. [`Consumer::next`] then answers None.
    ///
    /// # Errors
    /// The error that had ended the consumer before, if there is one.
    pub async fn close(&self, limit: Duration) -> Result<(), Error> {
        let (done, is_done) = oneshot::channel();
        if self.commands.send(Command::Close { limit, done }).is_ok() {
            // Dropped unanswered only when the consumer has ended already.
            let _ = is_done.await;
        }
        self.ended.get().map_or(Ok(()), |error| Err(error.clone()))
    }
}

impl Stream for Consumer {
    type Item = Result<Record, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_record(context).map(Result::transpose)
    }
}

/// A window of the contract; numbers beyond what it can say become the largest that it can.
pub(crate) fn flow(max_records: u32, max_bytes: u64) -> Flow {
    Flow {
        max_records: i32::try_from(max_records).unwrap_or(i32::MAX),
        max_bytes: i64::try_from(max_bytes).unwrap_or(i64::MAX),
    }
}
