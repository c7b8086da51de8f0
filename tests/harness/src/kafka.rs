//! A real Apache Kafka, and what the tests ask of it.

pub mod acls;
pub mod broker;
pub mod client;
pub mod commits;
pub mod guarded;
mod install;
mod plant;
pub mod stored;
