//! Queues, and the events taken from them.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;

use rdkafka_sys::bindings as sys;
use sluice_core::TopicPartition;

use super::{Batch, Code, Handle, List, PartitionResult, list, owned};
use crate::signal::Signal;

/// An owned `rd_kafka_queue_t`, and the client that it belongs to.
pub(crate) struct Queue {
    queue: NonNull<sys::rd_kafka_queue_t>,
    handle: Arc<Handle>,
    /// What librdkafka's callback points to: it lives as long as the callback.
    signal: Option<Arc<Signal>>,
}

// SAFETY: librdkafka's queues may be used from any thread; the signal is Sync.
unsafe impl Send for Queue {}

/// What a consumer queue or a commit queue yields.
#[derive(Debug)]
pub(crate) enum Event {
    /// Partitions were given, or are wanted back. To be answered.
    Rebalance { assign: bool, lost: bool, partitions: Vec<TopicPartition> },
    /// The reply to the commit with this opaque.
    Committed { opaque: usize, code: Code, partitions: Vec<PartitionResult> },
    /// An error of the client.
    Error { code: Code, text: String, fatal: bool },
    /// Of no interest.
    Other,
}

/// Tells the thread that owns the queue. Called by librdkafka with the queue locked: it must be short.
unsafe extern "C" fn on_event(_: *mut sys::rd_kafka_t, opaque: *mut c_void) {
    // SAFETY: `opaque` is the Signal that `Queue::wake` registered; `Queue` takes the callback off, under the queue's
    // lock, before it lets go of the Signal.
    let signal = unsafe { &*opaque.cast::<Signal>() };
    signal.notify();
}

impl Queue {
    /// A queue of our own, for the replies to commits.
    pub(crate) fn new(handle: &Arc<Handle>) -> Self {
        // SAFETY: the client is alive; librdkafka never returns null here.
        let queue = unsafe { sys::rd_kafka_queue_new(handle.as_ptr()) };
        Self {
            queue: NonNull::new(queue).expect("librdkafka never returns a null queue"),
            handle: Arc::clone(handle),
            signal: None,
        }
    }

    /// The queue of a consumer. `None` when the client has none, because it has no `group.id`.
    pub(crate) fn consumer(handle: &Arc<Handle>) -> Option<Self> {
        // SAFETY: the client is alive.
        let queue = unsafe { sys::rd_kafka_queue_get_consumer(handle.as_ptr()) };
        NonNull::new(queue).map(|queue| Self { queue, handle: Arc::clone(handle), signal: None })
    }

    /// Notifies `signal` when the queue stops being empty. Drain the queue to the end, and look now and then anyway.
    pub(crate) fn wake(&mut self, signal: &Arc<Signal>) {
        let signal = Arc::clone(signal);
        let opaque = Arc::as_ptr(&signal).cast_mut().cast::<c_void>();
        // SAFETY: the queue is alive, and `self.signal` keeps what `opaque` points to until the callback is off.
        unsafe { sys::rd_kafka_queue_cb_event_enable(self.queue.as_ptr(), Some(on_event), opaque) };
        self.signal = Some(signal);
    }

    pub(crate) fn handle(&self) -> &Arc<Handle> {
        &self.handle
    }

    pub(super) fn as_ptr(&self) -> *mut sys::rd_kafka_queue_t {
        self.queue.as_ptr()
    }

    /// The next event, without waiting.
    pub(crate) fn poll(&self) -> Option<Event> {
        // SAFETY: the queue is alive.
        let event = unsafe { sys::rd_kafka_queue_poll(self.queue.as_ptr(), 0) };
        let event = NonNull::new(event)?;
        // SAFETY: a live event that we own: read, then destroyed once.
        unsafe {
            let read = self.read(event.as_ptr());
            sys::rd_kafka_event_destroy(event.as_ptr());
            Some(read)
        }
    }

    /// # Safety
    /// `event` is live.
    unsafe fn read(&self, event: *mut sys::rd_kafka_event_t) -> Event {
        // SAFETY: `event` is live; each accessor is called for the type of event that has it, and what it returns is
        // copied before the event is destroyed.
        unsafe {
            let code = sys::rd_kafka_event_error(event);
            match i64::from(sys::rd_kafka_event_type(event)) {
                kind if kind == i64::from(sys::RD_KAFKA_EVENT_REBALANCE) => Event::Rebalance {
                    assign: code == Code::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS,
                    lost: sys::rd_kafka_assignment_lost(self.handle.as_ptr()) != 0,
                    partitions: list::results(sys::rd_kafka_event_topic_partition_list(event))
                        .into_iter()
                        .map(|result| result.partition)
                        .collect(),
                },
                kind if kind == i64::from(sys::RD_KAFKA_EVENT_OFFSET_COMMIT) => Event::Committed {
                    opaque: sys::rd_kafka_event_opaque(event) as usize,
                    code,
                    partitions: list::results(sys::rd_kafka_event_topic_partition_list(event)),
                },
                kind if kind == i64::from(sys::RD_KAFKA_EVENT_ERROR) => Event::Error {
                    code,
                    text: owned(sys::rd_kafka_event_error_string(event)),
                    fatal: sys::rd_kafka_event_error_is_fatal(event) != 0,
                },
                _ => Event::Other,
            }
        }
    }

    /// Sends a commit; its reply comes into this queue with `opaque`. `Err`: it was not sent and no reply comes.
    pub(crate) fn commit(&self, offsets: &List, opaque: usize) -> Result<(), Code> {
        // SAFETY: client, list and queue are alive; librdkafka copies the list; the opaque is a number, never followed.
        let code = unsafe {
            sys::rd_kafka_commit_queue(
                self.handle.as_ptr(),
                offsets.as_ptr(),
                self.queue.as_ptr(),
                None,
                opaque as *mut c_void,
            )
        };
        if code == super::OK { Ok(()) } else { Err(code) }
    }

    /// Takes records that are there, without waiting.
    pub(crate) fn consume(&self, records_max: usize) -> Batch<'_> {
        Batch::take(self, records_max)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: ours, alive, destroyed once. Taking the callback off locks the queue, so none runs afterwards.
        unsafe {
            if self.signal.is_some() {
                sys::rd_kafka_queue_cb_event_enable(self.queue.as_ptr(), None, std::ptr::null_mut());
            }
            sys::rd_kafka_queue_destroy(self.queue.as_ptr());
        }
    }
}
