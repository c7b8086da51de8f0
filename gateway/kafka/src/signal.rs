//! How a thread sleeps until something happens: a command, or librdkafka putting an event into a queue.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// A flag that one thread waits for and any thread sets.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    set: Mutex<bool>,
    changed: Condvar,
}

impl Signal {
    pub(crate) fn notify(&self) {
        let mut set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        if !*set {
            *set = true;
            self.changed.notify_one();
        }
    }

    /// Waits until notified, at most `timeout`, and clears the flag.
    pub(crate) fn wait(&self, timeout: Duration) {
        let set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut set, _) =
            self.changed.wait_timeout_while(set, timeout, |set| !*set).unwrap_or_else(PoisonError::into_inner);
        *set = false;
    }
}

/// A thread's inbox. Unbounded, because its senders bound what they send: one commit a partition in flight, one
/// rebalance event at a time.
#[derive(Debug)]
pub(crate) struct Mailbox<T> {
    items: Mutex<VecDeque<T>>,
    signal: Arc<Signal>,
}

impl<T> Mailbox<T> {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { items: Mutex::new(VecDeque::new()), signal: Arc::new(Signal::default()) })
    }

    pub(crate) fn send(&self, item: T) {
        self.items.lock().unwrap_or_else(PoisonError::into_inner).push_back(item);
        self.signal.notify();
    }

    pub(crate) fn take(&self) -> Option<T> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    pub(crate) fn signal(&self) -> &Arc<Signal> {
        &self.signal
    }
}
