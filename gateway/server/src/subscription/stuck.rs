//! Partitions whose head does not move: an operator is told once, and shown who holds it.

use std::collections::HashMap;

use sluice_core::{Millis, PartitionView, Policy, TopicPartition};

use super::driver::Driver;

/// How often the driver looks. Each look visits every partition.
const CHECK_INTERVAL_MS: u64 = 5_000;
/// A span above this share of its limit, and mostly done, is that of a stuck head.
const SPAN_SHARE_PERCENT: u64 = 80;

/// Heads that were told of.
#[derive(Debug, Default)]
pub(super) struct Stuck {
    checked_at: Option<Millis>,
    told: HashMap<TopicPartition, i64>,
}

/// Whether the oldest record not done has held its partition for too long: by its age, or by what is done behind it. A
/// backlog fills the span too, but with records that are not done.
pub(super) fn is_stuck(view: &PartitionView, policy: &Policy, after_ms: u64) -> bool {
    view.oldest_undone_offset.is_some()
        && (view.oldest_undone_age_ms >= after_ms || by_span(view.span, view.done_above_frontier, policy.span_max))
}

fn by_span(span: u64, done: u64, span_max: u64) -> bool {
    let share = u128::from(span_max) * u128::from(SPAN_SHARE_PERCENT) / 100;
    u128::from(span) >= share.max(1) && done > span / 2
}

impl Driver {
    pub(super) fn check_stuck(&mut self, now: Millis) {
        let due = |at: Millis| now.0.saturating_sub(at.0) >= CHECK_INTERVAL_MS.min(self.settings.stuck_after_ms);
        if !self.stuck.checked_at.is_none_or(due) {
            return;
        }
        self.stuck.checked_at = Some(now);
        let mut told = std::mem::take(&mut self.stuck.told);
        for view in self.engine.partitions(now) {
            let head = view.oldest_undone_offset;
            let Some(offset) = head.filter(|_| is_stuck(&view, self.engine.policy(), self.settings.stuck_after_ms))
            else {
                continue;
            };
            if told.remove(&view.partition) != Some(offset) {
                let holder = view.oldest_undone_holder.and_then(|session| self.seats.get(&session));
                let holder: String =
                    holder.map(|seat| seat.token().chars().take(super::SESSION_PREFIX).collect()).unwrap_or_default();
                tracing::warn!(
                    subscription = %self.settings.name, partition = %view.partition, offset, holder,
                    age_ms = view.oldest_undone_age_ms, span = view.span,
                    blocked_on = view.blocked_on.map_or("", |cause| cause.as_str()),
                    "a record holds its partition: nothing above it is committed"
                );
            }
            self.stuck.told.insert(view.partition, offset);
        }
        for (partition, offset) in told.drain().filter(|(partition, _)| !self.stuck.told.contains_key(partition)) {
            tracing::info!(subscription = %self.settings.name, %partition, offset, "the partition moves again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::by_span;

    #[test]
    fn a_span_that_is_mostly_done_is_that_of_a_stuck_head_and_a_backlog_is_not() {
        assert!(!by_span(79, 78, 100));
        assert!(by_span(80, 79, 100));
        assert!(!by_span(100, 50, 100), "a backlog");
        assert!(by_span(1, 1, 1));
        assert!(!by_span(0, 0, 1));
    }
}
