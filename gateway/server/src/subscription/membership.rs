//! Whether this node is a member of the group, and when to join and to leave. Pure.

use std::time::Duration;

use sluice_core::Millis;

/// Where the node stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Membership {
    /// Not a member.
    Idle,
    /// A member, or on its way.
    Joined,
    /// On its way out: leases settle, commits go out.
    Draining,
    /// The group is being left. What Kafka says until `Left` is of the past.
    Leaving,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing.
    None,
    /// Send `Join`.
    Join,
    /// Begin to drain.
    Drain,
}

/// The state and its timer.
#[derive(Debug)]
pub(crate) struct Member {
    state: Membership,
    /// `None`: a member for as long as the node runs.
    leave_delay: Option<Duration>,
    /// When the last session went; `None` while there is one.
    alone_since: Option<Millis>,
    stopping: bool,
    /// In a cluster: whether to be a member, which does not follow sessions.
    told: Option<bool>,
}

impl Member {
    pub(crate) fn new(leave_delay: Option<Duration>, now: Millis) -> Self {
        Self { state: Membership::Idle, leave_delay, alone_since: Some(now), stopping: false, told: None }
    }

    /// In a cluster: no member until it is told to be one.
    pub(crate) fn in_a_cluster(now: Millis) -> Self {
        Self { told: Some(false), ..Self::new(None, now) }
    }

    pub(crate) fn state(&self) -> Membership {
        self.state
    }

    /// Only what Kafka says while we are a member, or leave in order, is news.
    pub(crate) fn listens(&self) -> bool {
        matches!(self.state, Membership::Joined | Membership::Draining)
    }

    /// How many streams are live now.
    pub(crate) fn sessions(&mut self, live: usize, now: Millis) {
        match (live, self.alone_since) {
            (0, None) => self.alone_since = Some(now),
            (1.., Some(_)) => self.alone_since = None,
            _ => {}
        }
    }

    /// The node stops: never join again.
    pub(crate) fn stop(&mut self) {
        self.stopping = true;
    }

    /// In a cluster: be a member, or be none. From then on sessions do not count.
    pub(crate) fn told(&mut self, wanted: bool) {
        self.told = Some(wanted);
    }

    /// What is due.
    pub(crate) fn step(&mut self, now: Millis) -> Step {
        let by_itself = self.leave_delay.is_none() || self.alone_since.is_none();
        let wanted = !self.stopping && self.told.unwrap_or(by_itself);
        match self.state {
            Membership::Idle if wanted => {
                self.state = Membership::Joined;
                Step::Join
            }
            Membership::Joined
                if self.stopping || self.told == Some(false) || self.leave_at().is_some_and(|at| at <= now) =>
            {
                self.state = Membership::Draining;
                Step::Drain
            }
            _ => Step::None,
        }
    }

    /// When `step` has something to do.
    pub(crate) fn leave_at(&self) -> Option<Millis> {
        if self.told.is_some() {
            return None;
        }
        let delay = u64::try_from(self.leave_delay?.as_millis()).unwrap_or(u64::MAX);
        (self.state == Membership::Joined).then_some(())?;
        self.alone_since.map(|since| Millis(since.0.saturating_add(delay)))
    }

    /// `Leave` was sent.
    pub(crate) fn leaving(&mut self) {
        self.state = Membership::Leaving;
    }

    /// Kafka said `Left`.
    pub(crate) fn left(&mut self) {
        self.state = Membership::Idle;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joins_with_the_first_session_and_leaves_after_the_last() {
        let mut member = Member::new(Some(Duration::from_millis(10)), Millis(0));
        assert_eq!(member.step(Millis(5)), Step::None);
        member.sessions(1, Millis(6));
        assert_eq!(member.step(Millis(6)), Step::Join);
        assert_eq!(member.step(Millis(7)), Step::None);
        member.sessions(0, Millis(20));
        assert_eq!((member.step(Millis(29)), member.leave_at()), (Step::None, Some(Millis(30))));
        assert_eq!(member.step(Millis(30)), Step::Drain);
        member.sessions(1, Millis(31));
        assert_eq!(member.step(Millis(31)), Step::None);
        member.leaving();
        assert!(!member.listens());
        member.left();
        assert_eq!(member.step(Millis(40)), Step::Join);
    }

    #[test]
    fn at_start_it_joins_at_once_and_stays() {
        let mut member = Member::new(None, Millis(0));
        assert_eq!(member.step(Millis(0)), Step::Join);
        assert_eq!(member.step(Millis(u64::MAX)), Step::None);
        member.stop();
        assert_eq!(member.step(Millis(1)), Step::Drain);
        member.leaving();
        member.left();
        assert_eq!(member.step(Millis(2)), Step::None);
    }
}
