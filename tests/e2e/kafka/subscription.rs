//! One subscription's threads on a real Kafka: fetch, commit, join, revoke, leave.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use crate::driver::{Driver, config};
use sluice_core::{CommitError, Epoch, NextOffset, TopicPartition};
use sluice_kafka::{Assignor, Describer, KafkaCommand, KafkaConfig, KafkaState, Protocol, Start};
use sluice_tests::gateway::executable;
use sluice_tests::{NewRecord, SOON, broker, eventually_blocking, unique};

/// Turns both until `seen`.
fn together(one: &mut Driver, two: &mut Driver, what: &str, mut seen: impl FnMut(&mut Driver, &mut Driver) -> bool) {
    let start = std::time::Instant::now();
    loop {
        one.turn();
        two.turn();
        if seen(one, two) {
            return;
        }
        assert!(start.elapsed() < SOON, "not within {SOON:?}: {what}; one: {}; two: {}", one.summary(), two.summary());
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn range() -> Protocol {
    Protocol::Classic {
        assignor: Assignor::Range,
        session_timeout: Duration::from_secs(6),
        heartbeat_interval: Duration::from_millis(250),
    }
}

#[test]
fn records_are_fetched_committed_and_not_fetched_again() {
    let kafka = broker();
    let (topic, group) = (kafka.topic("basic", 3), unique("group"));
    kafka.fill(&topic, 3, 3_000, 100);
    let mut driver = Driver::join(config(kafka.bootstrap(), &group, &[&topic]));
    driver.until("all is received and committed", |driver| {
        driver.total() == 3_000 && driver.committed.values().all(|next| *next == 1_000) && driver.committed.len() == 3
    });
    for offsets in driver.received.values() {
        assert_eq!(*offsets, (0..1_000).collect::<Vec<i64>>());
    }
    assert!(driver.owned.values().all(|owned| owned.topic_hash != 0), "a real Kafka tells the topic's id");
    driver.until("kafka is reachable", |driver| driver.states.contains(&KafkaState::Reachable));
    driver
        .until("watermarks are told", |driver| driver.watermarks.values().filter(|it| **it == (0, 1_000)).count() == 3);
    driver.leave();

    kafka.fill(&topic, 3, 3, 10);
    let mut again = Driver::join(config(kafka.bootstrap(), &group, &[&topic]));
    again.until("the rest is received", |driver| driver.total() == 3);
    assert!(again.received.values().all(|offsets| *offsets == [1_000]));
    again.leave();
}

#[test]
fn a_subscription_joins_again_after_it_left() {
    let kafka = broker();
    let (topic, group) = (kafka.topic("rejoin", 1), unique("group"));
    kafka.fill(&topic, 1, 10, 10);
    let mut driver = Driver::join(config(kafka.bootstrap(), &group, &[&topic]));
    driver.until("ten are committed", |driver| driver.committed.values().any(|next| *next == 10));
    driver.leave();
    kafka.fill(&topic, 1, 10, 10);
    driver.owned.clear();
    driver.subscription.send(KafkaCommand::Join);
    driver.until("twenty are committed", |driver| driver.committed.values().any(|next| *next == 20));
    assert_eq!(driver.total(), 20);
}

#[test]
fn keys_values_headers_and_commit_metadata_come_back_as_they_were_written() {
    let kafka = broker();
    let (topic, group) = (kafka.topic("bytes", 1), unique("group"));
    kafka.produce(
        &topic,
        [NewRecord { partition: Some(0), key: Some(vec![0, 255]), value: None, ..NewRecord::default() }],
    );
    let mut driver = Driver::join(config(kafka.bootstrap(), &group, &[&topic]));
    driver.commits = false;
    driver.until("the record is received", |driver| driver.total() == 1);
    let partition = TopicPartition::new(topic.as_str(), 0);
    driver.commit(&partition, 1, "ä\u{4e00}\0x");
    driver.until("it is committed", |driver| driver.committed.get(&partition) == Some(&1));
    driver.leave();
    let mut again = Driver::join(config(kafka.bootstrap(), &group, &[&topic]));
    again.until("assigned", |driver| driver.owned.len() == 1);
    assert_eq!(again.owned[&partition].metadata.as_deref(), Some("ä\u{4e00}\0x"));
}

#[test]
fn kept_partitions_flow_while_a_revoke_is_deferred() {
    let kafka = broker();
    let (topic, group) = (kafka.topic("deferred", 4), unique("group"));
    let mut one = Driver::join(config(kafka.bootstrap(), &group, &[&topic]));
    one.answers_revokes = false;
    one.until("one has all", |driver| driver.owned.len() == 4);
    let mut two = Driver::join(config(kafka.bootstrap(), &group, &[&topic]));
    together(&mut one, &mut two, "one hears that two must go", |one, _| one.revoking.len() == 2);

    kafka.fill(&topic, 4, 400, 10);
    let revoked: BTreeSet<_> = one.revoking.iter().cloned().collect();
    let kept: BTreeSet<_> = one.owned.keys().filter(|it| !revoked.contains(*it)).cloned().collect();
    together(&mut one, &mut two, "kept partitions flow and are committed", |one, _| {
        kept.iter()
            .all(|it| one.received.get(it).is_some_and(|it| it.len() == 100) && one.committed.get(it) == Some(&100))
    });
    assert!(revoked.iter().all(|it| !one.received.contains_key(it)), "nothing is fetched of what is to go");
    assert!(two.owned.is_empty(), "the other waits for the answer");

    for partition in one.revoking.clone() {
        one.give_back(&partition);
    }
    together(&mut one, &mut two, "two has the rest", |_, two| two.owned.len() == 2 && two.total() == 200);
    assert_eq!(two.owned.keys().cloned().collect::<BTreeSet<_>>(), revoked);
    assert!(one.lost.is_empty() && two.lost.is_empty());
    two.leave();
    together(&mut one, &mut two, "one has all again", |one, _| one.owned.len() == 4);
    assert_eq!(one.total(), 200, "nothing came twice");
}

#[test]
fn a_late_answer_to_an_earlier_revoke_does_not_answer_this_one() {
    let kafka = broker();
    let (topic, group) = (kafka.topic("late-answer", 2), unique("group"));
    let mut one = Driver::join(config(kafka.bootstrap(), &group, &[&topic]));
    one.answers_revokes = false;
    one.until("one has both", |driver| driver.owned.len() == 2);
    let mut two = Driver::join(config(kafka.bootstrap(), &group, &[&topic]));
    together(&mut one, &mut two, "one hears that one must go", |one, _| one.revoking.len() == 1);
    let going = one.revoking[0].clone();
    let earlier = Epoch(one.owned[&going].epoch.0 ^ 1);
    one.subscription.send(KafkaCommand::Revoked(going.clone(), earlier));
    // Commands are worked in order, and only what is still ours can be committed.
    one.committed.clear();
    one.commit(&going, 0, "still ours");
    together(&mut one, &mut two, "it is ours still", |one, _| one.committed.get(&going) == Some(&0));
    assert!(one.commit_errors.is_empty() && two.owned.is_empty(), "{}", one.summary());
    one.give_back(&going);
    together(&mut one, &mut two, "the other has it", |_, two| two.owned.contains_key(&going));
    assert!(one.lost.is_empty());
}

#[test]
fn members_are_told_with_their_marks_and_partitions_and_to_who_only_watches_too() {
    let kafka = broker();
    let describer = Describer::new(executable(), vec!["describe-groups".into()]).expect("a describer starts");
    for protocol in [config("x", "x", &[]).protocol, Protocol::Consumer] {
        let (topic, group) = (kafka.topic("told", 2), unique("group"));
        let mut settings = config(kafka.bootstrap(), &group, &[&topic]);
        settings.protocol = protocol;
        let marked = |mark: &str| KafkaConfig { member_mark: mark.to_owned(), ..settings.clone() };
        let join = |config| Driver::join_and_ask(config, Some(describer.clone()));
        let mut one = join(marked(";one"));
        let told = |mark: &str, partitions| (format!("sluice-test{mark}"), partitions);
        one.until("it is told of itself", |driver| driver.group == [told(";one", 2)]);
        // One that has left, and looks on.
        let mut looks = join(KafkaConfig { watch_group: true, ..marked(";looks") });
        together(&mut one, &mut looks, "both share", |one, looks| one.owned.len() == 1 && looks.owned.len() == 1);
        together(&mut one, &mut looks, "both are told of both", |one, looks| {
            let both = [told(";looks", 1), told(";one", 1)];
            one.group == both && looks.group == both
        });
        looks.leave();
        together(&mut one, &mut looks, "both are told of one", |one, looks| {
            one.group == [told(";one", 2)] && looks.group == one.group
        });
        one.leave();
        one.until("who does not look on knows nobody", |driver| driver.group.is_empty());
        looks.until("the group is empty", |driver| driver.group.is_empty());
    }
}

#[test]
fn two_members_share_by_the_consumer_protocol() {
    shares_without_duplicates(Protocol::Consumer);
}

#[test]
fn two_members_share_by_range() {
    shares_without_duplicates(range());
}

#[test]
fn two_members_share_by_cooperative_sticky() {
    shares_without_duplicates(config("x", "x", &[]).protocol);
}

fn shares_without_duplicates(protocol: Protocol) {
    let kafka = broker();
    let (topic, group) = (kafka.topic("shared", 4), unique("group"));
    let mut settings = config(kafka.bootstrap(), &group, &[&topic]);
    settings.protocol = protocol;
    kafka.fill(&topic, 4, 2_000, 50);
    let mut one = Driver::join(settings.clone());
    one.until("the first has all", |driver| driver.owned.len() == 4 && driver.total() > 0);
    let mut two = Driver::join(settings);
    together(&mut one, &mut two, "two each", |one, two| one.owned.len() == 2 && two.owned.len() == 2);
    kafka.fill(&topic, 4, 2_000, 50);
    together(&mut one, &mut two, "all is received", |one, two| one.total() + two.total() >= 4_000);
    two.leave();
    kafka.fill(&topic, 4, 400, 50);
    together(&mut one, &mut two, "the first has all again", |one, two| one.total() + two.total() >= 4_400);
    let mut all: Vec<_> = [&one, &two]
        .into_iter()
        .flat_map(|driver| &driver.received)
        .flat_map(|(partition, offsets)| offsets.iter().map(move |offset| (partition.clone(), *offset)))
        .collect();
    all.sort();
    let count = all.len();
    all.dedup();
    assert_eq!((count, all.len()), (4_400, 4_400), "each once");
    assert!(one.lost.is_empty() && two.lost.is_empty());
}

#[test]
fn the_start_policy_decides_where_a_group_without_commits_begins() {
    let kafka = broker();
    let topic = kafka.topic("start", 1);
    kafka.fill(&topic, 1, 10, 10);
    std::thread::sleep(Duration::from_millis(20));
    let middle = SystemTime::now();
    std::thread::sleep(Duration::from_millis(20));
    kafka.fill(&topic, 1, 5, 10);
    for (start, expected) in [(Start::Earliest, 0), (Start::Latest, 15), (Start::Time(middle), 10)] {
        let group = unique("group");
        let mut settings = config(kafka.bootstrap(), &group, &[&topic]);
        settings.start = start;
        let mut driver = Driver::join(settings);
        driver.until("assigned", |driver| driver.owned.len() == 1);
        let partition = TopicPartition::new(topic.as_str(), 0);
        assert_eq!(driver.owned[&partition].start, expected, "{start:?}");
        driver.until("the start is committed at once", |driver| driver.committed.contains_key(&partition));
        driver.leave();
    }
}

#[test]
fn partitions_without_a_commit_begin_together_while_others_are_fetched() {
    const MANY: usize = 100;
    let kafka = broker();
    let (topic, group) = (kafka.topic("many", i32::try_from(MANY).expect("few")), unique("group"));
    let mut settings = config(kafka.bootstrap(), &group, &[&topic]);
    // A question to the broker waits behind a fetch of records that do not come. One after another would take minutes.
    settings.properties.insert("fetch.wait.max.ms".to_owned(), "2000".to_owned());
    let mut driver = Driver::join(settings);
    driver.until("all are assigned", |driver| driver.owned.len() == MANY);
    driver.until("all have told their watermarks", |driver| driver.watermarks.len() == MANY);
    driver.leave();
}

#[test]
fn new_partitions_are_picked_up_from_their_beginning() {
    let kafka = broker();
    let (topic, group) = (kafka.topic("growing", 1), unique("group"));
    let mut settings = config(kafka.bootstrap(), &group, &[&topic]);
    settings.start = Start::Latest;
    let mut driver = Driver::join(settings);
    driver.until("the first is committed", |driver| driver.committed.len() == 1);
    kafka.add_partitions(&topic, 3);
    eventually_blocking("records are written to the new partitions", SOON, || {
        let ends = kafka.end_offsets(&topic);
        if ends.len() == 3 { Ok(()) } else { Err(ends) }
    });
    kafka.produce(&topic, (0..30).map(|index| NewRecord::to(1 + index % 2, vec![b'x'])));
    driver.until("all records of the new partitions come", |driver| driver.total() == 30);
}

#[test]
fn a_position_passes_aborted_records_and_markers() {
    use sluice_tests::kafka::client::End;
    let kafka = broker();
    let (topic, group) = (kafka.topic("transactions", 1), unique("group"));
    let batch = |from: usize| (from..from + 10).map(|_| NewRecord::to(0, vec![b'x'])).collect::<Vec<_>>();
    kafka.produce_transactions(
        &topic,
        &[(batch(0), End::Commit), (batch(10), End::Abort), (batch(20), End::Commit), (batch(30), End::Abort)],
    );
    let end = kafka.end_offsets(&topic)[&0];
    let mut driver = Driver::join(config(kafka.bootstrap(), &group, &[&topic]));
    let partition = TopicPartition::new(topic.as_str(), 0);
    driver.until("the committed offset is the log's end", |driver| driver.committed.get(&partition) == Some(&end));
    assert_eq!(driver.total(), 20, "no aborted record is delivered");
}

#[test]
fn a_held_partition_rests_and_goes_on_where_it_is_told() {
    let kafka = broker();
    let (topic, group) = (kafka.topic("held", 2), unique("group"));
    let mut driver = Driver::join(config(kafka.bootstrap(), &group, &[&topic]));
    driver.until("both are assigned", |driver| driver.owned.len() == 2);
    let (held, flowing) = (TopicPartition::new(topic.as_str(), 0), TopicPartition::new(topic.as_str(), 1));
    let epoch = driver.owned[&held].epoch;
    // What is said in an earlier epoch is void: nobody would take that hold back.
    driver.subscription.send(KafkaCommand::Hold(flowing.clone(), Epoch(epoch.0 ^ 1)));
    driver.subscription.send(KafkaCommand::Hold(held.clone(), epoch));
    kafka.fill(&topic, 2, 200, 10);
    driver.until("the other flows", |driver| driver.received.get(&flowing).is_some_and(|it| it.len() == 100));
    assert!(!driver.received.contains_key(&held));
    driver.subscription.send(KafkaCommand::Unhold(held.clone(), Epoch(epoch.0 ^ 1), NextOffset(90)));
    driver.subscription.send(KafkaCommand::Unhold(held.clone(), epoch, NextOffset(40)));
    driver.until("it goes on", |driver| driver.received.get(&held).is_some_and(|it| it.len() == 60));
    assert_eq!(driver.received[&held][0], 40);
}

#[test]
fn a_commit_of_an_earlier_epoch_never_reaches_kafka() {
    let kafka = broker();
    let (topic, group) = (kafka.topic("epochs", 1), unique("group"));
    kafka.fill(&topic, 1, 10, 10);
    let mut driver = Driver::join(config(kafka.bootstrap(), &group, &[&topic]));
    let partition = TopicPartition::new(topic.as_str(), 0);
    driver.until("all is committed", |driver| driver.committed.get(&partition) == Some(&10));
    let epoch = Epoch(driver.owned[&partition].epoch.0 ^ 1);
    let (offset, metadata) = (NextOffset(3), String::new());
    driver.subscription.send(KafkaCommand::Commit { partition: partition.clone(), epoch, offset, metadata });
    driver.until("it is refused", |driver| driver.commit_errors == [CommitError::NotMember]);
    assert_eq!(driver.committed[&partition], 10);
    assert!(driver.lost.is_empty());
}

#[test]
fn a_resting_gate_stops_all_and_throws_nothing_away() {
    let kafka = broker();
    let (topic, group) = (kafka.topic("resting", 1), unique("group"));
    let mut driver = Driver::join(config(kafka.bootstrap(), &group, &[&topic]));
    driver.until("assigned", |driver| driver.owned.len() == 1);
    driver.subscription.gate().rest(true);
    kafka.fill(&topic, 1, 500, 10);
    driver.until("a look at the end", |driver| driver.watermarks.values().any(|(_, high)| *high == 500));
    assert_eq!(driver.total(), 0);
    driver.subscription.gate().rest(false);
    driver.until("all come", |driver| driver.total() == 500);
}
