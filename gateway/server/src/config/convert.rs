//! From the config file's words to those of the engine and of the Kafka crate.

use std::time::Duration;

use sluice_core::{Backoff, Policy};

use crate::config::{Assignor, Config, OnExhausted, Ordering, Protocol, Start, SubscriptionConfig};

impl Config {
    /// The node's name: `node.name`, else the host's.
    #[must_use]
    pub fn node_name(&self) -> String {
        if !self.node.name.is_empty() {
            return self.node.name.clone();
        }
        std::fs::read_to_string("/proc/sys/kernel/hostname")
            .ok()
            .or_else(|| std::env::var("HOSTNAME").ok())
            .map(|name| name.trim().to_owned())
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| "sluice".to_owned())
    }

    /// `client.id` at Kafka.
    #[must_use]
    pub fn client_id(&self) -> String {
        if self.kafka.client_id.is_empty() {
            format!("sluice-{}", self.node_name())
        } else {
            self.kafka.client_id.clone()
        }
    }

    /// The subscription's share of the process's memory budget: what it reserved, or an even part of what the others left.
    #[must_use]
    pub fn subscription_bytes(&self, subscription: &SubscriptionConfig) -> u64 {
        if let Some(reserved) = subscription.memory_reserved {
            return reserved.0;
        }
        let reserved: u64 = self.subscriptions.values().filter_map(|s| s.memory_reserved).map(|size| size.0).sum();
        let sharing = self.subscriptions.values().filter(|s| s.memory_reserved.is_none()).count().max(1) as u64;
        self.limits.memory_budget.0.saturating_sub(reserved) / sharing
    }

    /// The engine's part of a subscription.
    #[must_use]
    pub fn policy(&self, subscription: &SubscriptionConfig) -> Policy {
        let subscription_bytes_max = self.subscription_bytes(subscription);
        let retry = &subscription.retry;
        Policy {
            ordering: match subscription.ordering {
                Ordering::None => sluice_core::Ordering::None,
                Ordering::Key => sluice_core::Ordering::Key,
                Ordering::Partition => sluice_core::Ordering::Partition,
            },
            ack_timeout_ms: millis(subscription.ack_timeout),
            max_ack_timeout_ms: millis(subscription.max_ack_timeout),
            resume_timeout_ms: millis(subscription.resume_timeout),
            max_retry_delay_ms: millis(subscription.max_retry_delay),
            max_attempts: retry.max_attempts,
            backoff: Backoff {
                initial_ms: millis(retry.initial_backoff),
                multiplier: retry.multiplier,
                max_ms: millis(retry.max_backoff),
                jitter: retry.jitter,
            },
            on_exhausted: match subscription.on_exhausted() {
                OnExhausted::Block => sluice_core::OnExhausted::Block,
                OnExhausted::Drop => sluice_core::OnExhausted::Drop,
                OnExhausted::DeadLetter => sluice_core::OnExhausted::DeadLetter,
            },
            dead_letter_topic: subscription.dead_letter_topic().is_some(),
            record_bytes_max: subscription.max_record_bytes.0,
            too_large_after_ms: millis(subscription.too_large_after),
            commit_interval_ms: millis(subscription.commit_interval),
            commit_count: subscription.commit_count,
            span_max: subscription.span_limit,
            partition_bytes_max: subscription.partition_bytes.0.min(subscription_bytes_max),
            subscription_bytes_max,
            ready_bytes_max: subscription.ready_bytes.0,
            ..Policy::default()
        }
    }

    /// The client that writes the subscription's dead letters.
    #[must_use]
    pub fn writer_config(&self, subscription: &SubscriptionConfig) -> sluice_kafka::WriterConfig {
        let mut properties = self.kafka.properties.clone();
        properties.extend(subscription.kafka.clone());
        sluice_kafka::WriterConfig {
            brokers: self.kafka.brokers.clone(),
            client_id: self.client_id(),
            properties,
            timeout: self.limits.dead_letter_timeout,
            queue_bytes: self.limits.dead_letter_queue.0,
        }
    }

    /// Whether Kafka is asked who is in the group of this subscription: where nobody says, in a cluster.
    #[must_use]
    pub fn is_group_described(&self, subscription: &SubscriptionConfig) -> bool {
        subscription.describe_group.unwrap_or_else(|| self.peers.listen.is_some())
    }

    /// Kafka's part of the subscription of that name, whose members are marked like this.
    #[must_use]
    pub fn kafka_config(
        &self,
        name: &str,
        subscription: &SubscriptionConfig,
        mark: String,
    ) -> sluice_kafka::KafkaConfig {
        let mut properties = self.kafka.properties.clone();
        properties.extend(subscription.kafka.clone());
        sluice_kafka::KafkaConfig {
            brokers: self.kafka.brokers.clone(),
            group: subscription.group(name).to_owned(),
            topics: subscription.topics.clone(),
            client_id: self.client_id(),
            instance: subscription.static_membership.then(|| self.node_name()),
            member_mark: mark,
            watch_group: self.peers.listen.is_some(),
            protocol: subscription.kafka_protocol(),
            start: match subscription.start {
                Start::Earliest => sluice_kafka::Start::Earliest,
                Start::Latest => sluice_kafka::Start::Latest,
                Start::Time(time) => sluice_kafka::Start::Time(time),
            },
            revoke_grace: subscription.revoke_grace,
            commit_deadline: subscription.commit_deadline,
            metadata_refresh: subscription.metadata_refresh,
            prefetch_kib: u32::try_from(subscription.prefetch.0 >> 10).unwrap_or(u32::MAX).max(1),
            properties,
        }
    }
}

impl SubscriptionConfig {
    /// `group.id`: `group`, else the subscription's name.
    #[must_use]
    pub fn group<'a>(&'a self, name: &'a str) -> &'a str {
        if self.group.is_empty() { name } else { &self.group }
    }

    /// The dead-letter topic, where there is one.
    #[must_use]
    pub fn dead_letter_topic(&self) -> Option<&str> {
        Some(self.dead_letter_topic.as_str()).filter(|topic| !topic.is_empty())
    }

    /// `retry.on_exhausted`, else what goes without saying: nothing is lost unless it was asked for.
    #[must_use]
    pub fn on_exhausted(&self) -> OnExhausted {
        match (self.retry.on_exhausted, self.dead_letter_topic()) {
            (Some(asked), _) => asked,
            (None, Some(_)) => OnExhausted::DeadLetter,
            (None, None) => OnExhausted::Block,
        }
    }

    /// How long the group waits for a silent member. With `protocol = "consumer"` the broker says it: its default.
    #[must_use]
    pub fn group_session_timeout(&self) -> Duration {
        match self.protocol {
            Protocol::Classic => self.kafka_session_timeout,
            Protocol::Consumer => Duration::from_secs(45),
        }
    }

    fn kafka_protocol(&self) -> sluice_kafka::Protocol {
        match self.protocol {
            Protocol::Consumer => sluice_kafka::Protocol::Consumer,
            Protocol::Classic => sluice_kafka::Protocol::Classic {
                assignor: match self.assignor {
                    Assignor::CooperativeSticky => sluice_kafka::Assignor::CooperativeSticky,
                    Assignor::Range => sluice_kafka::Assignor::Range,
                    Assignor::RoundRobin => sluice_kafka::Assignor::RoundRobin,
                },
                session_timeout: self.kafka_session_timeout,
                heartbeat_interval: self.heartbeat_interval,
            },
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
