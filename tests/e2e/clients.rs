//! Clients that go: killed, frozen, closed in order, and back again.

use std::io::{BufRead as _, BufReader, Lines};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use sluice_proto::v1::consumer_service_client::ConsumerServiceClient;
use sluice_proto::v1::{DrainReason, RejectReason, Rejection, SettleRequest, Subscribe};
use sluice_tests::process::{self, Signal};
use sluice_tests::wire::{Seen, ack, settlement, subscribe};
use sluice_tests::{Crew, Gateway, GatewayConfig, History, SOON, Way, Wire, broker, eventually, unique};
use tonic::transport::Channel;
use tonic_types::StatusExt as _;

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
    assert_eq!(wire.settle_answered(&records[..5], &ack(), false).await, []);
    wire.ack(&again);
    committed_is(kafka, &group, &topic, 10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_that_comes_back_has_lost_is_dealt_to_others_at_once() {
    let kafka = broker();
    let topic = kafka.topic("lost-half", 1);
    kafka.fill(&topic, 1, RECORDS, 32);
    let group = unique("lost-half");
    let gateway = gateway(&group, &topic, &["resume_timeout = \"10m\""]);
    let (way, first, mut wire) = on_a_way_that_can_be_cut(&gateway, &group, &unique("consumer")).await;
    let records = wire.records(RECORDS).await;
    let mut other = Wire::subscribe(&gateway, &group, 10).await;
    way.cut();
    wire.end().await.expect_err("the connection is gone");
    other.barrier().await;
    assert!(other.inbox.is_empty(), "until then they wait for it");
    // It lists what the gateway does not have, too: a lease of an epoch of another life.
    let mine = vec![records[0].range(0, 4)];
    let ghost = sluice_proto::v1::Leases { epoch: records[0].epoch ^ 1, ..records[0].range(0, 9) };
    let holding = [mine.clone(), vec![ghost]].concat();
    let flow = Some(sluice_proto::v1::Flow { max_records: 5, max_bytes: 0 });
    let mut wire = Wire::connect(&gateway, Subscribe { holding, seen: wire.seen, flow, ..first }).await;
    assert_eq!(wire.subscribed.held, mine);
    let rest = other.records(5).await;
    assert_eq!(rest.iter().map(|lease| (lease.offset, lease.attempts)).collect::<Vec<_>>(), {
        (5..10).map(|offset| (offset, 0)).collect::<Vec<_>>()
    });
    wire.ack(&records[..5]);
    other.ack(&rest);
    committed_is(kafka, &group, &topic, 10).await;
}

/// A session over a way, with its first frame.
async fn on_a_way_that_can_be_cut(gateway: &Gateway, group: &str, consumer_id: &str) -> (Way, Subscribe, Wire) {
    let first = Subscribe { consumer_id: consumer_id.to_owned(), ..subscribe(group, 10) };
    let way = Way::to(gateway.address()).await;
    let channel = Channel::from_shared(format!("http://{}", way.address())).expect("an address is a URI");
    let channel = channel.connect().await.expect("connect to the gateway");
    let wire = Wire::open(channel, first.clone()).await.expect("subscribe");
    (way, first, wire)
}

/// What a process without a stream of its own is answered when it acks all for this session.
async fn acked_from_outside(gateway: &Gateway, wire: &Wire, leases: &[sluice_tests::Lease]) -> Vec<Rejection> {
    let mut client = ConsumerServiceClient::new(gateway.channel().await);
    let settlements = leases.iter().map(|lease| settlement(lease.leases(), ack())).collect();
    let session_id = wire.subscribed.session_id.clone();
    let request = SettleRequest { session_id, durable: false, seen: wire.seen, settlements };
    client.settle(request).await.expect("never a status").into_inner().rejections
}

#[tokio::test(flavor = "multi_thread")]
async fn another_process_settles_for_a_session_whose_stream_broke_until_its_resume_timeout() {
    let kafka = broker();
    let topic = kafka.topic("outside", 1);
    kafka.fill(&topic, 1, RECORDS, 32);
    let group = unique("outside");
    let gateway = gateway(&group, &topic, &["resume_timeout = \"5s\""]);
    let id = unique("consumer");
    let (way, _, mut wire) = on_a_way_that_can_be_cut(&gateway, &group, &id).await;
    let records = wire.records(RECORDS).await;
    way.cut();
    wire.end().await.expect_err("the connection is gone");
    eventually("the gateway knows that it broke", SOON, async || {
        let all = gateway.consumers(&group).await;
        if all.len() == 1 && all[0].peer.is_empty() { Ok(()) } else { Err(all) }
    })
    .await;
    assert_eq!(acked_from_outside(&gateway, &wire, &records[..6]).await, [], "with the session's id it may");
    committed_is(kafka, &group, &topic, 6).await;
    eventually("the session is gone", SOON, async || match gateway.consumers(&group).await {
        all if all.is_empty() => Ok(()),
        all => Err(all),
    })
    .await;
    let late = acked_from_outside(&gateway, &wire, &records[6..]).await;
    assert!(!late.is_empty() && late.iter().all(|one| one.reason() == RejectReason::NotHeld), "{late:?}");
    let mut other = Wire::subscribe(&gateway, &group, 10).await;
    let rest = other.records(4).await;
    assert_eq!(rest.iter().map(|lease| lease.offset).collect::<Vec<_>>(), [6, 7, 8, 9], "nothing was done by it");
    other.ack(&rest);
    committed_is(kafka, &group, &topic, 10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_settles_for_a_session_without_a_consumer_id_whose_stream_broke() {
    let kafka = broker();
    let topic = kafka.topic("outside-none", 1);
    kafka.fill(&topic, 1, RECORDS, 32);
    let group = unique("outside-none");
    let gateway = gateway(&group, &topic, &["resume_timeout = \"10m\""]);
    let (way, _, mut wire) = on_a_way_that_can_be_cut(&gateway, &group, "").await;
    let records = wire.records(RECORDS).await;
    let mut other = Wire::subscribe(&gateway, &group, 10).await;
    way.cut();
    wire.end().await.expect_err("the connection is gone");
    let again = other.records(RECORDS).await;
    let late = acked_from_outside(&gateway, &wire, &records).await;
    assert!(!late.is_empty() && late.iter().all(|one| one.reason() == RejectReason::NotHeld), "{late:?}");
    assert_eq!(kafka.committed_offset(&group, &topic, 0).unwrap_or(0), 0);
    other.ack(&again);
    committed_is(kafka, &group, &topic, 10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_gateway_tells_its_streams_to_drain_and_takes_what_they_still_settle() {
    let kafka = broker();
    let topic = kafka.topic("sigterm", 1);
    kafka.fill(&topic, 1, 100, 32);
    let group = unique("sigterm");
    let config = GatewayConfig::new(kafka).node("drain_timeout = \"30s\"");
    let mut gateway = config.subscription(subscription(&group, &[&topic], &[])).start();
    let mut wire = Wire::subscribe(&gateway, &group, 10).await;
    let held = wire.records(10).await;
    gateway.signal(Signal::Term);
    wire.until("it is told to drain", |wire| wire.drained.then_some(())).await;
    assert_eq!(wire.drain_reason, DrainReason::Shutdown);
    let refused = Wire::open(gateway.channel().await, subscribe(&group, 1)).await.expect_err("nobody else comes in");
    let details = refused.get_error_details();
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused:?}");
    assert_eq!(details.error_info().map(|info| info.reason.as_str()), Some("SHUTTING_DOWN"));
    assert!(details.retry_info().is_some(), "elsewhere it may");
    assert_eq!(wire.settle_answered(&held, &ack(), false).await, []);
    wire.half_close();
    wire.end().await.expect("it ends OK");
    assert!(wire.inbox.is_empty(), "it was dealt nothing more");
    assert!(gateway.ended().await.success());
    assert_eq!(kafka.committed_offset(&group, &topic, 0), Some(10), "and all of it is committed");
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
    let details = status.get_error_details();
    let info = details.error_info().expect("it says why");
    assert_eq!(info.reason, "CONSUMER_SUPERSEDED");
    let there = gateway.consumers(&group).await;
    assert_eq!(there.len(), 1, "one window for both: {there:?}");
    assert_eq!(info.metadata.get("peer"), Some(&there[0].peer), "and by whom");
    assert!(details.retry_info().is_none(), "trying again would only supersede the other one");
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
