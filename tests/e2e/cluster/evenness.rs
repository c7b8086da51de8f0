//! How work is spread over clients and partitions.

use std::time::Duration;

use sluice_tests::balancer::{Kind, Settings};
use sluice_tests::{Crew, History, SOON, broker, eventually, unique};

use super::{cluster, others};
use crate::{committed_to_the_end, reaches};

const PARTITIONS: i32 = 12;

#[tokio::test(flavor = "multi_thread")]
async fn three_hundred_clients_behind_a_balancer_all_work_and_evenly() {
    const SESSIONS: usize = 300;
    const EACH: usize = 40;
    let kafka = broker();
    let topic = kafka.topic("even", PARTITIONS);
    let group = unique("even");
    let cluster = cluster(3, &group, &topic, &[]).await;
    let balancer = Settings::of(Kind::Haproxy).start(&cluster.nodes).await;
    let history = History::default();
    // Slow enough that the clients are what there is too little of, and not the nodes.
    let crew = Crew::by(balancer.address(), &group, &history).window(5).work_at_once(Duration::from_millis(800));
    let crew = crew.start(SESSIONS);
    cluster.spread(&group, 12, 3).await;
    eventually("the clients are there, a fair part on each node", SOON, async || {
        let streams = cluster.nodes.iter().map(|node| node.metric("sluice_edge_streams", "").unwrap_or_default());
        let streams: Vec<f64> = streams.collect();
        let is_fair = streams.iter().all(|of| *of >= SESSIONS as f64 / 4.0);
        if streams.iter().sum::<f64>() == SESSIONS as f64 && is_fair { Ok(()) } else { Err(streams) }
    })
    .await;
    let produced = kafka.fill(&topic, PARTITIONS, SESSIONS * EACH * 3 / 2, 32);
    let shares = eventually("each has had its records", Duration::from_secs(120), async || {
        let shares: Vec<usize> = history.done_since(0).into_values().collect();
        if shares.len() == SESSIONS && shares.iter().all(|share| *share >= EACH) { Ok(shares) } else { Err(shares) }
    })
    .await;
    let (least, most) = (shares.iter().min().expect("sessions"), shares.iter().max().expect("sessions"));
    println!("from {least} to {most} records a client");
    assert!(*most * 2 <= *least * 3, "from {least} to {most}: {shares:?}");
    reaches("all are acked", produced.len(), || history.acked_of(&produced)).await;
    committed_to_the_end(kafka, &group, &topic).await;
    history.check_no_duplicates();
    history.check_one_holder();
    history.check_commits(kafka, &group, &produced);
    crew.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_of_three_owners_are_worked_off_evenly_by_clients_that_are_all_on_one_node() {
    const RECORDS: usize = 9_600;
    let kafka = broker();
    let topic = kafka.topic("one-door", PARTITIONS);
    let group = unique("one-door");
    let cluster = cluster(3, &group, &topic, &[]).await;
    let history = History::default();
    cluster.lead_to(&[0]);
    let crew = Crew::by(&cluster.address(), &group, &history).window(10).work(Duration::from_millis(20)).start(30);
    cluster.spread(&group, 12, 3).await;
    let produced = kafka.fill(&topic, PARTITIONS, RECORDS, 32);
    reaches("half of it is done", RECORDS / 2, || history.acked_of(&produced)).await;
    let done: Vec<usize> = (0..PARTITIONS)
        .map(|at| produced.iter().filter(|one| one.partition == at && history.has_acked(one)).count())
        .collect();
    println!("{least} of {done:?}", least = done.iter().min().expect("partitions"));
    // Its own node's come first; the others get no less than a third of an even share.
    let share = RECORDS / 2 / done.len();
    assert!(done.iter().all(|done| done * 3 >= share), "a partition starves: {done:?}");
    reaches("all are acked", RECORDS, || history.acked_of(&produced)).await;
    committed_to_the_end(kafka, &group, &topic).await;
    history.check_no_duplicates();
    history.check_one_holder();
    history.check_commits(kafka, &group, &produced);
    for node in others(3, 0) {
        let delivered = cluster.nodes[node].metric("sluice_edge_records_delivered_total", "");
        assert_eq!(delivered, Some(0.0), "no client is there");
    }
    let relayed = cluster.nodes[0].metric("sluice_edge_records_delivered_total", "other_nodes");
    let local = cluster.nodes[0].metric("sluice_edge_records_delivered_total", "this_node");
    assert!(relayed > Some(0.0) && local > Some(0.0), "relayed {relayed:?}, local {local:?}");
    crew.stop().await;
}
