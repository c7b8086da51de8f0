//! Between the words of this node and those on the wire between nodes.

use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use sluice_core::{Batch, End, Leases, OffsetRange, Open, Outcome, Settlement, Settlements, TopicPartition, Via};
use sluice_proto::peer::v1::relay_response::Response;
use sluice_proto::peer::v1::{self as pb, EndCause};
use sluice_proto::v1::{self, consume_response};
use tonic::Status;
use tonic_types::StatusExt as _;

use crate::error::Error;
use crate::session::relayed::{self, Malformed, Relayed, RelayedBatch};
use crate::session::{Decoder, Frame, encode, to_bytes};

/// The largest frame of a client that fits one between nodes.
const SESSION_FRAME_BYTES_MAX: u32 = super::FRAME_BYTES_MAX as u32 - (64 << 10);

/// What an owner says about a session, however far away it is.
#[derive(Debug)]
pub(crate) enum FromOwner {
    Opened {
        held: Vec<Leases>,
        sequence: u64,
    },
    Records(Records),
    Settled {
        request_id: u64,
        rejections: Vec<v1::Rejection>,
    },
    Revoked(v1::Revoked),
    Committed(v1::Committed),
    Echo {
        number: u64,
        held_records: u64,
        held_bytes: u64,
    },
    /// It deals nothing more.
    Drain,
    Ended(Ended),
}

/// A frame of records.
#[derive(Debug)]
pub(crate) enum Records {
    /// From the engine of this node.
    Near { sequence: u64, batches: Vec<Batch> },
    /// From another node.
    Far(Relayed),
}

impl Records {
    /// The leases, and the frame's number.
    pub(crate) fn leases(&self) -> (Vec<Leases>, u64) {
        match self {
            Self::Near { sequence, batches } => {
                let leases = |batch: &Batch| Leases {
                    partition: batch.partition.clone(),
                    epoch: batch.epoch,
                    offsets: offsets(batch),
                };
                (batches.iter().map(leases).collect(), *sequence)
            }
            Self::Far(relayed) => {
                let leases = |batch: &RelayedBatch| Leases {
                    partition: TopicPartition::new(batch.topic.as_str(), batch.partition),
                    epoch: batch.epoch,
                    offsets: batch.offsets.clone(),
                };
                (relayed.batches.iter().map(leases).collect(), relayed.sequence)
            }
        }
    }
}

/// Of a batch of this node's engine.
pub(crate) fn offsets(batch: &Batch) -> Vec<OffsetRange> {
    let mut ranges = Vec::new();
    batch.records.iter().for_each(|dealt| relayed::add(&mut ranges, dealt.record.offset));
    ranges
}

/// How an owner ended a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ended {
    Planned,
    Failed { reason: String, message: String },
}

impl From<Result<(), Status>> for Ended {
    fn from(end: Result<(), Status>) -> Self {
        let Err(status) = end else { return Self::Planned };
        let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
        Self::Failed { reason, message: status.message().to_owned() }
    }
}

// === from owners ===

/// From the engine of this node.
pub(crate) fn from_frame(frame: Frame) -> Option<FromOwner> {
    match frame {
        Frame::Deliver { sequence, batches } => Some(FromOwner::Records(Records::Near { sequence, batches })),
        Frame::Opened { held, sequence } => Some(FromOwner::Opened { held, sequence }),
        Frame::Echo { number, held_records, held_bytes } => Some(FromOwner::Echo { number, held_records, held_bytes }),
        Frame::Message(message) => from_message(*message),
        // No engine relays.
        Frame::Relay { .. } => None,
        Frame::End(end) => Some(FromOwner::Ended(end.into())),
        Frame::Ping | Frame::Probe => None,
    }
}

fn from_message(message: v1::ConsumeResponse) -> Option<FromOwner> {
    use consume_response::Response as Wire;
    match message.response? {
        Wire::Settled(v1::Settled { request_id, rejections }) => Some(FromOwner::Settled { request_id, rejections }),
        Wire::Revoked(revoked) => Some(FromOwner::Revoked(revoked)),
        Wire::Committed(committed) => Some(FromOwner::Committed(committed)),
        Wire::Drain(_) => Some(FromOwner::Drain),
        // Records have a frame of their own.
        Wire::Delivery(_) | Wire::Subscribed(_) | Wire::Ping(_) => None,
    }
}

/// From another node.
///
/// # Errors
/// When it is no message.
pub(crate) fn from_response(response: Response) -> Result<Option<FromOwner>, Malformed> {
    Ok(match response {
        Response::Opened(pb::Opened { held, sequence }) => {
            let mut decoder = Decoder::default();
            Some(FromOwner::Opened { held: held.into_iter().map(|leases| decoder.leases(leases)).collect(), sequence })
        }
        Response::Echo(pb::Echo { number, held_records, held_bytes }) => {
            Some(FromOwner::Echo { number, held_records, held_bytes })
        }
        Response::Frame(frame) => match relayed::read(&frame)? {
            Some(relayed) => Some(FromOwner::Records(Records::Far(relayed))),
            None => from_message(v1::ConsumeResponse::decode(frame).map_err(|_| Malformed)?),
        },
        Response::Ended(pb::Ended { reason, message }) if reason.is_empty() && message.is_empty() => {
            Some(FromOwner::Ended(Ended::Planned))
        }
        Response::Ended(pb::Ended { reason, message }) => Some(FromOwner::Ended(Ended::Failed { reason, message })),
        Response::Hello(_) | Response::Status(_) | Response::Ping(_) | Response::Pong(_) => None,
    })
}

// === to edges ===

/// A frame of this node's engine, for another node. `None`: not for edges.
pub(crate) fn to_response(frame: Frame) -> Option<Response> {
    match frame {
        Frame::Deliver { sequence, batches } => Some(Response::Frame(to_bytes(sequence, &batches))),
        Frame::Message(message) => Some(Response::Frame(message.encode_to_vec().into())),
        Frame::Opened { held, sequence } => {
            Some(Response::Opened(pb::Opened { held: held.into_iter().map(encode::leases).collect(), sequence }))
        }
        Frame::Echo { number, held_records, held_bytes } => {
            Some(Response::Echo(pb::Echo { number, held_records, held_bytes }))
        }
        Frame::End(end) => Some(Response::Ended(match Ended::from(end) {
            Ended::Planned => pb::Ended::default(),
            Ended::Failed { reason, message } => pb::Ended { reason, message },
        })),
        // One hop at most.
        Frame::Relay { .. } | Frame::Ping | Frame::Probe => None,
    }
}

// === to owners ===

pub(crate) fn settlements(of: Settlements) -> v1::Settlements {
    let Settlements { request_id, durable, seen, settlements } = of;
    v1::Settlements { request_id, durable, seen, settlements: settlements.into_iter().map(settlement).collect() }
}

pub(crate) fn settlement(of: Settlement) -> v1::Settlement {
    use v1::settlement::Outcome as Wire;
    let millis = |ms: u64| encode::duration(Duration::from_millis(ms));
    let outcome = match of.outcome {
        Outcome::Ack => Some(Wire::Ack(v1::Ack {})),
        Outcome::Retry { delay_ms, reason } => Some(Wire::Retry(v1::Retry { delay: delay_ms.map(millis), reason })),
        Outcome::DeadLetter { reason } => Some(Wire::DeadLetter(v1::DeadLetter { reason })),
        Outcome::Release => Some(Wire::Release(v1::Release {})),
        Outcome::Extend { ack_timeout_ms } => {
            Some(Wire::Extend(v1::Extend { ack_timeout: ack_timeout_ms.map(millis) }))
        }
        // The owner says what it is: not to be read.
        Outcome::Unreadable => None,
    };
    v1::Settlement { leases: Some(encode::leases(of.leases)), outcome }
}

pub(crate) fn cause(end: End) -> EndCause {
    match end {
        End::HalfClose => EndCause::HalfClose,
        End::Drained => EndCause::Drained,
        End::Broken | End::EdgeGone => EndCause::Broken,
    }
}

pub(crate) fn end(cause: EndCause) -> End {
    match cause {
        EndCause::HalfClose => End::HalfClose,
        EndCause::Drained => End::Drained,
        EndCause::Broken | EndCause::Unspecified => End::Broken,
    }
}

/// Reads an Open as a client's Subscribe is read, with the same checks.
pub(crate) fn open(of: pb::Open, decoder: &mut Decoder) -> Result<(Open, Arc<str>), Error> {
    let subscribe = v1::Subscribe {
        consumer_id: of.consumer_id,
        ack_timeout: of.ack_timeout,
        report_commits: of.report_commits,
        holding: of.holding,
        seen: u64::from(of.returns),
        ..Default::default()
    };
    let open = decoder.open(subscribe)?;
    let max_frame_bytes = of.max_frame_bytes.min(SESSION_FRAME_BYTES_MAX);
    Ok((Open { via: Via::FarEdge, max_frame_bytes, ..open }, of.token.into()))
}
