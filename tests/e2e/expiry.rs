//! Leases that run out.

use std::time::{Duration, Instant};

use sluice_proto::v1::settlement::Outcome;
use sluice_proto::v1::{Extend, RejectReason, RevokeReason, Settlements, Subscribe};
use sluice_tests::wire::{Seen, Wire, ack, retry, retry_now, settlement, subscribe};
use sluice_tests::{SOON, broker, eventually, unique};

use crate::{committed_is, gateway};

const FAST_RETRY: &str = "retry = { max_attempts = 5, initial_backoff = \"50ms\", max_backoff = \"100ms\" }";

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_expires_comes_again_counted_and_its_old_holder_is_told() {
    let kafka = broker();
    let topic = kafka.topic("expired", 1);
    kafka.fill(&topic, 1, 1, 32);
    let group = unique("expired");
    let gateway = gateway(&group, &topic, &["ack_timeout = \"1s\"", FAST_RETRY]);
    let mut slow = Wire::subscribe(&gateway, &group, 1).await;
    let lease = slow.record().await;
    assert_eq!(lease.attempts, 0);
    slow.flow(0, 0);
    let mut other = Wire::subscribe(&gateway, &group, 1).await;
    let again = other.record().await;
    assert_eq!((again.offset, again.attempts), (lease.offset, 1));
    slow.until("the old holder hears of it", |wire| (!wire.revoked.is_empty()).then_some(())).await;
    let revoked = slow.revoked.remove(0);
    assert_eq!((revoked.reason(), revoked.leases), (RevokeReason::Expired, Some(lease.leases())));
    let late =
        Settlements { seen: slow.seen, settlements: vec![settlement(lease.leases(), ack())], ..Default::default() };
    let rejections = slow.ask(late).await;
    assert_eq!(rejections.len(), 1);
    assert_eq!((rejections[0].reason(), &rejections[0].leases), (RejectReason::NotHeld, &Some(lease.leases())));
    assert!(kafka.committed_offset(&group, &topic, 0).unwrap_or(0) == 0, "a late ack commits nothing");
    other.ack(&[again]);
    committed_is(kafka, &group, &topic, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_answers_pings_but_settles_nothing_is_dealt_one_record_at_a_time() {
    let kafka = broker();
    let topic = kafka.topic("zombie-client", 1);
    kafka.fill(&topic, 1, 50, 32);
    let group = unique("zombie-client");
    let gateway = gateway(&group, &topic, &["ack_timeout = \"1s\"", FAST_RETRY]);
    let mut wire = Wire::subscribe(&gateway, &group, 10).await;
    wire.records(10).await;
    wire.until("all ten expire", |wire| wire.held.is_empty().then_some(())).await;
    let mut most = 0;
    for _ in 0..3 {
        wire.record().await;
        most = most.max(wire.held.len());
        wire.until("it expires too", |wire| wire.held.is_empty().then_some(())).await;
    }
    assert_eq!(most, 1, "one at a time");
    let blocked = eventually("an operator is told", SOON, async || {
        let consumers = gateway.consumers(&group).await;
        consumers.first().map(|one| one.blocked_on.clone()).filter(|why| why == "unresponsive").ok_or(consumers)
    });
    blocked.await;
    // One settled record, and it has its whole window again.
    let settled = wire.record().await;
    wire.ack(&[settled]);
    wire.until("it is trusted again", |wire| (wire.held.len() == 10).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_extended_lease_outlives_its_ack_timeout() {
    let kafka = broker();
    let topic = kafka.topic("extended", 1);
    kafka.fill(&topic, 1, 2, 32);
    let group = unique("extended");
    let gateway = gateway(&group, &topic, &["ack_timeout = \"2s\"", FAST_RETRY]);
    let mut wire = Wire::subscribe(&gateway, &group, 2).await;
    let records = wire.records(2).await;
    let longer = Extend { ack_timeout: Some(prost_types::Duration { seconds: 600, nanos: 0 }) };
    let rejections = wire.settle_answered(&records[..1], &Outcome::Extend(longer), false).await;
    assert_eq!(rejections, []);
    wire.flow(1, 0);
    wire.until("the other one expires", |wire| (!wire.revoked.is_empty()).then_some(())).await;
    assert_eq!(wire.revoked[0].leases, Some(records[1].leases()), "only the other one");
    assert_eq!(wire.settle_answered(&records[..1], &ack(), false).await, []);
    committed_is(kafka, &group, &topic, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_far_longer_than_the_ack_timeout_keeps_its_leases_by_extending_them_by_range() {
    const JOB: Duration = Duration::from_secs(20);
    let kafka = broker();
    let topic = kafka.topic("long-job", 1);
    kafka.fill(&topic, 1, 100, 32);
    let group = unique("long-job");
    let gateway = gateway(&group, &topic, &["ack_timeout = \"5s\"", FAST_RETRY]);
    let mut wire = Wire::subscribe(&gateway, &group, 100).await;
    let records = wire.records(100).await;
    let mut other = Wire::subscribe(&gateway, &group, 100).await;
    let all = vec![settlement(records[0].range(0, 99), Outcome::Extend(Extend { ack_timeout: None }))];
    let began = Instant::now();
    let mut extended = began;
    while began.elapsed() < JOB {
        match wire.read(Duration::from_millis(100)).await {
            Seen::Ended(end) => panic!("the stream ended: {end:?}"),
            Seen::Frame | Seen::Nothing => {}
        }
        if extended.elapsed() > Duration::from_secs(1) {
            extended = Instant::now();
            let settlements = Settlements { seen: wire.seen, settlements: all.clone(), ..Settlements::default() };
            assert_eq!(wire.ask(settlements).await, [], "one range for all, and the stream's own time");
        }
    }
    other.barrier().await;
    assert!(wire.revoked.is_empty() && other.inbox.is_empty(), "nothing is taken from it: {:?}", wire.revoked);
    assert_eq!(gateway.stats(&group).await.expired, 0);
    assert_eq!(wire.settle_answered(&records, &ack(), false).await, []);
    committed_is(kafka, &group, &topic, 100).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_may_shorten_its_ack_timeout_for_itself_alone() {
    let kafka = broker();
    let topic = kafka.topic("shorter", 1);
    kafka.fill(&topic, 1, 2, 32);
    let group = unique("shorter");
    let gateway = gateway(&group, &topic, &["ack_timeout = \"10m\"", FAST_RETRY]);
    let second = prost_types::Duration { seconds: 1, nanos: 0 };
    let first = Subscribe { ack_timeout: Some(second), ..subscribe(&group, 1) };
    let mut hasty = Wire::connect(&gateway, first).await;
    assert_eq!(hasty.subscribed.ack_timeout, Some(second), "it is told what holds");
    let mut patient = Wire::subscribe(&gateway, &group, 2).await;
    let (lost, kept) = (hasty.record().await, patient.record().await);
    hasty.flow(0, 0);
    hasty.until("its own lease expires", |wire| (!wire.revoked.is_empty()).then_some(())).await;
    assert_eq!(hasty.revoked[0].leases, Some(lost.leases()));
    let again = patient.record().await;
    assert_eq!((again.offset, again.attempts), (lost.offset, 1));
    assert!(patient.revoked.is_empty(), "others have the subscription's: {:?}", patient.revoked);
    patient.ack(&[kept, again]);
    committed_is(kafka, &group, &topic, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_failed_too_often_is_dropped_where_the_subscription_asks_for_it() {
    let kafka = broker();
    let topic = kafka.topic("dropped", 1);
    kafka.fill(&topic, 1, 2, 32);
    let group = unique("dropped");
    let drop = "retry = { max_attempts = 3, initial_backoff = \"10ms\", on_exhausted = \"drop\" }";
    let gateway = gateway(&group, &topic, &[drop]);
    let mut wire = Wire::subscribe(&gateway, &group, 1).await;
    for attempts in 0..3 {
        let poison = wire.record().await;
        assert_eq!((poison.offset, poison.attempts), (0, attempts));
        wire.settle(&[poison], &retry_now());
    }
    let good = wire.record().await;
    assert_eq!(good.offset, 1);
    wire.ack(&[good]);
    committed_is(kafka, &group, &topic, 2).await;
    let stats = gateway.stats(&group).await;
    assert_eq!((stats.retried, stats.failed, stats.acked), (3, 1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_failed_too_often_holds_the_commit_and_says_so_by_default() {
    let kafka = broker();
    let topic = kafka.topic("exhausted", 1);
    kafka.fill(&topic, 1, 2, 32);
    let group = unique("exhausted");
    let block = "retry = { max_attempts = 2, initial_backoff = \"10ms\", max_backoff = \"1h\" }";
    let gateway = gateway(&group, &topic, &[block]);
    let mut wire = Wire::subscribe(&gateway, &group, 2).await;
    let mut records = wire.records(2).await;
    let good = records.remove(1);
    wire.settle(&records, &retry());
    let again = wire.record().await;
    assert_eq!((again.offset, again.attempts), (0, 1));
    wire.settle(&[again], &retry());
    assert_eq!(wire.settle_answered(&[good], &ack(), false).await, [], "only the poisoned record waits");
    eventually("an operator is told", SOON, async || {
        let partitions = gateway.partitions(&group).await;
        let told = partitions.iter().any(|one| one.blocked_on == "exhausted" && one.oldest_undone_offset == Some(0));
        if told { Ok(()) } else { Err(partitions) }
    })
    .await;
    assert_eq!(kafka.committed_offset(&group, &topic, 0), Some(0));
}
