use super::*;

fn reasons(rejections: &[Rejection]) -> Vec<(RejectReason, Vec<OffsetRange>)> {
    rejections.iter().map(|r| (r.reason, r.leases.offsets.clone())).collect()
}

#[test]
fn out_of_order_acks_commit_only_what_all_below_is_done() {
    let mut w = World::new();
    w.assign(0);
    let s = w.open(None, 10);
    w.receive(0, [40, 41, 43]);
    assert_eq!(dealt(&w.poll()), [(1, 1, vec![40, 41, 43])]);
    assert!(w.ack(s, 1, 41, 43).is_empty());
    let outputs = w.after(250);
    let (offset, metadata) = w.committed(&outputs).unwrap();
    assert_eq!(offset, 40);
    assert_eq!(metadata::decode(&metadata).unwrap().done, [range(41, 43)]);
    assert!(w.ack(s, 1, 40, 40).is_empty());
    let outputs = w.after(250);
    assert_eq!(w.committed(&outputs).unwrap().0, 44);
    let stats = w.engine.stats();
    assert_eq!((stats.acked, stats.committed, stats.received, stats.commits), (3, 3, 3, 2));
}

#[test]
fn a_record_dealt_again_is_not_swallowed_by_an_older_range() {
    let mut w = World::new();
    w.assign(0);
    let s = w.open(None, 10);
    w.receive(0, 10..13);
    w.poll();
    let now = Outcome::Retry { delay_ms: Some(0), reason: String::new() };
    assert!(w.settle(s, 1, &[range(11, 11)], now).is_empty());
    assert_eq!(dealt(&w.poll()), [(1, 2, vec![11])]);
    assert!(w.ack(s, 1, 10, 12).is_empty());
    assert_eq!(w.engine.leases_open(), 1);
    assert_eq!(reasons(&w.ack(s, 1, 11, 11)), [(RejectReason::NotHeld, vec![range(11, 11)])]);
    assert!(w.ack(s, 2, 11, 11).is_empty());
    assert_eq!(w.engine.partitions(w.now)[0].committable, NextOffset(13));
}

#[test]
fn what_changes_nothing_is_answered_and_changes_nothing() {
    let mut w = World::new();
    w.assign(0);
    let s = w.open(None, 3);
    let other = w.open(None, 3);
    w.receive(0, 0..6);
    assert_eq!(dealt(&w.poll()).len(), 2);
    let invalid = [range(3, 1), range(-1, -1), range(i64::MIN, i64::MAX)];
    assert_eq!(reasons(&w.settle(s, 1, &invalid, Outcome::Ack)), [(RejectReason::Invalid, invalid.to_vec())]);
    assert_eq!(reasons(&w.ack(s, 0, 0, 2)), [(RejectReason::Invalid, vec![range(0, 2)])]);
    assert_eq!(reasons(&w.ack(s, 1, 4, 4)), [(RejectReason::NotHeld, vec![range(4, 4)])]);
    let far = Outcome::Retry { delay_ms: Some(3_600_001), reason: String::new() };
    assert_eq!(reasons(&w.settle(s, 1, &[range(0, 0)], far)), [(RejectReason::Invalid, vec![range(0, 0)])]);
    let stale = Settlement { leases: Leases { epoch: Epoch(8), ..leases(0, &[range(0, 0)]) }, outcome: Outcome::Ack };
    let stale = Settlements { seen: 1, settlements: vec![stale], ..Settlements::default() };
    assert_eq!(w.engine.settle_unary(w.now, Some(s), stale).now().unwrap()[0].reason, RejectReason::StaleEpoch);
    assert_eq!(w.engine.leases_open(), 6);
    // Others' records inside a range are silence, however wide it is.
    assert!(w.ack(s, 1, 0, i64::MAX).is_empty());
    assert_eq!(w.engine.leases_open(), 3);
    assert!(w.ack(s, 1, 0, 2).is_empty(), "acked before with the same outcome");
    let extend = Outcome::Extend { ack_timeout_ms: None };
    assert_eq!(reasons(&w.settle(s, 1, &[range(0, 5)], extend)), [(RejectReason::NotHeld, vec![range(0, 2)])]);
    assert!(w.ack(other, 1, 3, 5).is_empty());
}

#[test]
fn ranges_over_each_other_cost_no_more_than_a_few_looks_at_what_is_known() {
    let mut w = World::new();
    w.assign(0);
    let s = w.open(None, 5_000);
    w.receive(0, 0..5_000);
    w.poll();
    // Each names all that is held, and settles none of it: looked at once for each range, this would take minutes.
    let ranges: Vec<_> = (0..100_000).map(|n| range(0, 1_000_000 + n)).collect();
    let rejections = w.settle(s, u64::MAX, &ranges, Outcome::Extend { ack_timeout_ms: None });
    assert_eq!(rejections.iter().map(|r| r.reason).collect::<Vec<_>>(), [RejectReason::Invalid]);
    assert!(rejections[0].leases.offsets.len() > 90_000);
    // The next frame is a frame like any other.
    assert!(w.ack(s, u64::MAX, 0, 4_999).is_empty());
    assert_eq!(w.engine.leases_open(), 0);
}

#[test]
fn a_lease_that_expires_comes_again_with_an_attempt_and_its_late_ack_is_not_held() {
    let mut w = World::new();
    w.assign(0);
    let s = w.open(None, 10);
    w.receive(0, 0..2);
    w.poll();
    let outputs = w.after(300_000);
    let revoked = Output::Revoked { session: s, leases: leases(0, &[range(0, 1)]), reason: RevokeReason::Expired };
    assert!(outputs.contains(&revoked));
    assert_eq!(reasons(&w.ack(s, 1, 0, 1)), [(RejectReason::NotHeld, vec![range(0, 1)])]);
    assert!(w.engine.sessions()[0].unresponsive);
    let again = w.after(1_000);
    assert_eq!(dealt(&again), [(1, 2, vec![0])], "one at a time");
    assert_eq!(w.engine.stats().expired, 2);
    assert!(w.ack(s, 2, 0, 0).is_empty());
    assert_eq!(dealt(&w.poll()), [(1, 3, vec![1])]);
}

#[test]
fn extend_moves_the_expiry_of_a_part_of_a_lease() {
    let mut w = World::new();
    w.assign(0);
    let s = w.open(None, 10);
    w.receive(0, 0..4);
    w.poll();
    let extend = Outcome::Extend { ack_timeout_ms: Some(400_000) };
    assert!(w.settle(s, 1, &[range(1, 2)], extend).is_empty());
    w.after(300_000);
    assert_eq!(w.engine.leases_open(), 2);
    assert!(w.ack(s, 1, 1, 2).is_empty());
    assert_eq!(w.engine.leases_open(), 0);
}

#[test]
fn an_exhausted_record_blocks_or_is_dropped_as_the_policy_says() {
    for (on_exhausted, done) in [(OnExhausted::Block, 0), (OnExhausted::Drop, 1)] {
        let mut w = World::with(|policy| {
            policy.max_attempts = 2;
            policy.on_exhausted = on_exhausted;
        });
        w.assign(0);
        let s = w.open(None, 1);
        w.receive(0, [0]);
        w.poll();
        let retry = || Outcome::Retry { delay_ms: None, reason: String::new() };
        w.settle(s, 1, &[range(0, 0)], retry());
        assert_eq!(dealt(&w.after(999)), []);
        assert_eq!(dealt(&w.after(1)), [(1, 2, vec![0])]);
        w.settle(s, 2, &[range(0, 0)], retry());
        assert_eq!((w.engine.stats().failed, w.engine.stats().filtered), (1, done));
        let blocked = w.engine.partitions(w.now)[0].blocked_on;
        assert_eq!(blocked, (done == 0).then_some(BlockedOn::Exhausted));
    }
}

#[test]
fn each_failure_waits_longer_up_to_a_limit_and_a_clients_delay_wins_and_counts() {
    let mut w = World::with(|policy| {
        policy.max_attempts = 9;
        policy.backoff = Backoff { initial_ms: 100, multiplier: 3.0, max_ms: 2_000, jitter: 0.0 };
    });
    w.assign(0);
    let s = w.open(None, 1);
    w.receive(0, [0]);
    w.poll();
    // The delay that a client asks for does not shorten the next one, and is not held to the limit.
    let steps = [(None, 100), (Some(7), 7), (None, 900), (Some(5_000), 5_000), (None, 2_000), (None, 2_000)];
    for (frame, (delay_ms, wait_ms)) in (1..).zip(steps) {
        assert!(w.settle(s, frame, &[range(0, 0)], Outcome::Retry { delay_ms, reason: String::new() }).is_empty());
        assert_eq!(dealt(&w.after(wait_ms - 1)), [], "not before {wait_ms} ms");
        let outputs = w.after(1);
        assert_eq!(dealt(&outputs), [(1, frame + 1, vec![0])]);
        let attempts = outputs.iter().find_map(|output| match output {
            Output::Deliver { batches, .. } => Some(u64::from(batches[0].records.iter().next().unwrap().attempts)),
            _ => None,
        });
        assert_eq!(attempts, Some(frame));
    }
}

#[test]
fn a_released_record_goes_to_another_session_at_once_and_to_the_same_after_a_while() {
    let mut w = World::new();
    w.assign(0);
    let s = w.open(None, 1);
    w.receive(0, [0]);
    w.poll();
    w.settle(s, 1, &[range(0, 0)], Outcome::Release);
    assert_eq!(dealt(&w.poll()), []);
    assert_eq!(dealt(&w.after(100)), [(1, 2, vec![0])]);
    w.settle(s, 2, &[range(0, 0)], Outcome::Release);
    w.open(None, 1);
    assert_eq!(dealt(&w.poll()), [(2, 1, vec![0])]);
}

#[test]
fn a_million_ranges_are_answered() {
    let mut w = World::new();
    w.assign(0);
    let s = w.open(None, 100);
    w.receive(0, 0..100);
    w.poll();
    let ranges: Vec<OffsetRange> = (0..1_000_000).map(|n| range(n * 3, n * 3)).collect();
    let rejections = w.settle(s, 1, &ranges, Outcome::Ack);
    assert_eq!(rejections[0].leases.offsets.len(), 1_000_000 - 34);
    let wide = vec![range(0, i64::MAX); 100_000];
    assert!(w.settle(s, 1, &wide, Outcome::Ack).is_empty());
    assert_eq!(w.engine.leases_open(), 0);
}

#[test]
fn an_extension_of_no_time_is_invalid_and_the_lease_stays() {
    let mut w = World::new();
    w.assign(0);
    let s = w.open(None, 4);
    w.receive(0, 0..1);
    w.poll();
    let extend = Outcome::Extend { ack_timeout_ms: Some(0) };
    let rejections = w.settle(s, 1, &[range(0, 0)], extend);
    assert_eq!(rejections, [Rejection { leases: leases(0, &[range(0, 0)]), reason: RejectReason::Invalid }]);
    assert!(w.after(1).is_empty());
    assert!(w.ack(s, 1, 0, 0).is_empty());
}

#[test]
fn a_settlement_that_makes_no_sense_is_answered_even_when_it_names_no_lease() {
    let mut w = World::new();
    w.assign(0);
    let s = w.open(None, 4);
    let rejections = w.settle(s, 1, &[], Outcome::Unreadable);
    assert_eq!(rejections, [Rejection { leases: leases(0, &[]), reason: RejectReason::Invalid }]);
}
