//! The driver: the one task that owns the engine of a subscription.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use sluice_core::{Engine, Epoch, Millis, Rejection, RevokeReason, Ticket, TopicPartition};
use sluice_kafka::{KafkaCommand, KafkaEvent, KafkaState};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use super::group;
use super::letters::{LetterEnd, Letters};
use super::membership::{Member, Membership, Step};
use super::owned::Publisher;
use super::seek::Seek;
use super::stuck::Stuck;
use super::{Counts, KafkaPort, Pause, Request, Seats, SessionRegistry, Settings, State, clock};
use crate::error::Error;

/// Kafka events in one turn, so that settlements are never far behind.
const KAFKA_EVENTS_PER_TURN: usize = 64;
/// Requests in one turn.
const REQUESTS_PER_TURN: usize = 4_096;
/// The driver looks at the clock this often even when idle: that is how it notices that the machine slept.
const TURN_MS_MAX: u64 = 1_000;
/// What leaving the group may take after everything is committed.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// A shutdown that is under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stopping {
    /// Until then leases may be settled.
    pub(super) drain_until: Millis,
    /// Then the streams end, whatever Kafka says.
    pub(super) end_at: Millis,
}

/// The driver's state.
pub(super) struct Driver {
    pub(super) settings: Settings,
    pub(super) engine: Engine,
    pub(super) kafka: KafkaPort,
    pub(super) member: Member,
    requests: mpsc::UnboundedReceiver<Request>,
    pub(super) seats: Seats,
    pub(super) registry: Arc<SessionRegistry>,
    /// Durable unary settles that wait for Kafka.
    pub(super) unary: HashMap<Ticket, oneshot::Sender<Vec<Rejection>>>,
    /// Dead letters on their way to Kafka.
    pub(super) letters: Letters,
    pub(super) stuck: Stuck,
    /// Partitions that the engine owns, and their epochs.
    pub(super) assigned: HashMap<TopicPartition, Epoch>,
    /// Of them, those that the group waits for.
    pub(super) revoking: HashMap<TopicPartition, Epoch>,
    pub(super) ever_assigned: bool,
    /// How many the topics have, as Kafka says.
    pub(super) partitions: usize,
    pub(super) seeks: Vec<Seek>,
    pub(super) watermarks: HashMap<TopicPartition, (i64, i64)>,
    pub(super) counts: Counts,
    pub(super) kafka_state: KafkaState,
    pub(super) pause: Pause,
    pub(super) stopping: Option<Stopping>,
    /// The engine asked for a rest of the fetch handle.
    pub(super) rest: bool,
    /// What the gate was told last.
    gate_rests: bool,
    /// When a leave without an answer is given up.
    leave_until: Option<Millis>,
    pub(super) ended: bool,
    state: watch::Sender<State>,
    changed: Arc<Notify>,
    /// `None`: the node is alone.
    owned: Option<Publisher>,
    pub(super) group: group::Watch,
    last_turn: Millis,
}

/// Where others read what the driver knows.
pub(super) struct Told {
    pub(super) state: watch::Sender<State>,
    /// `None`: the node is alone.
    pub(super) owned: Option<Publisher>,
    pub(super) group: group::Watch,
}

enum Event {
    Request(Request),
    Kafka(KafkaEvent),
    /// A dead letter was written, or not.
    Letter(LetterEnd),
    /// Kafka's threads are gone.
    KafkaGone,
    Time,
}

impl Driver {
    pub(super) fn new(
        settings: Settings,
        kafka: KafkaPort,
        requests: mpsc::UnboundedReceiver<Request>,
        registry: Arc<SessionRegistry>,
        changed: Arc<Notify>,
        told: Told,
    ) -> Self {
        let Told { state, owned, group } = told;
        let now = clock::now();
        Self {
            engine: Engine::new(settings.policy.clone(), crate::random::number()),
            member: match owned {
                None => Member::new(settings.leave_delay, now),
                Some(_) => Member::in_a_cluster(now),
            },
            settings,
            kafka,
            requests,
            seats: Seats::new(),
            registry,
            unary: HashMap::new(),
            letters: Letters::new(),
            stuck: Stuck::default(),
            assigned: HashMap::new(),
            revoking: HashMap::new(),
            ever_assigned: false,
            partitions: 0,
            seeks: Vec::new(),
            watermarks: HashMap::new(),
            counts: Counts::default(),
            kafka_state: KafkaState::Unknown,
            pause: Pause::default(),
            stopping: None,
            rest: false,
            gate_rests: false,
            leave_until: None,
            ended: false,
            state,
            changed,
            owned,
            group,
            last_turn: now,
        }
    }

    pub(super) async fn run(mut self) {
        let mut timer = pin!(sleep_until(Instant::now()));
        let mut kafka_alive = true;
        while !self.ended {
            let event = tokio::select! {
                biased;
                Some(request) = self.requests.recv() => Event::Request(request),
                event = self.kafka.events.recv(), if kafka_alive => event.map_or(Event::KafkaGone, Event::Kafka),
                Some(end) = self.letters.ends.recv() => Event::Letter(end),
                () = &mut timer => Event::Time,
            };
            let now = clock::now();
            self.fence_if_asleep(now);
            kafka_alive &= !matches!(event, Event::KafkaGone);
            self.handle(now, event);
            self.handle_what_is_ready(now);
            self.finish_turn(now);
            timer.as_mut().reset(Instant::now() + self.wait(clock::now()));
        }
        self.finish();
    }

    /// A node that was away for a Kafka session has lost its partitions, whether anyone told it or not. It fences itself
    /// before it handles anything that waited meanwhile.
    fn fence_if_asleep(&mut self, now: Millis) {
        let away_ms = now.0.saturating_sub(self.last_turn.0);
        self.last_turn = now;
        let limit_ms = u64::try_from(self.settings.kafka_session_timeout.as_millis()).unwrap_or(u64::MAX);
        if away_ms <= limit_ms || !self.member.listens() {
            return;
        }
        tracing::warn!(subscription = %self.settings.name, away_ms, "away for a Kafka session: partitions given up");
        self.counts.self_fenced += 1;
        self.give_up_all_partitions(now);
        // What Kafka says until `Left` is of the past and is ignored; then the group is joined again.
        self.leave(now, Duration::from_secs(1));
    }

    /// Without its threads a subscription is over, and its clients are better off elsewhere. The node says that it is not
    /// well; what is left of the threads leaves the group when the driver lets go of them.
    pub(super) fn on_kafka_gone(&mut self, now: Millis, why: &str) {
        tracing::error!(subscription = %self.settings.name, why, "the subscription has stopped");
        self.give_up_all_partitions(now);
        self.pull_outputs(now);
        self.member.left();
        self.member.stop();
        self.kafka_state = KafkaState::Unreachable(why.to_owned());
        self.end_streams(&Err(Error::Stopped));
        self.ended = true;
    }

    fn give_up_all_partitions(&mut self, now: Millis) {
        self.revoking.clear();
        self.watermarks.clear();
        self.seeks_are_off();
        let all: Vec<_> = self.assigned.drain().map(|(partition, _)| partition).collect();
        self.engine.lost(now, &all, RevokeReason::Reassigned);
    }

    fn handle(&mut self, now: Millis, event: Event) {
        match event {
            Event::Request(request) => self.on_request(now, request),
            Event::Kafka(event) => self.on_kafka(now, event),
            Event::Letter(end) => self.on_letter_end(now, end),
            Event::KafkaGone => self.on_kafka_gone(now, "the Kafka threads ended"),
            Event::Time => {}
        }
    }

    /// What else waits, up to a bound: outputs are pulled once for all of it.
    fn handle_what_is_ready(&mut self, now: Millis) {
        for _ in 0..REQUESTS_PER_TURN {
            let Ok(request) = self.requests.try_recv() else { break };
            self.on_request(now, request);
        }
        for _ in 0..KAFKA_EVENTS_PER_TURN {
            let Ok(event) = self.kafka.events.try_recv() else { break };
            self.on_kafka(now, event);
        }
        while let Ok(end) = self.letters.ends.try_recv() {
            self.on_letter_end(now, end);
        }
    }

    fn finish_turn(&mut self, now: Millis) {
        // Settlements read before this moment were applied above, so none of them loses against an expiry.
        if self.engine.wake_at().is_some_and(|at| at <= now) {
            self.engine.tick(now);
        }
        self.pull_outputs(now);
        self.step_membership(now);
        self.step_shutdown(now);
        self.pull_outputs(now);
        self.finish_drain(now);
        self.check_stuck(now);
        self.tell_of_missing_rights(now);
        if let Some(owned) = &mut self.owned {
            owned.publish(now, &self.engine, self.member.state() != Membership::Idle, &self.kafka_state);
        }
        self.publish();
    }

    fn step_membership(&mut self, now: Millis) {
        let live = self.seats.values().filter(|seat| seat.link.is_some()).count();
        self.member.sessions(live, now);
        match self.member.step(now) {
            Step::None => {}
            Step::Join => (self.kafka.send)(KafkaCommand::Join),
            Step::Drain => {
                let all: Vec<_> = self.assigned.keys().cloned().collect();
                let deadline = self.drain_deadline(now);
                self.engine.revoking(now, &all, deadline);
            }
        }
        if self.leave_until.is_some_and(|at| at <= now) && self.member.state() == Membership::Leaving {
            tracing::warn!(subscription = %self.settings.name, "leaving the group was not answered in time");
            self.on_left(now);
        }
    }

    /// Until when what is open may be settled.
    pub(super) fn drain_deadline(&self, now: Millis) -> Millis {
        let grace_ms = u64::try_from(self.settings.revoke_grace.as_millis()).unwrap_or(u64::MAX);
        self.stopping.map_or_else(|| Millis(now.0.saturating_add(grace_ms)), |stopping| stopping.drain_until)
    }

    /// Everything is handed back: leave.
    fn finish_drain(&mut self, now: Millis) {
        if self.member.state() == Membership::Draining && self.assigned.is_empty() {
            self.leave(now, LEAVE_TIMEOUT);
        }
    }

    fn leave(&mut self, now: Millis, timeout: Duration) {
        self.member.leaving();
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        // The threads bound it themselves; this is for threads that hang.
        self.leave_until = Some(Millis(now.0 + 2 * timeout_ms + 1_000));
        let command = if self.stopping.is_some() { KafkaCommand::Shutdown } else { KafkaCommand::Leave };
        (self.kafka.send)(command(timeout));
    }

    /// What came before `Left` is of a membership that is over: also where it came so late that we had given the leave
    /// up, joined again and believed it.
    pub(super) fn on_left(&mut self, now: Millis) {
        self.give_up_all_partitions(now);
        if self.member.state() == Membership::Leaving {
            self.member.left();
            self.leave_until = None;
            self.ended |= self.stopping.is_some();
        }
    }

    fn step_shutdown(&mut self, now: Millis) {
        let Some(stopping) = self.stopping else { return };
        if self.member.state() == Membership::Idle && !self.ended {
            (self.kafka.send)(KafkaCommand::Shutdown(LEAVE_TIMEOUT));
            self.ended = true;
        }
        if stopping.end_at <= now && !self.ended {
            tracing::warn!(subscription = %self.settings.name, "the drain did not end in time");
            if self.member.state() != Membership::Leaving {
                (self.kafka.send)(KafkaCommand::Shutdown(Duration::from_secs(1)));
            }
            self.ended = true;
        }
    }

    fn publish(&mut self) {
        // While the node drains nothing more is dealt, so nothing more is fetched.
        let over_budget = self.engine.is_over_budget();
        self.counts.fetch_rests += u64::from(over_budget && !self.counts.fetch_resting);
        self.counts.fetch_resting = over_budget;
        let resting = self.rest || self.stopping.is_some();
        if resting != self.gate_rests {
            self.gate_rests = resting;
            self.kafka.gate.rest(resting);
        }
        let mut is_pause_news = false;
        let changed = self.state.send_if_modified(|state| {
            let now = State {
                kafka: self.kafka_state.clone(),
                membership: self.member.state(),
                partitions: self.partitions,
                pause: self.pause,
                dead_letter_error: self.letters.failing.clone(),
                ended: false,
            };
            let changed = *state != now;
            is_pause_news = state.pause != now.pause;
            *state = now;
            changed
        });
        if changed {
            self.changed.notify_one();
        }
        if let Some(news) = self.settings.news.as_ref().filter(|_| is_pause_news) {
            news.notify_one();
        }
    }

    /// How long the driver may sleep.
    fn wait(&self, now: Millis) -> Duration {
        let stopping = self.stopping.map(|stopping| stopping.end_at);
        let news = self.owned.as_ref().and_then(Publisher::due);
        let wake_at = [self.engine.wake_at(), self.member.leave_at(), self.leave_until, stopping, news]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(Millis(u64::MAX));
        Duration::from_millis(wake_at.0.saturating_sub(now.0).min(TURN_MS_MAX))
    }

    /// The end: streams end OK, requests that still wait are refused.
    fn finish(&mut self) {
        self.end_streams(&Ok(()));
    }

    fn end_streams(&mut self, how: &Result<(), Error>) {
        for (_, seat) in self.seats.drain() {
            seat.tokens.iter().for_each(|token| drop(self.registry.remove(token)));
            if let Some(link) = seat.link {
                link.end(how.clone().map_err(Into::into));
            }
        }
        self.requests.close();
        while let Ok(request) = self.requests.try_recv() {
            super::refuse(request);
        }
        self.state.send_modify(|state| state.ended = true);
        self.changed.notify_one();
    }
}

impl Drop for Driver {
    /// A panic is a bug, and its subscription is over; what must not be is that it is over in silence, with streams that
    /// are pinged and never dealt a record. Its streams end, and the node says that it is not well.
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(subscription = %self.settings.name, "the driver panicked: the subscription has stopped");
            self.end_streams(&Err(Error::Stopped));
        }
    }
}
