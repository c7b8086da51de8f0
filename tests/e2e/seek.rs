//! An operator moves the committed offsets.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use sluice_proto::v1::seek_subscription_request::Target;
use sluice_proto::v1::{
    PartitionOffset, PartitionOffsets, RevokeReason, SeekSubscriptionRequest, SeekSubscriptionResponse,
};
use sluice_tests::wire::{Wire, ack};
use sluice_tests::{Gateway, NewRecord, SOON, broker, eventually, unique};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{committed_is, committed_to_the_end, gateway};

pub(crate) async fn seek(gateway: &Gateway, name: &str, target: Target) -> Result<SeekSubscriptionResponse, Status> {
    let request = SeekSubscriptionRequest { name: name.to_owned(), target: Some(target), validate_only: false };
    Ok(gateway.operator().await.seek_subscription(request).await?.into_inner())
}

fn to(topic: &str, offsets: &[(i32, i64)]) -> Target {
    let offset = |(partition, offset): &(i32, i64)| PartitionOffset {
        topic: topic.to_owned(),
        partition: *partition,
        offset: *offset,
    };
    Target::Offsets(PartitionOffsets { offsets: offsets.iter().map(offset).collect() })
}

pub(crate) fn offsets(of: &[PartitionOffset]) -> BTreeMap<i32, i64> {
    of.iter().map(|one| (one.partition, one.offset)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seek_back_takes_leases_back_and_deals_everything_from_there_again() {
    let kafka = broker();
    let (topic, group) = (kafka.topic("back", 1), unique("back"));
    kafka.fill(&topic, 1, 20, 32);
    let gateway = gateway(&group, &topic, &[]);
    let mut wire = Wire::subscribe(&gateway, &group, 20).await;
    let first = wire.records(20).await;
    // Some below and some above the frontier are done, some are held.
    wire.ack(&first[..5]);
    wire.ack(&first[10..15]);
    committed_is(kafka, &group, &topic, 5).await;
    let moved = seek(&gateway, &group, to(&topic, &[(0, 2)])).await.expect("it seeks");
    assert_eq!((offsets(&moved.before), offsets(&moved.after)), ([(0, 5)].into(), [(0, 2)].into()));
    // The answer means that Kafka has it, without anything that was done above.
    assert_eq!(kafka.committed(&group, &topic)[&0].0, 2);
    let revoked = wire.until("what was held is taken back", |wire| wire.revoked.first().cloned()).await;
    assert_eq!(revoked.reason(), RevokeReason::Seek);
    let again = wire.records(18).await;
    assert_eq!(again.iter().map(|lease| lease.offset).collect::<Vec<_>>(), (2..20).collect::<Vec<_>>());
    assert!(again.iter().all(|lease| lease.attempts == 0 && lease.epoch != first[0].epoch), "{again:?}");
    let stale = wire.settle_answered(&first[5..6], &ack(), false).await;
    assert_eq!(stale[0].reason(), sluice_proto::v1::RejectReason::StaleEpoch);
    wire.ack(&again);
    committed_to_the_end(kafka, &group, &topic).await;
    assert_eq!(gateway.metric("sluice_seeks_total", &group), Some(1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seek_that_was_answered_outlives_a_kill() {
    let kafka = broker();
    let (topic, group) = (kafka.topic("kill", 1), unique("kill"));
    kafka.fill(&topic, 1, 20, 32);
    let mut gateway = gateway(&group, &topic, &[]);
    let mut wire = Wire::subscribe(&gateway, &group, 20).await;
    let all = wire.records(20).await;
    wire.ack(&all);
    committed_to_the_end(kafka, &group, &topic).await;
    seek(&gateway, &group, Target::Earliest(true)).await.expect("it seeks");
    gateway.kill();
    gateway.restart();
    let mut wire = Wire::subscribe(&gateway, &group, 20).await;
    let again = wire.records(20).await;
    assert_eq!(again.iter().map(|lease| lease.offset).collect::<Vec<_>>(), (0..20).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn seeks_by_time_and_to_the_end_skip_what_lies_before() {
    let kafka = broker();
    let (topic, group) = (kafka.topic("time", 2), unique("time"));
    let between = SystemTime::now() - Duration::from_secs(500);
    let old = |index: i32| NewRecord {
        timestamp_ms: Some(millis(between) - 1_000 - i64::from(index)),
        ..NewRecord::to(index % 2, vec![7])
    };
    kafka.produce(&topic, (0..10).map(old));
    kafka.fill(&topic, 2, 4, 32);
    let gateway = gateway(&group, &topic, &[]);
    let mut wire = Wire::subscribe(&gateway, &group, 0).await;
    eventually("partitions are there", SOON, async || match gateway.partitions(&group).await.len() {
        2 => Ok(()),
        other => Err(other),
    })
    .await;
    let moved = seek(&gateway, &group, Target::Time(between.into())).await.expect("it seeks");
    assert_eq!(offsets(&moved.after), [(0, 5), (1, 5)].into());
    wire.flow(100, 0);
    let rest = wire.records(4).await;
    assert!(rest.iter().all(|lease| lease.offset >= 5), "{rest:?}");
    let moved = seek(&gateway, &group, Target::Latest(true)).await.expect("it seeks");
    assert_eq!(offsets(&moved.after), [(0, 7), (1, 7)].into());
    committed_to_the_end(kafka, &group, &topic).await;
    let later = SystemTime::now() + Duration::from_secs(3_600);
    let moved = seek(&gateway, &group, Target::Time(later.into())).await.expect("it seeks");
    assert_eq!(offsets(&moved.after), [(0, 7), (1, 7)].into(), "no record is so new: the end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_without_members_is_sought_all_the_same() {
    let kafka = broker();
    let (topic, group) = (kafka.topic("nobody", 2), unique("nobody"));
    kafka.fill(&topic, 2, 20, 32);
    let gateway = gateway(&group, &topic, &[]);
    let moved = seek(&gateway, &group, to(&topic, &[(0, 3), (1, 10)])).await.expect("it seeks");
    assert_eq!((offsets(&moved.before), offsets(&moved.after)), ([].into(), [(0, 3), (1, 10)].into()));
    assert_eq!(
        kafka.committed(&group, &topic).into_iter().map(|(at, (offset, _))| (at, offset)).collect::<Vec<_>>(),
        [(0, 3), (1, 10)]
    );
    let mut wire = Wire::subscribe(&gateway, &group, 100).await;
    let rest = wire.records(7).await;
    assert_eq!(rest.iter().map(|lease| (lease.partition, lease.offset)).min(), Some((0, 3)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seek_that_cannot_be_meant_is_refused_and_changes_nothing() {
    let kafka = broker();
    let (topic, group) = (kafka.topic("odd", 1), unique("odd"));
    kafka.fill(&topic, 1, 10, 32);
    let gateway = gateway(&group, &topic, &[]);
    let mut wire = Wire::subscribe(&gateway, &group, 10).await;
    let held = wire.records(10).await;
    wire.ack(&held[..5]);
    committed_is(kafka, &group, &topic, 5).await;
    for (target, word) in [
        (None, "where to"),
        (Some(to(&topic, &[])), "at least one"),
        (Some(to(&topic, &[(0, 11)])), "0 to 10"),
        (Some(to(&topic, &[(0, -1)])), "0 to 10"),
        (Some(to(&topic, &[(1, 0)])), "no partition"),
        (Some(to("elsewhere", &[(0, 0)])), "no partition"),
        (Some(to(&topic, &[(0, 1), (0, 2)])), "twice"),
    ] {
        let request = SeekSubscriptionRequest { name: group.clone(), target, validate_only: false };
        let refused = gateway.operator().await.seek_subscription(request).await.expect_err(word);
        let reason = refused.get_details_error_info().map(|info| info.reason);
        assert_eq!((refused.code(), reason.as_deref()), (Code::InvalidArgument, Some("INVALID_FIELD")), "{refused:?}");
        assert!(refused.message().contains(word), "{word}: {refused:?}");
    }
    // Only asked.
    let request =
        SeekSubscriptionRequest { name: group.clone(), target: Some(Target::Earliest(true)), validate_only: true };
    let would = gateway.operator().await.seek_subscription(request).await.expect("it is possible").into_inner();
    assert_eq!((offsets(&would.before), offsets(&would.after)), ([(0, 5)].into(), [(0, 0)].into()));
    let unknown = seek(&gateway, "nothing", Target::Latest(true)).await.expect_err("there is no such subscription");
    assert_eq!(unknown.code(), Code::NotFound);
    wire.ack(&held[5..]);
    committed_to_the_end(kafka, &group, &topic).await;
    assert_eq!(wire.revoked, []);
}

fn millis(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    i64::try_from(since.as_millis()).expect("in range")
}
