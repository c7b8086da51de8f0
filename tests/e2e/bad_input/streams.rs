//! Frames that no stream may carry, and first frames that cannot be meant.

use sluice_proto::v1::consume_request::Request;
use sluice_proto::v1::consumer_service_client::ConsumerServiceClient;
use sluice_proto::v1::{ConsumeRequest, Flow, Pong, Settlements, Subscribe, SubscriptionSpec, subscribe::Target};
use sluice_tests::wire::{Seen, Wire, subscribe};
use sluice_tests::{Gateway, SOON, broker, eventually, unique};
use tonic::{Code, Status};

use super::{Bystander, Verdict, back_off, everything, of_bytes, seconds, stop, verdict};
use crate::{committed_to_the_end, gateway};

/// How a stream of these frames ends, when its client reads on and sends nothing more.
async fn end_of(gateway: &Gateway, frames: Vec<Option<Request>>) -> Verdict {
    let (requests, outgoing) = tokio::sync::mpsc::unbounded_channel();
    for request in frames {
        requests.send(ConsumeRequest { request }).expect("the receiver is here");
    }
    let mut client = ConsumerServiceClient::new(gateway.channel().await);
    let outgoing = tokio_stream::wrappers::UnboundedReceiverStream::new(outgoing);
    let end = tokio::time::timeout(SOON, async {
        let mut stream = client.consume(outgoing).await?.into_inner();
        while stream.message().await?.is_some() {}
        Ok::<_, Status>(())
    });
    match end.await.expect("the stream ends") {
        Err(status) => verdict(&status),
        Ok(()) => stop(Code::Ok, ""),
    }
}

fn first(subscribe: Subscribe) -> Option<Request> {
    Some(Request::Subscribe(subscribe))
}

fn flow(max_records: i32, max_bytes: i64) -> Option<Request> {
    Some(Request::Flow(Flow { max_records, max_bytes }))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_the_contract_ends_with_its_reason_and_no_other_stream_does() {
    let mut bystander = Bystander::of("vandals").await;
    let (topic, epoch) = (bystander.topic.clone(), bystander.held[0].epoch);
    let group = bystander.group.clone();
    // They want no records, so that none comes to the bystander twice.
    let good = || subscribe(&group, 0);
    let named = |target| first(Subscribe { target, ..good() });
    let invalid = || stop(Code::InvalidArgument, "INVALID_FIELD");
    let bad_first = || stop(Code::InvalidArgument, "BAD_FIRST_FRAME");
    let unknown = || stop(Code::Unimplemented, "UNKNOWN_FRAME");
    let cases = [
        ("a Pong first", vec![Some(Request::Pong(Pong {}))], bad_first()),
        ("a Flow first", vec![flow(1, 0)], bad_first()),
        ("settlements first", vec![Some(Request::Settle(Settlements::default()))], bad_first()),
        ("an empty frame first", vec![None], unknown()),
        ("an empty frame later", vec![first(good()), None], unknown()),
        ("no target", vec![named(None)], invalid()),
        ("an unknown subscription", vec![named(Some(Target::Subscription("no".to_owned())))], {
            stop(Code::NotFound, "SUBSCRIPTION_NOT_FOUND")
        }),
        ("an empty name", vec![named(Some(Target::Subscription(String::new())))], {
            stop(Code::NotFound, "SUBSCRIPTION_NOT_FOUND")
        }),
        ("a second Subscribe", vec![first(good()), first(good())], stop(Code::InvalidArgument, "SECOND_SUBSCRIBE")),
        ("a negative first window", vec![first(subscribe(&group, -1))], invalid()),
        ("a negative window", vec![first(good()), flow(-1, 0)], invalid()),
        ("a negative window of bytes", vec![first(good()), flow(1, i64::MIN)], invalid()),
        ("a negative limit", vec![first(Subscribe { max_frame_bytes: -1, ..good() })], invalid()),
        ("a negative ack_timeout", vec![first(Subscribe { ack_timeout: seconds(-1), ..good() })], invalid()),
        ("an ack_timeout of nothing", vec![first(Subscribe { ack_timeout: seconds(0), ..good() })], invalid()),
        ("a long consumer_id", vec![first(Subscribe { consumer_id: "x".repeat(100_000), ..good() })], invalid()),
        ("a large first frame", vec![of_bytes(2 << 20)], back_off("FRAME_TOO_LARGE")),
        ("a large frame", vec![first(good()), of_bytes(1 << 20)], back_off("FRAME_TOO_LARGE")),
        (
            "ranges beyond any window",
            vec![first(good()), Some(Request::Settle(everything(60_000, &topic, epoch)))],
            back_off("SETTLE_FLOOD"),
        ),
    ];
    for (what, frames, expected) in cases {
        assert_eq!(end_of(&bystander.gateway, frames).await, expected, "{what}");
        bystander.is_served().await;
    }
    // A frame just below the limit is no fault.
    let mut large = Wire::connect(&bystander.gateway, Subscribe { flow: None, ..good() }).await;
    large.send(of_bytes((1 << 20) - 1_000).expect("a request"));
    large.barrier().await;
    drop(large);
    bystander.loses_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_a_later_revision_is_answered_with_ours_and_served() {
    let mut bystander = Bystander::of("revision").await;
    // The window first: what the acks make room for would be dealt before it was read.
    bystander.wire.flow(0, 0);
    bystander.wire.ack(&bystander.held);
    for revision in [0, 1, 2, u32::MAX] {
        let first = Subscribe { revision, ..subscribe(&bystander.group, 5) };
        let mut wire = Wire::connect(&bystander.gateway, first).await.recorded(&bystander.history);
        assert_eq!(wire.subscribed.revision, sluice_proto::REVISION, "a client of revision {revision} hears ours");
        // What is spoken with it is the lower of both: nobody sends what the other does not know.
        let spoken: Vec<_> =
            bystander.gateway.consumers(&bystander.group).await.iter().map(|one| one.revision).collect();
        assert!(spoken.len() >= 2 && spoken.iter().all(|one| *one == 1), "{revision}: {spoken:?}");
        let records = wire.records(5).await;
        wire.flow(0, 0);
        wire.ack(&records);
        wire.barrier().await;
        let left = wire.inbox.drain(..).collect::<Vec<_>>();
        wire.ack(&left);
        wire.barrier().await;
    }
    bystander.held.clear();
    bystander.wire.flow(10, 0);
    bystander.loses_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_holdings_and_specs_without_end_are_refused_or_looked_at_once() {
    let mut bystander = Bystander::of("no-end").await;
    let good = || subscribe(&bystander.group, 0);
    let labels = |count: usize, bytes: usize| {
        let label = |n: usize| (format!("label-{n}"), "x".repeat(bytes));
        first(Subscribe { labels: (0..count).map(label).collect(), ..good() })
    };
    let spec = |spec| first(Subscribe { target: Some(Target::Spec(spec)), ..good() });
    let group = bystander.group.clone();
    let other_topics = SubscriptionSpec { group, topics: vec!["another".to_owned()], ..SubscriptionSpec::default() };
    let unknown_group = SubscriptionSpec { group: unique("nobody"), ..SubscriptionSpec::default() };
    let invalid = || stop(Code::InvalidArgument, "INVALID_FIELD");
    let cases = [
        ("a thousand labels", vec![labels(1_000, 1)], invalid()),
        ("long labels", vec![labels(10, 2_000)], invalid()),
        ("another topic", vec![spec(other_topics)], stop(Code::FailedPrecondition, "SPEC_MISMATCH")),
        ("an unknown group", vec![spec(unknown_group)], stop(Code::Unimplemented, "NOT_BUILT_YET")),
        ("a spec of nothing", vec![spec(SubscriptionSpec::default())], stop(Code::Unimplemented, "NOT_BUILT_YET")),
    ];
    for (what, frames, expected) in cases {
        assert_eq!(end_of(&bystander.gateway, frames).await, expected, "{what}");
    }
    // As much as a frame has room for, and each range names everything.
    let holding = everything(60_000, &bystander.topic, bystander.held[0].epoch).settlements.remove(0).leases;
    let holding = vec![holding.expect("leases")];
    let consumer_id = unique("holder");
    for _ in 0..3 {
        let again = Subscribe { consumer_id: consumer_id.clone(), holding: holding.clone(), seen: u64::MAX, ..good() };
        let wire = Wire::connect(&bystander.gateway, again).await;
        assert_eq!(wire.subscribed.held, [], "it never held anything");
    }
    bystander.is_served().await;
    bystander.loses_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_of_a_topic_that_does_not_exist_says_so_and_is_served_once_it_does() {
    let kafka = broker();
    let (topic, group) = (unique("not-yet"), unique("not-yet"));
    let gateway = gateway(&group, &topic, &["join = \"at_start\"", "metadata_refresh = \"1s\""]);
    eventually("it is known that the topic is missing", SOON, async || match gateway.page("/readyz") {
        // It shows, and the node stays ready: others of its subscriptions may be well, and all nodes would fail at once.
        (200, why) if why.contains("topic_missing") && why.contains(&topic) => Ok(()),
        other => Err(other),
    })
    .await;
    let told = end_of(&gateway, vec![first(subscribe(&group, 1))]).await;
    assert_eq!(told, stop(Code::FailedPrecondition, "TOPIC_MISSING"));
    kafka.create_topic(&topic, 1, &[]);
    kafka.fill(&topic, 1, 3, 16);
    let mut wire = eventually("a stream is welcome", SOON, async || {
        Wire::open(gateway.channel().await, subscribe(&group, 3)).await
    })
    .await;
    let records = wire.records(3).await;
    wire.ack(&records);
    committed_to_the_end(kafka, &group, &topic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_empty_frames_of_settlements_are_nothing() {
    let kafka = broker();
    let topic = kafka.topic("empty-frames", 1);
    kafka.fill(&topic, 1, 3, 16);
    let group = unique("empty-frames");
    let gateway = gateway(&group, &topic, &[]);
    let mut wire = Wire::subscribe(&gateway, &group, 3).await;
    let held = wire.records(3).await;
    for _ in 0..1_000 {
        wire.send(Request::Settle(Settlements::default()));
        wire.send(Request::Pong(Pong {}));
        wire.flow(3, 0);
    }
    wire.barrier().await;
    wire.ack(&held);
    committed_to_the_end(kafka, &group, &topic).await;
    assert!(matches!(wire.read(std::time::Duration::ZERO).await, Seen::Nothing | Seen::Frame), "the stream is alive");
}
