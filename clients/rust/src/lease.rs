//! What the task and the records in the application's hands share, and what these ask of the task.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use sluice_proto::v1;
use tokio::sync::{mpsc, oneshot};

use crate::outcome::{Outcome, Waiter};

/// The lease waits in the queue: the application has not seen the record.
const QUEUED: u8 = 0;
/// The application has the record.
const GIVEN: u8 = 1;
/// The lease is no longer ours.
const REVOKED: u8 = 2;

/// What names the leases of one partition in one epoch.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct LeaseName {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) epoch: i64,
}

/// What the task and the records of one batch share. The states are the only thing that both sides write: `QUEUED` becomes
/// `GIVEN` by the application or `REVOKED` by the task, whoever is first.
pub(crate) struct LeaseBatch {
    pub(crate) name: Arc<LeaseName>,
    /// The session that the leases were dealt to.
    pub(crate) session_id: Arc<str>,
    /// The frame that they came in.
    pub(crate) frame: u64,
    pub(crate) commands: mpsc::UnboundedSender<Command>,
    states: Box<[AtomicU8]>,
}

impl LeaseBatch {
    pub(crate) fn new(
        name: Arc<LeaseName>,
        session_id: Arc<str>,
        frame: u64,
        len: usize,
        commands: mpsc::UnboundedSender<Command>,
    ) -> Self {
        Self { name, session_id, frame, commands, states: (0..len).map(|_| AtomicU8::new(QUEUED)).collect() }
    }

    pub(crate) fn is_queued(&self, index: u32) -> bool {
        self.state(index).load(Ordering::Acquire) == QUEUED
    }

    pub(crate) fn is_revoked(&self, index: u32) -> bool {
        self.state(index).load(Ordering::Acquire) == REVOKED
    }

    /// Takes the lease back, whoever has it.
    pub(crate) fn revoke(&self, index: u32) {
        self.state(index).store(REVOKED, Ordering::Release);
    }

    /// Takes the record back if the application has not seen it.
    pub(crate) fn revoke_queued(&self, index: u32) -> bool {
        self.change(index, REVOKED)
    }

    /// Gives the record to the application, unless it was taken back before.
    pub(crate) fn give(&self, index: u32) -> bool {
        self.change(index, GIVEN)
    }

    fn change(&self, index: u32, to: u8) -> bool {
        self.state(index).compare_exchange(QUEUED, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    fn state(&self, index: u32) -> &AtomicU8 {
        &self.states[index as usize]
    }
}

/// One lease, as its record names it to the task.
#[derive(Clone)]
pub(crate) struct LeaseHandle {
    pub(crate) batch: Arc<LeaseBatch>,
    pub(crate) index: u32,
    pub(crate) offset: i64,
}

/// What is said of a lease.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Verb {
    /// It ends so.
    Settle(Outcome),
    /// It begins anew, for the stream's `ack_timeout` or for this long.
    Extend(Option<Duration>),
}

/// What records and handles ask of the task.
pub(crate) enum Command {
    /// Say this of a lease.
    Say {
        lease: LeaseHandle,
        verb: Verb,
        durable: bool,
        waiter: Option<Waiter>,
    },
    /// Extend it by ourselves for so long.
    Keep {
        lease: LeaseHandle,
        limit: Duration,
    },
    /// Another process settles it.
    HandOver(LeaseHandle),
    Window(v1::Flow),
    Flush(oneshot::Sender<()>),
    Close {
        limit: Duration,
        done: oneshot::Sender<()>,
    },
}
