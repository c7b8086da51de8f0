//! Waiting for a state: poll with a deadline, never sleep for a guessed time.

use std::fmt::Debug;
use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_millis(20);

/// Polls until `look` gives `Ok`; at the deadline panics with the last `Err`, which says what was seen instead.
pub async fn eventually<T, E: Debug>(what: &str, deadline: Duration, mut look: impl AsyncFnMut() -> Result<T, E>) -> T {
    let start = Instant::now();
    loop {
        match look().await {
            Ok(value) => return value,
            Err(seen) if start.elapsed() > deadline => panic!("not within {deadline:?}: {what}; seen: {seen:?}"),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// As `eventually`, on a thread that may block.
pub fn eventually_blocking<T, E: Debug>(what: &str, deadline: Duration, mut look: impl FnMut() -> Result<T, E>) -> T {
    let start = Instant::now();
    loop {
        match look() {
            Ok(value) => return value,
            Err(seen) if start.elapsed() > deadline => panic!("not within {deadline:?}: {what}; seen: {seen:?}"),
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}
