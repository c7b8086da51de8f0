//! Settlements that are answered when Kafka has them, and what no `kill -9` takes back after that.

use sluice_proto::v1::consumer_service_client::ConsumerServiceClient;
use sluice_proto::v1::{DeadLetter, RejectReason, SettleRequest, Settlements, settlement::Outcome};
use sluice_tests::wire::{Lease, Wire, ack, ranges, release, retry_after, settlement, subscribe};
use sluice_tests::{Broker, SOON, Way, broker, eventually, unique};
use std::time::Duration;
use tonic::transport::Channel;

use sluice_proto::v1::Subscribe;

use crate::{committed_to_the_end, gateway, gateway_on};

/// Everything that a new session is dealt, until nothing more comes of the partition.
async fn all_that_comes(gateway: &sluice_tests::Gateway, group: &str, count: usize) -> Vec<Lease> {
    let mut wire = Wire::subscribe(gateway, group, i32::try_from(count).expect("small")).await;
    let first = wire.record().await;
    eventually("all was dealt", SOON, async || {
        // What is known of the log's end comes a moment after the partition begins.
        let partitions = gateway.partitions(group).await;
        let is_known = partitions.iter().all(|one| one.high_watermark >= i64::try_from(count).expect("small"));
        let ready: i64 =
            partitions.iter().map(|one| one.lag - one.leased - one.waiting_retry - one.done_above_frontier).sum();
        if is_known && ready <= 0 { Ok(()) } else { Err(partitions) }
    })
    .await;
    wire.barrier().await;
    let mut all = vec![first];
    all.extend(wire.inbox.drain(..));
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_as_durable_never_comes_again_however_full_the_metadata_gets() {
    const ALL: usize = 70_000;
    let kafka = broker();
    let topic = kafka.topic("durable", 1);
    kafka.fill(&topic, 1, ALL, 8);
    let group = unique("durable");
    let mut gateway = gateway(&group, &topic, &["ack_timeout = \"1h\""]);
    let window = i32::try_from(ALL).expect("small");
    let mut wire = Wire::subscribe(&gateway, &group, window).await;
    let mut held = wire.records(ALL).await;
    held.sort_by_key(|lease| lease.offset);
    // Far above a head that is never done, so that only the metadata can tell.
    let durable: Vec<Lease> = held.iter().filter(|lease| lease.offset % 5_000 == 4_999).cloned().collect();
    for lease in &durable {
        let rejections = wire.settle_answered(std::slice::from_ref(lease), &ack(), true).await;
        assert_eq!(rejections, []);
    }
    // More than a commit can say: every third one, in runs of one.
    let others: Vec<Lease> = held.iter().filter(|lease| lease.offset % 3 == 1).cloned().collect();
    for some in others.chunks(5_000) {
        wire.ack(some);
    }
    wire.barrier().await;
    eventually("a commit was cut", SOON, async || {
        let labels = format!("subscription=\"{group}\"");
        let cut = gateway.metric("sluice_metadata_truncated_total", &labels).unwrap_or_default();
        if cut > 0.0 { Ok(()) } else { Err(cut) }
    })
    .await;
    gateway.kill();
    gateway.restart();
    let again = all_that_comes(&gateway, &group, ALL).await;
    let twice: Vec<i64> = again
        .iter()
        .filter(|lease| durable.iter().any(|one| one.offset == lease.offset))
        .map(|one| one.offset)
        .collect();
    assert!(twice.is_empty(), "{twice:?} were answered as durable, and dealt again");
    assert!(again.len() > ALL / 2, "what is not done comes again");
    let commits = kafka.commit_history(&group);
    let sizes = commits.iter().map(|commit| commit.metadata.encode_utf16().count());
    assert!(sizes.max().is_some_and(|units| units <= 4_096), "no commit is larger than Kafka takes");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_durable_outcome_survives_a_kill_right_after_its_answer() {
    let kafka = broker();
    let (topic, dead_letters) = (kafka.topic("durable-each", 1), kafka.topic("durable-each-dead", 1));
    let produced = kafka.fill(&topic, 1, 10, 32);
    let group = unique("durable-each");
    let letters = format!("dead_letter_topic = \"{dead_letters}\"");
    // Without a durable settlement nothing is committed for long.
    let mut gateway = gateway(&group, &topic, &["commit_interval = \"1m\"", &letters]);
    let mut wire = Wire::subscribe(&gateway, &group, 10).await;
    let held = wire.records(10).await;
    assert_eq!(wire.settle_answered(&held[1..4], &ack(), true).await, []);
    assert_eq!(wire.settle_answered(&held[4..5], &retry_after(Duration::ZERO), true).await, []);
    let given_up = Outcome::DeadLetter(DeadLetter { reason: "broken".into() });
    assert_eq!(wire.settle_answered(&held[5..6], &given_up, true).await, []);
    assert_eq!(wire.settle_answered(&held[6..7], &release(), true).await, []);
    let leases = ranges(&held[7..8]).remove(0);
    let without_a_request_id = Settlements {
        durable: true,
        seen: wire.seen,
        settlements: vec![settlement(leases.clone(), ack())],
        ..Default::default()
    };
    wire.send(sluice_proto::v1::consume_request::Request::Settle(without_a_request_id));
    wire.until("it is refused", |wire| wire.settled.contains_key(&0).then_some(())).await;
    assert_eq!(wire.settled[&0][0].reason(), RejectReason::Invalid, "nobody could be told that it is stored");
    gateway.kill();
    assert_eq!(
        kafka.read(&dead_letters, 0).iter().map(|one| one.1.clone()).collect::<Vec<_>>(),
        [produced[5].value.clone()]
    );
    gateway.restart();
    let mut wire = Wire::subscribe(&gateway, &group, 10).await;
    let again = wire.records(6).await;
    let mut seen: Vec<(i64, u32)> = again.iter().map(|lease| (lease.offset, lease.attempts)).collect();
    seen.sort_unstable();
    assert_eq!(seen, [(0, 0), (4, 1), (6, 0), (7, 0), (8, 0), (9, 0)]);
    assert_eq!(wire.settle_answered(&again, &ack(), true).await, []);
    assert_eq!(kafka.committed_offset(&group, &topic, 0), Some(10), "answered, so Kafka has it");
    assert_eq!(kafka.read(&dead_letters, 0).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_durable_answer_waits_for_a_broker_that_is_away_and_a_plain_one_does_not() {
    let broker = Broker::start();
    let kafka = broker.kafka().clone();
    let topic = kafka.topic("durable-away", 1);
    kafka.fill(&topic, 1, 4, 32);
    let group = unique("durable-away");
    let gateway = gateway_on(&kafka, &group, &[&topic], &[]);
    let mut wire = Wire::subscribe(&gateway, &group, 4).await;
    let held = wire.records(4).await;
    broker.pause();
    let durable = Settlements {
        request_id: 77,
        durable: true,
        seen: wire.seen,
        settlements: ranges(&held[..2]).into_iter().map(|leases| settlement(leases, ack())).collect(),
    };
    wire.send(sluice_proto::v1::consume_request::Request::Settle(durable));
    assert_eq!(wire.settle_answered(&held[2..], &ack(), false).await, [], "this node has it");
    assert!(!wire.settled.contains_key(&77), "Kafka has not");
    broker.resume();
    let rejections = wire.until("it is answered", |wire| wire.settled.get(&77).cloned()).await;
    assert_eq!(rejections, []);
    assert!(kafka.committed_offset(&group, &topic, 0).is_some_and(|offset| offset >= 2));
    committed_to_the_end(&kafka, &group, &topic).await;
    drop(wire);
    broker.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_durable_unary_settle_from_outside_is_answered_when_kafka_has_it() {
    let kafka = broker();
    let topic = kafka.topic("durable-unary", 1);
    kafka.fill(&topic, 1, 4, 32);
    let group = unique("durable-unary");
    let mut gateway = gateway(&group, &topic, &["commit_interval = \"1m\"", "resume_timeout = \"1m\""]);
    let first = Subscribe { consumer_id: unique("consumer"), ..subscribe(&group, 4) };
    let way = Way::to(gateway.address()).await;
    let channel = Channel::from_shared(format!("http://{}", way.address())).expect("an address is a URI");
    let channel = channel.connect().await.expect("connect to the gateway");
    let mut wire = Wire::open(channel, first).await.expect("subscribe");
    let held = wire.records(4).await;
    let (session_id, seen) = (wire.subscribed.session_id.clone(), wire.seen);
    // Cut, not dropped: what is seen of a dropped stream may be a half-close, which gives all leases back.
    way.cut();
    wire.end().await.expect_err("the connection is gone");
    let mut client = ConsumerServiceClient::new(gateway.channel().await);
    let request = SettleRequest {
        session_id,
        durable: true,
        seen,
        settlements: ranges(&held[1..3]).into_iter().map(|leases| settlement(leases, ack())).collect(),
    };
    let answer = client.settle(request).await.expect("it is answered").into_inner();
    assert_eq!(answer.rejections, []);
    gateway.kill();
    gateway.restart();
    let again = all_that_comes(&gateway, &group, 4).await;
    assert_eq!(again.iter().map(|lease| lease.offset).collect::<Vec<_>>(), [0, 3]);
}
