//! What a client says that it has seen, where its frames come from several owners.

use std::time::Duration;

use sluice_proto::v1::consume_request::Request;
use sluice_proto::v1::{RejectReason, Settlements};
use sluice_tests::wire::{Wire, ack, retry_after, settlement};
use sluice_tests::{broker, unique};

use super::cluster;
use crate::committed_to_the_end;

#[tokio::test(flavor = "multi_thread")]
async fn an_old_range_does_not_swallow_a_record_that_another_node_dealt_again() {
    let kafka = broker();
    let topic = kafka.topic("swallow", 3);
    let group = unique("swallow");
    let cluster = cluster(3, &group, &topic, &[]).await;
    let mut wire = Wire::subscribe(&cluster.nodes[0], &group, 100).await;
    let owners = cluster.spread(&group, 3, 3).await;
    kafka.fill(&topic, 3, 30, 32);
    let records = wire.records(30).await;
    let before = wire.seen;
    for (partition, owner) in owners.iter().enumerate() {
        let of = |lease: &&sluice_tests::Lease| usize::try_from(lease.partition) == Ok(partition);
        let all: Vec<_> = records.iter().filter(of).cloned().collect();
        wire.settle(&all[3..4], &retry_after(Duration::from_millis(1)));
        let again = wire.record().await;
        assert_eq!((again.offset, again.attempts), (all[3].offset, 1));
        // Written before the frame with the retried one was read.
        let range = all[0].range(all[0].offset, all[9].offset);
        let settlements = vec![settlement(range, ack())];
        wire.ask(Settlements { seen: before, settlements, ..Settlements::default() }).await;
        let partitions = cluster.nodes[0].partitions(&group).await;
        let seen = partitions.iter().find(|one| usize::try_from(one.partition) == Ok(partition)).expect("it is owned");
        assert_eq!((seen.leased, seen.oldest_undone_offset), (1, Some(again.offset)), "of node {owner}");
        wire.ack(&[again]);
    }
    committed_to_the_end(kafka, &group, &topic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settlements_of_one_frame_reach_all_owners_and_are_answered_once() {
    let kafka = broker();
    let topic = kafka.topic("frame", 3);
    let group = unique("frame");
    let cluster = cluster(3, &group, &topic, &[]).await;
    let mut wire = Wire::subscribe(&cluster.nodes[0], &group, 100).await;
    cluster.spread(&group, 3, 3).await;
    kafka.fill(&topic, 3, 30, 32);
    let records = wire.records(30).await;
    let seen = wire.seen;
    // All of them in one frame, twice, and one of an epoch that lives nowhere, and one that was never dealt.
    let mut settlements: Vec<_> = records.iter().map(|lease| settlement(lease.leases(), ack())).collect();
    settlements.extend(settlements.clone());
    let mut stale = records[0].leases();
    stale.epoch ^= 1;
    settlements.push(settlement(stale.clone(), ack()));
    let never = records[0].range(1_000, 1_000);
    settlements.push(settlement(never.clone(), ack()));
    let rejected = wire.ask(Settlements { seen, durable: true, settlements, ..Settlements::default() }).await;
    let mut reasons: Vec<_> =
        rejected.iter().map(|one| (one.reason(), one.leases.clone().unwrap_or_default())).collect();
    reasons.sort_by_key(|(reason, _)| *reason as i32);
    assert_eq!(reasons, [(RejectReason::NotHeld, never), (RejectReason::StaleEpoch, stale)]);
    // Nobody was asked about the epoch that lives nowhere; of the others the owners count.
    let by_the_edge = cluster.nodes[0].metric("sluice_edge_settlements_rejected_total", "stale_epoch");
    assert_eq!(by_the_edge, Some(1.0));
    committed_to_the_end(kafka, &group, &topic).await;
    // Without leases it is invalid whoever would be asked, and without a request only what is wrong is answered.
    wire.send(Request::Settle(Settlements {
        settlements: vec![settlement(records[0].leases(), ack())],
        ..Default::default()
    }));
    wire.barrier().await;
    assert!(!wire.settled.contains_key(&0), "{:?}", wire.settled);
}
