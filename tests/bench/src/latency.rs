//! Latencies: from the time at which a record was meant to be sent, whenever it was.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::machine::now_ns;

/// Where a value bears the time: after eight bytes of a number.
const INTENDED_AT: std::ops::Range<usize> = 8..16;

/// The time of `now_ns` at which this record was meant to be sent; `None`: it bears none.
pub fn intended_ns(value: Option<&[u8]>) -> Option<u64> {
    let bytes = value?.get(INTENDED_AT)?.try_into().ok()?;
    Some(u64::from_le_bytes(bytes))
}

/// Writes it into a value of at least 16 bytes, behind a number.
pub fn stamp(value: &mut [u8], number: u64, intended_ns: u64) {
    value[..INTENDED_AT.start].copy_from_slice(&number.to_le_bytes());
    value[INTENDED_AT].copy_from_slice(&intended_ns.to_le_bytes());
}

/// A distribution, in microseconds.
#[derive(Debug)]
pub struct Latency(Histogram<u64>);

impl Default for Latency {
    fn default() -> Self {
        // Up to ten minutes, three digits.
        Self(Histogram::new_with_bounds(1, 600_000_000, 3).expect("bounds that hdrhistogram takes"))
    }
}

impl Latency {
    /// One record, received now. A clock that reads behind the sender's (never on one machine) counts as nothing.
    pub fn record(&mut self, intended_ns: Option<u64>) {
        if let Some(intended) = intended_ns {
            self.add_us(now_ns().saturating_sub(intended) / 1_000);
        }
    }

    /// A duration.
    pub fn add_us(&mut self, us: u64) {
        self.0.saturating_record(us.max(1));
    }

    pub fn percentiles(&self) -> Percentiles {
        let ms = |us: u64| us as f64 / 1_000.0;
        let at = |quantile| ms(self.0.value_at_quantile(quantile));
        Percentiles {
            count: self.0.len(),
            mean_ms: self.0.mean() / 1_000.0,
            p50_ms: at(0.5),
            p90_ms: at(0.9),
            p99_ms: at(0.99),
            p999_ms: at(0.999),
            max_ms: ms(self.0.max()),
        }
    }
}

/// What is told of a distribution.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Percentiles {
    pub count: u64,
    pub mean_ms: f64,
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub max_ms: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamped_value_tells_its_time() {
        let mut value = [7; 20];
        stamp(&mut value, 3, 42);
        assert_eq!(intended_ns(Some(&value)), Some(42));
        assert_eq!(intended_ns(Some(&value[..15])), None);
        assert_eq!(intended_ns(None), None);
    }

    #[test]
    fn percentiles_are_milliseconds() {
        let mut latency = Latency::default();
        (1..=1_000).for_each(|ms| latency.add_us(ms * 1_000));
        let found = latency.percentiles();
        assert!((found.p50_ms - 500.0).abs() < 1.0, "{found:?}");
        assert!((found.p99_ms - 990.0).abs() < 1.0, "{found:?}");
        assert_eq!(found.count, 1_000);
    }
}
