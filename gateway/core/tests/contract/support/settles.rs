//! The model's settlements: what changes, what is rejected, which answers are owed.

use std::collections::{BTreeMap, BTreeSet};

use sluice_core::{
    Epoch, LetterCause, OffsetRange, OnExhausted, Outcome, RejectReason, Rejection, SessionId, Settlement, Settlements,
    TopicPartition,
};

use crate::support::model::{Last, Model, Notice, Slot, Snapshot, State};

/// One offset of one lease, as answers name it.
pub(crate) type Name = (TopicPartition, i64, i64);

/// An answer that the engine owes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answer {
    /// These changed something, or had been settled the same way: no rejection may name them.
    pub(crate) applied: BTreeSet<Name>,
    /// These must be named by a rejection, where a reason is given for this one.
    pub(crate) rejected: BTreeSet<(Name, Option<Reason>)>,
    /// Answered when Kafka has these: what must be done in an acknowledged commit.
    pub(crate) durable: bool,
    /// It is unary, or has a request_id.
    pub(crate) answerable: bool,
    pub(crate) awaited: BTreeSet<Name>,
    /// Likewise, failures of records that are not done.
    pub(crate) awaited_attempts: BTreeMap<Name, u32>,
    /// What else the engine may wait for: records that the model does not follow.
    pub(crate) perhaps: bool,
    /// Partitions whose part can only be answered as stale.
    pub(crate) gone: BTreeSet<TopicPartition>,
}

/// `RejectReason` has no order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reason {
    NotHeld,
    Stale,
}

impl Answer {
    pub(crate) fn partition_gone(&mut self, tp: &TopicPartition) {
        self.gone.insert(tp.clone());
    }
}

fn is_named(rejections: &[Rejection], name: &Name, reason: Option<Reason>) -> bool {
    let fits = |r: RejectReason| match reason {
        None => true,
        Some(Reason::NotHeld) => r == RejectReason::NotHeld,
        Some(Reason::Stale) => r == RejectReason::StaleEpoch,
    };
    rejections
        .iter()
        .filter(|r| fits(r.reason) && r.leases.partition == name.0 && r.leases.epoch.0 == name.1)
        .any(|r| r.leases.offsets.iter().any(|o| (o.first..=o.last).contains(&name.2) || o.first == name.2))
}

impl Model {
    /// What a `Settlements` frame does, and the answer that it is owed.
    pub(crate) fn settle(&mut self, session: SessionId, frame: &Settlements, answerable: bool) -> Answer {
        let mut answer = Answer { durable: frame.durable, answerable, ..Answer::default() };
        if !self.sessions.contains_key(&session) {
            return answer;
        }
        for settlement in &frame.settlements {
            self.settle_one(session, frame, settlement, &mut answer);
        }
        answer
    }

    /// A frame of a stream: its answer comes as an output.
    pub(crate) fn settle_stream(&mut self, session: SessionId, frame: &Settlements) {
        let answer = self.settle(session, frame, frame.request_id != 0);
        if !self.sessions.contains_key(&session) {
            return;
        }
        if frame.request_id != 0 {
            self.answers.insert((session, frame.request_id), answer);
        } else {
            self.loose.push((session, answer));
        }
    }

    fn settle_one(&mut self, session: SessionId, frame: &Settlements, one: &Settlement, answer: &mut Answer) {
        let Settlement { leases, outcome } = one;
        let (tp, epoch) = (&leases.partition, leases.epoch);
        let unreadable = match outcome {
            Outcome::Unreadable => true,
            Outcome::Retry { delay_ms, .. } => delay_ms.is_some_and(|d| d > self.policy.max_retry_delay_ms),
            Outcome::Extend { ack_timeout_ms } => ack_timeout_ms.is_some_and(|d| d > self.policy.max_ack_timeout_ms),
            Outcome::Ack | Outcome::Release | Outcome::DeadLetter { .. } => false,
        };
        // Nobody could be told that it is stored.
        let unreadable = unreadable || (answer.durable && !answer.answerable);
        let live = self.parts.get(tp).is_some_and(|p| p.epoch == epoch && !p.fenced);
        for range in &leases.offsets {
            let first = (tp.clone(), epoch.0, range.first);
            if unreadable || range.first > range.last || (range.last > range.first && frame.seen == 0) {
                answer.rejected.insert((first, None));
            } else if live {
                self.settle_range(session, frame, tp, epoch, *range, outcome, answer);
            } else {
                // With nothing held, the engine need not notice that the grace of a handover is over.
                let leaving = self.parts.get(tp).is_some_and(|p| p.epoch == epoch);
                if !leaving {
                    answer.rejected.insert((first, Some(Reason::Stale)));
                }
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the words of one settlement, unpacked")]
    fn settle_range(
        &mut self,
        session: SessionId,
        frame: &Settlements,
        tp: &TopicPartition,
        epoch: Epoch,
        range: OffsetRange,
        outcome: &Outcome,
        answer: &mut Answer,
    ) {
        let part = &self.parts[tp];
        let mine = |s: &Slot| match s.state {
            State::Leased { session: holder, frame: dealt, .. } => {
                holder == session && (frame.seen == 0 || dealt <= frame.seen)
            }
            _ => false,
        };
        let slots = part.slots.range(range.first..=range.last);
        let held: Vec<i64> = slots.filter(|(_, s)| mine(s)).map(|(o, _)| *o).collect();
        let any_lease = |o: i64| {
            part.slots.get(&o).is_some_and(|s| matches!(s.state, State::Leased { session: h, .. } if h == session))
        };
        let s = &self.sessions[&session];
        let current = frame.seen == 0 || frame.seen >= s.last_frame;
        let remembers = s.dealt <= s.smallest_window * self.policy.remembered_windows;
        let key = |o: i64| (tp.clone(), epoch.0, o);
        for ((_, _, offset), ends) in s.history.range(key(range.first)..=key(range.last)) {
            if any_lease(*offset) || !current || !remembers {
                answer.perhaps = true;
                continue;
            }
            let same = match outcome {
                Outcome::Ack => Some(Last::Acked),
                Outcome::Retry { .. } => Some(Last::Retried),
                Outcome::DeadLetter { .. } => Some(Last::DeadLettered),
                Outcome::Release => Some(Last::Released),
                _ => None,
            };
            if same.is_some_and(|same| ends.contains(&same)) {
                answer.applied.insert(key(*offset));
                if frame.durable && same == Some(Last::Acked) {
                    answer.awaited.insert(key(*offset));
                }
                answer.perhaps |= same != Some(Last::Released);
            } else {
                answer.applied.remove(&key(*offset));
                answer.rejected.insert((key(*offset), Some(Reason::NotHeld)));
            }
        }
        let never = range.first == range.last && !s.history.contains_key(&key(range.first)) && !any_lease(range.first);
        if never {
            answer.rejected.insert((key(range.first), Some(Reason::NotHeld)));
        }
        for offset in held {
            self.apply(session, tp, offset, outcome);
            let name = (tp.clone(), epoch.0, offset);
            if frame.durable {
                let slot = &self.parts[tp].slots[&offset];
                match (outcome, &slot.state) {
                    (Outcome::Ack, _) | (Outcome::DeadLetter { .. }, State::Done | State::Letter { .. }) => {
                        answer.awaited.insert(name.clone());
                    }
                    (Outcome::Retry { .. } | Outcome::DeadLetter { .. }, _) => {
                        answer.awaited_attempts.insert(name.clone(), slot.attempts.0);
                    }
                    _ => {}
                }
            }
            answer.applied.insert(name);
        }
        self.moved(tp);
    }

    /// One lease that the session holds is settled or extended.
    fn apply(&mut self, session: SessionId, tp: &TopicPartition, offset: i64, outcome: &Outcome) {
        let now = self.now;
        let release = now + self.policy.release_delay_ms;
        let sess = self.sessions.get_mut(&session).expect("the caller looked it up");
        let part = self.parts.get_mut(tp).expect("likewise");
        let slot = part.slots.get_mut(&offset).expect("likewise");
        let last = match outcome {
            Outcome::Ack => {
                slot.state = State::Done;
                self.ever_done.insert((tp.clone(), offset));
                Last::Acked
            }
            Outcome::Release => {
                slot.state = State::Idle { not_before: 0, ready_by: now };
                slot.not_to = Some((session, release));
                Last::Released
            }
            Outcome::Extend { ack_timeout_ms } => {
                let until = now + ack_timeout_ms.unwrap_or(sess.ack_timeout);
                if let State::Leased { deadline, .. } = &mut slot.state {
                    *deadline = until;
                }
                return;
            }
            Outcome::Retry { .. } => Last::Retried,
            Outcome::DeadLetter { .. } => Last::DeadLettered,
            Outcome::Unreadable => return,
        };
        let epoch = part.epoch.0;
        sess.unresponsive = false;
        sess.history.entry((tp.clone(), epoch, offset)).or_default().insert(last);
        self.notices.remove(&Notice { session, partition: tp.clone(), epoch, offset });
        match outcome {
            Outcome::Retry { delay_ms, reason } => {
                self.say(tp, offset, reason);
                self.failed(tp, offset, *delay_ms, false);
            }
            Outcome::DeadLetter { reason } => {
                self.say(tp, offset, reason);
                self.given_up(tp, offset, LetterCause::Client);
            }
            _ => {}
        }
    }

    /// A counted failure. `unsure`: whether it counts is the engine's choice.
    pub(crate) fn failed(&mut self, tp: &TopicPartition, offset: i64, delay: Option<u64>, unsure: bool) {
        let policy = &self.policy;
        let part = self.parts.get_mut(tp).expect("a live partition");
        let slot = part.slots.get_mut(&offset).expect("a received record");
        slot.attempts = (slot.attempts.0 + u32::from(!unsure), slot.attempts.1 + 1);
        let exhausted = slot.attempts.1 >= policy.max_attempts;
        if slot.attempts.0 >= policy.max_attempts {
            self.given_up(tp, offset, LetterCause::Exhausted);
            return;
        }
        if exhausted && policy.on_exhausted != OnExhausted::Block {
            slot.state = State::Unsure;
            if policy.on_exhausted == OnExhausted::Drop {
                self.ever_done.insert((tp.clone(), offset));
            }
            self.moved(tp);
            return;
        }
        let nominal = |attempts: u32| {
            let factor = policy.backoff.multiplier.powf(f64::from(attempts.saturating_sub(1)));
            (policy.backoff.initial_ms as f64 * factor).min(policy.backoff.max_ms as f64)
        };
        let low = nominal(slot.attempts.0) * (1.0 - policy.backoff.jitter);
        let high = (nominal(slot.attempts.1) * (1.0 + policy.backoff.jitter)).max(1.0);
        // An exhausted record may wait as long as the policy's longest delay, whatever the client said.
        let longest = policy.backoff.max_ms as f64 * (1.0 + policy.backoff.jitter);
        let (low, high) = match delay {
            Some(d) if exhausted => (d as f64, longest.max(d as f64)),
            Some(d) => (d as f64, d as f64),
            None if exhausted => (low, longest),
            None => (low, high),
        };
        let low = if unsure { 0 } else { low.floor() as u64 };
        slot.state = State::Idle { not_before: self.now + low, ready_by: self.now + high.ceil() as u64 + 1 };
    }

    // === answers ===

    pub(crate) fn settled(&mut self, session: SessionId, request_id: u64, rejections: &[Rejection]) {
        if request_id == 0 {
            let at = self.loose.iter().position(|(s, _)| *s == session);
            match at {
                None => self.broken(format!("Settled to {session:?} for no frame: {rejections:?}")),
                Some(at) => {
                    if rejections.is_empty() {
                        self.broken("an unasked Settled without rejections");
                    }
                    let (_, answer) = self.loose.remove(at);
                    self.check_answer(&answer, rejections, "a frame without request_id");
                }
            }
            return;
        }
        let Some(answer) = self.answers.remove(&(session, request_id)) else {
            self.broken(format!("Settled{{{request_id}}} to {session:?} was not asked for, or came twice"));
            return;
        };
        self.check_whole_answer(&answer, rejections, &format!("request {request_id}"));
    }

    /// An answer, and what it promises where it was durable.
    pub(crate) fn check_whole_answer(&mut self, answer: &Answer, rejections: &[Rejection], what: &str) {
        self.check_answer(answer, rejections, what);
        for name in &answer.awaited {
            self.check_durable(answer, name, rejections);
        }
        for (name, count) in &answer.awaited_attempts {
            self.check_durable_attempts(name, *count, rejections);
        }
    }

    /// What Kafka acknowledged last in this epoch.
    fn acked_of(&self, name: &Name) -> Option<&Snapshot> {
        let live = self.parts.get(&name.0).filter(|p| p.epoch.0 == name.1);
        live.map_or_else(|| self.past.get(&(name.0.clone(), name.1)), |part| part.acked.as_ref())
    }

    /// A durable Retry without a rejection says: an acknowledged commit has its attempt, or something better.
    fn check_durable_attempts(&mut self, name: &Name, count: u32, rejections: &[Rejection]) {
        if is_named(rejections, name, None) {
            return;
        }
        let stored = self.acked_of(name).is_some_and(|s| {
            let counted = s.attempts.get(&name.2).is_some_and(|(_, most)| *most >= count);
            name.2 < s.offset || s.done.contains(&name.2) || counted
        });
        if !stored {
            self.broken(format!("{name:?}: failure {count} was answered as durable, and no commit has it"));
        }
        if let Some(part) = part_of(self, name) {
            part.durable_attempts.insert(name.2, count);
            for snapshot in part.acked.iter_mut().chain(&mut part.in_flight) {
                if snapshot.attempts.contains_key(&name.2) {
                    snapshot.durable_attempts.insert(name.2, count);
                }
            }
        }
    }

    /// A durable answer without a rejection says: an acknowledged commit has it.
    fn check_durable(&mut self, answer: &Answer, name: &Name, rejections: &[Rejection]) {
        if !answer.durable || is_named(rejections, name, None) {
            return;
        }
        let stored = self.acked_of(name).is_some_and(|s| name.2 < s.offset || s.done.contains(&name.2));
        if !stored {
            self.broken(format!("{name:?} was answered as durable, and no acknowledged commit has it"));
        }
        if let Some(part) = part_of(self, name) {
            part.durable.insert(name.2);
        }
        if let Some(snapshot) = self.past.get_mut(&(name.0.clone(), name.1)) {
            snapshot.durable.insert(name.2);
        }
        if let Some(part) = part_of(self, name) {
            for snapshot in part.acked.iter_mut().chain(&mut part.in_flight) {
                if snapshot.done.contains(&name.2) {
                    snapshot.durable.insert(name.2);
                }
            }
        }
    }

    pub(crate) fn check_answer(&mut self, answer: &Answer, rejections: &[Rejection], what: &str) {
        for name in &answer.applied {
            let stale_is_right = answer.durable && answer.gone.contains(&name.0);
            let demanded = answer.rejected.iter().any(|(n, _)| n == name);
            if !stale_is_right && !demanded && is_named(rejections, name, None) {
                self.broken(format!("{what}: {name:?} changed something and was rejected: {rejections:?}"));
            }
        }
        for (name, reason) in &answer.rejected {
            let gone = answer.gone.contains(&name.0);
            if !is_named(rejections, name, if gone { None } else { *reason }) {
                self.broken(format!("{what}: {name:?} should be rejected as {reason:?}: {rejections:?}"));
            }
        }
    }

    /// After all outputs were pulled: what is answered at once was answered.
    pub(crate) fn check_answers_given(&mut self) {
        for (session, answer) in std::mem::take(&mut self.loose) {
            if !answer.rejected.is_empty() {
                self.broken(format!("{session:?} was told nothing of {:?}", answer.rejected));
            }
        }
        let late: Vec<_> = self
            .answers
            .iter()
            .filter(|((s, _), a)| {
                let hears = self.sessions.get(s).is_some_and(|s| s.broken.is_none());
                hears && (!a.durable || self.is_answerable(a))
            })
            .map(|(k, _)| *k)
            .collect();
        for key in late {
            self.answers.remove(&key);
            self.broken(format!("{key:?} was not answered"));
        }
    }
}

impl Model {
    /// Kafka has all that a durable answer waits for, for sure: each below a committed offset, or its partition gone.
    pub(crate) fn is_answerable(&self, answer: &Answer) -> bool {
        let stored = |name: &Name| {
            let part = self.parts.get(&name.0).filter(|p| p.epoch.0 == name.1);
            part.is_none_or(|p| p.acked.as_ref().is_some_and(|s| name.2 < s.offset))
        };
        !answer.perhaps && answer.awaited.iter().chain(answer.awaited_attempts.keys()).all(stored)
    }
}

fn part_of<'a>(model: &'a mut Model, name: &Name) -> Option<&'a mut crate::support::model::Part> {
    model.parts.get_mut(&name.0).filter(|p| p.epoch.0 == name.1)
}
