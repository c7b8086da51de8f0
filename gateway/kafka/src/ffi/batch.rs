//! Records as `rd_kafka_consume_batch_queue` gives them: 0.31 CPU-seconds a million against 0.52 for `poll`.

use std::ffi::CStr;
use std::marker::PhantomData;
use std::sync::LazyLock;

use rdkafka_sys::bindings as sys;

use super::{Code, OK, Queue};

/// The version of librdkafka whose `rd_kafka_msgset_reader_msg_v2` was read: key, value and headers are slices of the
/// receive buffer, in the order of the wire. With another one headers are parsed, until somebody looked.
const KNOWN_VERSION: i32 = 0x020c_01ff;
static IS_KNOWN_VERSION: LazyLock<bool> = LazyLock::new(|| {
    // SAFETY: it takes nothing and returns a constant.
    unsafe { sys::rd_kafka_version() == KNOWN_VERSION }
});

/// Records that librdkafka owns until the batch is dropped. Copy out and drop: each pins its whole fetch buffer.
pub(crate) struct Batch<'q> {
    messages: Vec<*mut sys::rd_kafka_message_t>,
    queue: PhantomData<&'q Queue>,
}

/// Neighbours in a batch: records of one partition, or one consumer error. Not empty as they come from a batch.
#[derive(Clone, Copy)]
pub(crate) struct Neighbours<'b>(&'b [*mut sys::rd_kafka_message_t]);

/// One record or consumer error of a batch.
#[derive(Clone, Copy)]
pub(crate) struct MessageView<'a>(&'a sys::rd_kafka_message_t);

impl<'q> Batch<'q> {
    pub(super) fn take(queue: &'q Queue, records_max: usize) -> Self {
        let mut messages = Vec::with_capacity(records_max);
        // SAFETY: the queue is alive and the array has room for `records_max` pointers, of which librdkafka fills in
        // as many as it returns.
        unsafe {
            let taken = sys::rd_kafka_consume_batch_queue(queue.as_ptr(), 0, messages.as_mut_ptr(), records_max);
            messages.set_len(usize::try_from(taken).unwrap_or(0).min(records_max));
        }
        Self { messages, queue: PhantomData }
    }

    pub(crate) fn len(&self) -> usize {
        self.messages.len()
    }

    pub(crate) fn neighbours(&self) -> impl Iterator<Item = Neighbours<'_>> {
        self.messages.chunk_by(|one, next| view(one).joins(view(next))).map(Neighbours)
    }
}

/// A message of a batch that lives as long as the borrow.
fn view(message: &*mut sys::rd_kafka_message_t) -> MessageView<'_> {
    // SAFETY: only pointers in a batch's array come here, each a live message that the batch owns and destroys only when
    // it is dropped itself.
    MessageView(unsafe { &**message })
}

impl<'b> Neighbours<'b> {
    pub(crate) fn first(self) -> MessageView<'b> {
        view(&self.0[0])
    }

    pub(crate) fn last(self) -> MessageView<'b> {
        view(&self.0[self.0.len() - 1])
    }

    pub(crate) fn len(self) -> usize {
        self.0.len()
    }

    pub(crate) fn iter(self) -> impl ExactSizeIterator<Item = MessageView<'b>> {
        self.0.iter().map(view)
    }

    /// All but the first so many.
    pub(crate) fn skip(self, count: usize) -> Self {
        Self(&self.0[count..])
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        for message in self.messages.drain(..) {
            // SAFETY: ours, destroyed once; views borrow the batch and are gone.
            unsafe { sys::rd_kafka_message_destroy(message) }
        }
    }
}

impl<'a> MessageView<'a> {
    /// Not OK: a consumer error, whose text is the payload.
    pub(crate) fn code(&self) -> Code {
        self.0.err
    }

    /// Both are records, and of one partition. A topic has one object as long as the batch lives.
    fn joins(self, next: MessageView<'_>) -> bool {
        (self.0.rkt, self.0.partition) == (next.0.rkt, next.0.partition) && self.code() == OK && next.code() == OK
    }

    pub(crate) fn topic(&self) -> &'a str {
        if self.0.rkt.is_null() {
            return "";
        }
        // SAFETY: the topic object lives as long as the message, and its name is NUL-terminated.
        unsafe { CStr::from_ptr(sys::rd_kafka_topic_name(self.0.rkt)) }.to_str().unwrap_or("")
    }

    pub(crate) fn partition(&self) -> i32 {
        self.0.partition
    }

    pub(crate) fn offset(&self) -> i64 {
        self.0.offset
    }

    /// Milliseconds since 1970; -1: none.
    pub(crate) fn timestamp_ms(&self) -> i64 {
        let mut kind = sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: a live message, and a place for the kind.
        unsafe { sys::rd_kafka_message_timestamp(self.0, &raw mut kind) }
    }

    /// Of key and value.
    pub(crate) fn bytes(&self) -> usize {
        let key = if self.0.key.is_null() { 0 } else { self.0.key_len };
        let value = if self.0.payload.is_null() { 0 } else { self.0.len };
        key + value
    }

    pub(crate) fn key(&self) -> Option<&'a [u8]> {
        // SAFETY: null or `key_len` bytes that live as long as the message.
        unsafe { bytes(self.0.key.cast(), self.0.key_len) }
    }

    pub(crate) fn value(&self) -> Option<&'a [u8]> {
        // SAFETY: null or `len` bytes that live as long as the message.
        unsafe { bytes(self.0.payload.cast(), self.0.len) }
    }

    /// Whether it has no headers, where that shows without librdkafka's parse. The parse allocates and frees a buffer
    /// object even for a record without headers: a tenth of what a record of 128 bytes cost the gateway.
    fn has_surely_no_headers(&self) -> bool {
        // Formats 0 and 1 have no headers, nor a leader epoch; in format 2 it is never negative.
        // SAFETY: a live message.
        let is_format_2 = unsafe { sys::rd_kafka_message_leader_epoch(self.0) } >= 0;
        if !is_format_2 || self.0.payload.is_null() || self.0.len == 0 || !*IS_KNOWN_VERSION {
            return false;
        }
        // SAFETY: the payload is where it was received (or decompressed): this version of librdkafka gives slices of that
        // buffer, which the message keeps alive. In format 2 the number of headers, a varint of at least one byte, stands
        // right behind the value (an empty value is a constant of librdkafka's elsewhere). This trusts the broker, as it
        // validates each record that it appends. What is left: a log that had its format lowered to 1, where librdkafka
        // keeps the epoch of the batch before; there the byte belongs to the next record, or to the allocator behind the
        // last one of a response, and whatever it is, such a record has no headers.
        unsafe { *self.0.payload.cast::<u8>().add(self.0.len) == 0 }
    }

    /// Headers in Kafka's order. librdkafka parses them at the first call.
    pub(crate) fn headers(&self) -> Vec<(&'a str, Option<&'a [u8]>)> {
        if self.has_surely_no_headers() {
            return Vec::new();
        }
        let mut headers = std::ptr::null_mut();
        // SAFETY: a live message that no other thread has; the headers belong to it and live as long.
        let code = unsafe { sys::rd_kafka_message_headers(std::ptr::from_ref(self.0), &raw mut headers) };
        let mut found = Vec::new();
        if code != OK || headers.is_null() {
            return found;
        }
        loop {
            let (mut name, mut value, mut size) = (std::ptr::null(), std::ptr::null(), 0);
            // SAFETY: live headers and places for the three results, which live as long as the message.
            unsafe {
                let index = found.len();
                let code = sys::rd_kafka_header_get_all(headers, index, &raw mut name, &raw mut value, &raw mut size);
                if code != OK {
                    return found;
                }
                let name = CStr::from_ptr(name).to_str().unwrap_or("\u{fffd}");
                found.push((name, bytes(value.cast(), size)));
            }
        }
    }
}

/// # Safety
/// `start` is null, or points to `len` bytes that live for `'a`.
unsafe fn bytes<'a>(start: *const u8, len: usize) -> Option<&'a [u8]> {
    if start.is_null() {
        return None;
    }
    // SAFETY: the caller's promise.
    Some(unsafe { std::slice::from_raw_parts(start, len) })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_linked_librdkafka_is_the_one_whose_records_were_looked_at() {
        assert!(
            *super::IS_KNOWN_VERSION,
            "read `rd_kafka_msgset_reader_msg_v2` of the new one, then change KNOWN_VERSION"
        );
    }
}
