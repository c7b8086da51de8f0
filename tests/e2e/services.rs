//! What stands around the streams: health, reflection, their age, their number.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use sluice_tests::process::Signal;
use sluice_tests::wire::{Seen, subscribe};
use sluice_tests::{Broker, GatewayConfig, SOON, Wire, broker, eventually, unique};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};
use tonic_types::StatusExt as _;

use crate::{committed_to_the_end, gateway, gateway_on, owns, subscription};

const SERVICE: &str = "sluice.v1.ConsumerService";

fn of(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.to_owned() }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_follows_kafka_by_check_and_by_watch() {
    let broker = Broker::start();
    let kafka = broker.kafka();
    let topic = kafka.topic("health", 1);
    let group = unique("health");
    let gateway = gateway_on(kafka, &group, &[&topic], &[]);
    let mut client = HealthClient::new(gateway.channel().await);
    let mut watch = client.watch(of(SERVICE)).await.expect("watch").into_inner();
    let mut until = async |wanted: ServingStatus| {
        let found = tokio::time::timeout(SOON, async {
            while watch.message().await.expect("the watch lives").expect("it does not end").status() != wanted {}
        });
        found.await.unwrap_or_else(|_| panic!("the watch never says {wanted:?}"));
    };
    until(ServingStatus::Serving).await;
    broker.kill();
    until(ServingStatus::NotServing).await;
    let check = client.check(of(SERVICE)).await.expect("check").into_inner();
    assert_eq!(check.status(), ServingStatus::NotServing);
    let process = client.check(of("")).await.expect("check").into_inner();
    assert_eq!(process.status(), ServingStatus::Serving, "the process itself is well");
    broker.restart();
    until(ServingStatus::Serving).await;
    let unknown = client.check(of("no.such.Service")).await.expect_err("there is none");
    assert_eq!(unknown.code(), tonic::Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_names_every_service_in_both_versions() {
    use tonic_reflection::pb::{v1, v1alpha};
    let gateway = GatewayConfig::new(broker()).start();
    let expected: BTreeSet<String> =
        [SERVICE, "sluice.v1.SubscriptionService", "grpc.health.v1.Health"].map(str::to_owned).into();
    macro_rules! ask {
        ($version:ident, $wanted:expr) => {{
            use $version::server_reflection_request::MessageRequest;
            let mut client = $version::server_reflection_client::ServerReflectionClient::new(gateway.channel().await);
            let request = $version::ServerReflectionRequest { host: String::new(), message_request: Some($wanted) };
            let stream = client.server_reflection_info(tokio_stream::iter([request])).await.expect("reflection");
            let answer = stream.into_inner().message().await.expect("an answer").expect("an answer");
            let _: Option<MessageRequest> = None;
            answer.message_response.expect("a response")
        }};
    }
    let list = v1::server_reflection_request::MessageRequest::ListServices(String::new());
    let v1::server_reflection_response::MessageResponse::ListServicesResponse(found) = ask!(v1, list) else {
        panic!("v1 lists services");
    };
    let names: BTreeSet<String> = found.service.into_iter().map(|one| one.name).collect();
    assert!(names.is_superset(&expected), "{names:?}");
    let list = v1alpha::server_reflection_request::MessageRequest::ListServices(String::new());
    let v1alpha::server_reflection_response::MessageResponse::ListServicesResponse(found) = ask!(v1alpha, list) else {
        panic!("v1alpha lists services");
    };
    let names: BTreeSet<String> = found.service.into_iter().map(|one| one.name).collect();
    assert!(names.is_superset(&expected), "{names:?}");
    let symbol = v1::server_reflection_request::MessageRequest::FileContainingSymbol(format!("{SERVICE}.Consume"));
    let v1::server_reflection_response::MessageResponse::FileDescriptorResponse(file) = ask!(v1, symbol) else {
        panic!("v1 knows the method");
    };
    assert!(!file.file_descriptor_proto.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_at_its_age_is_told_to_drain_keeps_its_leases_and_ends_ok() {
    let kafka = broker();
    let topic = kafka.topic("age", 1);
    kafka.fill(&topic, 1, 10, 32);
    let group = unique("age");
    let gateway = GatewayConfig::new(kafka)
        .node("stream_max_age = \"2s\"")
        .subscription(subscription(&group, &[&topic], &[]))
        .start();
    let mut wire = Wire::subscribe(&gateway, &group, 5).await;
    let held = wire.records(5).await;
    wire.until("it is told to drain", |wire| wire.drained.then_some(())).await;
    assert_eq!(wire.drain_reason, sluice_proto::v1::DrainReason::MaxAge);
    assert_eq!(wire.settle_answered(&held, &sluice_tests::wire::ack(), false).await, [], "it may settle what it has");
    assert!(wire.inbox.is_empty(), "it is dealt nothing more");
    wire.half_close();
    wire.end().await.expect("it ends OK");
    let mut next = Wire::subscribe(&gateway, &group, 5).await;
    let rest = next.records(5).await;
    assert!(rest.iter().all(|lease| lease.attempts == 0));
    next.ack(&rest);
    committed_to_the_end(kafka, &group, &topic).await;
}

/// It has the grace of the drain: its age cuts nothing short.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_reaches_its_age_while_its_node_drains_still_settles() {
    let kafka = broker();
    let topic = kafka.topic("age-drain", 1);
    kafka.fill(&topic, 1, 5, 32);
    let group = unique("age-drain");
    let config = GatewayConfig::new(kafka).node("stream_max_age = \"4s\"").node("drain_timeout = \"60s\"");
    let mut gateway = config.subscription(subscription(&group, &[&topic], &["join = \"at_start\""])).start();
    owns(&gateway, &group, 1).await;
    let start = Instant::now();
    let mut wire = Wire::subscribe(&gateway, &group, 5).await;
    let held = wire.records(5).await;
    gateway.signal(Signal::Term);
    wire.until("it is told to drain", |wire| wire.drained.then_some(())).await;
    while start.elapsed() < Duration::from_secs(7) {
        if let Seen::Ended(end) = wire.read(Duration::from_millis(100)).await {
            panic!("it ends after {:?}: {end:?}", start.elapsed());
        }
    }
    assert_eq!(wire.settle_answered(&held, &sluice_tests::wire::ack(), false).await, []);
    wire.half_close();
    wire.end().await.expect("it ends OK");
    assert!(gateway.ended().await.success());
    committed_to_the_end(kafka, &group, &topic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_stream_too_many_is_refused_and_gets_in_when_another_has_gone() {
    let kafka = broker();
    let topic = kafka.topic("limit", 1);
    let group = unique("limit");
    let gateway =
        GatewayConfig::new(kafka).limits("max_streams = 2").subscription(subscription(&group, &[&topic], &[])).start();
    let first = Wire::subscribe(&gateway, &group, 1).await;
    let mut second = Wire::subscribe(&gateway, &group, 1).await;
    let refused = Wire::open(gateway.channel().await, subscribe(&group, 1)).await.expect_err("two are the limit");
    let details = refused.get_error_details();
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
    assert_eq!(details.error_info().map(|info| info.reason.as_str()), Some("STREAM_LIMIT"));
    assert!(details.retry_info().is_some() && details.quota_failure().is_some(), "{refused:?}");
    second.barrier().await;
    drop(first);
    eventually("a place is free again", SOON, async || {
        Wire::open(gateway.channel().await, subscribe(&group, 1)).await.map(drop)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_gateways_share_a_topic_under_the_roundrobin_assignor() {
    let kafka = broker();
    let topic = kafka.topic("roundrobin", 4);
    let group = unique("roundrobin");
    let lines = ["assignor = \"roundrobin\"", "join = \"at_start\""];
    let one = gateway(&group, &topic, &lines);
    let mut first = Wire::subscribe(&one, &group, 100).await;
    owns(&one, &group, 4).await;
    kafka.fill(&topic, 4, 40, 32);
    let records = first.records(40).await;
    first.ack(&records);
    committed_to_the_end(kafka, &group, &topic).await;
    let other = gateway(&group, &topic, &lines);
    let mut second = Wire::subscribe(&other, &group, 100).await;
    owns(&one, &group, 2).await;
    owns(&other, &group, 2).await;
    kafka.fill(&topic, 4, 40, 32);
    let (mine, others) = tokio::join!(first.records(20), second.records(20));
    first.ack(&mine);
    second.ack(&others);
    committed_to_the_end(kafka, &group, &topic).await;
}
