//! The Rust client on the real thing: connections that are cut, and nodes that drain.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sluice_client::{Consumer, Event, Record};
use sluice_tests::{Broker, GatewayConfig, NewRecord, SOON, Way, broker, eventually, process::Signal, unique};
use tokio::{sync::mpsc, time::timeout};

use crate::{committed_to_the_end, gateway, gateway_on, lag_is_zero, owns, reaches, subscription};

const RECORDS: usize = 200;

async fn next(consumer: &mut Consumer) -> Record {
    let record = timeout(SOON, consumer.next()).await.expect("a record comes");
    record.expect("the consumer lives").expect("the consumer is open")
}

async fn until(events: &mut mpsc::Receiver<Event>, wanted: impl Fn(&Event) -> bool) {
    let seen = timeout(SOON, async {
        while let Some(event) = events.recv().await {
            if wanted(&event) {
                return;
            }
        }
        panic!("the consumer ended");
    });
    seen.await.expect("the event comes");
}

/// How often each record was given to the application.
#[derive(Default)]
struct Given(BTreeMap<(i32, i64), usize>);

impl Given {
    fn note(&mut self, record: &Record) {
        *self.0.entry((record.partition(), record.offset())).or_default() += 1;
    }

    fn check_each_once(&self) {
        let again: Vec<_> = self.0.iter().filter(|(_, times)| **times > 1).collect();
        assert!(again.is_empty(), "given more than once: {again:?}");
        assert_eq!(self.0.len(), RECORDS);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_connection_is_cut_takes_its_leases_along() {
    let kafka = broker();
    let topic = kafka.topic("cut", 2);
    let group = unique("cut");
    // Time enough on a busy machine: what is checked is that nothing comes twice, not how fast.
    let gateway = gateway(&group, &topic, &["resume_timeout = \"30s\""]);
    let way = Way::to(gateway.address()).await;
    let mut consumer =
        Consumer::builder(way.address().to_string(), &group).window(20).connect().await.expect("connect");
    let mut events = consumer.events().expect("taken once");
    kafka.fill(&topic, 2, RECORDS, 32);
    let mut given = Given::default();
    for _ in 0..3 {
        let mut worked_on = Vec::new();
        for _ in 0..15 {
            let record = next(&mut consumer).await;
            given.note(&record);
            worked_on.push(record);
        }
        // Some settlements are on their way when it breaks, some are made in between, some after.
        let (before, after) = (worked_on.split_off(10), worked_on.split_off(5));
        before.into_iter().for_each(Record::ack);
        way.cut();
        worked_on.into_iter().for_each(Record::ack);
        until(&mut events, |event| matches!(event, Event::Disconnected { .. })).await;
        until(&mut events, |event| matches!(event, Event::Connected { .. })).await;
        assert!(after.iter().all(|record| !record.is_revoked()), "what is worked on is kept");
        after.into_iter().for_each(Record::ack);
    }
    while given.0.len() < RECORDS {
        let record = next(&mut consumer).await;
        given.note(&record);
        record.ack();
    }
    consumer.close(SOON).await.expect("close");
    committed_to_the_end(kafka, &group, &topic).await;
    given.check_each_once();
    while let Ok(event) = events.try_recv() {
        assert!(!matches!(event, Event::Rejected { .. } | Event::Revoked { .. }), "{event:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_in_the_clients_queue_is_extended_for_as_long_as_the_application_takes() {
    const AT_WORK: Duration = Duration::from_secs(20);
    let kafka = broker();
    let topic = kafka.topic("queued", 1);
    kafka.fill(&topic, 1, 50, 32);
    let group = unique("queued");
    let gateway = gateway(&group, &topic, &["ack_timeout = \"5s\""]);
    let mut consumer = Consumer::builder(gateway.address(), &group).window(50).connect().await.expect("connect");
    let mut events = consumer.events().expect("taken once");
    let first = next(&mut consumer).await;
    // Four times as long as a lease lasts: this one asks for it, the others only wait.
    first.keep_extending(Duration::MAX);
    let lost = timeout(AT_WORK, until(&mut events, |event| matches!(event, Event::Revoked { .. }))).await;
    lost.expect_err("no lease is taken back");
    first.ack();
    for _ in 1..50 {
        let record = next(&mut consumer).await;
        assert_eq!(record.attempts(), 0);
        record.ack();
    }
    consumer.close(SOON).await.expect("close");
    committed_to_the_end(kafka, &group, &topic).await;
    let stats = gateway.stats(&group).await;
    assert_eq!((stats.delivered, stats.expired), (50, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_a_draining_gateway_finishes_and_goes_on_at_the_next() {
    let kafka = broker();
    let topic = kafka.topic("drained", 2);
    let group = unique("drained");
    let subscription = subscription(&group, &[&topic], &["join = \"at_start\""]);
    let config = GatewayConfig::new(kafka).node("drain_timeout = \"30s\"").subscription(subscription);
    let mut leaves = config.start();
    owns(&leaves, &group, 2).await;
    let way = Way::to(leaves.address()).await;
    let mut consumer =
        Consumer::builder(way.address().to_string(), &group).window(20).connect().await.expect("connect");
    let mut events = consumer.events().expect("taken once");
    kafka.fill(&topic, 2, RECORDS, 32);
    let mut given = Given::default();
    let worked_on = next(&mut consumer).await;
    given.note(&worked_on);
    let stays = config.start();
    way.lead_to(stays.address());
    leaves.signal(Signal::Term);
    until(&mut events, |event| matches!(event, Event::Draining)).await;
    worked_on.ack();
    assert!(leaves.ended().await.success(), "a drain ends with status 0");
    while given.0.len() < RECORDS {
        let record = next(&mut consumer).await;
        given.note(&record);
        record.ack();
    }
    consumer.flush().await.expect("flush");
    committed_to_the_end(kafka, &group, &topic).await;
    given.check_each_once();
    consumer.close(Duration::from_secs(10)).await.expect("close");
    eventually("the session has gone", SOON, async || match stays.consumers(&group).await.len() {
        0 => Ok(()),
        left => Err(left),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_lives_through_kills_of_its_gateway_and_of_kafka_and_loses_nothing() {
    const EACH: usize = 600;
    let broker = Broker::start();
    let kafka = broker.kafka();
    let topic = kafka.topic("fell", 2);
    let group = unique("fell");
    let mut gateway = gateway_on(kafka, &group, &[&topic], &[]);
    let way = Way::to(gateway.address()).await;
    let mut consumer =
        Consumer::builder(way.address().to_string(), &group).window(50).connect().await.expect("connect");
    let acked = Arc::new(Mutex::new(BTreeSet::new()));
    let goes_on = Arc::clone(&acked);
    // One consumer for all that happens: it reconnects by itself.
    let worker = tokio::spawn(async move {
        while let Some(record) = consumer.next().await.expect("the consumer lives") {
            // Load: what is killed is killed with leases open and settlements on their way.
            tokio::time::sleep(Duration::from_millis(3)).await;
            goes_on.lock().expect("not poisoned").insert((record.partition(), record.offset()));
            record.ack();
        }
    });
    let count = || acked.lock().expect("not poisoned").len();
    let mut produced = 0;
    for kill_kafka in [false, false, true] {
        produced += kafka.fill(&topic, 2, EACH, 32).len();
        reaches("work goes on", produced - EACH / 2, &count).await;
        if kill_kafka {
            broker.kill();
            broker.restart();
        } else {
            gateway.kill();
            gateway.restart();
            way.lead_to(gateway.address());
        }
    }
    produced += kafka.fill(&topic, 2, EACH, 32).len();
    reaches("each record is given to the application", produced, &count).await;
    committed_to_the_end(kafka, &group, &topic).await;
    lag_is_zero(&gateway, &group).await;
    assert_eq!(count(), produced);
    assert!(!worker.is_finished(), "the same consumer works on");
    worker.abort();
}

/// Keys, values and headers in each combination of null, empty and filled. Where there are no headers the gateway tells by
/// the byte behind the value, so values are of zeros, and what follows is another record, or the end of a fetch.
#[tokio::test(flavor = "multi_thread")]
async fn every_shape_of_record_comes_as_it_was_written() {
    let kafka = broker();
    let shapes = [None, Some(Vec::new()), Some(vec![0]), Some(vec![0; 300])];
    let header = |value: &Option<Vec<u8>>| ("name".to_owned(), value.clone());
    let headers: Vec<Vec<_>> =
        std::iter::once(Vec::new()).chain(shapes.iter().map(|value| vec![header(value), header(&None)])).collect();
    let mut written = Vec::new();
    for key in &shapes {
        for value in &shapes {
            for headers in &headers {
                written.push((key.clone(), value.clone(), headers.clone()));
            }
        }
    }
    for compression in ["none", "lz4", "zstd"] {
        let topic = kafka.topic("shapes", 1);
        let record = |(key, value, headers): &(_, _, Vec<_>)| NewRecord {
            partition: Some(0),
            key: Option::clone(key),
            value: Option::clone(value),
            headers: headers.clone(),
            timestamp_ms: None,
        };
        kafka.produce_with(&[("compression.type", compression)], &topic, written.iter().map(record));
        let group = unique("shapes");
        let gateway = gateway(&group, &topic, &[]);
        let mut consumer = Consumer::builder(gateway.address(), &group).connect().await.expect("connect");
        for (offset, (key, value, headers)) in written.iter().enumerate() {
            let record = next(&mut consumer).await;
            let bytes = |bytes: Option<&bytes::Bytes>| bytes.map(|bytes| bytes.to_vec());
            let found: Vec<_> = record.headers().map(|(name, value)| (name.to_owned(), bytes(value))).collect();
            assert_eq!(record.offset(), offset as i64, "{compression}");
            assert_eq!((&bytes(record.key()), &bytes(record.value())), (key, value), "{compression}, {offset}");
            assert_eq!(&found, headers, "{compression}, {offset}");
            record.ack();
        }
        committed_to_the_end(kafka, &group, &topic).await;
    }
}
