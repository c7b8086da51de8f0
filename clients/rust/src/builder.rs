//! What a consumer can be told before it connects.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout},
};
use tonic::transport::Endpoint;

use crate::{
    backoff::{Backoff, random_u64},
    consumer::{Consumer, Handle, flow},
    driver::Driver,
    error::Error,
    event::{EventSink, SessionInfo},
    session::{Session, Settings},
};

/// Records held at once, unless said otherwise.
const WINDOW_RECORDS: u32 = 100;
/// Bytes held at once, unless said otherwise.
const WINDOW_BYTES: u64 = 8 << 20;
/// HTTP/2's own 64 KiB halve the throughput of records of 1 KiB.
const RECEIVE_WINDOW_BYTES: u32 = 4 << 20;
/// How long one attempt to reach a node may take.
pub(crate) const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
/// HTTP/2 pings find a peer that vanished. They pass no proxy, so the stream has pings of its own.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(10));

/// Sets up a [`Consumer`].
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until connect"]
pub struct Builder {
    address: String,
    window: (u32, u64),
    connect_timeout: Duration,
    close_timeout: Duration,
    settings: Settings,
}

impl Builder {
    pub(crate) fn new(address: String, subscription: String) -> Self {
        let settings = Settings {
            subscription,
            consumer_id: format!("rust-{:016x}{:016x}", random_u64(), random_u64()),
            ack_timeout: None,
            max_frame_bytes: 0,
            report_commits: false,
            durable: false,
            extend_while_held: None,
            labels: HashMap::new(),
        };
        Self {
            address,
            window: (WINDOW_RECORDS, WINDOW_BYTES),
            connect_timeout: Duration::from_secs(30),
            close_timeout: Duration::from_secs(30),
            settings,
        }
    }

    /// The most records held at once, queued ones included. Default: 100.
    pub fn window(mut self, max_records: u32) -> Self {
        self.window.0 = max_records;
        self
    }

    /// The most bytes of keys, values and headers held at once; 0 is no limit. One record that is larger still comes when
    /// nothing is held. Default: 8 MiB.
    pub fn window_bytes(mut self, max_bytes: u64) -> Self {
        self.window.1 = max_bytes;
        self
    }

    /// A name that stays the same while this process lives and is not shared with another: leases wait for it when a connection
    /// breaks. Default: a random one for each consumer, which is what most applications want. Empty: nothing is resumed.
    pub fn consumer_id(mut self, consumer_id: impl Into<String>) -> Self {
        self.settings.consumer_id = consumer_id.into();
        self
    }

    /// A word for operators, such as version or zone. Never policy.
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.labels.insert(key.into(), value.into());
        self
    }

    /// How long a lease lasts. May be shorter than what the subscription says, not longer. Default: the subscription's.
    pub fn ack_timeout(mut self, ack_timeout: Duration) -> Self {
        self.settings.ack_timeout = Some(ack_timeout);
        self
    }

    /// The largest frame to be sent to this consumer, in bytes: a record that does not fit is dealt to others. Default: 4 MiB.
    pub fn max_frame_bytes(mut self, max_frame_bytes: u32) -> Self {
        self.settings.max_frame_bytes = i32::try_from(max_frame_bytes).unwrap_or(i32::MAX);
        self
    }

    /// Asks for [`Event::Committed`](crate::Event::Committed). Default: no.
    pub fn report_commits(mut self, report_commits: bool) -> Self {
        self.settings.report_commits = report_commits;
        self
    }

    /// Has every settlement answered only when Kafka has it, not only [those that are awaited](crate::Record::ack_durable).
    /// [`Consumer::flush`] and [`Consumer::close`] then wait for that, and a settlement whose answer a crash prevented is said
    /// again. Releases are not stored anywhere and are answered at once. Default: no.
    pub fn durable(mut self, durable: bool) -> Self {
        self.settings.durable = durable;
        self
    }

    /// Extends the leases of all records that the application has, until it settles or drops them, but no longer than `limit`
    /// after it got one, so that work which hangs loses its lease in the end. For applications whose work may take longer than
    /// the `ack_timeout`; [`Record::keep_extending`](crate::Record::keep_extending) does it for one record. Default: only what
    /// waits in the queue is extended.
    pub fn extend_while_held(mut self, limit: Duration) -> Self {
        self.settings.extend_while_held = Some(limit);
        self
    }

    /// How long [`connect`](Self::connect) tries. Default: 30 s. Once connected, the consumer tries for ever.
    pub fn connect_timeout(mut self, connect_timeout: Duration) -> Self {
        self.connect_timeout = connect_timeout;
        self
    }

    /// How long a consumer that is dropped waits for records that are still worked on. Default: 30 s.
    pub fn close_timeout(mut self, close_timeout: Duration) -> Self {
        self.close_timeout = close_timeout;
        self
    }

    /// Opens the stream. Tries again, for `connect_timeout`, what may pass by itself.
    ///
    /// # Errors
    /// [`Error::Config`] for settings that cannot work, [`Error::Unavailable`] when the time is over, and every error by which
    /// a node says that trying again cannot help.
    pub async fn connect(self) -> Result<Consumer, Error> {
        let endpoint = endpoint(&self.address)?;
        let (commands, commands_in) = mpsc::unbounded_channel();
        let (records, records_out) = mpsc::unbounded_channel();
        let (events, events_out, events_dropped) = EventSink::new();
        let (info, info_out) = watch::channel(SessionInfo::default());
        let (ready, is_ready) = oneshot::channel();
        let ended = Arc::new(OnceLock::new());
        let last_fault = Arc::new(Mutex::new(String::from("no answer")));
        let driver = Driver {
            endpoint,
            session: Session::new(self.settings, flow(self.window.0, self.window.1), commands.clone()),
            commands: commands_in,
            records,
            events,
            info,
            ended: Arc::clone(&ended),
            ready: Some(ready),
            last_fault: Arc::clone(&last_fault),
            close_timeout: self.close_timeout,
            closing: None,
            flushes: Vec::new(),
            backoff: Backoff::default(),
            extend_at: Instant::now() + Duration::from_secs(60),
        };
        // Ends by itself when the consumer is dropped, after what its application still works on.
        tokio::spawn(driver.run());
        match timeout(self.connect_timeout, is_ready).await {
            Ok(Ok(())) => {
                let handle = Handle { commands, ended, info: info_out };
                Ok(Consumer::new(records_out, handle, events_out, events_dropped))
            }
            Ok(Err(_ended)) => Err(ended.get().cloned().unwrap_or(Error::Closed)),
            Err(_elapsed) => {
                let last = last_fault.lock().map(|last| last.clone()).unwrap_or_default();
                Err(Error::Unavailable { within: self.connect_timeout, last })
            }
        }
    }
}

pub(crate) fn endpoint(address: &str) -> Result<Endpoint, Error> {
    let address = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
    let endpoint = Endpoint::from_shared(address.clone())
        .map_err(|error| Error::Config(format!("address {address:?}: {error}")))?;
    let endpoint = endpoint
        .connect_timeout(ATTEMPT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE.0)
        .keep_alive_timeout(KEEP_ALIVE.1)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(RECEIVE_WINDOW_BYTES)
        .initial_connection_window_size(RECEIVE_WINDOW_BYTES);
    Ok(endpoint)
}
