//! The invariants of the design as code. Cheap ones on the hot path: a panic in debug builds, a count in release
//! builds. `Engine::check` looks at all that can be seen from inside, and is for tests.
//!
//! | invariant | where it is looked at |
//! | --- | --- |
//! | 1 no commit passes a record that is not done | at each commit; `check` |
//! | 2 one live lease for a record in an epoch | at each end of a lease; `check` |
//! | 3 done stays done | by construction: only what is ready is dealt, and done clears that; from outside, by the tests' model |
//! | 4 no deal exceeds the window | at each frame; `check` |
//! | 5 nothing is forgotten | `check`: every record is counted once, and what is ready is offered |
//! | 6 a lane has at most one lease, in offset order | at each deal; `check` |
//! | 7 memory is bounded | `check`: the sums that the limits look at |
//! | 8 `Committed` only after Kafka said so | by construction: said in `commit_result` only; the tests' model |
//! | 9 only failures count as attempts | by construction: `leases.rs` counts in one place; the tests' model |
//! | 10 a settlement of what is not held changes nothing | by construction: ranges look at own leases only; the model |

use crate::engine::Engine;
use crate::ledger::State;
use crate::partition::{Partition, Pid};
use crate::session::{Session, offsets_of};
use crate::timers::Wait;

/// An invariant is broken: panics in debug builds, counts 1 in release builds.
#[track_caller]
pub(crate) fn broken(what: &str) -> u64 {
    debug_assert!(false, "invariant broken: {what}");
    1
}

/// Invariant 4: no deal exceeds the window, but for one record alone.
#[track_caller]
pub(crate) fn window_kept(session: &Session, held: u64, held_bytes: u64) -> u64 {
    let records = held <= u64::from(session.window.max_records);
    let bytes = session.window.max_bytes == 0 || held == 1 || held_bytes <= session.window.max_bytes;
    if records && bytes { 0 } else { broken("4: a deal exceeds the window") }
}

/// Invariant 6: no record is dealt while an earlier one of its lane is not done.
#[track_caller]
pub(crate) fn turn_kept(has_turn: bool) -> u64 {
    if has_turn { 0 } else { broken("6: a record is dealt before its turn") }
}

impl Engine {
    /// Looks at everything that can be seen from inside: counters against what they count, leases against the ledger,
    /// windows, limits. Costs as much as there is. For tests.
    ///
    /// # Errors
    /// The first invariant found broken, by its number.
    pub fn check(&self) -> Result<(), String> {
        self.check_ledgers()?;
        self.check_sessions()?;
        self.check_leases()
    }

    fn check_ledgers(&self) -> Result<(), String> {
        let mut sums = (0, 0, 0);
        for (pid, partition) in self.partitions.iter() {
            let ledger = &partition.ledger;
            let counted = (ledger.ready(), ledger.leased(), ledger.not_done(), ledger.bytes());
            if ledger.recount() != counted {
                return Err(format!("5: {}: counted {counted:?}, found {:?}", partition.name, ledger.recount()));
            }
            if ledger.last_received().is_some_and(|last| last >= ledger.next()) {
                return Err(format!("5: {}: next is not above what was received", partition.name));
            }
            ledger.check_lanes().map_err(|what| format!("6: {}: {what}", partition.name))?;
            if let Some(committed) = partition.commit.acknowledged
                && committed.0 > ledger.frontier()
            {
                return Err(format!("1: {}: committed {} above the frontier", partition.name, committed.0));
            }
            if !partition.fenced {
                self.check_waiting(pid, partition)?;
            }
            sums.0 += if partition.revoking.is_some() { 0 } else { ledger.ready() };
            sums.1 += ledger.leased();
            sums.2 += ledger.bytes();
        }
        let engine = (self.sums.ready, self.sums.leased, self.sums.bytes);
        if sums == engine { Ok(()) } else { Err(format!("7: sums {engine:?}, partitions have {sums:?}")) }
    }

    /// Invariant 5: each record that waits is waited for, and each dead letter is on its way or has a time.
    fn check_waiting(&self, pid: Pid, partition: &Partition) -> Result<(), String> {
        let of = |wait| self.timers.waits_of(pid).filter(move |w| w.wait == wait).count();
        let (letters, oversize) = (&partition.letters, &partition.oversize);
        let suspects = &partition.ledger.suspects;
        let others = letters.len() + oversize.len() + suspects.ready().len() + suspects.undecided().len();
        if of(Wait::Retry) + others != partition.ledger.waiting() as usize {
            return Err(format!("5: {}: waiting records that nothing waits for", partition.name));
        }
        let is_waiting =
            |offset: i64| partition.ledger.find(offset).is_some_and(|at| partition.ledger.state(at) == State::Waiting);
        if !suspects.ready().iter().all(|offset| is_waiting(*offset) && suspects.is_suspect(*offset)) {
            return Err(format!("5: {}: a suspect that is none, or does not wait", partition.name));
        }
        if !suspects.undecided().keys().all(|offset| is_waiting(*offset)) {
            return Err(format!("5: {}: an undecided record that does not wait", partition.name));
        }
        if !letters.offsets().chain(oversize.keys().copied()).all(is_waiting) {
            return Err(format!("9: {}: a record given up that does not wait", partition.name));
        }
        if !letters.is_sound() || letters.at_work() + of(Wait::Letter) != letters.len() {
            return Err(format!("9: {}: a dead letter that is not on its way", partition.name));
        }
        Ok(())
    }

    fn check_sessions(&self) -> Result<(), String> {
        for (id, session) in &self.sessions {
            let held: u64 = session.leases.values().map(|lease| u64::from(lease.mask.count_ones())).sum();
            if held != session.held {
                return Err(format!("4: {id:?}: counts {} leases, has {held}", session.held));
            }
            let suspects = session.leases.values().filter(|lease| lease.suspect).count();
            if suspects > 1 || suspects != session.suspects as usize {
                return Err(format!("9: {id:?}: counts {} suspects, holds {suspects}", session.suspects));
            }
            if session.counted != (session.held > 0 && session.broken_until.is_none()) {
                return Err(format!("9: {id:?}: not among those with leases as it should be"));
            }
            let mut bytes = 0;
            for (key, lease) in &session.leases {
                if self.timers.expiries.get(&(lease.expires, key.id)) != Some(&(*id, *key)) {
                    return Err(format!("5: {id:?}: a lease without an expiry"));
                }
                let Some(partition) = self.partitions.get(key.pid) else {
                    return Err(format!("2: {id:?}: a lease of a partition that is gone"));
                };
                for offset in offsets_of(key.base, lease.mask) {
                    let at = partition.ledger.find(offset);
                    let slot = at.and_then(|at| partition.ledger.slot(at));
                    bytes += slot.map_or(0, |slot| slot.bytes());
                }
            }
            if bytes != session.held_bytes {
                return Err(format!("4: {id:?}: counts {} bytes, holds {bytes}", session.held_bytes));
            }
            if session.in_ring != self.rings.contains(*id, session.relayed) || (!session.in_ring && session.free() > 0)
            {
                return Err(format!("5: {id:?}: not in the ring as it should be"));
            }
        }
        let holders = self.sessions.values().filter(|session| session.counted).count() as u64;
        if holders != self.deaths.holders() {
            return Err(format!("9: counts {} sessions with leases, has {holders}", self.deaths.holders()));
        }
        let entries: usize = self.sessions.values().map(|s| s.leases.len()).sum();
        if entries == self.timers.expiries.len() { Ok(()) } else { Err("5: expiries without leases".into()) }
    }

    /// Invariant 2: each leased record has one lease, and each lease a leased record.
    fn check_leases(&self) -> Result<(), String> {
        for (pid, partition) in self.partitions.iter() {
            let mut leases: Vec<i64> = Vec::new();
            for session in self.sessions.values() {
                let own = session.leases_in(pid, 0, i64::MAX);
                leases.extend(own.flat_map(|(key, _, bits)| offsets_of(key.base, bits)));
            }
            leases.sort_unstable();
            if leases != partition.ledger.leased_offsets() {
                return Err(format!("2: {}: leases and leased records differ", partition.name));
            }
            let has_suspects = partition.ledger.ready_suspects() > 0 && partition.revoking.is_none();
            if has_suspects != self.suspects_from.contains(&pid) {
                return Err(format!("5: {}: suspects that nobody deals", partition.name));
            }
            let dealable = partition.ledger.ready() > 0 && partition.revoking.is_none();
            if dealable && !self.deal_from.contains(&pid) {
                return Err(format!("5: {}: ready records that nobody deals", partition.name));
            }
        }
        Ok(())
    }
}
