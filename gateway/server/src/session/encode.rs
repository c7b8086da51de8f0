//! From the engine's words to the wire's messages, but for records: see `codec`.

use std::time::Duration;

use sluice_core::{Leases, NextOffset, RejectReason, Rejection, RevokeReason, TopicPartition};
use sluice_proto::v1::{self, consume_response::Response};

pub(crate) fn frame(response: Response) -> v1::ConsumeResponse {
    v1::ConsumeResponse { response: Some(response) }
}

pub(crate) fn ordering(ordering: sluice_core::Ordering) -> v1::Ordering {
    match ordering {
        sluice_core::Ordering::None => v1::Ordering::None,
        sluice_core::Ordering::Key => v1::Ordering::Key,
        sluice_core::Ordering::Partition => v1::Ordering::Partition,
    }
}

pub(crate) fn leases(leases: Leases) -> v1::Leases {
    v1::Leases {
        topic: leases.partition.topic.to_string(),
        partition: leases.partition.partition,
        epoch: leases.epoch.0,
        offsets: leases
            .offsets
            .into_iter()
            .map(|range| v1::OffsetRange {
                first: range.first,
                last: (range.last != range.first).then_some(range.last),
            })
            .collect(),
    }
}

pub(crate) fn rejection(rejection: Rejection) -> v1::Rejection {
    let reason = match rejection.reason {
        RejectReason::NotHeld => v1::RejectReason::NotHeld,
        RejectReason::StaleEpoch => v1::RejectReason::StaleEpoch,
        RejectReason::Invalid => v1::RejectReason::Invalid,
    };
    v1::Rejection { leases: Some(leases(rejection.leases)), reason: reason.into() }
}

pub(crate) fn settled(request_id: u64, rejections: Vec<Rejection>) -> v1::ConsumeResponse {
    let rejections = rejections.into_iter().map(rejection).collect();
    frame(Response::Settled(v1::Settled { request_id, rejections }))
}

pub(crate) fn revoked(of: Leases, reason: RevokeReason) -> v1::ConsumeResponse {
    let reason = match reason {
        RevokeReason::Expired => v1::RevokeReason::Expired,
        RevokeReason::Reassigned => v1::RevokeReason::Reassigned,
        RevokeReason::Seek => v1::RevokeReason::Seek,
    };
    frame(Response::Revoked(v1::Revoked { leases: Some(leases(of)), reason: reason.into() }))
}

pub(crate) fn committed(partition: &TopicPartition, offset: NextOffset) -> v1::ConsumeResponse {
    frame(Response::Committed(v1::Committed {
        topic: partition.topic.to_string(),
        partition: partition.partition,
        offset: offset.0,
    }))
}

pub(crate) fn drain(grace: Duration, reason: v1::DrainReason) -> v1::ConsumeResponse {
    frame(Response::Drain(v1::Drain { grace: Some(duration(grace)), reason: reason.into() }))
}

pub(crate) fn ping() -> v1::ConsumeResponse {
    frame(Response::Ping(v1::Ping {}))
}

/// A duration on the wire; what does not fit is its maximum.
pub(crate) fn duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_core::{Epoch, OffsetRange};

    #[test]
    fn a_range_of_one_offset_leaves_last_out() {
        let of = Leases {
            partition: TopicPartition::new("t", 3),
            epoch: Epoch(9),
            offsets: vec![OffsetRange::one(4), OffsetRange { first: 6, last: 8 }],
        };
        let wire = leases(of);
        let ranges: Vec<_> = wire.offsets.iter().map(|r| (r.first, r.last)).collect();
        assert_eq!(ranges, [(4, None), (6, Some(8))]);
    }
}
