//! The driver against a Kafka that is a pair of channels.
