//! Connections that have not shown yet who they are. They have so many places, and whoever comes is let in: one that has waited is
//! turned out for it, so that nobody keeps the others out by holding connections and saying nothing.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

/// All of a listener.
#[derive(Debug, Clone)]
pub(super) struct Waiting {
    /// By the order in which they came.
    all: Arc<Mutex<BTreeMap<u64, (IpAddr, CancellationToken)>>>,
    max: usize,
}

/// One connection's place. Left by dropping it.
#[derive(Debug)]
pub(super) struct Place {
    number: u64,
    waiting: Waiting,
    /// It is another's now.
    pub(super) lost: CancellationToken,
}

// === impl Waiting ===

impl Waiting {
    pub(super) fn new(max: usize) -> Self {
        Self { all: Arc::default(), max }
    }

    /// A place for a connection from there. Where all are taken, of the address that has most of them the oldest loses its own.
    pub(super) fn enter(&self, from: IpAddr) -> (Place, Option<IpAddr>) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let turned_out = (all.len() >= self.max).then(|| oldest_of_most(&all)).flatten();
        let turned_out = turned_out.and_then(|number| all.remove(&number)).map(|(address, lost)| {
            lost.cancel();
            address
        });
        let number = all.last_key_value().map_or(0, |(last, _)| last + 1);
        let lost = CancellationToken::new();
        all.insert(number, (from, lost.clone()));
        (Place { number, waiting: self.clone(), lost }, turned_out)
    }
}

fn oldest_of_most(all: &BTreeMap<u64, (IpAddr, CancellationToken)>) -> Option<u64> {
    let mut counts: HashMap<IpAddr, usize> = HashMap::new();
    all.values().for_each(|(address, _)| *counts.entry(*address).or_default() += 1);
    let most = counts.values().copied().max()?;
    all.iter().find(|(_, (address, _))| counts.get(address) == Some(&most)).map(|(number, _)| *number)
}

// === impl Place ===

impl Drop for Place {
    fn drop(&mut self) {
        // What was lost is another's, and has another number.
        if !self.lost.is_cancelled() {
            self.waiting.all.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_comes_gets_a_place_from_the_address_that_has_most() {
        let address = |last| IpAddr::from([10, 0, 0, last]);
        let waiting = Waiting::new(4);
        let enter = |last| waiting.enter(address(last));
        let (honest, _) = enter(1);
        let (first, none) = enter(2);
        let (second, _) = enter(2);
        let (third, _) = enter(2);
        assert_eq!(none, None);
        assert_eq!(enter(3).1, Some(address(2)));
        assert!(first.lost.is_cancelled() && !second.lost.is_cancelled() && !honest.lost.is_cancelled());
        // That one has left again: there is room.
        let (fourth, nobody) = enter(2);
        assert_eq!(nobody, None);
        drop(first);
        assert_eq!(enter(4).1, Some(address(2)), "a place that was lost is not given back twice");
        assert!(second.lost.is_cancelled() && !third.lost.is_cancelled());
        drop((third, fourth));
        // All have one: the oldest goes.
        let held = [enter(5).0, enter(6).0, enter(7).0];
        assert_eq!(enter(8).1, Some(address(1)));
        assert!(honest.lost.is_cancelled() && held.iter().all(|place| !place.lost.is_cancelled()));
    }
}
