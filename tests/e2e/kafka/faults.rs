//! One subscription's threads against what goes wrong: offsets that lie, a broker that is away, commits that hang.

use std::time::Duration;

use crate::driver::{Driver, config};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use sluice_core::{CommitError, TopicPartition};
use sluice_kafka::{KafkaState, Protocol, ResetCause};
use sluice_tests::{Broker, SOON, broker, eventually_blocking, unique};

/// A commit by somebody who is no member, as an operator's tool does it.
fn commit_outside(bootstrap: &str, group: &str, partition: &TopicPartition, offset: i64) {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .create()
        .expect("create a consumer");
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&partition.topic, partition.partition, Offset::Offset(offset)).expect("a small offset");
    consumer.commit(&list, CommitMode::Sync).expect("commit");
}

fn first(topic: &str) -> TopicPartition {
    TopicPartition::new(topic, 0)
}

// === offsets that lie ===

#[test]
fn retention_that_passed_the_commit_is_told_and_the_fetch_goes_on_at_the_logs_start() {
    let kafka = broker();
    let (topic, group) = (kafka.topic("retention", 1), unique("group"));
    kafka.fill(&topic, 1, 100, 10);
    commit_outside(kafka.bootstrap(), &group, &first(&topic), 10);
    kafka.delete_records(&topic, 0, 60);
    let mut driver = Driver::join(config(kafka.bootstrap(), &group, &[&topic]));
    driver.until("the rest comes", |driver| driver.total() == 40);
    assert_eq!(driver.retention, [(first(&topic), 10, 60)]);
    assert!(driver.resets.is_empty());
    driver.until("the end is committed", |driver| driver.committed.get(&first(&topic)) == Some(&100));
}

#[test]
fn a_commit_beyond_the_logs_end_is_a_truncation_and_the_fetch_goes_on_at_the_end() {
    let kafka = broker();
    let (topic, group) = (kafka.topic("truncated", 1), unique("group"));
    kafka.fill(&topic, 1, 10, 10);
    commit_outside(kafka.bootstrap(), &group, &first(&topic), 1_000);
    let mut driver = Driver::join(config(kafka.bootstrap(), &group, &[&topic]));
    driver.until("it is told", |driver| driver.resets == [(first(&topic), ResetCause::LogTruncated)]);
    driver.until("the end is committed", |driver| driver.committed.get(&first(&topic)) == Some(&10));
    kafka.fill(&topic, 1, 5, 10);
    driver.until("what follows comes", |driver| driver.total() == 5);
    assert_eq!(driver.received[&first(&topic)], [10, 11, 12, 13, 14]);
}

#[test]
fn a_topic_made_again_is_read_from_its_beginning() {
    let kafka = broker();
    let (topic, group) = (kafka.topic("again", 1), unique("group"));
    kafka.fill(&topic, 1, 20, 10);
    let mut driver = Driver::join(config(kafka.bootstrap(), &group, &[&topic]));
    driver.until("the old one is received", |driver| driver.committed.get(&first(&topic)) == Some(&20));
    kafka.delete_topic(&topic);
    kafka.create_topic(&topic, 1, &[]);
    kafka.fill(&topic, 1, 30, 10);
    driver.until("the new one is received", |driver| driver.committed.get(&first(&topic)) == Some(&30));
    let offsets = &driver.received[&first(&topic)];
    assert!((0..30).all(|offset| offsets[20..].contains(&offset)), "each record of the new topic comes: {offsets:?}");
}

// === a broker that is away ===

#[test]
fn a_broker_that_is_away_at_the_start_and_later_is_waited_for() {
    let own = Broker::prepare();
    let kafka = own.kafka();
    let (topic, group) = (unique("away"), unique("group"));
    let mut driver = Driver::join(config(kafka.bootstrap(), &group, &[&topic]));
    driver.until("it is told", |driver| driver.states.iter().any(|it| matches!(it, KafkaState::Unreachable(_))));
    own.restart();
    driver.until("the topic is missed", |driver| driver.states.contains(&KafkaState::TopicMissing(topic.clone())));
    kafka.create_topic(&topic, 2, &[]);
    kafka.fill(&topic, 2, 100, 10);
    driver.until("all is committed", |driver| driver.committed.values().filter(|next| **next == 50).count() == 2);
    assert_eq!(driver.states.last(), Some(&KafkaState::Reachable));

    own.kill();
    driver.until("it is told", |driver| matches!(driver.states.last(), Some(KafkaState::Unreachable(_))));
    own.restart();
    kafka.fill(&topic, 2, 100, 10);
    driver.until("all is committed", |driver| driver.committed.values().filter(|next| **next == 100).count() == 2);
    driver.until("kafka is reachable", |driver| driver.states.last() == Some(&KafkaState::Reachable));
    assert!(driver.total() >= 200);
}

#[test]
fn a_commit_that_has_no_reply_does_not_outlive_a_revoke() {
    let own = Broker::start();
    let kafka = own.kafka();
    let (topic, group) = (kafka.topic("parked", 2), unique("group"));
    kafka.fill(&topic, 2, 100, 10);
    let mut settings = config(kafka.bootstrap(), &group, &[&topic]);
    settings.commit_deadline = Duration::from_secs(2);
    let mut driver = Driver::join(settings.clone());
    driver.until("all is committed", |driver| driver.committed.values().filter(|next| **next == 50).count() == 2);
    driver.answers_revokes = false;
    driver.commits = false;
    let mut other = Driver::join(settings);
    driver.until("one must go", |driver| driver.revoking.len() == 1);
    let going = driver.revoking[0].clone();
    own.pause();
    driver.commit(&going, 7, "");
    driver.give_back(&going);
    driver.until("the handle is made anew", |driver| !driver.lost.is_empty());
    own.resume();
    driver.answers_revokes = true;
    driver.until("it is a member again", |driver| {
        other.turn();
        driver.owned.len() + other.owned.len() == 2 && !driver.owned.is_empty()
    });
    // The commit of 7 either never came, or its rewind would be seen by its owner.
    let found = kafka.committed_history(&group, &topic, going.partition);
    eventually_blocking("a commit of the new owner stands", SOON, || {
        let list = TopicPartition::new(topic.as_str(), going.partition);
        for one in [&mut driver, &mut other] {
            one.turn();
            if one.owned.contains_key(&list) {
                one.commit(&list, 50, "");
            }
        }
        match kafka.committed_offset(&group, &topic, going.partition) {
            Some(50) => Ok(()),
            seen => Err((seen, found.clone())),
        }
    });
}

#[test]
fn a_partition_that_is_lost_while_it_drains_is_told_as_lost() {
    let own = Broker::start();
    let kafka = own.kafka();
    let (topic, group) = (kafka.topic("draining", 2), unique("group"));
    kafka.fill(&topic, 2, 100, 10);
    let mut settings = config(kafka.bootstrap(), &group, &[&topic]);
    settings.commit_deadline = Duration::from_secs(1);
    let mut driver = Driver::join(settings.clone());
    driver.until("all is committed", |driver| driver.committed.values().filter(|next| **next == 50).count() == 2);
    driver.answers_revokes = false;
    driver.commits = false;
    let mut other = Driver::join(settings);
    driver.until("one must go", |driver| driver.revoking.len() == 1);
    let going = driver.revoking[0].clone();
    own.pause();
    // Its leases are still open: it is not given back.
    driver.commit(&going, 7, "");
    driver.until("both are lost", |driver| driver.lost.len() == 2);
    assert!(driver.lost.contains(&going));
    own.resume();
    other.turn();
}

#[test]
fn a_member_of_the_consumer_protocol_that_is_cut_off_for_a_session_gives_its_partitions_up() {
    let own = Broker::start();
    let kafka = own.kafka();
    let (topic, group) = (kafka.topic("cut-off", 2), unique("group"));
    kafka.fill(&topic, 2, 100, 10);
    let mut settings = config(kafka.bootstrap(), &group, &[&topic]);
    settings.protocol = Protocol::Consumer;
    let mut driver = Driver::join(settings);
    driver.until("all is committed", |driver| driver.committed.values().filter(|next| **next == 50).count() == 2);
    own.pause();
    driver.commit(&first(&topic), 50, "");
    // The broker decides how long a session is, 45 s by default, and says it to nobody: so long nothing can be known.
    eventually_blocking("both are given up", Duration::from_secs(120), || {
        driver.turn();
        if driver.lost.len() == 2 { Ok(()) } else { Err(driver.summary()) }
    });
    own.resume();
    driver.until("it is a member again", |driver| driver.owned.len() == 2);
}

#[test]
fn a_commit_that_another_member_rewound_is_noticed() {
    let kafka = broker();
    let (topic, group) = (kafka.topic("rewound", 2), unique("group"));
    kafka.fill(&topic, 2, 20, 10);
    let mut driver = Driver::join(config(kafka.bootstrap(), &group, &[&topic]));
    driver.until("all is committed", |driver| driver.committed.values().filter(|next| **next == 10).count() == 2);
    // A member may commit any partition of the group: what a zombie's parked commit looks like.
    let strategy = ("partition.assignment.strategy", "cooperative-sticky");
    let other: BaseConsumer = kafka
        .config(&[("group.id", &group), ("enable.auto.commit", "false"), strategy])
        .create()
        .expect("create a consumer");
    other.subscribe(&[&topic]).expect("subscribe");
    driver.until("they share", |driver| {
        let _record = other.poll(Duration::from_millis(10));
        driver.owned.len() == 1 && other.assignment().is_ok_and(|it| it.count() == 1)
    });
    let kept = driver.owned.keys().next().expect("one is kept").clone();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&topic, kept.partition, Offset::Offset(3)).expect("a small offset");
    other.commit(&list, CommitMode::Sync).expect("Kafka takes it");
    driver.until("it is noticed", |driver| {
        let _record = other.poll(Duration::from_millis(10));
        driver.rewound.contains(&kept)
    });
}

// === a coordinator that is away, as librdkafka's broker in memory plays it ===

fn mock(
    topic: &str,
    partitions: i32,
    records: usize,
) -> MockCluster<'static, rdkafka::producer::DefaultProducerContext> {
    let cluster = MockCluster::new(1).expect("a broker in memory");
    cluster.create_topic(topic, partitions, 1).expect("a topic");
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", cluster.bootstrap_servers()).create().expect("a producer");
    for index in 0..records {
        let partition = i32::try_from(index).expect("few") % partitions;
        producer.send(BaseRecord::<(), [u8]>::to(topic).partition(partition).payload(&b"x"[..])).expect("queued");
    }
    producer.flush(SOON).expect("written");
    cluster
}

#[test]
fn a_commit_in_flight_without_a_coordinator_neither_hangs_a_revoke_nor_rewinds() {
    for error in [
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_COORDINATOR,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS,
    ] {
        let (topic, group) = (unique("mock"), unique("group"));
        let cluster = mock(&topic, 2, 100);
        let mut settings = config(&cluster.bootstrap_servers(), &group, &[&topic]);
        settings.commit_deadline = Duration::from_secs(3);
        let mut one = Driver::join(settings.clone());
        one.until("all is committed", |driver| driver.committed.values().filter(|next| **next == 50).count() == 2);
        one.answers_revokes = false;
        one.commits = false;
        let mut two = Driver::join(settings);
        two.commits = false;
        one.until("one must go", |driver| driver.revoking.len() == 1);
        let going = one.revoking[0].clone();

        cluster.request_errors(RDKafkaApiKey::OffsetCommit, &[error; 6]);
        one.commit(&going, 20, "");
        one.give_back(&going);
        two.until("the other owns it", |driver| {
            one.turn();
            driver.owned.contains_key(&going)
        });
        // Nothing of one may come after this, whatever was parked.
        let replies = one.commit_errors.len();
        two.until("the other's commit stands", |driver| {
            one.turn();
            driver.commit(&going, 50, "");
            driver.committed.get(&going) == Some(&50)
        });
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", cluster.bootstrap_servers())
            .set("group.id", &group)
            .create()
            .expect("create a consumer");
        let mut list = TopicPartitionList::new();
        list.add_partition(&topic, going.partition);
        let found = consumer.committed_offsets(list, SOON).expect("committed offsets");
        assert_eq!(found.elements()[0].offset(), Offset::Offset(50), "{error:?}: no rewind ({replies} refusals)");
        two.leave();
    }
}

#[test]
fn an_evicted_member_hears_it_from_a_commit_and_joins_again() {
    let (topic, group) = (unique("mock"), unique("group"));
    let cluster = mock(&topic, 2, 100);
    let mut driver = Driver::join(config(&cluster.bootstrap_servers(), &group, &[&topic]));
    driver.until("all is committed", |driver| driver.committed.values().filter(|next| **next == 50).count() == 2);
    driver.commits = false;
    cluster.request_errors(RDKafkaApiKey::OffsetCommit, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID]);
    driver.commit(&first(&topic), 30, "");
    driver.until("both are lost", |driver| driver.lost.len() == 2);
    driver.until("the commit is answered", |driver| driver.commit_errors == [CommitError::NotMember]);
    driver.until("both are ours again", |driver| driver.owned.len() == 2);
    assert!(driver.owned.values().all(|owned| owned.start == 50));
    driver.leave();
}
