//! A node of a cluster that is told to end.

use std::time::Duration;

use sluice_tests::process::Signal;
use sluice_tests::{Crew, History, broker, unique};

use super::{cluster, others};
use crate::{committed_to_the_end, reaches};

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_is_terminated_under_load_hands_over_without_a_duplicate() {
    const RECORDS: usize = 6_000;
    let kafka = broker();
    let topic = kafka.topic("rolls", 4);
    let group = unique("rolls");
    let mut cluster = cluster(3, &group, &topic, &[]).await;
    let history = History::default();
    let work = Duration::from_millis(20);
    let crew = Crew::by(&cluster.address(), &group, &history).window(20).work(work).start(9);
    // All three have joined before the first record is there: no duplicate has an excuse.
    let leaves = cluster.spread(&group, 4, 3).await[0];
    let produced = kafka.fill(&topic, 4, RECORDS, 32);
    reaches("all are at work", RECORDS / 4, || history.acked_of(&produced)).await;
    cluster.lead_to(&others(3, leaves));
    cluster.nodes[leaves].signal(Signal::Term);
    assert!(cluster.nodes[leaves].ended().await.success(), "a drain ends with status 0");
    reaches("the others take over", RECORDS, || history.acked_of(&produced)).await;
    committed_to_the_end(kafka, &group, &topic).await;
    history.check_no_loss(&produced);
    history.check_no_duplicates();
    history.check_one_holder();
    history.check_commits(kafka, &group, &produced);
    crew.stop().await;
}
