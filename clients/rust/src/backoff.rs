//! Backoff with full jitter: clients that were cut off together must not come back together.

use std::{
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

/// The ceiling of the first wait.
const INITIAL: Duration = Duration::from_millis(100);
/// No ceiling is above this.
const MAX: Duration = Duration::from_secs(10);

/// How long to wait before the next attempt. The ceiling doubles with each failure from 100 ms to 10 s; the wait is drawn
/// evenly from nothing to the ceiling.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// An attempt succeeded: begin anew.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// The wait after one more failure. Where the server asked for a delay, that one and some jitter above it.
    pub(crate) fn next(&mut self, asked: Option<Duration>) -> Duration {
        let ceiling = self.ceiling();
        self.failures = self.failures.saturating_add(1);
        asked.unwrap_or_default() + jitter(ceiling)
    }

    fn ceiling(&self) -> Duration {
        let factor = 1_u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        INITIAL.saturating_mul(factor).min(MAX)
    }
}

/// A duration drawn evenly from nothing to `ceiling`.
pub(crate) fn jitter(ceiling: Duration) -> Duration {
    // 53 bits are what an f64 holds exactly.
    let share = (random_u64() >> 11) as f64 / (1_u64 << 53) as f64;
    ceiling.mul_f64(share)
}

/// 64 random bits. The standard library keys its hash maps from the operating system's randomness, anew for each state, which
/// is enough for jitter and for names that must not collide, and saves a dependency.
pub(crate) fn random_u64() -> u64 {
    RandomState::new().hash_one(0_u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ceiling_doubles_up_to_ten_seconds() {
        let mut backoff = Backoff::default();
        let mut ceilings = Vec::new();
        for _ in 0..40 {
            ceilings.push(backoff.ceiling().as_millis());
            assert!(backoff.next(None) <= MAX);
        }
        assert_eq!(&ceilings[..8], [100, 200, 400, 800, 1_600, 3_200, 6_400, 10_000]);
        assert!(ceilings[8..].iter().all(|ms| *ms == 10_000));
        backoff.reset();
        assert_eq!(backoff.ceiling(), INITIAL);
    }

    #[test]
    fn a_delay_asked_for_is_the_least() {
        let asked = Duration::from_secs(7);
        let wait = Backoff::default().next(Some(asked));
        assert!(wait >= asked && wait <= asked + INITIAL);
    }

    #[test]
    fn jitter_is_spread_over_the_whole_span() {
        let drawn: Vec<_> = (0..1_000).map(|_| jitter(Duration::from_secs(1)).as_millis()).collect();
        assert!(drawn.iter().any(|ms| *ms < 100) && drawn.iter().any(|ms| *ms > 900));
    }
}
