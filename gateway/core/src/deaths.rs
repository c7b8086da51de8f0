//! Sessions that break, and which of them died: a record that kills its workers must be found, and a balancer that cuts all
//! streams must mark nobody.
//!
//! A session that breaks while it holds leases, and does not come back, has died. It died **alone** unless, within
//! `together_ms` of its break, more than half of the sessions with leases broke too (at least two): then nobody is to blame.
//! Those with leases are those that had some when the first of these broke: who comes back, or gets what they left, in the
//! middle of it makes a cut no smaller, and who has nothing left to do makes a second death no larger.
//! Records of a session that dies are marked at once, and the mark is taken back when others turn out to have gone with it. A
//! record with `suspect_marks` marks is a suspect: dealt in a frame of its own, one to a session, and a further death of its
//! holder is a failure. Until a death is decided its suspects wait; so do its other records where the deaths of this moment are
//! common ones, or one more would make them so: dealt on at once, a record that kills would take one session after the other
//! with it, and look like a balancer.

use std::collections::{BTreeMap, VecDeque};

use crate::engine::Engine;
use crate::leases::How;
use crate::ledger::State;
use crate::letters::Hand;
use crate::partition::Pid;
use crate::session::{Session, offsets_of};
use crate::types::{Epoch, Millis, SessionId};

/// What a dead letter says of a record whose sessions died, when nobody else said anything.
const REASON: &str = "the session that held it died";

/// Names a break.
pub(crate) type BreakId = u64;

#[derive(Debug)]
struct Break {
    at: Millis,
    /// Sessions that had leases just then, this one among them.
    holders: u64,
    together: bool,
}

/// A session that died, and what it held.
#[derive(Debug)]
struct Death {
    of: BreakId,
    records: Vec<Held>,
}

/// A record that a dead session held.
#[derive(Debug, Clone, Copy)]
struct Held {
    pid: Pid,
    epoch: Epoch,
    offset: i64,
    /// It was dealt as a suspect.
    suspect: bool,
}

/// What is known of a break.
#[derive(Debug, Clone, Copy)]
struct Verdict {
    /// So far.
    together: bool,
    /// From then on nobody can join it any more.
    final_at: Millis,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Deaths {
    /// Ascending. Kept as long as somebody may ask.
    breaks: VecDeque<Break>,
    /// Number of the first of `breaks`.
    first: BreakId,
    /// By the moment at which it is decided.
    open: BTreeMap<(Millis, BreakId), Death>,
    /// Connected sessions with leases.
    holders: u64,
}

// === impl Deaths ===

impl Deaths {
    /// To be called after each change of what a session holds, or of its connection.
    pub(crate) fn count(&mut self, session: &mut Session) {
        let holds = session.held > 0 && session.broken_until.is_none();
        if holds != session.counted {
            session.counted = holds;
            if holds { self.holders += 1 } else { self.holders -= 1 }
        }
    }

    /// The session is gone.
    pub(crate) fn forget(&mut self, session: &Session) {
        self.holders -= u64::from(session.counted);
    }

    pub(crate) fn holders(&self) -> u64 {
        self.holders
    }

    pub(crate) fn next(&self) -> Option<Millis> {
        self.open.first_key_value().map(|((until, _), _)| *until)
    }

    /// How many breaks of the last `together_ms`, and of `more` just now, are common ones: more than half of those who had
    /// leases when the first of them broke, and at least two. 0: they are not.
    fn common(&self, now: Millis, together_ms: u64, more: u64) -> usize {
        let from = self.breaks.partition_point(|b| b.at.plus(together_ms) < now);
        let is_common = |(i, first): (usize, &Break)| {
            let count = (self.breaks.len() - i) as u64 + more;
            count >= 2 && count * 2 > first.holders
        };
        let first = self.breaks.iter().enumerate().skip(from).find(|one| is_common(*one));
        first.map_or(0, |(i, _)| self.breaks.len() - i)
    }

    /// A session with leases breaks; it is not among the holders any more.
    fn note(&mut self, now: Millis, together_ms: u64, kept_ms: u64) -> BreakId {
        while self.breaks.front().is_some_and(|b| b.at.plus(kept_ms) < now) {
            self.breaks.pop_front();
            self.first += 1;
        }
        self.breaks.push_back(Break { at: now, holders: self.holders + 1, together: false });
        let common = self.common(now, together_ms, 0);
        self.breaks.iter_mut().rev().take(common).for_each(|one| one.together = true);
        self.first + self.breaks.len() as u64 - 1
    }

    /// A break that is forgotten was alone, or somebody would have asked before.
    fn verdict(&self, id: BreakId, together_ms: u64) -> Verdict {
        let one = id.checked_sub(self.first).and_then(|i| self.breaks.get(i as usize));
        one.map_or(Verdict { together: false, final_at: Millis(0) }, |b| Verdict {
            together: b.together,
            final_at: b.at.plus(together_ms + 1),
        })
    }

    /// What is decided by now.
    fn pop(&mut self, now: Millis) -> Option<Death> {
        let first = self.open.first_entry().filter(|entry| entry.key().0 <= now)?;
        Some(first.remove())
    }
}

// === impl Engine ===

impl Engine {
    /// The session's stream broke: remembered if it held leases, and if nobody had told it to end.
    pub(crate) fn note_break(&mut self, now: Millis, id: SessionId) {
        let (together_ms, kept_ms) = (self.policy.together_ms, self.policy.together_ms + self.policy.resume_timeout_ms);
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if session.held == 0 || session.draining {
            return;
        }
        if std::mem::take(&mut session.counted) {
            self.deaths.holders -= 1;
        }
        session.broke = Some(self.deaths.note(now, together_ms, 2 * kept_ms));
    }

    /// The session is dead: its leases return, and its records are marked unless it did not die alone.
    pub(crate) fn die(&mut self, now: Millis, id: SessionId) {
        let broke = self.sessions.get_mut(&id).and_then(|session| session.broke.take());
        let Some(of) = broke else { return self.end_all_leases(now, id, How::Return) };
        let together_ms = self.policy.together_ms;
        let Verdict { together, final_at } = self.deaths.verdict(of, together_ms);
        let is_final = final_at <= now;
        let near = together || self.deaths.common(now, together_ms, 1) > 0;
        let death = Death { of, records: self.held_records(id) };
        self.end_all_leases(now, id, How::Die { of, hold: is_final || near });
        if is_final {
            self.decide(now, &death);
        } else {
            self.deaths.open.insert((final_at, of), death);
        }
    }

    fn held_records(&self, id: SessionId) -> Vec<Held> {
        let Some(session) = self.sessions.get(&id) else { return Vec::new() };
        let of = |(key, lease): (&crate::session::LeaseKey, &crate::session::Lease)| {
            let epoch = self.partitions.get(key.pid).map(|p| p.epoch);
            let (pid, suspect) = (key.pid, lease.suspect);
            let held = move |offset| epoch.map(|epoch| Held { pid, epoch, offset, suspect });
            offsets_of(key.base, lease.mask).filter_map(held)
        };
        session.leases.iter().flat_map(of).collect()
    }

    /// Time went on: who has not been joined by others died alone.
    pub(crate) fn decide_deaths(&mut self, now: Millis) {
        while let Some(death) = self.deaths.pop(now) {
            self.decide(now, &death);
        }
    }

    fn decide(&mut self, now: Millis, death: &Death) {
        let alone = !self.deaths.verdict(death.of, self.policy.together_ms).together;
        if alone {
            self.forgotten.sessions_died += 1;
        } else {
            self.forgotten.sessions_broke_together += 1;
        }
        let mut touched: Vec<Pid> = death.records.iter().map(|held| held.pid).collect();
        touched.dedup();
        for held in &death.records {
            self.decide_one(now, death.of, held, alone);
        }
        for pid in touched {
            self.touch(now, pid);
        }
    }

    fn decide_one(&mut self, now: Millis, of: BreakId, held: &Held, alone: bool) {
        let Held { pid, epoch, offset, suspect } = *held;
        let Some(partition) = self.partitions.get_mut(pid).filter(|p| p.epoch == epoch && !p.fenced) else { return };
        let was_undecided = partition.ledger.suspects.decide(offset, of);
        // One that waited as a suspect, and is none, is as any other again.
        let is_freed = !alone && !suspect && partition.ledger.suspects.unmark(offset);
        let at = partition.ledger.find(offset).filter(|at| partition.ledger.state(*at) == State::Waiting);
        let Some(at) = at else { return };
        if alone && suspect && was_undecided {
            let (rng, timers) = (&mut self.rng, &mut self.timers);
            let mut hand = Hand { now, policy: &self.policy, rng, timers, pid };
            let is_silent = partition.ledger.failures.get(offset).is_none_or(|failure| failure.reason.is_none());
            hand.fail(partition, at, offset, None, is_silent.then_some(REASON));
        } else if was_undecided || is_freed {
            partition.ledger.make_ready(at);
        }
    }
}
