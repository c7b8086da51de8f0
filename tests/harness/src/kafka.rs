//! A real Apache Kafka, and what the tests ask of it.

pub mod broker;
pub mod client;
pub mod commits;
mod install;
mod plant;
pub mod stored;
