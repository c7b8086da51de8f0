//! Dead letters: from the engine's word to a write, and from Kafka's word back to the engine.

use std::time::{Duration, SystemTime};

use sluice_core::{Epoch, Letter, LetterError, Millis, TopicPartition};
use sluice_kafka::{Done, LetterFacts, LetterOrigin, Write, WriteError, Written};
use tokio::sync::mpsc;

use super::driver::Driver;

/// While writes fail, the log says so this often.
const FAILING_LOG_INTERVAL_MS: u64 = 30_000;

/// Where a subscription's dead letters go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeadLetters {
    pub(crate) topic: String,
    /// Named in each letter: the one that could not do it.
    pub(crate) group: String,
}

/// The end of one write.
#[derive(Debug)]
pub(super) struct LetterEnd {
    partition: TopicPartition,
    epoch: Epoch,
    offset: i64,
    bytes: u64,
    result: Result<Written, WriteError>,
}

/// The writes that are under way. Bounded by the engine: so many a partition.
#[derive(Debug)]
pub(super) struct Letters {
    pub(super) ends: mpsc::UnboundedReceiver<LetterEnd>,
    ended: mpsc::UnboundedSender<LetterEnd>,
    pub(super) pending: u64,
    pub(super) pending_bytes: u64,
    /// What Kafka said of the last write that failed; `None` since one succeeded.
    pub(super) failing: Option<String>,
    logged_at: Option<Millis>,
}

impl Letters {
    pub(super) fn new() -> Self {
        let (ended, ends) = mpsc::unbounded_channel();
        Self { ends, ended, pending: 0, pending_bytes: 0, failing: None, logged_at: None }
    }
}

impl Driver {
    pub(super) fn on_dead_letter(&mut self, now: Millis, partition: TopicPartition, epoch: Epoch, letter: Letter) {
        let Some(to) = &self.settings.dead_letters else {
            debug_assert!(false, "a policy with a dead-letter topic comes with one");
            let offset = letter.record.offset;
            return self.engine.dead_letter_result(now, &partition, epoch, offset, Err(LetterError::Failed));
        };
        let (offset, bytes) = (letter.record.offset, letter.record.bytes() as u64);
        let added = if letter.plain { Vec::new() } else { facts(now, to, &partition, &letter).headers() };
        let ended = self.letters.ended.clone();
        let done = move |result| {
            // A driver that has ended does not care; its partitions are another's, who writes them again.
            let _ended = ended.send(LetterEnd { partition, epoch, offset, bytes, result });
        };
        self.letters.pending += 1;
        self.letters.pending_bytes += bytes;
        let done = Done::new(done);
        (self.kafka.write)(Write { topic: to.topic.clone(), partition: None, record: letter.record, added, done });
    }

    pub(super) fn on_letter_end(&mut self, now: Millis, end: LetterEnd) {
        let LetterEnd { partition, epoch, offset, bytes, result } = end;
        self.letters.pending -= 1;
        self.letters.pending_bytes -= bytes;
        match &result {
            Ok((to_partition, to_offset)) => {
                tracing::debug!(
                    subscription = %self.settings.name, %partition, offset, to_partition, to_offset, "dead letter written"
                );
                if self.letters.failing.take().is_some() {
                    self.letters.logged_at = None;
                    tracing::info!(subscription = %self.settings.name, "dead letters are written again");
                }
            }
            Err(error) => self.on_letter_failed(now, &partition, offset, error),
        }
        let result = result.map(drop).map_err(|error| error.kind);
        self.engine.dead_letter_result(now, &partition, epoch, offset, result);
    }

    fn on_letter_failed(&mut self, now: Millis, partition: &TopicPartition, offset: i64, error: &WriteError) {
        match error.kind {
            LetterError::TooLarge => self.counts.letters_too_large += 1,
            LetterError::Failed => self.counts.letters_failed += 1,
        }
        let log_again = |at: Millis| now.0.saturating_sub(at.0) >= FAILING_LOG_INTERVAL_MS;
        if self.letters.logged_at.is_none_or(log_again) {
            self.letters.logged_at = Some(now);
            tracing::warn!(
                subscription = %self.settings.name, %partition, offset, %error,
                "a dead letter was not written: it is held, and written again"
            );
        }
        self.letters.failing = Some(error.words.clone());
    }
}

fn facts(now: Millis, to: &DeadLetters, partition: &TopicPartition, letter: &Letter) -> LetterFacts {
    let wall = SystemTime::now();
    LetterFacts {
        origin: LetterOrigin {
            topic: partition.topic.to_string(),
            partition: partition.partition,
            offset: letter.record.offset,
            group: to.group.clone(),
        },
        cause: letter.cause,
        reason: letter.reason.as_deref().map(str::to_owned),
        attempts: letter.attempts,
        first_failure_ms: letter.first_failure.map(|at| wall_ms(wall, now, at)),
        last_failure_ms: letter.last_failure.map(|at| wall_ms(wall, now, at)),
    }
}

/// A moment of the boot-time clock, by the wall clock: milliseconds since 1970.
fn wall_ms(wall: SystemTime, now: Millis, at: Millis) -> i64 {
    let ago = Duration::from_millis(now.0.saturating_sub(at.0));
    let since = wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().saturating_sub(ago);
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_of_the_boot_clock_is_shown_by_the_wall_clock() {
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        assert_eq!(wall_ms(wall, Millis(5_000), Millis(2_000)), 997_000);
        assert_eq!(wall_ms(wall, Millis(5_000), Millis(6_000)), 1_000_000, "never in the future");
    }
}
