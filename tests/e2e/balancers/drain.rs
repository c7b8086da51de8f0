//! What a node does from SIGTERM on, as balancers see it.

use std::time::{Duration, Instant};

use sluice_tests::balancer::{Kind, Settings};
use sluice_tests::process::Signal;
use sluice_tests::wire::{Wire, subscribe};
use sluice_tests::{Cluster, Crew, GatewayConfig, History, SOON, broker, eventually, unique};
use tonic::Code;
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::{committed_to_the_end, reaches, subscription};

#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_gateway_is_not_ready_and_goes_on_serving_for_the_drain_delay() {
    const DELAY: Duration = Duration::from_secs(4);
    let kafka = broker();
    let topic = kafka.topic("delay", 1);
    let group = unique("delay");
    let config = GatewayConfig::new(kafka).node("drain_delay = \"4s\"").node("drain_timeout = \"20s\"");
    let mut gateway = config.subscription(subscription(&group, &[&topic], &[])).start();
    let mut old = Wire::subscribe(&gateway, &group, 10).await;
    let channel = gateway.channel().await;
    let mut health = HealthClient::new(channel);
    let terminated = Instant::now();
    gateway.signal(Signal::Term);
    eventually("it says that it is not ready", DELAY / 2, async || {
        let service = "sluice.v1.ConsumerService".to_owned();
        let said = health.check(HealthCheckRequest { service }).await.expect("it answers").into_inner().status;
        match (gateway.page("/readyz").0, gateway.page("/healthz").0) {
            (503, 200) if said == ServingStatus::NotServing as i32 => Ok(()),
            (ready, healthy) => Err((ready, healthy, said)),
        }
    })
    .await;
    // Whoever a balancer still leads here is served, and so is who was here before.
    let mut new = Wire::subscribe(&gateway, &group, 10).await;
    kafka.fill(&topic, 1, 20, 32);
    let held = (old.records(10).await, new.records(10).await);
    assert!(!old.drained && !new.drained && terminated.elapsed() < DELAY, "after {:?}", terminated.elapsed());
    old.until("the old stream is told to drain", |wire| wire.drained.then_some(())).await;
    assert!(terminated.elapsed() >= DELAY, "after {:?}", terminated.elapsed());
    new.until("the new stream is told to drain", |wire| wire.drained.then_some(())).await;
    for (wire, held) in [(&mut old, held.0), (&mut new, held.1)] {
        wire.ack(&held);
        wire.half_close();
        wire.end().await.expect("it ends OK");
    }
    assert!(gateway.ended().await.success());
    assert!(terminated.elapsed() < DELAY + Duration::from_secs(20), "nobody was waited for");
    committed_to_the_end(kafka, &group, &topic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_settles_holds_a_terminated_gateway_up_until_the_drain_timeout_and_no_longer() {
    let kafka = broker();
    let topic = kafka.topic("deadline", 1);
    kafka.fill(&topic, 1, 10, 32);
    let group = unique("deadline");
    let config = GatewayConfig::new(kafka).node("drain_delay = \"1s\"").node("drain_timeout = \"5s\"");
    let mut gateway = config.subscription(subscription(&group, &[&topic], &[])).start();
    let mut wire = Wire::subscribe(&gateway, &group, 10).await;
    wire.records(10).await;
    let terminated = Instant::now();
    gateway.signal(Signal::Term);
    wire.end().await.expect("it ends OK");
    assert!(gateway.ended().await.success());
    let took = terminated.elapsed();
    // Both together, and what closing takes, on a busy machine too.
    assert!(took > Duration::from_secs(4) && took < Duration::from_secs(12), "it took {took:?}");
    assert_eq!(kafka.committed_offset(&group, &topic, 0).unwrap_or(0), 0, "nothing was done");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_a_cluster_that_drains_takes_no_connection_and_settles_what_it_has() {
    let kafka = broker();
    let topic = kafka.topic("refuses", 2);
    let group = unique("refuses");
    let config = GatewayConfig::new(kafka).subscription(subscription(&group, &[&topic], &[]));
    let mut cluster = Cluster::start(&config, 2).await;
    cluster.knows(1).await;
    let mut wire = Wire::subscribe(&cluster.nodes[0], &group, 10).await;
    kafka.fill(&topic, 2, 10, 32);
    let held = wire.records(10).await;
    cluster.nodes[0].signal(Signal::Term);
    wire.until("it is told to drain", |wire| wire.drained.then_some(())).await;
    let endpoint = tonic::transport::Channel::from_shared(format!("http://{}", cluster.nodes[0].address()));
    let endpoint = endpoint.expect("an address is a URI");
    eventually("connections are refused, so that balancers go on to the next node", SOON, async || {
        let Ok(channel) = endpoint.connect().await else { return Ok(()) };
        // One that was accepted just before the listener closed is told that nobody else comes in.
        let refused = Wire::open(channel, subscribe(&group, 1)).await.expect_err("it drains");
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
        Err("a connection")
    })
    .await;
    let mut other = Wire::subscribe(&cluster.nodes[1], &group, 10).await;
    assert_eq!(wire.settle_answered(&held, &sluice_tests::wire::ack(), false).await, []);
    wire.half_close();
    wire.end().await.expect("it ends OK");
    assert!(cluster.nodes[0].ended().await.success());
    committed_to_the_end(kafka, &group, &topic).await;
    kafka.fill(&topic, 2, 10, 32);
    let rest = other.records(10).await;
    other.ack(&rest);
    committed_to_the_end(kafka, &group, &topic).await;
}

/// Nothing moves a stream that is well; its age does.
#[tokio::test(flavor = "multi_thread")]
async fn streams_that_reach_their_age_spread_over_a_node_that_came_later() {
    let kafka = broker();
    let (topic, group) = (kafka.topic("later", 3), unique("later"));
    let config = GatewayConfig::new(kafka).node("stream_max_age = \"2s\"").node("drain_timeout = \"20s\"");
    let mut cluster = Cluster::start(&config.subscription(subscription(&group, &[&topic], &[])), 3).await;
    cluster.nodes[2].signal(Signal::Term);
    assert!(cluster.nodes[2].ended().await.success());
    let balancer = Settings::of(Kind::Haproxy).start(&cluster.nodes).await;
    let history = History::default();
    let crew = Crew::by(balancer.address(), &group, &history).window(10).work(Duration::from_millis(20)).start(12);
    cluster.spread(&group, 3, 2).await;
    let produced = kafka.fill(&topic, 3, 6_000, 32);
    reaches("the clients of two nodes work", 500, || history.acked_of(&produced)).await;
    cluster.nodes[2].restart();
    eventually("a fair part of the clients is on the third", SOON, async || {
        let consumers = cluster.nodes[0].consumers(&group).await;
        let there = consumers.iter().filter(|one| one.node == "node-2").count();
        if there >= 3 { Ok(()) } else { Err(format!("{there} of {}", consumers.len())) }
    })
    .await;
    reaches("all are acked", produced.len(), || history.acked_of(&produced)).await;
    committed_to_the_end(kafka, &group, &topic).await;
    history.check_no_loss(&produced);
    history.check_no_duplicates();
    history.check_one_holder();
    history.check_commits(kafka, &group, &produced);
    crew.stop().await;
}
