//! What a session sent and the driver has not taken yet. Bounded, because the reader never waits.

use std::collections::VecDeque;

use sluice_core::{Leases, OffsetRange, Outcome, Settlement, Settlements, Window};

/// Ranges that fit beside two windows.
const RANGES_EXTRA: usize = 1_000;
/// However large a window is, no more ranges than this are kept.
const RANGES_MAX: usize = 1 << 20;

/// One thing for the engine.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Input {
    Window(Window),
    /// From an edge: a window, numbered, to be echoed. `whole`: it is all that the client's window is.
    Grant {
        number: u64,
        window: Window,
        whole: bool,
    },
    Settle(Settlements),
}

/// Full, and folding made no room. Holds the limit.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Flood(pub(crate) usize);

/// The queue of one stream.
#[derive(Debug)]
pub(crate) struct Inbox {
    inputs: VecDeque<Input>,
    ranges: usize,
    ranges_max: usize,
}

impl Input {
    /// What it counts. At least one: a flood of empty frames is a flood too.
    fn ranges(&self) -> usize {
        match self {
            Self::Window(_) | Self::Grant { .. } => 1,
            Self::Settle(s) => s.settlements.iter().map(|s| s.leases.offsets.len().max(1)).sum::<usize>().max(1),
        }
    }
}

impl Inbox {
    pub(crate) fn new(window: Window) -> Self {
        let mut inbox = Self { inputs: VecDeque::new(), ranges: 0, ranges_max: 0 };
        inbox.raise_limit(window);
        inbox
    }

    /// The limit follows the largest window: what was dealt under it may still be settled.
    fn raise_limit(&mut self, window: Window) {
        let records = usize::try_from(window.max_records).unwrap_or(usize::MAX);
        self.ranges_max = self.ranges_max.max(records.saturating_mul(2).saturating_add(RANGES_EXTRA).min(RANGES_MAX));
    }

    /// The most ranges that may wait.
    pub(crate) fn ranges_max(&self) -> usize {
        self.ranges_max
    }

    /// Adds an input; a window replaces one that waits at the end.
    pub(crate) fn push(&mut self, input: Input) -> Result<(), Flood> {
        if let Input::Grant { window, .. } = &input {
            self.raise_limit(*window);
            // One is under way at a time, and its edge waits for the echo: it is never too much.
            self.ranges += 1;
            self.inputs.push_back(input);
            return Ok(());
        }
        if let Input::Window(window) = &input {
            self.raise_limit(*window);
            if let Some(Input::Window(last)) = self.inputs.back_mut() {
                *last = *window;
                return Ok(());
            }
        }
        // It asks for nothing, not even for an answer.
        if matches!(&input, Input::Settle(s) if s.request_id == 0 && s.settlements.is_empty()) {
            return Ok(());
        }
        let ranges = input.ranges();
        if self.ranges + ranges > self.ranges_max {
            self.fold();
            if self.ranges + ranges > self.ranges_max {
                return Err(Flood(self.ranges_max));
            }
        }
        self.ranges += ranges;
        self.inputs.push_back(input);
        Ok(())
    }

    /// Takes everything.
    pub(crate) fn take(&mut self) -> VecDeque<Input> {
        self.ranges = 0;
        std::mem::take(&mut self.inputs)
    }

    /// Joins neighbouring frames that mean the same, and their ranges. Only frames with the same `seen` are joined: a
    /// range under a later `seen` could swallow a record that was dealt again in between. Of the windows the last counts:
    /// nothing is dealt before all that waits was applied.
    fn fold(&mut self) {
        let mut folded: VecDeque<Input> = VecDeque::with_capacity(self.inputs.len());
        let last_window = self.inputs.iter().rposition(|input| matches!(input, Input::Window(_)));
        for (at, input) in self.inputs.drain(..).enumerate() {
            if matches!(input, Input::Window(_)) && Some(at) != last_window {
                continue;
            }
            match (folded.back_mut(), input) {
                (Some(Input::Settle(last)), Input::Settle(next)) if same_frame(last, &next) => {
                    last.settlements.extend(next.settlements);
                }
                (_, input) => folded.push_back(input),
            }
        }
        for input in &mut folded {
            if let Input::Settle(settlements) = input {
                settlements.settlements =
                    join_settlements(std::mem::take(&mut settlements.settlements), settlements.seen);
            }
        }
        self.ranges = folded.iter().map(Input::ranges).sum();
        self.inputs = folded;
    }
}

/// Whether two frames may be one: nobody waits for an answer to either.
fn same_frame(a: &Settlements, b: &Settlements) -> bool {
    a.request_id == 0 && b.request_id == 0 && a.durable == b.durable && a.seen == b.seen
}

fn join_settlements(settlements: Vec<Settlement>, seen: u64) -> Vec<Settlement> {
    let mut joined: Vec<Settlement> = Vec::new();
    for settlement in settlements {
        match joined.last_mut() {
            Some(last)
                if last.outcome == settlement.outcome
                    && matches!(last.outcome, Outcome::Ack | Outcome::Release)
                    && last.leases.partition == settlement.leases.partition
                    && last.leases.epoch == settlement.leases.epoch =>
            {
                last.leases.offsets.extend(settlement.leases.offsets);
            }
            _ => joined.push(settlement),
        }
    }
    // Without `seen` a range of more than one offset is invalid, so single offsets stay single.
    if seen != 0 {
        for settlement in &mut joined {
            join_ranges(&mut settlement.leases);
        }
    }
    joined
}

/// Joins ranges that touch. Reversed ones are answered INVALID by the engine, so they stay as they are.
fn join_ranges(leases: &mut Leases) {
    if leases.offsets.iter().any(|range| range.first > range.last) {
        return;
    }
    leases.offsets.sort_unstable_by_key(|range| range.first);
    let mut joined: Vec<OffsetRange> = Vec::with_capacity(leases.offsets.len());
    for range in leases.offsets.drain(..) {
        match joined.last_mut() {
            Some(last) if range.first <= last.last.saturating_add(1) => last.last = last.last.max(range.last),
            _ => joined.push(range),
        }
    }
    leases.offsets = joined;
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_core::{Epoch, TopicPartition};

    fn ack(offset: i64, seen: u64) -> Input {
        settle(Outcome::Ack, offset, seen)
    }

    fn settle(outcome: Outcome, offset: i64, seen: u64) -> Input {
        let leases =
            Leases { partition: TopicPartition::new("t", 0), epoch: Epoch(7), offsets: vec![OffsetRange::one(offset)] };
        Input::Settle(Settlements { seen, settlements: vec![Settlement { leases, outcome }], ..Default::default() })
    }

    #[test]
    fn a_full_inbox_is_folded_into_ranges() {
        let mut inbox = Inbox::new(Window { max_records: 10, max_bytes: 0 });
        for offset in 0..50_000 {
            inbox.push(ack(offset, 3)).unwrap();
        }
        let offsets: Vec<_> = inbox
            .take()
            .into_iter()
            .flat_map(|input| match input {
                Input::Settle(s) => s.settlements.into_iter().flat_map(|s| s.leases.offsets).collect::<Vec<_>>(),
                _ => Vec::new(),
            })
            .collect();
        assert!(offsets.len() <= 1_020);
        assert_eq!(offsets.iter().map(|r| r.last - r.first + 1).sum::<i64>(), 50_000);
    }

    #[test]
    fn what_cannot_be_folded_is_a_flood() {
        let mut inbox = Inbox::new(Window::default());
        let flood = (0..).find_map(|i| inbox.push(ack(i, i.unsigned_abs() + 1)).err());
        assert_eq!(flood, Some(Flood(RANGES_EXTRA)));
    }

    #[test]
    fn frames_of_another_seen_and_other_outcomes_stay_apart() {
        let mut inbox = Inbox::new(Window::default());
        for input in [
            ack(1, 1),
            ack(2, 2),
            settle(Outcome::Retry { delay_ms: Some(0), reason: String::new() }, 3, 2),
            ack(3, 2),
            ack(4, 2),
        ] {
            inbox.push(input).unwrap();
        }
        inbox.fold();
        let shape: Vec<Vec<usize>> = inbox
            .inputs
            .iter()
            .map(|input| match input {
                Input::Settle(s) => s.settlements.iter().map(|s| s.leases.offsets.len()).collect(),
                _ => Vec::new(),
            })
            .collect();
        assert_eq!(shape, [vec![1], vec![1, 1, 1]]);
    }

    #[test]
    fn without_seen_single_offsets_stay_single() {
        let mut inbox = Inbox::new(Window::default());
        inbox.push(ack(1, 0)).unwrap();
        inbox.push(ack(2, 0)).unwrap();
        inbox.fold();
        assert_eq!(inbox.ranges, 2);
    }

    #[test]
    fn windows_between_settlements_are_no_flood_and_empty_frames_are_nothing() {
        let mut inbox = Inbox::new(Window::default());
        for n in 0..10_000 {
            inbox.push(Input::Window(Window { max_records: 1, max_bytes: n })).unwrap();
            inbox.push(Input::Settle(Settlements::default())).unwrap();
            inbox.push(ack(i64::try_from(n).unwrap(), 7)).unwrap();
        }
        let windows = |input: &Input| matches!(input, Input::Window(_));
        let inputs = inbox.take();
        assert_eq!(inputs.iter().rfind(|input| windows(input)), {
            Some(&Input::Window(Window { max_records: 1, max_bytes: 9_999 }))
        });
        assert!(inputs.len() <= RANGES_EXTRA + 2);
    }

    #[test]
    fn a_grant_is_taken_also_when_the_inbox_is_full() {
        let mut inbox = Inbox::new(Window::default());
        let flood = (0..).find_map(|i| inbox.push(ack(i, i.unsigned_abs() + 1)).err());
        assert!(flood.is_some());
        inbox.push(Input::Grant { number: 1, window: Window::default(), whole: false }).unwrap();
        assert!(matches!(inbox.take().back(), Some(Input::Grant { number: 1, .. })));
    }

    #[test]
    fn the_largest_window_keeps_a_bounded_inbox() {
        let inbox = Inbox::new(Window { max_records: u32::MAX, max_bytes: 0 });
        assert_eq!(inbox.ranges_max, RANGES_MAX);
    }

    #[test]
    fn the_last_window_wins_in_place() {
        let mut inbox = Inbox::new(Window::default());
        for max_records in 0..10_000 {
            inbox.push(Input::Window(Window { max_records, max_bytes: 0 })).unwrap();
        }
        assert_eq!(inbox.take(), [Input::Window(Window { max_records: 9_999, max_bytes: 0 })]);
    }
}
