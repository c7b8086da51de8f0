//! The handle of one subscription's threads.

use std::sync::Arc;

use tokio::sync::mpsc::UnboundedReceiver;

use crate::io::{FetchGate, KafkaCommand, KafkaConfig, KafkaEvent};

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// librdkafka did not accept the configuration.
    #[error("kafka: {0}")]
    Config(String),
}

/// One subscription's threads. Dropping it shuts them down without waiting.
#[derive(Debug)]
pub struct Subscription {
    gate: Arc<FetchGate>,
}

impl Subscription {
    /// Checks the configuration by creating both handles, starts the threads; joins nothing yet.
    ///
    /// # Errors
    /// When librdkafka refuses a property.
    pub fn start(_config: KafkaConfig) -> Result<(Self, UnboundedReceiver<KafkaEvent>), Error> {
        todo!()
    }

    /// Sends a command; never blocks.
    pub fn send(&self, _command: KafkaCommand) {
        todo!()
    }

    /// The gate between the fetch thread and the driver.
    #[must_use]
    pub fn gate(&self) -> &Arc<FetchGate> {
        &self.gate
    }
}
