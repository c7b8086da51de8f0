//! Kafka is away.

use std::time::Duration;

use sluice_tests::wire::subscribe;
use sluice_tests::{Broker, Crew, Gateway, History, SOON, Wire, eventually, unique};
use tonic_types::StatusExt as _;

use crate::{committed_to_the_end, gateway_on, has_committed, reaches};

/// Waits until `/readyz` says that Kafka does not answer.
async fn says_so(gateway: &Gateway) {
    eventually("/readyz says that Kafka is away", SOON, async || match gateway.page("/readyz") {
        (503, body) if body.to_lowercase().contains("kafka") => Ok(()),
        other => Err(other),
    })
    .await;
}

/// A stream that comes now stays, or is told to come again.
async fn a_stream_stays_or_is_told_to_come_again(gateway: &Gateway, subscription: &str) {
    match Wire::open(gateway.channel().await, subscribe(subscription, 1)).await {
        Ok(mut wire) => wire.barrier().await,
        Err(status) => {
            assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}");
            assert!(status.get_details_retry_info().is_some(), "it says when to come again: {status:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_starts_before_kafka_says_so_and_goes_on_by_itself() {
    let broker = Broker::start();
    let kafka = broker.kafka();
    let topic = kafka.topic("away-at-start", 2);
    let produced = kafka.fill(&topic, 2, 500, 32);
    broker.kill();
    let group = unique("away-at-start");
    let gateway = gateway_on(kafka, &group, &[&topic], &[]);
    says_so(&gateway).await;
    assert_eq!(gateway.page("/healthz").0, 200, "the process itself is well");
    a_stream_stays_or_is_told_to_come_again(&gateway, &group).await;
    let history = History::default();
    let crew = Crew::new(&gateway, &group, &history).start(2);
    broker.restart();
    gateway.ready().await;
    reaches("all are acked", produced.len(), || history.acked_of(&produced)).await;
    committed_to_the_end(kafka, &group, &topic).await;
    history.check_no_loss(&produced);
    history.check_no_duplicates();
    history.check_commits(kafka, &group, &produced);
    crew.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_away_for_twenty_seconds_in_the_middle_of_work_loses_nothing() {
    let broker = Broker::start();
    let kafka = broker.kafka();
    let topic = kafka.topic("away", 3);
    let mut produced = kafka.fill(&topic, 3, 3_000, 32);
    let group = unique("away");
    let gateway = gateway_on(kafka, &group, &[&topic], &[]);
    let history = History::default();
    let crew = Crew::new(&gateway, &group, &history).window(2).work(Duration::from_millis(50)).start(3);
    reaches("work goes on", 500, || history.acked_of(&produced)).await;
    has_committed(kafka, &group, &topic, 3).await;
    broker.kill();
    let away = tokio::time::Instant::now();
    says_so(&gateway).await;
    a_stream_stays_or_is_told_to_come_again(&gateway, &group).await;
    // The fault itself lasts this long.
    tokio::time::sleep_until(away + Duration::from_secs(20)).await;
    broker.restart();
    gateway.ready().await;
    produced.extend(kafka.fill(&topic, 3, 300, 32));
    reaches("all are acked", produced.len(), || history.acked_of(&produced)).await;
    committed_to_the_end(kafka, &group, &topic).await;
    history.check_no_loss(&produced);
    history.check_commits(kafka, &group, &produced);
    crew.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_freezes_for_longer_than_the_kafka_session_loses_nothing() {
    let broker = Broker::start();
    let kafka = broker.kafka();
    let topic = kafka.topic("frozen-broker", 2);
    let produced = kafka.fill(&topic, 2, 2_000, 32);
    let group = unique("frozen-broker");
    let gateway = gateway_on(kafka, &group, &[&topic], &[]);
    let history = History::default();
    let crew = Crew::new(&gateway, &group, &history).window(2).work(Duration::from_millis(20)).start(2);
    reaches("work goes on", 100, || history.acked_of(&produced)).await;
    has_committed(kafka, &group, &topic, 3).await;
    broker.pause();
    tokio::time::sleep(Duration::from_secs(8)).await;
    broker.resume();
    reaches("all are acked", produced.len(), || history.acked_of(&produced)).await;
    committed_to_the_end(kafka, &group, &topic).await;
    history.check_no_loss(&produced);
    history.check_commits(kafka, &group, &produced);
    crew.stop().await;
}
