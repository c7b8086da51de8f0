//! Log lines that repeat: librdkafka says "brokers are down" many times a second while Kafka is away.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hash};
use std::time::{Duration, Instant};

/// The same line is logged once in this time.
const REPEAT_AFTER: Duration = Duration::from_secs(10);
/// Different lines that are remembered.
const LINES_MAX: usize = 256;

/// Which lines were logged lately.
#[derive(Debug, Default)]
pub(crate) struct Repeats {
    hasher: RandomState,
    lines: HashMap<u64, Line>,
}

#[derive(Debug)]
struct Line {
    logged_at: Instant,
    suppressed: u64,
}

impl Repeats {
    /// Whether to log this line now: `Some` with how often it was left out since it was logged last.
    pub(crate) fn admit(&mut self, line: impl Hash, now: Instant) -> Option<u64> {
        let hash = self.hasher.hash_one(line);
        if let Some(line) = self.lines.get_mut(&hash) {
            if now.duration_since(line.logged_at) < REPEAT_AFTER {
                line.suppressed += 1;
                return None;
            }
            line.logged_at = now;
            return Some(std::mem::take(&mut line.suppressed));
        }
        if self.lines.len() >= LINES_MAX {
            self.lines.retain(|_, line| now.duration_since(line.logged_at) < REPEAT_AFTER);
        }
        if self.lines.len() >= LINES_MAX {
            self.lines.clear();
        }
        self.lines.insert(hash, Line { logged_at: now, suppressed: 0 });
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_repeats_is_logged_once_in_a_while_and_says_how_often() {
        let (mut repeats, start) = (Repeats::default(), Instant::now());
        assert_eq!(repeats.admit("down", start), Some(0));
        assert_eq!(repeats.admit("up", start), Some(0));
        for ms in 1..=100 {
            assert_eq!(repeats.admit("down", start + Duration::from_millis(ms)), None);
        }
        assert_eq!(repeats.admit("down", start + REPEAT_AFTER), Some(100));
        assert_eq!(repeats.admit("down", start + 2 * REPEAT_AFTER), Some(0));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut repeats, start) = (Repeats::default(), Instant::now());
        for line in 0..10 * LINES_MAX {
            assert_eq!(repeats.admit(line, start), Some(0));
        }
        assert!(repeats.lines.len() <= LINES_MAX);
    }
}
