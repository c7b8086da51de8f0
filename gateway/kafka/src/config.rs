//! librdkafka's properties: what we set, what an operator may set, and what not.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::ffi::Purpose;
use crate::io::{Assignor, KafkaConfig, Protocol};
use crate::subscription::Error;

/// The longest name of a host, with room for a port and a few words.
const MARK_BYTES_MAX: usize = 300;

/// Names, or beginnings of names ending in `.`, that an operator may set.
const ALLOWED: &[&str] = &[
    "security.protocol",
    "ssl.",
    "sasl.",
    "socket.",
    "broker.address.",
    "reconnect.backoff.ms",
    "reconnect.backoff.max.ms",
    "retry.backoff.ms",
    "retry.backoff.max.ms",
    "connections.max.idle.ms",
    "client.dns.lookup",
    "client.rack",
    "debug",
    "log_level",
    "check.crcs",
    "fetch.wait.max.ms",
    "fetch.min.bytes",
    "fetch.max.bytes",
    "fetch.message.max.bytes",
    "max.partition.fetch.bytes",
    "fetch.error.backoff.ms",
    "fetch.queue.backoff.ms",
    "receive.message.max.bytes",
    "message.max.bytes",
    "isolation.level",
    "max.poll.interval.ms",
    "metadata.max.age.ms",
    "metadata.recovery.strategy",
    "metadata.recovery.rebootstrap.trigger.ms",
    "group.remote.assignor",
    "api.version.request.timeout.ms",
];

/// Names that an operator may be tempted to set, and why not.
const REFUSED: &[(&str, &str)] = &[
    ("bootstrap.servers", "set `brokers` in `[kafka]`"),
    ("metadata.broker.list", "set `brokers` in `[kafka]`"),
    ("group.id", "set `group` in the subscription"),
    ("client.id", "the gateway sets it"),
    ("group.protocol", "set `protocol` in the subscription"),
    ("partition.assignment.strategy", "set `assignor` in the subscription"),
    ("session.timeout.ms", "set `kafka_session_timeout` in the subscription"),
    ("heartbeat.interval.ms", "set `heartbeat_interval` in the subscription"),
    ("enable.auto.commit", "the gateway commits, and only what is done"),
    ("enable.auto.offset.store", "the gateway commits, and only what is done"),
    ("auto.commit.interval.ms", "set `commit_interval` in the subscription"),
    ("auto.offset.reset", "set `start` in the subscription; what is out of range later is never skipped in silence"),
    ("topic.metadata.refresh.interval.ms", "set `metadata_refresh` in the subscription"),
    ("queued.max.messages.kbytes", "set `prefetch` in the subscription"),
    ("queued.min.messages", "set `prefetch` in the subscription"),
    ("group.instance.id", "set `static_membership` in the subscription"),
    ("sasl.oauthbearer.method", "OAUTHBEARER is not supported yet"),
    ("sasl.oauthbearer.config", "OAUTHBEARER is not supported yet"),
];

/// Checks properties that an operator set, by name and value.
///
/// # Errors
/// Names the property that is refused, and what to do instead.
pub fn check_properties(properties: &BTreeMap<String, String>) -> Result<(), Error> {
    for (name, value) in properties {
        if let Some((_, why)) = REFUSED.iter().find(|(refused, _)| refused == name) {
            return Err(Error::Config(format!("property {name} cannot be set here: {why}")));
        }
        let allowed =
            ALLOWED.iter().any(|allowed| name == allowed || allowed.ends_with('.') && name.starts_with(allowed));
        if !allowed {
            return Err(Error::Config(format!(
                "property {name} is not on the list of properties that can be passed to librdkafka"
            )));
        }
        if value.contains('\0') {
            return Err(Error::Config(format!("the value of property {name} contains a NUL")));
        }
        // librdkafka itself says whether the value is one; no client is made.
        let mut alone = rdkafka::ClientConfig::new();
        alone.set(name, value);
        if let Err(rdkafka::error::KafkaError::ClientConfig(_, why, ..)) = alone.create_native_config() {
            return Err(Error::Config(format!("property {name}: {why}")));
        }
    }
    Ok(())
}

impl KafkaConfig {
    /// How long the group waits for a silent member. The broker's default where the broker decides.
    pub(crate) fn session_timeout(&self) -> Duration {
        match self.protocol {
            Protocol::Classic { session_timeout, .. } => session_timeout,
            Protocol::Consumer => Duration::from_secs(45),
        }
    }

    /// A rebalance must be answered before the group evicts us for it: at half of `max.poll.interval.ms` at the latest.
    pub(crate) fn answer_within(&self) -> Duration {
        let poll_ms = self.properties.get("max.poll.interval.ms").and_then(|ms| ms.parse().ok()).unwrap_or(300_000);
        Duration::from_millis(poll_ms) / 2
    }

    /// What a drain may take, of what the configuration wishes.
    pub(crate) fn grace(&self) -> Duration {
        self.revoke_grace.min(Duration::from_secs(10)).min(self.answer_within())
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        check_properties(&self.properties)?;
        let strings = [("brokers", &self.brokers), ("group", &self.group), ("client.id", &self.client_id)];
        let instance = self.instance.iter().map(|instance| ("group.instance.id", instance));
        for (name, value) in
            strings.into_iter().chain(instance).chain(self.topics.iter().map(|topic| ("topics", topic)))
        {
            if value.is_empty() || value.contains('\0') {
                return Err(Error::Config(format!("{name}: {value:?} is empty or contains a NUL")));
            }
        }
        if self.topics.is_empty() {
            return Err(Error::Config("topics: none is named".to_owned()));
        }
        if self.topics.iter().any(|topic| topic.starts_with('^')) {
            return Err(Error::Config("topics: a pattern (^...) is not supported".to_owned()));
        }
        if self.member_mark.contains('\0') || self.member_mark.len() > MARK_BYTES_MAX {
            return Err(Error::Config(format!(
                "client.id: the mark of a member has a NUL, or more than {MARK_BYTES_MAX} bytes"
            )));
        }
        if self.client_id.len() > 200 {
            return Err(Error::Config(format!("client.id: {} bytes, at most 200 are allowed", self.client_id.len())));
        }
        Ok(())
    }

    /// The properties of a client that asks the brokers and is in no group: the same for all subscriptions of one Kafka.
    pub(crate) fn properties_for_questions(&self) -> BTreeMap<String, String> {
        let mut all = self.properties.clone();
        all.insert("bootstrap.servers".to_owned(), self.brokers.clone());
        all.insert("client.id".to_owned(), self.client_id.clone());
        // Of members alone; librdkafka compares the latter with a session timeout.
        all.remove("group.remote.assignor");
        all.remove("max.poll.interval.ms");
        all
    }

    /// The properties of one of the two handles.
    pub(crate) fn properties_for(&self, purpose: Purpose) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        let mut set = |name: &str, value: String| {
            all.insert(name.to_owned(), value);
        };
        set("bootstrap.servers", self.brokers.clone());
        set("client.id", self.client_id.clone());
        set("group.id", self.group.clone());
        set("enable.auto.commit", "false".to_owned());
        set("enable.auto.offset.store", "false".to_owned());
        set("topic.metadata.refresh.interval.ms", self.metadata_refresh.as_millis().max(10).to_string());
        // A broker that comes back is found within a second, not ten.
        set("reconnect.backoff.ms", "50".to_owned());
        set("reconnect.backoff.max.ms", "1000".to_owned());
        // Where a partition begins is always decided by us: librdkafka must never guess.
        set("auto.offset.reset", "error".to_owned());
        match purpose {
            Purpose::Fetch => {
                set("isolation.level", "read_committed".to_owned());
                set("queued.max.messages.kbytes", self.prefetch_kib.max(1).to_string());
                // With the default of 1,000 ms a full queue stops fetching for a second.
                set("fetch.queue.backoff.ms", "5".to_owned());
            }
            Purpose::Member => match &self.protocol {
                Protocol::Classic { assignor, session_timeout, heartbeat_interval } => {
                    let strategy = match assignor {
                        Assignor::CooperativeSticky => "cooperative-sticky",
                        Assignor::Range => "range",
                        Assignor::RoundRobin => "roundrobin",
                    };
                    set("partition.assignment.strategy", strategy.to_owned());
                    set("session.timeout.ms", session_timeout.as_millis().to_string());
                    set("heartbeat.interval.ms", heartbeat_interval.as_millis().to_string());
                }
                Protocol::Consumer => set("group.protocol", "consumer".to_owned()),
            },
        }
        if purpose == Purpose::Member {
            all.insert("client.id".to_owned(), format!("{}{}", self.client_id, self.member_mark));
            all.extend(self.instance.clone().map(|instance| ("group.instance.id".to_owned(), instance)));
        }
        for (name, value) in &self.properties {
            all.insert(name.clone(), value.clone());
        }
        if purpose == Purpose::Fetch {
            // The fetch handle never joins, and the protocol's own properties would be refused.
            all.remove("group.remote.assignor");
        }
        all
    }
}

/// For tests of the threads: nobody listens there.
#[cfg(test)]
pub(crate) fn of_nobody() -> KafkaConfig {
    KafkaConfig {
        brokers: "127.0.0.1:1".to_owned(),
        group: "group".to_owned(),
        topics: vec!["t".to_owned()],
        client_id: "tests".to_owned(),
        instance: None,
        member_mark: String::new(),
        watch_group: false,
        protocol: Protocol::Consumer,
        start: crate::io::Start::Earliest,
        revoke_grace: Duration::from_secs(5),
        commit_deadline: Duration::from_secs(5),
        metadata_refresh: Duration::from_secs(10),
        prefetch_kib: 1,
        properties: BTreeMap::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn properties(name: &str) -> BTreeMap<String, String> {
        BTreeMap::from([(name.to_owned(), "1".to_owned())])
    }

    #[test]
    fn security_and_fetch_properties_pass() {
        for name in ["ssl.ca.location", "sasl.username", "fetch.wait.max.ms"] {
            check_properties(&properties(name)).expect(name);
        }
        let tls = BTreeMap::from([("security.protocol".to_owned(), "ssl".to_owned())]);
        check_properties(&tls).expect("a value of it");
    }

    #[test]
    fn a_value_that_librdkafka_does_not_take_is_refused_by_name() {
        let error = check_properties(&properties("security.protocol")).expect_err("1 is no protocol").to_string();
        assert!(error.contains("security.protocol"), "{error}");
        let wait = BTreeMap::from([("fetch.wait.max.ms".to_owned(), "soon".to_owned())]);
        check_properties(&wait).expect_err("no number");
    }

    #[test]
    fn a_property_of_ours_is_refused_with_what_to_do_instead() {
        let error = check_properties(&properties("session.timeout.ms")).expect_err("refused").to_string();
        assert!(error.contains("session.timeout.ms") && error.contains("kafka_session_timeout"), "{error}");
        check_properties(&properties("no.such")).expect_err("unknown");
    }
}
