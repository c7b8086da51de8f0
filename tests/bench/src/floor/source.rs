//! A consumer in a group, by librdkafka's batch call: the cheapest way to read Kafka that we know.
#![expect(unsafe_code, reason = "rust-rdkafka has no binding for rd_kafka_consume_batch_queue")]

use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr;

use anyhow::{Context as _, Result, bail};
use rdkafka_sys::bindings as sys;

/// Records taken at once.
const BATCH_RECORDS_MAX: usize = 1_000;
const OK: sys::rd_kafka_resp_err_t = sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;

/// One record, in librdkafka's memory.
#[derive(Debug, Clone, Copy)]
pub struct Taken<'a> {
    pub partition: i32,
    pub offset: i64,
    pub timestamp_ms: i64,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
}

/// The consumer. Its rebalances are answered by librdkafka itself.
pub struct Source {
    client: *mut sys::rd_kafka_t,
    queue: *mut sys::rd_kafka_queue_t,
    topic: CString,
    taken: Vec<*mut sys::rd_kafka_message_t>,
}

// SAFETY: librdkafka's clients and queues may be used from any thread; `taken` is empty between two calls.
unsafe impl Send for Source {}

impl Source {
    /// Joins the group of `properties` on one topic.
    pub fn open(properties: &[(String, String)], topic: &str) -> Result<Self> {
        let topic = CString::new(topic)?;
        let mut text: [c_char; 512] = [0; 512];
        // SAFETY: the configuration is ours until `rd_kafka_new` takes it; strings live for each call; the error buffer is
        // as long as said and always NUL-terminated; the list is ours, copied by subscribe, and destroyed once.
        unsafe {
            let conf = sys::rd_kafka_conf_new();
            for (name, value) in properties {
                let (c_name, c_value) = (CString::new(name.as_str())?, CString::new(value.as_str())?);
                let set =
                    sys::rd_kafka_conf_set(conf, c_name.as_ptr(), c_value.as_ptr(), text.as_mut_ptr(), text.len());
                if set != sys::rd_kafka_conf_res_t::RD_KAFKA_CONF_OK {
                    bail!("{name}: {}", CStr::from_ptr(text.as_ptr()).to_string_lossy());
                }
            }
            let kind = sys::rd_kafka_type_t::RD_KAFKA_CONSUMER;
            let client = sys::rd_kafka_new(kind, conf, text.as_mut_ptr(), text.len());
            if client.is_null() {
                bail!("{}", CStr::from_ptr(text.as_ptr()).to_string_lossy());
            }
            sys::rd_kafka_poll_set_consumer(client);
            let queue = sys::rd_kafka_queue_get_consumer(client);
            let this = Self { client, queue, topic, taken: vec![ptr::null_mut(); BATCH_RECORDS_MAX] };
            let list = sys::rd_kafka_topic_partition_list_new(1);
            sys::rd_kafka_topic_partition_list_add(list, this.topic.as_ptr(), -1);
            let code = sys::rd_kafka_subscribe(client, list);
            sys::rd_kafka_topic_partition_list_destroy(list);
            if code != OK {
                bail!("subscribe: {code:?}");
            }
            Ok(this)
        }
    }

    /// Waits for a record for up to `timeout_ms`, then hands over what is there; returns how many.
    ///
    /// The call waits its whole timeout unless its array fills, so: one with the timeout, then the rest with none.
    pub fn take(&mut self, timeout_ms: i32, mut each: impl FnMut(Taken<'_>)) -> usize {
        let messages = self.taken.as_mut_ptr();
        // SAFETY: the queue is alive, and the array has room for as many pointers as each call is told.
        let count = unsafe {
            let first = sys::rd_kafka_consume_batch_queue(self.queue, timeout_ms, messages, 1);
            if first < 1 {
                return 0;
            }
            1 + sys::rd_kafka_consume_batch_queue(self.queue, 0, messages.add(1), BATCH_RECORDS_MAX - 1).max(0)
        };
        let mut good = 0;
        for &message in &self.taken[..usize::try_from(count).unwrap_or(0)] {
            // SAFETY: librdkafka filled in so many live messages; each is ours, looked at, and destroyed once.
            unsafe {
                if (*message).err == OK {
                    good += 1;
                    each(view(&*message));
                } else {
                    eprintln!("consumer error: {:?}", (*message).err);
                }
                sys::rd_kafka_message_destroy(message);
            }
        }
        good
    }

    /// Commits next offsets; the answer is not waited for.
    pub fn commit(&self, offsets: &[(i32, i64)]) {
        if offsets.is_empty() {
            return;
        }
        // SAFETY: the client is alive; the list is ours, copied by the call, and destroyed once.
        let code = unsafe {
            let list = sys::rd_kafka_topic_partition_list_new(i32::try_from(offsets.len()).unwrap_or(0));
            for (partition, offset) in offsets {
                (*sys::rd_kafka_topic_partition_list_add(list, self.topic.as_ptr(), *partition)).offset = *offset;
            }
            let code = sys::rd_kafka_commit(self.client, list, 1);
            sys::rd_kafka_topic_partition_list_destroy(list);
            code
        };
        if code != OK {
            eprintln!("commit: {code:?}");
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        // SAFETY: client and queue are ours and destroyed once, in the order that librdkafka wants.
        unsafe {
            sys::rd_kafka_consumer_close(self.client);
            sys::rd_kafka_queue_destroy(self.queue);
            sys::rd_kafka_destroy(self.client);
        }
    }
}

/// # Safety
/// The message is live and has no error.
unsafe fn view(message: &sys::rd_kafka_message_t) -> Taken<'_> {
    let mut kind = sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
    // SAFETY: the caller's promise; key and payload live as long as the message.
    unsafe {
        Taken {
            partition: message.partition,
            offset: message.offset,
            timestamp_ms: sys::rd_kafka_message_timestamp(message, &raw mut kind),
            key: part(message.key, message.key_len),
            value: part(message.payload, message.len),
        }
    }
}

/// # Safety
/// `start` is null, or points to `len` bytes that live for `'a`.
unsafe fn part<'a>(start: *const c_void, len: usize) -> Option<&'a [u8]> {
    // SAFETY: the caller's promise.
    (!start.is_null()).then(|| unsafe { std::slice::from_raw_parts(start.cast(), len) })
}

/// What the gateway gives its two handles, for one consumer that does both: only so does a pair compare.
pub fn properties(bootstrap: &str, group: &str, extra: &[String]) -> Result<Vec<(String, String)>> {
    let ours = [
        ("bootstrap.servers", bootstrap),
        ("group.id", group),
        ("enable.auto.commit", "false"),
        ("enable.auto.offset.store", "false"),
        ("auto.offset.reset", "earliest"),
        ("isolation.level", "read_committed"),
        ("queued.max.messages.kbytes", "2048"),
        ("fetch.queue.backoff.ms", "5"),
        ("topic.metadata.refresh.interval.ms", "10000"),
        ("reconnect.backoff.ms", "50"),
        ("reconnect.backoff.max.ms", "1000"),
        ("partition.assignment.strategy", "cooperative-sticky"),
        ("session.timeout.ms", "10000"),
        ("heartbeat.interval.ms", "250"),
    ];
    let mut all: Vec<_> = ours.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    for property in extra {
        let (name, value) = property.split_once('=').with_context(|| format!("{property}: not name=value"))?;
        all.retain(|(known, _)| known != name);
        all.push((name.to_owned(), value.to_owned()));
    }
    Ok(all)
}
