//! What the tests of the whole product stand on: a real Apache Kafka that they start themselves, the gateway as a process
//! of its own, raw sessions on the generated stubs, and a checker that joins what was produced, delivered, settled and
//! committed.
//!
//! Nothing here skips: what the machine lacks is an error that names the command which installs it. Everything that is
//! started ends with the test binary, however that ends. Failures are panics: this crate is for tests alone.

pub mod balancer;
pub mod causes;
pub mod certificates;
pub mod cluster;
pub mod crew;
pub mod executable;
pub mod gateway;
pub mod history;
pub mod holders;
pub mod http2;
pub mod kafka;
pub mod lanes;
pub mod place;
pub mod process;
pub mod python;
pub mod scratch;
pub mod seats;
pub mod wait;
pub mod way;
pub mod wire;

pub use balancer::Balancer;
pub use causes::Fault;
pub use certificates::{Authority, PeerFiles};
pub use cluster::Cluster;
pub use crew::{Act, Crew};
pub use gateway::{Gateway, GatewayConfig, SubscriptionConfig};
pub use history::History;
pub use kafka::acls::{On, Operation};
pub use kafka::broker::{Broker, broker};
pub use kafka::client::{Kafka, NewRecord, Produced};
pub use kafka::commits::CommitEntry;
pub use kafka::guarded::{Guarded, PASSWORD, guarded};
pub use kafka::stored::Stored;
pub use place::Place;
pub use scratch::unique;
pub use wait::{eventually, eventually_blocking};
pub use way::Way;
pub use wire::{Lease, Wire};

/// The deadline for a state that comes soon on an idle machine, and that must come on a busy one too.
pub const SOON: std::time::Duration = std::time::Duration::from_secs(60);
