//! Safe wrappers around the part of librdkafka's C API that rust-rdkafka does not bind. All `unsafe` of the crate is
//! in here.
//!
//! Ownership: a [`Queue`] holds its [`Handle`], so a queue is always destroyed before its client, as librdkafka wants.
#![expect(unsafe_code, reason = "librdkafka is a C library")]

mod admin;
mod batch;
mod event;
mod group;
mod handle;
mod list;
mod process;

pub(crate) use batch::{Batch, MessageView, Neighbours};
pub(crate) use event::{Event, Queue};
pub(crate) use group::GroupRequest;
pub(crate) use handle::{Handle, Purpose};
pub(crate) use list::{List, OFFSET_NONE, PartitionResult};
pub(crate) use process::{end_process, expendable_process};
pub(crate) use rdkafka_sys::bindings::rd_kafka_resp_err_t as Code;

use std::ffi::{CStr, CString, c_char};
use std::time::Duration;

use rdkafka::client::{Client, ClientContext};
use rdkafka_sys::bindings as sys;

pub(crate) const OK: Code = Code::RD_KAFKA_RESP_ERR_NO_ERROR;

/// The symbolic name of a code, such as `ILLEGAL_GENERATION`.
pub(crate) fn code_name(code: Code) -> &'static str {
    // SAFETY: librdkafka returns a pointer to a static string for every code.
    let name = unsafe { CStr::from_ptr(sys::rd_kafka_err2name(code)) };
    name.to_str().unwrap_or("UNKNOWN")
}

/// A name for C. Names with a NUL are refused when a subscription starts, so what is left of them never matters.
fn c_string(name: &str) -> CString {
    CString::new(name).unwrap_or_default()
}

/// A C string as an owned one; null is empty.
///
/// # Safety
/// `text` is null, or points to a NUL-terminated string that lives for the call.
unsafe fn owned(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// How long a group of this client's in-memory cluster waits for more members at its first join. Nothing without one.
pub(crate) fn set_first_join_delay<C: ClientContext>(client: &Client<C>, delay_ms: i32) {
    // SAFETY: the client is alive for the call; librdkafka returns its cluster or null.
    let cluster = unsafe { sys::rd_kafka_handle_mock_cluster(client.native_ptr()) };
    if !cluster.is_null() {
        // SAFETY: the cluster lives as long as its client.
        unsafe { sys::rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, delay_ms) };
    }
}

/// The time since the machine's start, its sleep included.
pub(crate) fn boot_time() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a place for the result, alive for the call.
    unsafe { libc::clock_gettime(BOOT_CLOCK, &raw mut now) };
    let nanos = u32::try_from(now.tv_nsec).unwrap_or(0);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), nanos)
}

#[cfg(target_os = "linux")]
const BOOT_CLOCK: libc::clockid_t = libc::CLOCK_BOOTTIME;
/// Elsewhere the monotonic clock: on macOS it counts sleep too.
#[cfg(not(target_os = "linux"))]
const BOOT_CLOCK: libc::clockid_t = libc::CLOCK_MONOTONIC;
