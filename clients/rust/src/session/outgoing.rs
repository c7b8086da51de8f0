//! Frames to the server.

use sluice_proto::v1::{self, ConsumeRequest, consume_request::Request};

use super::{Group, Session, State, Written, wire};
use crate::{event::RejectReason, lease::Verb, outcome::SettleError, ranges};

impl Session {
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
        self.pong_due || self.flow_due || !self.settlements.is_empty() || self.pending.is_ready(&self.unanswered)
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
            self.fold(false);
        }
        self.settlements.pop_front().map(|settlements| wire::request(Request::Settle(settlements)))
    }

    /// Makes requests of all that is pending, and says the number of the last one.
    pub(crate) fn fold_pending(&mut self) -> u64 {
        self.fold(true);
        self.last_request
    }

    /// Everything without an answer as unary requests, with their numbers; it can be said again on a stream later.
    pub(crate) fn unary_requests(&mut self) -> Vec<(u64, v1::SettleRequest)> {
        self.fold_pending();
        self.settlements.clear();
        self.say_again();
        let session_id = &self.info.session_id;
        let unary = |frame: v1::Settlements| {
            let v1::Settlements { request_id, durable, seen, settlements } = frame;
            (request_id, v1::SettleRequest { session_id: session_id.clone(), durable, seen, settlements })
        };
        self.settlements.drain(..).map(unary).collect()
    }

    /// Says again what was written on a connection before and was not answered.
    pub(super) fn say_again(&mut self) {
        for (request, mut written) in self.unanswered.take() {
            written.again = true;
            self.write(request, written, State::Sent(request));
        }
    }

    /// The session in which it was written is gone, and the one of now knows nothing of it: a range said again would be
    /// answered as if all of it had been applied.
    pub(super) fn give_up_unanswered(&mut self) {
        for (request, mut written) in self.unanswered.take() {
            for group in std::mem::take(&mut written.groups) {
                let held = self.held.get(&group.name);
                let is_sent = |offset: &i64| {
                    held.and_then(|held| held.get(offset)).map(|l| l.state) == Some(State::Sent(request))
                };
                let lost: Vec<i64> = group.offsets.iter().copied().filter(is_sent).collect();
                for offset in &group.offsets {
                    written.answer(&group.name, *offset, &SettleError::NotHeld);
                }
                self.reject(&group.name, &lost, RejectReason::NotHeld);
                self.forget(request, &group);
            }
        }
    }

    fn fold(&mut self, all: bool) {
        let plain = self.pending.take_plain();
        self.write_parts(plain, false);
        for groups in self.pending.take_durable(&self.unanswered, all) {
            self.write_parts(groups, true);
        }
    }

    fn write_parts(&mut self, groups: Vec<Group>, durable: bool) {
        for groups in wire::parts(groups) {
            self.last_request += 1;
            let waiters = self.pending.take_waiters(&groups);
            self.write(
                self.last_request,
                Written { groups, durable, seen: self.seen, again: false, waiters },
                State::Pending,
            );
        }
    }

    /// Writes those leases of the groups that are in the state; the others were dealt anew, or are gone.
    fn write(&mut self, request: u64, mut written: Written, state: State) {
        let mut settlements = Vec::with_capacity(written.groups.len());
        let mut gone = Vec::new();
        for group in &mut written.groups {
            group.offsets.sort_unstable();
            group.offsets.dedup();
            let Some(held) = self.held.get_mut(&group.name) else {
                gone.extend(group.offsets.drain(..).map(|offset| (group.name.clone(), offset)));
                continue;
            };
            let extends = matches!(group.verb, Verb::Extend(_));
            group.offsets.retain(|offset| {
                let ours = held.get_mut(offset).is_some_and(|lease| match extends {
                    true => state == State::Pending,
                    false if lease.state == state => {
                        lease.state = State::Sent(request);
                        true
                    }
                    false => false,
                });
                if !ours {
                    gone.push((group.name.clone(), *offset));
                }
                ours
            });
            if group.offsets.is_empty() {
                continue;
            }
            // A bridge spans what others have, and nothing that we hold or have settled without an answer.
            let free = |a: i64, b: i64| held.range(a + 1..b).next().is_none();
            let leases = wire::leases(&group.name, ranges::encode(&group.offsets, free));
            settlements.push(wire::settlement(leases, &group.verb));
        }
        // The node applied it, else it would not have dealt the record anew; whether it is stored nobody will say.
        for (name, offset) in gone {
            written.answer(&name, offset, &SettleError::StaleEpoch);
        }
        written.groups.retain(|group| !group.offsets.is_empty());
        if !written.groups.is_empty() {
            let (durable, seen) = (written.durable, self.seen);
            written.seen = seen;
            self.unanswered.insert(request, written);
            self.settlements.push_back(v1::Settlements { request_id: request, durable, seen, settlements });
        }
    }
}
