//! The model's view of records that nobody is to work any more.

use sluice_core::{Backoff, Epoch, Letter, LetterCause, LetterError, OnExhausted, TopicPartition};

use crate::support::model::{Model, State};

/// What is known of a record's way to the dead letters.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known {
    /// `None`: words were said, and nothing more.
    pub(crate) cause: Option<LetterCause>,
    /// The last words.
    pub(crate) reason: Option<String>,
    /// Writes that failed.
    failed: u32,
    plain: bool,
}

/// The shortest and the longest delay after so many failures.
fn delays(backoff: &Backoff, failures: u32, longest: bool) -> (u64, u64) {
    let grown = backoff.initial_ms as f64 * backoff.multiplier.powf(f64::from(failures.saturating_sub(1)));
    let nominal = if longest { backoff.max_ms as f64 } else { grown.min(backoff.max_ms as f64) };
    let (low, high) = (nominal * (1.0 - backoff.jitter), nominal * (1.0 + backoff.jitter));
    (low.floor() as u64, high.ceil() as u64 + 1)
}

impl Model {
    /// What becomes of a record that is given up.
    fn way_out(&self, cause: LetterCause) -> OnExhausted {
        let policy = &self.policy;
        match (cause, policy.on_exhausted, policy.dead_letter_topic) {
            (LetterCause::Exhausted, way, true) => way,
            (_, _, true) => OnExhausted::DeadLetter,
            (_, OnExhausted::DeadLetter, false) => OnExhausted::Block,
            (_, way, false) => way,
        }
    }

    pub(crate) fn say(&mut self, tp: &TopicPartition, offset: i64, reason: &str) {
        let slot = self.parts.get_mut(tp).and_then(|p| p.slots.get_mut(&offset)).expect("a received record");
        if !reason.is_empty() {
            slot.letter.get_or_insert_default().reason = Some(reason.into());
        }
    }

    pub(crate) fn given_up(&mut self, tp: &TopicPartition, offset: i64, cause: LetterCause) {
        let (now, way) = (self.now, self.way_out(cause));
        let max = self.policy.max_attempts;
        let (low, high) = delays(&self.policy.backoff, 0, true);
        let slot = self.parts.get_mut(tp).and_then(|p| p.slots.get_mut(&offset)).expect("a received record");
        match way {
            OnExhausted::Drop => {
                slot.state = State::Done;
                self.ever_done.insert((tp.clone(), offset));
            }
            OnExhausted::DeadLetter => {
                slot.letter.get_or_insert_default().cause = Some(cause);
                slot.state = State::Letter { in_flight: false, not_before: now, write_by: now };
            }
            OnExhausted::Block => {
                slot.attempts = (slot.attempts.0.max(max), slot.attempts.1.max(max));
                slot.state = State::Idle { not_before: now + low, ready_by: now + high };
            }
        }
        self.moved(tp);
    }

    /// A record that arrives with the attempts of another epoch.
    pub(crate) fn given_up_before(&mut self, tp: &TopicPartition, offset: i64) {
        let (now, max) = (self.now, self.policy.max_attempts);
        let (_, high) = delays(&self.policy.backoff, 0, true);
        let slot = self.parts.get_mut(tp).and_then(|p| p.slots.get_mut(&offset)).expect("a received record");
        if slot.attempts.1 < max || slot.state == State::Done {
            return;
        }
        if slot.state == State::Unsure || slot.attempts.0 < max {
            // The engine may know of all its attempts, of fewer, or that it is done.
            slot.state = match (&slot.state, self.policy.on_exhausted) {
                (State::Idle { .. }, OnExhausted::Block) => State::Idle { not_before: 0, ready_by: now + high },
                _ => State::Unsure,
            };
            slot.letter.get_or_insert_default().cause = Some(LetterCause::Exhausted);
            if self.policy.on_exhausted == OnExhausted::Drop {
                self.ever_done.insert((tp.clone(), offset));
            }
            return;
        }
        self.given_up(tp, offset, LetterCause::Exhausted);
    }

    /// The engine gives a dead letter to the driver.
    pub(crate) fn letter_written(&mut self, tp: &TopicPartition, epoch: Epoch, letter: &Letter) {
        if let Err(why) = self.may_write(tp, epoch, letter) {
            self.broken(format!("a dead letter of {tp} {}: {why}", letter.record.offset));
        }
    }

    fn may_write(&mut self, tp: &TopicPartition, epoch: Epoch, letter: &Letter) -> Result<(), String> {
        let (now, in_flight_max) = (self.now, self.policy.dead_letters_in_flight_max);
        let part = self.parts.get_mut(tp).filter(|p| p.epoch == epoch).ok_or("its epoch does not live")?;
        let on_the_way = part.slots.values().filter(|s| matches!(s.state, State::Letter { in_flight: true, .. }));
        if on_the_way.count() >= in_flight_max {
            return Err("too many at once".into());
        }
        let fenced = part.fenced;
        let slot = part.slots.get_mut(&letter.record.offset).ok_or("it was never received")?;
        let early = matches!(slot.state, State::Letter { not_before, .. } if not_before > now);
        let before = std::mem::replace(&mut slot.state, State::Letter { in_flight: true, not_before: 0, write_by: 0 });
        match before {
            State::Letter { in_flight: false, .. } | State::Unsure if !early && !fenced => {}
            other => return Err(format!("it is {other:?}, fenced {fenced}")),
        }
        let known = slot.letter.get_or_insert_default();
        let cause = *known.cause.get_or_insert(LetterCause::Exhausted);
        let facts = [
            (letter.cause == cause, "its cause"),
            (letter.reason.as_deref() == known.reason.as_deref(), "its reason"),
            (letter.plain == known.plain, "whether it is plain"),
            (letter.record == slot.record, "its record"),
            ((slot.attempts.0..=slot.attempts.1).contains(&letter.attempts), "its attempts"),
            (letter.first_failure <= letter.last_failure, "the order of its failures"),
        ];
        slot.attempts = (letter.attempts, letter.attempts);
        facts.iter().find(|(right, _)| !right).map_or(Ok(()), |(_, what)| Err(format!("{what} is wrong: {letter:?}")))
    }

    pub(crate) fn letter_result(
        &mut self,
        tp: &TopicPartition,
        epoch: Epoch,
        offset: i64,
        result: Result<(), LetterError>,
    ) {
        let now = self.now;
        let Some(part) = self.parts.get_mut(tp).filter(|p| p.epoch == epoch && !p.fenced) else { return };
        let Some(slot) = part.slots.get_mut(&offset) else { return };
        if !matches!(slot.state, State::Letter { in_flight: true, .. }) {
            return;
        }
        let known = slot.letter.get_or_insert_default();
        let backoff = &self.policy.dead_letter_backoff;
        let (low, high) = match result {
            Ok(()) => {
                slot.state = State::Done;
                self.ever_done.insert((tp.clone(), offset));
                self.moved(tp);
                return;
            }
            Err(LetterError::TooLarge) if !known.plain => (0, 0),
            Err(LetterError::TooLarge) => delays(backoff, 0, true),
            Err(LetterError::Failed) => delays(backoff, known.failed + 1, false),
        };
        known.failed += 1;
        known.plain |= result == Err(LetterError::TooLarge);
        slot.state = State::Letter { in_flight: false, not_before: now + low, write_by: now + high };
    }

    /// After all outputs were pulled: what is due for the dead letters is on its way while there is a place.
    pub(crate) fn check_letters_written(&mut self) {
        let (now, ticked, max) = (self.now, self.ticked, self.policy.dead_letters_in_flight_max);
        for (tp, part) in &self.parts {
            let states = || part.slots.iter().map(|(o, s)| (o, &s.state));
            let in_flight = states().filter(|(_, s)| matches!(s, State::Letter { in_flight: true, .. })).count();
            let late = states().find(|(_, s)| match s {
                State::Letter { in_flight: false, write_by, not_before } => {
                    *write_by <= ticked || (not_before == write_by && *write_by <= now)
                }
                _ => false,
            });
            if let Some((offset, state)) = late.filter(|_| in_flight < max) {
                let what = format!("{tp} {offset} is {state:?}, {in_flight} are on their way, and it is not written");
                self.violations.push(what);
                return;
            }
        }
    }
}
