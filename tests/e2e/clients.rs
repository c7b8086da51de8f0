//! Clients that go: killed, frozen, closed in order, and back again.

use std::io::{BufRead as _, BufReader, Lines};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use sluice_proto::v1::Subscribe;
use sluice_tests::process::{self, Signal};
use sluice_tests::wire::{Seen, subscribe};
use sluice_tests::{Crew, Gateway, GatewayConfig, History, Way, Wire, broker, unique};
use tonic::transport::Channel;

use crate::{committed_is, committed_to_the_end, gateway, reaches, subscription};

const RECORDS: usize = 10;

/// A client as a process of its own that holds what it is dealt.
struct Client {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Client {
    fn start(gateway: &Gateway, subscription: &str, consumer_id: Option<&str>) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluice-test-client"));
        command.args([gateway.address(), subscription, &RECORDS.to_string()]).args(consumer_id).stdout(Stdio::piped());
        let mut child = process::spawn(command).expect("start a client");
        let lines = BufReader::new(child.stdout.take().expect("stdout is a pipe")).lines();
        Self { child, lines }
    }

    /// Reads until it has printed so many records.
    fn records(&mut self, count: usize) {
        let record = |line: &String| line.contains("\"record\"");
        let read = self.lines.by_ref().map_while(Result::ok).filter(record).take(count).count();
        assert_eq!(read, count, "the client ended before it had its records");
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        process::signal(&self.child, Signal::Kill);
        let _ = self.child.wait();
    }
}

/// A gateway, a client that holds all records of a topic, and a session with room.
async fn held_by_a_client(
    name: &str,
    consumer_id: Option<&str>,
    lines: &[&str],
) -> (String, String, Gateway, Client, Wire) {
    let kafka = broker();
    let topic = kafka.topic(name, 1);
    kafka.fill(&topic, 1, RECORDS, 32);
    let group = unique(name);
    let gateway = gateway(&group, &topic, lines);
    let mut client = Client::start(&gateway, &group, consumer_id);
    client.records(RECORDS);
    let mut other = Wire::subscribe(&gateway, &group, i32::try_from(RECORDS).expect("small")).await;
    other.barrier().await;
    assert!(other.inbox.is_empty(), "the client holds them all");
    (topic, group, gateway, client, other)
}

/// The other session is dealt all of them, as untried, and they are done when it says so.
async fn taken_over(topic: &str, group: &str, other: &mut Wire) {
    let records = other.records(RECORDS).await;
    assert!(records.iter().all(|lease| lease.attempts == 0), "nobody failed at them: {records:?}");
    other.ack(&records);
    committed_is(broker(), group, topic, i64::try_from(RECORDS).expect("small")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leases_of_a_killed_client_come_to_others() {
    // No timeout of this test would end the wait if the break itself did not.
    let lines = ["session_timeout = \"10m\"", "resume_timeout = \"10m\""];
    let (topic, group, _gateway, client, mut other) = held_by_a_client("killed-client", None, &lines).await;
    drop(client);
    taken_over(&topic, &group, &mut other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leases_of_a_killed_client_with_a_consumer_id_come_to_others_after_the_resume_timeout() {
    let id = unique("consumer");
    let lines = ["session_timeout = \"10m\"", "resume_timeout = \"2s\""];
    let (topic, group, gateway, client, mut other) = held_by_a_client("killed-resumable", Some(&id), &lines).await;
    drop(client);
    // Until then they wait for it, and the session is still shown.
    let waiting = gateway.consumers(&group).await;
    assert!(waiting.iter().any(|one| one.consumer_id == id) || !other.inbox.is_empty(), "{waiting:?}");
    taken_over(&topic, &group, &mut other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leases_of_a_frozen_client_come_to_others_after_the_session_timeout() {
    let lines = ["session_timeout = \"2s\"", "resume_timeout = \"10m\""];
    let (topic, group, _gateway, client, mut other) = held_by_a_client("frozen-client", None, &lines).await;
    process::signal(&client.child, Signal::Stop);
    taken_over(&topic, &group, &mut other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_closed_session_returns_its_leases_at_once_and_uncounted() {
    let kafka = broker();
    let topic = kafka.topic("half-close", 1);
    kafka.fill(&topic, 1, RECORDS, 32);
    let group = unique("half-close");
    let gateway = gateway(&group, &topic, &["session_timeout = \"10m\"", "resume_timeout = \"10m\""]);
    let first = Subscribe { consumer_id: unique("consumer"), ..subscribe(&group, 10) };
    let mut leaving = Wire::connect(&gateway, first).await;
    leaving.records(RECORDS).await;
    let mut other = Wire::subscribe(&gateway, &group, 10).await;
    leaving.half_close();
    assert!(leaving.end().await.is_ok(), "a half-close ends with OK");
    taken_over(&topic, &group, &mut other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_comes_back_in_time_keeps_what_both_sides_have() {
    let kafka = broker();
    let topic = kafka.topic("resumed", 1);
    kafka.fill(&topic, 1, RECORDS, 32);
    let group = unique("resumed");
    let gateway = gateway(&group, &topic, &["resume_timeout = \"10m\""]);
    let first = Subscribe { consumer_id: unique("consumer"), ..subscribe(&group, 10) };
    let way = Way::to(gateway.address()).await;
    let channel = Channel::from_shared(format!("http://{}", way.address())).expect("an address is a URI");
    let channel = channel.connect().await.expect("connect to the gateway");
    let mut wire = Wire::open(channel, first.clone()).await.expect("subscribe");
    let records = wire.records(RECORDS).await;
    let (session_id, seen) = (wire.subscribed.session_id.clone(), wire.seen);
    way.cut();
    wire.end().await.expect_err("the connection is gone");
    // It lost the upper half.
    let holding = vec![records[0].range(0, 4)];
    let mut wire = Wire::connect(&gateway, Subscribe { holding: holding.clone(), seen, ..first }).await;
    assert_eq!(wire.subscribed.session_id, session_id, "it is the same session");
    assert_eq!(wire.subscribed.held, holding, "what both sides have");
    let again = wire.records(5).await;
    let offsets: Vec<_> = again.iter().map(|lease| lease.offset).collect();
    assert_eq!(offsets, [5, 6, 7, 8, 9], "all else is dealt again");
    assert!(again.iter().all(|lease| lease.sequence > seen), "numbering goes on");
    assert_eq!(wire.settle_answered(&records[..5], &sluice_tests::wire::ack(), false).await, []);
    wire.ack(&again);
    committed_is(kafka, &group, &topic, 10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_stream_of_a_consumer_supersedes_the_first() {
    let kafka = broker();
    let topic = kafka.topic("superseded", 1);
    kafka.fill(&topic, 1, 1, 32);
    let group = unique("superseded");
    let gateway = gateway(&group, &topic, &[]);
    let first = Subscribe { consumer_id: unique("consumer"), ..subscribe(&group, 10) };
    let mut old = Wire::connect(&gateway, first.clone()).await;
    let lease = old.record().await;
    let mut new = Wire::connect(&gateway, Subscribe { holding: vec![lease.leases()], seen: old.seen, ..first }).await;
    let status = old.end().await.expect_err("the old stream is ended");
    assert_eq!(status.code(), tonic::Code::Aborted, "{status:?}");
    assert_eq!(new.subscribed.held, [lease.leases()]);
    new.ack(&[lease]);
    committed_is(kafka, &group, &topic, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_does_not_answer_pings_is_ended() {
    let kafka = broker();
    let topic = kafka.topic("silent", 1);
    let group = unique("silent");
    let gateway = gateway(&group, &topic, &["session_timeout = \"2s\""]);
    let mut wire = Wire::subscribe(&gateway, &group, 1).await;
    wire.answers_pings = false;
    let status = wire.end().await.expect_err("silence ends it");
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}");
    assert!(wire.pings >= 1, "it was asked before");
    let mut answering = Wire::subscribe(&gateway, &group, 1).await;
    answering.until("it lives on Pongs alone", |wire| (wire.pings >= 5).then_some(())).await;
    assert!(matches!(answering.read(Duration::from_millis(1)).await, Seen::Nothing | Seen::Frame));
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_reach_their_age_are_drained_and_nothing_comes_twice() {
    const COUNT: usize = 2_000;
    let kafka = broker();
    let topic = kafka.topic("aged", 2);
    let group = unique("aged");
    let gateway = GatewayConfig::new(kafka)
        .node("stream_max_age = \"1s\"")
        .subscription(subscription(&group, &[&topic], &[]))
        .start();
    let mut one = Wire::subscribe(&gateway, &group, 0).await;
    one.until("it is told to drain", |wire| wire.drained.then_some(())).await;
    one.half_close();
    assert!(one.end().await.is_ok(), "a planned end is OK");
    let history = History::default();
    let crew = Crew::new(&gateway, &group, &history).window(5).work(Duration::from_millis(10)).start(3);
    let produced = kafka.fill(&topic, 2, COUNT, 32);
    reaches("all are acked over several streams", COUNT, || history.acked_of(&produced)).await;
    history.check_no_duplicates();
    committed_to_the_end(kafka, &group, &topic).await;
    crew.stop().await;
}
