//! The model's view of sessions that die, and of the records that they held.

use sluice_core::{SessionId, TopicPartition};

use crate::support::model::{Model, Slot, State};

/// A session with leases broke: when, how many had some, and whether more than half of them went with it.
#[derive(Debug)]
pub(crate) struct Break {
    at: u64,
    holders: usize,
    together: bool,
}

impl Model {
    /// A session with leases breaks. More than half of those who had some when the first broke, within
    /// the time: nobody is to blame.
    pub(crate) fn note_break(&mut self, session: SessionId) {
        if self.held(session).records == 0 || self.sessions.get(&session).is_none_or(|s| s.draining) {
            return;
        }
        let live = |(id, s): &(&SessionId, &crate::support::model::Sess)| **id != session && s.broken.is_none();
        let others = self.sessions.iter().filter(live).filter(|(id, _)| self.held(**id).records > 0).count();
        self.breaks.push(Break { at: self.now, holders: others + 1, together: false });
        let from = self.now.saturating_sub(self.policy.together_ms);
        let count = self.breaks.len();
        let is_common = |i: &usize| count - i >= 2 && 2 * (count - i) > self.breaks[*i].holders;
        let first = (0..count).filter(|i| self.breaks[*i].at >= from).find(is_common);
        self.breaks[first.unwrap_or(count)..].iter_mut().for_each(|one| one.together = true);
        let number = self.breaks.len() - 1;
        self.sessions.get_mut(&session).expect("looked up above").broke = Some(number);
    }

    /// The session does not come back: what it held is marked, and its suspect waits for the verdict.
    pub(crate) fn die(&mut self, session: SessionId) {
        let Some(of) = self.sessions.get_mut(&session).and_then(|s| s.broke.take()) else { return };
        let now = self.now;
        let until = self.breaks[of].at + self.policy.together_ms + 1;
        let mut taken = Vec::new();
        for (tp, part) in &mut self.parts {
            for (offset, slot) in &mut part.slots {
                let State::Leased { session: holder, suspect, .. } = slot.state else { continue };
                if holder != session {
                    continue;
                }
                taken.push((tp.clone(), part.epoch.0, *offset));
                if suspect {
                    slot.state = State::Undecided { of, until };
                } else {
                    slot.marks.push(of);
                    // It may wait for the verdict.
                    slot.state = State::Idle { not_before: 0, ready_by: until.max(now) };
                }
            }
        }
        for (tp, epoch, offset) in taken {
            self.take_back(session, &tp, epoch, offset, None);
        }
        if until <= now {
            self.decide_deaths(Some(of));
        }
    }

    pub(crate) fn is_suspect(&self, slot: &Slot) -> bool {
        slot.marks.len() >= self.policy.suspect_marks as usize
    }

    pub(crate) fn holds_suspect(&self, session: SessionId) -> bool {
        let its = |s: &Slot| matches!(s.state, State::Leased { session: h, suspect: true, .. } if h == session);
        self.parts.values().flat_map(|p| p.slots.values()).any(its)
    }

    /// What nobody can join any more. Alone: a failure of its suspect. Together with others: as if nothing had been.
    /// `only`: this break, and no other.
    pub(crate) fn decide_deaths(&mut self, only: Option<usize>) {
        let now = self.now;
        let (breaks, together_ms) = (&self.breaks, self.policy.together_ms);
        let is_over = |of: usize| only.is_none_or(|only| only == of) && breaks[of].at + together_ms < now;
        let is_void = |of: &usize| breaks[*of].together && is_over(*of);
        let mut alone: Vec<(TopicPartition, i64)> = Vec::new();
        for (tp, part) in &mut self.parts {
            for (offset, slot) in &mut part.slots {
                slot.marks.retain(|of| !is_void(of));
                match slot.state {
                    State::Undecided { of, .. } if is_void(&of) => {
                        slot.state = State::Idle { not_before: 0, ready_by: now };
                    }
                    State::Undecided { of, .. } if is_over(of) => alone.push((tp.clone(), *offset)),
                    _ => {}
                }
            }
        }
        for (tp, offset) in alone {
            self.failed(&tp, offset, None, false);
        }
    }
}
