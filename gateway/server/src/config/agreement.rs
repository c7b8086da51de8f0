//! What the nodes of a cluster must agree on for a subscription, as a short hash: it stands where other nodes see it.

use serde_json::Value;

use crate::config::SubscriptionConfig;

/// Keys by which the fate of a record, or what a client sees, would depend on the node. The others are a node's own matter.
pub const AGREED: [&str; 12] = [
    "topics",
    "ordering",
    "start",
    "ack_timeout",
    "max_ack_timeout",
    "max_retry_delay",
    "session_timeout",
    "resume_timeout",
    "retry",
    "dead_letter_topic",
    "max_record_bytes",
    "too_large_after",
];

impl SubscriptionConfig {
    /// A hash of what nodes must agree on. Only what differs from the defaults counts: a key that a later version adds changes
    /// nothing until somebody sets it. FNV-1a, so that every build has the same.
    #[must_use]
    pub fn policy_hash(&self) -> u32 {
        let value = |of: &Self| serde_json::to_value(of).expect("plain values, string keys");
        let (own, default) = (value(self), value(&Self::default()));
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for key in AGREED {
            let mut own = own[key].clone();
            if let Value::Array(topics) = &mut own {
                topics.sort_by_key(ToString::to_string);
            }
            for byte in difference(key, &own, &default[key]).bytes() {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
        u32::try_from((hash ^ (hash >> 32)) & 0xffff_ffff).expect("32 bits")
    }
}

/// What of it is not the default, as text; of a table its keys one by one.
fn difference(key: &str, own: &Value, default: &Value) -> String {
    match own {
        _ if own == default => String::new(),
        Value::Object(table) => table.iter().map(|(below, value)| difference(below, value, &default[below])).collect(),
        value => format!("{key}={value}\n"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::*;
    use crate::config::keys::Section as _;
    use crate::config::{Join, OnExhausted, Ordering, RetryConfig, Size};

    /// Keys that each node may have its own values of.
    const OWN: [&str; 21] = [
        "group",
        "join",
        "leave_delay",
        "stuck_after",
        "commit_interval",
        "commit_count",
        "span_limit",
        "partition_bytes",
        "memory_reserved",
        "ready_bytes",
        "prefetch",
        "protocol",
        "assignor",
        "kafka_session_timeout",
        "heartbeat_interval",
        "static_membership",
        "describe_group",
        "revoke_grace",
        "metadata_refresh",
        "kafka",
        "commit_deadline",
    ];

    fn orders() -> SubscriptionConfig {
        SubscriptionConfig { topics: vec!["a".to_owned(), "b".to_owned()], ..Default::default() }
    }

    #[test]
    fn every_key_is_either_agreed_on_or_a_nodes_own() {
        let keys: BTreeSet<_> = SubscriptionConfig::keys().into_iter().map(|key| key.path[0]).collect();
        let sorted: BTreeSet<_> = AGREED.into_iter().chain(OWN).collect();
        assert_eq!(keys, sorted);
        assert_eq!(sorted.len(), AGREED.len() + OWN.len(), "none is both");
    }

    #[test]
    fn the_page_about_clusters_names_what_is_agreed_on() {
        let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/cluster.md");
        let page = std::fs::read_to_string(page).unwrap();
        let (_, from) = page.split_once("## Do they agree?").unwrap();
        let (about, _) = from.split_once("## ").unwrap();
        let missing: Vec<_> = AGREED.iter().filter(|key| !about.contains(&format!("`{key}`"))).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn a_hash_is_the_same_in_every_build_and_for_topics_in_any_order() {
        let retry = RetryConfig { max_attempts: 7, ..Default::default() };
        let seven = SubscriptionConfig { retry, ..orders() };
        assert_eq!(seven.policy_hash(), 0xdd1d_f746);
        let turned = SubscriptionConfig { topics: vec!["b".to_owned(), "a".to_owned()], ..Default::default() };
        assert_eq!(orders().policy_hash(), turned.policy_hash());
    }

    #[test]
    fn what_must_be_agreed_on_changes_the_hash_and_what_is_a_nodes_own_does_not() {
        let policies = [
            orders(),
            SubscriptionConfig { topics: vec!["a".to_owned()], ..orders() },
            SubscriptionConfig { ordering: Ordering::Key, ..orders() },
            SubscriptionConfig { ack_timeout: Duration::from_secs(1), ..orders() },
            SubscriptionConfig { max_ack_timeout: Duration::from_secs(1), ..orders() },
            SubscriptionConfig { dead_letter_topic: "dead".to_owned(), ..orders() },
            SubscriptionConfig { max_record_bytes: Size::mib(1), ..orders() },
            SubscriptionConfig { retry: RetryConfig { max_attempts: 7, ..Default::default() }, ..orders() },
            SubscriptionConfig { retry: RetryConfig { jitter: 0.0, ..Default::default() }, ..orders() },
            SubscriptionConfig {
                retry: RetryConfig { on_exhausted: Some(OnExhausted::Drop), ..Default::default() },
                ..orders()
            },
        ];
        let hashes: BTreeSet<u32> = policies.iter().map(SubscriptionConfig::policy_hash).collect();
        assert_eq!(hashes.len(), policies.len());
        let own = SubscriptionConfig {
            join: Join::AtStart,
            span_limit: 5,
            prefetch: Size::mib(9),
            memory_reserved: Some(Size::mib(9)),
            ..orders()
        };
        assert_eq!(own.policy_hash(), orders().policy_hash());
    }
}
