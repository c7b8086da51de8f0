//! When to send a Ping, and when a silent session is broken. Pure: times are milliseconds since the stream began.

/// What is known of a stream's life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Life {
    /// The last frame that came from the client.
    pub(crate) heard: u64,
    /// The last frame, Pings included, that the transport took.
    pub(crate) sent: u64,
    /// The last frame other than a Ping that the transport took: a slow reader is alive while it reads.
    pub(crate) taken: u64,
    /// When a Ping was queued last.
    pub(crate) ping_queued: u64,
    /// When the transport took the first Ping since the last sign of life; `None` while there is none.
    pub(crate) ping_taken: Option<u64>,
}

/// The two durations.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) ping_interval_ms: u64,
    pub(crate) session_timeout_ms: u64,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing until then.
    Wait(u64),
    /// Send a Ping.
    Ping,
    /// The session is broken.
    Broken,
}

impl Limits {
    /// A Ping must be out well before the session's end, also where the session timeout is short.
    pub(crate) fn new(ping_interval_ms: u64, session_timeout_ms: u64) -> Self {
        let ping_interval_ms = ping_interval_ms.min(session_timeout_ms / 3).max(1);
        Self { ping_interval_ms, session_timeout_ms: session_timeout_ms.max(1) }
    }

    /// The timeout runs only from when the transport took our Ping: a client that could not be asked is not silent.
    pub(crate) fn verdict(self, life: Life, now: u64) -> Verdict {
        let alive = life.heard.max(life.taken);
        let broken_at = life.ping_taken.map(|taken| taken.max(alive) + self.session_timeout_ms);
        if broken_at.is_some_and(|at| at <= now) {
            return Verdict::Broken;
        }
        // Silence in either direction asks for a Ping: proxies cut on ours, and theirs must be told from death.
        let asked = life.ping_queued;
        let ping_at = life.sent.min(alive).max(asked) + self.ping_interval_ms;
        if ping_at <= now {
            return Verdict::Ping;
        }
        Verdict::Wait(broken_at.map_or(ping_at, |at| at.min(ping_at)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { ping_interval_ms: 10, session_timeout_ms: 30 };

    #[test]
    fn a_quiet_stream_is_pinged_and_a_dead_one_is_broken() {
        let mut life = Life::default();
        assert_eq!(LIMITS.verdict(life, 0), Verdict::Wait(10));
        assert_eq!(LIMITS.verdict(life, 10), Verdict::Ping);
        life.ping_queued = 10;
        life.sent = 10;
        life.ping_taken = Some(10);
        assert_eq!(LIMITS.verdict(life, 10), Verdict::Wait(20));
        life.ping_queued = 30;
        life.sent = 30;
        assert_eq!(LIMITS.verdict(life, 39), Verdict::Wait(40));
        assert_eq!(LIMITS.verdict(life, 40), Verdict::Broken);
    }

    #[test]
    fn a_ping_that_the_transport_did_not_take_breaks_nothing() {
        let life = Life { ping_queued: 90, ..Life::default() };
        assert_eq!(LIMITS.verdict(life, 95), Verdict::Wait(100));
    }

    #[test]
    fn a_slow_reader_is_alive_while_it_reads() {
        let life = Life { taken: 35, sent: 35, ping_queued: 30, ping_taken: Some(10), ..Life::default() };
        assert_eq!(LIMITS.verdict(life, 40), Verdict::Wait(45));
        assert_eq!(LIMITS.verdict(Life { ping_queued: 60, ..life }, 65), Verdict::Broken);
    }

    #[test]
    fn a_client_that_only_receives_is_asked_too() {
        let life = Life { heard: 0, sent: 50, taken: 0, ping_queued: 0, ping_taken: None };
        assert_eq!(LIMITS.verdict(life, 50), Verdict::Ping);
    }

    #[test]
    fn short_session_timeouts_are_pinged_in_time() {
        assert_eq!(Limits::new(10_000, 3_000).ping_interval_ms, 1_000);
    }
}
