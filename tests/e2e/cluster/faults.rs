//! Nodes that die, and links that go dark.

use std::time::{Duration, Instant};

use sluice_proto::v1::{RejectReason, Subscribe};
use sluice_tests::history::now_ms;
use sluice_tests::wire::{Wire, ack, subscribe};
use sluice_tests::{Cluster, Crew, Fault, History, SOON, broker, crew, eventually, unique};

use super::{cluster, ends_well, others};
use crate::{committed_to_the_end, has_committed, reaches};

/// The default.
const COMMIT_INTERVAL_MS: u64 = 250;

/// Three nodes with one partition, which somebody owns as a client is there. The other two are edges.
struct OneOwner {
    topic: String,
    group: String,
    cluster: Cluster,
    owner: usize,
    edges: Vec<usize>,
    /// Takes no record.
    _first: Wire,
}

async fn one_owner(name: &str, lines: &[&str]) -> OneOwner {
    let (topic, group) = (broker().topic(name, 1), unique(name));
    let cluster = cluster(3, &group, &topic, lines).await;
    let first = Wire::subscribe(&cluster.nodes[0], &group, 0).await;
    let owner = cluster.owners(&group, 1).await[0];
    OneOwner { topic, group, owner, edges: others(3, owner), cluster, _first: first }
}

/// A crew at work on three nodes.
struct AtWork {
    topic: String,
    group: String,
    cluster: Cluster,
    history: History,
    crew: crew::AtWork,
}

async fn at_work(name: &str, partitions: i32, window: i32, work: Duration, sessions: usize) -> AtWork {
    let (topic, group) = (broker().topic(name, partitions), unique(name));
    let cluster = cluster(3, &group, &topic, &[]).await;
    let history = History::default();
    let crew = Crew::by(&cluster.address(), &group, &history).window(window).work(work).start(sessions);
    AtWork { topic, group, cluster, history, crew }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_is_killed_under_load_loses_nothing() {
    let kafka = broker();
    let scene = at_work("owner-dies", 4, 20, Duration::from_millis(10), 12).await;
    let AtWork { topic, group, mut cluster, history, crew } = scene;
    let dies = cluster.owners(&group, 4).await[0];
    let produced = kafka.fill(&topic, 4, 8_000, 64);
    reaches("work goes on", 2_000, || history.acked_of(&produced)).await;
    has_committed(kafka, &group, &topic, 4).await;
    cluster.lead_to(&others(3, dies));
    // What was acked before the last commit interval, which a busy machine makes longer, is not dealt again.
    let since = now_ms().saturating_sub(u128::from(COMMIT_INTERVAL_MS + 1_500));
    let places = produced.iter().map(|one| (one.topic.clone(), one.partition, one.offset));
    let old: Vec<_> = places.filter(|place| history.acked_at_ms(place).is_some_and(|at| at < since)).collect();
    let before = history.deliveries();
    let fault = Fault::during(|| cluster.nodes[dies].kill());
    ends_well(kafka, &group, &topic, &history, &produced, &[fault]).await;
    let after = history.deliveries();
    let again: Vec<_> = old.iter().filter(|place| after.get(place) != before.get(place)).collect();
    assert!(again.is_empty(), "{} of {} came again: {again:?}", again.len(), old.len());
    crew.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_of_a_consumer_that_does_not_come_back_are_with_others_after_the_resume_timeout() {
    let kafka = broker();
    let scene = one_owner("not-back", &["resume_timeout = \"2s\""]).await;
    let OneOwner { topic, group, mut cluster, owner: _, edges, _first } = scene;
    let first = Subscribe { consumer_id: "c".to_owned(), ..subscribe(&group, 20) };
    let mut dies = Wire::connect(&cluster.nodes[edges[0]], first).await;
    kafka.fill(&topic, 1, 20, 32);
    let held = dies.records(20).await;
    let mut lives = Wire::subscribe(&cluster.nodes[edges[1]], &group, 20).await;
    let start = Instant::now();
    cluster.nodes[edges[0]].kill();
    let again = lives.records(20).await;
    assert!(start.elapsed() > Duration::from_millis(1_500), "it might have come back: {:?}", start.elapsed());
    assert_eq!(again.len(), held.len());
    lives.ack(&again);
    committed_to_the_end(kafka, &group, &topic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_of_an_edge_that_is_killed_are_with_others_within_a_second() {
    let kafka = broker();
    let scene = one_owner("edge-dies", &[]).await;
    let OneOwner { topic, group, mut cluster, owner: _, edges, _first } = scene;
    let mut dies = Wire::subscribe(&cluster.nodes[edges[0]], &group, 20).await;
    kafka.fill(&topic, 1, 20, 32);
    let held = dies.records(20).await;
    let mut lives = Wire::subscribe(&cluster.nodes[edges[1]], &group, 20).await;
    lives.barrier().await;
    assert!(lives.inbox.is_empty());
    cluster.nodes[edges[0]].kill();
    let start = Instant::now();
    let again = lives.records(20).await;
    // Long before any time-out between nodes.
    assert!(start.elapsed() < Duration::from_secs(3), "after {:?}", start.elapsed());
    let offsets = |leases: &[sluice_tests::Lease]| leases.iter().map(|lease| lease.offset).collect::<Vec<_>>();
    assert_eq!(offsets(&again), offsets(&held));
    assert!(again.iter().all(|lease| lease.attempts == 0), "it is nobody's fault");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_of_an_edge_that_is_killed_resumes_through_another_node() {
    let kafka = broker();
    let scene = one_owner("resumes", &["resume_timeout = \"10s\""]).await;
    let OneOwner { topic, group, mut cluster, owner, edges, _first } = scene;
    let first = Subscribe { consumer_id: "c".to_owned(), ..subscribe(&group, 20) };
    let mut dies = Wire::connect(&cluster.nodes[edges[0]], first.clone()).await;
    kafka.fill(&topic, 1, 20, 32);
    let held = dies.records(20).await;
    let (seen, token) = (dies.seen, dies.subscribed.session_id.clone());
    cluster.nodes[edges[0]].kill();
    // It still works on the first ten.
    let holding = vec![held[0].range(held[0].offset, held[9].offset)];
    let second = Subscribe { holding: holding.clone(), seen, ..first };
    let mut lives = Wire::connect(&cluster.nodes[edges[1]], second).await;
    assert_eq!(lives.subscribed.held, holding);
    let rejected = lives.settle_answered(&held[..5], &ack(), true).await;
    assert_eq!(rejected, []);
    // The name that the dead node gave it is still good, on any node.
    let settle = sluice_proto::v1::SettleRequest {
        session_id: token,
        durable: true,
        seen: 0,
        settlements: held[5..10].iter().map(|lease| sluice_tests::wire::settlement(lease.leases(), ack())).collect(),
    };
    let mut client =
        sluice_proto::v1::consumer_service_client::ConsumerServiceClient::new(cluster.nodes[owner].channel().await);
    assert_eq!(client.settle(settle).await.expect("an answer").into_inner().rejections, []);
    let rest = lives.records(10).await;
    let mut offsets: Vec<i64> = rest.iter().map(|lease| lease.offset).collect();
    offsets.sort_unstable();
    assert_eq!(offsets, held[10..].iter().map(|lease| lease.offset).collect::<Vec<_>>(), "dealt again at once");
    assert!(rest.iter().all(|lease| lease.sequence > seen), "numbers go on");
    lives.ack(&rest);
    committed_to_the_end(kafka, &group, &topic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_behind_a_link_that_goes_dark_are_with_others_after_the_peers_timeout() {
    let kafka = broker();
    let scene = one_owner("dark", &[]).await;
    let OneOwner { topic, group, cluster, owner, edges, _first } = scene;
    let mut far = Wire::subscribe(&cluster.nodes[edges[0]], &group, 20).await;
    let mut other = Wire::subscribe(&cluster.nodes[edges[1]], &group, 0).await;
    kafka.fill(&topic, 1, 20, 32);
    let held = far.records(20).await;
    other.flow(20, 0);
    cluster.set_dark(edges[0], owner, true);
    let start = Instant::now();
    let again = other.records(20).await;
    let after = start.elapsed();
    assert!(after > Duration::from_secs(2), "after {after:?}");
    // Whoever had them hears that they are gone, and what it settles all the same is answered.
    far.until("its leases are taken back", |wire| wire.held.is_empty().then_some(())).await;
    let rejected = far.settle_answered(&held, &ack(), false).await;
    assert!(rejected.iter().all(|one| one.reason() == RejectReason::StaleEpoch), "{rejected:?}");
    other.ack(&again);
    committed_to_the_end(kafka, &group, &topic).await;
    // And when there is light again it works as before.
    cluster.set_dark(edges[0], owner, false);
    other.flow(0, 0);
    kafka.fill(&topic, 1, 10, 32);
    let records = far.records(10).await;
    far.ack(&records);
    committed_to_the_end(kafka, &group, &topic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_as_durable_by_another_node_never_comes_again() {
    let kafka = broker();
    let scene = one_owner("durable-far", &[]).await;
    let OneOwner { topic, group, mut cluster, owner, edges, _first } = scene;
    let mut wire = Wire::subscribe(&cluster.nodes[edges[0]], &group, 100).await;
    kafka.fill(&topic, 1, 100, 32);
    let held = wire.records(100).await;
    // Every other one: above a frontier that does not move.
    let (mut durable, mut open) = (Vec::new(), Vec::new());
    for lease in held {
        if lease.offset % 2 == 1 { &mut durable } else { &mut open }.push(lease);
    }
    assert_eq!(wire.settle_answered(&durable, &ack(), true).await, []);
    cluster.nodes[owner].kill();
    wire.until("the rest is taken back", |wire| wire.held.is_empty().then_some(())).await;
    let again = wire.records(open.len()).await;
    let offsets = |leases: &[sluice_tests::Lease]| leases.iter().map(|lease| lease.offset).collect::<Vec<_>>();
    assert_eq!(offsets(&again), offsets(&open));
    assert_eq!(wire.settle_answered(&again, &ack(), true).await, []);
    eventually("nothing is left", SOON, async || match kafka.committed_offset(&group, &topic, 0) {
        Some(100) => Ok(()),
        other => Err(other),
    })
    .await;
    assert!(wire.inbox.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn links_that_are_cut_again_and_again_lose_nothing_and_nobody_starves() {
    let kafka = broker();
    let AtWork { topic, group, cluster, history, crew } = at_work("flapping", 3, 10, Duration::from_millis(5), 9).await;
    cluster.spread(&group, 3, 3).await;
    let produced = kafka.fill(&topic, 3, 6_000, 64);
    // Each of the six ways in turn, while there is work.
    let mut faults = Vec::new();
    for round in 1..=12_usize {
        reaches("work goes on", round * produced.len() / 16, || history.acked_of(&produced)).await;
        let (from, step) = (round % 3, 1 + round % 2);
        faults.push(Fault::during(|| cluster.way(from, (from + step) % 3).cut()));
    }
    ends_well(kafka, &group, &topic, &history, &produced, &faults).await;
    crew.stop().await;
}
