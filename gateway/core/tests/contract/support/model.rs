//! The contract of one engine, as sorted maps: slow, plain, and written so that a reader can check it line by line.
//!
//! The engine may choose (which session gets which record, when a commit goes out). The model follows those choices
//! through the outputs and says what no choice may do. A breach goes into `violations`, and the driver fails.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::deaths::Break;
use sluice_core::{
    Assignment, End, Epoch, Leases, Millis, NextOffset, Open, Opened, Policy, Record, Resumed, RevokeReason, SessionId,
    Ticket, TopicPartition, Via, Window,
};

/// What a record is to the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// Nobody has it. It must not be dealt before `not_before`, and must be by `ready_by` if somebody has room.
    Idle {
        not_before: u64,
        ready_by: u64,
    },
    Leased {
        session: SessionId,
        frame: u64,
        deadline: u64,
        /// It was dealt as a suspect.
        suspect: bool,
    },
    /// A suspect whose holder died with this break: a failure, unless others broke with it.
    Undecided {
        of: usize,
        until: u64,
    },
    /// On its way to the dead letters: given to the driver, or it must be by `write_by` if there is a place.
    Letter {
        in_flight: bool,
        not_before: u64,
        write_by: u64,
    },
    Done,
    /// Restored from a commit that may have been cut: the engine may or may not know that it is done or given up.
    Unsure,
}

/// One record received in this epoch.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    pub(crate) record: Record,
    pub(crate) state: State,
    /// Lowest and highest count of failures that the contract allows here.
    pub(crate) attempts: (u32, u32),
    /// Released by this session: not to it again before then.
    pub(crate) not_to: Option<(SessionId, u64)>,
    /// What is known of its way to the dead letters.
    pub(crate) letter: Option<crate::support::letters::Known>,
    /// Breaks of sessions that held it and did not come back.
    pub(crate) marks: Vec<usize>,
}

/// What is known of the records above an offset, as a commit stores it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) offset: i64,
    pub(crate) metadata: String,
    /// Done above `offset`.
    pub(crate) done: BTreeSet<i64>,
    /// Of them, those that a restore may not forget whatever was cut.
    pub(crate) durable: BTreeSet<i64>,
    pub(crate) attempts: BTreeMap<i64, (u32, u32)>,
    /// Of them, the counts that a restore may not forget.
    pub(crate) durable_attempts: BTreeMap<i64, u32>,
    /// Whether everything is in it for sure.
    pub(crate) whole: bool,
}

/// A partition that the engine owns.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) epoch: Epoch,
    /// The next offset after all that was received or skipped.
    pub(crate) next: i64,
    pub(crate) slots: BTreeMap<i64, Slot>,
    /// What the commit said of records that were not read again yet.
    pub(crate) restored: Snapshot,
    pub(crate) in_flight: Option<Snapshot>,
    /// What Kafka acknowledged last in this epoch.
    pub(crate) acked: Option<Snapshot>,
    /// Done by a settlement answered as durable.
    pub(crate) durable: BTreeSet<i64>,
    /// Failures answered as durable.
    pub(crate) durable_attempts: BTreeMap<i64, u32>,
    pub(crate) revoking: Option<u64>,
    pub(crate) fenced: bool,
    /// Since when the frontier is above what was committed, or a commit failed.
    pub(crate) dirty_since: Option<u64>,
    pub(crate) commit_from: i64,
    pub(crate) held_back: bool,
    /// Kafka said that this node is no member: it cannot commit any more.
    pub(crate) expelled: bool,
    /// The broker refused metadata of this size and more.
    pub(crate) units_max: usize,
    /// Of the longest metadata that Kafka is known to have taken.
    pub(crate) units_taken: usize,
}

/// How a session's lease of an offset ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Last {
    Acked,
    Retried,
    DeadLettered,
    Released,
    /// Taken from it: expired, lost, not listed in `holding`.
    Taken,
}

#[derive(Debug)]
pub(crate) struct Sess {
    pub(crate) consumer_id: Option<String>,
    /// Another node relays it: those of this node come first.
    pub(crate) relayed: bool,
    pub(crate) window: Window,
    pub(crate) ack_timeout: u64,
    pub(crate) max_frame_bytes: u64,
    /// Waits for a resume until then.
    pub(crate) broken: Option<u64>,
    pub(crate) draining: bool,
    /// Its break, while it held leases.
    pub(crate) broke: Option<usize>,
    pub(crate) last_frame: u64,
    pub(crate) unresponsive: bool,
    pub(crate) report_commits: bool,
    /// How each lease ended that it once had, by (partition, epoch, offset).
    pub(crate) history: BTreeMap<(TopicPartition, i64, i64), BTreeSet<Last>>,
    /// Records dealt to it so far, and the smallest window it had: how much it must remember.
    pub(crate) dealt: u64,
    pub(crate) smallest_window: u64,
}

/// A lease whose holder must hear that it is gone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Notice {
    pub(crate) session: SessionId,
    pub(crate) partition: TopicPartition,
    pub(crate) epoch: i64,
    pub(crate) offset: i64,
}

#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) policy: Policy,
    pub(crate) now: u64,
    pub(crate) ticked: u64,
    pub(crate) paused: bool,
    pub(crate) parts: BTreeMap<TopicPartition, Part>,
    /// What Kafka acknowledged last of partitions that are gone, by epoch.
    pub(crate) past: BTreeMap<(TopicPartition, i64), Snapshot>,
    pub(crate) sessions: BTreeMap<SessionId, Sess>,
    /// Owed `Revoked`s, with the reason, and whether the holder must hear (it has a stream) or may.
    pub(crate) notices: BTreeMap<Notice, (RevokeReason, bool)>,
    /// Owed `Settled`s by (session, request).
    pub(crate) answers: BTreeMap<(SessionId, u64), crate::support::settles::Answer>,
    /// Owed answers of durable unary calls.
    pub(crate) tickets: BTreeMap<Ticket, crate::support::settles::Answer>,
    /// Rejections without a request id that were not heard yet.
    pub(crate) loose: Vec<(SessionId, crate::support::settles::Answer)>,
    pub(crate) gone: BTreeSet<SessionId>,
    /// Every break of a session with leases: when, and whether more than half broke with it.
    pub(crate) breaks: Vec<Break>,
    /// Partitions that were to be handed over and are not here.
    pub(crate) absent_drains: BTreeSet<TopicPartition>,
    /// Every record that was ever done here: (partition, offset). The world's checks join these.
    pub(crate) ever_done: BTreeSet<(TopicPartition, i64)>,
    pub(crate) violations: Vec<String>,
}

impl Part {
    pub(crate) fn frontier(&self) -> i64 {
        let undone = |s: &Slot| !matches!(s.state, State::Done | State::Unsure);
        self.slots.iter().find(|(_, s)| undone(s)).map_or(self.next, |(o, _)| *o)
    }

    /// What must be committed at the least: nothing unsure counts as done, and a hole alone is no news.
    pub(crate) fn sure_frontier(&self) -> i64 {
        let Some(undone) = self.slots.iter().find(|(_, s)| s.state != State::Done).map(|(o, _)| *o) else {
            return self.next;
        };
        self.slots.range(..undone).next_back().map_or(i64::MIN, |(o, _)| o + 1)
    }

    pub(crate) fn letters(&self) -> usize {
        self.slots.values().filter(|s| matches!(s.state, State::Letter { .. })).count()
    }

    pub(crate) fn leased(&self) -> usize {
        self.slots.values().filter(|s| matches!(s.state, State::Leased { .. })).count()
    }
}

impl Model {
    pub(crate) fn new(policy: Policy) -> Self {
        Self {
            policy,
            now: 0,
            ticked: 0,
            paused: false,
            parts: BTreeMap::new(),
            past: BTreeMap::new(),
            sessions: BTreeMap::new(),
            notices: BTreeMap::new(),
            answers: BTreeMap::new(),
            tickets: BTreeMap::new(),
            loose: Vec::new(),
            gone: BTreeSet::new(),
            breaks: Vec::new(),
            absent_drains: BTreeSet::new(),
            ever_done: BTreeSet::new(),
            violations: Vec::new(),
        }
    }

    /// The partition goes; what Kafka acknowledged last of it is remembered.
    pub(crate) fn forget_part(&mut self, tp: &TopicPartition) -> Option<Part> {
        let part = self.parts.remove(tp)?;
        if let Some(acked) = &part.acked {
            self.past.insert((tp.clone(), part.epoch.0), acked.clone());
        }
        Some(part)
    }

    pub(crate) fn gone_for_answers(&mut self, tp: &TopicPartition) {
        self.answers.values_mut().chain(self.tickets.values_mut()).for_each(|answer| answer.partition_gone(tp));
    }

    pub(crate) fn broken(&mut self, what: impl Into<String>) {
        self.violations.push(what.into());
    }

    // === Kafka ===

    /// `stored`: what the metadata in the assignment is known to say; `None` when it is nobody's.
    pub(crate) fn assigned(&mut self, assignment: &Assignment, stored: Option<&Snapshot>) {
        let restored = stored.filter(|s| s.offset == assignment.next.0).cloned().unwrap_or_default();
        let part = Part {
            epoch: assignment.epoch,
            next: assignment.next.0,
            slots: BTreeMap::new(),
            durable: restored.durable.clone(),
            durable_attempts: restored.durable_attempts.clone(),
            restored,
            in_flight: None,
            acked: None,
            revoking: None,
            fenced: false,
            dirty_since: assignment.commit_now.then_some(self.now),
            commit_from: if assignment.commit_now { assignment.next.0 - 1 } else { assignment.next.0 },
            held_back: false,
            expelled: false,
            units_max: self.policy.metadata_units_max,
            units_taken: assignment.metadata.as_deref().map_or(0, |text| text.encode_utf16().count()),
        };
        self.parts.insert(assignment.partition.clone(), part);
    }

    pub(crate) fn records(&mut self, tp: &TopicPartition, epoch: Epoch, records: &[Record]) {
        let now = self.now;
        let Some(part) = self.parts.get_mut(tp).filter(|p| p.epoch == epoch) else { return };
        let mut arrived = Vec::new();
        for record in records.iter().filter(|r| r.offset >= part.next).collect::<Vec<_>>() {
            part.next = record.offset + 1;
            let restored = &part.restored;
            let sure = restored.whole || restored.durable.contains(&record.offset);
            let state = match (restored.done.contains(&record.offset), sure) {
                (true, true) => State::Done,
                (true, false) => State::Unsure,
                _ => State::Idle { not_before: 0, ready_by: now },
            };
            let mut attempts = restored.attempts.get(&record.offset).copied().unwrap_or_default();
            if !restored.whole {
                attempts.0 = restored.durable_attempts.get(&record.offset).copied().unwrap_or_default();
            }
            part.slots.insert(
                record.offset,
                Slot { record: record.clone(), state, attempts, not_to: None, letter: None, marks: Vec::new() },
            );
            arrived.push(record.offset);
        }
        for offset in arrived {
            self.given_up_before(tp, offset);
        }
        self.moved(tp);
    }

    pub(crate) fn position(&mut self, tp: &TopicPartition, epoch: Epoch, next: NextOffset) {
        let Some(part) = self.parts.get_mut(tp).filter(|p| p.epoch == epoch) else { return };
        part.next = part.next.max(next.0);
        self.moved(tp);
    }

    /// The frontier may have moved: from now on a commit is due.
    pub(crate) fn moved(&mut self, tp: &TopicPartition) {
        let now = self.now;
        let Some(part) = self.parts.get_mut(tp) else { return };
        if part.sure_frontier() > part.commit_from {
            part.dirty_since.get_or_insert(now);
        }
    }

    pub(crate) fn revoking(&mut self, partitions: &[TopicPartition], deadline: Millis) {
        for tp in partitions {
            match self.parts.get_mut(tp) {
                Some(part) => part.revoking = Some(part.revoking.map_or(deadline.0, |d| d.min(deadline.0))),
                // Nothing to drain: answered at once, so that the rebalance goes on.
                None => drop(self.absent_drains.insert(tp.clone())),
            }
        }
        self.fence_overdue(partitions);
    }

    pub(crate) fn lost(&mut self, partitions: &[TopicPartition], reason: RevokeReason) {
        for tp in partitions {
            self.fence(tp, reason);
            self.forget_part(tp);
            self.gone_for_answers(tp);
        }
    }

    /// Takes every lease of a partition back; its holders must hear of it.
    fn fence(&mut self, tp: &TopicPartition, reason: RevokeReason) {
        let Some(part) = self.parts.get_mut(tp) else { return };
        part.fenced = true;
        let now = self.now;
        let mut taken = Vec::new();
        for (offset, slot) in &mut part.slots {
            if let State::Leased { session, .. } = slot.state {
                slot.state = State::Idle { not_before: 0, ready_by: now };
                taken.push((session, part.epoch.0, *offset));
            }
            if let State::Letter { .. } | State::Undecided { .. } = slot.state {
                slot.state = State::Idle { not_before: 0, ready_by: u64::MAX };
            }
        }
        for (session, epoch, offset) in taken {
            self.take_back(session, tp, epoch, offset, Some(reason));
        }
    }

    /// A session's lease ended without its word: remember that, and what it must hear.
    pub(crate) fn take_back(
        &mut self,
        session: SessionId,
        tp: &TopicPartition,
        epoch: i64,
        offset: i64,
        reason: Option<RevokeReason>,
    ) {
        let Some(s) = self.sessions.get_mut(&session) else { return };
        s.history.entry((tp.clone(), epoch, offset)).or_default().insert(Last::Taken);
        if let Some(reason) = reason {
            let must = s.broken.is_none();
            self.notices.insert(Notice { session, partition: tp.clone(), epoch, offset }, (reason, must));
        }
    }

    /// Fences those of `among` whose grace is over.
    fn fence_overdue(&mut self, among: &[TopicPartition]) {
        let now = self.now;
        let overdue = |p: &Part| !p.fenced && p.revoking.is_some_and(|d| d <= now);
        let late: Vec<_> = among.iter().filter(|tp| self.parts.get(*tp).is_some_and(overdue)).cloned().collect();
        for tp in late {
            self.fence(&tp, RevokeReason::Reassigned);
        }
    }

    // === sessions ===

    pub(crate) fn opened(&mut self, open: &Open, opened: &Opened) {
        let known = open.consumer_id.as_ref().and_then(|id| {
            self.sessions
                .iter()
                .find(|(_, s)| s.consumer_id.as_ref() == Some(id))
                .map(|(n, s)| (*n, s.broken.is_some()))
        });
        let expected = match known {
            None => Resumed::New,
            Some((_, true)) => Resumed::AfterBreak,
            Some((_, false)) => Resumed::Superseding,
        };
        if opened.resumed != expected {
            self.broken(format!("open: answered {:?}, should be {expected:?}", opened.resumed));
        }
        match known {
            Some((n, _)) if n != opened.session => {
                self.broken(format!("resume: session {n:?} became {:?}", opened.session))
            }
            None if self.sessions.contains_key(&opened.session) => self.broken("a new session has a live one's number"),
            _ => {}
        }
        let timeout = open.ack_timeout_ms.unwrap_or(u64::MAX).min(self.policy.ack_timeout_ms);
        if opened.ack_timeout_ms != timeout {
            self.broken(format!("open: ack_timeout {} instead of {timeout}", opened.ack_timeout_ms));
        }
        let window = open.window.unwrap_or_default();
        let s = self.sessions.entry(opened.session).or_insert_with(|| Sess {
            consumer_id: open.consumer_id.clone(),
            relayed: open.via == Via::FarEdge,
            window,
            ack_timeout: timeout,
            max_frame_bytes: 0,
            broken: None,
            draining: false,
            broke: None,
            last_frame: if open.via == Via::Nobody { open.seen } else { 0 },
            unresponsive: false,
            report_commits: false,
            history: BTreeMap::new(),
            dealt: 0,
            smallest_window: u64::from(window.max_records),
        });
        let restarted = known.is_some() && open.seen == 0 && open.holding.is_empty() && s.last_frame > 0;
        let was_broken = s.broken.is_some();
        if restarted && !was_broken {
            self.note_break(opened.session);
        }
        if restarted {
            self.die(opened.session);
        }
        let s = self.sessions.get_mut(&opened.session).expect("it was put in above");
        s.broke = None;
        s.window = window;
        s.smallest_window = s.smallest_window.min(u64::from(window.max_records));
        s.ack_timeout = timeout;
        s.max_frame_bytes = if open.max_frame_bytes == 0 { 4 << 20 } else { u64::from(open.max_frame_bytes) };
        s.broken = None;
        s.draining = false;
        s.relayed = open.via == Via::FarEdge;
        // Its edge has numbers of its own for what this engine numbers.
        if open.via == Via::Nobody {
            s.last_frame = s.last_frame.max(open.seen);
        }
        s.report_commits = open.report_commits;
        // Nobody listens any more to what the stream before asked.
        self.answers.retain(|(n, _), _| *n != opened.session);
        self.keep_only(opened, open);
    }

    /// A resume keeps what both sides have; all else is ready at once, uncounted.
    fn keep_only(&mut self, opened: &Opened, open: &Open) {
        let mut kept = BTreeSet::new();
        let mut dropped = Vec::new();
        for (tp, part) in &self.parts {
            for (offset, slot) in &part.slots {
                let State::Leased { session, frame, .. } = slot.state else { continue };
                // What came in a frame that the client did not see, it cannot have.
                let seen = open.via != Via::Nobody || open.seen == 0 || frame <= open.seen;
                if session != opened.session {
                    continue;
                }
                if seen && covers(&open.holding, tp, part.epoch, *offset) {
                    kept.insert((tp.clone(), *offset));
                } else {
                    dropped.push((tp.clone(), part.epoch.0, *offset));
                }
            }
        }
        let mut answered = BTreeSet::new();
        for lease in &opened.held {
            for range in &lease.offsets {
                // A range stands for the leases in it: what is not a lease of this session in the engine's eyes
                // cannot be told from here, so only kept ones are looked up.
                answered.extend(
                    kept.iter()
                        .filter(|(tp, o)| *tp == lease.partition && (range.first..=range.last).contains(o))
                        .cloned(),
                );
                if (range.first..=range.last).all(|o| !kept.contains(&(lease.partition.clone(), o))) {
                    self.violations.push(format!("resume answered {lease:?} as held, which is not"));
                }
            }
        }
        if answered != kept {
            self.violations.push(format!("resume: held {answered:?}, should be {kept:?}"));
        }
        let now = self.now;
        for (tp, epoch, offset) in dropped {
            let part = self.parts.get_mut(&tp).expect("it was iterated over");
            part.slots.get_mut(&offset).expect("likewise").state = State::Idle { not_before: 0, ready_by: now };
            self.take_back(opened.session, &tp, epoch, offset, None);
        }
    }

    pub(crate) fn window(&mut self, session: SessionId, window: Window) {
        if let Some(s) = self.sessions.get_mut(&session) {
            s.window = window;
            s.smallest_window = s.smallest_window.min(u64::from(window.max_records));
        }
    }

    pub(crate) fn close(&mut self, session: SessionId, end: End) {
        let until = self.now + self.policy.resume_timeout_ms;
        let live = self.sessions.get(&session).is_some_and(|s| s.broken.is_none());
        if end == End::Broken && live {
            self.note_break(session);
        }
        let Some(s) = self.sessions.get_mut(&session) else { return };
        if matches!(end, End::Broken | End::EdgeGone) && s.consumer_id.is_some() {
            s.broken.get_or_insert(until);
            // Whatever it was owed, it cannot hear any more.
            self.notices.retain(|n, _| n.session != session);
            self.answers.retain(|(n, _), _| *n != session);
            return;
        }
        if end == End::Broken {
            self.die(session);
        }
        self.bury(session);
    }

    pub(crate) fn bury(&mut self, session: SessionId) {
        let now = self.now;
        for part in self.parts.values_mut() {
            for slot in part.slots.values_mut() {
                if matches!(slot.state, State::Leased { session: s, .. } if s == session) {
                    slot.state = State::Idle { not_before: 0, ready_by: now };
                }
            }
        }
        self.sessions.remove(&session);
        self.notices.retain(|n, _| n.session != session);
        self.answers.retain(|(s, _), _| *s != session);
        self.loose.retain(|(s, _)| *s != session);
    }

    // === time ===

    pub(crate) fn tick(&mut self) {
        self.ticked = self.now;
        self.expire();
        let now = self.now;
        let over = |s: &Sess| s.broken.is_some_and(|until| until <= now);
        let gone: Vec<_> = self.sessions.iter().filter(|(_, s)| over(s)).map(|(n, _)| *n).collect();
        for session in gone {
            self.die(session);
            self.bury(session);
            self.gone.insert(session);
        }
        self.decide_deaths(None);
        let all: Vec<_> = self.parts.keys().cloned().collect();
        self.fence_overdue(&all);
    }

    fn expire(&mut self) {
        let now = self.now;
        let mut expired = Vec::new();
        for (tp, part) in &self.parts {
            for (offset, slot) in &part.slots {
                // Where the grace of a revoke ended before it, it was fenced then.
                if let State::Leased { session, deadline, .. } = slot.state
                    && deadline <= now
                    && part.revoking.is_none_or(|grace| grace > deadline)
                {
                    expired.push((tp.clone(), part.epoch.0, *offset, session));
                }
            }
        }
        for (tp, epoch, offset, session) in expired {
            // A session that is gone at the same tick: whether its leases expired first is the engine's choice.
            let leaving = self.sessions.get(&session).is_some_and(|s| s.broken.is_some_and(|until| until <= now));
            self.failed(&tp, offset, None, leaving);
            if let Some(s) = self.sessions.get_mut(&session) {
                s.unresponsive = true;
            }
            self.take_back(session, &tp, epoch, offset, Some(RevokeReason::Expired));
        }
    }
}

/// Whether some lease in `leases` names this record.
pub(crate) fn covers(leases: &[Leases], tp: &TopicPartition, epoch: Epoch, offset: i64) -> bool {
    let here = |l: &&Leases| l.partition == *tp && l.epoch == epoch;
    leases.iter().filter(here).any(|l| l.offsets.iter().any(|r| (r.first..=r.last).contains(&offset)))
}
