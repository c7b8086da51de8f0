//! Which librdkafka properties are secrets. What may be passed through at all, `sluice_kafka::check_properties` knows.

/// Whether the property's value must not be shown.
#[must_use]
pub(crate) fn is_secret(name: &str) -> bool {
    ["password", "secret", "key.pem", "sasl.oauthbearer.config", "jaas"].iter().any(|part| name.contains(part))
}
