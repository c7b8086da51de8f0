//! What all services of a node share.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use sluice_kafka::KafkaState;
use sluice_proto::v1;

use crate::config::Config;
use crate::error::Error;
use crate::peer::Cluster;
use crate::services::{differences, spec_of};
use crate::session::Timing;
use crate::subscription::{Handle, SessionRegistry};

/// The node, as its services see it.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) name: String,
    pub(crate) config: Config,
    pub(crate) timing: Timing,
    /// Fixed since the start.
    pub(crate) subscriptions: BTreeMap<String, Arc<Handle>>,
    pub(crate) sessions: Arc<SessionRegistry>,
    pub(crate) streams: Arc<AtomicUsize>,
    /// Ranges of unary settlements that are not answered yet.
    pub(crate) unary_ranges: Arc<AtomicUsize>,
    /// SIGTERM came: the node is not ready.
    pub(crate) leaving: AtomicBool,
    /// And its `drain_delay` is over: it takes no more streams.
    pub(crate) draining: AtomicBool,
    /// `None`: the node is alone.
    pub(crate) cluster: Option<Arc<Cluster>>,
    /// Streams that were refused or ended with a status, by reason.
    pub(crate) refusals: Mutex<BTreeMap<&'static str, u64>>,
}

impl Shared {
    /// The subscription of that name.
    pub(crate) fn subscription(&self, name: &str) -> Result<Arc<Handle>, Error> {
        self.subscriptions.get(name).cloned().ok_or_else(|| Error::SubscriptionNotFound(name.to_owned()))
    }

    /// The live subscription with the spec's group, if the spec agrees with it.
    pub(crate) fn subscription_of_spec(&self, asked: &v1::SubscriptionSpec) -> Result<Arc<Handle>, Error> {
        let live = self.config.subscriptions.iter().find(|(name, config)| config.group(name) == asked.group);
        let Some((name, config)) = live else {
            return Err(Error::Unimplemented(
                "this node has no subscription of the spec's group, and making one from a spec is not built yet",
            ));
        };
        let fields = differences(asked, &spec_of(name, config));
        if fields.is_empty() {
            return self.subscription(name);
        }
        Err(Error::SpecMismatch { subscription: name.clone(), fields })
    }

    /// Counts a stream's refusal or its end with a status.
    pub(crate) fn refused(&self, error: &Error) {
        tracing::debug!(reason = error.reason(), %error, "stream refused or ended");
        *self.refusals.lock().unwrap_or_else(PoisonError::into_inner).entry(error.reason()).or_default() += 1;
    }

    /// Why the node is not ready: empty when it is.
    pub(crate) fn not_ready(&self) -> Vec<String> {
        let mut why = Vec::new();
        if self.leaving.load(Ordering::Acquire) {
            why.push("draining".to_owned());
        }
        for (name, handle) in &self.subscriptions {
            let state = handle.state();
            match state.kafka {
                // A topic or a right that is missing is so for all nodes, and its streams are told: a balancer that left all nodes
                // out would lead nobody to the other subscriptions.
                KafkaState::Idle
                | KafkaState::Reachable
                | KafkaState::TopicMissing(_)
                | KafkaState::RightsMissing(_) => {}
                KafkaState::Unknown => why.push(format!("{name}: kafka has not answered yet")),
                KafkaState::Unreachable(error) => why.push(format!("{name}: kafka unreachable: {error}")),
                // A wrong password that is rolled out must stop at the first node.
                KafkaState::Refused(error) => why.push(format!("{name}: kafka refuses: {error}")),
            }
        }
        why.extend(self.stopped_driver().map(|name| format!("{name}: the driver has stopped")));
        why
    }

    /// A subscription whose driver ended though the node does not.
    pub(crate) fn stopped_driver(&self) -> Option<&str> {
        let draining = self.draining.load(Ordering::Acquire);
        let (name, _) = self.subscriptions.iter().find(|(_, handle)| !draining && handle.state().ended)?;
        Some(name)
    }
}
