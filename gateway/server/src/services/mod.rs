//! The gRPC services.

mod consumer;
mod frame_limit;
mod seek;
mod spec;
mod subscription;

pub(crate) use consumer::Consumer;
pub(crate) use frame_limit::FrameLimit;
pub(crate) use seek::place;
pub(crate) use spec::{differences, spec_of};
pub(crate) use subscription::{Subscriptions, client, consumer, lag, partition, stats_of};

/// Largest frame that a client may send.
pub(crate) const FRAME_BYTES_MAX: usize = 1 << 20;
