//! A subscription's spec on the wire, and how one differs from the live subscription.

use sluice_proto::v1;

use crate::config::{OnExhausted, Ordering, Start, SubscriptionConfig};
use crate::session::encode::duration;

/// What the config file says, as operators read it.
pub(crate) fn spec_of(name: &str, config: &SubscriptionConfig) -> v1::SubscriptionSpec {
    let retry = &config.retry;
    let on_exhausted = match config.on_exhausted() {
        OnExhausted::Block => v1::OnExhausted::Block,
        OnExhausted::Drop => v1::OnExhausted::Drop,
        OnExhausted::DeadLetter => v1::OnExhausted::DeadLetter,
    };
    let ordering = match config.ordering {
        Ordering::None => v1::Ordering::None,
        Ordering::Key => v1::Ordering::Key,
        Ordering::Partition => v1::Ordering::Partition,
    };
    let at = match config.start {
        Start::Earliest => v1::start::At::Earliest(true),
        Start::Latest => v1::start::At::Latest(true),
        Start::Time(time) => v1::start::At::Time(time.into()),
    };
    v1::SubscriptionSpec {
        group: config.group(name).to_owned(),
        topics: config.topics.clone(),
        ordering: ordering.into(),
        retry: Some(v1::RetryPolicy {
            max_attempts: i32::try_from(retry.max_attempts).unwrap_or(i32::MAX),
            initial_backoff: Some(duration(retry.initial_backoff)),
            multiplier: retry.multiplier,
            max_backoff: Some(duration(retry.max_backoff)),
            jitter: retry.jitter,
            on_exhausted: on_exhausted.into(),
        }),
        dead_letter_topic: config.dead_letter_topic.clone(),
        ack_timeout: Some(duration(config.ack_timeout)),
        session_timeout: Some(duration(config.session_timeout)),
        resume_timeout: Some(duration(config.resume_timeout)),
        start: Some(v1::Start { at: Some(at) }),
        filter: String::new(),
    }
}

/// The fields that are stated in `asked` and differ from `live`. What is absent asks for nothing.
pub(crate) fn differences(asked: &v1::SubscriptionSpec, live: &v1::SubscriptionSpec) -> Vec<&'static str> {
    let mut asked_topics = asked.topics.clone();
    let mut live_topics = live.topics.clone();
    asked_topics.sort_unstable();
    live_topics.sort_unstable();
    let checks = [
        ("group", asked.group != live.group),
        ("topics", !asked.topics.is_empty() && asked_topics != live_topics),
        ("ordering", asked.ordering != 0 && asked.ordering != live.ordering),
        ("retry", asked.retry.is_some() && asked.retry != live.retry),
        ("dead_letter_topic", asked.dead_letter_topic != live.dead_letter_topic),
        ("ack_timeout", asked.ack_timeout.is_some() && asked.ack_timeout != live.ack_timeout),
        ("session_timeout", asked.session_timeout.is_some() && asked.session_timeout != live.session_timeout),
        ("resume_timeout", asked.resume_timeout.is_some() && asked.resume_timeout != live.resume_timeout),
        ("start", asked.start.is_some() && asked.start != live.start),
        ("filter", asked.filter != live.filter),
    ];
    checks.into_iter().filter_map(|(field, differs)| differs.then_some(field)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_is_compared_field_by_field() {
        let config = SubscriptionConfig { topics: vec!["a".into(), "b".into()], ..Default::default() };
        let live = spec_of("orders", &config);
        assert_eq!(live.group, "orders");
        assert!(differences(&live, &live).is_empty());
        let asked = v1::SubscriptionSpec {
            group: "orders".into(),
            topics: vec!["b".into(), "a".into()],
            filter: "x".into(),
            ack_timeout: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
            ..Default::default()
        };
        assert_eq!(differences(&asked, &live), ["ack_timeout", "filter"]);
        let asked =
            v1::SubscriptionSpec { group: "orders".into(), ordering: v1::Ordering::Key.into(), ..Default::default() };
        assert_eq!(differences(&asked, &live), ["ordering"]);
        let keyed = SubscriptionConfig { ordering: Ordering::Key, ..config };
        assert!(differences(&asked, &spec_of("orders", &keyed)).is_empty());
    }
}
