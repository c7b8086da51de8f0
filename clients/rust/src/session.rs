//! What the client knows of its session: leases, settlements that are not answered yet, and what is to be sent. No I/O and no
//! clock: the task in `driver.rs` feeds frames, commands and the time in, and takes frames, records and events out.
//!
//! A lease is `Open` while the application has not settled it, `Pending` until its settlement is written, and `Sent` until that
//! is answered. Every frame of settlements carries a request_id, so that one whose answer was lost with a connection is sent
//! again on the next: the server answers a repetition as it answered the first.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use sluice_proto::v1::{self, Flow};
use tokio::{sync::mpsc, time::Instant};

use crate::{
    event::{Event, RejectReason, SessionInfo},
    lease::{Command, LeaseBatch, LeaseHandle, LeaseName, Verb},
    outcome::{Outcome, SettleError, Waiter},
    record::Record,
};
use pending::{Group, Pending, Unanswered, Written};

mod incoming;
mod outgoing;
mod pending;
pub(crate) mod wire;

#[cfg(test)]
mod tests;

/// What a consumer asks for, the same on each connection.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) subscription: String,
    pub(crate) consumer_id: String,
    pub(crate) ack_timeout: Option<Duration>,
    pub(crate) max_frame_bytes: i32,
    pub(crate) report_commits: bool,
    pub(crate) durable: bool,
    /// Extend what the application has, for so long at most.
    pub(crate) extend_while_held: Option<Duration>,
    pub(crate) labels: HashMap<String, String>,
}

/// What comes out of the session besides frames.
#[derive(Debug)]
pub(crate) enum Output {
    /// For the application.
    Record(Record),
    /// For the application, if it listens.
    Event(Event),
    /// The stream is open.
    Subscribed(SessionInfo),
    /// The stream is to end within the duration.
    Drain(Duration),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Queued, or with the application.
    Open,
    /// Another process settles it.
    HandedOver,
    /// Settled, not written yet.
    Pending,
    /// Written in this request, not answered yet.
    Sent(u64),
}

struct Lease {
    batch: Arc<LeaseBatch>,
    index: u32,
    state: State,
    /// When it expires, as far as we know.
    until: Instant,
    /// Extended by ourselves up to here, once the application has it.
    keep_until: Option<Instant>,
}

pub(crate) struct Session {
    settings: Settings,
    commands: mpsc::UnboundedSender<Command>,
    window: Flow,
    /// Every lease that is not answered for.
    held: HashMap<Arc<LeaseName>, BTreeMap<i64, Lease>>,
    /// Leases that are `Open`.
    open: usize,
    /// `Delivery.sequence` of the last frame received.
    seen: u64,
    /// What `Subscribed` said.
    info: SessionInfo,
    session_id: Arc<str>,
    pending: Pending,
    unanswered: Unanswered,
    last_request: u64,
    pong_due: bool,
    flow_due: bool,
    settlements: VecDeque<v1::Settlements>,
    outputs: VecDeque<Output>,
    /// No more records are wanted: what comes is released.
    closing: bool,
}

impl Session {
    pub(crate) fn new(settings: Settings, window: Flow, commands: mpsc::UnboundedSender<Command>) -> Self {
        Self {
            settings,
            commands,
            window,
            held: HashMap::new(),
            open: 0,
            seen: 0,
            info: SessionInfo::default(),
            session_id: Arc::from(""),
            pending: Pending::default(),
            unanswered: Unanswered::default(),
            last_request: 0,
            pong_due: false,
            flow_due: false,
            settlements: VecDeque::new(),
            outputs: VecDeque::new(),
            closing: false,
        }
    }

    // === what the task asks ===

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(crate) fn next_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// How often [`extend_held`](Self::extend_held) is to be called.
    pub(crate) fn extend_interval(&self) -> Duration {
        // Not a busy loop, however short a timeout the server says.
        (self.info.ack_timeout / 4).max(Duration::from_millis(10))
    }

    /// Whether nothing is left to wait for: no lease with the application, no settlement without its answer.
    pub(crate) fn is_settled(&self) -> bool {
        self.open == 0 && self.is_all_answered()
    }

    /// Whether only answers are waited for, which a unary call can bring.
    pub(crate) fn waits_for_answers_alone(&self) -> bool {
        self.open == 0 && !self.is_all_answered() && !self.info.session_id.is_empty()
    }

    fn is_all_answered(&self) -> bool {
        self.pending.is_empty() && self.unanswered.is_empty()
    }

    /// Whether the settlements up to a request are all answered.
    pub(crate) fn is_answered(&self, request: u64) -> bool {
        self.unanswered.is_answered(request)
    }

    /// Whether leases are left to other processes: a half-close would give them back.
    pub(crate) fn has_handed_over(&self) -> bool {
        self.held.values().flat_map(BTreeMap::values).any(|lease| lease.state == State::HandedOver)
    }

    // === what the application asks ===

    pub(crate) fn set_window(&mut self, window: Flow) {
        if !self.closing && window != self.window {
            self.window = window;
            self.flow_due = true;
        }
    }

    /// No more records: the window becomes 0, and what the application has not seen goes back.
    pub(crate) fn close(&mut self) {
        self.set_window(Flow { max_records: 0, max_bytes: 0 });
        self.closing = true;
        self.release_queued();
    }

    /// Gives back what the application has not seen.
    pub(crate) fn release_queued(&mut self) {
        for (name, leases) in &mut self.held {
            for (offset, lease) in leases {
                if lease.state == State::Open && lease.batch.revoke_queued(lease.index) {
                    lease.state = State::Pending;
                    self.open -= 1;
                    self.pending.say(name, *offset, Verb::Settle(Outcome::Release));
                }
            }
        }
    }

    /// Extends what has waited in the queue for a while, and what the application wants kept. Called at each quarter of the
    /// `ack_timeout`, so that no lease is older than half of it when the application gets the record.
    pub(crate) fn extend_held(&mut self, now: Instant) {
        let ack_timeout = self.info.ack_timeout;
        for (name, leases) in &mut self.held {
            for (offset, lease) in leases {
                if lease.state != State::Open {
                    continue;
                }
                if !lease.batch.is_queued(lease.index) {
                    // The application has had it for less than the time since the last call.
                    let limit = self.settings.extend_while_held;
                    lease.keep_until = lease.keep_until.or_else(|| limit.map(|limit| later(now, limit)));
                    if lease.keep_until.is_none_or(|until| until <= now) {
                        continue;
                    }
                }
                if lease.until <= now + ack_timeout * 3 / 4 {
                    lease.until = now + ack_timeout;
                    self.pending.say(name, *offset, Verb::Extend(None));
                }
            }
        }
    }

    /// The application settles or extends a lease.
    pub(crate) fn say(&mut self, of: &LeaseHandle, verb: Verb, durable: bool, waiter: Option<Waiter>, now: Instant) {
        let durable_always = self.settings.durable;
        let ack_timeout = self.info.ack_timeout;
        let Some(lease) = self.open_lease(of) else {
            // A record that was dropped after its lease had gone is nothing to report.
            if verb != Verb::Settle(Outcome::Release) {
                self.reject(&of.batch.name, &[of.offset], RejectReason::NotHeld);
            }
            if let Some(waiter) = waiter {
                let _ = waiter.send(Err(SettleError::NotHeld));
            }
            return;
        };
        match verb {
            Verb::Extend(duration) => {
                lease.until = later(now, duration.unwrap_or(ack_timeout));
                self.pending.say(&of.batch.name, of.offset, Verb::Extend(duration));
            }
            Verb::Settle(outcome) => {
                lease.state = State::Pending;
                self.open -= 1;
                // A release stores nothing, so it waits for nobody's commit.
                let durable = (durable || durable_always) && outcome.can_be_durable();
                self.pending.settle(&of.batch.name, of.offset, outcome, durable, waiter);
            }
        }
    }

    /// Extends a lease by ourselves from now on, for so long at most.
    pub(crate) fn keep(&mut self, of: &LeaseHandle, limit: Duration, now: Instant) {
        let ack_timeout = self.info.ack_timeout;
        let Some(lease) = self.open_lease(of) else { return };
        lease.keep_until = Some(later(now, limit));
        // At once: it may be about to expire.
        lease.until = now + ack_timeout;
        self.pending.say(&of.batch.name, of.offset, Verb::Extend(None));
    }

    /// Leaves a lease to another process.
    pub(crate) fn hand_over(&mut self, of: &LeaseHandle) {
        if let Some(lease) = self.open_lease(of) {
            lease.state = State::HandedOver;
            self.open -= 1;
        }
    }

    /// The lease that a record means, while it is ours. The same offset may have been dealt to us again since: then this one's
    /// lease is gone all the same.
    fn open_lease(&mut self, of: &LeaseHandle) -> Option<&mut Lease> {
        let lease = self.held.get_mut(&of.batch.name)?.get_mut(&of.offset)?;
        let same = Arc::ptr_eq(&lease.batch, &of.batch) && lease.index == of.index;
        (same && lease.state == State::Open).then_some(lease)
    }

    /// Ends every lease, when the consumer has ended. Who still waits for an answer hears that none comes.
    pub(crate) fn revoke_all(&mut self) {
        for lease in self.held.values().flat_map(BTreeMap::values) {
            if lease.state == State::Open {
                lease.batch.revoke(lease.index);
            }
        }
        self.held.clear();
        self.pending = Pending::default();
        self.unanswered = Unanswered::default();
        self.open = 0;
    }

    fn reject(&mut self, name: &LeaseName, offsets: &[i64], reason: RejectReason) {
        if !offsets.is_empty() {
            let offsets = wire::offsets(name, offsets);
            self.outputs.push_back(Output::Event(Event::Rejected { offsets, reason }));
        }
    }
}

/// What a clock cannot say is a century from now.
fn later(now: Instant, duration: Duration) -> Instant {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 86_400);
    now + duration.min(CENTURY)
}
