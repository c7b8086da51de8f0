//! The consumer against a node that does what each test tells it.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod fake;
mod settling;

use std::time::Duration;

use fake::{FakeNode, leases, outcomes, soon};
use sluice_client::{Consumer, Error, Event, Record, RevokeReason};
use sluice_proto::v1::{
    self, Drain, DrainReason, consume_request::Request as Frame, consume_response::Response as Reply,
};
use tokio::sync::mpsc;
use tonic::{Code, Status};

const LIMIT: Duration = Duration::from_secs(20);

async fn next(consumer: &mut Consumer) -> Record {
    soon("a record", consumer.next()).await.unwrap().unwrap()
}

async fn event(events: &mut mpsc::Receiver<Event>, wanted: impl Fn(&Event) -> bool) -> Event {
    soon("an event", async {
        loop {
            let event = events.recv().await.unwrap();
            if wanted(&event) {
                return event;
            }
        }
    })
    .await
}

#[tokio::test]
async fn records_come_and_each_outcome_is_written() {
    let mut node = FakeNode::start().await;
    let (mut consumer, mut stream) = node.connect(node.builder().window(10)).await;
    stream.deliver(1..=5).await;
    let record = next(&mut consumer).await;
    assert_eq!((record.topic(), record.partition(), record.offset(), record.epoch()), ("orders", 0, 1, fake::EPOCH));
    assert_eq!(record.value().unwrap().as_ref(), b"1");
    assert_eq!((record.key(), record.attempts(), record.headers().len()), (None, 0, 0));
    record.ack();
    next(&mut consumer).await.retry_after(Duration::from_secs(1));
    next(&mut consumer).await.dead_letter("no use");
    next(&mut consumer).await.release();
    next(&mut consumer).await.extend();
    let settled = stream.settle_until(6).await;
    assert_eq!(settled, [('a', 1), ('r', 2), ('d', 3), ('l', 4), ('e', 5), ('l', 5)]);
}

#[tokio::test]
async fn flush_waits_for_the_answer() {
    let mut node = FakeNode::start().await;
    let (mut consumer, mut stream) = node.connect(node.builder().durable(true)).await;
    stream.deliver([1]).await;
    next(&mut consumer).await.ack();
    let handle = consumer.handle();
    let flush = tokio::spawn(async move { handle.flush().await });
    let settlements = stream.settlements().await;
    assert!(settlements.durable && settlements.request_id != 0 && settlements.seen == 1);
    assert!(!flush.is_finished());
    stream.answer(&settlements).await;
    soon("the flush", flush).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_ping_is_answered_while_the_application_does_nothing() {
    let mut node = FakeNode::start().await;
    let (_consumer, mut stream) = node.connect(node.builder()).await;
    stream.deliver(1..=50).await;
    stream.send(Reply::Ping(v1::Ping {})).await;
    assert!(matches!(stream.frame().await, Some(Frame::Pong(_))));
}

#[tokio::test]
async fn the_window_is_replaced_at_run_time() {
    let mut node = FakeNode::start().await;
    let (consumer, mut stream) = node.connect(node.builder()).await;
    consumer.set_window(7, 1_000);
    let flow = stream.flow().await;
    assert_eq!((flow.max_records, flow.max_bytes), (7, 1_000));
}

#[tokio::test]
async fn a_broken_stream_is_resumed_with_what_both_sides_have() {
    let mut node = FakeNode::start().await;
    let (mut consumer, mut stream) = node.connect(node.builder()).await;
    let mut events = consumer.events().unwrap();
    stream.deliver(1..=6).await;
    let (acked, kept, lost) = (next(&mut consumer).await, next(&mut consumer).await, next(&mut consumer).await);
    acked.ack();
    let unanswered = stream.settlements().await;
    stream.fail(Status::unavailable("gone")).await;

    let mut stream = node.accept().await;
    // 1 was acked without an answer; of 4 to 6, which are still queued, 5 is kept.
    let subscribe = stream.subscribe(vec![leases(&[(2, 2), (5, 5)])]).await;
    assert_eq!((subscribe.consumer_id.as_str(), subscribe.seen), ("me", 1));
    assert_eq!(subscribe.holding, [leases(&[(1, 6)])]);
    let again = stream.settlements().await;
    assert_eq!(again, unanswered);
    stream.answer(&again).await;

    let revoked = event(&mut events, |event| matches!(event, Event::Revoked { .. })).await;
    let Event::Revoked { offsets, reason } = revoked else { unreachable!("asked for it") };
    assert_eq!((offsets.ranges, reason), (vec![(3, 4), (6, 6)], RevokeReason::NotResumed));
    assert!(lost.is_revoked() && !kept.is_revoked());
    let queued = next(&mut consumer).await;
    assert_eq!(queued.offset(), 5);
    lost.ack();
    kept.ack();
    queued.ack();
    // One range: 3 and 4 are no longer ours, so it cannot touch them.
    assert_eq!(stream.settle_until(2).await, [('a', 2), ('a', 3), ('a', 4), ('a', 5)]);
}

#[tokio::test]
async fn what_is_settled_while_there_is_no_stream_is_written_on_the_next() {
    let mut node = FakeNode::start().await;
    let (mut consumer, mut stream) = node.connect(node.builder()).await;
    let mut events = consumer.events().unwrap();
    stream.deliver(1..=3).await;
    let records = [next(&mut consumer).await, next(&mut consumer).await, next(&mut consumer).await];
    stream.fail(Status::unavailable("gone")).await;
    event(&mut events, |event| matches!(event, Event::Disconnected { .. })).await;
    for record in records {
        record.ack();
    }
    let mut stream = node.accept().await;
    stream.subscribe(vec![leases(&[(1, 3)])]).await;
    assert_eq!(stream.settle_until(3).await, [('a', 1), ('a', 2), ('a', 3)]);
}

#[tokio::test]
async fn a_drain_is_finished_before_the_next_stream() {
    let mut node = FakeNode::start().await;
    let (mut consumer, mut stream) = node.connect(node.builder()).await;
    stream.deliver(1..=3).await;
    let worked_on = next(&mut consumer).await;
    let grace = Some(prost_types::Duration { seconds: 600, nanos: 0 });
    stream.send(Reply::Drain(Drain { grace, reason: DrainReason::Shutdown.into() })).await;
    assert_eq!(stream.settle_until(2).await, [('l', 2), ('l', 3)]);
    worked_on.ack();
    assert_eq!(stream.settle_until(1).await, [('a', 1)]);
    assert!(stream.frame().await.is_none(), "half-closed");
    drop(stream);
    let mut stream = node.accept().await;
    let subscribe = stream.subscribe(vec![]).await;
    assert!(subscribe.holding.is_empty());
    stream.deliver([2]).await;
    assert_eq!(next(&mut consumer).await.offset(), 2);
}

#[tokio::test]
async fn work_longer_than_the_grace_is_taken_along() {
    let mut node = FakeNode::start().await;
    let (mut consumer, mut stream) = node.connect(node.builder()).await;
    stream.deliver([1]).await;
    let worked_on = next(&mut consumer).await;
    let grace = Some(prost_types::Duration { seconds: 0, nanos: 1_000_000 });
    stream.send(Reply::Drain(Drain { grace, reason: DrainReason::MaxAge.into() })).await;
    let mut next_stream = node.accept().await;
    let subscribe = next_stream.subscribe(vec![leases(&[(1, 1)])]).await;
    assert_eq!(subscribe.holding, [leases(&[(1, 1)])]);
    worked_on.ack();
    assert_eq!(next_stream.settle_until(1).await, [('a', 1)]);
}

#[tokio::test]
async fn a_status_that_cannot_mend_itself_refuses_the_connection() {
    let mut node = FakeNode::start().await;
    let connecting = tokio::spawn(node.builder().connect());
    node.accept().await.fail(Status::not_found("no such subscription")).await;
    let error = soon("the error", connecting).await.unwrap().err().unwrap();
    assert!(matches!(error, Error::NotFound(_)), "{error}");
}

#[tokio::test]
async fn a_status_that_passes_is_tried_again() {
    let mut node = FakeNode::start().await;
    let connecting = tokio::spawn(node.builder().connect());
    for code in [Code::Unavailable, Code::ResourceExhausted, Code::Internal] {
        node.accept().await.fail(Status::new(code, "for now")).await;
    }
    node.accept().await.subscribe(vec![]).await;
    soon("the consumer", connecting).await.unwrap().unwrap();
}

#[tokio::test]
async fn no_node_is_an_error_that_says_so() {
    let unused = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let builder = Consumer::builder(unused.to_string(), "orders").connect_timeout(Duration::from_millis(300));
    let error = soon("the error", builder.connect()).await.err().unwrap();
    assert!(matches!(&error, Error::Unavailable { last, .. } if last.contains("refused")), "{error}");
    let error = Consumer::builder("http://not an address", "orders").connect().await.err().unwrap();
    assert!(matches!(error, Error::Config(_)), "{error}");
}

#[tokio::test]
async fn a_superseded_consumer_stops_and_its_leases_end() {
    let mut node = FakeNode::start().await;
    let (mut consumer, mut stream) = node.connect(node.builder()).await;
    stream.deliver(1..=2).await;
    let worked_on = next(&mut consumer).await;
    stream.fail(Status::aborted("another stream")).await;
    // The record that is still queued is not given any more.
    let error = soon("the end", async {
        loop {
            match consumer.next().await {
                Ok(Some(record)) => drop(record),
                Ok(None) => panic!("the error comes before the end"),
                Err(error) => return error,
            }
        }
    })
    .await;
    assert!(matches!(error, Error::Superseded(_)), "{error}");
    assert!(worked_on.is_revoked());
    worked_on.ack();
    assert!(consumer.next().await.unwrap().is_none(), "the error is told once");
    assert!(matches!(consumer.flush().await, Err(Error::Superseded(_))));
}

#[tokio::test]
async fn closing_waits_for_the_work_and_gives_back_the_rest() {
    let mut node = FakeNode::start().await;
    let (mut consumer, mut stream) = node.connect(node.builder()).await;
    stream.deliver(1..=3).await;
    let worked_on = next(&mut consumer).await;
    let closing = tokio::spawn(consumer.close(LIMIT));
    assert_eq!(stream.flow().await.max_records, 0);
    assert_eq!(stream.settle_until(2).await, [('l', 2), ('l', 3)]);
    assert!(!closing.is_finished());
    worked_on.ack();
    let last = stream.settlements().await;
    assert_eq!(outcomes(&last), [('a', 1)]);
    stream.answer(&last).await;
    assert!(stream.frame().await.is_none(), "half-closed");
    drop(stream);
    soon("the close", closing).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_handle_closes_what_another_task_reads() {
    let mut node = FakeNode::start().await;
    let (mut consumer, mut stream) = node.connect(node.builder()).await;
    let handle = consumer.handle();
    let reader = tokio::spawn(async move { consumer.next().await });
    let closing = tokio::spawn(async move { handle.close(LIMIT).await });
    assert!(stream.frame().await.is_none(), "half-closed at once: nothing was held");
    drop(stream);
    assert!(soon("the end", reader).await.unwrap().unwrap().is_none());
    soon("the close", closing).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_dropped_consumer_closes_in_the_background() {
    let mut node = FakeNode::start().await;
    let (mut consumer, mut stream) = node.connect(node.builder()).await;
    stream.deliver(1..=2).await;
    let worked_on = next(&mut consumer).await;
    drop(consumer);
    assert_eq!(stream.flow().await.max_records, 0);
    assert_eq!(stream.settle_until(1).await, [('l', 2)]);
    worked_on.ack();
    assert_eq!(stream.settle_until(1).await, [('a', 1)]);
    assert!(stream.frame().await.is_none(), "half-closed");
}

#[tokio::test]
async fn commits_are_told_where_asked_for() {
    let mut node = FakeNode::start().await;
    let (mut consumer, stream) = node.connect(node.builder().report_commits(true)).await;
    let mut events = consumer.events().unwrap();
    stream.send(Reply::Committed(v1::Committed { topic: "orders".to_owned(), partition: 0, offset: 9 })).await;
    let committed = event(&mut events, |event| matches!(event, Event::Committed { .. })).await;
    assert_eq!(committed, Event::Committed { topic: "orders".to_owned(), partition: 0, offset: 9 });
}
