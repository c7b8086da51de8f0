//! What a dead letter says of itself: headers after the record's own. Those of KIP-1191 have its names and its form, text
//! in UTF-8; the others begin with `sluice.dlq.`.

use sluice_core::{Header, LetterCause};

/// The topic that the record came from. The first of ours: what follows it is ours too.
const TOPIC: &str = "__dlq.errors.topic";
const PARTITION: &str = "__dlq.errors.partition";
const OFFSET: &str = "__dlq.errors.offset";
const GROUP: &str = "__dlq.errors.group";
/// Deliveries that were counted.
const DELIVERY_COUNT: &str = "__dlq.errors.delivery.count";
/// Why, in words.
const MESSAGE: &str = "__dlq.errors.message";
/// `exhausted`, `client` or `too_large`.
const CAUSE: &str = "sluice.dlq.cause";
/// Counted failures.
const ATTEMPTS: &str = "sluice.dlq.attempts";
/// Milliseconds since 1970.
const FIRST_FAILURE: &str = "sluice.dlq.first_failure_ms";
/// Milliseconds since 1970.
const LAST_FAILURE: &str = "sluice.dlq.last_failure_ms";

/// Where a dead letter came from: together these name it, however often it was written.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LetterOrigin {
    /// The topic.
    pub topic: String,
    /// Its partition.
    pub partition: i32,
    /// The offset in it.
    pub offset: i64,
    /// The consumer group that could not do it.
    pub group: String,
}

/// What the headers of a dead letter say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LetterFacts {
    /// Where it came from.
    pub origin: LetterOrigin,
    /// Why it is here.
    pub cause: LetterCause,
    /// The words of whoever failed it last; `None`: none were said, and the cause has to do.
    pub reason: Option<String>,
    /// Its counted failures.
    pub attempts: u32,
    /// The first of them, in milliseconds since 1970.
    pub first_failure_ms: Option<i64>,
    /// The last of them, in milliseconds since 1970.
    pub last_failure_ms: Option<i64>,
}

impl LetterFacts {
    /// The headers, in their order.
    #[must_use]
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        let given_up = u32::from(self.cause == LetterCause::Client);
        let mut headers = vec![
            (TOPIC, self.origin.topic.clone()),
            (PARTITION, self.origin.partition.to_string()),
            (OFFSET, self.origin.offset.to_string()),
            (GROUP, self.origin.group.clone()),
            (DELIVERY_COUNT, self.attempts.saturating_add(given_up).to_string()),
            (MESSAGE, self.reason.clone().unwrap_or_else(|| words(self.cause).to_owned())),
            (CAUSE, name(self.cause).to_owned()),
            (ATTEMPTS, self.attempts.to_string()),
        ];
        for (header, time) in [(FIRST_FAILURE, self.first_failure_ms), (LAST_FAILURE, self.last_failure_ms)] {
            headers.extend(time.map(|ms| (header, ms.to_string())));
        }
        headers
    }

    /// Reads them back: the facts, and how many headers before them are the record's own. `None` where they are not ours,
    /// or where the letter was written without them. A letter that is dead for the second time has them twice: the last
    /// count.
    #[must_use]
    pub fn read(headers: &[Header]) -> Option<(usize, Self)> {
        let own = headers.iter().rposition(|header| &*header.key == TOPIC)?;
        let text = |name: &str| {
            let header = headers[own..].iter().find(|header| &*header.key == name)?;
            String::from_utf8(header.value.as_ref()?.to_vec()).ok()
        };
        let origin = LetterOrigin {
            topic: text(TOPIC)?,
            partition: text(PARTITION)?.parse().ok()?,
            offset: text(OFFSET)?.parse().ok()?,
            group: text(GROUP)?,
        };
        let said = text(CAUSE)?;
        let cause = CAUSES.into_iter().find(|cause| name(*cause) == said)?;
        let facts = Self {
            origin,
            cause,
            reason: text(MESSAGE).filter(|message| message != words(cause)),
            attempts: text(ATTEMPTS)?.parse().ok()?,
            first_failure_ms: text(FIRST_FAILURE).and_then(|ms| ms.parse().ok()),
            last_failure_ms: text(LAST_FAILURE).and_then(|ms| ms.parse().ok()),
        };
        Some((own, facts))
    }

    /// The reason, or what the cause says by itself.
    #[must_use]
    pub fn words(&self) -> &str {
        self.reason.as_deref().unwrap_or_else(|| words(self.cause))
    }
}

const CAUSES: [LetterCause; 3] = [LetterCause::Exhausted, LetterCause::Client, LetterCause::TooLarge];

fn name(cause: LetterCause) -> &'static str {
    match cause {
        LetterCause::Exhausted => "exhausted",
        LetterCause::Client => "client",
        LetterCause::TooLarge => "too_large",
    }
}

fn words(cause: LetterCause) -> &'static str {
    match cause {
        LetterCause::Exhausted => "failed max_attempts times",
        LetterCause::Client => "given up by the client",
        LetterCause::TooLarge => "too large for every client",
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn facts() -> LetterFacts {
        LetterFacts {
            origin: LetterOrigin { topic: "orders".into(), partition: 3, offset: 41, group: "billing".into() },
            cause: LetterCause::Client,
            reason: Some("no such customer".into()),
            attempts: 2,
            first_failure_ms: Some(1_700_000_000_000),
            last_failure_ms: None,
        }
    }

    fn as_read(headers: Vec<(&'static str, String)>) -> impl Iterator<Item = Header> {
        headers.into_iter().map(|(key, value)| Header { key: key.into(), value: Some(Bytes::from(value)) })
    }

    #[test]
    fn the_names_of_kip_1191_are_used_and_ours_follow() {
        let headers: Vec<_> = facts().headers();
        let shown: Vec<_> = headers.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(
            shown,
            [
                "__dlq.errors.topic=orders",
                "__dlq.errors.partition=3",
                "__dlq.errors.offset=41",
                "__dlq.errors.group=billing",
                "__dlq.errors.delivery.count=3",
                "__dlq.errors.message=no such customer",
                "sluice.dlq.cause=client",
                "sluice.dlq.attempts=2",
                "sluice.dlq.first_failure_ms=1700000000000",
            ]
        );
    }

    #[test]
    fn what_was_written_is_read_back_and_the_records_own_headers_are_told_apart() {
        let own = [("trace", "1"), ("trace", "2")].map(|(key, value)| (key, value.to_owned()));
        let mut headers: Vec<_> = as_read(own.to_vec()).collect();
        assert_eq!(LetterFacts::read(&headers), None);
        headers.extend(as_read(facts().headers()));
        assert_eq!(LetterFacts::read(&headers), Some((2, facts())));
        // Dead for a second time, in another group.
        let mut again = facts();
        again.origin.group = "audit".into();
        again.reason = None;
        headers.extend(as_read(again.headers()));
        assert_eq!(LetterFacts::read(&headers), Some((11, again)));
    }

    #[test]
    fn anothers_headers_of_the_same_name_are_not_taken_for_ours() {
        let theirs = facts().headers().into_iter().filter(|(name, _)| name.starts_with("__dlq"));
        let headers: Vec<_> = as_read(theirs.collect()).collect();
        assert_eq!(LetterFacts::read(&headers), None);
    }
}
