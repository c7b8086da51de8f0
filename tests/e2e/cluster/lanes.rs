//! `ordering = "key"` over several nodes.

use std::time::Duration;

use sluice_tests::kafka::client::Produced;
use sluice_tests::process::Signal;
use sluice_tests::{Crew, History, SOON, broker, eventually, unique};

use super::cluster;
use crate::lanes::{Dice, LINES, clumsy, ends_well, keyed};
use crate::reaches;

#[tokio::test(flavor = "multi_thread")]
async fn keys_stay_in_order_over_edges_and_owners_that_go_and_die() {
    const SESSIONS: usize = 60;
    let kafka = broker();
    let (topic, group) = (kafka.topic("keys-far", 3), unique("keys-far"));
    let dice = Dice::new();
    let mut cluster = cluster(4, &group, &topic, &LINES).await;
    let history = History::default();
    let crew = Crew::by(&cluster.address(), &group, &history).window(3).work(Duration::from_millis(2));
    let crew = crew.habit(clumsy(&dice, 30, 4)).start(SESSIONS);
    let owners = cluster.spread(&group, 3, 3).await;
    let edge = (0..4).find(|at| !owners.contains(at)).expect("three of four own something");
    let mut produced = Vec::new();
    let work = |produced: &mut Vec<Produced>| produced.extend(kafka.produce(&topic, keyed(&dice, 1_000)));
    let goes_on = async |produced: &[Produced]| {
        let goal = history.acked_of(produced) + 300;
        reaches("work goes on", goal.min(produced.len()), || history.acked_of(produced)).await;
    };

    // An edge dies with records of others. Owners deal to their own clients first: there must be too much for them.
    eventually("the edge relays", SOON, async || {
        let relayed = cluster.nodes[edge].metric("sluice_edge_records_delivered_total", "other_nodes");
        if relayed >= Some(50.0) {
            return Ok(());
        }
        if history.acked_of(&produced) + 300 > produced.len() {
            work(&mut produced);
        }
        Err(relayed)
    })
    .await;
    cluster.lead_to(&owners);
    cluster.nodes[edge].kill();
    work(&mut produced);
    goes_on(&produced).await;

    // An owner goes, with clients of its own and of others.
    cluster.lead_to(&owners[1..]);
    cluster.nodes[owners[0]].signal(Signal::Term);
    assert!(cluster.nodes[owners[0]].ended().await.success(), "a drain ends with status 0");
    work(&mut produced);
    goes_on(&produced).await;

    // And one dies.
    cluster.lead_to(&owners[2..]);
    cluster.nodes[owners[1]].kill();
    work(&mut produced);
    ends_well(kafka, &group, &topic, &history, &produced).await;
    history.check_commits(kafka, &group, &produced);
    crew.stop().await;
}
