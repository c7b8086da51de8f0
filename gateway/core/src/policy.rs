//! What a subscription's policy tells the engine. Durations in milliseconds, sizes in bytes; defaults from the contract.

use crate::rng::Rng;

/// Order among records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ordering {
    /// None: every record may be worked at once.
    #[default]
    None,
    /// Records of one key of one partition, one after another. A null key has no order.
    Key,
    /// Records of one partition, one after another.
    Partition,
}

/// How a failed record comes again: `min(max, initial · multiplier^(attempts−1))` ± `jitter`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoff {
    /// After the first failure.
    pub initial_ms: u64,
    /// Factor for each further one.
    pub multiplier: f64,
    /// Never longer than this, before jitter.
    pub max_ms: u64,
    /// Share of the delay by which it may be longer or shorter, 0 to 1.
    pub jitter: f64,
}

/// What happens to a record that failed `max_attempts` times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnExhausted {
    /// Retried at `Backoff::max_ms` for ever, shown as `exhausted`. Losing data must be asked for.
    #[default]
    Block,
    /// Done without anyone having worked it, counted.
    Drop,
    /// Written to the dead-letter topic; done when Kafka acknowledged that write. Needs `Policy::dead_letter_topic`.
    DeadLetter,
}

/// The engine's part of a subscription's configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Order among records.
    pub ordering: Ordering,
    /// A lease that is neither settled nor extended for this long expires.
    pub ack_timeout_ms: u64,
    /// The longest a client may ask for.
    pub max_ack_timeout_ms: u64,
    /// How long a broken session with a `consumer_id` keeps its leases.
    pub resume_timeout_ms: u64,
    /// The longest delay a client may ask for in a Retry.
    pub max_retry_delay_ms: u64,
    /// Counted failures until `on_exhausted`.
    pub max_attempts: u32,
    /// Delay of a retry.
    pub backoff: Backoff,
    /// After `max_attempts`.
    pub on_exhausted: OnExhausted,
    /// Whether the subscription has a dead-letter topic. Without one a client's `dead_letter`, and a record that cannot be
    /// sent, go the way of `on_exhausted`.
    pub dead_letter_topic: bool,
    /// Delay until a dead letter that Kafka did not take is written again.
    pub dead_letter_backoff: Backoff,
    /// Dead letters on their way to Kafka at once, a partition.
    pub dead_letters_in_flight_max: usize,
    /// A record above this is `too_large` at once: key + value + headers, in bytes.
    pub record_bytes_max: u64,
    /// A record that has fitted the frames of no connected session for this long is `too_large`.
    pub too_large_after_ms: u64,
    /// A session's deaths that mark a record until it is a suspect.
    pub suspect_marks: u32,
    /// Sessions that break within this are looked at together: when they are more than half, nobody is to blame.
    pub together_ms: u64,
    /// Commits for durable settlements are at least this far apart.
    pub durable_commit_gap_ms: u64,
    /// A commit at least this often while something changed.
    pub commit_interval_ms: u64,
    /// And as soon as this many records became done since the last one.
    pub commit_count: u64,
    /// Most UTF-16 units of a commit's metadata (Kafka's `offset.metadata.max.bytes`, 4096 by default).
    pub metadata_units_max: usize,
    /// Metadata above this is written at most once a second a partition.
    pub metadata_units_frequent: usize,
    /// Records received above the frontier, a partition.
    pub span_max: u64,
    /// Bytes held, a partition.
    pub partition_bytes_max: u64,
    /// Bytes held, the subscription: at this the whole fetch handle rests.
    pub subscription_bytes_max: u64,
    /// Bytes that are ready to be dealt while every session is full, the subscription: at this the fetch handle rests.
    pub ready_bytes_max: u64,
    /// A released record returns to the session that released it after this.
    pub release_delay_ms: u64,
    /// Records in one frame at most.
    pub frame_records_max: usize,
    /// Bytes in one frame, unless a single record is larger.
    pub frame_bytes_max: usize,
    /// How many ranges a session may have settled and be answered about as "settled before" (10 × window).
    pub remembered_windows: u64,
}

impl Backoff {
    /// The delay after so many failures: `min(max, initial · multiplier^(failures−1))` ± jitter.
    pub(crate) fn delay_ms(&self, failures: u32, rng: &mut Rng) -> u64 {
        let power = i32::try_from(failures.saturating_sub(1)).unwrap_or(i32::MAX);
        let grown = self.initial_ms as f64 * self.multiplier.powi(power);
        let max = self.max_ms as f64;
        self.jittered(if grown.is_finite() { grown.clamp(0.0, max) } else { max }, rng)
    }

    /// The longest delay ± jitter.
    pub(crate) fn longest_ms(&self, rng: &mut Rng) -> u64 {
        self.jittered(self.max_ms as f64, rng)
    }

    fn jittered(&self, delay_ms: f64, rng: &mut Rng) -> u64 {
        (delay_ms * self.jitter.mul_add(rng.signed_unit(), 1.0)).max(0.0) as u64
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            ordering: Ordering::None,
            ack_timeout_ms: 300_000,
            max_ack_timeout_ms: 12 * 3_600_000,
            resume_timeout_ms: 3_000,
            max_retry_delay_ms: 3_600_000,
            max_attempts: 5,
            backoff: Backoff { initial_ms: 1_000, multiplier: 2.0, max_ms: 300_000, jitter: 0.2 },
            on_exhausted: OnExhausted::Block,
            dead_letter_topic: false,
            dead_letter_backoff: Backoff { initial_ms: 200, multiplier: 2.0, max_ms: 10_000, jitter: 0.2 },
            dead_letters_in_flight_max: 100,
            record_bytes_max: 64 << 20,
            too_large_after_ms: 300_000,
            suspect_marks: 2,
            together_ms: 1_000,
            durable_commit_gap_ms: 5,
            commit_interval_ms: 250,
            commit_count: 10_000,
            metadata_units_max: 4_096,
            metadata_units_frequent: 2_048,
            span_max: 1_000_000,
            partition_bytes_max: 64 << 20,
            subscription_bytes_max: 256 << 20,
            ready_bytes_max: 2 << 20,
            release_delay_ms: 100,
            frame_records_max: 100,
            frame_bytes_max: 128 << 10,
            remembered_windows: 10,
        }
    }
}
