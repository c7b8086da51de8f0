//! The threads of one subscription (`sluice-kafka`) on a real Kafka, without the engine and the server.

mod driver;
mod faults;
mod subscription;
