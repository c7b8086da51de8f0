//! What the client extends by itself. A lease lasts 40 s here, and the task looks each 10 s.

use super::*;

/// The extended offsets as ranges; anything else fails.
fn extended(written: &[v1::Settlements]) -> Vec<(i64, i64)> {
    let settlements: Vec<_> = written.iter().flat_map(|frame| &frame.settlements).collect();
    assert!(settlements.iter().all(|settlement| matches!(settlement.outcome, Some(WireOutcome::Extend(_)))));
    settlements.into_iter().flat_map(ranges_of).collect()
}

#[test]
fn only_what_waits_in_the_queue_is_extended_and_by_range() {
    let mut harness = Harness::new();
    harness.deliver(&[1, 2, 3, 4, 5, 9]);
    let given = harness.take(2);
    assert!(harness.after(0).is_empty(), "too early");
    let written = harness.after(10);
    assert_eq!(written[0].settlements.len(), 1);
    // 6 to 8 are others'.
    assert_eq!(extended(&written), [(1, 1), (3, 9)]);
    assert!(harness.after(0).is_empty(), "extended just now");
    given.ack();
    harness.pump();
}

#[test]
fn no_queued_lease_is_older_than_half_the_ack_timeout() {
    let mut harness = Harness::new();
    harness.deliver(&[1]);
    let mut begun = harness.now;
    for _ in 0..200 {
        if !harness.after(10).is_empty() {
            begun = harness.now;
        }
        assert!(harness.now - begun <= Duration::from_secs(20));
    }
}

#[test]
fn a_record_that_asks_for_it_is_extended_until_it_is_settled_or_the_limit_has_passed() {
    let mut harness = Harness::new();
    harness.deliver(&[1, 2, 3]);
    let [long, hanging, short] = [1, 2, 3].map(|offset| harness.take(offset));
    long.keep_extending(Duration::MAX);
    hanging.keep_extending(Duration::from_secs(25));
    assert_eq!(extended(&harness.written()), [(1, 2)], "at once: the lease may be about to end");
    assert_eq!(extended(&harness.after(10)), [(1, 2)]);
    assert_eq!(extended(&harness.after(10)), [(1, 2)]);
    assert_eq!(extended(&harness.after(10)), [(1, 1)], "what hangs is given up");
    long.ack();
    assert!(is_ack(&harness.written()[0].settlements[0]));
    assert!(harness.after(10).is_empty());
    drop((hanging, short));
}

#[test]
fn every_record_that_is_held_is_extended_where_the_consumer_says_so() {
    let mut harness = Harness::with(|settings| settings.extend_while_held = Some(Duration::from_secs(25)));
    harness.deliver(&[1, 2]);
    let held = harness.take(1);
    for _ in 0..3 {
        assert_eq!(extended(&harness.after(10)), [(1, 2)]);
    }
    // 25 s after the task saw that the application has it.
    assert_eq!(extended(&harness.after(10)), [(2, 2)]);
    held.ack();
}

#[test]
fn a_longer_extension_of_the_application_is_not_cut_short() {
    let mut harness = Harness::new();
    harness.deliver(&[1]);
    let record = harness.take(1);
    record.keep_extending(Duration::MAX);
    record.extend_for(Duration::from_secs(600));
    harness.written();
    assert!((0..55).all(|_| harness.after(10).is_empty()));
    assert_eq!(extended(&harness.after(30)), [(1, 1)], "then the client goes on");
    record.ack();
}

#[test]
fn a_refused_extension_ends_the_lease_it_meant_and_not_a_later_one() {
    let mut harness = Harness::new();
    harness.deliver(&[1, 2]);
    let first = harness.take(1);
    first.extend();
    let extension = harness.written();
    // It expires, and both are dealt again before the extension is read.
    let revoked = v1::Revoked { leases: Some(leases(&[(1, 1)])), reason: v1::RevokeReason::Expired.into() };
    harness.handle(Response::Revoked(revoked));
    harness.deliver(&[1]);
    let again = harness.take(1);
    let not_held = rejection(&[(1, 1)], v1::RejectReason::NotHeld);
    harness.answer(extension[0].request_id, vec![not_held.clone()]);
    assert!(first.is_revoked() && !again.is_revoked());
    again.extend();
    let extension = harness.written();
    harness.answer(extension[0].request_id, vec![not_held]);
    assert!(again.is_revoked());
}
