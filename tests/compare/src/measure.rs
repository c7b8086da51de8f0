//! Numbers out of what workers said. Pure functions: what they count is tested here.

use std::collections::HashMap;
use std::time::SystemTime;

use crate::line::{Event, Share, What};

/// A record: partition and offset.
pub type Id = (i32, i64);

/// Microseconds since 1970, the clock of all workers: they run on one machine.
pub fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    i64::try_from(since.as_micros()).expect("before the year 290000")
}

/// How often the order of a key was broken.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Disorder {
    /// Records that a worker began while an earlier one of their key was not done.
    pub begun_early: usize,
    /// Records that were done before an earlier one of their key.
    pub done_early: usize,
    /// Keys of which at least one record was begun early.
    pub keys: usize,
}

/// Compares first deliveries and acks with the order in which each key's records were written.
pub fn disorder(keys: &[Vec<Id>], events: &[Event]) -> Disorder {
    let begun = first(events, What::Delivered);
    let done = first(events, What::Acked);
    let mut found = Disorder::default();
    for records in keys {
        let mut before_done_at = i64::MIN;
        let mut broken = false;
        for record in records {
            let done_at = done.get(record).copied().unwrap_or(i64::MAX);
            let early = begun.get(record).is_some_and(|begun_at| *begun_at < before_done_at);
            broken |= early;
            found.begun_early += usize::from(early);
            found.done_early += usize::from(done_at < before_done_at);
            before_done_at = before_done_at.max(done_at);
        }
        found.keys += usize::from(broken);
    }
    found
}

/// When each record had this happen for the first time.
pub fn first(events: &[Event], what: What) -> HashMap<Id, i64> {
    let mut first = HashMap::new();
    for event in events.iter().filter(|event| event.what == what) {
        let at = first.entry(event.record()).or_insert(event.at_us);
        *at = event.at_us.min(*at);
    }
    first
}

/// Deliveries of records to which `what` (an ack, a confirmed ack) had happened before.
pub fn delivered_after(what: What, events: &[Event]) -> usize {
    let settled = first(events, what);
    let late = |event: &&Event| settled.get(&event.record()).is_some_and(|at| *at < event.at_us);
    events.iter().filter(|event| event.what == What::Delivered).filter(late).count()
}

/// The longest time in which no record of some partition that had more was given to anybody, from the kill on.
pub fn longest_pause(killed_us: i64, events: &[Event]) -> i64 {
    let mut delivered: Vec<&Event> =
        events.iter().filter(|event| event.what == What::Delivered && event.at_us > killed_us).collect();
    delivered.sort_unstable_by_key(|event| event.at_us);
    let (mut last, mut longest) = (HashMap::new(), 0);
    for event in delivered {
        let before = last.insert(event.partition, event.at_us).unwrap_or(killed_us);
        longest = longest.max(event.at_us - before);
    }
    longest
}

/// What a crowd of workers did in a time.
#[derive(Debug, PartialEq)]
pub struct Crowd {
    pub without_any: usize,
    pub least: u64,
    pub median: u64,
    pub most: u64,
    /// How long a worker had a record in work, on average.
    pub hold_us: f64,
    /// Records a second, if each worker always had one in work.
    pub ideal: f64,
}

/// Sums up the reports of workers.
pub fn crowd(shares: &[Share]) -> Crowd {
    let mut counts: Vec<u64> = shares.iter().map(|share| share.count).collect();
    counts.sort_unstable();
    let busy: i64 = shares.iter().map(|share| share.busy_us).sum();
    let hold_us = busy as f64 / counts.iter().sum::<u64>().max(1) as f64;
    Crowd {
        without_any: counts.iter().filter(|count| **count == 0).count(),
        least: counts.first().copied().unwrap_or(0),
        median: counts.get(counts.len() / 2).copied().unwrap_or(0),
        most: counts.last().copied().unwrap_or(0),
        hold_us,
        ideal: if hold_us > 0.0 { shares.len() as f64 * 1e6 / hold_us } else { 0.0 },
    }
}

/// The value below which this share (0 to 1) of all values lies.
pub fn quantile(values: &mut [i64], share: f64) -> i64 {
    values.sort_unstable();
    let index = ((values.len() as f64 * share).ceil() as usize).clamp(1, values.len().max(1)) - 1;
    values.get(index).copied().unwrap_or(0)
}

/// Keys by Zipf's law: the key of rank r, from 1, has a weight of 1/r. A fixed seed: all runs have the same keys.
pub fn zipf(records: usize, keys: usize) -> Vec<usize> {
    let weights: Vec<f64> = (1..=keys).map(|rank| 1.0 / rank as f64).collect();
    let sum: f64 = weights.iter().sum();
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1_u64 << 53) as f64
    };
    let pick = |mut at: f64| {
        let found = weights.iter().position(|weight| {
            at -= weight;
            at < 0.0
        });
        found.unwrap_or(keys - 1)
    };
    (0..records).map(|_| pick(next() * sum)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(what: What, at_us: i64, offset: i64) -> Event {
        Event { what, at_us, worker: 0, partition: 0, offset }
    }

    #[test]
    fn a_record_begun_before_the_one_ahead_is_done_is_out_of_order() {
        use What::{Acked, Delivered, Failed};
        let keys = [vec![(0, 1), (0, 2), (0, 3)], vec![(0, 4)]];
        let in_order = [
            event(Delivered, 1, 1),
            event(Failed, 2, 1),
            event(Delivered, 3, 1),
            event(Acked, 4, 1),
            event(Delivered, 5, 2),
            event(Acked, 6, 2),
        ];
        assert_eq!(disorder(&keys, &in_order), Disorder::default());
        let overlap = [event(Delivered, 1, 1), event(Delivered, 2, 2), event(Acked, 3, 1), event(Acked, 4, 2)];
        assert_eq!(disorder(&keys, &overlap), Disorder { begun_early: 1, done_early: 0, keys: 1 });
        let overtaken = [event(Delivered, 1, 2), event(Acked, 2, 2), event(Delivered, 3, 1), event(Acked, 4, 1)];
        assert_eq!(disorder(&keys, &overtaken), Disorder { begun_early: 1, done_early: 1, keys: 1 });
    }

    #[test]
    fn a_delivery_after_the_ack_is_a_duplicate_and_a_retry_is_not() {
        use What::{Acked, Delivered, Failed};
        let events = [
            event(Delivered, 1, 1),
            event(Failed, 2, 1),
            event(Delivered, 3, 1),
            event(Acked, 4, 1),
            event(Delivered, 5, 1),
        ];
        assert_eq!(delivered_after(Acked, &events), 1);
        assert_eq!(delivered_after(Acked, &events[..4]), 0);
    }

    #[test]
    fn the_ideal_of_a_crowd_is_that_nobody_ever_waits() {
        let shares = [(0, 0, 0), (1, 2, 50), (2, 4, 100)];
        let shares = shares.map(|(worker, count, busy_us)| Share { worker, count, busy_us });
        let expected = Crowd { without_any: 1, least: 0, median: 2, most: 4, hold_us: 25.0, ideal: 120_000.0 };
        assert_eq!(crowd(&shares), expected);
    }

    #[test]
    fn the_partition_that_waits_longest_counts() {
        let at = |at_us, partition| Event { partition, ..event(What::Delivered, at_us, 1) };
        assert_eq!(longest_pause(10, &[at(5, 2), at(11, 0), at(19, 0), at(13, 1), at(14, 1)]), 8);
        assert_eq!(longest_pause(10, &[at(17, 2), at(11, 0)]), 7);
        assert_eq!(longest_pause(10, &[at(5, 2)]), 0);
    }

    #[test]
    fn quantiles_are_values_that_were_there() {
        let mut values = [5, 1, 4, 2, 3];
        assert_eq!([0.0, 0.5, 0.99, 1.0].map(|share| quantile(&mut values, share)), [1, 3, 5, 5]);
        assert_eq!(quantile(&mut [], 0.5), 0);
    }

    #[test]
    fn zipf_prefers_the_first_keys() {
        let keys = zipf(10_000, 100);
        let of = |key| keys.iter().filter(|found| **found == key).count();
        assert!(of(0) > 5 * of(9) && of(9) > of(99) && of(99) > 0, "{} {} {}", of(0), of(9), of(99));
    }
}
