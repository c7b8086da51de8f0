//! The engine through its public face, in virtual time.

mod commits;
mod dealing;
mod durable;
mod lanes;
mod letters;
mod relayed;
mod revoking;
mod sessions;
mod settling;
mod suspects;

use crate::*;

/// An engine, its time, and short names for its inputs.
pub(crate) struct World {
    pub(crate) engine: Engine,
    pub(crate) now: Millis,
}

pub(crate) const EPOCH: Epoch = Epoch(7);

pub(crate) fn p(partition: i32) -> TopicPartition {
    TopicPartition::new("t", partition)
}

pub(crate) fn record(offset: i64) -> Record {
    record_of(offset, 10)
}

pub(crate) fn record_of(offset: i64, bytes: usize) -> Record {
    let value = Some(bytes::Bytes::from(vec![b'x'; bytes]));
    Record { offset, timestamp_ms: 0, key: None, value, headers: None }
}

pub(crate) fn range(first: i64, last: i64) -> OffsetRange {
    OffsetRange { first, last }
}

pub(crate) fn leases(partition: i32, offsets: &[OffsetRange]) -> Leases {
    Leases { partition: p(partition), epoch: EPOCH, offsets: offsets.to_vec() }
}

/// Offsets dealt, by session and frame.
pub(crate) fn dealt(outputs: &[Output]) -> Vec<(u64, u64, Vec<i64>)> {
    let of = |output: &Output| match output {
        Output::Deliver { session, sequence, batches } => {
            let offsets = batches.iter().flat_map(|b| b.records.iter().map(|d| d.record.offset)).collect();
            Some((session.0, *sequence, offsets))
        }
        _ => None,
    };
    outputs.iter().filter_map(of).collect()
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(|_| ())
    }

    pub(crate) fn with(change: impl FnOnce(&mut Policy)) -> Self {
        let mut policy = Policy::default();
        policy.backoff.jitter = 0.0;
        change(&mut policy);
        Self { engine: Engine::new(policy, 1), now: Millis(1_000) }
    }

    pub(crate) fn assign(&mut self, partition: i32) {
        self.assign_at(partition, 0, None);
    }

    pub(crate) fn assign_at(&mut self, partition: i32, next: i64, metadata: Option<String>) -> Restored {
        let assignment = Assignment {
            partition: p(partition),
            epoch: EPOCH,
            next: NextOffset(next),
            metadata,
            topic_hash: 5,
            commit_now: false,
        };
        self.engine.assigned(self.now, assignment)
    }

    pub(crate) fn receive(&mut self, partition: i32, offsets: impl IntoIterator<Item = i64>) {
        let records = offsets.into_iter().map(record).collect();
        self.engine.records(self.now, &p(partition), EPOCH, records);
    }

    pub(crate) fn open(&mut self, consumer: Option<&str>, max_records: u32) -> SessionId {
        let window = Some(Window { max_records, max_bytes: 0 });
        let open = Open { consumer_id: consumer.map(Into::into), window, ..Open::default() };
        self.engine.open(self.now, open).session
    }

    pub(crate) fn settle(
        &mut self,
        session: SessionId,
        seen: u64,
        offsets: &[OffsetRange],
        outcome: Outcome,
    ) -> Vec<Rejection> {
        let settlements = vec![Settlement { leases: leases(0, offsets), outcome }];
        let settlements = Settlements { request_id: 0, durable: false, seen, settlements };
        let rejections = self.engine.settle_unary(self.now, Some(session), settlements).now().unwrap();
        self.engine.check().unwrap();
        rejections
    }

    pub(crate) fn ack(&mut self, session: SessionId, seen: u64, first: i64, last: i64) -> Vec<Rejection> {
        self.settle(session, seen, &[range(first, last)], Outcome::Ack)
    }

    /// All outputs.
    pub(crate) fn poll(&mut self) -> Vec<Output> {
        let outputs = std::iter::from_fn(|| self.engine.poll_output(self.now)).collect();
        self.engine.check().unwrap();
        outputs
    }

    /// Time goes on.
    pub(crate) fn after(&mut self, ms: u64) -> Vec<Output> {
        self.now = self.now.plus(ms);
        self.engine.tick(self.now);
        self.poll()
    }

    pub(crate) fn committed(&mut self, outputs: &[Output]) -> Option<(i64, String)> {
        let mut last = None;
        for output in outputs {
            if let Output::Commit { partition, epoch, offset, metadata } = output {
                self.engine.commit_result(self.now, partition, *epoch, Ok(*offset));
                last = Some((offset.0, metadata.clone()));
            }
        }
        last
    }
}
