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

use sluice_proto::v1::{
    self, ConsumeRequest, ConsumeResponse, Flow, consume_request::Request, consume_response::Response,
};
use tokio::{sync::mpsc, time::Instant};

use crate::{
    event::{Event, RejectReason, RevokeReason},
    ranges,
    record::{Command, LeaseBatch, LeaseName, Outcome, Record},
};

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
    Subscribed,
    /// The stream is to end within the duration.
    Drain(Duration),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Queued, or with the application.
    Open,
    /// Settled, not written yet.
    Pending,
    /// Written in this request, not answered yet.
    Sent(u64),
}

struct Lease {
    batch: Arc<LeaseBatch>,
    index: u32,
    state: State,
    /// When it was received or last extended by us.
    renewed: Instant,
}

/// Some offsets of one partition with one outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Group {
    name: Arc<LeaseName>,
    outcome: Outcome,
    offsets: Vec<i64>,
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
    /// What `Subscribed` said, or the least that may be.
    ack_timeout: Duration,
    pending: HashMap<(Arc<LeaseName>, Outcome), Vec<i64>>,
    unanswered: BTreeMap<u64, Vec<Group>>,
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
            ack_timeout: Duration::from_secs(300),
            pending: HashMap::new(),
            unanswered: BTreeMap::new(),
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

    pub(crate) fn ack_timeout(&self) -> Duration {
        self.ack_timeout
    }

    /// Whether nothing is left to wait for: no lease with the application, no settlement without its answer.
    pub(crate) fn is_settled(&self) -> bool {
        self.open == 0 && self.pending.is_empty() && self.unanswered.is_empty()
    }

    /// Whether the settlements up to a request are all answered.
    pub(crate) fn is_answered(&self, request: u64) -> bool {
        self.unanswered.first_key_value().is_none_or(|(oldest, _)| *oldest > request)
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
                    self.pending.entry((Arc::clone(name), Outcome::Release)).or_default().push(*offset);
                }
            }
        }
    }

    /// Extends what has waited in the queue for a while. Called at each quarter of the `ack_timeout`, so that no lease is
    /// older than half of it when the application gets the record.
    pub(crate) fn extend_queued(&mut self, now: Instant) {
        let age = self.ack_timeout / 4;
        for (name, leases) in &mut self.held {
            for (offset, lease) in leases {
                if lease.state == State::Open && lease.batch.is_queued(lease.index) && now - lease.renewed >= age {
                    lease.renewed = now;
                    let outcome = Outcome::Extend { ack_timeout: None };
                    self.pending.entry((Arc::clone(name), outcome)).or_default().push(*offset);
                }
            }
        }
    }

    /// The application settles or extends a lease.
    pub(crate) fn settle(&mut self, batch: &Arc<LeaseBatch>, index: u32, offset: i64, outcome: Outcome) {
        let lease = self.held.get_mut(&batch.name).and_then(|leases| leases.get_mut(&offset));
        // The same offset may have been dealt to us again since: then this one's lease is gone all the same.
        let lease = lease
            .filter(|lease| lease.state == State::Open && Arc::ptr_eq(&lease.batch, batch) && lease.index == index);
        let Some(lease) = lease else {
            // A record that was dropped after its lease had gone is nothing to report.
            if outcome != Outcome::Release {
                self.reject(&batch.name, &[offset], RejectReason::NotHeld);
            }
            return;
        };
        if !matches!(outcome, Outcome::Extend { .. }) {
            lease.state = State::Pending;
            self.open -= 1;
        }
        self.pending.entry((Arc::clone(&batch.name), outcome)).or_default().push(offset);
    }

    /// Ends every lease, when the consumer has ended.
    pub(crate) fn revoke_all(&mut self) {
        for lease in self.held.values().flat_map(BTreeMap::values) {
            if lease.state == State::Open {
                lease.batch.revoke(lease.index);
            }
        }
        self.held.clear();
        self.pending.clear();
        self.unanswered.clear();
        self.open = 0;
    }

    // === frames from the server ===

    pub(crate) fn handle(&mut self, response: ConsumeResponse, now: Instant) {
        match response.response {
            Some(Response::Subscribed(subscribed)) => self.on_subscribed(subscribed),
            Some(Response::Delivery(delivery)) => self.on_delivery(delivery, now),
            Some(Response::Settled(settled)) => self.on_settled(settled),
            Some(Response::Revoked(revoked)) => self.on_revoked(&revoked),
            Some(Response::Committed(v1::Committed { topic, partition, offset })) => {
                self.outputs.push_back(Output::Event(Event::Committed { topic, partition, offset }));
            }
            Some(Response::Ping(v1::Ping {})) => self.pong_due = true,
            Some(Response::Drain(drain)) => {
                self.release_queued();
                self.outputs.push_back(Output::Event(Event::Draining));
                self.outputs.push_back(Output::Drain(drain.grace.and_then(wire::duration).unwrap_or_default()));
            }
            // Something of a later revision.
            None => {}
        }
    }

    fn on_subscribed(&mut self, subscribed: v1::Subscribed) {
        if let Some(ack_timeout) = subscribed.ack_timeout.and_then(wire::duration) {
            self.ack_timeout = ack_timeout;
        }
        self.drop_what_was_not_kept(&subscribed.held);
        // What was folded while the stream was being opened is among the unanswered.
        self.settlements.clear();
        // What is on its way is decided by the server alone, whether it kept the lease or had applied the settlement before.
        for (request, groups) in std::mem::take(&mut self.unanswered) {
            self.resend(request, groups);
        }
        self.outputs.push_back(Output::Event(Event::Connected { session_id: subscribed.session_id }));
        self.outputs.push_back(Output::Subscribed);
    }

    fn drop_what_was_not_kept(&mut self, kept: &[v1::Leases]) {
        let mut lost = Vec::new();
        for (name, leases) in &mut self.held {
            let mine = kept.iter().filter(|leases| wire::is_of(leases, name));
            let ranges: Vec<_> = mine.flat_map(|leases| &leases.offsets).filter_map(ranges::bounds).collect();
            let gone: Vec<i64> = leases
                .iter()
                .filter(|(_, lease)| lease.state == State::Open)
                .map(|(offset, _)| *offset)
                .filter(|offset| !ranges.iter().any(|(first, last)| first <= offset && offset <= last))
                .collect();
            for offset in &gone {
                if let Some(lease) = leases.remove(offset) {
                    lease.batch.revoke(lease.index);
                    self.open -= 1;
                }
            }
            if !gone.is_empty() {
                lost.push((Arc::clone(name), gone));
            }
        }
        self.held.retain(|_, leases| !leases.is_empty());
        for (name, gone) in lost {
            let offsets = wire::offsets(&name, &gone);
            self.outputs.push_back(Output::Event(Event::Revoked { offsets, reason: RevokeReason::NotResumed }));
        }
    }

    fn on_delivery(&mut self, delivery: v1::Delivery, now: Instant) {
        self.seen = self.seen.max(delivery.sequence);
        for batch in delivery.batches {
            let name = LeaseName { topic: batch.topic, partition: batch.partition, epoch: batch.epoch };
            let name = self.held.get_key_value(&name).map_or_else(|| Arc::new(name), |(known, _)| Arc::clone(known));
            let shared = Arc::new(LeaseBatch::new(Arc::clone(&name), batch.records.len(), self.commands.clone()));
            for (index, record) in (0_u32..).zip(batch.records) {
                self.receive(&name, &shared, index, record, now);
            }
        }
    }

    fn receive(
        &mut self,
        name: &Arc<LeaseName>,
        batch: &Arc<LeaseBatch>,
        index: u32,
        record: v1::Record,
        now: Instant,
    ) {
        let offset = record.offset;
        let state = if self.closing { State::Pending } else { State::Open };
        let lease = Lease { batch: Arc::clone(batch), index, state, renewed: now };
        let old = self.held.entry(Arc::clone(name)).or_default().insert(offset, lease);
        // The server dealt it anew, so an old lease is gone.
        if let Some(old) = old {
            old.batch.revoke(old.index);
            match old.state {
                State::Open => self.open -= 1,
                State::Pending => self.drop_pending(name, &[offset]),
                State::Sent(_) => {}
            }
        }
        if self.closing {
            batch.revoke(index);
            self.pending.entry((Arc::clone(name), Outcome::Release)).or_default().push(offset);
        } else {
            self.open += 1;
            self.outputs.push_back(Output::Record(Record::new(Arc::clone(batch), index, record)));
        }
    }

    fn on_revoked(&mut self, revoked: &v1::Revoked) {
        let Some(leases) = &revoked.leases else { return };
        let reason = RevokeReason::from(revoked.reason());
        let name = Arc::new(wire::name(leases));
        let (mut taken, mut too_late) = (Vec::new(), Vec::new());
        if let Some(held) = self.held.get_mut(&name) {
            for (first, last) in leases.offsets.iter().filter_map(ranges::bounds) {
                // What was sent is decided by its answer.
                let gone = held.range(first..=last).filter(|(_, lease)| !matches!(lease.state, State::Sent(_)));
                let gone: Vec<i64> = gone.map(|(offset, _)| *offset).collect();
                for offset in gone {
                    let Some(lease) = held.remove(&offset) else { continue };
                    lease.batch.revoke(lease.index);
                    match lease.state {
                        State::Open => {
                            self.open -= 1;
                            taken.push(offset);
                        }
                        _ => too_late.push(offset),
                    }
                }
            }
            if held.is_empty() {
                self.held.remove(&name);
            }
        }
        if !taken.is_empty() {
            let offsets = wire::offsets(&name, &taken);
            self.outputs.push_back(Output::Event(Event::Revoked { offsets, reason }));
        }
        self.drop_pending(&name, &too_late);
        self.reject(&name, &too_late, RejectReason::NotHeld);
    }

    fn drop_pending(&mut self, name: &Arc<LeaseName>, offsets: &[i64]) {
        if !offsets.is_empty() {
            self.pending.retain(|(of, _), pending| {
                if of == name {
                    pending.retain(|offset| !offsets.contains(offset));
                }
                !pending.is_empty()
            });
        }
    }

    fn on_settled(&mut self, settled: v1::Settled) {
        let groups = self.unanswered.remove(&settled.request_id).unwrap_or_default();
        for rejection in &settled.rejections {
            let Some(leases) = &rejection.leases else { continue };
            for group in groups.iter().filter(|group| wire::is_of(leases, &group.name)) {
                // Only what this request named: a range may cover offsets of before, which the server reports too.
                let offsets: Vec<i64> =
                    leases.offsets.iter().flat_map(|range| ranges::within(&group.offsets, range)).copied().collect();
                self.on_rejected(settled.request_id, group, &offsets, rejection.reason());
            }
        }
        for group in groups {
            self.forget(settled.request_id, &group);
        }
    }

    fn on_rejected(&mut self, request: u64, group: &Group, offsets: &[i64], reason: v1::RejectReason) {
        let state = if matches!(group.outcome, Outcome::Extend { .. }) { State::Open } else { State::Sent(request) };
        let Some(held) = self.held.get_mut(&group.name) else { return };
        let ours: Vec<i64> = offsets
            .iter()
            .copied()
            .filter(|offset| held.get(offset).is_some_and(|lease| lease.state == state))
            .collect();
        if reason == v1::RejectReason::Invalid {
            // The lease is unchanged. The application has let go of its record, so it is retried instead of left to expire.
            if let Outcome::DeadLetter { reason } | Outcome::Retry { delay: Some(_), reason } = &group.outcome {
                for offset in &ours {
                    if let Some(lease) = held.get_mut(offset) {
                        lease.state = State::Pending;
                    }
                }
                let instead = Outcome::Retry { delay: None, reason: reason.clone() };
                self.pending.entry((Arc::clone(&group.name), instead)).or_default().extend(&ours);
            }
        } else if state == State::Open {
            for offset in &ours {
                if let Some(lease) = held.remove(offset) {
                    lease.batch.revoke(lease.index);
                    self.open -= 1;
                }
            }
        }
        self.reject(&group.name, &ours, reason.into());
    }

    /// What a request settled is over, unless it was dealt to us anew in the meantime.
    fn forget(&mut self, request: u64, group: &Group) {
        let Some(held) = self.held.get_mut(&group.name) else { return };
        for offset in &group.offsets {
            if held.get(offset).is_some_and(|lease| lease.state == State::Sent(request)) {
                held.remove(offset);
            }
        }
        if held.is_empty() {
            self.held.remove(&group.name);
        }
    }

    fn reject(&mut self, name: &LeaseName, offsets: &[i64], reason: RejectReason) {
        if !offsets.is_empty() {
            let offsets = wire::offsets(name, offsets);
            self.outputs.push_back(Output::Event(Event::Rejected { offsets, reason }));
        }
    }

    // === frames to the server ===

    /// The first frame of a connection. What was to be sent on the one before is forgotten; what must be said again will be.
    pub(crate) fn subscribe(&mut self) -> ConsumeRequest {
        self.pong_due = false;
        self.flow_due = false;
        self.settlements.clear();
        let holding = self.held.iter().map(|(name, leases)| {
            let offsets: Vec<i64> = leases.keys().copied().collect();
            // No bridges: this claims leases, and must not claim what a lost frame dealt to us.
            wire::leases(name, ranges::encode(&offsets, |_, _| false))
        });
        let holding = holding.collect();
        wire::subscribe(&self.settings, self.window, holding, self.seen)
    }

    pub(crate) fn has_frame(&self) -> bool {
        self.pong_due || self.flow_due || !self.settlements.is_empty() || !self.pending.is_empty()
    }

    /// The next frame to write. Settlements are folded only here, when the stream can take a frame: what comes while it
    /// cannot goes together.
    pub(crate) fn next_frame(&mut self) -> Option<ConsumeRequest> {
        if std::mem::take(&mut self.pong_due) {
            return Some(wire::request(Request::Pong(v1::Pong {})));
        }
        if std::mem::take(&mut self.flow_due) {
            return Some(wire::request(Request::Flow(self.window)));
        }
        if self.settlements.is_empty() {
            self.fold_pending();
        }
        self.settlements.pop_front().map(|settlements| wire::request(Request::Settle(settlements)))
    }

    /// Makes requests of all that is pending, and says the number of the last one.
    pub(crate) fn fold_pending(&mut self) -> u64 {
        let mut groups: Vec<Group> =
            self.pending.drain().map(|((name, outcome), offsets)| Group { name, outcome, offsets }).collect();
        // Extensions first: after the lease was settled in the same frame they would be rejected.
        groups.sort_by_key(|group| !matches!(group.outcome, Outcome::Extend { .. }));
        for part in wire::parts(groups) {
            self.last_request += 1;
            self.send(self.last_request, part, State::Pending);
        }
        self.last_request
    }

    /// Says a request again that was written on a connection before.
    fn resend(&mut self, request: u64, groups: Vec<Group>) {
        self.send(request, groups, State::Sent(request));
    }

    /// Writes those leases of the groups that are in the state; the others were dealt anew, or are gone.
    fn send(&mut self, request: u64, mut groups: Vec<Group>, state: State) {
        let mut settlements = Vec::with_capacity(groups.len());
        for group in &mut groups {
            group.offsets.sort_unstable();
            group.offsets.dedup();
            let Some(held) = self.held.get_mut(&group.name) else {
                group.offsets.clear();
                continue;
            };
            let extends = matches!(group.outcome, Outcome::Extend { .. });
            group.offsets.retain(|offset| {
                held.get_mut(offset).is_some_and(|lease| {
                    if extends {
                        return state == State::Pending;
                    }
                    let ours = lease.state == state;
                    if ours {
                        lease.state = State::Sent(request);
                    }
                    ours
                })
            });
            if group.offsets.is_empty() {
                continue;
            }
            // A bridge spans what others have, and nothing that we hold or have settled without an answer.
            let free = |a: i64, b: i64| held.range(a + 1..b).next().is_none();
            let leases = wire::leases(&group.name, ranges::encode(&group.offsets, free));
            settlements.push(wire::settlement(leases, &group.outcome));
        }
        groups.retain(|group| !group.offsets.is_empty());
        if !groups.is_empty() {
            self.unanswered.insert(request, groups);
            let durable = self.settings.durable;
            self.settlements.push_back(v1::Settlements { request_id: request, durable, seen: self.seen, settlements });
        }
    }
}
