//! The harness itself on a real Kafka: a check that cannot fail checks nothing.

use sluice_tests::kafka::client::{End, numbered};
use sluice_tests::{Broker, NewRecord, broker, unique};

#[test]
fn produced_records_are_read_back_with_their_offsets() {
    let kafka = broker();
    let topic = kafka.topic("round-trip", 2);
    let produced = kafka.fill(&topic, 2, 10, 16);
    assert_eq!(kafka.end_offsets(&topic), [(0, 5), (1, 5)].into());
    let read = kafka.read(&topic, 1);
    let expected: Vec<_> =
        produced.iter().filter(|one| one.partition == 1).map(|one| (one.offset, one.value.clone())).collect();
    assert_eq!(read, expected);
}

#[test]
fn aborted_transactions_leave_only_committed_records() {
    let kafka = broker();
    let topic = kafka.topic("aborts", 1);
    let batch = |index| vec![NewRecord::to(0, numbered(index, 8))];
    let committed =
        kafka.produce_transactions(&topic, &[(batch(0), End::Commit), (batch(1), End::Abort), (batch(2), End::Commit)]);
    let read: Vec<_> = kafka.read(&topic, 0).into_iter().map(|(offset, _)| offset).collect();
    assert_eq!(read, committed.iter().map(|one| one.offset).collect::<Vec<_>>());
    assert_eq!(kafka.end_offsets(&topic)[&0], 6, "three records, three markers");
}

#[test]
fn the_commit_history_holds_each_commit_with_its_metadata() {
    use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
    use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
    let kafka = broker();
    let (topic, group) = (kafka.topic("commits", 1), unique("group"));
    let consumer: BaseConsumer =
        kafka.config(&[("group.id", &group), ("enable.auto.commit", "false")]).create().expect("create a consumer");
    for (offset, metadata) in [(1, "one"), (5, "fünf\u{4e00}")] {
        let mut list = TopicPartitionList::new();
        let mut element = list.add_partition(&topic, 0);
        element.set_offset(Offset::Offset(offset)).expect("a valid offset");
        element.set_metadata(metadata);
        consumer.commit(&list, CommitMode::Sync).expect("commit");
    }
    let history: Vec<_> =
        kafka.commit_history(&group).into_iter().map(|entry| (entry.offset, entry.metadata)).collect();
    assert_eq!(history, [(Some(1), "one".to_owned()), (Some(5), "fünf\u{4e00}".to_owned())]);
    assert_eq!(kafka.committed(&group, &topic)[&0], (5, "fünf\u{4e00}".to_owned()));
}

#[test]
fn a_killed_broker_comes_back_with_its_log_and_a_truncated_one_without() {
    let own = Broker::start();
    let topic = own.kafka().topic("restart", 1);
    own.kafka().fill(&topic, 1, 3, 8);
    own.kill();
    own.restart();
    assert_eq!(own.kafka().end_offsets(&topic)[&0], 3);
    own.kill();
    own.truncate(&topic, 0);
    own.restart();
    assert_eq!(own.kafka().end_offsets(&topic)[&0], 0);
}
