//! A node of a cluster that is told to end. Sessions check that no record comes behind a Drain.

use std::time::Duration;

use sluice_tests::process::Signal;
use sluice_tests::{Cluster, Crew, History, Produced, SOON, Wire, broker, eventually, unique};

use super::{cluster, others};
use crate::{committed_to_the_end, reaches};

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
    let (group, topic) = (unique("rolls-slowly"), broker().topic("rolls-slowly", 1));
    let mut cluster = cluster(3, &group, &topic, &[]).await;
    let history = History::default();
    let owner = owner(&cluster, &group, &history).await;
    let edges = others(3, owner);
    cluster.lead_to(&edges);
    cluster.way(edges[0], owner).set_delay(Duration::from_millis(100));
    // Of different paces, so that something is always on its way.
    let paces = (1..=8).map(|at| crew(&cluster, &group, &history).work(Duration::from_millis(25 * at)).start(1));
    let crews: Vec<_> = paces.collect();
    let produced = broker().fill(&topic, 1, 2_000, 32);
    is_terminated(&mut cluster, edges[0], &group, &topic, &produced, &history).await;
    for crew in crews {
        crew.stop().await;
    }
}

/// The client is told to drain without a word from the owner; what comes from it later goes back unseen.
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_from_an_owner_too_late_for_a_client_that_drains_is_given_back() {
    let (kafka, group, topic) = (broker(), unique("rolls-late"), broker().topic("rolls-late", 1));
    let mut cluster = cluster(3, &group, &topic, &[]).await;
    let history = History::default();
    let owner = owner(&cluster, &group, &history).await;
    let edge = others(3, owner)[0];
    cluster.way(edge, owner).set_delay(Duration::from_millis(700));
    let mut wire = Wire::subscribe(&cluster.nodes[edge], &group, 20).await.recorded(&history);
    let produced = kafka.fill(&topic, 1, 60, 32);
    let held = wire.records(20).await;
    // Room for ten, which are on their way when the edge drains.
    wire.ack(&held[..10]);
    eventually("ten more are dealt", SOON, async || {
        let seen = cluster.nodes[owner].partitions(&group).await;
        let dealt = seen.iter().any(|one| one.committable_offset == produced[10].offset && one.leased == 20);
        if dealt { Ok(()) } else { Err(seen) }
    })
    .await;
    cluster.nodes[edge].signal(Signal::Term);
    wire.until("the client is told", |wire| wire.drained.then_some(())).await;
    cluster.lead_to(&[owner]);
    let others = crew(&cluster, &group, &history).start(1);
    reaches("others have what it does not hold", 50, || history.acked_of(&produced)).await;
    wire.ack(&held[10..]);
    wire.half_close();
    wire.end().await.expect("a drained stream ends with OK");
    reaches("all is done", 60, || history.acked_of(&produced)).await;
    assert!(cluster.nodes[edge].ended().await.success(), "a drain ends with status 0");
    history.check_no_duplicates();
    others.stop().await;
}

async fn owner(cluster: &Cluster, group: &str, history: &History) -> usize {
    let first = crew(cluster, group, history).start(1);
    let owner = cluster.owners(group, 1).await[0];
    first.stop().await;
    owner
}

fn crew(cluster: &Cluster, group: &str, history: &History) -> Crew {
    Crew::by(&cluster.address(), group, history).window(20).work(Duration::from_millis(20))
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
