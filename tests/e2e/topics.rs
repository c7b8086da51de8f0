//! Logs that change under a group: deleted, cut, shortened by retention, with more partitions.

use sluice_proto::v1::{RejectReason, RevokeReason, Settlements};
use sluice_tests::wire::{Wire, ack, settlement};
use sluice_tests::{Broker, Crew, History, SOON, broker, eventually, unique};

use crate::{committed_is, committed_to_the_end, gateway, gateway_on, lag_is_zero, reaches};

const FAST_REFRESH: &str = "metadata_refresh = \"1s\"";

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_deleted_and_made_again_begins_anew_in_another_epoch() {
    let kafka = broker();
    let topic = kafka.topic("made-again", 1);
    kafka.fill(&topic, 1, 10, 32);
    let group = unique("made-again");
    let gateway = gateway(&group, &topic, &[FAST_REFRESH]);
    let mut wire = Wire::subscribe(&gateway, &group, 10).await;
    let old = wire.records(10).await;
    wire.ack(&old[..5]);
    committed_is(kafka, &group, &topic, 5).await;
    kafka.delete_topic(&topic);
    kafka.create_topic(&topic, 1, &[]);
    kafka.fill(&topic, 1, 7, 32);
    let new = wire.records(7).await;
    let offsets: Vec<_> = new.iter().map(|lease| lease.offset).collect();
    assert_eq!(offsets, [0, 1, 2, 3, 4, 5, 6], "from the new log's beginning");
    assert_ne!(new[0].epoch, old[0].epoch);
    assert_eq!(wire.held.len(), 7, "the old leases were taken back");
    assert!(wire.revoked.iter().all(|one| one.reason() == RevokeReason::Reassigned), "{:?}", wire.revoked);
    let settlements = vec![settlement(old[5].leases(), ack())];
    let rejections = wire.ask(Settlements { settlements, ..Settlements::default() }).await;
    assert_eq!(rejections.iter().map(|one| one.reason()).collect::<Vec<_>>(), [RejectReason::StaleEpoch]);
    wire.ack(&new);
    committed_is(kafka, &group, &topic, 7).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_cut_raises_an_alarm_and_goes_on_at_its_end() {
    let broker = Broker::start();
    let kafka = broker.kafka();
    let topic = kafka.topic("cut", 1);
    kafka.fill(&topic, 1, 10, 32);
    let group = unique("cut");
    let gateway = gateway_on(kafka, &group, &[&topic], &[FAST_REFRESH]);
    let mut wire = Wire::subscribe(&gateway, &group, 10).await;
    let old = wire.records(10).await;
    wire.ack(&old);
    committed_is(kafka, &group, &topic, 10).await;
    broker.kill();
    broker.truncate(&topic, 0);
    broker.restart();
    let counted = || gateway.metric("sluice_log_truncated_total", "");
    eventually("the truncation is counted", SOON, async || match counted() {
        Some(count) if count >= 1.0 => Ok(()),
        other => Err(other),
    })
    .await;
    kafka.fill(&topic, 1, 3, 32);
    let new = wire.records(3).await;
    assert_eq!(new.iter().map(|lease| lease.offset).collect::<Vec<_>>(), [0, 1, 2]);
    assert_ne!(new[0].epoch, old[0].epoch);
    wire.ack(&new);
    committed_is(kafka, &group, &topic, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_retention_took_before_it_was_delivered_is_counted_as_lost() {
    let kafka = broker();
    let topic = kafka.topic("retention", 1);
    kafka.fill(&topic, 1, 20, 32);
    let group = unique("retention");
    let mut gateway = gateway(&group, &topic, &[]);
    let mut wire = Wire::subscribe(&gateway, &group, 5).await;
    let first = wire.records(5).await;
    wire.ack(&first);
    committed_is(kafka, &group, &topic, 5).await;
    gateway.kill();
    kafka.delete_records(&topic, 0, 12);
    gateway.restart();
    let mut wire = Wire::subscribe(&gateway, &group, 10).await;
    let rest = wire.records(8).await;
    assert_eq!(rest.iter().map(|lease| lease.offset).collect::<Vec<_>>(), [12, 13, 14, 15, 16, 17, 18, 19]);
    assert_eq!(gateway.metric("sluice_lost_to_retention_total", ""), Some(7.0));
    wire.ack(&rest);
    committed_is(kafka, &group, &topic, 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_that_passes_the_frontier_takes_nothing_from_those_who_work() {
    let kafka = broker();
    let topic = kafka.topic("passed", 1);
    let produced = kafka.fill(&topic, 1, 50, 32);
    let group = unique("passed");
    let gateway = gateway(&group, &topic, &[FAST_REFRESH]);
    let history = History::default();
    let mut wire = Wire::subscribe(&gateway, &group, 10).await.recorded(&history);
    let stuck = wire.records(10).await;
    eventually("all were received", SOON, async || match gateway.stats(&group).await.received {
        50 => Ok(()),
        other => Err(other),
    })
    .await;
    kafka.delete_records(&topic, 0, 50);
    wire.ack(&stuck);
    while history.acked() < produced.len() {
        let batch = wire.records(1).await;
        wire.ack(&batch);
    }
    let later = kafka.fill(&topic, 1, 5, 32);
    let batch = wire.records(later.len()).await;
    wire.ack(&batch);
    committed_is(kafka, &group, &topic, 55).await;
    history.check_no_duplicates();
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_are_added_while_running_are_read_from_their_beginning() {
    let kafka = broker();
    let topic = kafka.topic("grown", 1);
    let mut produced = kafka.fill(&topic, 1, 10, 32);
    let group = unique("grown");
    let gateway = gateway(&group, &topic, &[FAST_REFRESH]);
    let history = History::default();
    let crew = Crew::new(&gateway, &group, &history).start(2);
    reaches("the first partition's are acked", 10, || history.acked_of(&produced)).await;
    kafka.add_partitions(&topic, 3);
    produced.extend(kafka.fill(&topic, 3, 30, 32));
    reaches("all are acked", produced.len(), || history.acked_of(&produced)).await;
    committed_to_the_end(kafka, &group, &topic).await;
    lag_is_zero(&gateway, &group).await;
    history.check_no_duplicates();
    crew.stop().await;
}
