//! The one table from what went wrong to a gRPC status.

use std::time::Duration;

use sluice_kafka::{MissingRights, SeekError};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, QuotaViolation, StatusExt as _};

/// `ErrorInfo.domain` of every status.
pub(crate) const DOMAIN: &str = "sluice";

/// When trying again helps: the client's backoff begins here, with jitter of its own.
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// What ends a stream, or refuses a call. Faults of a single lease are answered in the stream and are not in here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    #[error("the first frame of a stream must be a Subscribe")]
    BadFirstFrame,
    #[error("a stream subscribes once; open another stream for another subscription")]
    SecondSubscribe,
    #[error("the frame is empty, or holds what revision {} of the contract does not know", sluice_proto::REVISION)]
    UnknownFrame,
    #[error("a frame cannot be read: {0}")]
    UnreadableFrame(String),
    #[error("{field}: {problem}")]
    Invalid { field: &'static str, problem: String },
    #[error("there is no subscription {0:?} on this node")]
    SubscriptionNotFound(String),
    #[error("topic {0:?} does not exist")]
    TopicMissing(String),
    /// For the operator of the gateway: it is not the client that has no right.
    #[error("subscription {subscription:?} cannot be served: Kafka does not give the gateway {missing}")]
    RightsMissing { subscription: String, missing: MissingRights },
    #[error("the spec differs from the live subscription {subscription:?} in: {}", fields.join(", "))]
    SpecMismatch { subscription: String, fields: Vec<&'static str> },
    #[error("{0}")]
    Unimplemented(&'static str),
    #[error("{0}")]
    KafkaUnreachable(String),
    #[error(
        "not sought: {left}. They are on their way between nodes, or their owner does not answer; ask again. Sought: {done}"
    )]
    SeekIncomplete { left: String, done: String },
    #[error("this node holds {0} streams, its limit")]
    StreamLimit(u32),
    #[error("settlements came faster than they can be kept, or without reading: more than {0} ranges or records wait")]
    SettleFlood(usize),
    #[error("a frame is larger than {0} bytes; split settlements at 256 KiB")]
    FrameTooLarge(usize),
    #[error("another stream from {by} has this consumer_id now")]
    Superseded { by: String },
    #[error("nothing came from the client for {}", humantime::format_duration(*.0))]
    SessionTimeout(Duration),
    #[error("{message}")]
    Owner { reason: &'static str, message: String },
    #[error("this node is shutting down")]
    ShuttingDown,
    #[error("the subscription's driver has stopped")]
    Stopped,
}

/// Reasons for which the owner of a partition may end a session that another node relays.
const OF_OWNERS: [&str; 5] =
    ["CONSUMER_SUPERSEDED", "SETTLE_FLOOD", "FRAME_TOO_LARGE", "INVALID_FIELD", "SESSION_TIMEOUT"];

impl Error {
    /// An owner ended a session, and with it its client's stream.
    pub(crate) fn of_owner(reason: &str, message: String) -> Self {
        let reason = OF_OWNERS.into_iter().find(|known| *known == reason).unwrap_or("SHUTTING_DOWN");
        Self::Owner { reason, message }
    }

    /// `ErrorInfo.reason`: the word that a program compares.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::BadFirstFrame => "BAD_FIRST_FRAME",
            Self::SecondSubscribe => "SECOND_SUBSCRIBE",
            Self::UnknownFrame => "UNKNOWN_FRAME",
            Self::UnreadableFrame(_) => "UNREADABLE_FRAME",
            Self::Invalid { .. } => "INVALID_FIELD",
            Self::SubscriptionNotFound(_) => "SUBSCRIPTION_NOT_FOUND",
            Self::TopicMissing(_) => "TOPIC_MISSING",
            Self::RightsMissing { .. } => "KAFKA_RIGHTS_MISSING",
            Self::SpecMismatch { .. } => "SPEC_MISMATCH",
            Self::Unimplemented(_) => "NOT_BUILT_YET",
            Self::KafkaUnreachable(_) => "KAFKA_UNREACHABLE",
            Self::SeekIncomplete { .. } => "SEEK_INCOMPLETE",
            Self::StreamLimit(_) => "STREAM_LIMIT",
            Self::SettleFlood(_) => "SETTLE_FLOOD",
            Self::FrameTooLarge(_) => "FRAME_TOO_LARGE",
            Self::Superseded { .. } => "CONSUMER_SUPERSEDED",
            Self::SessionTimeout(_) => "SESSION_TIMEOUT",
            Self::Owner { reason, .. } => reason,
            Self::ShuttingDown | Self::Stopped => "SHUTTING_DOWN",
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::BadFirstFrame | Self::SecondSubscribe | Self::UnreadableFrame(_) | Self::Invalid { .. } => {
                Code::InvalidArgument
            }
            Self::UnknownFrame | Self::Unimplemented(_) => Code::Unimplemented,
            Self::SubscriptionNotFound(_) => Code::NotFound,
            Self::TopicMissing(_) | Self::RightsMissing { .. } | Self::SpecMismatch { .. } => Code::FailedPrecondition,
            Self::StreamLimit(_) | Self::SettleFlood(_) | Self::FrameTooLarge(_) => Code::ResourceExhausted,
            Self::Superseded { .. } | Self::SeekIncomplete { .. } => Code::Aborted,
            Self::Owner { reason, .. } => match *reason {
                "CONSUMER_SUPERSEDED" => Code::Aborted,
                "SETTLE_FLOOD" | "FRAME_TOO_LARGE" => Code::ResourceExhausted,
                "INVALID_FIELD" => Code::InvalidArgument,
                _ => Code::Unavailable,
            },
            Self::SessionTimeout(_) | Self::KafkaUnreachable(_) | Self::ShuttingDown | Self::Stopped => {
                Code::Unavailable
            }
        }
    }

    /// The fields of a `BadRequest`.
    fn violations(&self) -> Vec<FieldViolation> {
        match self {
            Self::BadFirstFrame => vec![FieldViolation::new("request", self.to_string())],
            Self::SecondSubscribe => vec![FieldViolation::new("subscribe", self.to_string())],
            Self::UnreadableFrame(problem) => vec![FieldViolation::new("request", problem)],
            Self::Invalid { field, problem } => vec![FieldViolation::new(*field, problem)],
            _ => Vec::new(),
        }
    }
}

impl From<SeekError> for Error {
    fn from(error: SeekError) -> Self {
        match error {
            SeekError::Invalid(problem) => Self::Invalid { field: "target", problem },
            SeekError::Unavailable(problem) => Self::KafkaUnreachable(problem),
            SeekError::Moving => Self::KafkaUnreachable(error.to_string()),
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let mut metadata = std::collections::HashMap::new();
        match &error {
            Error::Superseded { by } => drop(metadata.insert("peer".to_owned(), by.clone())),
            Error::SpecMismatch { subscription, fields } => {
                metadata.insert("subscription".to_owned(), subscription.clone());
                metadata.insert("fields".to_owned(), fields.join(","));
            }
            Error::TopicMissing(topic) => drop(metadata.insert("topic".to_owned(), topic.clone())),
            Error::RightsMissing { subscription, missing } => {
                metadata.insert("subscription".to_owned(), subscription.clone());
                metadata.extend(missing.group.clone().map(|group| ("group".to_owned(), group)));
                if !missing.topics.is_empty() {
                    metadata.insert("topics".to_owned(), missing.topics.join(","));
                }
            }
            _ => {}
        }
        let mut details = ErrorDetails::new();
        details.set_error_info(error.reason(), DOMAIN, metadata);
        if matches!(error.code(), Code::Unavailable | Code::ResourceExhausted) {
            details.set_retry_info(Some(RETRY_DELAY));
        }
        if error.code() == Code::ResourceExhausted {
            details.set_quota_failure(vec![QuotaViolation::new(error.reason(), error.to_string())]);
        }
        let violations = error.violations();
        if !violations.is_empty() {
            details.set_bad_request(violations);
        }
        Self::with_error_details(error.code(), error.to_string(), details)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_names_its_reason_and_what_helps() {
        let cases = [
            (Error::BadFirstFrame, Code::InvalidArgument, "BAD_FIRST_FRAME", false),
            (Error::SubscriptionNotFound("x".into()), Code::NotFound, "SUBSCRIPTION_NOT_FOUND", false),
            (Error::TopicMissing("x".into()), Code::FailedPrecondition, "TOPIC_MISSING", false),
            (
                Error::RightsMissing { subscription: "x".into(), missing: MissingRights::default() },
                Code::FailedPrecondition,
                "KAFKA_RIGHTS_MISSING",
                false,
            ),
            (Error::StreamLimit(3), Code::ResourceExhausted, "STREAM_LIMIT", true),
            (Error::SettleFlood(3), Code::ResourceExhausted, "SETTLE_FLOOD", true),
            (Error::FrameTooLarge(3), Code::ResourceExhausted, "FRAME_TOO_LARGE", true),
            (Error::Superseded { by: "1.2.3.4:5".into() }, Code::Aborted, "CONSUMER_SUPERSEDED", false),
            (Error::SessionTimeout(Duration::from_secs(30)), Code::Unavailable, "SESSION_TIMEOUT", true),
            (Error::ShuttingDown, Code::Unavailable, "SHUTTING_DOWN", true),
            (Error::UnknownFrame, Code::Unimplemented, "UNKNOWN_FRAME", false),
            (Error::UnreadableFrame("x".into()), Code::InvalidArgument, "UNREADABLE_FRAME", false),
        ];
        for (error, code, reason, retry) in cases {
            let status = Status::from(error);
            let details = status.get_error_details();
            assert_eq!(status.code(), code);
            let info = details.error_info().unwrap();
            assert_eq!((info.reason.as_str(), info.domain.as_str()), (reason, DOMAIN));
            assert_eq!(details.retry_info().is_some(), retry, "{reason}");
            assert_eq!(details.quota_failure().is_some(), code == Code::ResourceExhausted, "{reason}");
        }
    }

    #[test]
    fn a_right_that_is_missing_is_named_with_whose_it_is() {
        let missing = MissingRights { group: Some("g".into()), topics: vec!["a".into(), "b".into()], whole: true };
        let status = Status::from(Error::RightsMissing { subscription: "s".into(), missing });
        let what = r#"subscription "s" cannot be served: Kafka does not give the gateway READ on group "g", READ on topic "a", READ on topic "b""#;
        assert_eq!(status.message(), what);
        let details = status.get_error_details();
        let metadata = &details.error_info().unwrap().metadata;
        let named = |key: &str| metadata.get(key).map(String::as_str);
        assert_eq!((named("subscription"), named("group"), named("topics")), (Some("s"), Some("g"), Some("a,b")));
    }

    #[test]
    fn a_bad_field_is_named() {
        let status = Status::from(Error::Invalid { field: "flow.max_records", problem: "is negative".into() });
        let details = status.get_error_details();
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, "flow.max_records");
    }
}
