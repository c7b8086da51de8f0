//! What a client settles goes to the owners of the leases, each with its own numbers, and is answered once.

use std::collections::BTreeMap;

use sluice_core::{OffsetRange, Outcome, RejectReason, Rejection, Settlement, Settlements};
use sluice_proto::v1;

use super::Stream;
use crate::error::Error;
use crate::peer::OwnerId;
use crate::peer::edge::owners::Owners;
use crate::peer::edge::pending::PENDING_RANGES_MAX;
use crate::peer::queue::Full;
use crate::session::encode;

impl Stream {
    pub(super) fn settle(&mut self, of: Settlements, owners: &Owners) -> Result<(), Error> {
        let Settlements { request_id, durable, seen, settlements } = of;
        let mut parts: BTreeMap<OwnerId, Vec<Settlement>> = BTreeMap::new();
        let mut rejections = Vec::new();
        if settlements.is_empty() {
            // Asks only whether all that was written before has been applied.
            parts = self.seats.keys().map(|owner| (*owner, Vec::new())).collect();
        }
        for settlement in settlements {
            self.note_end(&settlement, seen);
            let place = (settlement.leases.partition.clone(), settlement.leases.epoch);
            match owners.route(&place).filter(|owner| self.seats.contains_key(owner)) {
                Some(owner) => parts.entry(owner).or_default().push(settlement),
                None => rejections.extend(unknown(settlement, seen, RejectReason::StaleEpoch)),
            }
        }
        let mut seens = BTreeMap::new();
        for owner in parts.keys().copied().collect::<Vec<_>>() {
            if seen == 0 || parts.get(&owner).is_some_and(Vec::is_empty) {
                seens.insert(owner, 0);
            } else if let Some(seen) = self.numbers.seen(owner, seen) {
                seens.insert(owner, seen);
            } else {
                // It had seen nothing of this owner: it cannot mean anything that the owner dealt to it.
                let nothing = parts.remove(&owner).unwrap_or_default();
                rejections.extend(nothing.into_iter().filter_map(|one| unknown(one, seen, RejectReason::NotHeld)));
            }
        }
        let rejections: Vec<v1::Rejection> = rejections.into_iter().map(encode::rejection).collect();
        rejections.iter().for_each(|rejection| self.counts.rejected.count(rejection.reason()));
        if parts.is_empty() {
            if request_id != 0 || !rejections.is_empty() {
                self.answer((request_id, rejections));
            }
            return Ok(());
        }
        let mut ticket = 0;
        if request_id != 0 {
            let asked = |of: &Vec<Settlement>| of.iter().map(|one| one.leases.clone()).collect();
            let asked = parts.iter().map(|(owner, of)| (*owner, asked(of))).collect();
            ticket = self.pending.begin(request_id, asked, rejections).ok_or(Error::SettleFlood(PENDING_RANGES_MAX))?;
        } else if !rejections.is_empty() {
            self.answer((0, rejections));
        }
        for (owner, settlements) in parts {
            let (Some(seat), Some(seen)) = (self.seats.get(&owner), seens.get(&owner)) else { continue };
            let settlements = Settlements { request_id: ticket, durable, seen: *seen, settlements };
            seat.way.settle(seat.session, settlements).map_err(|Full(max)| Error::SettleFlood(max))?;
        }
        Ok(())
    }

    /// The owner's numbers for what the client says that it has seen.
    pub(crate) fn seen(&mut self, owner: OwnerId, seen: u64) -> Option<u64> {
        self.numbers.seen(owner, seen)
    }

    /// A unary call settles these.
    pub(crate) fn settled_elsewhere(&mut self, settlement: &Settlement, seen: u64) {
        self.note_end(settlement, seen);
    }

    /// The client has these no more, unless the owner will say that it cannot be meant.
    fn note_end(&mut self, settlement: &Settlement, seen: u64) {
        let ends = match settlement.outcome {
            Outcome::Ack | Outcome::DeadLetter { .. } | Outcome::Release => true,
            Outcome::Retry { delay_ms, .. } => delay_ms.is_none_or(|ms| ms <= self.greeting.max_retry_delay_ms),
            Outcome::Extend { .. } | Outcome::Unreadable => false,
        };
        if ends {
            let ranges = settlement.leases.offsets.iter().copied().filter(|range| is_valid(*range, seen));
            self.holding.remove(&settlement.leases.partition, settlement.leases.epoch, ranges);
        }
    }
}

/// As an engine sees it.
fn is_valid(range: OffsetRange, seen: u64) -> bool {
    range.first >= 0 && range.last >= range.first && (range.first == range.last || seen != 0)
}

/// What is answered of leases that no owner can be asked about.
fn unknown(settlement: Settlement, seen: u64, reason: RejectReason) -> Option<Rejection> {
    let Settlement { mut leases, outcome } = settlement;
    if outcome == Outcome::Unreadable || !leases.offsets.iter().all(|range| is_valid(*range, seen)) {
        return Some(Rejection { leases, reason: RejectReason::Invalid });
    }
    if reason == RejectReason::NotHeld {
        // Of a range only what the session once held would be answered.
        leases.offsets.retain(|range| range.first == range.last);
    }
    (!leases.offsets.is_empty()).then_some(Rejection { leases, reason })
}
