//! What must hold among the values of a config.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use crate::config::{Config, OnExhausted, PeersConfig, Protocol, Size, SubscriptionConfig};

/// Kafka's own limit on `client.id` and names that stand in it is generous; describe answers stay small with this.
const CLIENT_ID_BYTES_MAX: usize = 200;
/// Proxies cut a stream after 15 to 60 s of silence.
const PING_INTERVAL_MAX: Duration = Duration::from_secs(20);
/// A drain in a rebalance holds up the other members.
const REVOKE_GRACE_MAX: Duration = Duration::from_secs(10);
/// librdkafka's default of `max.poll.interval.ms`.
const MAX_POLL_INTERVAL_DEFAULT: Duration = Duration::from_secs(300);
/// librdkafka's bounds of `queued.max.messages.kbytes`.
const PREFETCH_KIB_MAX: u64 = 2_097_151;
/// librdkafka's bound of intervals and timeouts that it is given in milliseconds.
const KAFKA_DURATION_MAX: Duration = Duration::from_secs(3_600);

/// More connections to a peer only cost.
const CONNECTIONS_MAX: u32 = 16;

/// A dead letter of Kafka's default `max.message.bytes` fits.
const DEAD_LETTER_QUEUE_MIN: Size = Size::mib(2);

/// A mistake: the key's path, and what would be right.
pub(crate) type Mistake = (Vec<String>, String);

/// Gathers mistakes of one table.
struct Checker {
    at: Vec<String>,
    mistakes: Vec<Mistake>,
}

impl Checker {
    fn new(at: &[&str]) -> Self {
        Self { at: at.iter().map(ToString::to_string).collect(), mistakes: Vec::new() }
    }

    fn require(&mut self, holds: bool, key: &str, message: impl FnOnce() -> String) {
        if !holds {
            let path = self.at.iter().cloned().chain(key.split('.').map(str::to_owned));
            self.mistakes.push((path.collect(), message()));
        }
    }

    fn positive(&mut self, key: &str, duration: Duration) {
        self.require(duration >= Duration::from_millis(1), key, || "must be at least 1ms".to_owned());
    }

    fn kafka_duration(&mut self, key: &str, duration: Duration) {
        self.positive(key, duration);
        self.require(duration <= KAFKA_DURATION_MAX, key, || "must be at most 1h: librdkafka takes no more".to_owned());
    }
}

/// Every mistake in the config.
pub(crate) fn check(config: &Config) -> Vec<Mistake> {
    let mut mistakes = check_process(config);
    let mut groups: BTreeMap<&str, &str> = BTreeMap::new();
    for (name, subscription) in &config.subscriptions {
        let group = subscription.group(name);
        if let Some(other) = groups.insert(group, name) {
            let path = ["subscriptions", name, "group"].map(str::to_owned).to_vec();
            mistakes.push((
                path,
                format!("group `{group}` is that of subscription `{other}` already: give one another group"),
            ));
        }
        mistakes.extend(check_subscription(config, name, subscription));
    }
    mistakes
}

fn check_process(config: &Config) -> Vec<Mistake> {
    let mut node = Checker::new(&["node"]);
    let (client_id, interval) = (config.client_id(), config.node.ping_interval);
    node.positive("ping_interval", interval);
    node.positive("stream_max_age", config.node.stream_max_age);
    node.require(interval <= PING_INTERVAL_MAX, "ping_interval", || {
        "must be at most 20s: proxies cut streams that are silent for longer".to_owned()
    });
    let same = config.node.listen == config.node.admin_listen && config.node.listen.port() != 0;
    node.require(!same, "admin_listen", || "is the address of node.listen: give it another port".to_owned());

    let peers = check_peers(config);
    let mut log = Checker::new(&["log"]);
    let filter = EnvFilter::try_new(&config.log.level);
    log.require(filter.is_ok(), "level", || "is no level: write error, warn, info, debug or trace".to_owned());

    let mut kafka = Checker::new(&["kafka"]);
    let broker_ok = |broker: &str| is_host_and_port(broker.rsplit_once("://").map_or(broker, |(_, address)| address));
    kafka.require(config.kafka.brokers.split(',').all(broker_ok), "brokers", || {
        "must be host:port, several separated by commas".to_owned()
    });
    let id_key = if config.kafka.client_id.is_empty() { ("node", "name") } else { ("kafka", "client_id") };
    let mut id = Checker::new(&[id_key.0]);
    id.require(client_id.len() <= CLIENT_ID_BYTES_MAX, id_key.1, || {
        format!("makes a client.id of {} bytes: at most {CLIENT_ID_BYTES_MAX}", client_id.len())
    });

    let mut limits = Checker::new(&["limits"]);
    limits.require(config.limits.max_streams > 0, "max_streams", || "must be at least 1".to_owned());
    limits.kafka_duration("dead_letter_timeout", config.limits.dead_letter_timeout);
    limits.require(config.limits.dead_letter_queue >= DEAD_LETTER_QUEUE_MIN, "dead_letter_queue", || {
        format!("must be at least {DEAD_LETTER_QUEUE_MIN}")
    });
    let reserved: u64 = config.subscriptions.values().filter_map(|s| s.memory_reserved).map(|size| size.0).sum();
    let sharing = config.subscriptions.values().any(|s| s.memory_reserved.is_none());
    let budget = config.limits.memory_budget;
    limits.require(reserved + u64::from(sharing) <= budget.0, "memory_budget", || {
        format!("is {budget}, and the subscriptions reserve {}: nothing is left for the others", Size(reserved))
    });
    let properties = property_mistakes("properties", &mut kafka, &config.kafka.properties);
    [node, peers, log, id, limits].into_iter().flat_map(|checker| checker.mistakes).chain(properties).collect()
}

/// The longest address that peers may be told: the longest name of a host, and a port.
const ADDRESS_BYTES_MAX: usize = 253 + 6;

pub(crate) fn is_host_and_port(address: &str) -> bool {
    let is_host =
        |host: &str| !host.is_empty() && !host.contains(['/', ';', '@', '?', '#']) && host.len() <= ADDRESS_BYTES_MAX;
    let is_word = |text: &str| !text.contains(|c: char| c.is_whitespace() || c.is_control());
    let parts = address.trim().rsplit_once(':');
    parts.is_some_and(|(host, port)| is_host(host) && is_word(host) && port.parse::<u16>().is_ok())
}

fn check_peers(config: &Config) -> Checker {
    let (mut c, peers) = (Checker::new(&["peers"]), &config.peers);
    let Some(listen) = peers.listen else {
        let given = [
            ("addresses", !peers.addresses.is_empty()),
            ("dns", !peers.dns.is_empty()),
            ("from_group", peers.from_group),
            ("tls", peers.tls.is_set()),
        ];
        for (key, is_set) in given {
            c.require(!is_set, key, || {
                "has no meaning without peers.listen: add listen = \"host:port\", the address for other nodes"
                    .to_owned()
            });
        }
        return c;
    };
    let same = |other: std::net::SocketAddr| other == listen && listen.port() != 0;
    c.require(!same(config.node.listen) && !same(config.node.admin_listen), "listen", || {
        "is an address of [node]: give it another port".to_owned()
    });
    check_peers_tls(&mut c, peers, listen.ip().is_loopback());
    c.require(!peers.addresses.is_empty() || !peers.dns.is_empty() || peers.from_group, "addresses", || {
        "is empty, and so is peers.dns: name the nodes of the cluster in one of them, or set from_group = true"
            .to_owned()
    });
    c.require(!peers.from_group || peers.tls.is_set() || listen.ip().is_loopback(), "from_group", || {
        "needs [peers.tls]: without it whoever may join a Kafka group could have this node send clients' sessions anywhere"
            .to_owned()
    });
    let is_described = config.subscriptions.values().any(|subscription| subscription.describe_group.unwrap_or(true));
    c.require(!peers.from_group || is_described, "from_group", || {
        "finds nobody where each subscription has describe_group = false: leave it out of one".to_owned()
    });
    for address in &peers.addresses {
        c.require(is_host_and_port(address), "addresses", || format!("`{address}` is not host:port"));
    }
    for (key, address) in [("dns", &peers.dns), ("advertise", &peers.advertise)] {
        c.require(address.is_empty() || is_host_and_port(address), key, || "must be host:port".to_owned());
    }
    c.positive("resolve_interval", peers.resolve_interval);
    c.positive("ping_interval", peers.ping_interval);
    c.require(peers.timeout >= 2 * peers.ping_interval, "timeout", || {
        format!("must be at least twice ping_interval, {}", humantime::format_duration(peers.ping_interval))
    });
    c.require((1..=CONNECTIONS_MAX).contains(&peers.connections), "connections", || {
        format!("must be from 1 to {CONNECTIONS_MAX}")
    });
    c
}

fn check_peers_tls(c: &mut Checker, peers: &PeersConfig, is_loopback: bool) {
    let tls = &peers.tls;
    if !tls.is_set() {
        c.require(peers.plain || is_loopback, "plain", || {
            "must be true where peers.listen is no loopback address and there is no [peers.tls]: without it peers speak \
             without encryption, and that must be meant"
                .to_owned()
        });
        return;
    }
    c.require(!peers.plain, "plain", || "contradicts [peers.tls]: remove one of them".to_owned());
    let mut whole = true;
    for (key, is_empty, what) in [
        ("tls.cert", tls.cert.is_empty(), "the file with this node's certificate"),
        ("tls.key", tls.key.is_empty(), "the file with the certificate's key"),
        ("tls.ca", tls.ca.is_empty(), "the file with the CA that signs the nodes' certificates"),
        ("tls.identities", tls.identities.is_empty(), "who is a peer, as in identities = [\"sluice.prod.svc\"]"),
    ] {
        whole &= !is_empty;
        c.require(!is_empty, key, || format!("is missing: write {what}"));
    }
    if whole && let Err(mistake) = crate::peer::tls::check(tls) {
        c.require(false, &format!("tls.{}", mistake.key), || mistake.message);
    }
}

fn check_subscription(config: &Config, name: &str, s: &SubscriptionConfig) -> Vec<Mistake> {
    let mut checker = Checker::new(&["subscriptions", name]);
    let c = &mut checker;
    let name_ok = !name.is_empty() && name.len() <= 200 && !name.chars().any(char::is_control);
    c.require(name_ok, "group", || "a subscription's name has 1 to 200 bytes and no control characters".to_owned());
    check_topics(c, &s.topics);
    check_dead_letters(c, s);
    for (key, duration) in [
        ("ack_timeout", s.ack_timeout),
        ("session_timeout", s.session_timeout),
        ("commit_interval", s.commit_interval),
        ("commit_deadline", s.commit_deadline),
        ("retry.initial_backoff", s.retry.initial_backoff),
        ("too_large_after", s.too_large_after),
        ("stuck_after", s.stuck_after),
    ] {
        c.positive(key, duration);
    }
    c.require(s.ack_timeout <= s.max_ack_timeout, "ack_timeout", || {
        format!("must be at most max_ack_timeout, {}", humantime::format_duration(s.max_ack_timeout))
    });
    c.require(s.commit_count > 0, "commit_count", || "must be at least 1".to_owned());
    c.require(s.span_limit > 0, "span_limit", || "must be at least 1".to_owned());
    c.require(s.partition_bytes.0 > 0, "partition_bytes", || "must be at least 1B".to_owned());
    c.require(s.ready_bytes.0 > 0, "ready_bytes", || "must be at least 1B".to_owned());
    c.require(s.max_record_bytes.0 > 0, "max_record_bytes", || "must be at least 1B".to_owned());
    let prefetch_ok = (1 << 10..=PREFETCH_KIB_MAX << 10).contains(&s.prefetch.0);
    c.require(prefetch_ok, "prefetch", || "must be from 1KiB to 2097151KiB".to_owned());
    c.kafka_duration("metadata_refresh", s.metadata_refresh);

    let r = &s.retry;
    c.require(r.max_attempts > 0, "retry.max_attempts", || "must be at least 1".to_owned());
    c.require(r.multiplier.is_finite() && r.multiplier >= 1.0, "retry.multiplier", || "must be 1 or more".to_owned());
    c.require((0.0..=1.0).contains(&r.jitter), "retry.jitter", || "must be from 0 to 1".to_owned());
    c.require(r.initial_backoff <= r.max_backoff, "retry.max_backoff", || {
        format!("must be at least initial_backoff, {}", humantime::format_duration(r.initial_backoff))
    });
    check_group(c, config, s);
    property_mistakes("kafka", &mut checker, &s.kafka)
}

fn check_topics(c: &mut Checker, topics: &[String]) {
    c.require(!topics.is_empty(), "topics", || "must name at least one topic, as in topics = [\"orders\"]".to_owned());
    let mut seen = BTreeSet::new();
    for topic in topics {
        check_topic_name(c, "topics", topic);
        c.require(seen.insert(topic), "topics", || format!("names `{topic}` twice"));
    }
}

fn check_topic_name(c: &mut Checker, key: &str, topic: &str) {
    // Kafka's own rule for names.
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let ok = (1..=249).contains(&topic.len()) && topic.chars().all(legal) && topic != "." && topic != "..";
    c.require(ok, key, || format!("`{topic}` is no topic's name: letters, digits, `.`, `_` and `-`, at most 249"));
}

fn check_dead_letters(c: &mut Checker, s: &SubscriptionConfig) {
    let Some(topic) = s.dead_letter_topic() else {
        c.require(s.retry.on_exhausted != Some(OnExhausted::DeadLetter), "retry.on_exhausted", || {
            "is \"dead_letter\", and there is no topic for it: add dead_letter_topic = \"...\" to the subscription"
                .to_owned()
        });
        return;
    };
    check_topic_name(c, "dead_letter_topic", topic);
    c.require(!s.topics.iter().any(|own| own == topic), "dead_letter_topic", || {
        format!(
            "`{topic}` is one of the subscription's own topics, and its dead letters would come again: name another"
        )
    });
}

fn check_group(c: &mut Checker, config: &Config, s: &SubscriptionConfig) {
    let poll = s.kafka.get("max.poll.interval.ms").or_else(|| config.kafka.properties.get("max.poll.interval.ms"));
    let poll = poll.and_then(|ms| ms.parse().ok()).map_or(MAX_POLL_INTERVAL_DEFAULT, Duration::from_millis);
    let grace_max = REVOKE_GRACE_MAX.min(poll / 2);
    c.require(s.revoke_grace <= grace_max, "revoke_grace", || {
        format!("must be at most {}: 10s, and half of max.poll.interval.ms", humantime::format_duration(grace_max))
    });
    if s.protocol == Protocol::Classic {
        c.kafka_duration("kafka_session_timeout", s.kafka_session_timeout);
        c.kafka_duration("heartbeat_interval", s.heartbeat_interval);
        c.require(s.heartbeat_interval < s.kafka_session_timeout, "heartbeat_interval", || {
            let timeout = humantime::format_duration(s.kafka_session_timeout);
            format!("must be less than kafka_session_timeout, {timeout}; a third of it or less is usual")
        });
        c.require(s.kafka_session_timeout <= poll, "kafka_session_timeout", || {
            format!("must be at most max.poll.interval.ms, {}", humantime::format_duration(poll))
        });
        return;
    }
    let default = SubscriptionConfig::default();
    for (key, unchanged) in [
        ("assignor", s.assignor == default.assignor),
        ("kafka_session_timeout", s.kafka_session_timeout == default.kafka_session_timeout),
        ("heartbeat_interval", s.heartbeat_interval == default.heartbeat_interval),
    ] {
        c.require(unchanged, key, || {
            "has no meaning with protocol = \"consumer\", where the broker decides: remove it".to_owned()
        });
    }
}

fn property_mistakes(key: &str, checker: &mut Checker, properties: &BTreeMap<String, String>) -> Vec<Mistake> {
    for (name, value) in properties {
        let alone = BTreeMap::from([(name.clone(), value.clone())]);
        if let Err(error) = sluice_kafka::check_properties(&alone) {
            let path = checker.at.iter().cloned().chain([key.to_owned(), name.clone()]);
            checker.mistakes.push((path.collect(), error.to_string().trim_start_matches("kafka: ").to_owned()));
        }
    }
    std::mem::take(&mut checker.mistakes)
}
