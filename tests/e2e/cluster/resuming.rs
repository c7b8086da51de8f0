//! A client that comes back by another node than its leases' owner.

use sluice_proto::v1::consume_request::Request;
use sluice_proto::v1::consume_response::Response;
use sluice_proto::v1::consumer_service_client::ConsumerServiceClient;
use sluice_proto::v1::{ConsumeRequest, Settlements, Subscribe};
use sluice_tests::wire::{Wire, ack, settlement, subscribe};
use sluice_tests::{SOON, broker, unique};
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::{cluster, others};
use crate::committed_to_the_end;

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_that_resumes_says_before_it_closes_is_heard() {
    let kafka = broker();
    let (topic, group) = (kafka.topic("last-word", 1), unique("last-word"));
    let cluster = cluster(2, &group, &topic, &["resume_timeout = \"20s\""]).await;
    let _first = Wire::subscribe(&cluster.nodes[0], &group, 0).await;
    let owner = cluster.owners(&group, 1).await[0];
    let edge = others(2, owner)[0];
    let first = Subscribe { consumer_id: "c".to_owned(), ..subscribe(&group, 20) };
    let mut wire = Wire::connect(&cluster.nodes[edge], first.clone()).await;
    kafka.fill(&topic, 1, 20, 32);
    let held = wire.records(20).await;
    let seen = wire.seen;
    let range = held[0].range(held[0].offset, held[19].offset);
    // It is greeted when the owner has said what it holds.
    cluster.way(edge, owner).set_delay(std::time::Duration::from_millis(50));
    // Comes back, acks all, and closes its side: in one breath.
    let (requests, outgoing) = tokio::sync::mpsc::unbounded_channel();
    let second = Subscribe { holding: vec![range.clone()], seen, ..first };
    let settle = Settlements { request_id: 1, durable: false, seen, settlements: vec![settlement(range, ack())] };
    for request in [Request::Subscribe(second), Request::Settle(settle)] {
        requests.send(ConsumeRequest { request: Some(request) }).expect("open");
    }
    drop(requests);
    let mut client = ConsumerServiceClient::new(cluster.nodes[edge].channel().await);
    let stream = UnboundedReceiverStream::new(outgoing);
    let mut responses = client.consume(stream).await.expect("a stream").into_inner();
    let mut said = Vec::new();
    let end = loop {
        match tokio::time::timeout(SOON, responses.message()).await.expect("a word") {
            Ok(Some(frame)) => said.push(frame),
            Ok(None) => break Ok(()),
            Err(status) => break Err(status),
        }
    };
    let answer = said.iter().find_map(|frame| match &frame.response {
        Some(Response::Settled(settled)) if settled.request_id == 1 => Some(settled.rejections.clone()),
        _ => None,
    });
    assert_eq!(answer, Some(Vec::new()), "{end:?} {said:?}");
    committed_to_the_end(kafka, &group, &topic).await;
}
