//! Ids of topics, by `rd_kafka_DescribeTopics`.

use std::ffi::{c_char, c_int};
use std::time::Duration;

use rdkafka_sys::bindings as sys;

use super::{Code, Handle, OK, c_string};

impl Handle {
    /// A hash of the topic's id; 0 where the broker has none. Waits at most `timeout`, or a little longer.
    pub(crate) fn topic_hash(&self, topic: &str, timeout: Duration) -> Result<u32, Code> {
        let name = c_string(topic);
        let mut names = [name.as_ptr()];
        let timeout_ms = c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX);
        let mut text: [c_char; 128] = [0; 128];
        // SAFETY: the client is alive; collection, options, queue and event are ours, live through the call and are
        // destroyed once, the queue last; results are read before their event is destroyed.
        unsafe {
            let topics = sys::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len());
            let options = sys::rd_kafka_AdminOptions_new(
                self.as_ptr(),
                sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS,
            );
            sys::rd_kafka_AdminOptions_set_request_timeout(options, timeout_ms, text.as_mut_ptr(), text.len());
            let queue = sys::rd_kafka_queue_new(self.as_ptr());
            sys::rd_kafka_DescribeTopics(self.as_ptr(), topics, options, queue);
            let event = sys::rd_kafka_queue_poll(queue, timeout_ms.saturating_add(200));
            let hash = if event.is_null() { Err(Code::RD_KAFKA_RESP_ERR__TIMED_OUT) } else { read(event) };
            if !event.is_null() {
                sys::rd_kafka_event_destroy(event);
            }
            sys::rd_kafka_queue_destroy(queue);
            sys::rd_kafka_AdminOptions_destroy(options);
            sys::rd_kafka_TopicCollection_destroy(topics);
            hash
        }
    }
}

/// # Safety
/// `event` is a live event of a DescribeTopics request.
unsafe fn read(event: *mut sys::rd_kafka_event_t) -> Result<u32, Code> {
    // SAFETY: the caller's promise; each result belongs to the event, and its pointers are checked.
    unsafe {
        let code = sys::rd_kafka_event_error(event);
        if code != OK {
            return Err(code);
        }
        let result = sys::rd_kafka_event_DescribeTopics_result(event);
        if result.is_null() {
            return Err(Code::RD_KAFKA_RESP_ERR__UNSUPPORTED_FEATURE);
        }
        let mut count = 0;
        let topics = sys::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
        if topics.is_null() || count == 0 {
            return Err(Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART);
        }
        let topic = *topics;
        let error = sys::rd_kafka_TopicDescription_error(topic);
        if !error.is_null() && sys::rd_kafka_error_code(error) != OK {
            return Err(sys::rd_kafka_error_code(error));
        }
        let id = sys::rd_kafka_TopicDescription_topic_id(topic);
        if id.is_null() {
            return Ok(0);
        }
        let (high, low) = (sys::rd_kafka_Uuid_most_significant_bits(id), sys::rd_kafka_Uuid_least_significant_bits(id));
        Ok(hash(high, low))
    }
}

/// 32 bits of an id, never 0 but for the id 0, which is none.
fn hash(high: i64, low: i64) -> u32 {
    if high == 0 && low == 0 {
        return 0;
    }
    let mixed = high.cast_unsigned().wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ low.cast_unsigned();
    let mixed = mixed ^ (mixed >> 32);
    u32::try_from(mixed & 0xFFFF_FFFF).unwrap_or(1).max(1)
}

#[cfg(test)]
mod tests {
    use super::hash;

    #[test]
    fn an_id_hashes_to_something_and_none_to_nothing() {
        assert_eq!(hash(0, 0), 0);
        assert_ne!(hash(1, 0), 0);
        assert_ne!(hash(1, 2), hash(2, 1));
    }
}
