//! Streams through each balancer: what by its defaults would cut, stop or change them.

use std::time::{Duration, Instant};

use sluice_proto::v1::{Leases, OffsetRange, Settlements};
use sluice_tests::balancer::{Kind, Settings};
use sluice_tests::wire::{Seen, Wire, ack, settlement, subscribe};
use sluice_tests::{Balancer, Gateway, GatewayConfig, broker, unique};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::{committed_to_the_end, gateway, subscription};

async fn open(balancer: &Balancer, name: &str, window: i32) -> Wire {
    let channel = balancer.channel().await;
    Wire::open(channel, subscribe(name, window)).await.unwrap_or_else(|status| panic!("subscribe: {status:?}"))
}

/// A gateway that pings silent streams this often, and a balancer that cuts what is silent for three seconds.
async fn impatient(kind: Kind, name: &str, topic: &str, ping_interval: &str) -> (Gateway, Balancer) {
    let config = GatewayConfig::new(broker()).node(&format!("ping_interval = {ping_interval:?}"));
    let gateway = config.subscription(subscription(name, &[topic], &[])).start();
    gateway.ready().await;
    let settings = Settings::of(kind).idle_timeout(Duration::from_secs(3));
    let balancer = settings.start(std::slice::from_ref(&gateway)).await;
    (gateway, balancer)
}

async fn pings_keep_an_idle_stream_alive(kind: Kind) {
    let kafka = broker();
    let topic = kafka.topic("idle", 1);
    let (pinged, silent) = (unique("pinged"), unique("silent"));
    let (_gateway, balancer) = impatient(kind, &pinged, &topic, "1s").await;
    let (_other, cuts) = impatient(kind, &silent, &topic, "20s").await;
    let mut lives = open(&balancer, &pinged, 10).await;
    let mut dies = open(&cuts, &silent, 10).await;
    let start = Instant::now();
    let status = dies.end().await.expect_err("without pings it is cut");
    let cut_after = start.elapsed();
    assert!(cut_after < Duration::from_secs(15), "by the balancer, not by the gateway: {cut_after:?}");
    eprintln!(
        "{kind:?}: a stream without pings was cut after {cut_after:?}: {:?}: {}",
        status.code(),
        status.message()
    );
    while start.elapsed() < Duration::from_secs(12) {
        if let Seen::Ended(end) = lives.read(Duration::from_millis(200)).await {
            panic!("the stream with pings ended after {:?}: {end:?}", start.elapsed());
        }
    }
    assert!(lives.pings >= 5, "{} pings", lives.pings);
    kafka.fill(&topic, 1, 10, 32);
    let records = lives.records(10).await;
    lives.ack(&records);
    committed_to_the_end(kafka, &pinged, &topic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_keep_an_idle_stream_alive_through_haproxy() {
    pings_keep_an_idle_stream_alive(Kind::Haproxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_keep_an_idle_stream_alive_through_nginx() {
    pings_keep_an_idle_stream_alive(Kind::Nginx).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_keep_an_idle_stream_alive_through_envoy() {
    pings_keep_an_idle_stream_alive(Kind::Envoy).await;
}

/// The longest that a gateway may be told to stay silent, and a client's answer, and then some.
#[test]
fn a_silence_that_balancers_cut_is_longer_than_any_that_nodes_allow() {
    for kind in Kind::ALL {
        for (setting, timeout) in Settings::of(kind).idle_timeouts() {
            assert!(timeout >= Duration::from_secs(45), "{}: {setting} is {timeout:?}", kind.file());
        }
    }
}

async fn nothing_stops_a_stream(kind: Kind) {
    const STREAMS: usize = 300;
    let kafka = broker();
    let topic = kafka.topic("through", 1);
    let group = unique("through");
    let gateway = gateway(&group, &topic, &[]);
    gateway.ready().await;
    let balancer = Settings::of(kind).start(std::slice::from_ref(&gateway)).await;

    // What the gateway says of a stream arrives as it was said.
    let nobody = Wire::open(balancer.channel().await, subscribe("nobody", 1)).await.expect_err("there is none");
    assert_eq!(nobody.code(), Code::NotFound, "{nobody:?}");
    assert_eq!(
        nobody.get_error_details().error_info().map(|info| info.reason.as_str()),
        Some("SUBSCRIPTION_NOT_FOUND")
    );

    // As many streams on one connection as the gateway takes, and none waits.
    let before = (gateway.rss(), balancer.rss());
    let shared = balancer.channel().await;
    let mut many = Vec::new();
    for _ in 0..STREAMS {
        many.push(Wire::open(shared.clone(), subscribe(&group, 0)).await.expect("a stream"));
    }
    assert_eq!(gateway.metric("sluice_streams", ""), Some(STREAMS as f64));
    let each = |now: u64, before: u64| now.saturating_sub(before) / STREAMS as u64;
    let (here, there) = (each(gateway.rss(), before.0), each(balancer.rss(), before.1));
    eprintln!("{kind:?}: {here} bytes a stream in the gateway, {there} in the balancer");
    drop(many);

    // A client that stops reading holds up nobody, whether it shares a connection or not.
    let stalled = Wire::open(shared.clone(), subscribe(&group, 400)).await.expect("a stream");
    let mut neighbour = Wire::open(shared, subscribe(&group, 20)).await.expect("a stream");
    let mut wire = open(&balancer, &group, 20).await;
    kafka.fill(&topic, 1, 1_200, 16 << 10);
    for _ in 0..10 {
        for wire in [&mut wire, &mut neighbour] {
            let records = wire.records(20).await;
            wire.ack(&records);
        }
    }
    drop(stalled);
    drop(neighbour);

    // A client may send more than a mebibyte.
    let long =
        Leases { topic: "t".repeat(60_000), offsets: vec![OffsetRange { first: 0, last: None }], ..Leases::default() };
    for _ in 0..50 {
        let asked = Settlements { settlements: vec![settlement(long.clone(), ack())], ..Settlements::default() };
        assert_eq!(wire.ask(asked).await.len(), 1, "it holds nothing of that");
    }

    // And it ends OK, with all that it settled.
    let rest: Vec<_> = wire.inbox.drain(..).collect();
    wire.ack(&rest);
    wire.half_close();
    wire.end().await.expect("it ends OK");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_stops_a_stream_through_haproxy() {
    nothing_stops_a_stream(Kind::Haproxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_stops_a_stream_through_nginx() {
    nothing_stops_a_stream(Kind::Nginx).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_stops_a_stream_through_envoy() {
    nothing_stops_a_stream(Kind::Envoy).await;
}

async fn a_client_is_told_unavailable_when_no_node_answers(kind: Kind) {
    let kafka = broker();
    let topic = kafka.topic("nobody", 1);
    let group = unique("nobody");
    let mut gateway = gateway(&group, &topic, &[]);
    gateway.ready().await;
    let balancer = Settings::of(kind).start(std::slice::from_ref(&gateway)).await;
    let mut wire = open(&balancer, &group, 1).await;
    gateway.kill();
    let cut = wire.end().await.expect_err("its node is gone");
    eprintln!("{kind:?}: a stream whose node was killed ends with {:?}: {}", cut.code(), cut.message());
    let channel = balancer.channel().await;
    let (start, mut told) = (Instant::now(), std::collections::BTreeSet::new());
    // Before and after the balancer takes notice.
    while start.elapsed() < Duration::from_secs(5) {
        let refused = Wire::open(channel.clone(), subscribe(&group, 1)).await.expect_err("nobody is there");
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
        told.insert(refused.message().to_owned());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    eprintln!("{kind:?}: without a node a client is told UNAVAILABLE: {told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_told_unavailable_when_no_node_answers_haproxy() {
    a_client_is_told_unavailable_when_no_node_answers(Kind::Haproxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_told_unavailable_when_no_node_answers_nginx() {
    a_client_is_told_unavailable_when_no_node_answers(Kind::Nginx).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_told_unavailable_when_no_node_answers_envoy() {
    a_client_is_told_unavailable_when_no_node_answers(Kind::Envoy).await;
}
