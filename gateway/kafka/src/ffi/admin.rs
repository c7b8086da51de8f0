//! Ids of topics, and what may be done with them, by `rd_kafka_DescribeTopics`.

use std::ffi::{c_char, c_int};
use std::time::Duration;

use rdkafka_sys::bindings as sys;

use super::{Code, Handle, OK, c_string};

impl Handle {
    /// A hash of the topic's id; 0 where the broker has none. Waits at most `timeout`, or a little longer.
    pub(crate) fn topic_hash(&self, topic: &str, timeout: Duration) -> Result<u32, Code> {
        self.describe(topic, timeout, false, id_hash)
    }

    /// Whether this client may read the topic; `None`: the broker does not say. Waits at most `timeout`, or a little longer.
    pub(crate) fn may_read(&self, topic: &str, timeout: Duration) -> Result<Option<bool>, Code> {
        match self.describe(topic, timeout, true, reads) {
            Err(Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED) => Ok(Some(false)),
            answer => answer,
        }
    }

    fn describe<T>(&self, topic: &str, timeout: Duration, rights: bool, look: Look<T>) -> Result<T, Code> {
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
            let error = sys::rd_kafka_AdminOptions_set_include_authorized_operations(options, rights.into());
            if !error.is_null() {
                sys::rd_kafka_error_destroy(error);
            }
            let queue = sys::rd_kafka_queue_new(self.as_ptr());
            sys::rd_kafka_DescribeTopics(self.as_ptr(), topics, options, queue);
            let event = sys::rd_kafka_queue_poll(queue, timeout_ms.saturating_add(200));
            let found = if event.is_null() { Err(Code::RD_KAFKA_RESP_ERR__TIMED_OUT) } else { read(event, look) };
            if !event.is_null() {
                sys::rd_kafka_event_destroy(event);
            }
            sys::rd_kafka_queue_destroy(queue);
            sys::rd_kafka_AdminOptions_destroy(options);
            sys::rd_kafka_TopicCollection_destroy(topics);
            found
        }
    }
}

/// Reads what is wanted of a description that is live.
type Look<T> = unsafe fn(*const sys::rd_kafka_TopicDescription_t) -> T;

/// # Safety
/// `event` is a live event of a DescribeTopics request.
unsafe fn read<T>(event: *mut sys::rd_kafka_event_t, look: Look<T>) -> Result<T, Code> {
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
        Ok(look(topic))
    }
}

/// # Safety
/// The description is live.
unsafe fn id_hash(topic: *const sys::rd_kafka_TopicDescription_t) -> u32 {
    // SAFETY: the caller's promise; the id belongs to the description.
    unsafe {
        let id = sys::rd_kafka_TopicDescription_topic_id(topic);
        if id.is_null() {
            return 0;
        }
        hash(sys::rd_kafka_Uuid_most_significant_bits(id), sys::rd_kafka_Uuid_least_significant_bits(id))
    }
}

/// # Safety
/// The description is live.
unsafe fn reads(topic: *const sys::rd_kafka_TopicDescription_t) -> Option<bool> {
    let mut count = 0;
    // SAFETY: the caller's promise; the operations belong to the description, and are as many as it says.
    unsafe {
        let operations = sys::rd_kafka_TopicDescription_authorized_operations(topic, &raw mut count);
        // Not null but empty: none is allowed.
        let operations = (!operations.is_null()).then(|| std::slice::from_raw_parts(operations, count))?;
        Some(operations.contains(&sys::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_READ))
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
