//! How many records at once are good for a session.
//!
//! A frame costs more than its records, so few large ones are cheap; an even share, down to a single record, is what
//! keeps everybody at work. Which of them is right depends on what a worker does with a record. How long leases stay out
//! tells: a lease that was dealt when the session held `n` records with it takes `way + work · n`, where the way
//! (transport, queues on both sides) is the same however many there are. A least-squares line over what the session settled
//! lately gives both. As long as the work of a burst takes no longer than its way, the next frame could not have been with
//! another worker much earlier; beyond that, sharing pays.

/// Weight of the latest lease in the averages: they remember about sixteen.
const WEIGHT: f32 = 1.0 / 16.0;
/// Settled within this, in milliseconds of a clock that ticks once in each: there was no work to share.
const QUICK_MS: f32 = 2.0;
/// The line needs leases of different sizes: below this relative variance it says nothing.
const SPREAD_MIN: f32 = 0.01;

/// After so many leases a session is known by its own; until then as all sessions of the subscription together.
const KNOWN_AFTER: u8 = 8;

/// Weighted averages of records held, of milliseconds until they were settled, and of their products.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    held: f32,
    took: f32,
    held_held: f32,
    held_took: f32,
    burst: u32,
    /// How many leases were looked at, as far as it matters.
    leases: u8,
}

impl Pace {
    /// Nothing is known: an even share.
    pub(crate) fn new() -> Self {
        Self { held: 0.0, took: 0.0, held_held: 0.0, held_took: 0.0, burst: 1, leases: 0 }
    }

    /// Records that it may get at once although others wait. `all`: the pace of all sessions together.
    pub(crate) fn burst(&self, all: &Self) -> u64 {
        u64::from(if self.leases < KNOWN_AFTER { all.burst } else { self.burst })
    }

    /// What is known of this session is worth something for those of which nothing is: together they are taken for about the
    /// slowest, and slowly for more. A line through sessions that differ would say nothing.
    pub(crate) fn tell(&self, all: &mut Self) {
        if self.leases >= KNOWN_AFTER {
            all.burst =
                if self.burst < all.burst { (all.burst / 2).max(self.burst) } else { self.burst.min(all.burst + 1) };
        }
    }

    /// A lease ended by a retry, a release or a dead letter: however soon, nothing was worked.
    pub(crate) fn failed(&mut self) {
        self.leases = self.leases.saturating_add(1);
        self.burst = (self.burst / 2).max(1);
    }

    /// A lease is acked for which, together with all before it, so many records were held, so long after its deal.
    pub(crate) fn acked(&mut self, held: u32, took_ms: u64, burst_max: usize) {
        let (held, took) = (held as f32, took_ms.min(1 << 20) as f32);
        self.leases = self.leases.saturating_add(1);
        if self.held == 0.0 {
            (self.held, self.took, self.held_held, self.held_took) = (held, took, held * held, held * took);
        } else {
            self.held += (held - self.held) * WEIGHT;
            self.took += (took - self.took) * WEIGHT;
            self.held_held += (held * held - self.held_held) * WEIGHT;
            self.held_took += (held * took - self.held_took) * WEIGHT;
        }
        let Some(target) = self.target(burst_max) else { return };
        // By steps: one lease that was lucky or late says little.
        self.burst = if target > self.burst { target.min(self.burst * 2) } else { target.max(self.burst / 2) };
    }

    fn target(&self, burst_max: usize) -> Option<u32> {
        let max = u32::try_from(burst_max).unwrap_or(u32::MAX).max(1);
        if self.took <= QUICK_MS {
            return Some(max);
        }
        let variance = self.held.mul_add(-self.held, self.held_held);
        if variance < SPREAD_MIN * self.held * self.held {
            return None;
        }
        let work = self.held.mul_add(-self.took, self.held_took) / variance;
        let way = work.mul_add(-self.held, self.took);
        if work <= 0.0 {
            return Some(max);
        }
        Some((way / work).clamp(1.0, max as f32) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    fn unit(rng: &mut Rng) -> f64 {
        (rng.signed_unit() + 1.0) / 2.0
    }

    const MAX: usize = 100;

    /// A session that is dealt `1..=2 · burst` records at once; each lease takes what `took` says.
    fn after(leases: usize, mut took: impl FnMut(u32, &mut Rng) -> u64) -> Pace {
        let (mut pace, mut rng) = (Pace::new(), Rng::new(7));
        for _ in 0..leases {
            let held = 1 + (unit(&mut rng) * 2.0 * f64::from(pace.burst)) as u32;
            let took = took(held, &mut rng);
            pace.acked(held, took, MAX);
        }
        pace
    }

    #[test]
    fn who_settles_at_once_gets_whole_frames() {
        assert_eq!(after(20, |_, _| 1).burst, 100);
    }

    #[test]
    fn a_long_way_with_no_work_at_its_end_gets_whole_frames() {
        assert_eq!(after(200, |_, rng| 15 + (unit(rng) * 10.0) as u64).burst, 100);
    }

    #[test]
    fn work_on_each_record_gets_a_share_of_one() {
        for work_ms in [3.0, 5.0, 50.0] {
            let pace = after(500, |held, rng| {
                let each = |rng: &mut Rng| work_ms * (0.5 + unit(rng));
                (0..held).map(|_| each(rng)).sum::<f64>() as u64
            });
            assert!(pace.burst <= 3, "{work_ms} ms: {pace:?}");
        }
    }

    #[test]
    fn a_burst_is_worked_as_long_as_its_way_takes() {
        let pace = after(2_000, |held, rng| 20 + u64::from(held) + (unit(rng) * 4.0) as u64);
        assert!((10..=40).contains(&pace.burst), "{pace:?}");
    }

    #[test]
    fn who_begins_to_work_gets_less_again() {
        let mut pace = after(200, |_, _| 15);
        let mut held = 100;
        for _ in 0..100 {
            pace.acked(held, u64::from(held) * 5, MAX);
            held = 1 + held * 7 % (pace.burst * 2);
        }
        assert!(pace.burst <= 3, "{pace:?}");
    }

    #[test]
    fn who_fails_at_once_gets_an_even_share() {
        let mut pace = after(200, |_, _| 1);
        for _ in 0..10 {
            pace.failed();
        }
        assert_eq!(pace.burst, 1);
    }

    #[test]
    fn a_new_session_is_taken_for_about_the_slowest_of_the_others() {
        let (quick, slow) = (after(200, |_, _| 1), after(200, |held, _| u64::from(held) * 50));
        let mut all = Pace::new();
        for _ in 0..20 {
            slow.tell(&mut all);
            (0..3).for_each(|_| quick.tell(&mut all));
        }
        assert!(all.burst <= 8, "{all:?}");
        (0..100).for_each(|_| quick.tell(&mut all));
        assert_eq!(all.burst, 100);
    }

    #[test]
    fn a_new_session_is_known_by_itself_after_some_leases() {
        let all = after(200, |_, _| 15);
        let mut new = Pace::new();
        assert_eq!(new.burst(&all), 100);
        for _ in 0..KNOWN_AFTER {
            new.acked(1, 50, MAX);
        }
        assert_eq!(new.burst(&all), 1);
    }
}
