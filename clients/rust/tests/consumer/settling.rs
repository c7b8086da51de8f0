//! Settlements that are waited for, and those that find another way than the stream.
use std::time::Duration;

use sluice_client::{Error, Event, Ordering, Outcome, Receipt, RejectReason, SettleError, Settler};
use sluice_proto::v1::{self, Drain, DrainReason, SettleResponse, consume_response::Response as Reply};
use tonic::Status;

use crate::{
    LIMIT,
    fake::{FakeNode, leases, outcomes, said, soon},
    next,
};

fn rejection(ranges: &[(i64, i64)], reason: v1::RejectReason) -> v1::Rejection {
    v1::Rejection { leases: Some(leases(ranges)), reason: reason.into() }
}

#[tokio::test]
async fn a_durable_ack_is_over_when_the_node_says_so() {
    let mut node = FakeNode::start().await;
    let (mut consumer, mut stream) = node.connect(node.builder()).await;
    stream.deliver(1..=3).await;
    let records = [next(&mut consumer).await, next(&mut consumer).await, next(&mut consumer).await];
    // Each on its own task, as applications do.
    let acks = records.map(|record| tokio::spawn(async move { (record.offset(), record.ack_durable().await) }));
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let settlements = stream.settlements().await;
        assert!(settlements.durable && settlements.request_id != 0);
        seen.extend(outcomes(&settlements));
        stream.reject(&settlements, vec![rejection(&[(2, 2)], v1::RejectReason::StaleEpoch)]).await;
    }
    for ack in acks {
        match soon("the answer", ack).await.unwrap() {
            (2, answer) => assert!(matches!(answer, Err(SettleError::StaleEpoch)), "{answer:?}"),
            (_, answer) => answer.unwrap(),
        }
    }
}

#[tokio::test]
async fn every_outcome_can_be_durable_and_a_plain_one_beside_it_is_not() {
    let mut node = FakeNode::start().await;
    let (mut consumer, mut stream) = node.connect(node.builder()).await;
    stream.deliver(1..=3).await;
    let delay = Some(Duration::from_secs(5));
    let retry = next(&mut consumer).await.settle_durable(Outcome::Retry { delay, reason: "busy".to_owned() });
    let settlements = stream.settlements().await;
    assert!(settlements.durable);
    assert_eq!(outcomes(&settlements), [('r', 1)]);
    let dead = next(&mut consumer).await.settle_durable(Outcome::DeadLetter { reason: "no use".to_owned() });
    let other = stream.settlements().await;
    assert!(other.durable);
    next(&mut consumer).await.settle(Outcome::Release);
    let plain = stream.settlements().await;
    assert!(!plain.durable);
    assert_eq!(outcomes(&plain), [('l', 3)]);
    stream.answer(&settlements).await;
    stream.reject(&other, vec![rejection(&[(2, 2)], v1::RejectReason::Invalid)]).await;
    soon("the answer", retry).await.unwrap();
    assert!(matches!(soon("the answer", dead).await, Err(SettleError::Invalid)));
    // The application has let go of it, so it is not left to expire.
    assert_eq!(stream.settle_until(1).await, [('r', 2)]);
}

#[tokio::test]
async fn who_waits_when_the_consumer_ends_hears_that_there_is_no_answer() {
    let mut node = FakeNode::start().await;
    let (mut consumer, mut stream) = node.connect(node.builder()).await;
    stream.deliver([1]).await;
    let waiting = next(&mut consumer).await.ack_durable();
    stream.settlements().await;
    stream.fail(Status::aborted("another stream")).await;
    let error = soon("the answer", waiting).await.unwrap_err();
    assert!(matches!(error, SettleError::NoAnswer(Error::Closed)), "{error}");
}

#[tokio::test]
async fn a_consumer_that_closes_without_a_stream_settles_by_unary_calls() {
    let mut node = FakeNode::start().await;
    let (mut consumer, mut stream) = node.connect(node.builder()).await;
    stream.deliver(1..=2).await;
    let acked = next(&mut consumer).await;
    let durable = next(&mut consumer).await;
    let mut events = consumer.events().unwrap();
    let closing = tokio::spawn(consumer.close(LIMIT));
    assert_eq!(stream.flow().await.max_records, 0);
    acked.ack();
    assert_eq!(outcomes(&stream.settlements().await), [('a', 1)], "and it is not answered");
    stream.fail(Status::unavailable("shutting down")).await;
    let waiting = durable.ack_durable();
    let (first, answer) = node.unary().await;
    assert_eq!((first.session_id.as_str(), first.durable, first.seen), ("a-session", false, 1));
    assert_eq!(said(&first.settlements), [('a', 1)]);
    let not_held = rejection(&[(1, 1)], v1::RejectReason::NotHeld);
    answer.send(SettleResponse { rejections: vec![not_held] }).unwrap();
    let (second, answer) = node.unary().await;
    assert!(second.durable);
    assert_eq!(said(&second.settlements), [('a', 2)]);
    answer.send(SettleResponse::default()).unwrap();
    soon("the answer", waiting).await.unwrap();
    soon("the close", closing).await.unwrap().unwrap();
    let rejected = soon("the rejection", async {
        loop {
            if let Event::Rejected { offsets, reason } = events.recv().await.unwrap() {
                return (offsets.ranges, reason);
            }
        }
    });
    assert_eq!(rejected.await, (vec![(1, 1)], RejectReason::NotHeld));
}

#[tokio::test]
async fn another_process_settles_what_was_handed_over() {
    let mut node = FakeNode::start().await;
    let (mut consumer, mut stream) = node.connect(node.builder()).await;
    stream.deliver(1..=2).await;
    let receipt = next(&mut consumer).await.hand_over().to_string();
    next(&mut consumer).await.ack();
    assert_eq!(stream.settle_until(1).await, [('a', 2)], "nothing is said of the other");

    let receipt: Receipt = receipt.parse().unwrap();
    let settler = Settler::connect(&node.address()).await.unwrap();
    let elsewhere = settler.clone();
    let again = receipt.clone();
    let settling = tokio::spawn(async move { elsewhere.settle_durable(&again, Outcome::Ack).await });
    let (request, answer) = node.unary().await;
    assert_eq!((request.session_id.as_str(), request.durable, request.seen), ("a-session", true, 1));
    assert_eq!(request.settlements[0].leases, Some(leases(&[(1, 1)])));
    answer.send(SettleResponse::default()).unwrap();
    soon("the answer", settling).await.unwrap().unwrap();

    let settling = tokio::spawn(async move { settler.settle(&receipt, Outcome::Release).await });
    let (_, answer) = node.unary().await;
    let rejections = vec![rejection(&[(1, 1)], v1::RejectReason::NotHeld)];
    answer.send(SettleResponse { rejections }).unwrap();
    assert!(matches!(soon("the answer", settling).await.unwrap(), Err(SettleError::NotHeld)));
}

#[tokio::test]
async fn what_was_handed_over_is_taken_along_over_a_drain() {
    let mut node = FakeNode::start().await;
    let (mut consumer, mut stream) = node.connect(node.builder()).await;
    stream.deliver([1]).await;
    let _receipt = next(&mut consumer).await.hand_over();
    let grace = Some(prost_types::Duration { seconds: 600, nanos: 0 });
    stream.send(Reply::Drain(Drain { grace, reason: DrainReason::MaxAge.into() })).await;
    let mut next_stream = node.accept().await;
    let subscribe = next_stream.subscribe(vec![leases(&[(1, 1)])]).await;
    assert_eq!(subscribe.holding, [leases(&[(1, 1)])]);
}

#[tokio::test]
async fn a_settler_without_a_node_says_so() {
    let unused = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let error = soon("the error", Settler::connect(&unused.to_string())).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
}

#[tokio::test]
async fn the_session_is_told() {
    let mut node = FakeNode::start().await;
    let (consumer, _stream) = node.connect(node.builder()).await;
    let session = consumer.session();
    assert_eq!((session.session_id.as_str(), session.subscription.as_str()), ("a-session", "orders"));
    assert_eq!((session.ordering, session.revision), (Ordering::Key, 1));
    assert_eq!((session.ack_timeout.as_secs(), session.session_timeout.as_secs()), (300, 7));
}
