//! The boot-time clock: it goes on while the machine sleeps, so a node that slept knows it (see self-fencing).

use rustix::time::{ClockId, clock_gettime};
use sluice_core::Millis;

#[cfg(any(target_os = "linux", target_os = "android"))]
const CLOCK: ClockId = ClockId::Boottime;
// Elsewhere the monotonic clock is the best there is; on macOS it counts sleep too.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const CLOCK: ClockId = ClockId::Monotonic;

/// Milliseconds since the machine started.
pub(crate) fn now() -> Millis {
    let time = clock_gettime(CLOCK);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    let nanos = u64::try_from(time.tv_nsec).unwrap_or_default();
    Millis(seconds * 1_000 + nanos / 1_000_000)
}
