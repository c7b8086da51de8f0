//! Kafka for the gateway: the only crate that names librdkafka.
//!
//! Contract: one [`Subscription`] is a member handle and a fetch handle on threads of their own. Events come through one
//! queue, in order; commands go in and never block.

mod io;
pub mod mock;
mod subscription;
pub mod tools;

pub use io::{Assignor, FetchGate, KafkaCommand, KafkaConfig, KafkaEvent, KafkaState, Protocol, ResetCause, Start};
pub use subscription::Subscription;
