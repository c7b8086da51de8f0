//! Settlements that are answered when Kafka has them.

mod told;

use super::*;

impl World {
    fn ask(&mut self, session: SessionId, request_id: u64, seen: u64, offsets: &[OffsetRange], outcome: Outcome) {
        let settlements = vec![Settlement { leases: leases(0, offsets), outcome }];
        self.engine.settle(self.now, session, Settlements { request_id, durable: true, seen, settlements });
        self.engine.check().unwrap();
    }

    /// `n` records of partition 0, all held by one session.
    fn holding(&mut self, n: i64) -> SessionId {
        self.assign(0);
        let session = self.open(Some("a"), 10_000);
        self.receive(0, 0..n);
        self.poll();
        session
    }

    fn blocked_on(&self) -> Option<BlockedOn> {
        self.engine.partitions(self.now)[0].blocked_on
    }
}

/// What was answered: request, and the reasons of what was rejected.
fn answers(outputs: &[Output]) -> Vec<(u64, Vec<RejectReason>)> {
    let of = |output: &Output| match output {
        Output::Settled { request_id, rejections, .. } => {
            Some((*request_id, rejections.iter().map(|r| r.reason).collect()))
        }
        _ => None,
    };
    outputs.iter().filter_map(of).collect()
}

fn commits(outputs: &[Output]) -> usize {
    outputs.iter().filter(|o| matches!(o, Output::Commit { .. })).count()
}

fn retry() -> Outcome {
    Outcome::Retry { delay_ms: Some(60_000), reason: String::new() }
}

#[test]
fn the_answer_comes_with_kafkas_and_many_share_a_commit() {
    let mut w = World::new();
    let s = w.holding(10);
    w.ask(s, 1, 1, &[range(0, 0)], Outcome::Ack);
    let first = w.poll();
    assert_eq!((commits(&first), answers(&first)), (1, vec![]), "at once, and nothing is said yet");
    w.ask(s, 2, 1, &[range(1, 2)], Outcome::Ack);
    w.ask(s, 3, 1, &[range(5, 6)], Outcome::Ack);
    assert_eq!(w.poll(), [], "one in flight");
    w.committed(&first);
    assert_eq!(answers(&w.poll()), [(1, vec![])]);
    // The next one waits for those that come within five milliseconds.
    w.now = w.now.plus(3);
    w.ask(s, 4, 1, &[range(8, 8)], Outcome::Ack);
    w.engine.tick(w.now);
    assert_eq!(w.poll(), []);
    assert_eq!(w.engine.wake_at(), Some(w.now.plus(2)));
    let second = w.after(2);
    assert_eq!(commits(&second), 1);
    w.committed(&second);
    assert_eq!(answers(&w.poll()), [(2, vec![]), (3, vec![]), (4, vec![])]);
    assert_eq!((w.engine.stats().commits, w.engine.stats().durable_answered), (2, 4));
    assert_eq!(w.engine.partitions(w.now)[0].durable_waiting, 0);
}

#[test]
fn asked_again_it_is_answered_at_once_and_a_commit_that_fails_is_repeated() {
    let mut w = World::new();
    let s = w.holding(4);
    w.ask(s, 1, 1, &[range(2, 2)], Outcome::Ack);
    w.poll();
    w.engine.commit_result(w.now, &p(0), EPOCH, Err(CommitError::Retriable));
    assert_eq!(answers(&w.poll()), []);
    let outputs = w.after(250);
    w.committed(&outputs);
    assert_eq!(answers(&w.poll()), [(1, vec![])]);
    w.ask(s, 2, 1, &[range(2, 2)], Outcome::Ack);
    assert_eq!(answers(&w.poll()), [(2, vec![])], "Kafka has it");
}

#[test]
fn each_outcome_waits_for_what_makes_it_stand() {
    let mut w = World::with(|policy| policy.dead_letter_topic = true);
    let s = w.holding(10);
    w.ask(s, 1, 1, &[range(0, 0)], retry());
    let outputs = w.poll();
    assert_eq!(answers(&outputs), []);
    w.committed(&outputs);
    assert_eq!(answers(&w.poll()), [(1, vec![])], "its attempt is stored");
    w.ask(s, 2, 1, &[range(1, 1)], Outcome::Release);
    w.ask(s, 3, 1, &[range(2, 2)], Outcome::Extend { ack_timeout_ms: None });
    assert_eq!(answers(&w.poll()), [(2, vec![]), (3, vec![])], "there is nothing to store");
    w.ask(s, 4, 1, &[range(3, 3)], Outcome::DeadLetter { reason: "bad".into() });
    let outputs = w.after(5);
    w.committed(&outputs);
    assert_eq!(answers(&w.poll()), [], "not written yet");
    w.engine.dead_letter_result(w.now, &p(0), EPOCH, 3, Ok(()));
    let outputs = w.after(5);
    assert_eq!((commits(&outputs), answers(&outputs)), (1, vec![]), "written, not committed");
    w.committed(&outputs);
    assert_eq!(answers(&w.poll()), [(4, vec![])]);
}

#[test]
fn what_is_not_known_to_be_stored_when_the_partition_goes_is_stale() {
    let mut w = World::new();
    let s = w.holding(4);
    w.ask(s, 1, 1, &[range(0, 1), range(3, 3), range(9, 9)], Outcome::Ack);
    w.poll();
    w.engine.lost(w.now, &[p(0)], RevokeReason::Reassigned);
    assert_eq!(answers(&w.poll()), [(1, vec![RejectReason::NotHeld, RejectReason::StaleEpoch])]);

    let mut w = World::new();
    let s = w.holding(4);
    w.ask(s, 1, 1, &[range(0, 3)], Outcome::Ack);
    let outputs = w.poll();
    w.engine.revoking(w.now, &[p(0)], w.now.plus(1_000));
    assert_eq!(w.poll(), [], "its commit has no answer");
    w.committed(&outputs);
    let outputs = w.poll();
    assert_eq!(answers(&outputs), [(1, vec![])]);
    assert!(matches!(outputs.last(), Some(Output::Drained { .. })));
}

#[test]
fn what_nobody_could_be_told_of_is_invalid_and_changes_nothing() {
    let mut w = World::new();
    let s = w.holding(4);
    w.ask(s, 0, 1, &[range(0, 3)], Outcome::Ack);
    assert_eq!(answers(&w.poll()), [(0, vec![RejectReason::Invalid])]);
    assert_eq!(w.engine.leases_open(), 4);
    w.engine.close(w.now, s, End::HalfClose);
    assert_eq!(w.engine.leases_open(), 0);
}

#[test]
fn a_session_cannot_let_more_wait_than_a_limit() {
    let mut w = World::new();
    w.assign(0);
    let s = w.open(None, 100_000);
    w.receive(0, 0..70_000);
    while w.engine.poll_output(w.now).is_some() {}
    w.ask(s, 1, 10_000, &[range(1, 68_000)], Outcome::Ack);
    w.ask(s, 2, 10_000, &[range(69_000, 69_000)], Outcome::Ack);
    let outputs = w.poll();
    assert_eq!(answers(&outputs), [(2, vec![RejectReason::Invalid])]);
    w.committed(&outputs);
    assert_eq!(answers(&w.poll()), [(1, vec![])]);
    w.ask(s, 3, 10_000, &[range(69_000, 69_000)], Outcome::Ack);
    let outputs = w.after(5);
    w.committed(&outputs);
    assert_eq!(answers(&w.poll()), [(3, vec![])]);
}

#[test]
fn a_unary_one_is_answered_later_and_outlives_its_sessions_stream() {
    let mut w = World::new();
    let s = w.holding(4);
    let settlements = vec![Settlement { leases: leases(0, &[range(0, 3)]), outcome: Outcome::Ack }];
    let settlements = Settlements { request_id: 0, durable: true, seen: 1, settlements };
    w.ask(s, 7, 1, &[range(0, 0)], Outcome::Ack);
    let answer = w.engine.settle_unary(w.now, Some(s), settlements);
    let Answer::Later(ticket) = answer else { panic!("{answer:?}") };
    w.engine.close(w.now, s, End::Broken);
    let outputs = w.poll();
    w.committed(&outputs);
    let outputs = w.after(5);
    w.committed(&outputs);
    let outputs = w.poll();
    assert_eq!(outputs, [Output::SettledUnary { ticket, rejections: vec![] }], "and nobody listens to request 7");
}

#[test]
fn a_new_stream_hears_no_answer_to_what_the_one_before_asked() {
    let mut w = World::new();
    let s = w.holding(4);
    w.ask(s, 1, 1, &[range(0, 0)], Outcome::Ack);
    let outputs = w.poll();
    assert_eq!(w.open(Some("a"), 10_000), s);
    w.committed(&outputs);
    assert_eq!(answers(&w.poll()), []);
}

/// Every other record of 400 is done: more runs than 40 units hold.
fn full() -> (World, SessionId) {
    let mut w = World::with(|policy| policy.metadata_units_max = 40);
    let s = w.holding(2_000);
    for offset in (1..400).step_by(2) {
        w.ack(s, 100, offset, offset);
    }
    let outputs = w.after(250);
    w.committed(&outputs);
    (w, s)
}

#[test]
fn what_was_answered_stays_in_every_commit_however_full_it_gets() {
    let (mut w, s) = full();
    w.ask(s, 1, 100, &[range(1_500, 1_500)], Outcome::Ack);
    let outputs = w.after(5);
    let (_, metadata) = w.committed(&outputs).unwrap();
    assert_eq!(answers(&w.poll()), [(1, vec![])]);
    assert!(metadata_done(&metadata).unwrap().contains(&range(1_500, 1_500)));
    assert!(w.engine.stats().metadata_truncated > 0);
    // Much more becomes done, and fails, below it.
    for offset in (401..1_400).step_by(2) {
        w.ack(s, 100, offset, offset);
        w.settle(s, 100, &[range(offset + 1, offset + 1)], retry());
    }
    let outputs = w.after(1_000);
    let (offset, metadata) = w.committed(&outputs).unwrap();
    assert!(metadata_done(&metadata).unwrap().contains(&range(1_500, 1_500)));
    // Over a crash, and a second one before it was read again.
    for _ in 0..2 {
        let mut w = World::with(|policy| policy.metadata_units_max = 40);
        w.assign_at(0, offset, Some(metadata.clone()));
        w.open(None, 10_000);
        w.receive(0, [0, 2]);
        w.poll();
        w.engine.commit_rewound(w.now, &p(0));
        let outputs = w.poll();
        let (_, metadata) = w.committed(&outputs).unwrap();
        assert!(metadata_done(&metadata).unwrap().contains(&range(1_500, 1_500)));
    }
}

#[test]
fn what_does_not_fit_waits_for_the_frontier_and_says_so() {
    let (mut w, s) = full();
    let far: Vec<OffsetRange> = (0..100).map(|n| OffsetRange::one(1_000 + n * 7)).collect();
    w.ask(s, 1, 100, &far, Outcome::Ack);
    let outputs = w.after(5);
    w.committed(&outputs);
    assert_eq!(answers(&w.poll()), []);
    assert_eq!(w.blocked_on(), Some(BlockedOn::MetadataFull));
    assert!(w.engine.partitions(w.now)[0].durable_waiting > 50);
    // It is not tried again and again while nothing changes.
    assert_eq!(commits(&w.after(10_000)), 0);
    w.ack(s, 100, 0, 1_100);
    let outputs = w.after(250);
    w.committed(&outputs);
    let outputs = w.after(250);
    w.committed(&outputs);
    assert_eq!(answers(&w.poll()), [], "a part of it still waits");
    w.ack(s, 100, 0, 1_999);
    let outputs = w.after(1_000);
    w.committed(&outputs);
    assert_eq!(answers(&w.poll()), [(1, vec![])]);
    assert_eq!(w.blocked_on(), None);
}

#[test]
fn failures_that_were_answered_come_before_others() {
    let (mut w, s) = full();
    for offset in (400..1_400).step_by(2) {
        w.settle(s, 100, &[range(offset, offset)], retry());
    }
    w.ask(s, 1, 100, &[range(1_700, 1_700)], retry());
    let outputs = w.after(1_000);
    let (offset, metadata) = w.committed(&outputs).unwrap();
    assert_eq!(answers(&w.poll()), [(1, vec![])]);
    let mut w = World::with(|policy| policy.metadata_units_max = 40);
    w.assign_at(0, offset, Some(metadata));
    w.open(None, 10_000);
    w.receive(0, [1_700]);
    let outputs = w.poll();
    assert!(
        matches!(&outputs[..], [Output::Deliver { batches, .. }] if batches[0].records.iter().next().unwrap().attempts == 1)
    );
}

#[test]
fn a_failure_whose_record_is_done_before_it_was_stored_is_answered() {
    let mut w = World::new();
    let s = w.holding(4);
    w.ask(s, 1, 1, &[range(1, 1)], Outcome::Ack);
    let first = w.poll();
    assert_eq!(commits(&first), 1);
    w.ask(s, 2, 1, &[range(3, 3)], Outcome::Retry { delay_ms: Some(0), reason: String::new() });
    assert_eq!(dealt(&w.poll()), [(s.0, 2, vec![3])]);
    w.ack(s, 2, 3, 3);
    w.committed(&first);
    let outputs = w.after(5);
    let (_, metadata) = w.committed(&outputs).unwrap();
    assert_eq!(metadata_done(&metadata).unwrap(), [range(1, 1), range(3, 3)]);
    let outputs = w.poll();
    assert!(answers(&outputs).contains(&(2, vec![])), "Kafka has it: {outputs:?}");
}

#[test]
fn what_nobody_waits_for_any_more_is_not_kept() {
    let mut w = World::new();
    let s = w.holding(100);
    let each_second: Vec<OffsetRange> = (1..100).step_by(2).map(OffsetRange::one).collect();
    for request in 1..50 {
        // Kafka is away, and the client comes again and again with the same.
        w.ask(s, request, 1, &each_second, Outcome::Ack);
        w.engine.close(w.now, s, End::Broken);
        w.engine.open(w.now, Open { consumer_id: Some("a".into()), seen: 1, ..Open::default() });
    }
    assert_eq!(w.engine.partitions(w.now)[0].durable_waiting, 0);
}
