//! Lists of partitions with offsets and commit metadata.

use std::ptr::NonNull;

use rdkafka_sys::bindings as sys;
use sluice_core::TopicPartition;

use super::{Code, c_string, owned};

/// No offset: nothing committed, or not asked for.
pub(crate) const OFFSET_NONE: i64 = sys::RD_KAFKA_OFFSET_INVALID as i64;

/// An owned `rd_kafka_topic_partition_list_t`.
pub(crate) struct List(NonNull<sys::rd_kafka_topic_partition_list_t>);

/// One element of a list that librdkafka filled in.
#[derive(Debug, Clone)]
pub(crate) struct PartitionResult {
    pub(crate) partition: TopicPartition,
    pub(crate) offset: i64,
    /// Lossy where another product stored bytes that are no UTF-8.
    pub(crate) metadata: Option<String>,
    pub(crate) code: Code,
}

impl List {
    pub(crate) fn new() -> Self {
        // SAFETY: no preconditions; librdkafka aborts the process when out of memory, so it is never null.
        let list = unsafe { sys::rd_kafka_topic_partition_list_new(4) };
        Self(NonNull::new(list).expect("librdkafka never returns a null list"))
    }

    /// Partitions without offsets.
    pub(crate) fn of<'a>(partitions: impl IntoIterator<Item = &'a TopicPartition>) -> Self {
        let mut list = Self::new();
        for partition in partitions {
            list.add(&partition.topic, partition.partition, OFFSET_NONE);
        }
        list
    }

    pub(crate) fn one(partition: &TopicPartition, offset: i64) -> Self {
        let mut list = Self::new();
        list.add(&partition.topic, partition.partition, offset);
        list
    }

    pub(crate) fn add(&mut self, topic: &str, partition: i32, offset: i64) {
        let topic = c_string(topic);
        // SAFETY: the list is ours and alive, the string lives for the call (librdkafka copies it), and the returned
        // element is valid until the next change of the list.
        unsafe {
            let element = sys::rd_kafka_topic_partition_list_add(self.as_ptr(), topic.as_ptr(), partition);
            (*element).offset = offset;
        }
    }

    /// One partition with commit metadata. librdkafka frees the copy with the list.
    pub(crate) fn with_metadata(partition: &TopicPartition, offset: i64, metadata: &str) -> Self {
        let list = Self::one(partition, offset);
        if metadata.is_empty() {
            return list;
        }
        // SAFETY: the list has exactly one element. `malloc`ed memory of `metadata.len()` bytes is filled before it is
        // handed over, and librdkafka frees it with `free` when the list is destroyed.
        unsafe {
            let copy = libc::malloc(metadata.len());
            if !copy.is_null() {
                std::ptr::copy_nonoverlapping(metadata.as_ptr(), copy.cast::<u8>(), metadata.len());
                let element = (*list.as_ptr()).elems;
                (*element).metadata = copy;
                (*element).metadata_size = metadata.len();
            }
        }
        list
    }

    pub(super) fn as_ptr(&self) -> *mut sys::rd_kafka_topic_partition_list_t {
        self.0.as_ptr()
    }

    pub(crate) fn results(&self) -> Vec<PartitionResult> {
        // SAFETY: the list is ours and alive.
        unsafe { results(self.as_ptr()) }
    }
}

impl Drop for List {
    fn drop(&mut self) {
        // SAFETY: ours, destroyed once.
        unsafe { sys::rd_kafka_topic_partition_list_destroy(self.as_ptr()) }
    }
}

/// Copies the elements out.
///
/// # Safety
/// `list` is null or points to a live list.
pub(super) unsafe fn results(list: *const sys::rd_kafka_topic_partition_list_t) -> Vec<PartitionResult> {
    if list.is_null() {
        return Vec::new();
    }
    // SAFETY: the caller's promise; `elems` has `cnt` elements, and is not null when there is one.
    let elements = unsafe {
        let count = usize::try_from((*list).cnt).unwrap_or(0);
        if count == 0 {
            return Vec::new();
        }
        std::slice::from_raw_parts((*list).elems, count)
    };
    elements
        .iter()
        .map(|element| PartitionResult {
            // SAFETY: the topic of an element is a NUL-terminated string owned by the list.
            partition: TopicPartition::new(unsafe { owned(element.topic) }, element.partition),
            offset: element.offset,
            // SAFETY: metadata is null or has `metadata_size` bytes.
            metadata: unsafe { metadata(element) },
            code: element.err,
        })
        .collect()
}

/// # Safety
/// `element` is a live element of a list.
unsafe fn metadata(element: &sys::rd_kafka_topic_partition_t) -> Option<String> {
    if element.metadata.is_null() || element.metadata_size == 0 {
        return None;
    }
    // SAFETY: the caller's promise: `metadata_size` bytes, alive as long as the list.
    let bytes = unsafe { std::slice::from_raw_parts(element.metadata.cast::<u8>(), element.metadata_size) };
    Some(String::from_utf8_lossy(bytes).into_owned())
}
