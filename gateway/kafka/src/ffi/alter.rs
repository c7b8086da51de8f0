//! Offsets of a group without members, by `rd_kafka_AlterConsumerGroupOffsets`.

use std::ffi::{c_char, c_int};
use std::time::Duration;

use rdkafka_sys::bindings as sys;

use super::list::results;
use super::{Code, Handle, List, OK, PartitionResult, c_string};

impl Handle {
    /// Commits for the group, which must have no members. An element of the answer may have a code of its own. Waits at most
    /// `timeout`, or a little longer.
    pub(crate) fn alter_offsets(
        &self,
        group: &str,
        offsets: &List,
        timeout: Duration,
    ) -> Result<Vec<PartitionResult>, Code> {
        let group = c_string(group);
        let timeout_ms = c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX);
        let mut text: [c_char; 128] = [0; 128];
        // SAFETY: the client and the list are alive; request (which copies group and list), options, queue and event are ours,
        // live through the call and are destroyed once, the queue last; results are read before their event is destroyed.
        unsafe {
            let mut request = sys::rd_kafka_AlterConsumerGroupOffsets_new(group.as_ptr(), offsets.as_ptr());
            let options = sys::rd_kafka_AdminOptions_new(
                self.as_ptr(),
                sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_ALTERCONSUMERGROUPOFFSETS,
            );
            sys::rd_kafka_AdminOptions_set_request_timeout(options, timeout_ms, text.as_mut_ptr(), text.len());
            let queue = sys::rd_kafka_queue_new(self.as_ptr());
            sys::rd_kafka_AlterConsumerGroupOffsets(self.as_ptr(), &raw mut request, 1, options, queue);
            let event = sys::rd_kafka_queue_poll(queue, timeout_ms.saturating_add(200));
            let results = if event.is_null() { Err(Code::RD_KAFKA_RESP_ERR__TIMED_OUT) } else { read(event) };
            if !event.is_null() {
                sys::rd_kafka_event_destroy(event);
            }
            sys::rd_kafka_queue_destroy(queue);
            sys::rd_kafka_AdminOptions_destroy(options);
            sys::rd_kafka_AlterConsumerGroupOffsets_destroy(request);
            results
        }
    }
}

/// # Safety
/// `event` is a live event of an AlterConsumerGroupOffsets request.
unsafe fn read(event: *mut sys::rd_kafka_event_t) -> Result<Vec<PartitionResult>, Code> {
    // SAFETY: the caller's promise; each result belongs to the event, and its pointers are checked.
    unsafe {
        let code = sys::rd_kafka_event_error(event);
        if code != OK {
            return Err(code);
        }
        let result = sys::rd_kafka_event_AlterConsumerGroupOffsets_result(event);
        if result.is_null() {
            return Err(Code::RD_KAFKA_RESP_ERR__UNSUPPORTED_FEATURE);
        }
        let mut count = 0;
        let groups = sys::rd_kafka_AlterConsumerGroupOffsets_result_groups(result, &raw mut count);
        if groups.is_null() || count == 0 {
            return Err(Code::RD_KAFKA_RESP_ERR__FAIL);
        }
        let group = *groups;
        let error = sys::rd_kafka_group_result_error(group);
        if !error.is_null() && sys::rd_kafka_error_code(error) != OK {
            return Err(sys::rd_kafka_error_code(error));
        }
        Ok(results(sys::rd_kafka_group_result_partitions(group)))
    }
}
