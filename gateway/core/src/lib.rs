//! The engine of one subscription: ledger, leases, windows, dealing, retries, the commit decision.
//!
//! Contract: **no clock, no I/O, no async, no Kafka, no gRPC**. Every input is a method call with the time as an
//! argument; every output is pulled with [`Engine::poll_output`] until `None`; [`Engine::wake_at`] says when to call
//! [`Engine::tick`]. One engine owns one subscription on one node, so there are no locks in here.
#![warn(missing_docs)]

mod batch;
mod commit;
mod dealing;
mod deaths;
mod durable;
mod engine;
mod invariants;
mod io;
mod leases;
mod ledger;
mod letters;
mod metadata;
mod opening;
mod oversize;
mod pace;
mod partition;
mod policy;
mod ring;
mod rng;
mod run;
mod session;
mod settling;
#[cfg(test)]
mod tests;
mod timers;
mod types;
mod upkeep;
mod view;
mod views;

pub use batch::{Batch, Dealt, Records};
pub use engine::Engine;
pub use io::{
    Answer, Assignment, CommitError, Letter, LetterCause, LetterError, Open, Opened, Output, Restored, Resumed, Ticket,
    Via,
};
pub use metadata::{metadata_attempts, metadata_done, metadata_topic_hash};
pub use policy::{Backoff, OnExhausted, Ordering, Policy};
pub use run::{Headers, RecordRef, Run, RunBuilder};
pub use types::{
    End, Epoch, Header, Leases, Millis, NextOffset, OffsetRange, Outcome, Record, RejectReason, Rejection,
    RevokeReason, SessionId, Settlement, Settlements, TopicPartition, Window,
};
pub use view::{BlockedOn, PartitionView, SessionView, Stats};
