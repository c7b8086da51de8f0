//! What an operator sees.

use crate::engine::Engine;
use crate::ledger::State;
use crate::partition::{Partition, Pid};
use crate::policy::Policy;
use crate::types::{Epoch, Millis, NextOffset, SessionId, TopicPartition};
use crate::upkeep::is_below;
use crate::view::{BlockedOn, PartitionView, SessionView, Stats};

impl Engine {
    /// The subscription's counters.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let mut stats = self.forgotten;
        for (_, partition) in self.partitions.iter() {
            stats.add(&partition.stats);
        }
        stats.invariants_broken = self.broken_count;
        stats
    }

    /// All partitions, sorted.
    #[must_use]
    pub fn partitions(&self, now: Millis) -> Vec<PartitionView> {
        let mut views: Vec<PartitionView> =
            self.partitions.iter().map(|(pid, partition)| self.view_partition(now, pid, partition)).collect();
        views.sort_by(|a, b| a.partition.cmp(&b.partition));
        views
    }

    /// All sessions, by number.
    #[must_use]
    pub fn sessions(&self) -> Vec<SessionView> {
        // Somebody has room, and everything that is left waits its turn.
        let lanes_only = self.sums.ready == 0 && self.partitions.iter().any(|(_, p)| p.ledger.lane_waiting() > 0);
        let view = |(id, session): (&SessionId, &crate::session::Session)| {
            let blocked_on = if session.draining {
                Some(BlockedOn::Draining)
            } else if self.paused {
                Some(BlockedOn::Paused)
            } else if session.broken_until.is_some() {
                None
            } else if session.free() > 0 {
                lanes_only.then_some(BlockedOn::Lane)
            } else if session.unresponsive && session.held > 0 {
                Some(BlockedOn::Unresponsive)
            } else {
                Some(BlockedOn::NoWindow)
            };
            SessionView {
                session: *id,
                consumer_id: session.consumer_id.clone(),
                relayed: session.relayed,
                window: session.window,
                leased: session.held,
                leased_bytes: session.held_bytes,
                broken: session.broken_until.is_some(),
                unresponsive: session.unresponsive,
                blocked_on,
            }
        };
        self.sessions.iter().map(view).collect()
    }

    /// What a session holds: records, bytes. An unknown one holds nothing.
    #[must_use]
    pub fn held(&self, session: SessionId) -> (u64, u64) {
        self.sessions.get(&session).map_or((0, 0), |session| (session.held, session.held_bytes))
    }

    /// The session that a consumer has, live or broken.
    #[must_use]
    pub fn session_of(&self, consumer_id: &str) -> Option<SessionId> {
        self.by_consumer.get(consumer_id).copied()
    }

    /// The number of the last frame to a session. An unknown one had none.
    #[must_use]
    pub fn sequence(&self, session: SessionId) -> u64 {
        self.sessions.get(&session).map_or(0, |session| session.sequence)
    }

    /// Records that would be dealt if somebody had room, in the whole subscription.
    #[must_use]
    pub fn backlog(&self) -> u64 {
        self.sums.ready + self.sums.suspects
    }

    /// The same, by partition.
    pub fn backlogs(&self) -> impl Iterator<Item = (&TopicPartition, Epoch, u64)> {
        let live = self.partitions.iter().filter(|(_, partition)| !partition.fenced);
        live.map(|(_, partition)| {
            (&partition.name, partition.epoch, partition.counted.ready + partition.counted.suspects)
        })
    }

    /// Leases open in the whole subscription.
    #[must_use]
    pub fn leases_open(&self) -> u64 {
        self.sums.leased
    }

    /// Bytes held in the whole subscription.
    #[must_use]
    pub fn bytes_held(&self) -> u64 {
        self.sums.bytes
    }

    /// About how many of them are ready to be dealt.
    #[must_use]
    pub fn ready_bytes(&self) -> u64 {
        self.sums.ready_bytes()
    }

    /// Whether the fetch rests because of the subscription's byte budget.
    #[must_use]
    pub fn is_over_budget(&self) -> bool {
        self.over_budget
    }

    /// Leases that are remembered after their end, all sessions together, in entries of up to 128.
    #[must_use]
    pub fn remembered(&self) -> u64 {
        self.sessions.values().map(|session| session.past.entries() as u64).sum()
    }

    fn view_partition(&self, now: Millis, pid: Pid, partition: &Partition) -> PartitionView {
        let ledger = &partition.ledger;
        let oldest = ledger.head_at().and_then(|at| ledger.slot(at));
        let holder = |offset| self.sessions.iter().find(|(_, s)| s.holds(pid, offset)).map(|(id, _)| *id);
        PartitionView {
            partition: partition.name.clone(),
            epoch: partition.epoch,
            committed: partition.commit.acknowledged,
            committable: NextOffset(ledger.frontier()),
            next: NextOffset(ledger.next()),
            span: ledger.span(),
            bytes: ledger.bytes(),
            ready: ledger.ready() + ledger.ready_suspects(),
            leased: ledger.leased(),
            waiting_retry: ledger.waiting()
                - (partition.letters.len() + partition.oversize.len()) as u64
                - ledger.ready_suspects(),
            suspects: ledger.suspects.count(),
            dead_letters_pending: partition.letters.len() as u64,
            lane_waiting: ledger.lane_waiting(),
            durable_waiting: partition.durable.waiting(),
            done_above_frontier: ledger.done_above(),
            oldest_undone_offset: oldest.map(|slot| slot.offset()),
            oldest_undone_age_ms: oldest.map_or(0, |slot| now.0.saturating_sub(slot.received_at.0)),
            oldest_undone_holder: oldest.and_then(|slot| holder(slot.offset())),
            held_back: partition.held_back,
            blocked_on: self.blocked_on(partition),
            stats: partition.stats,
        }
    }

    fn blocked_on(&self, partition: &Partition) -> Option<BlockedOn> {
        let ledger = &partition.ledger;
        if partition.revoking.is_some() {
            return Some(BlockedOn::Draining);
        }
        // While the fetch rests, what is not here does not come either.
        let Some(head) = ledger.head_at() else { return self.over_budget.then_some(BlockedOn::MemoryBudget) };
        if self.paused {
            return Some(BlockedOn::Paused);
        }
        let (offset, attempts) =
            ledger.slot(head).map_or((0, 0), |slot| (slot.offset(), ledger.attempts(slot.offset())));
        let waits = match ledger.state(head) {
            State::Waiting if ledger.suspects.ready().contains(&offset) => {
                self.why_not_dealt().or(Some(BlockedOn::Suspect))
            }
            State::Waiting if ledger.suspects.undecided().contains_key(&offset) => Some(BlockedOn::Suspect),
            State::Waiting if partition.letters.contains(offset) => Some(BlockedOn::DeadLetter),
            State::Waiting if attempts >= self.policy.max_attempts.max(1) => Some(BlockedOn::Exhausted),
            State::Waiting if partition.oversize.contains_key(&offset) => Some(BlockedOn::NoWindow),
            State::Waiting => Some(BlockedOn::RetryWait),
            State::Leased => Some(BlockedOn::Leased),
            State::Ready => self.why_not_dealt(),
            State::Done => None,
        };
        let waits = if partition.durable.is_full() { Some(BlockedOn::MetadataFull) } else { waits };
        if partition.held_back {
            Some(held_back_by(&self.policy, ledger.span(), ledger.bytes()))
        } else if self.over_budget {
            Some(BlockedOn::MemoryBudget)
        } else {
            waits
        }
    }

    fn why_not_dealt(&self) -> Option<BlockedOn> {
        let mut connected = self.sessions.values().filter(|s| s.broken_until.is_none()).peekable();
        if connected.peek().is_none() {
            return Some(BlockedOn::NoSession);
        }
        let sessions: Vec<_> = connected.collect();
        if sessions.iter().any(|s| s.free() > 0) {
            None
        } else if sessions.iter().all(|s| s.unresponsive) {
            Some(BlockedOn::Unresponsive)
        } else {
            Some(BlockedOn::NoWindow)
        }
    }
}

/// Which limit a partition that is held back waits for.
fn held_back_by(policy: &Policy, span: u64, bytes: u64) -> BlockedOn {
    let (span_max, bytes_max) = (policy.span_max, policy.partition_bytes_max);
    let by_bytes = span < span_max && (bytes >= bytes_max || is_below(span, span_max));
    if by_bytes { BlockedOn::MemoryBudget } else { BlockedOn::SpanLimit }
}

impl Stats {
    /// Adds another's counters.
    pub(crate) fn add(&mut self, other: &Self) {
        self.received += other.received;
        self.delivered += other.delivered;
        self.acked += other.acked;
        self.retried += other.retried;
        self.expired += other.expired;
        self.released += other.released;
        self.dead_lettered += other.dead_lettered;
        self.dead_letters_failed += other.dead_letters_failed;
        self.too_large += other.too_large;
        self.filtered += other.filtered;
        self.failed += other.failed;
        self.committed += other.committed;
        self.refetched += other.refetched;
        self.restored_done += other.restored_done;
        self.sessions_died += other.sessions_died;
        self.sessions_broke_together += other.sessions_broke_together;
        self.durable_answered += other.durable_answered;
        self.rejected += other.rejected;
        self.commits += other.commits;
        self.commits_failed += other.commits_failed;
        self.metadata_truncated += other.metadata_truncated;
        self.metadata_ignored += other.metadata_ignored;
        self.invariants_broken += other.invariants_broken;
    }
}
