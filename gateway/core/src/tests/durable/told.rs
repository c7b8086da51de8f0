//! What was answered as durable stands in every later commit, whatever comes to stand beside it.

use super::*;

/// Commits what there is to commit within two seconds.
fn settle_down(w: &mut World) -> (i64, String) {
    let mut last = None;
    for _ in 0..4 {
        let outputs = w.after(500);
        last = w.committed(&outputs).or(last);
    }
    last.unwrap()
}

fn says(metadata: &str, offset: i64) -> bool {
    metadata_done(metadata).unwrap().iter().any(|r| r.first <= offset && offset <= r.last)
}

#[test]
fn an_answer_in_a_bitmap_stands_when_much_becomes_done_beyond_it() {
    let mut w = World::with(|policy| policy.metadata_units_max = 60);
    let s = w.holding(8_000);
    // 300 offsets, each second: as runs more than there is room for, as bits half of it.
    let told: Vec<OffsetRange> = (1..300).step_by(2).map(OffsetRange::one).collect();
    w.ask(s, 1, 1_000, &told, Outcome::Ack);
    let outputs = w.poll();
    w.committed(&outputs);
    assert_eq!(answers(&w.poll()), [(1, vec![])]);
    w.ack(s, 1_000, 300, 7_000);
    let (_, metadata) = settle_down(&mut w);
    for range in told {
        assert!(says(&metadata, range.first), "{range:?} was answered, and is not in {:?}", metadata_done(&metadata));
    }
}

#[test]
fn an_answer_above_more_ranges_than_a_commit_looks_at_stands() {
    let mut w = World::new();
    w.assign(0);
    let s = w.open(Some("a"), 200_000);
    w.receive(0, 0..100_000);
    while w.engine.poll_output(w.now).is_some() {}
    w.ask(s, 1, 10_000, &[range(99_000, 99_000)], Outcome::Ack);
    let outputs = w.poll();
    w.committed(&outputs);
    assert_eq!(answers(&w.poll()), [(1, vec![])]);
    for offset in (1..90_000).step_by(2) {
        let one = Settlement { leases: leases(0, &[OffsetRange::one(offset)]), outcome: Outcome::Ack };
        let settlements = Settlements { request_id: 0, durable: false, seen: 10_000, settlements: vec![one] };
        w.engine.settle_unary(w.now, Some(s), settlements);
    }
    let (_, metadata) = settle_down(&mut w);
    assert!(says(&metadata, 99_000));
    // And one that is asked for there now is answered.
    w.ask(s, 2, 10_000, &[range(99_500, 99_500)], Outcome::Ack);
    let outputs = w.after(5);
    let (_, metadata) = w.committed(&outputs).unwrap();
    assert_eq!(answers(&w.poll()), [(2, vec![])]);
    assert!(says(&metadata, 99_000) && says(&metadata, 99_500));
}

#[test]
fn an_answer_stands_after_a_crash_when_what_is_done_beside_it_grows() {
    let units = |policy: &mut Policy| policy.metadata_units_max = 60;
    let mut w = World::with(units);
    let s = w.holding(10_000);
    w.ask(s, 1, 1_000, &[range(9_900, 9_900)], Outcome::Ack);
    let outputs = w.poll();
    w.committed(&outputs);
    assert_eq!(answers(&w.poll()), [(1, vec![])]);
    // As many single ones below as there is room for.
    for offset in (300..9_800).step_by(300) {
        w.ack(s, 1_000, offset, offset);
    }
    let (base, metadata) = settle_down(&mut w);
    assert!(says(&metadata, 9_900) && w.engine.stats().metadata_truncated > 0);

    let mut w = World::with(units);
    w.assign_at(0, base, Some(metadata));
    let s = w.open(Some("b"), 20_000);
    w.receive(0, 0..10_000);
    w.poll();
    for offset in (300..9_800).step_by(300) {
        w.ack(s, 1_000, offset, offset + 140);
    }
    let (_, metadata) = settle_down(&mut w);
    assert!(says(&metadata, 9_900), "{:?}", metadata_done(&metadata));
}

#[test]
fn an_answer_stands_when_a_broker_takes_less_than_we_thought() {
    const BROKER_UNITS: usize = 42;
    let mut w = World::with(|policy| policy.metadata_units_max = 100);
    let s = w.holding(10_000);
    // A little less than it takes.
    let told: Vec<OffsetRange> = (1..21).map(|n| OffsetRange::one(n * 400)).collect();
    w.ask(s, 1, 1_000, &told, Outcome::Ack);
    let (mut last, mut answered) = (String::new(), false);
    for round in 0..40 {
        for output in w.after(500) {
            answered |= matches!(output, Output::Settled { request_id: 1, .. });
            let Output::Commit { offset, metadata, .. } = output else { continue };
            if metadata.encode_utf16().count() > BROKER_UNITS {
                w.engine.commit_result(w.now, &p(0), EPOCH, Err(CommitError::MetadataTooLarge));
            } else {
                w.engine.commit_result(w.now, &p(0), EPOCH, Ok(offset));
                last = metadata;
            }
        }
        if round == 1 {
            assert!(answered);
            // Now more is to be said than it takes.
            for offset in (2..8_000).step_by(2) {
                w.settle(s, 1_000, &[range(offset, offset)], retry());
            }
        }
    }
    assert!(w.engine.stats().commits_failed > 0);
    for range in told {
        assert!(says(&last, range.first), "{range:?}: {:?}", metadata_done(&last));
    }
}

#[test]
fn nothing_is_answered_by_a_commit_that_has_no_room_for_what_was_told_to_grow() {
    // Told: each hundredth of 12. Runs of two bytes and more, which fit as they are, and not with lengths as they may become.
    let mut w = World::with(|policy| policy.metadata_units_max = 40);
    let s = w.holding(1_300);
    let told: Vec<OffsetRange> = (1..=12).map(|n| OffsetRange::one(n * 100)).collect();
    for range in &told {
        w.ack(s, 1_000, range.first, range.last);
    }
    let (offset, metadata) = settle_down(&mut w);
    assert!(told.iter().all(|r| says(&metadata, r.first)), "they fit");
    // As told: nobody knows any more whether somebody was.
    let mut w = World::with(|policy| policy.metadata_units_max = 40);
    w.assign_at(0, offset, Some(metadata));
    let s = w.open(Some("a"), 10_000);
    w.receive(0, 0..1_300);
    w.poll();
    w.ask(s, 1, 1_000, &[range(1_201, 1_201)], Outcome::Ack);
    let (_, metadata) = settle_down(&mut w);
    assert!(says(&metadata, 1_201), "it happens to stand beside one that was told");
    assert_eq!(answers(&w.poll()), [], "and nobody is told of it");
    assert_eq!(w.engine.partitions(w.now)[0].durable_waiting, 1);
    // Enough below it is done: there is room.
    w.ack(s, 1_000, 0, 950);
    let mut all = w.poll();
    w.committed(&all);
    for _ in 0..4 {
        let outputs = w.after(500);
        w.committed(&outputs);
        all.extend(outputs);
    }
    all.extend(w.poll());
    assert_eq!(answers(&all), [(1, vec![])]);
}
