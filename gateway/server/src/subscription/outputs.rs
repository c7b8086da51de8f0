//! What the engine tells the driver to do.

use std::sync::Arc;

use sluice_core::{Millis, Output, RejectReason, Rejection, SessionId, TopicPartition};
use sluice_kafka::KafkaCommand;

use super::driver::Driver;
use crate::session::{Link, encode};

impl Driver {
    pub(super) fn pull_outputs(&mut self, now: Millis) {
        while let Some(output) = self.engine.poll_output(now) {
            self.on_output(now, output);
        }
    }

    fn on_output(&mut self, now: Millis, output: Output) {
        match output {
            Output::Deliver { session, sequence, batches } => {
                if let Some(link) = self.link(session) {
                    link.deliver(sequence, batches);
                }
            }
            Output::Settled { session, request_id, rejections } => {
                self.count_rejections(&rejections);
                self.send(session, || encode::settled(request_id, rejections));
            }
            Output::SettledUnary { ticket, rejections } => {
                if let Some(reply) = self.unary.remove(&ticket) {
                    self.answer_unary(reply, rejections);
                }
            }
            Output::DeadLetter { partition, epoch, letter } => self.on_dead_letter(now, partition, epoch, letter),
            Output::Revoked { session, leases, reason } => self.send(session, || encode::revoked(leases, reason)),
            Output::Committed { session, partition, offset } => {
                self.send(session, || encode::committed(&partition, offset));
            }
            Output::Commit { partition, epoch, offset, metadata } => {
                (self.kafka.send)(KafkaCommand::Commit { partition, epoch, offset, metadata });
            }
            Output::Drained { partition } => self.on_drained(partition),
            Output::Hold { partition } => {
                self.counts.partition_holds += 1;
                if let Some(epoch) = self.assigned.get(&partition).copied() {
                    (self.kafka.send)(KafkaCommand::Hold(partition, epoch));
                }
            }
            Output::Unhold { partition, next } => {
                if let Some(epoch) = self.assigned.get(&partition).copied() {
                    (self.kafka.send)(KafkaCommand::Unhold(partition, epoch, next));
                }
            }
            Output::Rest(rest) => self.rest = rest,
            Output::Gone { session } => self.forget_session(session),
        }
    }

    fn link(&self, session: SessionId) -> Option<&Arc<Link>> {
        self.seats.get(&session).and_then(|seat| seat.link.as_ref())
    }

    fn send(&self, session: SessionId, message: impl FnOnce() -> sluice_proto::v1::ConsumeResponse) {
        if let Some(link) = self.link(session) {
            link.send(message());
        }
    }

    fn on_drained(&mut self, partition: TopicPartition) {
        tracing::info!(subscription = %self.settings.name, %partition, "partition handed over");
        let awaited = self.revoking.get(&partition).copied();
        self.forget_partition(&partition);
        if let Some(epoch) = awaited {
            (self.kafka.send)(KafkaCommand::Revoked(partition, epoch));
        }
    }

    pub(super) fn count_rejections(&mut self, rejections: &[Rejection]) {
        for rejection in rejections {
            match rejection.reason {
                RejectReason::NotHeld => self.counts.rejected_not_held += 1,
                RejectReason::StaleEpoch => self.counts.rejected_stale_epoch += 1,
                RejectReason::Invalid => self.counts.rejected_invalid += 1,
            }
        }
    }
}
