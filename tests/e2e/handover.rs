//! Two gateways in one group.

use std::time::Duration;

use sluice_tests::history::now_ms;
use sluice_tests::process::Signal;
use sluice_tests::{Crew, GatewayConfig, History, broker, unique};

use crate::{committed_to_the_end, owns, reaches, subscription};

const RECORDS: usize = 4_000;
const WORK: Duration = Duration::from_millis(20);

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_terminated_hands_over_without_a_duplicate() {
    let kafka = broker();
    let topic = kafka.topic("terminated", 4);
    let group = unique("terminated");
    let config = GatewayConfig::new(kafka).node("drain_timeout = \"20s\"").subscription(subscription(
        &group,
        &[&topic],
        &["join = \"at_start\""],
    ));
    let (mut leaves, stays) = (config.start(), config.start());
    let history = History::default();
    let first = Crew::new(&leaves, &group, &history).or(&stays).window(20).work(WORK).start(3);
    let second = Crew::new(&stays, &group, &history).window(20).work(WORK).start(3);
    owns(&leaves, &group, 2).await;
    owns(&stays, &group, 2).await;
    // Both have joined: from here no duplicate has an excuse.
    let produced = kafka.fill(&topic, 4, RECORDS, 32);
    reaches("both are at work", RECORDS / 4, || history.acked_of(&produced)).await;
    leaves.signal(Signal::Term);
    assert!(leaves.ended().await.success(), "a drain ends with status 0");
    reaches("the other one takes over", RECORDS, || history.acked_of(&produced)).await;
    committed_to_the_end(kafka, &group, &topic).await;
    history.check_no_loss(&produced);
    history.check_no_duplicates();
    history.check_commits(kafka, &group, &produced);
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_killed_costs_at_most_its_leases_and_one_commit_interval() {
    let kafka = broker();
    let topic = kafka.topic("killed-one", 4);
    let group = unique("killed-one");
    let lines = ["join = \"at_start\"", "commit_interval = \"250ms\""];
    let config = GatewayConfig::new(kafka).subscription(subscription(&group, &[&topic], &lines));
    let (mut dies, stays) = (config.start(), config.start());
    let (of_dead, of_other) = (History::default(), History::default());
    let first = Crew::new(&dies, &group, &of_dead).window(20).work(WORK).start(3);
    let second = Crew::new(&stays, &group, &of_other).window(20).work(WORK).start(3);
    owns(&dies, &group, 2).await;
    owns(&stays, &group, 2).await;
    let produced = kafka.fill(&topic, 4, RECORDS, 32);
    reaches("the first is at work", RECORDS / 8, || of_dead.acked_of(&produced)).await;
    let killed_at = now_ms();
    dies.kill();
    drop(first);
    let acked_by_dead = of_dead.acked_of(&produced);
    let together = || produced.iter().filter(|one| of_dead.has_acked(one) || of_other.has_acked(one)).count();
    reaches("the other one takes over", RECORDS, together).await;
    committed_to_the_end(kafka, &group, &topic).await;
    // What the dead one's sessions were dealt and the other's were too.
    let to_other = of_other.deliveries();
    let again = of_dead.deliveries().keys().filter(|place| to_other.contains_key(*place)).count();
    let leased = of_dead.deliveries().len() - acked_by_dead;
    // The interval, once more for the commit in flight, and what a busy machine adds to both.
    let unstored = of_dead.acked_since_ms(killed_at.saturating_sub(1_000));
    assert!(again <= leased + unstored, "{again} again, but {leased} were leased and {unstored} acked lately");
    of_other.check_no_duplicates();
    second.stop().await;
}
