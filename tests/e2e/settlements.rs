//! Settlements that cannot be meant: each answered, the stream alive, nothing changed.

use sluice_proto::v1::consumer_service_client::ConsumerServiceClient;
use sluice_proto::v1::{
    ConsumeRequest, Extend, Leases, OffsetRange, RejectReason, Rejection, Retry, SettleRequest, Settlement,
    Settlements, settlement::Outcome,
};
use sluice_tests::wire::{Lease, Wire, ack, release, retry_now, settlement};
use sluice_tests::{broker, unique};

use crate::{committed_is, gateway};

fn reasons(rejections: &[Rejection]) -> Vec<RejectReason> {
    rejections.iter().map(Rejection::reason).collect()
}

fn with_range(lease: &Lease, first: i64, last: i64) -> Leases {
    Leases { offsets: vec![OffsetRange { first, last: Some(last) }], ..lease.leases() }
}

async fn one(wire: &mut Wire, seen: u64, leases: Leases, outcome: Option<Outcome>) -> Vec<Rejection> {
    let settlements = vec![Settlement { leases: Some(leases), outcome }];
    wire.ask(Settlements { seen, settlements, ..Settlements::default() }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn settlements_that_cannot_be_meant_are_answered_and_change_nothing() {
    let kafka = broker();
    let topic = kafka.topic("bad-acks", 1);
    kafka.fill(&topic, 1, 20, 32);
    let group = unique("bad-acks");
    let gateway = gateway(&group, &topic, &[]);
    let mut wire = Wire::subscribe(&gateway, &group, 10).await;
    let held = wire.records(10).await;
    let mut other = Wire::subscribe(&gateway, &group, 5).await;
    let others = other.records(5).await;
    let (seen, lease) = (wire.seen, &held[0]);

    let invalid = [RejectReason::Invalid];
    let not_held = [RejectReason::NotHeld];
    assert_eq!(reasons(&one(&mut wire, seen, with_range(lease, 9, 0), Some(ack())).await), invalid, "reversed");
    assert_eq!(reasons(&one(&mut wire, 0, lease.range(0, 9), Some(ack())).await), invalid, "a range without seen");
    assert_eq!(reasons(&one(&mut wire, seen, lease.leases(), None).await), invalid, "no outcome");
    let stale = Leases { epoch: lease.epoch ^ 1, ..lease.leases() };
    assert_eq!(reasons(&one(&mut wire, seen, stale, Some(ack())).await), [RejectReason::StaleEpoch], "another epoch");
    let foreign = others[0].leases();
    assert_eq!(reasons(&one(&mut wire, seen, foreign, Some(ack())).await), not_held, "someone else's lease");
    assert_eq!(reasons(&one(&mut wire, seen, lease.range(5_000, 5_000), Some(ack())).await), not_held, "never dealt");
    let nowhere = Leases { topic: "no-such-topic".to_owned(), ..lease.leases() };
    assert_eq!(reasons(&one(&mut wire, seen, nowhere, Some(ack())).await), [RejectReason::StaleEpoch], "no such topic");
    let negative = prost_types::Duration { seconds: -1, nanos: 0 };
    let ages = prost_types::Duration { seconds: 31_536_000_000, nanos: 0 };
    for duration in [negative, ages] {
        let retry = Outcome::Retry(Retry { delay: Some(duration), reason: String::new() });
        let extend = Outcome::Extend(Extend { ack_timeout: Some(duration) });
        assert_eq!(reasons(&one(&mut wire, seen, lease.leases(), Some(retry)).await), invalid, "{duration:?}");
        assert_eq!(reasons(&one(&mut wire, seen, lease.leases(), Some(extend)).await), invalid, "{duration:?}");
    }
    // A wide range of another session's records is silence, and takes nothing from it.
    let above = one(&mut wire, seen, lease.range(10, i64::MAX), Some(ack())).await;
    assert_eq!(above, [], "nothing of mine is in it");

    other.barrier().await;
    wire.barrier().await;
    assert_eq!(kafka.committed_offset(&group, &topic, 0).unwrap_or(0), 0, "nothing was done");
    assert_eq!(wire.settle_answered(&held, &ack(), false).await, [], "all is still held");
    assert_eq!(other.settle_answered(&others, &ack(), false).await, []);
    committed_is(kafka, &group, &topic, 15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_of_all_offsets_means_exactly_what_is_held() {
    let kafka = broker();
    let topic = kafka.topic("wide", 1);
    kafka.fill(&topic, 1, 10, 32);
    let group = unique("wide");
    let gateway = gateway(&group, &topic, &[]);
    let mut wire = Wire::subscribe(&gateway, &group, 5).await;
    let lease = wire.records(5).await.remove(0);
    wire.flow(0, 0);
    let seen = wire.seen;
    assert_eq!(one(&mut wire, seen, with_range(&lease, 0, i64::MAX), Some(ack())).await, []);
    committed_is(kafka, &group, &topic, 5).await;
    let below_all = one(&mut wire, seen, with_range(&lease, i64::MIN, i64::MAX), Some(ack())).await;
    assert!(reasons(&below_all).iter().all(|reason| *reason == RejectReason::Invalid), "{below_all:?}");
    wire.barrier().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_range_does_not_swallow_a_record_that_was_retried_and_dealt_again() {
    let kafka = broker();
    let topic = kafka.topic("swallow", 1);
    kafka.fill(&topic, 1, 13, 32);
    let group = unique("swallow");
    let gateway = gateway(&group, &topic, &[]);
    let mut wire = Wire::subscribe(&gateway, &group, 13).await;
    let records = wire.records(13).await;
    wire.ack(&records[..10]);
    let seen = wire.seen;
    wire.settle(&records[11..12], &retry_now());
    let again = wire.record().await;
    assert_eq!((again.offset, again.attempts), (11, 1));
    // Written by a part of the client that had not seen the second delivery.
    assert_eq!(one(&mut wire, seen, records[10].range(10, 12), Some(ack())).await, []);
    committed_is(kafka, &group, &topic, 11).await;
    assert_eq!(wire.settle_answered(&[again], &ack(), false).await, [], "11 is still held");
    committed_is(kafka, &group, &topic, 13).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_released_record_comes_again_uncounted_and_a_retried_one_counted() {
    let kafka = broker();
    let topic = kafka.topic("verbs", 1);
    kafka.fill(&topic, 1, 2, 32);
    let group = unique("verbs");
    let gateway = gateway(&group, &topic, &[]);
    let mut wire = Wire::subscribe(&gateway, &group, 2).await;
    let records = wire.records(2).await;
    wire.settle(&records[..1], &release());
    wire.settle(&records[1..], &retry_now());
    let mut again = wire.records(2).await;
    again.sort_by_key(|lease| lease.offset);
    let attempts: Vec<_> = again.iter().map(|lease| (lease.offset, lease.attempts)).collect();
    assert_eq!(attempts, [(0, 0), (1, 1)]);
    wire.ack(&again);
    committed_is(kafka, &group, &topic, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unary_settle_acks_for_a_session_and_rejects_for_an_unknown_one() {
    let kafka = broker();
    let topic = kafka.topic("unary", 1);
    kafka.fill(&topic, 1, 2, 32);
    let group = unique("unary");
    let gateway = gateway(&group, &topic, &[]);
    let mut wire = Wire::subscribe(&gateway, &group, 2).await;
    let records = wire.records(2).await;
    let settlements = vec![settlement(records[0].range(0, 1), ack())];
    let mut client = ConsumerServiceClient::new(gateway.channel().await);
    let unknown = SettleRequest {
        session_id: "not-a-session".to_owned(),
        durable: false,
        seen: wire.seen,
        settlements: settlements.clone(),
    };
    let answer = client.settle(unknown.clone()).await.expect("never a status").into_inner();
    assert_eq!(reasons(&answer.rejections), [RejectReason::NotHeld]);
    let known = SettleRequest { session_id: wire.subscribed.session_id.clone(), ..unknown };
    let answer = client.settle(known).await.expect("never a status").into_inner();
    assert_eq!(answer.rejections, []);
    committed_is(kafka, &group, &topic, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_frame_that_is_not_a_subscribe_ends_the_stream() {
    use sluice_proto::v1::consume_request::Request;
    let kafka = broker();
    let topic = kafka.topic("first-frame", 1);
    let group = unique("first-frame");
    let gateway = gateway(&group, &topic, &[]);
    let mut client = ConsumerServiceClient::new(gateway.channel().await);
    let pong = ConsumeRequest { request: Some(Request::Pong(sluice_proto::v1::Pong {})) };
    let status = match client.consume(tokio_stream::iter([pong])).await {
        Err(status) => status,
        Ok(stream) => stream.into_inner().message().await.expect_err("it ends with a status"),
    };
    assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status:?}");
    let unknown = Wire::open(gateway.channel().await, sluice_tests::wire::subscribe("no-such-subscription", 1)).await;
    assert_eq!(unknown.expect_err("there is none").code(), tonic::Code::NotFound);
}
