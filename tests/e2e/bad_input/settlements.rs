//! Settlements that cannot be meant, and far too many of them.

use std::collections::BTreeSet;

use sluice_proto::v1::consumer_service_client::ConsumerServiceClient;
use sluice_proto::v1::settlement::Outcome;
use sluice_proto::v1::{
    Extend, Leases, OffsetRange, RejectReason, Retry, SettleRequest, Settlement, Settlements, Subscribe,
};
use sluice_tests::wire::{Wire, ack, release, settlement, subscribe};
use sluice_tests::{broker, unique};

use super::{Bystander, back_off, everything, seconds, verdict};
use crate::{committed_to_the_end, gateway};

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
    let hour = Retry { delay: seconds(3_600), reason: "x".repeat(10_000) };
    vandal.settle(&records[..10_000], &Outcome::Retry(hour));
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
    let retry = Retry { delay: Some(malformed), reason: String::new() };
    let retry = Outcome::Retry(retry);
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
async fn durations_that_cannot_be_meant_are_invalid_and_not_clamped() {
    let mut bystander = Bystander::of("durations").await;
    let seen = bystander.wire.seen;
    let leases = bystander.held[0].leases();
    let extend =
        |seconds: i64, nanos| Outcome::Extend(Extend { ack_timeout: Some(prost_types::Duration { seconds, nanos }) });
    let retry = |seconds: i64, nanos| {
        Outcome::Retry(Retry { delay: Some(prost_types::Duration { seconds, nanos }), reason: String::new() })
    };
    const THOUSAND_YEARS: i64 = 31_557_600_000;
    for (what, outcome) in [
        ("a lease for a thousand years", extend(THOUSAND_YEARS, 0)),
        ("a lease for as long as there are numbers", extend(i64::MAX, i32::MAX)),
        ("a lease for less than nothing", extend(-1, 0)),
        ("a lease for less than nothing by a bit", extend(0, -1)),
        ("a retry in a thousand years", retry(THOUSAND_YEARS, 0)),
        ("a retry at the end of numbers", retry(i64::MAX, 999_999_999)),
        ("a retry before now", retry(i64::MIN, i32::MIN)),
        ("a retry with signs that differ", retry(1, -1)),
    ] {
        let settlements = vec![settlement(leases.clone(), outcome)];
        let answer = bystander.wire.ask(Settlements { seen, settlements, ..Settlements::default() }).await;
        assert_eq!(answer.iter().map(|one| one.reason()).collect::<Vec<_>>(), [RejectReason::Invalid], "{what}");
    }
    assert_eq!(bystander.gateway.consumers(&bystander.group).await[0].leased, 10, "all is still held");
    bystander.loses_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_session_holds_or_another_life_dealt_is_not_settled() {
    let bystander = Bystander::of("others").await;
    let mut other = Wire::subscribe(&bystander.gateway, &bystander.group, 5).await.recorded(&bystander.history);
    let own = other.records(5).await;
    let theirs = &bystander.held[3];
    let ghost = |epoch| Leases { epoch, ..theirs.leases() };
    let unknown = Leases { topic: "no such topic".to_owned(), ..theirs.leases() };
    for (what, leases, reason) in [
        ("another session's", theirs.leases(), RejectReason::NotHeld),
        ("an epoch of another life", ghost(theirs.epoch ^ 1), RejectReason::StaleEpoch),
        ("no epoch", ghost(0), RejectReason::StaleEpoch),
        ("a negative epoch", ghost(i64::MIN), RejectReason::StaleEpoch),
        ("a topic that is not there", unknown, RejectReason::StaleEpoch),
    ] {
        for outcome in [ack(), release(), Outcome::Extend(Extend { ack_timeout: seconds(60) })] {
            let settlements = vec![settlement(leases.clone(), outcome)];
            let answer = other.ask(Settlements { seen: other.seen, settlements, ..Settlements::default() }).await;
            assert_eq!(answer.iter().map(|one| one.reason()).collect::<Vec<_>>(), [reason], "{what}");
        }
    }
    let stats = bystander.gateway.stats(&bystander.group).await;
    assert_eq!((stats.acked, stats.released), (0, 0));
    other.flow(0, 0);
    other.ack(&own);
    other.barrier().await;
    bystander.loses_nothing().await;
}

/// Empty settlements are the cheapest to send: two bytes, and a rejection of its own for each.
fn nothings(count: usize) -> Settlements {
    Settlements { settlements: vec![Settlement::default(); count], ..Settlements::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unary_settle_of_a_million_ranges_or_of_nothing_is_answered_like_one_in_a_stream() {
    let mut bystander = Bystander::of("unary").await;
    let mut client = ConsumerServiceClient::new(bystander.gateway.channel().await).max_decoding_message_size(64 << 20);
    let session_id = bystander.wire.subscribed.session_id.clone();
    let epoch = bystander.held[0].epoch;
    let request = |settlements: Settlements, durable| SettleRequest {
        session_id: session_id.clone(),
        durable,
        seen: settlements.seen,
        settlements: settlements.settlements,
    };
    let million = || everything(1_000_000, &bystander.topic, epoch);
    for durable in [false, true] {
        let status = client.settle(request(million(), durable)).await.expect_err("far above a frame");
        assert_eq!(verdict(&status), back_off("FRAME_TOO_LARGE"), "{status:?}");
    }
    // Below the limit: of another epoch, so that nothing is settled.
    let answer = client.settle(request(everything(60_000, &bystander.topic, epoch ^ 1), false)).await;
    let reasons: BTreeSet<_> =
        answer.expect("an answer").into_inner().rejections.iter().map(|one| one.reason()).collect();
    assert_eq!(reasons, [RejectReason::StaleEpoch].into());
    let answer = client.settle(request(nothings(100_000), false)).await.expect("an answer").into_inner();
    assert!(answer.rejections.iter().all(|one| one.reason() == RejectReason::Invalid));
    // As many at once as a connection takes.
    let calls = (0..200).map(|_| {
        let mut client = client.clone();
        let request = request(nothings(400_000), false);
        tokio::spawn(async move { client.settle(request).await.map(drop) })
    });
    for call in calls.collect::<Vec<_>>() {
        match call.await.expect("no panic") {
            Ok(()) => {}
            Err(status) => assert_eq!(verdict(&status), back_off("SETTLE_FLOOD"), "{status:?}"),
        }
        bystander.is_served().await;
    }
    let status = client.settle(request(everything(1, "", 0), false)).await.map(drop);
    assert!(status.is_ok(), "what waited is answered, and there is room again: {status:?}");
    bystander.loses_nothing().await;
}
