//! A naive model of the contract, a driver that feeds it and the engine alike, and a fake Kafka: what the tests share.
//! Written from the contract's text; it knows nothing of how the engine works.

pub(crate) mod client;
pub(crate) mod commits;
pub(crate) mod deals;
pub(crate) mod deaths;
pub(crate) mod driver;
pub(crate) mod kafka;
pub(crate) mod lanes;
pub(crate) mod letters;
pub(crate) mod model;
pub(crate) mod plant;
pub(crate) mod rng;
pub(crate) mod settles;
pub(crate) mod world;
