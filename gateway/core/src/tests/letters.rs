//! Records that nobody is to work any more: dead letters, too large, dropped, blocked.

use super::*;

/// Dead letters given to the driver: offset, cause, attempts, plain.
fn letters(outputs: &[Output]) -> Vec<(i64, LetterCause, u32, bool)> {
    let of = |output: &Output| match output {
        Output::DeadLetter { letter: l, .. } => Some((l.record.offset, l.cause, l.attempts, l.plain)),
        _ => None,
    };
    outputs.iter().filter_map(of).collect()
}

fn letter(outputs: &[Output]) -> Letter {
    let mut all = outputs.iter().filter_map(|output| match output {
        Output::DeadLetter { letter, .. } => Some(letter.clone()),
        _ => None,
    });
    let one = all.next().unwrap();
    assert_eq!(all.next(), None);
    one
}

fn dead_letter(reason: &str) -> Outcome {
    Outcome::DeadLetter { reason: reason.into() }
}

fn retry(reason: &str) -> Outcome {
    Outcome::Retry { delay_ms: Some(0), reason: reason.into() }
}

impl World {
    fn with_topic(change: impl FnOnce(&mut Policy)) -> Self {
        Self::with(|policy| {
            policy.dead_letter_topic = true;
            policy.dead_letter_backoff.jitter = 0.0;
            change(policy);
        })
    }

    fn answer(&mut self, offset: i64, result: Result<(), LetterError>) {
        self.engine.dead_letter_result(self.now, &p(0), EPOCH, offset, result);
        self.engine.check().unwrap();
    }

    fn view(&self) -> PartitionView {
        self.engine.partitions(self.now).remove(0)
    }
}

#[test]
fn a_dead_letter_is_done_when_kafka_acknowledged_it_and_holds_the_commit_until_then() {
    let mut w = World::with_topic(|_| ());
    w.assign(0);
    let s = w.open(None, 10);
    w.receive(0, 0..3);
    w.poll();
    assert!(w.settle(s, 1, &[range(0, 1)], dead_letter("bad json")).is_empty());
    assert!(w.ack(s, 1, 2, 2).is_empty());
    assert!(w.settle(s, 1, &[range(0, 0)], dead_letter("again")).is_empty(), "the same outcome once more");
    let outputs = w.poll();
    assert_eq!(letters(&outputs), [(0, LetterCause::Client, 0, false), (1, LetterCause::Client, 0, false)]);
    let view = w.view();
    assert_eq!((view.dead_letters_pending, view.waiting_retry, view.leased), (2, 0, 0));
    assert_eq!(view.blocked_on, Some(BlockedOn::DeadLetter));
    let outputs = w.after(250);
    assert_eq!(w.committed(&outputs).unwrap().0, 0);
    w.answer(1, Ok(()));
    w.answer(1, Ok(()));
    w.answer(7, Ok(()));
    assert_eq!((w.engine.stats().dead_lettered, w.view().committable.0), (1, 0));
    w.answer(0, Ok(()));
    let outputs = w.after(250);
    assert_eq!(w.committed(&outputs).unwrap().0, 3);
    assert_eq!((w.engine.stats().dead_lettered, w.engine.bytes_held()), (2, 0));
}

#[test]
fn a_dead_letter_says_what_is_known_of_the_failures() {
    let mut w = World::with_topic(|policy| {
        policy.max_attempts = 3;
        policy.on_exhausted = OnExhausted::DeadLetter;
        policy.backoff.initial_ms = 0;
    });
    w.assign(0);
    let s = w.open(None, 1);
    w.receive(0, [0]);
    w.poll();
    assert!(w.settle(s, 1, &[range(0, 0)], retry("no database")).is_empty());
    w.after(10);
    assert!(w.settle(s, 2, &[range(0, 0)], retry(&"é".repeat(1_000))).is_empty());
    w.after(10);
    // An expiry says nothing: the last words stand.
    let outputs = w.after(300_000);
    let letter = letter(&outputs);
    assert_eq!((letter.cause, letter.attempts, letter.plain), (LetterCause::Exhausted, 3, false));
    assert_eq!((letter.first_failure, letter.last_failure), (Some(Millis(1_000)), Some(w.now)));
    assert_eq!(letter.reason.as_deref(), Some("é".repeat(128).as_str()));
    assert_eq!(letter.record, record(0));
    assert_eq!(w.engine.stats().failed, 1);
}

#[test]
fn a_write_that_fails_is_repeated_for_ever_with_backoff_and_one_too_large_is_made_plain() {
    let mut w = World::with_topic(|_| ());
    w.assign(0);
    let s = w.open(None, 10);
    w.receive(0, 0..1);
    w.poll();
    w.settle(s, 1, &[range(0, 0)], dead_letter(""));
    assert_eq!(letter(&w.poll()).reason, None);
    for delay_ms in [200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000] {
        w.answer(0, Err(LetterError::Failed));
        w.answer(0, Ok(()));
        assert_eq!(letters(&w.after(delay_ms - 1)), [], "before {delay_ms}");
        assert_eq!(w.view().blocked_on, Some(BlockedOn::DeadLetter));
        assert_eq!(letters(&w.after(1)), [(0, LetterCause::Client, 0, false)]);
    }
    w.answer(0, Err(LetterError::TooLarge));
    assert_eq!(letters(&w.poll()), [(0, LetterCause::Client, 0, true)]);
    for _ in 0..2 {
        w.answer(0, Err(LetterError::TooLarge));
        assert_eq!(letters(&w.after(9_999)), []);
        assert_eq!(letters(&w.after(1)), [(0, LetterCause::Client, 0, true)]);
    }
    assert_eq!((w.engine.stats().dead_letters_failed, w.engine.stats().dead_lettered), (11, 0));
    w.answer(0, Ok(()));
    assert_eq!((w.engine.stats().dead_lettered, w.view().committable.0), (1, 1));
}

#[test]
fn dead_letters_are_written_lowest_first_and_so_many_at_once() {
    let mut w = World::with_topic(|policy| policy.dead_letters_in_flight_max = 2);
    w.assign(0);
    let s = w.open(None, 10);
    w.receive(0, 0..5);
    w.poll();
    w.settle(s, 1, &[range(3, 4)], dead_letter(""));
    w.settle(s, 1, &[range(0, 2)], dead_letter(""));
    let offsets = |outputs: &[Output]| letters(outputs).iter().map(|l| l.0).collect::<Vec<_>>();
    assert_eq!(offsets(&w.poll()), [3, 4]);
    w.answer(4, Ok(()));
    w.answer(3, Err(LetterError::Failed));
    assert_eq!(offsets(&w.poll()), [0, 1]);
    w.answer(0, Ok(()));
    assert_eq!(offsets(&w.poll()), [2]);
    assert_eq!(offsets(&w.after(200)), [0i64; 0], "two are on their way");
    w.answer(1, Ok(()));
    assert_eq!(offsets(&w.poll()), [3]);
}

#[test]
fn without_a_topic_a_dead_letter_goes_the_way_of_what_is_exhausted() {
    for (on_exhausted, done) in [(OnExhausted::Block, 0), (OnExhausted::Drop, 1)] {
        let mut w = World::with(|policy| policy.on_exhausted = on_exhausted);
        w.assign(0);
        let s = w.open(None, 1);
        w.receive(0, [0]);
        w.poll();
        assert!(w.settle(s, 1, &[range(0, 0)], dead_letter("")).is_empty());
        assert!(w.settle(s, 1, &[range(0, 0)], dead_letter("")).is_empty());
        assert_eq!(w.view().committable.0, done);
        assert_eq!((w.engine.stats().filtered, w.engine.stats().failed), (done as u64, 1 - done as u64));
        assert_eq!(w.view().blocked_on, (done == 0).then_some(BlockedOn::Exhausted));
        let outputs = w.after(250);
        let (offset, metadata) = w.committed(&outputs).unwrap();
        assert_eq!(letters(&outputs), []);
        if done == 0 {
            // Another owner: it still shows as exhausted, and comes again after the longest delay.
            let mut other = World::new();
            other.assign_at(0, offset, Some(metadata));
            other.open(None, 1);
            other.receive(0, [0]);
            assert_eq!(dealt(&other.after(299_999)), []);
            assert_eq!(other.view().blocked_on, Some(BlockedOn::Exhausted));
            assert_eq!(dealt(&other.after(1)), [(1, 1, vec![0])]);
            assert_eq!(dealt(&w.after(299_749)), []);
            assert_eq!(dealt(&w.after(1)), [(1, 2, vec![0])]);
        }
    }
}

#[test]
fn a_record_that_was_exhausted_in_another_epoch_is_dead_lettered_without_a_delivery() {
    let policy = |policy: &mut Policy| {
        policy.max_attempts = 2;
        policy.on_exhausted = OnExhausted::DeadLetter;
    };
    let mut w = World::with_topic(policy);
    w.assign(0);
    let s = w.open(None, 10);
    w.receive(0, 0..2);
    w.poll();
    w.settle(s, 1, &[range(0, 1)], retry(""));
    w.poll();
    w.settle(s, 2, &[range(1, 1)], retry(""));
    w.answer(1, Err(LetterError::Failed));
    let outputs = w.after(250);
    let (offset, metadata) = w.committed(&outputs).unwrap();
    let mut other = World::with_topic(policy);
    assert_eq!(other.assign_at(0, offset, Some(metadata)), Restored::State { done: 0, attempts: 2 });
    other.open(None, 10);
    other.receive(0, 0..2);
    let outputs = other.poll();
    assert_eq!(dealt(&outputs), [(1, 1, vec![0])]);
    assert_eq!(letters(&outputs), [(1, LetterCause::Exhausted, 2, false)]);
}

#[test]
fn a_handover_waits_for_dead_letters_until_its_deadline() {
    for taken in [true, false] {
        let mut w = World::with_topic(|_| ());
        w.assign(0);
        let s = w.open(None, 10);
        w.receive(0, 0..1);
        w.poll();
        w.settle(s, 1, &[range(0, 0)], dead_letter(""));
        w.poll();
        w.engine.revoking(w.now, &[p(0)], w.now.plus(5_000));
        let drained = |outputs: &[Output]| outputs.contains(&Output::Drained { partition: p(0) });
        let outputs = w.after(4_999);
        assert!(!drained(&outputs));
        w.committed(&outputs);
        if taken {
            w.answer(0, Ok(()));
            let outputs = w.poll();
            assert_eq!(w.committed(&outputs).unwrap().0, 1);
            assert!(drained(&w.poll()));
        } else {
            assert!(drained(&w.after(1)));
            w.answer(0, Ok(()));
        }
        assert_eq!(w.engine.stats().dead_lettered, u64::from(taken));
    }
}

#[test]
fn an_answer_to_a_dead_letter_of_another_epoch_changes_nothing() {
    let mut w = World::with_topic(|_| ());
    w.assign(0);
    let s = w.open(None, 10);
    w.receive(0, 0..1);
    w.poll();
    w.settle(s, 1, &[range(0, 0)], dead_letter(""));
    w.engine.lost(w.now, &[p(0)], RevokeReason::Reassigned);
    assert_eq!(letters(&w.poll()), [], "what was not handed out yet goes with the partition");
    w.assign(0);
    w.receive(0, 0..1);
    w.poll();
    w.settle(s, 2, &[range(0, 0)], dead_letter(""));
    w.poll();
    w.engine.dead_letter_result(w.now, &p(0), Epoch(8), 0, Ok(()));
    assert_eq!((w.engine.stats().dead_lettered, w.view().committable.0), (0, 0));
}

#[test]
fn a_record_above_the_limit_is_too_large_at_once() {
    for (on_exhausted, topic) in [(OnExhausted::Block, true), (OnExhausted::Block, false), (OnExhausted::Drop, false)] {
        let mut w = World::with(|policy| {
            policy.record_bytes_max = 100;
            policy.on_exhausted = on_exhausted;
            policy.dead_letter_topic = topic;
        });
        w.assign(0);
        w.open(None, 10);
        w.engine.records(w.now, &p(0), EPOCH, vec![record_of(0, 101), record_of(1, 100)]);
        let outputs = w.poll();
        assert_eq!(dealt(&outputs), [(1, 1, vec![1])]);
        assert_eq!(w.engine.stats().too_large, 1);
        let written: &[_] = if topic { &[(0, LetterCause::TooLarge, 0, false)] } else { &[] };
        assert_eq!(letters(&outputs), written);
        let blocked_on = w.view().blocked_on;
        let expected = match (on_exhausted, topic) {
            (_, true) => BlockedOn::DeadLetter,
            (OnExhausted::Block, false) => BlockedOn::Exhausted,
            _ => BlockedOn::Leased,
        };
        assert_eq!(blocked_on, Some(expected));
        assert_eq!(dealt(&w.after(299_999)), []);
    }
}

#[test]
fn a_record_that_fits_no_connected_session_for_long_is_too_large() {
    let mut w = World::with_topic(|policy| policy.ack_timeout_ms = 10_000_000);
    let open = |w: &mut World, max_frame_bytes| {
        let window = Some(Window { max_records: 10, max_bytes: 0 });
        w.engine.open(w.now, Open { window, max_frame_bytes, ..Open::default() }).session
    };
    w.assign(0);
    let small = open(&mut w, 1_000);
    w.engine.records(w.now, &p(0), EPOCH, vec![record_of(0, 2_000), record_of(1, 3_000), record_of(2, 10)]);
    assert_eq!(dealt(&w.poll()), [(1, 1, vec![2])]);
    assert_eq!(w.view().blocked_on, Some(BlockedOn::NoWindow));
    assert_eq!(letters(&w.after(200_000)), []);
    // One comes for which the first is not too large: only the other one's time goes on.
    let middle = open(&mut w, 2_500);
    assert_eq!(dealt(&w.poll()), [(2, 1, vec![0])]);
    w.engine.close(w.now, middle, End::HalfClose);
    assert_eq!(dealt(&w.poll()), []);
    // While nobody is connected, nobody refuses it.
    w.engine.close(w.now, small, End::HalfClose);
    assert_eq!(letters(&w.after(500_000)), []);
    open(&mut w, 1_000);
    assert_eq!(letters(&w.after(99_999)), []);
    assert_eq!(letters(&w.after(1)), [(1, LetterCause::TooLarge, 0, false)]);
    assert_eq!(letters(&w.after(199_999)), []);
    assert_eq!(letters(&w.after(1)), [(0, LetterCause::TooLarge, 0, false)]);
    assert_eq!((w.view().waiting_retry, w.view().dead_letters_pending), (0, 2));
}

#[test]
fn without_a_topic_a_record_that_fits_nobody_stays_and_is_dealt_to_one_that_it_fits() {
    let mut w = World::new();
    w.assign(0);
    let window = Some(Window { max_records: 10, max_bytes: 0 });
    let open = |max_frame_bytes| Open { window, max_frame_bytes, ..Open::default() };
    w.engine.open(w.now, open(1_000));
    w.engine.records(w.now, &p(0), EPOCH, vec![record_of(0, 2_000)]);
    w.poll();
    w.after(300_000);
    assert_eq!((w.view().blocked_on, w.engine.stats().too_large), (Some(BlockedOn::Exhausted), 1));
    w.after(600_000);
    assert_eq!(w.engine.stats().too_large, 1);
    w.engine.open(w.now, open(0));
    assert_eq!(dealt(&w.poll()), [(2, 1, vec![0])]);
}
