use super::*;

#[test]
fn a_commit_is_repeated_after_an_interval_and_by_count_at_once() {
    let mut w = World::with(|policy| policy.commit_count = 3);
    w.assign(0);
    let s = w.open(None, 100);
    w.receive(0, 0..10);
    w.poll();
    w.ack(s, 1, 0, 2);
    let outputs = w.poll();
    assert!(matches!(&outputs[..], [Output::Commit { offset: NextOffset(3), .. }]));
    w.ack(s, 1, 3, 9);
    assert_eq!(w.poll(), [], "one in flight");
    w.engine.commit_result(w.now, &p(0), EPOCH, Err(CommitError::Retriable));
    assert_eq!(w.after(249), []);
    let outputs = w.after(1);
    assert_eq!(w.committed(&outputs).unwrap().0, 10);
    assert_eq!(w.after(10_000), []);
    w.engine.commit_rewound(w.now, &p(0));
    let outputs = w.poll();
    assert_eq!(w.committed(&outputs).unwrap().0, 10);
    assert_eq!((w.engine.stats().commits, w.engine.stats().commits_failed), (2, 1));
}

#[test]
fn what_was_done_above_the_frontier_is_not_dealt_after_a_crash_even_a_second_one() {
    let mut w = World::new();
    w.assign(0);
    let s = w.open(None, 100);
    w.receive(0, 0..10);
    w.poll();
    w.settle(s, 1, &[range(0, 0)], Outcome::Retry { delay_ms: Some(60_000), reason: String::new() });
    w.ack(s, 1, 2, 8);
    let outputs = w.after(250);
    let (offset, metadata) = w.committed(&outputs).unwrap();
    assert_eq!(offset, 0);

    let mut w = World::new();
    assert_eq!(w.assign_at(0, 0, Some(metadata)), Restored::State { done: 7, attempts: 1 });
    let s = w.open(None, 1);
    w.receive(0, [0, 1, 2]);
    let outputs = w.poll();
    assert!(
        matches!(&outputs[..], [Output::Deliver { batches, .. }] if batches[0].records.iter().next().unwrap().attempts == 1)
    );
    w.ack(s, 1, 0, 0);
    let outputs = w.after(250);
    let (offset, metadata) = w.committed(&outputs).unwrap();
    assert_eq!(offset, 1);

    let mut w = World::new();
    assert_eq!(w.assign_at(0, 1, Some(metadata.clone())), Restored::State { done: 7, attempts: 0 });
    w.open(None, 100);
    w.receive(0, 1..10);
    assert_eq!(dealt(&w.poll()), [(1, 1, vec![1, 9])]);
    assert_eq!(w.engine.stats().restored_done, 7);

    let mut other_topic = World::new();
    let assignment = Assignment {
        partition: p(0),
        epoch: EPOCH,
        next: NextOffset(1),
        metadata: Some(metadata),
        topic_hash: 6,
        commit_now: true,
    };
    assert_eq!(other_topic.engine.assigned(other_topic.now, assignment), Restored::Ignored);
    let outputs = other_topic.poll();
    assert!(matches!(&outputs[..], [Output::Commit { offset: NextOffset(1), .. }]));
}

#[test]
fn metadata_that_a_broker_refuses_is_halved() {
    let mut w = World::new();
    w.assign(0);
    let s = w.open(None, 10_000);
    w.receive(0, 0..5_000);
    w.poll();
    let odd: Vec<OffsetRange> = (0..2_000).map(|n| OffsetRange::one(n * 2 + 1)).collect();
    w.settle(s, 1_000, &odd, Outcome::Ack);
    let units = |outputs: &[Output]| match outputs {
        [Output::Commit { metadata, .. }] => metadata.encode_utf16().count(),
        _ => panic!("{outputs:?}"),
    };
    let mut before = units(&w.after(250));
    assert!(before > 200);
    for _ in 0..3 {
        w.engine.commit_result(w.now, &p(0), EPOCH, Err(CommitError::MetadataTooLarge));
        let after = units(&w.poll());
        assert!(after <= before);
        before = after;
    }
}

#[test]
fn position_moves_the_frontier_past_control_records() {
    let mut w = World::new();
    w.assign(0);
    w.engine.position(w.now, &p(0), EPOCH, NextOffset(9));
    let outputs = w.after(250);
    assert_eq!(w.committed(&outputs).unwrap().0, 9);
    w.receive(0, [8, 9]);
    assert_eq!(w.engine.stats().refetched, 1);
    w.engine.position(w.now, &p(0), EPOCH, NextOffset(20));
    assert_eq!(w.engine.partitions(w.now)[0].committable, NextOffset(9));
}
