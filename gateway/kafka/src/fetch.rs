//! The fetch thread: takes records, and tells the driver in order what begins, what ends and where positions are.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_core::{Assignment, Epoch, NextOffset, TopicPartition};
use tokio::sync::mpsc::UnboundedSender;

use crate::ffi::{Batch, Code, Handle, List, MessageView, OK, Queue, code_name};
use crate::io::{FetchGate, KafkaEvent, ResetCause};
use crate::messages::{Decision, Epochs, FetchCommand, LookupCommand, Token};
use crate::records::copy;
use crate::signal::Mailbox;
use crate::subscription::Error;

/// Records taken at once.
const BATCH_RECORDS_MAX: usize = 1_000;
/// librdkafka tells of a queue only when it stops being empty; a look now and then costs little and heals a missed one.
const SWEEP: Duration = Duration::from_millis(200);
/// How soon a closed gate is looked at again when nobody wakes us.
const GATE_SWEEP: Duration = Duration::from_millis(10);
/// Positions cost a lock a partition: not after each single record.
const POSITIONS_EVERY: Duration = Duration::from_millis(20);

/// Where a partition stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The driver has not heard of it: where it begins is being looked up.
    Expected,
    /// On the handle.
    Fetching,
    /// Off the handle by the driver's wish.
    Held,
    /// Off the handle: its position is not in its log, and the lookup thread decides. `true`: held meanwhile.
    Deciding(bool),
}

#[derive(Debug)]
struct Partition {
    token: Token,
    epoch: Epoch,
    /// After the last record or position that was sent.
    next: i64,
    phase: Phase,
    /// What librdkafka said of the position right after the assign, of an earlier life of the partition.
    stale_position: i64,
    /// The last that was heard of its topic is that it may not be read.
    unreadable: bool,
}

/// The state of the thread.
pub(crate) struct Fetch {
    queue: Queue,
    gate: Arc<FetchGate>,
    commands: Arc<Mailbox<FetchCommand>>,
    lookup: Arc<Mailbox<LookupCommand>>,
    epochs: Arc<Epochs>,
    events: UnboundedSender<KafkaEvent>,
    partitions: HashMap<TopicPartition, Partition>,
    positions_at: Instant,
}

impl Fetch {
    pub(crate) fn new(
        handle: &Arc<Handle>,
        gate: &Arc<FetchGate>,
        commands: &Arc<Mailbox<FetchCommand>>,
        lookup: &Arc<Mailbox<LookupCommand>>,
        epochs: &Arc<Epochs>,
        events: UnboundedSender<KafkaEvent>,
    ) -> Result<Self, Error> {
        let mut queue =
            Queue::consumer(handle).ok_or_else(|| Error::Config("the fetch handle has no queue".to_owned()))?;
        queue.wake(commands.signal());
        Ok(Self {
            queue,
            gate: Arc::clone(gate),
            commands: Arc::clone(commands),
            lookup: Arc::clone(lookup),
            epochs: Arc::clone(epochs),
            events,
            partitions: HashMap::new(),
            positions_at: Instant::now(),
        })
    }

    pub(crate) fn run(mut self) {
        loop {
            while let Some(command) = self.commands.take() {
                if matches!(command, FetchCommand::Stop) {
                    return;
                }
                self.handle(command);
            }
            let wait = if self.gate.is_open() { self.take_records() } else { GATE_SWEEP };
            if !wait.is_zero() {
                self.commands.signal().wait(wait);
            }
        }
    }

    /// Takes what is there; returns how long nothing is to be done.
    fn take_records(&mut self) -> Duration {
        let queue = &self.queue;
        let batch = queue.consume(BATCH_RECORDS_MAX);
        if batch.len() > 0 {
            let troubled = dispatch(&batch, &mut self.partitions, &self.gate, &self.events, &self.lookup);
            drop(batch);
            for (partition, out_of_range) in troubled {
                self.distrust_position(&partition);
                if out_of_range {
                    self.out_of_range(&partition);
                }
            }
            return Duration::ZERO;
        }
        drop(batch);
        let since = self.positions_at.elapsed();
        if since < POSITIONS_EVERY {
            return POSITIONS_EVERY.saturating_sub(since);
        }
        self.positions();
        SWEEP
    }

    /// After an empty poll: what was polled is registered, so a position past control records may be told.
    fn positions(&mut self) {
        self.positions_at = Instant::now();
        let fetching = self.partitions.iter().filter(|(_, state)| state.phase == Phase::Fetching);
        let list = List::of(fetching.map(|(partition, _)| partition));
        for result in self.queue.handle().positions(&list) {
            let Some(state) = self.partitions.get_mut(&result.partition) else { continue };
            if result.offset == state.stale_position {
                continue;
            }
            state.stale_position = crate::ffi::OFFSET_NONE;
            if result.offset > state.next {
                state.next = result.offset;
                self.tell(KafkaEvent::Position {
                    epoch: self.partitions[&result.partition].epoch,
                    partition: result.partition,
                    next: NextOffset(result.offset),
                });
            }
        }
    }

    /// The receiver is gone only when the subscription is being dropped: then nobody needs to hear it.
    fn tell(&self, event: KafkaEvent) {
        let _receiver_gone = self.events.send(event);
    }

    fn handle(&mut self, command: FetchCommand) {
        match command {
            FetchCommand::Expect(partition, token) => {
                let state = Partition {
                    token,
                    epoch: Epoch(0),
                    next: 0,
                    phase: Phase::Expected,
                    stale_position: crate::ffi::OFFSET_NONE,
                    unreadable: false,
                };
                self.partitions.insert(partition, state);
            }
            FetchCommand::Begin(token, assignment) => {
                let expected = |state: &&mut Partition| state.token == token && state.phase == Phase::Expected;
                if self.partitions.get_mut(&assignment.partition).filter(expected).is_some() {
                    self.begin(assignment);
                }
            }
            FetchCommand::Decided(token, partition, decision) => self.decided(token, &partition, decision),
            FetchCommand::Revoke { partitions, grace, answer } => {
                let announced = self.remove(&partitions);
                if !announced.is_empty() {
                    self.tell(KafkaEvent::Revoking { partitions: announced.clone(), grace });
                }
                let _member_gone = answer.send(announced);
            }
            FetchCommand::Lose { partitions, quiet, answer } => {
                let announced = self.remove(&partitions);
                if !quiet && !announced.is_empty() {
                    self.tell(KafkaEvent::Lost(announced.into_iter().map(|(partition, _)| partition).collect()));
                }
                let _member_gone = answer.send(());
            }
            FetchCommand::Hold(partition, epoch) => self.hold(&partition, epoch),
            FetchCommand::Unhold(partition, epoch, next) => self.unhold(&partition, epoch, next),
            FetchCommand::Stop => {}
        }
    }

    /// Announces an assignment, then fetches it: its records come after it in the queue.
    fn begin(&mut self, assignment: Assignment) {
        let partition = assignment.partition.clone();
        self.announce(assignment, Phase::Held);
        self.fetch_from_next(&partition);
    }

    fn announce(&mut self, assignment: Assignment, phase: Phase) {
        let Some(state) = self.partitions.get_mut(&assignment.partition) else { return };
        state.epoch = assignment.epoch;
        state.next = assignment.next.0;
        state.phase = phase;
        self.epochs.begin(&assignment.partition, assignment.epoch);
        self.tell(KafkaEvent::Assigned(assignment));
    }

    fn fetch_from_next(&mut self, partition: &TopicPartition) {
        let handle = Arc::clone(self.queue.handle());
        let Some(state) = self.partitions.get_mut(partition) else { return };
        state.phase = Phase::Fetching;
        if let Err(error) = handle.assign(&List::one(partition, state.next)) {
            tracing::error!(%partition, next = state.next, error, "the fetch handle did not take the partition");
        }
        state.stale_position =
            handle.positions(&List::of([partition])).first().map_or(crate::ffi::OFFSET_NONE, |result| result.offset);
    }

    fn stop_fetching(&self, partitions: &[TopicPartition]) {
        if partitions.is_empty() {
            return;
        }
        if let Err(error) = self.queue.handle().unassign(&List::of(partitions)) {
            tracing::error!(?partitions, error, "the fetch handle did not give the partitions up");
        }
    }

    /// Takes partitions away; returns those that the driver had heard of, and in which epoch.
    fn remove(&mut self, partitions: &[TopicPartition]) -> Vec<(TopicPartition, Epoch)> {
        let mut announced = Vec::new();
        let mut fetching = Vec::new();
        for partition in partitions {
            let Some(state) = self.partitions.remove(partition) else { continue };
            if state.phase == Phase::Fetching {
                fetching.push(partition.clone());
            }
            if state.phase != Phase::Expected {
                announced.push((partition.clone(), state.epoch));
            }
        }
        self.stop_fetching(&fetching);
        announced
    }

    /// The partition in this epoch. A command of an earlier one is void: the driver has not heard yet that it began
    /// anew, and would never take the hold back.
    fn of_epoch(&mut self, partition: &TopicPartition, epoch: Epoch) -> Option<&mut Partition> {
        self.partitions.get_mut(partition).filter(|state| state.epoch == epoch)
    }

    fn hold(&mut self, partition: &TopicPartition, epoch: Epoch) {
        let Some(state) = self.of_epoch(partition, epoch) else { return };
        match state.phase {
            Phase::Fetching => {
                state.phase = Phase::Held;
                self.stop_fetching(std::slice::from_ref(partition));
            }
            Phase::Deciding(_) => state.phase = Phase::Deciding(true),
            Phase::Expected | Phase::Held => {}
        }
    }

    fn unhold(&mut self, partition: &TopicPartition, epoch: Epoch, next: NextOffset) {
        let Some(state) = self.of_epoch(partition, epoch) else { return };
        match state.phase {
            Phase::Held => {
                state.next = next.0;
                self.fetch_from_next(partition);
            }
            Phase::Deciding(_) => state.phase = Phase::Deciding(false),
            Phase::Expected | Phase::Fetching => {}
        }
    }

    /// librdkafka takes an error for a record: its position is behind an offset that nobody has seen.
    fn distrust_position(&mut self, partition: &TopicPartition) {
        let Some(state) = self.partitions.get_mut(partition) else { return };
        let position = self.queue.handle().positions(&List::of([partition])).first().map(|result| result.offset);
        state.stale_position = position.unwrap_or(state.stale_position);
    }

    fn out_of_range(&mut self, partition: &TopicPartition) {
        let Some(state) = self.partitions.get_mut(partition) else { return };
        if state.phase != Phase::Fetching {
            return;
        }
        state.phase = Phase::Deciding(false);
        let (token, epoch, next) = (state.token, state.epoch, NextOffset(state.next));
        tracing::warn!(%partition, next = next.0, "the position is not in the log");
        self.stop_fetching(std::slice::from_ref(partition));
        self.lookup.send(LookupCommand::OutOfRange { partition: partition.clone(), token, epoch, next });
    }

    fn decided(&mut self, token: Token, partition: &TopicPartition, decision: Decision) {
        let Some(state) = self.partitions.get_mut(partition).filter(|state| state.token == token) else { return };
        let phase = state.phase;
        let held = matches!(phase, Phase::Held | Phase::Deciding(true));
        match decision {
            // It is of a position that was left meanwhile.
            Decision::Reset(ResetCause::LogTruncated, _) if !matches!(phase, Phase::Deciding(_)) => {}
            Decision::Reset(cause, assignment) if phase != Phase::Expected => {
                if phase == Phase::Fetching {
                    self.stop_fetching(std::slice::from_ref(partition));
                }
                self.tell(KafkaEvent::Reset { partition: partition.clone(), cause });
                self.begin(assignment);
            }
            Decision::Seek(epoch, assignment) if phase != Phase::Expected && state.epoch == epoch => {
                if phase == Phase::Fetching {
                    self.stop_fetching(std::slice::from_ref(partition));
                }
                self.tell(KafkaEvent::Reset { partition: partition.clone(), cause: ResetCause::Seek });
                self.announce(assignment, Phase::Held);
            }
            Decision::LostToRetention(to) if matches!(phase, Phase::Deciding(_)) => {
                let from = NextOffset(state.next);
                state.next = to.0;
                self.tell(KafkaEvent::LostToRetention { partition: partition.clone(), from, to });
                self.resume(partition, held);
            }
            Decision::Continue if matches!(phase, Phase::Deciding(_)) => self.resume(partition, held),
            _ => {}
        }
    }

    fn resume(&mut self, partition: &TopicPartition, held: bool) {
        if !held {
            self.fetch_from_next(partition);
        } else if let Some(state) = self.partitions.get_mut(partition) {
            state.phase = Phase::Held;
        }
    }
}

/// Copies a batch out and sends it, partition by partition; returns partitions that had an error, and whether it is that their
/// position is not in their log.
fn dispatch(
    batch: &Batch<'_>,
    partitions: &mut HashMap<TopicPartition, Partition>,
    gate: &FetchGate,
    events: &UnboundedSender<KafkaEvent>,
    lookup: &Mailbox<LookupCommand>,
) -> Vec<(TopicPartition, bool)> {
    let mut troubled = Vec::new();
    for neighbours in batch.neighbours() {
        let first = neighbours.first();
        let partition = || TopicPartition::new(first.topic(), first.partition());
        if first.code() == Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED {
            not_readable(&partition(), partitions, lookup);
            troubled.push((partition(), false));
            continue;
        }
        if first.code() != OK {
            troubled.push((partition(), consumer_error(first, lookup)));
            continue;
        }
        let partition = partition();
        // Not ours (any more): dropped.
        let ours = partitions.get_mut(&partition).filter(|state| state.phase == Phase::Fetching);
        let Some(state) = ours else { continue };
        if std::mem::take(&mut state.unreadable) {
            lookup.send(LookupCommand::ReadAgain(Arc::clone(&partition.topic)));
        }
        state.next = neighbours.last().offset().saturating_add(1);
        let (runs, bytes) = copy(neighbours);
        gate.put(bytes);
        let _receiver_gone = events.send(KafkaEvent::Records { partition, epoch: state.epoch, runs, bytes });
    }
    troubled
}

/// librdkafka says it once a partition, and tries on in silence.
fn not_readable(
    partition: &TopicPartition,
    partitions: &mut HashMap<TopicPartition, Partition>,
    lookup: &Mailbox<LookupCommand>,
) {
    tracing::warn!(%partition, "the topic may not be read: the right READ is missing");
    if let Some(state) = partitions.get_mut(partition) {
        state.unreadable = true;
        lookup.send(LookupCommand::Unreadable(Arc::clone(&partition.topic)));
    }
}

/// Whether the position is not in the log.
fn consumer_error(message: MessageView<'_>, lookup: &Mailbox<LookupCommand>) -> bool {
    let code = message.code();
    let text = message.value().map(String::from_utf8_lossy).unwrap_or_default();
    match code {
        Code::RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET
        | Code::RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE
        | Code::RD_KAFKA_RESP_ERR__LOG_TRUNCATION => true,
        code => {
            tracing::warn!(
                topic = message.topic(),
                partition = message.partition(),
                code = code_name(code),
                %text,
                "an error while fetching"
            );
            lookup.send(LookupCommand::Trouble(code, format!("{}: {text}", message.topic())));
            false
        }
    }
}

#[cfg(test)]
mod tests;
