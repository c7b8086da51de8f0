//! Sessions come, come back, and go.

use std::collections::{BTreeMap, BTreeSet};

use crate::engine::Engine;
use crate::io::{Open, Opened, Resumed, Via};
use crate::leases::How;
use crate::pace::Pace;
use crate::partition::Pid;
use crate::session::{LeaseKey, Past, Session, offsets_of};
use crate::types::{End, Leases, Millis, SessionId};
use crate::upkeep::ranges_of;

/// What gRPC libraries take when nobody sets it.
const FRAME_BYTES_DEFAULT: u32 = 4 << 20;

/// Above this a client's word for what it has seen is not believed: the numbering must be able to go on.
const SEEN_MAX: u64 = u64::MAX / 2;

impl Engine {
    pub(crate) fn open_session(&mut self, now: Millis, open: Open) -> Opened {
        let known = open.consumer_id.as_ref().and_then(|consumer| self.by_consumer.get(consumer)).copied();
        let (id, resumed) = match known {
            None => (self.new_session(&open), Resumed::New),
            Some(id) => (id, self.resume(now, id, &open)),
        };
        let ack_timeout_ms =
            open.ack_timeout_ms.map_or(self.policy.ack_timeout_ms, |ms| ms.min(self.policy.ack_timeout_ms));
        if let Some(session) = self.sessions.get_mut(&id) {
            // With an edge in between a consumer counts the frames that were made of those of all owners.
            if open.via == Via::Nobody {
                session.sequence = session.sequence.max(open.seen.min(SEEN_MAX));
            }
            if std::mem::take(&mut session.in_ring) {
                self.rings.remove(id, session.relayed);
            }
            session.relayed = open.via == Via::FarEdge;
            session.ack_timeout_ms = ack_timeout_ms;
            let limit = if open.max_frame_bytes == 0 { FRAME_BYTES_DEFAULT } else { open.max_frame_bytes };
            session.max_frame_bytes = limit as usize;
            session.report_commits = open.report_commits;
            session.draining = false;
            session.set_window(open.window.unwrap_or_default());
            session.window_is_part = false;
            self.deaths.count(session);
        }
        self.mind_frame_limits(now);
        self.offer(id);
        Opened { session: id, resumed, held: self.held_by(id), ack_timeout_ms }
    }

    fn new_session(&mut self, open: &Open) -> SessionId {
        self.session_ids += 1;
        let id = SessionId(self.session_ids);
        self.sessions.insert(id, Session::new(open.consumer_id.clone()));
        if let Some(consumer) = &open.consumer_id {
            self.by_consumer.insert(consumer.clone(), id);
        }
        id
    }

    /// Keeps what both sides have; the rest is ready again, and no attempt.
    fn resume(&mut self, now: Millis, id: SessionId, open: &Open) -> Resumed {
        self.forget_requests(id);
        let Some(session) = self.sessions.get_mut(&id) else { return Resumed::New };
        let until = session.broken_until.take();
        if let Some(until) = until {
            self.timers.resumes.remove(&(until, id));
        }
        let resumed = if until.is_some() { Resumed::AfterBreak } else { Resumed::Superseding };
        // It knows nothing of the frames that it was sent: another process under the same name.
        if open.seen == 0 && open.holding.is_empty() && session.sequence > 0 {
            if until.is_none() {
                self.note_break(now, id);
            }
            self.die(now, id);
            return resumed;
        }
        session.broke = None;
        let mut kept: BTreeMap<LeaseKey, u128> = BTreeMap::new();
        for leases in &open.holding {
            let Some(pid) = self.partitions.live(&leases.partition, leases.epoch) else { continue };
            for range in &leases.offsets {
                for (key, lease, bits) in session.leases_in(pid, range.first.max(0), range.last) {
                    if open.via != Via::Nobody || open.seen == 0 || lease.frame <= open.seen {
                        *kept.entry(key).or_default() |= bits;
                    }
                }
            }
        }
        let gone = |(key, lease): (&LeaseKey, &crate::session::Lease)| {
            let bits = lease.mask & !kept.get(key).copied().unwrap_or_default();
            (bits != 0).then_some((*key, bits))
        };
        let gone: Vec<(LeaseKey, u128)> = session.leases.iter().filter_map(gone).collect();
        let mut touched: BTreeSet<Pid> = BTreeSet::new();
        for (key, bits) in gone {
            self.end_leases(now, id, key, bits, How::TakeBack);
            touched.insert(key.pid);
        }
        for pid in touched {
            self.touch(now, pid);
        }
        resumed
    }

    fn held_by(&self, id: SessionId) -> Vec<Leases> {
        let Some(session) = self.sessions.get(&id) else { return Vec::new() };
        let mut offsets: BTreeMap<Pid, Vec<i64>> = BTreeMap::new();
        for (key, lease) in &session.leases {
            offsets.entry(key.pid).or_default().extend(offsets_of(key.base, lease.mask));
        }
        let named = offsets.into_iter().filter_map(|(pid, offsets)| {
            let partition = self.partitions.get(pid)?;
            let (name, epoch) = (partition.name.clone(), partition.epoch);
            Some(Leases { partition: name, epoch, offsets: ranges_of(offsets) })
        });
        named.collect()
    }

    pub(crate) fn close_session(&mut self, now: Millis, id: SessionId, end: End) {
        self.forget_requests(id);
        if end == End::Broken && self.sessions.get(&id).is_some_and(|session| session.broken_until.is_none()) {
            self.note_break(now, id);
        }
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if matches!(end, End::Broken | End::EdgeGone) && session.consumer_id.is_some() {
            if session.broken_until.is_none() {
                let until = now.plus(self.policy.resume_timeout_ms);
                session.broken_until = Some(until);
                self.deaths.count(session);
                self.timers.resumes.insert((until, id));
            }
            return;
        }
        if end == End::Broken {
            self.die(now, id);
        }
        self.end_session(now, id);
    }

    /// All of a session's state dies here, whichever way it ended.
    pub(crate) fn end_session(&mut self, now: Millis, id: SessionId) {
        self.end_all_leases(now, id, How::Return);
        let Some(session) = self.sessions.remove(&id) else { return };
        self.deaths.forget(&session);
        if let Some(until) = session.broken_until {
            self.timers.resumes.remove(&(until, id));
        }
        if let Some(consumer) = &session.consumer_id {
            self.by_consumer.remove(consumer);
        }
        if session.in_ring {
            self.rings.remove(id, session.relayed);
        }
        self.mind_frame_limits(now);
    }
}

impl Session {
    fn new(consumer_id: Option<String>) -> Self {
        Self {
            consumer_id,
            relayed: false,
            window: Default::default(),
            window_is_part: false,
            held: 0,
            held_bytes: 0,
            ack_timeout_ms: 0,
            max_frame_bytes: 0,
            report_commits: false,
            sequence: 0,
            broken_until: None,
            draining: false,
            unresponsive: false,
            in_ring: false,
            pace: Pace::new(),
            leases: BTreeMap::new(),
            past: Past::default(),
            window_max: 0,
            settled_in: BTreeSet::new(),
            durable_waiting: 0,
            suspects: 0,
            counted: false,
            broke: None,
        }
    }
}
