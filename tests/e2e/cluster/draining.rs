//! A node of a cluster that is told to end. Sessions check that no record comes behind a Drain.

use std::time::Duration;

use sluice_tests::process::Signal;
use sluice_tests::{Cluster, Crew, History, Produced, broker, unique};

use super::{cluster, others};
use crate::{committed_to_the_end, reaches};

const WORK: Duration = Duration::from_millis(20);

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_is_terminated_under_load_hands_over_without_a_duplicate() {
    let (group, topic) = (unique("rolls"), broker().topic("rolls", 4));
    let mut cluster = cluster(3, &group, &topic, &[]).await;
    let history = History::default();
    let crew = crew(&cluster, &group, &history).start(9);
    // All three have joined before the first record is there: no duplicate has an excuse.
    let leaves = cluster.spread(&group, 4, 3).await[0];
    let produced = broker().fill(&topic, 4, 6_000, 32);
    is_terminated(&mut cluster, leaves, &group, &topic, &produced, &history).await;
    crew.stop().await;
}

/// What the owner dealt before it knew of the drain is still under way when the edge's clients are to drain.
#[tokio::test(flavor = "multi_thread")]
async fn clients_of_an_edge_that_drains_behind_a_slow_link_hear_so_behind_their_last_record() {
    an_edge_is_terminated("rolls-slowly", Duration::from_millis(100), WORK, 2_000).await;
}

/// Clients are told to drain without a word from the owner; what comes from it later goes back unseen.
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_from_an_owner_too_late_for_a_client_that_drains_is_given_back() {
    an_edge_is_terminated("rolls-late", Duration::from_millis(700), Duration::from_millis(1_500), 600).await;
}

async fn an_edge_is_terminated(name: &str, delay: Duration, work: Duration, records: usize) {
    let (group, topic) = (unique(name), broker().topic(name, 1));
    let mut cluster = cluster(3, &group, &topic, &[]).await;
    let history = History::default();
    let first = crew(&cluster, &group, &history).start(1);
    let owner = cluster.owners(&group, 1).await[0];
    first.stop().await;
    let edges = others(3, owner);
    cluster.lead_to(&edges);
    cluster.way(edges[0], owner).set_delay(delay);
    let crew = crew(&cluster, &group, &history).work(work).start(8);
    let produced = broker().fill(&topic, 1, records, 32);
    is_terminated(&mut cluster, edges[0], &group, &topic, &produced, &history).await;
    crew.stop().await;
}

fn crew(cluster: &Cluster, group: &str, history: &History) -> Crew {
    Crew::by(&cluster.address(), group, history).window(20).work(WORK)
}

/// In the middle of these records.
async fn is_terminated(
    cluster: &mut Cluster,
    leaves: usize,
    group: &str,
    topic: &str,
    produced: &[Produced],
    history: &History,
) {
    let (kafka, records) = (broker(), produced.len());
    reaches("all are at work", records / 4, || history.acked_of(produced)).await;
    cluster.lead_to(&others(3, leaves));
    cluster.nodes[leaves].signal(Signal::Term);
    assert!(cluster.nodes[leaves].ended().await.success(), "a drain ends with status 0");
    reaches("the others take over", records, || history.acked_of(produced)).await;
    committed_to_the_end(kafka, group, topic).await;
    history.check_no_loss(produced);
    history.check_no_duplicates();
    history.check_one_holder();
    history.check_commits(kafka, group, produced);
}
