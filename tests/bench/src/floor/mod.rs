//! What the gateway is compared with: processes of their own, each as fast as it can honestly be made.

pub mod competing;
pub mod naive;
pub mod raw;
pub mod service;
pub mod source;
pub mod tonic_only;

use std::io::{BufRead as _, Write as _};

/// Says what this process has to say, as a line of JSON.
pub fn say(line: &serde_json::Value) {
    let mut stdout = std::io::stdout().lock();
    // The driver may be gone; then so is this process, in a moment.
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}

/// Waits for a line on stdin. False at its end.
pub fn wait_for_word() -> bool {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).is_ok_and(|read| read > 0)
}
