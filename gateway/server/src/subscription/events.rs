//! What Kafka tells the driver.

use std::sync::atomic::Ordering;

use sluice_core::{Assignment, Epoch, Millis, Restored, RevokeReason, TopicPartition};
use sluice_kafka::{KafkaCommand, KafkaEvent, KafkaState, ResetCause};

use super::driver::Driver;
use super::membership::Membership;
use crate::error::Error;

impl Driver {
    pub(super) fn on_kafka(&mut self, now: Millis, event: KafkaEvent) {
        if let KafkaEvent::Records { bytes, .. } = &event {
            self.kafka.gate.taken(*bytes);
        }
        match event {
            KafkaEvent::State(state) => self.on_state(now, state),
            KafkaEvent::Partitions(count) => self.partitions = count,
            KafkaEvent::Group(members) => self.group.see(&self.settings.name, members),
            KafkaEvent::Left => self.on_left(now),
            KafkaEvent::Panicked(thread) => self.on_kafka_gone(now, &format!("the thread {thread} panicked")),
            // Of a membership that is over: what it owned is given up already.
            _ if !self.member.listens() => {}
            event => {
                if changes_ownership(&event) {
                    // What the engine said of the partitions as they were must not be taken for a word about the new.
                    self.pull_outputs(now);
                }
                self.on_member_event(now, event);
            }
        }
    }

    fn on_member_event(&mut self, now: Millis, event: KafkaEvent) {
        match event {
            KafkaEvent::Records { partition, epoch, runs, .. } => {
                self.engine.runs(now, &partition, epoch, runs);
            }
            KafkaEvent::Position { partition, epoch, next } => self.engine.position(now, &partition, epoch, next),
            KafkaEvent::Committed { partition, epoch, result } => {
                if result.is_ok() {
                    self.sought_is_committed(&partition, epoch);
                }
                self.engine.commit_result(now, &partition, epoch, result);
            }
            KafkaEvent::Assigned(assignment) => self.on_assigned(now, assignment),
            KafkaEvent::Revoking { partitions, grace } => {
                let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
                self.on_revoking(now, partitions, Millis(now.0.saturating_add(grace_ms)));
            }
            KafkaEvent::Lost(partitions) => self.on_lost(now, &partitions),
            KafkaEvent::Reset { partition, cause } => self.on_reset(now, partition, cause),
            KafkaEvent::LostToRetention { partition, from, to } => {
                self.counts.lost_to_retention += u64::try_from(to.0.saturating_sub(from.0)).unwrap_or_default();
                tracing::error!(
                    subscription = %self.settings.name, %partition, from = from.0, to = to.0,
                    "retention passed the position: records were deleted before anyone saw them"
                );
                if let Some(epoch) = self.assigned.get(&partition).copied() {
                    self.engine.position(now, &partition, epoch, to);
                }
            }
            KafkaEvent::CommitRewound(partition) => {
                self.counts.commits_rewound += 1;
                tracing::warn!(subscription = %self.settings.name, %partition, "a commit was rewound by another");
                self.engine.commit_rewound(now, &partition);
            }
            KafkaEvent::Watermarks { partition, low, high } => {
                self.watermarks.insert(partition, (low, high));
            }
            KafkaEvent::State(_)
            | KafkaEvent::Partitions(_)
            | KafkaEvent::Group(_)
            | KafkaEvent::Left
            | KafkaEvent::Panicked(_) => {}
        }
    }

    fn on_assigned(&mut self, now: Millis, assignment: Assignment) {
        let partition = assignment.partition.clone();
        let (next, epoch) = (assignment.next.0, assignment.epoch);
        let restored = self.engine.assigned(now, assignment);
        tracing::info!(subscription = %self.settings.name, %partition, next, ?restored, "partition assigned");
        if restored == Restored::Ignored {
            tracing::warn!(subscription = %self.settings.name, %partition, "the commit's metadata is not ours: ignored");
        }
        self.ever_assigned = true;
        self.assigned.insert(partition.clone(), epoch);
        self.sought_begins(&partition, epoch);
        if self.member.state() == Membership::Draining {
            let deadline = self.drain_deadline(now);
            self.engine.revoking(now, &[partition], deadline);
        }
    }

    fn on_revoking(&mut self, now: Millis, partitions: Vec<(TopicPartition, Epoch)>, deadline: Millis) {
        let (ours, others): (Vec<_>, Vec<_>) =
            partitions.into_iter().partition(|(partition, epoch)| self.assigned.get(partition) == Some(epoch));
        // What we gave up already needs no drain, only the answer.
        for (partition, epoch) in others {
            (self.kafka.send)(KafkaCommand::Revoked(partition, epoch));
        }
        tracing::info!(subscription = %self.settings.name, partitions = ours.len(), "partitions to hand over");
        let names: Vec<_> = ours.iter().map(|(partition, _)| partition.clone()).collect();
        self.engine.revoking(now, &names, deadline);
        self.revoking.extend(ours);
    }

    fn on_lost(&mut self, now: Millis, partitions: &[TopicPartition]) {
        tracing::warn!(subscription = %self.settings.name, partitions = partitions.len(), "partitions lost");
        self.engine.lost(now, partitions, RevokeReason::Reassigned);
        for partition in partitions {
            self.forget_partition(partition);
        }
    }

    pub(super) fn forget_partition(&mut self, partition: &TopicPartition) {
        self.seek_is_off(partition);
        self.assigned.remove(partition);
        self.revoking.remove(partition);
        self.watermarks.remove(partition);
    }

    fn on_reset(&mut self, now: Millis, partition: TopicPartition, cause: ResetCause) {
        match cause {
            ResetCause::TopicRecreated => self.counts.topics_recreated += 1,
            ResetCause::LogTruncated => self.counts.log_truncated += 1,
            ResetCause::Seek => return self.on_sought(now, &partition),
        }
        tracing::error!(subscription = %self.settings.name, %partition, ?cause, "the log is not the one that was read");
        self.engine.lost(now, std::slice::from_ref(&partition), RevokeReason::Reassigned);
        self.forget_partition(&partition);
    }

    fn on_state(&mut self, now: Millis, state: KafkaState) {
        if state != self.kafka_state {
            tracing::info!(subscription = %self.settings.name, ?state, "kafka");
        }
        self.kafka_state = state;
        // Streams that never had a partition are told; others wait, for a topic may be on its way back.
        if let KafkaState::TopicMissing(topic) = &self.kafka_state
            && !self.ever_assigned
        {
            let error = Error::TopicMissing(topic.clone());
            self.end_sessions(now, &error);
        }
    }

    /// Why nothing of the subscription can be served, where Kafka does not let us read it.
    pub(super) fn missing_rights(&self) -> Option<Error> {
        let KafkaState::RightsMissing(missing) = &self.kafka_state else { return None };
        // What may be read is served when it is assigned, whatever else may not.
        let subscription = self.settings.name.to_string();
        missing.whole.then(|| Error::RightsMissing { subscription, missing: missing.clone() })
    }

    /// Those who would wait for records that cannot come are told. To be called each turn: what is assigned changes too.
    pub(super) fn tell_of_missing_rights(&mut self, now: Millis) {
        if self.seats.is_empty() {
            return;
        }
        if let Some(error) = self.missing_rights() {
            self.end_sessions(now, &error);
        }
    }

    fn end_sessions(&mut self, now: Millis, error: &Error) {
        let sessions: Vec<_> = self.seats.keys().copied().collect();
        for session in sessions {
            self.engine.close(now, session, sluice_core::End::Drained);
            if let Some(link) = self.seats.get_mut(&session).and_then(|seat| seat.link.take()) {
                // After a Drain a stream ends well, unless it is an edge that asks.
                let planned = link.drained.load(Ordering::Acquire) && !link.is_relayed();
                link.end(if planned { Ok(()) } else { Err(error.clone().into()) });
            }
            self.forget_session(session);
        }
    }
}

fn changes_ownership(event: &KafkaEvent) -> bool {
    use KafkaEvent::{Assigned, Lost, Reset, Revoking};
    matches!(event, Assigned(_) | Lost(_) | Reset { .. } | Revoking { .. })
}
