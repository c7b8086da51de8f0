//! Frames from the server.

use std::sync::Arc;

use sluice_proto::v1::{self, ConsumeResponse, consume_response::Response};
use tokio::time::Instant;

use super::{Group, Lease, Output, Session, State, Written, wire};
use crate::{
    event::{Event, RejectReason, RevokeReason, SessionInfo},
    lease::{LeaseBatch, LeaseName, Verb},
    outcome::{Outcome, SettleError},
    ranges,
    record::Record,
};

impl Session {
    pub(crate) fn handle(&mut self, response: ConsumeResponse, now: Instant) {
        match response.response {
            Some(Response::Subscribed(subscribed)) => self.on_subscribed(subscribed),
            Some(Response::Delivery(delivery)) => self.on_delivery(delivery, now),
            Some(Response::Settled(settled)) => self.on_settled(settled.request_id, &settled.rejections),
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
        let ordering = subscribed.ordering();
        if !self.info.session_id.is_empty() && self.info.session_id != subscribed.session_id {
            self.give_up_unanswered();
        }
        self.info = SessionInfo {
            session_id: subscribed.session_id,
            subscription: subscribed.subscription,
            ordering: ordering.into(),
            ack_timeout: subscribed.ack_timeout.and_then(wire::duration).unwrap_or(self.info.ack_timeout),
            session_timeout: subscribed.session_timeout.and_then(wire::duration).unwrap_or(self.info.session_timeout),
            revision: subscribed.revision.max(1),
        };
        self.session_id = Arc::from(self.info.session_id.as_str());
        self.drop_what_was_not_kept(&subscribed.held);
        // What was folded while the stream was being opened is among the unanswered.
        self.settlements.clear();
        // What is on its way is decided by the server alone, whether it kept the lease or had applied the settlement before.
        self.say_again();
        self.outputs.push_back(Output::Event(Event::Connected { session_id: self.info.session_id.clone() }));
        self.outputs.push_back(Output::Subscribed(self.info.clone()));
    }

    fn drop_what_was_not_kept(&mut self, kept: &[v1::Leases]) {
        let mut lost = Vec::new();
        for (name, leases) in &mut self.held {
            let mine = kept.iter().filter(|leases| wire::is_of(leases, name));
            let ranges: Vec<_> = mine.flat_map(|leases| &leases.offsets).filter_map(ranges::bounds).collect();
            let gone: Vec<i64> = leases
                .iter()
                .filter(|(_, lease)| !matches!(lease.state, State::Sent(_)))
                .map(|(offset, _)| *offset)
                .filter(|offset| !ranges.iter().any(|(first, last)| first <= offset && offset <= last))
                .collect();
            let mut unwritten = Vec::new();
            for offset in &gone {
                let Some(lease) = leases.remove(offset) else { continue };
                lease.batch.revoke(lease.index);
                self.open -= usize::from(lease.state == State::Open);
                if lease.state == State::Pending {
                    unwritten.push(*offset);
                }
            }
            if !gone.is_empty() {
                lost.push((Arc::clone(name), gone, unwritten));
            }
        }
        self.held.retain(|_, leases| !leases.is_empty());
        for (name, gone, unwritten) in lost {
            let offsets = wire::offsets(&name, &gone);
            self.outputs.push_back(Output::Event(Event::Revoked { offsets, reason: RevokeReason::NotResumed }));
            self.pending.drop_offsets(&name, &unwritten, &SettleError::NotHeld);
            self.reject(&name, &unwritten, RejectReason::NotHeld);
        }
    }

    fn on_delivery(&mut self, delivery: v1::Delivery, now: Instant) {
        self.seen = self.seen.max(delivery.sequence);
        for batch in delivery.batches {
            let name = LeaseName { topic: batch.topic, partition: batch.partition, epoch: batch.epoch };
            let name = self.held.get_key_value(&name).map_or_else(|| Arc::new(name), |(known, _)| Arc::clone(known));
            let shared = Arc::new(LeaseBatch::new(
                Arc::clone(&name),
                Arc::clone(&self.session_id),
                delivery.sequence,
                batch.records.len(),
                self.commands.clone(),
            ));
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
        let lease =
            Lease { batch: Arc::clone(batch), index, state, until: now + self.info.ack_timeout, keep_until: None };
        let old = self.held.entry(Arc::clone(name)).or_default().insert(offset, lease);
        // The server dealt it anew, so an old lease is gone.
        if let Some(old) = old {
            old.batch.revoke(old.index);
            match old.state {
                State::Open => self.open -= 1,
                State::Pending => self.pending.drop_offsets(name, &[offset], &SettleError::NotHeld),
                State::Sent(request) => self.on_dealt_anew(request, name, offset),
                State::HandedOver => {}
            }
        }
        if self.closing {
            batch.revoke(index);
            self.pending.say(name, offset, Verb::Settle(Outcome::Release));
        } else {
            self.open += 1;
            self.outputs.push_back(Output::Record(Record::new(Arc::clone(batch), index, record)));
        }
    }

    /// A record comes again while its settlement has no answer. The answer may say nothing of it: the server takes the offset
    /// for the lease of now.
    fn on_dealt_anew(&mut self, request: u64, name: &Arc<LeaseName>, offset: i64) {
        let Some(written) = self.unanswered.get_mut(request) else { return };
        match written.verb(name, offset) {
            // It would not come again, so another end of the lease was first.
            Some(Verb::Settle(Outcome::Ack | Outcome::DeadLetter { .. })) => {
                written.answer(name, offset, &SettleError::NotHeld);
                self.reject(name, &[offset], RejectReason::NotHeld);
            }
            // It may come again because of the retry, or because the lease was lost with the connection before.
            _ if written.again => written.answer(name, offset, &SettleError::StaleEpoch),
            _ => {}
        }
    }

    fn on_revoked(&mut self, revoked: &v1::Revoked) {
        let Some(leases) = &revoked.leases else { return };
        let reason = RevokeReason::from(revoked.reason());
        // As the server would have answered it.
        let why = match reason {
            RevokeReason::Reassigned | RevokeReason::Seek => RejectReason::StaleEpoch,
            RevokeReason::Expired | RevokeReason::NotResumed | RevokeReason::Unknown => RejectReason::NotHeld,
        };
        let name = Arc::new(wire::name(leases));
        let (mut taken, mut too_late) = (Vec::new(), Vec::new());
        if let Some(held) = self.held.get_mut(&name) {
            for (first, last) in leases.offsets.iter().filter_map(ranges::bounds) {
                let gone: Vec<i64> = held.range(first..=last).map(|(offset, _)| *offset).collect();
                for offset in gone {
                    let Some(lease) = held.remove(&offset) else { continue };
                    lease.batch.revoke(lease.index);
                    match lease.state {
                        State::Open => {
                            self.open -= 1;
                            taken.push(offset);
                        }
                        State::HandedOver => taken.push(offset),
                        State::Pending => too_late.push(offset),
                        // A lease ends once, so what is written comes too late as well.
                        State::Sent(request) => {
                            too_late.push(offset);
                            if let Some(written) = self.unanswered.get_mut(request) {
                                written.answer(&name, offset, &why.into());
                            }
                        }
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
        self.pending.drop_offsets(&name, &too_late, &why.into());
        self.reject(&name, &too_late, why);
    }

    /// The answer to a request, by the stream or by a unary call.
    pub(crate) fn on_settled(&mut self, request: u64, rejections: &[v1::Rejection]) {
        let Some(mut written) = self.unanswered.remove(request) else { return };
        let groups = std::mem::take(&mut written.groups);
        for rejection in rejections {
            let Some(leases) = &rejection.leases else { continue };
            for group in groups.iter().filter(|group| wire::is_of(leases, &group.name)) {
                // Only what this request named: a range may cover offsets of before, which the server reports too.
                let offsets: Vec<i64> =
                    leases.offsets.iter().flat_map(|range| ranges::within(&group.offsets, range)).copied().collect();
                self.on_rejected(request, &mut written, group, &offsets, rejection.reason().into());
            }
        }
        for group in &groups {
            self.forget(request, group);
        }
        written.succeed();
    }

    fn on_rejected(
        &mut self,
        request: u64,
        written: &mut Written,
        group: &Group,
        offsets: &[i64],
        reason: RejectReason,
    ) {
        for offset in offsets {
            written.answer(&group.name, *offset, &reason.into());
        }
        let Some(held) = self.held.get_mut(&group.name) else { return };
        // What was dealt anew in the meantime is not meant.
        let is_meant = |lease: &Lease| match group.verb {
            Verb::Extend(_) => lease.state == State::Open && lease.batch.frame <= written.seen,
            Verb::Settle(_) => lease.state == State::Sent(request),
        };
        let ours: Vec<i64> = offsets.iter().copied().filter(|offset| held.get(offset).is_some_and(is_meant)).collect();
        match &group.verb {
            // The lease is unchanged. The application has let go of its record, so it is retried instead of left to expire.
            Verb::Settle(outcome) if reason == RejectReason::Invalid => {
                let plain = Outcome::Retry { delay: None, reason: String::new() };
                let instead = match outcome {
                    Outcome::Retry { reason, .. } | Outcome::DeadLetter { reason } => {
                        Outcome::Retry { delay: None, reason: reason.clone() }
                    }
                    Outcome::Ack | Outcome::Release => plain,
                };
                // Refused once more, it is left alone.
                if written.durable || *outcome != instead {
                    for offset in &ours {
                        if let Some(lease) = held.get_mut(offset) {
                            lease.state = State::Pending;
                        }
                        self.pending.say(&group.name, *offset, Verb::Settle(instead.clone()));
                    }
                }
            }
            Verb::Extend(_) if reason != RejectReason::Invalid => {
                for offset in &ours {
                    if let Some(lease) = held.remove(offset) {
                        lease.batch.revoke(lease.index);
                        self.open -= 1;
                    }
                }
            }
            // Refused for its length: the lease lasts as long as before. What is to be kept is extended at the next look.
            Verb::Extend(Some(duration)) => {
                for offset in &ours {
                    if let Some(lease) = held.get_mut(offset) {
                        lease.until = lease.until.checked_sub(*duration).unwrap_or(lease.until);
                    }
                }
            }
            Verb::Settle(_) | Verb::Extend(_) => {}
        }
        self.reject(&group.name, &ours, reason);
    }

    /// What a request settled is over, unless it was dealt to us anew in the meantime.
    pub(super) fn forget(&mut self, request: u64, group: &Group) {
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
}
