//! What ends a consumer, and how a gRPC status is read.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// Why a consumer could not be opened, or why it ended. What passes by itself is never an error: the client reconnects.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The builder was given something that cannot work, such as an address that is not a URI.
    #[error("invalid setting: {0}")]
    Config(String),
    /// No node could be reached, or none accepted the stream, within `connect_timeout`. Says what the last attempt met.
    #[error("no connection within {within:?}: {last}")]
    Unavailable {
        /// The `connect_timeout`.
        within: Duration,
        /// What the last attempt met.
        last: String,
    },
    /// Another stream with the same `consumer_id` was opened (`ABORTED`).
    #[error("superseded by another stream of this consumer_id: {0}")]
    Superseded(Fault),
    /// The subscription cannot be served as it is (`FAILED_PRECONDITION`): something for the operator.
    #[error("the subscription cannot be served: {0}")]
    FailedPrecondition(Fault),
    /// There is no such subscription (`NOT_FOUND`).
    #[error("not found: {0}")]
    NotFound(Fault),
    /// The node refused what this client asked for (`INVALID_ARGUMENT`).
    #[error("refused as invalid: {0}")]
    InvalidArgument(Fault),
    /// Not allowed (`PERMISSION_DENIED`).
    #[error("permission denied: {0}")]
    PermissionDenied(Fault),
    /// Not known who asks (`UNAUTHENTICATED`).
    #[error("unauthenticated: {0}")]
    Unauthenticated(Fault),
    /// The node does not have what this client asked for (`UNIMPLEMENTED`).
    #[error("not implemented by the node: {0}")]
    Unimplemented(Fault),
    /// A call failed in a way that may pass: only of a [`Settler`](crate::Settler), which does not try again by itself.
    #[error("the call failed: {0}")]
    Failed(Fault),
    /// The consumer was closed before this could be done.
    #[error("the consumer is closed")]
    Closed,
}

/// A gRPC status, read.
#[derive(Debug, Clone)]
pub struct Fault {
    /// `ErrorInfo.reason`, such as `SUBSCRIPTION_NOT_FOUND`. Empty where the status had none.
    pub reason: String,
    /// The status' message.
    pub message: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.reason.as_str() {
            "" => f.write_str(&self.message),
            reason => write!(f, "{reason}: {}", self.message),
        }
    }
}

/// What to do about a status.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Trying again cannot help.
    Stop(Error),
    /// Try again, after the delay if the server asked for one.
    Retry(Option<Duration>),
}

/// The table of statuses of the contract. What is not in it is taken for a fault of the way, which passes.
pub(crate) fn verdict(status: &Status) -> Verdict {
    let fault = || fault(status);
    match status.code() {
        Code::Aborted => Verdict::Stop(Error::Superseded(fault())),
        Code::FailedPrecondition => Verdict::Stop(Error::FailedPrecondition(fault())),
        Code::NotFound => Verdict::Stop(Error::NotFound(fault())),
        Code::InvalidArgument => Verdict::Stop(Error::InvalidArgument(fault())),
        Code::PermissionDenied => Verdict::Stop(Error::PermissionDenied(fault())),
        Code::Unauthenticated => Verdict::Stop(Error::Unauthenticated(fault())),
        Code::Unimplemented => Verdict::Stop(Error::Unimplemented(fault())),
        _ => Verdict::Retry(status.get_error_details().retry_info().and_then(|info| info.retry_delay)),
    }
}

pub(crate) fn fault(status: &Status) -> Fault {
    let details = status.get_error_details();
    Fault {
        reason: details.error_info().map(|info| info.reason.clone()).unwrap_or_default(),
        message: status.message().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn a_status_that_cannot_mend_itself_stops() {
        for code in [
            Code::Aborted,
            Code::FailedPrecondition,
            Code::NotFound,
            Code::InvalidArgument,
            Code::PermissionDenied,
            Code::Unauthenticated,
            Code::Unimplemented,
        ] {
            assert!(matches!(verdict(&Status::new(code, "")), Verdict::Stop(_)), "{code:?}");
        }
        for code in [Code::Unavailable, Code::ResourceExhausted, Code::Internal, Code::Unknown, Code::Cancelled] {
            assert!(matches!(verdict(&Status::new(code, "")), Verdict::Retry(None)), "{code:?}");
        }
    }

    #[test]
    fn reason_and_delay_are_read_from_the_details() {
        let mut details = ErrorDetails::new();
        details.set_error_info("SUBSCRIPTION_NOT_FOUND", "sluice", std::collections::HashMap::<String, String>::new());
        let status = Status::with_error_details(Code::NotFound, "no such subscription", details);
        let Verdict::Stop(error) = verdict(&status) else { panic!("must stop") };
        assert_eq!(error.to_string(), "not found: SUBSCRIPTION_NOT_FOUND: no such subscription");

        let mut details = ErrorDetails::new();
        details.set_retry_info(Some(Duration::from_secs(2)));
        let status = Status::with_error_details(Code::Unavailable, "", details);
        assert!(matches!(verdict(&status), Verdict::Retry(Some(delay)) if delay == Duration::from_secs(2)));
    }
}
