//! Clients that lie, flood and break the contract, and records that nobody expects: each gets the contract's answer, and
//! everybody else goes on.

use std::collections::{BTreeMap, BTreeSet};

use sluice_client::Consumer;
use sluice_proto::v1::consume_request::Request;
use sluice_proto::v1::consumer_service_client::ConsumerServiceClient;
use sluice_proto::v1::{
    ConsumeRequest, Flow, Leases, OffsetRange, Pong, RejectReason, Settlement, Settlements, Subscribe,
    subscribe::Target,
};
use sluice_tests::wire::{Seen, Wire, ack, settlement, subscribe};
use sluice_tests::{Gateway, GatewayConfig, NewRecord, SOON, broker, eventually, unique};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{committed_to_the_end, gateway, lag_is_zero, subscription};

/// What a client should make of an end: the code, the reason, and whether trying again helps.
type Verdict = (Code, String, bool);

fn verdict(status: &Status) -> Verdict {
    let details = status.get_error_details();
    let reason = details.error_info().map(|info| info.reason.clone()).unwrap_or_default();
    (status.code(), reason, details.retry_info().is_some())
}

fn stop(code: Code, reason: &str) -> Verdict {
    (code, reason.to_owned(), false)
}

fn back_off(reason: &str) -> Verdict {
    (Code::ResourceExhausted, reason.to_owned(), true)
}

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

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

fn flow(max_records: i32, max_bytes: i64) -> Option<Request> {
    Some(Request::Flow(Flow { max_records, max_bytes }))
}

/// Settlements of so many ranges that each name everything, and more than the one before.
fn everything(ranges: usize, topic: &str, epoch: i64) -> Settlements {
    let to = (1 << 60)..;
    let offsets = to.take(ranges).map(|last| OffsetRange { first: 0, last: Some(last) }).collect();
    let leases = Leases { topic: topic.to_owned(), partition: 0, epoch, offsets };
    Settlements { seen: 1, settlements: vec![settlement(leases, ack())], ..Settlements::default() }
}

fn of_bytes(bytes: usize) -> Option<Request> {
    let leases = Leases { topic: "x".repeat(bytes), ..Leases::default() };
    let settlements = vec![settlement(leases, ack())];
    Some(Request::Settle(Settlements { settlements, ..Settlements::default() }))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_the_contract_ends_with_its_reason_and_no_other_stream_does() {
    let kafka = broker();
    let topic = kafka.topic("vandals", 1);
    kafka.fill(&topic, 1, 50, 32);
    let group = unique("vandals");
    let gateway = gateway(&group, &topic, &[]);
    let mut bystander = Wire::subscribe(&gateway, &group, 10).await;
    let held = bystander.records(10).await;
    let epoch = held[0].epoch;
    let good = || subscribe(&group, 5);
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
        assert_eq!(end_of(&gateway, frames).await, expected, "{what}");
        bystander.barrier().await;
    }
    // A frame just below the limit is no fault.
    let mut large = Wire::connect(&gateway, good()).await;
    large.send(of_bytes((1 << 20) - 1_000).expect("a request"));
    large.barrier().await;
    drop(large);
    bystander.ack(&held);
    for _ in 0..4 {
        let rest = bystander.records(10).await;
        bystander.ack(&rest);
    }
    committed_to_the_end(kafka, &group, &topic).await;
    lag_is_zero(&gateway, &group).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_numbers_that_fit_the_contract_are_answered_and_stop_nobody() {
    let kafka = broker();
    let topic = kafka.topic("large-numbers", 1);
    kafka.fill(&topic, 1, 20_000, 16);
    let group = unique("large-numbers");
    let gateway = gateway(&group, &topic, &[]);
    let mut bystander = Wire::subscribe(&gateway, &group, 10).await;
    let held = bystander.records(10).await;
    let ages = seconds(31_536_000_000);
    let first = Subscribe { ack_timeout: ages, ..subscribe(&group, i32::MAX) };
    let mut vandal = Wire::connect(&gateway, first).await;
    let subscribed = vandal.subscribed.ack_timeout.map(|timeout| timeout.seconds);
    assert_eq!(subscribed, Some(300), "it shortens the subscription's and never lengthens it");
    let records = vandal.records(19_990).await;
    // Retried: each is remembered as no longer held, and each of the ranges below would name it.
    vandal.flow(0, 0);
    let hour = sluice_proto::v1::Retry { delay: seconds(3_600), reason: "x".repeat(10_000) };
    vandal.settle(&records[..10_000], &sluice_proto::v1::settlement::Outcome::Retry(hour));
    let lease = &records[0];
    let floods = Settlements { seen: vandal.seen, ..everything(60_000, &topic, lease.epoch) };
    // Ranges that lie over each other a few times are looked at; beyond that they cannot be meant.
    let reasons: BTreeSet<_> = vandal.ask(floods).await.iter().map(|one| one.reason()).collect();
    assert_eq!(reasons, [RejectReason::NotHeld, RejectReason::Invalid].into());
    bystander.barrier().await;
    bystander.ack(&held);
    bystander.barrier().await;
    let stats = gateway.stats(&group).await;
    assert_eq!((stats.acked, stats.retried), (10_000, 10_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn settlements_of_nothing_and_of_malformed_durations_change_nothing() {
    let kafka = broker();
    let topic = kafka.topic("nothing", 1);
    kafka.fill(&topic, 1, 5, 32);
    let group = unique("nothing");
    let gateway = gateway(&group, &topic, &[]);
    let mut wire = Wire::subscribe(&gateway, &group, 5).await;
    let held = wire.records(5).await;
    let seen = wire.seen;
    let lease = &held[0];
    let nothing = [
        Settlement { leases: None, outcome: Some(ack()) },
        Settlement { leases: Some(Leases { offsets: Vec::new(), ..lease.leases() }), outcome: Some(ack()) },
        Settlement::default(),
    ];
    let settlements = Settlements { seen, settlements: nothing.to_vec(), ..Settlements::default() };
    let reasons: Vec<_> = wire.ask(settlements).await.iter().map(|one| one.reason()).collect();
    assert_eq!(reasons, [RejectReason::Invalid; 2], "no leases at all cannot be meant; no offsets are nothing");
    let malformed = prost_types::Duration { seconds: 1, nanos: -5 };
    let retry = sluice_proto::v1::Retry { delay: Some(malformed), reason: String::new() };
    let retry = sluice_proto::v1::settlement::Outcome::Retry(retry);
    let minus = Leases { offsets: vec![OffsetRange { first: -1, last: None }], ..lease.leases() };
    let below = Leases { offsets: vec![OffsetRange { first: i64::MIN, last: Some(i64::MAX) }], ..lease.leases() };
    let partition = Leases { partition: -7, ..lease.leases() };
    for (what, settlement, reason) in [
        ("negative nanoseconds", settlement(lease.leases(), retry), RejectReason::Invalid),
        ("a negative offset", settlement(minus, ack()), RejectReason::Invalid),
        ("all of 2^64 offsets", settlement(below, ack()), RejectReason::Invalid),
        ("no such partition", settlement(partition, ack()), RejectReason::StaleEpoch),
    ] {
        let settlements = Settlements { seen, settlements: vec![settlement], ..Settlements::default() };
        let reasons: Vec<_> = wire.ask(settlements).await.iter().map(|one| one.reason()).collect();
        assert_eq!(reasons, [reason], "{what}");
    }
    assert_eq!(gateway.consumers(&group).await[0].leased, 5, "all is still held");
    assert_eq!(wire.settle_answered(&held, &ack(), false).await, []);
    committed_to_the_end(kafka, &group, &topic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unusual_records_come_as_they_are() {
    let kafka = broker();
    let topic = kafka.topic("unusual", 1);
    let many: Vec<_> = (0..1_000_u32)
        .map(|n| {
            let value = (n % 3 != 0).then(|| n.to_be_bytes().to_vec());
            (if n % 2 == 0 { "même".to_owned() } else { String::new() }, value)
        })
        .collect();
    let none = NewRecord { partition: Some(0), ..NewRecord::default() };
    let records = [
        NewRecord::to(0, ""),
        none.clone(),
        NewRecord::to(0, "v").key(""),
        NewRecord { value: None, ..none.clone() }.key("tombstone"),
        NewRecord { headers: many.clone(), ..none },
        NewRecord::to(0, [0xff, 0x00, 0xfe]).key([0x80, 0x81]),
    ];
    kafka.produce(&topic, records.clone());
    let group = unique("unusual");
    let gateway = gateway(&group, &topic, &[]);
    let mut consumer = Consumer::builder(gateway.address(), &group).connect().await.expect("connect");
    let mut seen = BTreeMap::new();
    while seen.len() < records.len() {
        let record = tokio::time::timeout(SOON, consumer.next()).await.expect("a record comes");
        let record = record.expect("the consumer lives").expect("the consumer is open");
        let headers = record.headers().map(|(name, value)| (name.to_owned(), value.map(|bytes| bytes.to_vec())));
        let found = NewRecord {
            partition: Some(record.partition()),
            key: record.key().map(|bytes| bytes.to_vec()),
            value: record.value().map(|bytes| bytes.to_vec()),
            headers: headers.collect(),
        };
        seen.insert(record.offset(), format!("{found:?}"));
        record.ack();
    }
    let expected: Vec<_> = records.iter().map(|record| format!("{record:?}")).collect();
    assert_eq!(seen.into_values().collect::<Vec<_>>(), expected);
    consumer.close(SOON).await.expect("closed in order");
    committed_to_the_end(kafka, &group, &topic).await;
    lag_is_zero(&gateway, &group).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_too_large_for_one_client_goes_to_another_and_holds_up_nothing_beside_it() {
    let kafka = broker();
    let topic = unique("too-large");
    kafka.create_topic(&topic, 1, &[("max.message.bytes", "8388608")]);
    let sizes = [10, 3 << 20, 10, 3 << 20, 10];
    kafka.produce(&topic, sizes.map(|bytes| NewRecord::to(0, vec![b'x'; bytes])));
    let group = unique("too-large");
    let gateway = GatewayConfig::new(kafka).subscription(subscription(&group, &[&topic], &[])).start();
    let mut small = Wire::connect(&gateway, Subscribe { max_frame_bytes: 1 << 20, ..subscribe(&group, 5) }).await;
    let fitting = small.records(3).await;
    assert_eq!(fitting.iter().map(|lease| lease.offset).collect::<Vec<_>>(), [0, 2, 4]);
    small.ack(&fitting);
    eventually("the rest is acked, and what does not fit waits", SOON, async || {
        let one = gateway.partitions(&group).await.remove(0);
        if (one.done_above_frontier, one.leased) == (2, 0) { Ok(()) } else { Err(one) }
    })
    .await;
    small.barrier().await;
    assert!(small.inbox.is_empty(), "nothing larger than its limit is dealt to it");
    // The default limit of every gRPC library takes one of them a frame.
    let mut large = Wire::subscribe(&gateway, &group, 5).await;
    let rest = large.records(2).await;
    assert_eq!(rest.iter().map(|lease| lease.offset).collect::<Vec<_>>(), [1, 3]);
    assert_eq!((rest[0].attempts, rest[1].sequence), (0, rest[0].sequence + 1), "uncounted, and in a frame each");
    large.ack(&rest);
    committed_to_the_end(kafka, &group, &topic).await;
    lag_is_zero(&gateway, &group).await;
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
