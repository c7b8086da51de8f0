//! The engine of one subscription.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use crate::deaths::Deaths;
use crate::durable::{Asker, Requests};
use crate::io::{Answer, Assignment, CommitError, LetterCause, LetterError, Open, Opened, Output, Restored, Ticket};
use crate::letters::Hand;
use crate::pace::Pace;
use crate::partition::{Counted, Partition, Partitions, Pid};
use crate::policy::{Ordering, Policy};
use crate::ring::Rings;
use crate::rng::Rng;
use crate::run::Run;
use crate::session::{LeaseKey, Session};
use crate::timers::Timers;
use crate::types::{
    End, Epoch, Millis, NextOffset, Record, RevokeReason, SessionId, Settlements, TopicPartition, Window,
};
use crate::view::Stats;

/// The engine of one subscription on this node. See the crate's page for how to drive it.
#[derive(Debug)]
pub struct Engine {
    pub(crate) policy: Policy,
    pub(crate) rng: Rng,
    pub(crate) partitions: Partitions,
    pub(crate) sessions: BTreeMap<SessionId, Session>,
    pub(crate) by_consumer: HashMap<String, SessionId>,
    pub(crate) timers: Timers,
    pub(crate) outputs: VecDeque<Output>,
    /// Sessions that may have free window, the next to be dealt to first.
    pub(crate) rings: Rings,
    /// Partitions with something ready, the next to be dealt from first.
    pub(crate) deal_from: VecDeque<Pid>,
    /// Partitions with suspects that may be dealt.
    pub(crate) suspects_from: BTreeSet<Pid>,
    /// Sessions that broke, and what is not decided about them.
    pub(crate) deaths: Deaths,
    /// Something changed since dealing last found nothing to do.
    pub(crate) deal_again: bool,
    pub(crate) paused: bool,
    /// The subscription's byte budget is used up.
    pub(crate) over_budget: bool,
    /// Enough is ready for when somebody has room again.
    pub(crate) ahead: bool,
    /// For one of them the whole fetch handle was told to rest.
    pub(crate) resting: bool,
    pub(crate) sums: Sums,
    /// Of all sessions together.
    pub(crate) pace: Pace,
    pub(crate) frame_bytes_most: usize,
    pub(crate) session_ids: u64,
    pub(crate) lease_ids: u64,
    pub(crate) tickets: u64,
    /// Durable settlements that wait for Kafka.
    pub(crate) requests: Requests,
    /// Counters of partitions that are gone, and what belongs to none.
    pub(crate) forgotten: Stats,
    pub(crate) broken_count: u64,
    /// Entries of ended leases that each session may remember.
    pub(crate) remembered_share: usize,
    /// Kept for its room.
    pub(crate) scratch: Vec<(LeaseKey, u128)>,
    /// Likewise.
    pub(crate) touched: Vec<Pid>,
}

/// Sums over the partitions; `ready` only of those that are dealt from.
#[derive(Debug, Default)]
pub(crate) struct Sums {
    pub(crate) ready: u64,
    /// Suspects that may be dealt.
    pub(crate) suspects: u64,
    pub(crate) leased: u64,
    /// Ready, leased, or waiting.
    pub(crate) not_done: u64,
    pub(crate) bytes: u64,
    /// Partitions that are dealt from and have nothing ready.
    pub(crate) without_ready: u64,
}

impl Sums {
    /// Brings the sums up to what the partition has now.
    pub(crate) fn count(&mut self, partition: &mut Partition) {
        let dealt_from = u64::from(partition.revoking.is_none());
        let (ready, suspects) = (partition.ledger.ready() * dealt_from, partition.ledger.ready_suspects() * dealt_from);
        let ledger = &partition.ledger;
        let (leased, not_done, bytes) = (ledger.leased(), ledger.not_done(), ledger.bytes());
        let without_ready = u64::from(dealt_from == 1 && ready == 0);
        let now = Counted { ready, suspects, leased, not_done, bytes, without_ready };
        let was = std::mem::replace(&mut partition.counted, now);
        self.ready = self.ready + now.ready - was.ready;
        self.suspects = self.suspects + now.suspects - was.suspects;
        self.leased = self.leased + now.leased - was.leased;
        self.not_done = self.not_done + now.not_done - was.not_done;
        self.without_ready = self.without_ready + now.without_ready - was.without_ready;
        self.bytes = self.bytes + now.bytes - was.bytes;
    }

    /// The partition is forgotten.
    pub(crate) fn forget(&mut self, counted: Counted) {
        self.ready -= counted.ready;
        self.suspects -= counted.suspects;
        self.leased -= counted.leased;
        self.not_done -= counted.not_done;
        self.without_ready -= counted.without_ready;
        self.bytes -= counted.bytes;
    }

    /// About how many bytes are ready: the records' even share of what is held.
    pub(crate) fn ready_bytes(&self) -> u64 {
        let share = u128::from(self.bytes) * u128::from(self.ready) / u128::from(self.not_done.max(1));
        u64::try_from(share).unwrap_or(u64::MAX)
    }
}

impl Engine {
    /// A new engine. `seed` feeds the jitter of retries.
    #[must_use]
    pub fn new(policy: Policy, seed: u64) -> Self {
        Self {
            policy,
            rng: Rng::new(seed),
            partitions: Partitions::default(),
            sessions: BTreeMap::new(),
            by_consumer: HashMap::new(),
            timers: Timers::default(),
            outputs: VecDeque::new(),
            rings: Rings::default(),
            deal_from: VecDeque::new(),
            suspects_from: BTreeSet::new(),
            deaths: Deaths::default(),
            deal_again: false,
            paused: false,
            over_budget: false,
            ahead: false,
            resting: false,
            sums: Sums::default(),
            pace: Pace::new(),
            frame_bytes_most: 0,
            session_ids: 0,
            lease_ids: 0,
            tickets: 0,
            requests: Requests::default(),
            forgotten: Stats::default(),
            broken_count: 0,
            remembered_share: crate::session::remembered_share(0),
            scratch: Vec::new(),
            touched: Vec::new(),
        }
    }

    /// Its policy.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    // === Kafka ===

    /// A partition was assigned (or begins anew: after a seek, or when its topic was made again; call `lost` first).
    pub fn assigned(&mut self, now: Millis, assignment: Assignment) -> Restored {
        if let Some(pid) = self.partitions.find(&assignment.partition) {
            self.fence(now, pid, RevokeReason::Reassigned);
            self.forget_partition(pid);
        }
        let (partition, restored) = Partition::new(assignment, &self.policy);
        let pid = self.partitions.insert(partition);
        self.touch(now, pid);
        restored
    }

    /// Records of one partition, ascending: `runs` for whoever has records and no runs.
    pub fn records(&mut self, now: Millis, partition: &TopicPartition, epoch: Epoch, records: Vec<Record>) {
        self.runs(now, partition, epoch, Run::of(&records));
    }

    /// Runs of records of one partition, ascending. Of another epoch than the live one, or of a partition not assigned:
    /// dropped.
    pub fn runs(&mut self, now: Millis, partition: &TopicPartition, epoch: Epoch, runs: Vec<Arc<Run>>) {
        let Some(pid) = self.partitions.find(partition) else { return };
        let Some(partition) = self.partitions.get_mut(pid).filter(|p| p.epoch == epoch) else { return };
        let mut hand = Hand { now, policy: &self.policy, rng: &mut self.rng, timers: &mut self.timers, pid };
        let before = partition.ledger.frontier();
        for run in runs {
            hand.receive(partition, &run);
        }
        if partition.ledger.frontier() != before {
            partition.commit.change(now, 0);
        }
        self.touch(now, pid);
    }

    /// The partition in this epoch, fenced or not: what is fetched is registered, or a position would pass it.
    fn of_epoch(&mut self, name: &TopicPartition, epoch: Epoch) -> Option<(Pid, &mut Partition)> {
        let pid = self.partitions.find(name)?;
        Some((pid, self.partitions.get_mut(pid).filter(|p| p.epoch == epoch)?))
    }

    /// The fetch position after control records and holes; everything polled before it has been given to `records`.
    pub fn position(&mut self, now: Millis, partition: &TopicPartition, epoch: Epoch, next: NextOffset) {
        let Some((pid, partition)) = self.of_epoch(partition, epoch) else { return };
        let before = partition.ledger.frontier();
        partition.ledger.position(next.0);
        if partition.ledger.frontier() != before {
            partition.commit.change(now, 0);
            self.touch(now, pid);
        }
    }

    /// These are to be handed over: nothing more is dealt from them; each ends with `Output::Drained`, once no lease is
    /// open (or at `deadline`, when what is open is fenced) and its last commit is answered. Not assigned: at once.
    pub fn revoking(&mut self, now: Millis, partitions: &[TopicPartition], deadline: Millis) {
        for name in partitions {
            let Some(pid) = self.partitions.find(name) else {
                self.outputs.push_back(Output::Drained { partition: name.clone() });
                continue;
            };
            if let Some(partition) = self.partitions.get_mut(pid) {
                partition.revoking = Some(partition.revoking.map_or(deadline, |d| d.min(deadline)));
                partition.fenced |= deadline <= now;
                partition.in_ring = false;
            }
            self.deal_from.retain(|other| *other != pid);
            self.suspects_from.remove(&pid);
            self.touch(now, pid);
        }
    }

    /// These are gone: fenced at once, no commit, holders hear `Revoked{reason}`. Ends a `revoking` too, without `Drained`.
    pub fn lost(&mut self, now: Millis, partitions: &[TopicPartition], reason: RevokeReason) {
        for name in partitions {
            if let Some(pid) = self.partitions.find(name) {
                self.fence(now, pid, reason);
                self.forget_partition(pid);
            }
        }
    }

    /// What Kafka said of an `Output::Commit`.
    pub fn commit_result(
        &mut self,
        now: Millis,
        partition: &TopicPartition,
        epoch: Epoch,
        result: Result<NextOffset, CommitError>,
    ) {
        self.on_commit_result(now, partition, epoch, result);
    }

    /// The committed value was read back from Kafka and is not what was acknowledged: commit again, even with nothing new.
    pub fn commit_rewound(&mut self, now: Millis, partition: &TopicPartition) {
        let Some(pid) = self.partitions.find(partition) else { return };
        if let Some(partition) = self.partitions.get_mut(pid) {
            partition.commit.force();
        }
        self.touch(now, pid);
    }

    /// What Kafka said of an `Output::DeadLetter`: only its acknowledgement makes the record done. Of another epoch than the
    /// live one, or of a record that is not on its way: nothing happens.
    pub fn dead_letter_result(
        &mut self,
        now: Millis,
        partition: &TopicPartition,
        epoch: Epoch,
        offset: i64,
        result: Result<(), LetterError>,
    ) {
        self.on_letter_result(now, partition, epoch, offset, result);
    }

    // === sessions ===

    /// A stream subscribes.
    pub fn open(&mut self, now: Millis, open: Open) -> Opened {
        let opened = self.open_session(now, open);
        if let Some(session) = self.sessions.get_mut(&opened.session) {
            session.past.set_entries_max(self.remembered_share);
        }
        self.share_memory();
        opened
    }

    /// A new window.
    pub fn window(&mut self, _now: Millis, session: SessionId, window: Window) {
        self.set_window(session, window, false);
    }

    /// A new window that is a part of the consumer's: the rest is with other owners. A record larger than its bytes does not
    /// go into it, not even alone, since only the consumer's whole window may be exceeded, by one record that finds it empty.
    pub fn window_part(&mut self, _now: Millis, session: SessionId, window: Window) {
        self.set_window(session, window, true);
    }

    fn set_window(&mut self, id: SessionId, window: Window, is_part: bool) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.set_window(window);
            session.window_is_part = is_part;
        }
        self.offer(id);
    }

    /// Settlements of a stream; answered by `Output::Settled`. An unknown session: nothing happens.
    pub fn settle(&mut self, now: Millis, session: SessionId, settlements: Settlements) {
        if !self.sessions.contains_key(&session) {
            return;
        }
        let request_id = settlements.request_id;
        let asker = Asker::Stream { session, request_id };
        let Some(rejections) = self.apply(now, session, &settlements, asker) else { return };
        if request_id != 0 || !rejections.is_empty() {
            self.outputs.push_back(Output::Settled { session, request_id, rejections });
        }
    }

    /// Settlements of a unary `Settle`; answered at once unless they are durable. A session that is not known: all
    /// `NotHeld`.
    pub fn settle_unary(&mut self, now: Millis, session: Option<SessionId>, settlements: Settlements) -> Answer {
        let Some(session) = session.filter(|id| self.sessions.contains_key(id)) else {
            return Answer::Now(self.reject_all(settlements));
        };
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        let now = self.apply(now, session, &settlements, Asker::Unary { session, ticket });
        now.map_or(Answer::Later(ticket), Answer::Now)
    }

    /// Deal nothing more to this session: it was told to drain. What it holds stays its own until it ends.
    pub fn drain_session(&mut self, _now: Millis, session: SessionId) {
        if let Some(session) = self.sessions.get_mut(&session) {
            session.draining = true;
        }
    }

    /// The stream ended. An unknown session: nothing happens.
    pub fn close(&mut self, now: Millis, session: SessionId, end: End) {
        self.close_session(now, session, end);
        self.share_memory();
    }

    // === the subscription ===

    /// Stop dealing, or go on (an operator's pause; a draining node).
    pub fn set_paused(&mut self, _now: Millis, paused: bool) {
        self.paused = paused;
        self.deal_again = true;
    }

    /// Time went on: expiries, retries, resume timeouts, commits by interval.
    pub fn tick(&mut self, now: Millis) {
        self.expire_leases(now);
        self.end_waits(now);
        self.end_oversize(now);
        while let Some((due, id)) = self.timers.resumes.first().copied().filter(|r| r.0 <= now) {
            self.timers.resumes.remove(&(due, id));
            self.die(now, id);
            self.end_session(now, id);
            self.outputs.push_back(Output::Gone { session: id });
        }
        self.decide_deaths(now);
        self.share_memory();
        while let Some(pid) = self.timers.pop_partition(now) {
            if let Some(partition) = self.partitions.get_mut(pid) {
                partition.scheduled = None;
                // Here only: what was read before this tick was applied before it.
                partition.fenced |= partition.revoking.is_some_and(|deadline| deadline <= now);
            }
            self.touch(now, pid);
        }
    }

    /// The moment at which `tick` has something to do.
    #[must_use]
    pub fn wake_at(&self) -> Option<Millis> {
        self.timers.next().into_iter().chain(self.deaths.next()).min()
    }

    /// What the driver is to do next. Dealing happens here: call until `None` after one or more inputs.
    pub fn poll_output(&mut self, now: Millis) -> Option<Output> {
        self.outputs.pop_front().or_else(|| self.deal(now)).or_else(|| self.mind_ahead())
    }
}

// === impl Hand ===

impl Hand<'_> {
    fn receive(&mut self, partition: &mut Partition, run: &Arc<Run>) {
        let from = run.index_from(partition.ledger.next());
        partition.stats.refetched += from as u64;
        partition.stats.received += (run.len() - from) as u64;
        let bytes_max = self.policy.record_bytes_max;
        let is_plain = partition.saved.is_empty() && run.bytes_most() as u64 <= bytes_max;
        if is_plain && self.policy.ordering == Ordering::None {
            return partition.ledger.push_all(self.now, run, from..run.len());
        }
        for index in from..run.len() {
            let offset = run.offset(index);
            let (done, attempts) = partition.saved.meet(offset);
            if done {
                partition.ledger.push_done(offset);
                partition.stats.restored_done += 1;
                partition.commit.change(self.now, 1);
                continue;
            }
            let at = partition.ledger.push(self.now, run, index, attempts);
            if run.bytes_of(&(index..index + 1)) as u64 > bytes_max {
                self.give_up(partition, at, offset, LetterCause::TooLarge);
            } else if attempts >= self.policy.max_attempts.max(1) {
                // It was exhausted in another epoch, and nobody is to work it again.
                self.give_up(partition, at, offset, LetterCause::Exhausted);
            }
        }
    }
}
