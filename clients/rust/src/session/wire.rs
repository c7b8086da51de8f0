//! Frames made of what the session knows, and read back.

use std::{sync::Arc, time::Duration};

use sluice_proto::v1::{
    self, ConsumeRequest, Flow, OffsetRange, Subscribe, consume_request::Request, settlement::Outcome as WireOutcome,
};

use super::{Group, Settings};
use crate::{
    event::Offsets,
    lease::{LeaseName, Verb},
    outcome::Outcome,
    ranges,
};

/// A frame of settlements is split here. The server ends a stream that sends 1 MiB.
pub(crate) const SETTLE_BYTES_MAX: usize = 256 << 10;
/// The most bytes of one range: two varints of at most 10 bytes, two tags, the length and its tag.
const RANGE_BYTES_MAX: usize = 24;
/// The most bytes of a settlement besides its topic, its reason and its ranges.
const SETTLEMENT_BYTES_MAX: usize = 96;

pub(crate) fn request(request: Request) -> ConsumeRequest {
    ConsumeRequest { request: Some(request) }
}

pub(crate) fn subscribe(settings: &Settings, window: Flow, holding: Vec<v1::Leases>, seen: u64) -> ConsumeRequest {
    request(Request::Subscribe(Subscribe {
        target: Some(v1::subscribe::Target::Subscription(settings.subscription.clone())),
        consumer_id: settings.consumer_id.clone(),
        flow: Some(window),
        ack_timeout: settings.ack_timeout.map(wire_duration),
        max_frame_bytes: settings.max_frame_bytes,
        report_commits: settings.report_commits,
        labels: settings.labels.clone(),
        holding,
        revision: sluice_proto::REVISION,
        seen,
    }))
}

pub(crate) fn settlement(leases: v1::Leases, verb: &Verb) -> v1::Settlement {
    let outcome = match verb.clone() {
        Verb::Settle(Outcome::Ack) => WireOutcome::Ack(v1::Ack {}),
        Verb::Settle(Outcome::Retry { delay, reason }) => {
            WireOutcome::Retry(v1::Retry { delay: delay.map(wire_duration), reason })
        }
        Verb::Settle(Outcome::DeadLetter { reason }) => WireOutcome::DeadLetter(v1::DeadLetter { reason }),
        Verb::Settle(Outcome::Release) => WireOutcome::Release(v1::Release {}),
        Verb::Extend(ack_timeout) => WireOutcome::Extend(v1::Extend { ack_timeout: ack_timeout.map(wire_duration) }),
    };
    v1::Settlement { leases: Some(leases), outcome: Some(outcome) }
}

pub(crate) fn leases(name: &LeaseName, offsets: Vec<OffsetRange>) -> v1::Leases {
    v1::Leases { topic: name.topic.clone(), partition: name.partition, epoch: name.epoch, offsets }
}

pub(super) fn name(leases: &v1::Leases) -> LeaseName {
    LeaseName { topic: leases.topic.clone(), partition: leases.partition, epoch: leases.epoch }
}

pub(super) fn is_of(leases: &v1::Leases, name: &LeaseName) -> bool {
    leases.epoch == name.epoch && leases.partition == name.partition && leases.topic == name.topic
}

/// Offsets, in any order, as an event tells them.
pub(super) fn offsets(name: &LeaseName, offsets: &[i64]) -> Offsets {
    let mut offsets = offsets.to_vec();
    offsets.sort_unstable();
    offsets.dedup();
    let ranges = ranges::encode(&offsets, |_, _| false).iter().filter_map(ranges::bounds).collect();
    Offsets { topic: name.topic.clone(), partition: name.partition, ranges }
}

/// Splits groups so that each part fits a frame, even if no two offsets fold.
pub(super) fn parts(groups: Vec<Group>) -> Vec<Vec<Group>> {
    let mut parts = Vec::new();
    let (mut part, mut room) = (Vec::new(), SETTLE_BYTES_MAX);
    for mut group in groups {
        // In order, so that offsets that fold stay together.
        group.offsets.sort_unstable();
        let reason = match &group.verb {
            Verb::Settle(Outcome::Retry { reason, .. } | Outcome::DeadLetter { reason }) => reason.len(),
            Verb::Settle(Outcome::Ack | Outcome::Release) | Verb::Extend(_) => 0,
        };
        let fixed = SETTLEMENT_BYTES_MAX + group.name.topic.len() + reason;
        let mut rest = group.offsets.as_slice();
        while !rest.is_empty() {
            if room < fixed + RANGE_BYTES_MAX && !part.is_empty() {
                parts.push(std::mem::take(&mut part));
                room = SETTLE_BYTES_MAX;
            }
            let fitting = (room.saturating_sub(fixed) / RANGE_BYTES_MAX).clamp(1, rest.len());
            let (now, later) = rest.split_at(fitting);
            part.push(Group { name: Arc::clone(&group.name), verb: group.verb.clone(), offsets: now.to_vec() });
            room = room.saturating_sub(fixed + fitting * RANGE_BYTES_MAX);
            rest = later;
        }
    }
    if !part.is_empty() {
        parts.push(part);
    }
    parts
}

/// A duration of the contract, if it is not negative.
pub(crate) fn duration(duration: prost_types::Duration) -> Option<Duration> {
    Duration::try_from(duration).ok()
}

/// Durations beyond what the contract can say become the longest it can; the server refuses them by name.
fn wire_duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration::try_from(duration).unwrap_or(prost_types::Duration { seconds: 315_576_000_000, nanos: 0 })
}
