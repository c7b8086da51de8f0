//! The config file and its environment overrides.
//!
//! Contract: a [`Config`] that [`load`](Config::load) returned is consistent: each group once, every bound checked. A
//! mistake names the file, the line and the key, or the environment variable, and says what would be right.

mod agreement;
mod check;
mod convert;
pub mod env;
mod error;
pub mod keys;
mod properties;
pub mod reference;
mod sections;
mod values;

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use agreement::AGREED;
pub(crate) use check::is_host_and_port;
use error::Source;
pub use error::{ConfigError, Place, Problem};
pub use sections::{KafkaConfig, LimitsConfig, LogConfig, NodeConfig, PeersConfig, PeersTlsConfig};
pub use sections::{RetryConfig, SubscriptionConfig};
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
    /// The other nodes of a cluster.
    pub peers: PeersConfig,
    /// Limits of the process.
    pub limits: LimitsConfig,
    /// By name.
    pub subscriptions: BTreeMap<String, SubscriptionConfig>,
}

impl Config {
    /// Reads the file and the overrides, and checks the whole.
    ///
    /// # Errors
    /// When the file cannot be read, or with every mistake that was found.
    pub fn load(path: &Path, env: &[(String, String)]) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&path.display().to_string(), &text, env)
    }

    /// As [`load`](Self::load), of a text that stands in `file`.
    ///
    /// # Errors
    /// With every mistake that was found.
    pub fn parse(file: &str, text: &str, env: &[(String, String)]) -> Result<Self, ConfigError> {
        let source = Source::new(file, text);
        let invalid = |error: &toml::de::Error| ConfigError::Invalid(vec![source.problem(error)]);
        // The file alone first: its errors have places, those of the table below do not.
        toml::from_str::<Self>(text).map_err(|error| invalid(&error))?;
        let mut table: toml::Table = toml::from_str(text).map_err(|error| invalid(&error))?;
        let applied = env::apply(&mut table, env).map_err(ConfigError::Invalid)?;
        let config: Self = table.try_into().map_err(|error| invalid(&error))?;
        let problem = |(path, message): check::Mistake| {
            let set_by = applied.iter().find(|applied| applied.path == path);
            let place = set_by.map_or_else(|| source.place(&path), |set| Place::Variable(set.variable.clone()));
            Problem { place, key: path.join("."), message }
        };
        let problems: Vec<_> = check::check(&config).into_iter().map(problem).collect();
        if problems.is_empty() { Ok(config) } else { Err(ConfigError::Invalid(problems)) }
    }

    /// Checks a config that was built in code.
    ///
    /// # Errors
    /// With every mistake that was found.
    pub fn check(&self) -> Result<(), ConfigError> {
        let problem = |(path, message): check::Mistake| {
            let place = Place::Line { file: "config".to_owned(), line: 0 };
            Problem { place, key: path.join("."), message }
        };
        let problems: Vec<_> = check::check(self).into_iter().map(problem).collect();
        if problems.is_empty() { Ok(()) } else { Err(ConfigError::Invalid(problems)) }
    }

    /// The effective config as TOML, with secrets hidden.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut shown = self.clone();
        let maps = shown.subscriptions.values_mut().map(|s| &mut s.kafka).chain([&mut shown.kafka.properties]);
        for (name, value) in maps.flatten() {
            if properties::is_secret(name) {
                "***".clone_into(value);
            }
        }
        toml::to_string(&shown).expect("tables, strings and numbers are TOML")
    }
}

#[cfg(test)]
mod tests;
