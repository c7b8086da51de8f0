//! The lookup thread: everything that waits for a broker's answer. Where a partition begins, what an offset out of
//! range means, whether commits still stand, how Kafka is.
//!
//! A partition is never forgotten: its lookup is repeated until it works or the partition is not ours any more.

mod facts;
mod group;
mod offsets;
mod seek;
mod state;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_core::{Assignment, Epoch, NextOffset, TopicPartition, metadata_topic_hash};
use tokio::sync::mpsc::UnboundedSender;

use crate::describe::Describer;
use crate::ffi::{Code, Handle, List, OK, PartitionResult, code_name};
use crate::io::{KafkaConfig, KafkaEvent, ResetCause, Start};
use crate::messages::{Decision, FetchCommand, LookupCommand, Silence, Token};
use crate::signal::Mailbox;

use facts::{Topics, new_epoch};
use group::Group;
use offsets::Patience;
use state::Health;

/// One try to get an answer.
const TRY_WITHIN: Duration = Duration::from_secs(5);
/// Between tries.
const RETRY_AFTER: Duration = Duration::from_millis(250);
/// How often watermarks are read.
const WATERMARKS_EVERY: Duration = Duration::from_secs(5);
/// What a partition begins with is worth waiting for.
const FOR_ALL: Patience = Patience { each: TRY_WITHIN, all: Duration::MAX };
/// Lag is not: beginnings wait behind it.
const FOR_LAG: Patience = Patience { each: TRY_WITHIN, all: Duration::from_secs(1) };
/// How often committed values are read back, after the first time.
const READ_BACK_EVERY: Duration = Duration::from_secs(60);

/// A partition that is ours and began.
struct Active {
    token: Token,
    /// The last offset that Kafka acknowledged.
    acknowledged: Option<i64>,
    read_back_at: Instant,
    watermarks_at: Instant,
}

struct OutOfRange {
    partition: TopicPartition,
    token: Token,
    epoch: Epoch,
    next: NextOffset,
}

/// The state of the thread.
pub(crate) struct Lookup {
    config: Arc<KafkaConfig>,
    handle: Arc<Handle>,
    commands: Arc<Mailbox<LookupCommand>>,
    fetch: Arc<Mailbox<FetchCommand>>,
    events: UnboundedSender<KafkaEvent>,
    waiting: Vec<(TopicPartition, Token)>,
    out_of_range: Vec<OutOfRange>,
    active: HashMap<TopicPartition, Active>,
    topics: Topics,
    health: Health,
    group: Group,
    retry_at: Instant,
    ids_at: Instant,
}

impl Lookup {
    pub(crate) fn new(
        config: &Arc<KafkaConfig>,
        handle: Arc<Handle>,
        commands: &Arc<Mailbox<LookupCommand>>,
        fetch: &Arc<Mailbox<FetchCommand>>,
        silence: &Arc<Silence>,
        events: UnboundedSender<KafkaEvent>,
        describer: Option<Describer>,
    ) -> Self {
        let now = Instant::now();
        Self {
            config: Arc::clone(config),
            handle,
            commands: Arc::clone(commands),
            fetch: Arc::clone(fetch),
            health: Health::new(events.clone(), Arc::clone(silence)),
            group: Group::new(config, describer),
            events,
            waiting: Vec::new(),
            out_of_range: Vec::new(),
            active: HashMap::new(),
            topics: Topics::default(),
            retry_at: now,
            ids_at: now,
        }
    }

    pub(crate) fn run(mut self) {
        loop {
            while let Some(command) = self.commands.take() {
                if matches!(command, LookupCommand::Stop) {
                    return;
                }
                self.handle(command);
            }
            let now = Instant::now();
            if now >= self.retry_at && !(self.waiting.is_empty() && self.out_of_range.is_empty()) {
                self.begin_waiting();
                self.decide_out_of_range();
                // After the tries, which may have taken seconds: what else is to be done has its turn too.
                self.retry_at = Instant::now() + RETRY_AFTER;
            }
            self.topics.note_fresh(&self.handle, &self.config, TRY_WITHIN);
            self.health.probe(&self.handle, &self.config);
            self.check_ids();
            self.read_back();
            self.watermarks();
            self.look_at_group();
            let idle = self.waiting.is_empty() && self.out_of_range.is_empty();
            self.commands.signal().wait(if idle { Duration::from_millis(500) } else { RETRY_AFTER });
        }
    }

    fn handle(&mut self, command: LookupCommand) {
        match command {
            LookupCommand::Joining => {
                self.topics.joining();
                self.health.joined(true);
                self.group.joining();
            }
            LookupCommand::Idle => {
                self.health.joined(false);
                if let Some(members) = self.group.left(&self.config) {
                    self.tell(KafkaEvent::Group(members));
                }
            }
            LookupCommand::Begin(partition, token) => {
                self.health.a_group_answered();
                self.waiting.retain(|(waiting, _)| *waiting != partition);
                self.waiting.push((partition, token));
                self.retry_at = Instant::now();
            }
            LookupCommand::Forget(partition) => {
                self.waiting.retain(|(waiting, _)| *waiting != partition);
                self.out_of_range.retain(|it| it.partition != partition);
                self.active.remove(&partition);
            }
            LookupCommand::OutOfRange { partition, token, epoch, next } => {
                self.out_of_range.push(OutOfRange { partition, token, epoch, next });
                self.retry_at = Instant::now();
            }
            LookupCommand::Seek(command) => self.on_seek(command),
            LookupCommand::Acknowledged(partition, next) => {
                self.health.a_group_answered();
                if let Some(active) = self.active.get_mut(&partition) {
                    active.acknowledged = Some(next.0);
                }
            }
            LookupCommand::Trouble(code, text) => {
                self.health.trouble(code, &text);
                if matches!(
                    code,
                    Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART
                        | Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_ID
                        | Code::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC
                ) {
                    self.ids_at = self.ids_at.min(Instant::now() + Duration::from_secs(1));
                }
            }
            LookupCommand::Unreadable(topic) => self.health.unreadable(&topic),
            LookupCommand::ReadAgain(topic) => self.health.read_again(&topic),
            LookupCommand::Stop => {}
        }
    }

    /// The receiver is gone only when the subscription is being dropped: then nobody needs to hear it.
    fn tell(&self, event: KafkaEvent) {
        let _receiver_gone = self.events.send(event);
    }

    // === where a partition begins ===

    fn begin_waiting(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let waiting: Vec<_> = self.waiting.iter().map(|(partition, _)| partition.clone()).collect();
        let committed = match self.handle.committed(&List::of(&waiting), TRY_WITHIN) {
            Ok(committed) => committed,
            Err(code) => {
                tracing::warn!(group = self.config.group, code = code_name(code), "committed offsets were not read");
                self.health.trouble(code, "committed offsets were not read");
                return;
            }
        };
        let topics: HashSet<Arc<str>> = waiting.iter().map(|partition| Arc::clone(&partition.topic)).collect();
        for topic in &topics {
            self.refresh_id(topic);
        }
        let mut commits_of = HashMap::new();
        let mut by_policy: Vec<(Assignment, Start)> = Vec::new();
        for result in committed {
            match self.assignment(&result, &mut commits_of) {
                Ok((assignment, None)) => self.begin(assignment),
                Ok((assignment, Some(start))) => by_policy.push((assignment, start)),
                Err(code) => self.not_known(&result.partition, code),
            }
        }
        self.begin_by_policy(by_policy);
    }

    fn not_known(&mut self, partition: &TopicPartition, code: Code) {
        tracing::warn!(%partition, code = code_name(code), "not known where to begin");
        self.health.trouble(code, "where to begin is not known");
    }

    /// What has no commit that counts begins where the policy says.
    fn begin_by_policy(&mut self, by_policy: Vec<(Assignment, Start)>) {
        let mut policies = vec![Start::Earliest, self.config.start];
        policies.dedup();
        let mut found = HashMap::new();
        for policy in policies {
            let of: Vec<_> = by_policy.iter().filter(|(_, start)| *start == policy).collect();
            let of: Vec<_> = of.into_iter().map(|(assignment, _)| assignment.partition.clone()).collect();
            found.extend(offsets::starts(&self.handle, &of, policy, FOR_ALL));
        }
        for (mut assignment, _) in by_policy {
            match found.get(&assignment.partition) {
                Some(Ok(offset)) => {
                    assignment.next = NextOffset(*offset);
                    assignment.metadata = None;
                    assignment.commit_now = true;
                    self.begin(assignment);
                }
                Some(Err(code)) => self.not_known(&assignment.partition, *code),
                None => self.not_known(&assignment.partition, Code::RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION),
            }
        }
    }

    fn begin(&mut self, assignment: Assignment) {
        let waits = self.waiting.iter().position(|(partition, _)| *partition == assignment.partition);
        let Some((partition, token)) = waits.map(|index| self.waiting.swap_remove(index)) else { return };
        tracing::info!(
            %partition,
            next = assignment.next.0,
            committed = !assignment.commit_now,
            topic_hash = assignment.topic_hash,
            "begins"
        );
        let now = Instant::now();
        let acknowledged = (!assignment.commit_now).then_some(assignment.next.0);
        let active =
            Active { token, acknowledged, read_back_at: now + self.config.session_timeout(), watermarks_at: now };
        self.active.insert(partition, active);
        self.fetch.send(FetchCommand::Begin(token, assignment));
    }

    /// What to begin with; where, is for the policy to say when one is given beside it.
    fn assignment(
        &self,
        committed: &PartitionResult,
        commits_of: &mut HashMap<Arc<str>, Vec<PartitionResult>>,
    ) -> Result<(Assignment, Option<Start>), Code> {
        if committed.code != OK {
            return Err(committed.code);
        }
        let partition = &committed.partition;
        let assignment = Assignment {
            partition: partition.clone(),
            epoch: new_epoch(),
            next: NextOffset(committed.offset),
            metadata: committed.metadata.clone(),
            topic_hash: self.topics.hash(&partition.topic),
            commit_now: false,
        };
        if committed.offset >= 0 {
            let of_another = assignment.metadata.as_deref().and_then(metadata_topic_hash).unwrap_or(0);
            if of_another == 0 || assignment.topic_hash == 0 || of_another == assignment.topic_hash {
                return Ok((assignment, None));
            }
            tracing::error!(
                %partition,
                next = committed.offset,
                "the commit is of a topic of this name that was deleted: the new one is read from its beginning"
            );
            return Ok((assignment, Some(Start::Earliest)));
        }
        if !commits_of.contains_key(&partition.topic) {
            commits_of.insert(Arc::clone(&partition.topic), self.topics.commits(&self.handle, &partition.topic)?);
        }
        let applies = self.topics.start_applies(partition, &commits_of[&partition.topic]);
        Ok((assignment, Some(if applies { self.config.start } else { Start::Earliest })))
    }

    // === offsets that lie ===

    fn decide_out_of_range(&mut self) {
        let topics: HashSet<_> = self.out_of_range.iter().map(|it| Arc::clone(&it.partition.topic)).collect();
        for topic in &topics {
            // Made again: that decides for all its partitions, and none is left in the list.
            self.refresh_id(topic);
        }
        if self.out_of_range.is_empty() {
            return;
        }
        let partitions: Vec<_> = self.out_of_range.iter().map(|it| it.partition.clone()).collect();
        let mut found = offsets::watermarks(&self.handle, &partitions, FOR_ALL);
        for it in std::mem::take(&mut self.out_of_range) {
            match found.remove(&it.partition) {
                Some(Ok((low, high))) => self.decide(&it, low, high),
                failed => {
                    let code = failed.and_then(Result::err).map_or("", code_name);
                    tracing::warn!(partition = %it.partition, code, "the log's ends were not read");
                    self.out_of_range.push(it);
                }
            }
        }
    }

    fn decide(&mut self, it: &OutOfRange, low: i64, high: i64) {
        let OutOfRange { partition, token, epoch, next } = it;
        let decision = if next.0 < low {
            tracing::error!(%partition, epoch = epoch.0, from = next.0, to = low, "records were lost to retention");
            Decision::LostToRetention(NextOffset(low))
        } else if next.0 > high {
            tracing::error!(%partition, epoch = epoch.0, next = next.0, end = high, "the log was truncated below the position");
            Decision::Reset(ResetCause::LogTruncated, self.anew(partition, high))
        } else {
            tracing::warn!(%partition, next = next.0, low, high, "the position is in the log after all");
            Decision::Continue
        };
        if let Some(active) = self.active.get_mut(partition).filter(|_| matches!(decision, Decision::Reset(..))) {
            // What was acknowledged before is void: a lower value is no rewind.
            active.acknowledged = None;
        }
        self.fetch.send(FetchCommand::Decided(*token, partition.clone(), decision));
    }

    /// An assignment in which nothing of what was known counts.
    fn anew(&self, partition: &TopicPartition, next: i64) -> Assignment {
        Assignment {
            partition: partition.clone(),
            epoch: new_epoch(),
            next: NextOffset(next),
            metadata: None,
            topic_hash: self.topics.hash(&partition.topic),
            commit_now: true,
        }
    }

    /// Reads a topic's id; `true`: the topic was made again, and its partitions begin anew.
    fn refresh_id(&mut self, topic: &Arc<str>) -> bool {
        if !self.topics.refresh_id(&self.handle, topic) {
            return false;
        }
        tracing::error!(%topic, "the topic was deleted and made again: it is read from its beginning");
        let partitions = self.active.iter().filter(|(it, _)| it.topic == *topic);
        let partitions: Vec<_> = partitions.map(|(partition, active)| (partition.clone(), active.token)).collect();
        let of: Vec<_> = partitions.iter().map(|(partition, _)| partition.clone()).collect();
        let lows = offsets::starts(&self.handle, &of, Start::Earliest, FOR_ALL);
        for (partition, token) in partitions {
            let low = lows.get(&partition).copied().and_then(Result::ok).unwrap_or(0);
            let decision = Decision::Reset(ResetCause::TopicRecreated, self.anew(&partition, low));
            self.fetch.send(FetchCommand::Decided(token, partition, decision));
        }
        for (_, active) in self.active.iter_mut().filter(|(it, _)| it.topic == *topic) {
            active.acknowledged = None;
        }
        self.out_of_range.retain(|it| it.partition.topic != *topic);
        true
    }

    fn check_ids(&mut self) {
        if Instant::now() < self.ids_at {
            return;
        }
        self.ids_at = Instant::now() + self.config.metadata_refresh;
        let topics: HashSet<Arc<str>> = self.active.keys().map(|partition| Arc::clone(&partition.topic)).collect();
        for topic in &topics {
            self.refresh_id(topic);
        }
    }

    // === what is looked at now and then ===

    /// Reads committed values back: nobody but us fences a commit, so an old one may have rewound ours.
    fn read_back(&mut self) {
        let now = Instant::now();
        let due: Vec<(TopicPartition, i64)> = self
            .active
            .iter()
            .filter(|(_, active)| now >= active.read_back_at)
            .filter_map(|(partition, active)| active.acknowledged.map(|offset| (partition.clone(), offset)))
            .collect();
        if due.is_empty() {
            return;
        }
        let list = List::of(due.iter().map(|(partition, _)| partition));
        let committed = self.handle.committed(&list, TRY_WITHIN);
        let after = if committed.is_ok() { READ_BACK_EVERY } else { TRY_WITHIN };
        let committed = committed.unwrap_or_default();
        for (partition, acknowledged) in due {
            if let Some(active) = self.active.get_mut(&partition) {
                active.read_back_at = Instant::now() + after;
            }
            let Some(found) = committed.iter().find(|it| it.partition == partition && it.code == OK) else { continue };
            if found.offset < acknowledged {
                tracing::error!(%partition, acknowledged, found = found.offset, "a commit was rewound by another");
                self.tell(KafkaEvent::CommitRewound(partition));
            }
        }
    }

    fn look_at_group(&mut self) {
        if let Some(members) = self.group.look(&self.config) {
            self.tell(KafkaEvent::Group(members));
        }
    }

    fn watermarks(&mut self) {
        let now = Instant::now();
        let due = self.active.iter_mut().filter(|(_, active)| now >= active.watermarks_at);
        let due: Vec<_> = due
            .map(|(partition, active)| {
                active.watermarks_at = now + WATERMARKS_EVERY;
                partition.clone()
            })
            .collect();
        if due.is_empty() {
            return;
        }
        for (partition, found) in offsets::watermarks(&self.handle, &due, FOR_LAG) {
            if let Ok((low, high)) = found {
                self.tell(KafkaEvent::Watermarks { partition, low, high });
            }
        }
    }
}

#[cfg(test)]
mod tests;
