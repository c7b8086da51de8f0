//! A node that stands still until everybody has given it up, and goes on.

use std::time::Duration;

use sluice_tests::history::now_ms;
use sluice_tests::process::Signal;
use sluice_tests::{Crew, Fault, History, SOON, broker, eventually, unique};

use super::{Load, all_work_on_all, cluster, ends_well, others};
use crate::has_committed;

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stood_still_for_a_kafka_session_fences_itself_and_takes_part_again() {
    const SESSIONS: usize = 12;
    const PARTITIONS: i32 = 6;
    let kafka = broker();
    let topic = kafka.topic("zombie", PARTITIONS);
    let group = unique("zombie");
    let cluster = cluster(3, &group, &topic, &[]).await;
    let history = History::default();
    let crew = Crew::by(&cluster.address(), &group, &history).window(5).work(Duration::from_millis(20)).start(SESSIONS);
    let owners = cluster.spread(&group, 6, 3).await;
    let zombie = owners[0];
    let live = others(3, zombie);
    // A backlog: it stops in the middle of work, with leases of its own clients' and of others'.
    let mut produced = all_work_on_all(&history, SESSIONS, kafka, &topic, PARTITIONS).await;
    produced.extend(kafka.fill(&topic, PARTITIONS, 1_500, 64));
    let load = Load::start(kafka, &topic, PARTITIONS);
    has_committed(kafka, &group, &topic, 6).await;

    cluster.lead_to(&live);
    let from_ms = now_ms();
    cluster.nodes[zombie].signal(Signal::Stop);
    let before = kafka.commit_history(&group).len();
    cluster.owned_by(&live, &group, 6).await;
    // The new owners have dealt, and committed, what was the zombie's.
    let own: Vec<i32> = (0..PARTITIONS).zip(&owners).filter(|(_, owner)| **owner == zombie).map(|(at, _)| at).collect();
    eventually("the new owners commit", SOON, async || {
        let commits = kafka.commit_history(&group);
        let by_others = |partition: &i32| commits[before..].iter().any(|one| one.partition == *partition);
        if own.iter().all(by_others) { Ok(()) } else { Err(commits.len()) }
    })
    .await;
    cluster.nodes[zombie].signal(Signal::Cont);
    cluster.knows(2).await;
    cluster.lead_to(&[0, 1, 2]);
    eventually("it fences itself", SOON, async || {
        let fenced = cluster.nodes[zombie].metric("sluice_self_fenced_total", "");
        if fenced == Some(1.0) { Ok(()) } else { Err(fenced) }
    })
    .await;
    cluster.spread(&group, 6, 3).await;
    let fault = Fault { from_ms, until_ms: now_ms() };

    produced.extend(all_work_on_all(&history, SESSIONS, kafka, &topic, PARTITIONS).await);
    produced.extend(load.stop().await);
    ends_well(kafka, &group, &topic, &history, &produced, &[fault]).await;
    crew.stop().await;
}
