//! S6 of a history: a record has one holder in an epoch.

use std::collections::{BTreeMap, BTreeSet};

use sluice_proto::v1::Leases;

use crate::history::{Event, covers};
use crate::wire::LeaseName;

/// How a session lost what it was dealt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lost {
    /// It was told so.
    TakenBack,
    /// It ended.
    Ended,
}

/// Of each event: whether it is a delivery whose lease its session lost later on, before it was dealt the same again.
pub(crate) fn lost(events: &[Event]) -> Vec<Option<Lost>> {
    let mut lost = vec![None; events.len()];
    let mut ended = BTreeSet::new();
    let mut taken_back: BTreeMap<u64, Vec<(usize, &Leases)>> = BTreeMap::new();
    let mut next: BTreeMap<(u64, &LeaseName), usize> = BTreeMap::new();
    for (at, event) in events.iter().enumerate().rev() {
        match event {
            Event::Delivered(session, name, _) => {
                let until = next.insert((*session, name), at).unwrap_or(usize::MAX);
                let told = taken_back.get(session).into_iter().flatten();
                let told = told.rev().take_while(|(told, _)| *told < until).any(|(_, leases)| covers(leases, name));
                lost[at] = match (told, ended.contains(session)) {
                    (true, _) => Some(Lost::TakenBack),
                    (false, true) => Some(Lost::Ended),
                    (false, false) => None,
                };
            }
            Event::Revoked(session, leases) => taken_back.entry(*session).or_default().push((at, leases)),
            Event::Ended(session, _) => drop(ended.insert(*session)),
            Event::Settled(..) => {}
        }
    }
    lost
}

/// The first delivery of a record to a session while another one had it in the same epoch.
///
/// Clients read at their own pace. So the one who had it may read only later that it was taken back, or that its stream has
/// ended; and the one who is dealt it may read that late: then it is told of the taking back right after, and who had it goes on
/// having it.
pub(crate) fn check(events: &[Event]) -> Result<(), String> {
    let lost = lost(events);
    let mut holders: BTreeMap<&LeaseName, (u64, usize)> = BTreeMap::new();
    for (at, event) in events.iter().enumerate() {
        match event {
            Event::Delivered(session, name, _) => {
                let other = holders.get(name).copied().filter(|(other, _)| other != session);
                let stays = other.filter(|(_, since)| lost[*since].is_none());
                match (stays, lost[at]) {
                    (Some((other, _)), None | Some(Lost::Ended)) => {
                        return Err(format!("{name:?} was dealt to {session} while {other} held it"));
                    }
                    (Some(_), Some(Lost::TakenBack)) => {}
                    (None, _) => drop(holders.insert(name, (*session, at))),
                }
            }
            Event::Settled(session, name, _) if holders.get(name).is_some_and(|(holder, _)| holder == session) => {
                holders.remove(name);
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use sluice_proto::v1::OffsetRange;

    use super::*;

    const A: u64 = 1;
    const B: u64 = 2;
    const C: u64 = 3;

    fn name() -> LeaseName {
        ("t".into(), 0, 7, 5)
    }

    fn dealt(session: u64) -> Event {
        Event::Delivered(session, name(), 0)
    }

    fn settled(session: u64) -> Event {
        Event::Settled(session, name(), true)
    }

    fn taken_back(session: u64) -> Event {
        let offsets = vec![OffsetRange { first: 5, last: None }];
        Event::Revoked(session, Leases { topic: "t".into(), partition: 0, epoch: 7, offsets })
    }

    #[test]
    fn two_that_hold_the_same_are_seen() {
        check(&[dealt(A), dealt(B)]).unwrap_err();
        check(&[dealt(A), dealt(B), settled(A), settled(B)]).unwrap_err();
        check(&[dealt(A), settled(A), dealt(B)]).unwrap();
    }

    #[test]
    fn what_was_taken_back_may_be_read_late_by_either() {
        check(&[dealt(A), dealt(B), taken_back(A)]).unwrap();
        check(&[dealt(A), dealt(B), Event::Ended(A, false)]).unwrap();
        check(&[dealt(B), dealt(A), taken_back(A), settled(B)]).unwrap();
    }

    #[test]
    fn what_was_taken_back_once_is_no_excuse_for_ever() {
        // A had it before, and has it again.
        check(&[dealt(A), taken_back(A), dealt(A), dealt(B)]).unwrap_err();
        check(&[dealt(A), taken_back(A), dealt(B), dealt(A)]).unwrap_err();
        check(&[dealt(A), taken_back(A), dealt(A), dealt(B), settled(A), taken_back(B)]).unwrap();
        // A late reader does not hide who holds it.
        check(&[dealt(B), dealt(A), taken_back(A), dealt(C)]).unwrap_err();
    }
}
