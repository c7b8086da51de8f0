//! The member thread: joins, answers rebalances, commits. It never fetches, and never waits for a broker.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use sluice_core::{CommitError, Epoch, NextOffset, TopicPartition};
use tokio::sync::mpsc::UnboundedSender;

use crate::ffi::{Code, Event, Handle, List, OK, PartitionResult, Purpose, Queue, boot_time, code_name};
use crate::io::{KafkaCommand, KafkaConfig, KafkaEvent, Protocol};
use crate::messages::{Epochs, FetchCommand, LookupCommand, Silence, Token};
use crate::repeats::Repeats;
use crate::signal::Mailbox;
use crate::subscription::{Error, spawn};

/// How often deadlines are looked at, and a queue whose edge was missed.
const SWEEP: Duration = Duration::from_millis(100);
/// The fetch thread answers in milliseconds; beyond this something is broken, and waiting on does not mend it.
const FETCH_ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// A handle that could not be made is tried again after this.
const REJOIN_AFTER: Duration = Duration::from_secs(1);
/// Destroying a handle takes this long at most, or goes on behind our back.
const DESTROY_WITHIN: Duration = Duration::from_secs(5);
/// A broker drops a connection on which commit metadata of more than this many bytes comes.
const METADATA_BYTES_MAX: usize = 32_767;

/// A member handle and its queues, in the order in which they must be dropped.
struct Live {
    commits: Queue,
    events: Queue,
    handle: Arc<Handle>,
}

struct InFlight {
    partition: TopicPartition,
    epoch: Epoch,
    offset: NextOffset,
    since: Instant,
    /// The driver was told that it failed; its reply is still awaited, because it may still be carried out.
    given_up: bool,
}

/// A rebalance that is not answered yet.
struct Revoke {
    partitions: HashSet<TopicPartition>,
    /// Not yet drained by the driver, which has them in these epochs.
    waiting: HashMap<TopicPartition, Epoch>,
    since: Instant,
}

/// The state of the thread.
pub(crate) struct Member {
    config: Arc<KafkaConfig>,
    commands: Arc<Mailbox<KafkaCommand>>,
    fetch: Arc<Mailbox<FetchCommand>>,
    lookup: Arc<Mailbox<LookupCommand>>,
    epochs: Arc<Epochs>,
    silence: Arc<Silence>,
    events: UnboundedSender<KafkaEvent>,
    live: Option<Live>,
    /// We want to be a member, and have no handle: try at this time.
    join_at: Option<Instant>,
    owned: HashSet<TopicPartition>,
    revoke: Option<Revoke>,
    in_flight: HashMap<usize, InFlight>,
    /// Numbers commits and assignments.
    counter: u64,
    /// Errors that were logged lately.
    repeats: Repeats,
}

impl Member {
    pub(crate) fn new(
        config: &Arc<KafkaConfig>,
        commands: &Arc<Mailbox<KafkaCommand>>,
        fetch: &Arc<Mailbox<FetchCommand>>,
        lookup: &Arc<Mailbox<LookupCommand>>,
        epochs: &Arc<Epochs>,
        silence: &Arc<Silence>,
        events: UnboundedSender<KafkaEvent>,
    ) -> Self {
        Self {
            config: Arc::clone(config),
            commands: Arc::clone(commands),
            fetch: Arc::clone(fetch),
            lookup: Arc::clone(lookup),
            epochs: Arc::clone(epochs),
            silence: Arc::clone(silence),
            events,
            live: None,
            join_at: None,
            owned: HashSet::new(),
            revoke: None,
            in_flight: HashMap::new(),
            counter: 0,
            repeats: Repeats::default(),
        }
    }

    pub(crate) fn run(mut self) {
        loop {
            while let Some(command) = self.commands.take() {
                if self.command(command) {
                    return;
                }
            }
            self.drain_queues();
            self.check_deadlines();
            let before = boot_time();
            self.commands.signal().wait(SWEEP);
            if boot_time().saturating_sub(before) >= self.config.session_timeout() && self.live.is_some() {
                // The process was frozen, or the machine slept: the group may have given our partitions away.
                self.start_anew("this process stood still for longer than the group's session timeout");
            }
        }
    }

    /// The receiver is gone only when the subscription is being dropped: then nobody needs to hear it.
    fn tell(&self, event: KafkaEvent) {
        let _receiver_gone = self.events.send(event);
    }

    /// `true`: the thread ends.
    fn command(&mut self, command: KafkaCommand) -> bool {
        match command {
            KafkaCommand::Join => {
                if self.live.is_none() {
                    self.lookup.send(LookupCommand::Joining);
                    self.join();
                }
            }
            KafkaCommand::Commit { partition, epoch, offset, metadata } => {
                self.commit(partition, epoch, offset, &metadata);
            }
            KafkaCommand::Revoked(partition, epoch) => {
                if let Some(revoke) = &mut self.revoke
                    && revoke.waiting.get(&partition) == Some(&epoch)
                {
                    revoke.waiting.remove(&partition);
                }
                self.answer_revoke_if_drained();
            }
            KafkaCommand::Hold(partition, epoch) => self.fetch.send(FetchCommand::Hold(partition, epoch)),
            KafkaCommand::Unhold(partition, epoch, next) => {
                self.fetch.send(FetchCommand::Unhold(partition, epoch, next));
            }
            KafkaCommand::Seek(command) => self.lookup.send(LookupCommand::Seek(command)),
            KafkaCommand::Leave(within) => {
                self.leave(within);
                self.lookup.send(LookupCommand::Idle);
                self.tell(KafkaEvent::Left);
            }
            KafkaCommand::Shutdown(within) => {
                self.leave(within);
                self.fetch.send(FetchCommand::Stop);
                self.lookup.send(LookupCommand::Stop);
                self.tell(KafkaEvent::Left);
                return true;
            }
        }
        false
    }

    fn join(&mut self) {
        match self.open() {
            Ok(live) => {
                tracing::info!(group = self.config.group, topics = ?self.config.topics, "joining the group");
                self.live = Some(live);
                self.join_at = None;
            }
            Err(error) => {
                tracing::error!(group = self.config.group, %error, "no member handle; trying again");
                self.join_at = Some(Instant::now() + REJOIN_AFTER);
            }
        }
    }

    fn open(&self) -> Result<Live, Error> {
        let handle = Arc::new(Handle::new(Purpose::Member, &self.config.properties_for(Purpose::Member))?);
        let mut events =
            Queue::consumer(&handle).ok_or_else(|| Error::Config("the member handle has no queue".to_owned()))?;
        events.wake(self.commands.signal());
        let mut commits = Queue::new(&handle);
        commits.wake(self.commands.signal());
        handle.subscribe(&self.config.topics).map_err(|code| Error::Config(code_name(code).to_owned()))?;
        Ok(Live { commits, events, handle })
    }

    fn drain_queues(&mut self) {
        // One event at a time, because handling one may replace the handle.
        while let Some(event) = self.live.as_ref().and_then(|live| live.commits.poll().or_else(|| live.events.poll())) {
            match event {
                Event::Rebalance { assign: true, partitions, .. } => self.assigned(partitions),
                Event::Rebalance { assign: false, lost, partitions } => self.revoked(partitions, lost),
                Event::Committed { opaque, code, partitions } => self.replied(opaque, code, &partitions),
                Event::Error { code, text, fatal } => self.error(code, text, fatal),
                Event::Other => {}
            }
        }
    }

    fn error(&mut self, code: Code, text: String, fatal: bool) {
        if let Some(suppressed) = self.repeats.admit((code, &text), Instant::now()) {
            let (group, code) = (&self.config.group, code_name(code));
            tracing::warn!(group, code, text, fatal, suppressed, "an error of the member handle");
        }
        self.lookup.send(LookupCommand::Trouble(code, text));
        if fatal {
            self.give_up_handle("a fatal error of the member handle");
            self.join_at = Some(Instant::now() + REJOIN_AFTER);
        }
    }

    // === rebalances ===

    /// Answers at once, since a deferred answer blocks the other members; where to begin is found out meanwhile.
    fn assigned(&mut self, partitions: Vec<TopicPartition>) {
        tracing::info!(group = self.config.group, partitions = %names(&partitions), "assigned");
        // A broker said so, whatever the lookup thread has heard by now.
        self.silence.note(true, Instant::now());
        self.answer(true);
        for partition in partitions {
            if self.owned.insert(partition.clone()) {
                self.epochs.end(&partition);
                self.counter += 1;
                let token = Token(self.counter);
                self.fetch.send(FetchCommand::Expect(partition.clone(), token));
                self.lookup.send(LookupCommand::Begin(partition, token));
            }
        }
    }

    fn revoked(&mut self, partitions: Vec<TopicPartition>, lost: bool) {
        tracing::info!(group = self.config.group, partitions = %names(&partitions), lost, "revoked");
        if lost {
            let unanswered = self.in_flight.values().any(|commit| partitions.contains(&commit.partition));
            if unanswered {
                // Parked in librdkafka it could be sent after the rejoin, and rewind the new owner.
                self.start_anew("partitions are lost with a commit that has no reply");
                return;
            }
            self.lose(partitions, false);
            self.answer(false);
            return;
        }
        let announced = self.take_from_fetch(&partitions);
        self.revoke = Some(Revoke {
            partitions: partitions.into_iter().collect(),
            waiting: announced.into_iter().collect(),
            since: Instant::now(),
        });
        self.answer_revoke_if_drained();
    }

    /// Takes partitions off the fetch handle and announces the revoke; returns those that the driver must drain.
    fn take_from_fetch(&self, partitions: &[TopicPartition]) -> Vec<(TopicPartition, Epoch)> {
        for partition in partitions {
            self.lookup.send(LookupCommand::Forget(partition.clone()));
        }
        let partitions = partitions.to_vec();
        let grace = self.config.grace();
        self.ask_fetch(|answer| FetchCommand::Revoke { partitions, grace, answer }).unwrap_or_default()
    }

    fn ask_fetch<T>(&self, command: impl FnOnce(SyncSender<T>) -> FetchCommand) -> Option<T> {
        let (answer, reply): (_, Receiver<T>) = sync_channel(1);
        self.fetch.send(command(answer));
        let reply = reply.recv_timeout(FETCH_ANSWER_WITHIN).ok();
        if reply.is_none() {
            tracing::error!(group = self.config.group, "the fetch thread does not answer");
        }
        reply
    }

    /// The fetch handle is emptied of them; the driver hears it unless `quiet`.
    fn lose(&mut self, partitions: Vec<TopicPartition>, quiet: bool) {
        for partition in &partitions {
            self.owned.remove(partition);
            self.epochs.end(partition);
            self.lookup.send(LookupCommand::Forget(partition.clone()));
        }
        let _timed_out = self.ask_fetch(|answer| FetchCommand::Lose { partitions, quiet, answer });
    }

    /// Answers when the driver has drained all, and no commit of one of them is without a reply.
    fn answer_revoke_if_drained(&mut self) {
        let Some(revoke) = &self.revoke else { return };
        if !revoke.waiting.is_empty() || self.in_flight.values().any(|it| revoke.partitions.contains(&it.partition)) {
            return;
        }
        let Some(revoke) = self.revoke.take() else { return };
        tracing::info!(
            group = self.config.group,
            partitions = revoke.partitions.len(),
            after_ms = revoke.since.elapsed().as_millis(),
            "the revoke is answered"
        );
        self.owned.retain(|partition| !revoke.partitions.contains(partition));
        self.answer(false);
    }

    fn answer(&self, assign: bool) {
        let Some(live) = &self.live else { return };
        if let Err(error) = live.handle.answer(assign) {
            tracing::error!(group = self.config.group, assign, error, "librdkafka did not take the answer");
        }
    }

    // === commits ===

    fn commit(&mut self, partition: TopicPartition, epoch: Epoch, offset: NextOffset, metadata: &str) {
        let of_before = |it: &InFlight| it.partition == partition && it.epoch != epoch;
        let refused = if metadata.len() > METADATA_BYTES_MAX {
            Some(CommitError::MetadataTooLarge)
        } else if self.in_flight.values().any(of_before) {
            // Repeated by librdkafka it could be carried out after this one.
            Some(CommitError::Retriable)
        } else if self.owned.contains(&partition) && self.epochs.is_live(&partition, epoch) {
            None
        } else {
            // Of an earlier epoch it would be taken, though others may have owned the partition in between.
            Some(CommitError::NotMember)
        };
        let Some(live) = self.live.as_ref().filter(|_| refused.is_none()) else {
            let error = refused.unwrap_or(CommitError::NotMember);
            self.tell(KafkaEvent::Committed { partition, epoch, result: Err(error) });
            return;
        };
        // Each partition alone: one error of a request is copied to all its partitions.
        self.counter += 1;
        let opaque = usize::try_from(self.counter).unwrap_or(usize::MAX);
        let list = List::with_metadata(&partition, offset.0, metadata);
        match live.commits.commit(&list, opaque) {
            Ok(()) => {
                let commit = InFlight { partition, epoch, offset, since: Instant::now(), given_up: false };
                self.in_flight.insert(opaque, commit);
            }
            Err(code) => {
                tracing::warn!(%partition, code = code_name(code), "librdkafka did not take a commit");
                self.tell(KafkaEvent::Committed { partition, epoch, result: Err(CommitError::Retriable) });
            }
        }
    }

    fn replied(&mut self, opaque: usize, code: Code, results: &[PartitionResult]) {
        let Some(commit) = self.in_flight.remove(&opaque) else { return };
        let code = results.iter().map(|result| result.code).find(|code| *code != OK).unwrap_or(code);
        let InFlight { partition, epoch, offset, given_up, .. } = commit;
        let topic = Arc::clone(&partition.topic);
        if code == OK {
            self.silence.note(true, Instant::now());
            self.lookup.send(LookupCommand::Acknowledged(partition.clone(), offset));
        } else {
            tracing::debug!(%partition, offset = offset.0, code = code_name(code), "a commit was refused");
        }
        let result = if code == OK { Ok(offset) } else { Err(commit_error(code)) };
        if !given_up {
            self.tell(KafkaEvent::Committed { partition, epoch, result });
        }
        match code {
            Code::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED => {
                self.lookup.send(LookupCommand::Trouble(code, "a commit was refused".to_owned()));
            }
            Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED => {
                self.lookup.send(LookupCommand::Unreadable(topic));
            }
            _ => {}
        }
        if result == Err(CommitError::NotMember) {
            // librdkafka says nothing of its own: we were evicted, and others own the partitions.
            self.start_anew("a commit says that we are no member any more");
        } else {
            self.answer_revoke_if_drained();
        }
    }

    // === deadlines ===

    fn check_deadlines(&mut self) {
        if self.join_at.is_some_and(|at| Instant::now() >= at) {
            self.join();
        }
        let deadline = self.config.commit_deadline;
        let mut failed = Vec::new();
        for commit in self.in_flight.values_mut() {
            if !commit.given_up && commit.since.elapsed() >= deadline {
                commit.given_up = true;
                failed.push((commit.partition.clone(), commit.epoch));
            }
        }
        for (partition, epoch) in failed {
            tracing::warn!(%partition, "a commit has no reply within its deadline");
            self.tell(KafkaEvent::Committed { partition, epoch, result: Err(CommitError::Retriable) });
        }
        if self.is_cut_off() {
            self.start_anew("no word from the coordinator for a session timeout");
            return;
        }
        let Some(revoke) = &self.revoke else { return };
        let parked = self.in_flight.values().filter(|commit| revoke.partitions.contains(&commit.partition));
        let parked_too_long =
            parked.map(|commit| commit.since.max(revoke.since)).any(|since| since.elapsed() >= deadline);
        let limit = (self.config.grace() + deadline + Duration::from_secs(1)).min(self.config.answer_within());
        if parked_too_long {
            self.start_anew("a revoke waits for a commit that has no reply");
        } else if revoke.since.elapsed() >= limit {
            tracing::error!(
                group = self.config.group,
                waiting = revoke.waiting.len(),
                "a revoke was not drained in time"
            );
            self.start_anew("a revoke was not drained in time");
        }
    }

    /// Under KIP-848 librdkafka says nothing when its heartbeats stay unanswered, and goes on as if it owned everything; a
    /// commit that has waited for a whole session tells, and so does a whole session in which no broker answered anything. The
    /// classic protocol ends its session by itself.
    fn is_cut_off(&self) -> bool {
        let timeout = self.config.session_timeout();
        let is_silent = !self.owned.is_empty() && self.silence.lasts(Instant::now()) >= timeout;
        self.config.protocol == Protocol::Consumer
            && (is_silent || self.in_flight.values().any(|commit| commit.since.elapsed() >= timeout))
    }

    /// The fetch handle is emptied, the member handle destroyed with whatever is parked in it, and a new one joins.
    fn start_anew(&mut self, why: &str) {
        self.give_up_handle(why);
        self.join();
    }

    fn give_up_handle(&mut self, why: &str) {
        tracing::error!(group = self.config.group, why, "the member handle is made anew; its partitions are lost");
        let partitions: Vec<_> = self.owned.iter().cloned().collect();
        self.lose(partitions, false);
        if let Some(revoke) = self.revoke.as_ref().filter(|revoke| !revoke.waiting.is_empty()) {
            // The fetch thread has forgotten these already; the driver still lets their leases be settled.
            self.tell(KafkaEvent::Lost(revoke.waiting.keys().cloned().collect()));
        }
        for commit in self.in_flight.values().filter(|commit| !commit.given_up) {
            let (partition, epoch) = (commit.partition.clone(), commit.epoch);
            self.tell(KafkaEvent::Committed { partition, epoch, result: Err(CommitError::NotMember) });
        }
        self.forget();
        if let Some(live) = self.live.take() {
            // Without a close: nothing that is parked may be sent any more.
            self.destroy(live, DESTROY_WITHIN);
        }
    }

    fn forget(&mut self) {
        self.owned.clear();
        self.revoke = None;
        self.in_flight.clear();
    }

    fn destroy(&self, live: Live, within: Duration) {
        let (done, destroyed) = sync_channel(1);
        let spawned = spawn("kafka-drop", move || {
            drop(live);
            let _nobody_waits = done.send(());
        });
        if spawned.is_err() || destroyed.recv_timeout(within).is_err() {
            tracing::warn!(group = self.config.group, "a member handle is still being destroyed");
        }
    }

    // === leaving ===

    fn leave(&mut self, within: Duration) {
        let until = Instant::now() + within;
        self.join_at = None;
        self.lose(self.owned.iter().cloned().collect(), true);
        if self.revoke.take().is_some() {
            // A close waits for ever behind an event that is not answered.
            self.answer(false);
        }
        if let Some(live) = self.live.take() {
            self.close(&live, until);
            self.destroy(live, until.saturating_duration_since(Instant::now()));
        }
        self.forget();
    }

    /// Waits for the replies that are out (half of the time at most), then leaves the group.
    fn close(&mut self, live: &Live, until: Instant) {
        let replies_until = Instant::now() + until.saturating_duration_since(Instant::now()) / 2;
        while !self.in_flight.is_empty() && Instant::now() < replies_until {
            match live.commits.poll() {
                Some(Event::Committed { opaque, code, partitions }) => {
                    self.reply_while_leaving(opaque, code, &partitions)
                }
                Some(_) => {}
                None => self.commands.signal().wait(Duration::from_millis(10)),
            }
        }
        if !self.in_flight.is_empty() {
            // A close would wait for them, and they could be sent later: gone without a word is safer.
            tracing::warn!(group = self.config.group, commits = self.in_flight.len(), "left with commits unanswered");
            return;
        }
        if let Err(error) = live.handle.close(&live.events) {
            tracing::warn!(group = self.config.group, error, "the group could not be left properly");
            return;
        }
        while !live.handle.closed() && Instant::now() < until {
            match live.events.poll() {
                Some(Event::Rebalance { assign, .. }) => {
                    if let Err(error) = live.handle.answer(assign) {
                        tracing::warn!(group = self.config.group, error, "a rebalance was not answered while leaving");
                    }
                }
                Some(_) => {}
                None => self.commands.signal().wait(Duration::from_millis(10)),
            }
        }
    }

    fn reply_while_leaving(&mut self, opaque: usize, code: Code, results: &[PartitionResult]) {
        let Some(commit) = self.in_flight.remove(&opaque) else { return };
        let code = results.iter().map(|result| result.code).find(|code| *code != OK).unwrap_or(code);
        let result = if code == OK { Ok(commit.offset) } else { Err(commit_error(code)) };
        self.tell(KafkaEvent::Committed { partition: commit.partition, epoch: commit.epoch, result });
    }
}

fn commit_error(code: Code) -> CommitError {
    match code {
        Code::RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID | Code::RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID => {
            CommitError::NotMember
        }
        Code::RD_KAFKA_RESP_ERR_OFFSET_METADATA_TOO_LARGE => CommitError::MetadataTooLarge,
        _ => CommitError::Retriable,
    }
}

/// Partitions as a person reads them.
fn names(partitions: &[TopicPartition]) -> String {
    partitions.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
