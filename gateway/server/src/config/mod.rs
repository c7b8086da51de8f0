//! The config file and its environment overrides.
//!
//! Contract: a [`Config`] that [`load`](Config::load) returned is consistent: each group once, every bound checked. A
//! mistake names the file, the line and the key, or the environment variable, and says what would be right.

mod convert;
pub mod keys;
mod sections;
mod values;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use sections::{KafkaConfig, LimitsConfig, LogConfig, NodeConfig, RetryConfig, SubscriptionConfig};
pub use values::{Assignor, Join, LogFormat, OnExhausted, Ordering, Protocol, Size, Start};

/// The whole config file.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// This process.
    pub node: NodeConfig,
    /// Logs.
    pub log: LogConfig,
    /// The Kafka cluster.
    pub kafka: KafkaConfig,
    /// Limits of the process.
    pub limits: LimitsConfig,
    /// By name.
    pub subscriptions: BTreeMap<String, SubscriptionConfig>,
}
