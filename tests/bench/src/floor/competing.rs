//! A bounded queue from one thread to streams that compete for what is in it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use sluice_proto::v1::Record;

/// What goes into one frame: neighbours of one partition.
#[derive(Debug)]
pub struct Parcel {
    pub partition: i32,
    pub records: Vec<Record>,
}

/// A stream's place in the queue of those that wait. True while it stands there.
pub type Place = Arc<AtomicBool>;

#[derive(Debug, Default)]
struct Inner {
    parcels: VecDeque<Parcel>,
    waiting: VecDeque<(Place, Waker)>,
}

/// The queue.
#[derive(Debug)]
pub struct Queue {
    inner: Mutex<Inner>,
    room: Condvar,
    parcels_max: usize,
}

impl Queue {
    pub fn new(parcels_max: usize) -> Arc<Self> {
        Arc::new(Self { inner: Mutex::default(), room: Condvar::new(), parcels_max })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds, and waits where there is no room.
    pub fn put(&self, parcel: Parcel) {
        let mut inner = self.lock();
        while inner.parcels.len() >= self.parcels_max {
            inner = self.room.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        inner.parcels.push_back(parcel);
        let next = inner.next_in_line();
        drop(inner);
        next.inspect(Waker::wake_by_ref);
    }

    /// Takes one, or stands in line for it.
    pub fn poll_take(&self, place: &Place, context: &Context<'_>) -> Poll<Parcel> {
        let mut inner = self.lock();
        if let Some(parcel) = inner.parcels.pop_front() {
            let was_full = inner.parcels.len() + 1 >= self.parcels_max;
            drop(inner);
            if was_full {
                self.room.notify_one();
            }
            return Poll::Ready(parcel);
        }
        if !place.swap(true, Ordering::Relaxed) {
            inner.waiting.push_back((Arc::clone(place), context.waker().clone()));
        }
        Poll::Pending
    }

    /// A stream that cannot take now, though it may have been woken for it: the next one shall.
    pub fn pass(&self, place: &Place) {
        let mut inner = self.lock();
        if place.swap(false, Ordering::Relaxed) {
            inner.waiting.retain(|(other, _)| !Arc::ptr_eq(other, place));
        }
        let next = if inner.parcels.is_empty() { None } else { inner.next_in_line() };
        drop(inner);
        next.inspect(Waker::wake_by_ref);
    }
}

impl Inner {
    fn next_in_line(&mut self) -> Option<Waker> {
        let (place, waker) = self.waiting.pop_front()?;
        place.store(false, Ordering::Relaxed);
        Some(waker)
    }
}
