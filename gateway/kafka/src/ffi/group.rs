//! The members of a group, by `rd_kafka_DescribeConsumerGroups`: of the classic protocol and of KIP-848.

use std::ffi::{c_char, c_int};
use std::sync::Arc;
use std::time::Duration;

use rdkafka_sys::bindings as sys;

use super::{Code, Handle, OK, Queue, c_string, owned};
use crate::io::GroupMember;

/// A question that is under way. It stands behind fetches that wait at the broker, so nobody waits for it.
pub(crate) struct GroupRequest {
    answer: Queue,
}

impl GroupRequest {
    /// Who is in the group? librdkafka answers within `timeout`, if only with that it has no answer.
    pub(crate) fn new(handle: &Arc<Handle>, group: &str, timeout: Duration) -> Self {
        let answer = Queue::new(handle);
        let name = c_string(group);
        let mut names = [name.as_ptr()];
        let timeout_ms = c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX);
        let mut text: [c_char; 128] = [0; 128];
        // SAFETY: client and queue are alive, the name lives through the call; options are ours, copied by it, and destroyed once.
        unsafe {
            let options = sys::rd_kafka_AdminOptions_new(
                handle.as_ptr(),
                sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECONSUMERGROUPS,
            );
            sys::rd_kafka_AdminOptions_set_request_timeout(options, timeout_ms, text.as_mut_ptr(), text.len());
            let count = names.len();
            sys::rd_kafka_DescribeConsumerGroups(handle.as_ptr(), names.as_mut_ptr(), count, options, answer.as_ptr());
            sys::rd_kafka_AdminOptions_destroy(options);
        }
        Self { answer }
    }

    /// Who is in it, in no order; nobody where there is no such group. `None`: there is no answer yet. Never waits.
    pub(crate) fn answer(&self) -> Option<Result<Vec<GroupMember>, Code>> {
        // SAFETY: the queue is alive; its event is ours, read before it is destroyed, once.
        unsafe {
            let event = sys::rd_kafka_queue_poll(self.answer.as_ptr(), 0);
            if event.is_null() {
                return None;
            }
            let members = read(event);
            sys::rd_kafka_event_destroy(event);
            Some(members)
        }
    }
}

/// # Safety
/// `event` is a live event of a DescribeConsumerGroups request.
unsafe fn read(event: *mut sys::rd_kafka_event_t) -> Result<Vec<GroupMember>, Code> {
    // SAFETY: the caller's promise; each result belongs to the event, its pointers are checked, and a group has as many
    // members as it says.
    unsafe {
        let code = sys::rd_kafka_event_error(event);
        if code != OK {
            return Err(code);
        }
        let result = sys::rd_kafka_event_DescribeConsumerGroups_result(event);
        if result.is_null() {
            return Err(Code::RD_KAFKA_RESP_ERR__UNSUPPORTED_FEATURE);
        }
        let mut count = 0;
        let groups = sys::rd_kafka_DescribeConsumerGroups_result_groups(result, &raw mut count);
        if groups.is_null() || count == 0 {
            return Ok(Vec::new());
        }
        let group = *groups;
        let error = sys::rd_kafka_ConsumerGroupDescription_error(group);
        if !error.is_null() {
            match sys::rd_kafka_error_code(error) {
                OK => {}
                Code::RD_KAFKA_RESP_ERR_GROUP_ID_NOT_FOUND => return Ok(Vec::new()),
                code => return Err(code),
            }
        }
        let members = 0..sys::rd_kafka_ConsumerGroupDescription_member_count(group);
        let member = |index| member(sys::rd_kafka_ConsumerGroupDescription_member(group, index));
        Ok(members.map(member).collect())
    }
}

/// # Safety
/// `member` is a live member of a group's description.
unsafe fn member(member: *const sys::rd_kafka_MemberDescription_t) -> GroupMember {
    // SAFETY: the caller's promise; strings are NUL-terminated or null, the list is the member's or null.
    unsafe {
        let assignment = sys::rd_kafka_MemberDescription_assignment(member);
        let list =
            if assignment.is_null() { std::ptr::null() } else { sys::rd_kafka_MemberAssignment_partitions(assignment) };
        GroupMember {
            client_id: owned(sys::rd_kafka_MemberDescription_client_id(member)),
            host: owned(sys::rd_kafka_MemberDescription_host(member)),
            partitions: if list.is_null() { 0 } else { usize::try_from((*list).cnt).unwrap_or(0) },
        }
    }
}
