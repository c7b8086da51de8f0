//! librdkafka properties that a config may pass through, and those that are secrets.

/// What sluice sets itself, and where it is set instead.
const OWN: [(&str, &str); 14] = [
    ("bootstrap.servers", "kafka.brokers"),
    ("metadata.broker.list", "kafka.brokers"),
    ("group.id", "group"),
    ("client.id", "kafka.client_id"),
    ("group.protocol", "protocol"),
    ("partition.assignment.strategy", "assignor"),
    ("session.timeout.ms", "kafka_session_timeout"),
    ("heartbeat.interval.ms", "heartbeat_interval"),
    ("auto.offset.reset", "start"),
    ("topic.metadata.refresh.interval.ms", "metadata_refresh"),
    ("queued.max.messages.kbytes", "prefetch"),
    ("enable.auto.commit", "commit_interval"),
    ("auto.commit.interval.ms", "commit_interval"),
    ("enable.auto.offset.store", "commit_interval"),
];

/// What may be passed through. A trailing `*` stands for any rest.
const ALLOWED: [&str; 36] = [
    "security.protocol",
    "sasl.*",
    "ssl.*",
    "enable.ssl.certificate.verification",
    "broker.address.*",
    "client.dns.lookup",
    "client.rack",
    "api.version.request.timeout.ms",
    "connections.max.idle.ms",
    "check.crcs",
    "debug",
    "fetch.wait.max.ms",
    "fetch.min.bytes",
    "fetch.max.bytes",
    "fetch.message.max.bytes",
    "fetch.error.backoff.ms",
    "fetch.queue.backoff.ms",
    "max.partition.fetch.bytes",
    "receive.message.max.bytes",
    "message.max.bytes",
    "queued.min.messages",
    "group.instance.id",
    "group.remote.assignor",
    "isolation.level",
    "log_level",
    "max.poll.interval.ms",
    "max.in.flight",
    "metadata.max.age.ms",
    "metadata.recovery.strategy",
    "reconnect.backoff.ms",
    "reconnect.backoff.max.ms",
    "retry.backoff.ms",
    "retry.backoff.max.ms",
    "socket.*",
    "topic.metadata.refresh.fast.interval.ms",
    "allow.auto.create.topics",
];

/// Whether a config may pass the property through.
pub(crate) fn check(name: &str, _value: &str) -> Result<(), String> {
    if let Some((_, key)) = OWN.iter().find(|(own, _)| *own == name) {
        return Err(format!("sluice sets this itself: use the key `{key}`"));
    }
    let allowed = |pattern: &&str| match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == *pattern,
    };
    if ALLOWED.iter().any(|pattern| allowed(&pattern)) {
        return Ok(());
    }
    Err(match super::error::closest(name, ALLOWED.iter().copied().filter(|pattern| !pattern.ends_with('*'))) {
        Some(meant) => format!("is not on the list of properties that may be passed through: did you mean `{meant}`?"),
        None => "is not on the list of properties that may be passed through".to_owned(),
    })
}

/// Whether the property's value must not be shown.
#[must_use]
pub(crate) fn is_secret(name: &str) -> bool {
    ["password", "secret", "key.pem", "sasl.oauthbearer.config", "jaas"].iter().any(|part| name.contains(part))
}
