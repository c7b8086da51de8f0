//! One librdkafka client.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::NonNull;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka_sys::bindings as sys;

use super::{Code, List, OK, PartitionResult, Queue, c_string, code_name, owned};
use crate::Error;
use crate::repeats::Repeats;

/// What a client is for: it decides how its events come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Joins and commits: rebalances and errors come as events.
    Member,
    /// Fetches records by batches, errors among them.
    Fetch,
}

/// Errors of the client that wait to be taken, at most.
const ERRORS_MAX: usize = 16;

/// What a client said of itself by its error callback.
#[derive(Debug, Default)]
struct Errors(Mutex<Vec<(Code, String)>>);

/// An owned `rd_kafka_t`. Dropping it may take seconds: do it on a thread that may wait.
pub(crate) struct Handle {
    rk: NonNull<sys::rd_kafka_t>,
    /// What librdkafka's callback points to: it lives as long as the client.
    errors: Arc<Errors>,
}

// SAFETY: librdkafka's clients may be used from any thread, by several at once.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

/// librdkafka's log lines, as tracing events.
unsafe extern "C" fn on_log(rk: *const sys::rd_kafka_t, level: c_int, facility: *const c_char, text: *const c_char) {
    // SAFETY: librdkafka passes NUL-terminated strings, and a client that lives for the call or null.
    let (name, facility, text) = unsafe {
        let name = if rk.is_null() { String::new() } else { owned(sys::rd_kafka_name(rk)) };
        (name, owned(facility), owned(text))
    };
    let Some(suppressed) = admit(level, &name, &text) else { return };
    match level {
        ..=3 => tracing::error!(target: "librdkafka", client = name, facility, suppressed, "{text}"),
        4..=5 => tracing::warn!(target: "librdkafka", client = name, facility, suppressed, "{text}"),
        6 => tracing::info!(target: "librdkafka", client = name, facility, suppressed, "{text}"),
        _ => tracing::debug!(target: "librdkafka", client = name, facility, "{text}"),
    }
}

/// An error of a client that has no events for them: a broker that is away, or refuses it.
unsafe extern "C" fn on_error(rk: *mut sys::rd_kafka_t, code: c_int, text: *const c_char, opaque: *mut c_void) {
    // SAFETY: librdkafka passes a client that lives for the call, a NUL-terminated string, and the opaque of `Handle::new`: the
    // handle keeps it until the client is gone.
    let (name, text, errors) =
        unsafe { (owned(sys::rd_kafka_name(rk)), owned(text), &*opaque.cast_const().cast::<Errors>()) };
    if let Some(suppressed) = admit(3, &name, &text) {
        tracing::error!(target: "librdkafka", client = name, facility = "ERROR", suppressed, "{text}");
    }
    if let Some(code) = Errors::KNOWN.into_iter().find(|known| *known as c_int == code) {
        let mut errors = errors.0.lock().unwrap_or_else(PoisonError::into_inner);
        if errors.len() < ERRORS_MAX {
            errors.push((code, text));
        }
    }
}

impl Errors {
    /// Those that say more than that nothing answers.
    const KNOWN: [Code; 3] = [
        Code::RD_KAFKA_RESP_ERR__AUTHENTICATION,
        Code::RD_KAFKA_RESP_ERR__SSL,
        Code::RD_KAFKA_RESP_ERR_SASL_AUTHENTICATION_FAILED,
    ];
}

/// Whether librdkafka's line is logged now, and how many like it were left out. Lines for debugging all are.
fn admit(level: c_int, name: &str, text: &str) -> Option<u64> {
    static REPEATS: LazyLock<Mutex<Repeats>> = LazyLock::new(Mutex::default);
    if level > 6 {
        return Some(0);
    }
    REPEATS.lock().unwrap_or_else(PoisonError::into_inner).admit((name, text), Instant::now())
}

impl Handle {
    pub(crate) fn new(purpose: Purpose, properties: &BTreeMap<String, String>) -> Result<Self, Error> {
        let mut text: [c_char; 512] = [0; 512];
        let errors = Arc::new(Errors::default());
        // SAFETY: the configuration is ours until `rd_kafka_new` takes it, or is destroyed when that does not happen;
        // strings live for each call; the error buffer is as long as said and always NUL-terminated; the opaque lives as long
        // as the handle, which outlives the client.
        unsafe {
            let conf = sys::rd_kafka_conf_new();
            for (name, value) in properties {
                let (c_name, c_value) = (c_string(name), c_string(value));
                let result =
                    sys::rd_kafka_conf_set(conf, c_name.as_ptr(), c_value.as_ptr(), text.as_mut_ptr(), text.len());
                if result != sys::rd_kafka_conf_res_t::RD_KAFKA_CONF_OK {
                    sys::rd_kafka_conf_destroy(conf);
                    return Err(Error::Config(format!("property {name}: {}", owned(text.as_ptr()))));
                }
            }
            sys::rd_kafka_conf_set_log_cb(conf, Some(on_log));
            if purpose == Purpose::Member {
                let events = sys::RD_KAFKA_EVENT_REBALANCE | sys::RD_KAFKA_EVENT_ERROR;
                sys::rd_kafka_conf_set_events(conf, events);
            } else {
                sys::rd_kafka_conf_set_error_cb(conf, Some(on_error));
                sys::rd_kafka_conf_set_opaque(conf, Arc::as_ptr(&errors).cast_mut().cast::<c_void>());
            }
            let kind = sys::rd_kafka_type_t::RD_KAFKA_CONSUMER;
            let rk = sys::rd_kafka_new(kind, conf, text.as_mut_ptr(), text.len());
            let Some(rk) = NonNull::new(rk) else {
                sys::rd_kafka_conf_destroy(conf);
                return Err(Error::Config(owned(text.as_ptr())));
            };
            sys::rd_kafka_poll_set_consumer(rk.as_ptr());
            Ok(Self { rk, errors })
        }
    }

    pub(super) fn as_ptr(&self) -> *mut sys::rd_kafka_t {
        self.rk.as_ptr()
    }

    /// Why brokers refuse a fetch handle's connections, as it was said since the last call. Said while records are taken.
    pub(crate) fn take_errors(&self) -> Vec<(Code, String)> {
        std::mem::take(&mut *self.errors.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn subscribe(&self, topics: &[String]) -> Result<(), Code> {
        let mut list = List::new();
        for topic in topics {
            list.add(topic, -1, super::OFFSET_NONE);
        }
        // SAFETY: client and list are alive; librdkafka copies the list.
        code(unsafe { sys::rd_kafka_subscribe(self.as_ptr(), list.as_ptr()) })
    }

    /// Answers a rebalance event with an empty list: this client never fetches.
    pub(crate) fn answer(&self, assign: bool) -> Result<(), String> {
        let empty = List::new();
        // SAFETY: the client is alive; the protocol's name is static or null; null as the list of `rd_kafka_assign`
        // means none.
        unsafe {
            let protocol = sys::rd_kafka_rebalance_protocol(self.as_ptr());
            let eager = !protocol.is_null() && CStr::from_ptr(protocol).to_bytes() == b"EAGER";
            match (eager, assign) {
                (true, true) => code(sys::rd_kafka_assign(self.as_ptr(), empty.as_ptr())),
                (true, false) => code(sys::rd_kafka_assign(self.as_ptr(), std::ptr::null())),
                (false, true) => {
                    return error(sys::rd_kafka_incremental_assign(self.as_ptr(), empty.as_ptr()));
                }
                (false, false) => {
                    return error(sys::rd_kafka_incremental_unassign(self.as_ptr(), empty.as_ptr()));
                }
            }
        }
        .map_err(|code| code_name(code).to_owned())
    }

    /// Begins to fetch these, each at its offset.
    pub(crate) fn assign(&self, partitions: &List) -> Result<(), String> {
        // SAFETY: client and list are alive; librdkafka copies the list.
        unsafe { error(sys::rd_kafka_incremental_assign(self.as_ptr(), partitions.as_ptr())) }
    }

    /// Stops fetching these; what was prefetched of them is thrown away.
    pub(crate) fn unassign(&self, partitions: &List) -> Result<(), String> {
        // SAFETY: client and list are alive; librdkafka copies the list.
        unsafe { error(sys::rd_kafka_incremental_unassign(self.as_ptr(), partitions.as_ptr())) }
    }

    /// Committed offsets and metadata of the client's group. An element may have a code of its own.
    pub(crate) fn committed(&self, partitions: &List, timeout: Duration) -> Result<Vec<PartitionResult>, Code> {
        // SAFETY: client and list are alive; librdkafka fills the list in before it returns.
        code(unsafe { sys::rd_kafka_committed(self.as_ptr(), partitions.as_ptr(), millis(timeout)) })?;
        Ok(partitions.results())
    }

    /// Positions: the offset after the last that was given to us, control records included. Local.
    pub(crate) fn positions(&self, partitions: &List) -> Vec<PartitionResult> {
        // SAFETY: client and list are alive.
        let result = unsafe { sys::rd_kafka_position(self.as_ptr(), partitions.as_ptr()) };
        if result == OK { partitions.results() } else { Vec::new() }
    }

    /// Offsets of the first records at or after the times in `partitions`; -1 where there is none. The time -2 asks for
    /// the log's start and -1 for its end, the last stable offset for a read_committed client: Kafka's own numbers, which
    /// librdkafka passes on.
    pub(crate) fn offsets_for_times(&self, partitions: &List, timeout: Duration) -> Result<Vec<PartitionResult>, Code> {
        // SAFETY: client and list are alive; librdkafka fills the list in before it returns.
        code(unsafe { sys::rd_kafka_offsets_for_times(self.as_ptr(), partitions.as_ptr(), millis(timeout)) })?;
        Ok(partitions.results())
    }

    /// How many partitions a topic has, as a broker says now.
    pub(crate) fn partition_count(&self, topic: &str, timeout: Duration) -> Result<usize, Code> {
        let name = c_string(topic);
        // SAFETY: the client is alive. The topic object and the metadata are ours, and destroyed once after use; the
        // metadata has as many topics as it says.
        unsafe {
            let rkt = sys::rd_kafka_topic_new(self.as_ptr(), name.as_ptr(), std::ptr::null_mut());
            if rkt.is_null() {
                return Err(Code::RD_KAFKA_RESP_ERR__INVALID_ARG);
            }
            let mut metadata = std::ptr::null();
            let result = sys::rd_kafka_metadata(self.as_ptr(), 0, rkt, &raw mut metadata, millis(timeout));
            sys::rd_kafka_topic_destroy(rkt);
            code(result)?;
            let found = if (*metadata).topic_cnt < 1 {
                Err(Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART)
            } else {
                let topic = &*(*metadata).topics;
                code(topic.err).map(|()| usize::try_from(topic.partition_cnt).unwrap_or(0))
            };
            sys::rd_kafka_metadata_destroy(metadata);
            found
        }
    }

    /// Begins to leave the group; `true` when there is nothing to wait for. Events go on until [`Handle::closed`].
    pub(crate) fn close(&self, queue: &Queue) -> Result<(), String> {
        // SAFETY: client and queue are alive.
        unsafe { error(sys::rd_kafka_consumer_close_queue(self.as_ptr(), queue.as_ptr())) }
    }

    pub(crate) fn closed(&self) -> bool {
        // SAFETY: the client is alive.
        unsafe { sys::rd_kafka_consumer_closed(self.as_ptr()) != 0 }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: ours, destroyed once; queues hold the handle, so they are gone. Without a close: a close that has to
        // wait for a coordinator would hang here, and who wants one has called it before.
        unsafe { sys::rd_kafka_destroy_flags(self.as_ptr(), sys::RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE) }
    }
}

fn millis(timeout: Duration) -> c_int {
    c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX)
}

fn code(code: Code) -> Result<(), Code> {
    if code == OK { Ok(()) } else { Err(code) }
}

/// # Safety
/// `error` is null or an error that the caller owns.
unsafe fn error(error: *mut sys::rd_kafka_error_t) -> Result<(), String> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: the caller's promise: read, then destroyed once.
    unsafe {
        let text = owned(sys::rd_kafka_error_string(error));
        sys::rd_kafka_error_destroy(error);
        Err(text)
    }
}
