//! Requests whose answer waits for Kafka: one answer each, when every partition has given its part.

use std::collections::HashMap;

use super::{Durable, Wait, Want, Wanted};
use crate::commit::Flight;
use crate::engine::Engine;
use crate::io::{Output, Ticket};
use crate::leases::How;
use crate::ledger::State;
use crate::partition::Pid;
use crate::types::{Epoch, Leases, Millis, OffsetRange, RejectReason, Rejection, SessionId, TopicPartition};
use crate::upkeep::push_offset;

/// Offsets of a session that may wait for Kafka at once; beyond it its durable settlements are INVALID and change nothing.
pub(crate) const DURABLE_WAITING_MAX: u64 = 65_536;

/// Names a request that waits.
pub(super) type RequestId = u64;

/// Who is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asker {
    Stream { session: SessionId, request_id: u64 },
    Unary { session: SessionId, ticket: Ticket },
}

/// All requests of an engine that wait.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    last: RequestId,
    open: HashMap<RequestId, Request>,
}

#[derive(Debug)]
struct Request {
    asker: Asker,
    rejections: Vec<Rejection>,
    /// Partitions that owe their part.
    parts: usize,
    offsets: u64,
}

// === impl Engine ===

impl Engine {
    /// What must be stored of a record that was just settled in this way, or had been; `None`: Kafka has it, or there is
    /// nothing to store.
    pub(crate) fn wanted(&self, pid: Pid, offset: i64, how: How<'_>) -> Option<Wanted> {
        let partition = self.partitions.get(pid)?;
        if !matches!(how, How::Ack | How::Retry { .. } | How::DeadLetter { .. })
            || partition.commit.acknowledged.is_some_and(|committed| offset < committed.0)
            || partition.durable.is_told(offset)
        {
            return None;
        }
        let at = partition.ledger.find(offset).filter(|at| partition.ledger.state(*at) != State::Done);
        let dead_letter = matches!(how, How::DeadLetter { .. }) && partition.letters.contains(offset);
        let want =
            at.filter(|_| !dead_letter).map_or(Want::Done, |_| Want::Attempts(partition.ledger.attempts(offset)));
        Some(Wanted { pid, offset, want })
    }

    /// Whether this session has too much waiting to be given more.
    pub(crate) fn is_durable_flood(&self, session: SessionId) -> bool {
        self.sessions.get(&session).is_some_and(|s| s.durable_waiting >= DURABLE_WAITING_MAX)
    }

    /// The answer waits for these. `touch` their partitions afterwards.
    pub(crate) fn wait_for_kafka(
        &mut self,
        now: Millis,
        asker: Asker,
        rejections: Vec<Rejection>,
        mut wanted: Vec<Wanted>,
    ) {
        wanted.sort_unstable_by_key(|w| (w.pid, w.offset));
        self.requests.last += 1;
        let request = self.requests.last;
        let offsets = wanted.len() as u64;
        let mut parts = 0;
        for of_one in wanted.chunk_by(|a, b| a.pid == b.pid) {
            let Some(partition) = self.partitions.get_mut(of_one[0].pid) else { continue };
            let mut wait = Wait { request, done: Vec::new(), attempts: Vec::new() };
            for Wanted { offset, want, .. } in of_one {
                match want {
                    Want::Done if wait.done.last().is_some_and(|last| last.last == *offset) => {}
                    Want::Done => push_offset(&mut wait.done, *offset),
                    Want::Attempts(count) => wait.attempts.push((*offset, *count)),
                }
            }
            partition.durable.waits.push(wait);
            partition.commit.change(now, 0);
            partition.commit.hurry();
            parts += 1;
        }
        if let Some(session) = self.sessions.get_mut(&asker.session()) {
            session.durable_waiting += offsets;
        }
        self.requests.open.insert(request, Request { asker, rejections, parts, offsets });
    }

    /// Kafka acknowledged a commit of the partition.
    pub(crate) fn answer_stored(&mut self, pid: Pid, flight: &Flight) {
        let Some(partition) = self.partitions.get_mut(pid).filter(|p| p.durable.is_waiting()) else { return };
        let met = partition.durable.stored(flight);
        for request in met {
            self.end_part(request, None);
        }
    }

    /// The partition goes: what is not known to be stored may come again.
    pub(crate) fn answer_stale(&mut self, name: &TopicPartition, epoch: Epoch, durable: Durable) {
        for wait in durable.waits {
            let mut offsets = wait.done;
            offsets.extend(wait.attempts.iter().map(|(offset, _)| OffsetRange::one(*offset)));
            offsets.sort_unstable_by_key(|r| r.first);
            let leases = Leases { partition: name.clone(), epoch, offsets };
            self.end_part(wait.request, Some(Rejection { leases, reason: RejectReason::StaleEpoch }));
        }
    }

    fn end_part(&mut self, id: RequestId, rejection: Option<Rejection>) {
        let Some(request) = self.requests.open.get_mut(&id) else { return };
        request.rejections.extend(rejection);
        request.parts -= 1;
        if request.parts > 0 {
            return;
        }
        let Some(request) = self.requests.open.remove(&id) else { return };
        self.forgotten.durable_answered += 1;
        if let Some(session) = self.sessions.get_mut(&request.asker.session()) {
            session.durable_waiting = session.durable_waiting.saturating_sub(request.offsets);
        }
        self.count_rejected(&request.rejections);
        let rejections = request.rejections;
        self.outputs.push_back(match request.asker {
            Asker::Stream { session, request_id } => Output::Settled { session, request_id, rejections },
            Asker::Unary { ticket, .. } => Output::SettledUnary { ticket, rejections },
        });
    }

    /// The stream of this session is over: nobody listens to what it asked.
    pub(crate) fn forget_requests(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id).filter(|s| s.durable_waiting > 0) else { return };
        self.requests.open.retain(|_, request| {
            let is_its = matches!(request.asker, Asker::Stream { session, .. } if session == id);
            if is_its {
                session.durable_waiting = session.durable_waiting.saturating_sub(request.offsets);
            }
            !is_its
        });
        for pid in self.partitions.pids() {
            if let Some(partition) = self.partitions.get_mut(pid).filter(|p| p.durable.is_waiting()) {
                partition.durable.keep_waits(|request| self.requests.open.contains_key(&request));
            }
        }
    }
}

impl Asker {
    fn session(self) -> SessionId {
        match self {
            Self::Stream { session, .. } | Self::Unary { session, .. } => session,
        }
    }
}
