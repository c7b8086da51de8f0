//! Kafka for the gateway: the only crate that names librdkafka.
//!
//! Contract: one [`Subscription`] is a member handle and a fetch handle on threads of their own. Events come through one
//! queue, in order; commands go in and never block.
//!
//! Three threads: `member` joins, answers rebalances and commits; `fetch` takes records, and alone tells the driver what
//! begins and ends, so that it is told in order; `lookup` alone waits for a broker's answers.

pub mod alloc;
mod config;
mod describe;
mod fetch;
mod ffi;
mod io;
mod letters;
mod lookup;
mod member;
mod messages;
pub mod mock;
mod records;
mod repeats;
mod signal;
mod subscription;
pub mod tools;

pub use config::check_properties;
pub use describe::{Describer, describe_groups};
pub use io::{
    Assignor, FetchGate, GroupMember, KafkaCommand, KafkaConfig, KafkaEvent, KafkaState, MissingRights, Protocol,
    ResetCause, SeekCommand, SeekError, SeekTarget, SeekTo, Start,
};
pub use letters::{Done, LetterFacts, LetterOrigin, LetterWriter, Write, WriteError, WriterConfig, Written};
pub use subscription::{Error, Subscription};
