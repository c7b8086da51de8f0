use super::*;

#[test]
fn a_revoked_partition_drains_commits_and_is_forgotten() {
    let mut w = World::new();
    w.assign(0);
    let s = w.open(None, 4);
    w.receive(0, 0..4);
    w.poll();
    w.engine.revoking(w.now, &[p(0)], w.now.plus(5_000));
    assert!(w.poll().is_empty());
    assert!(w.ack(s, 1, 0, 3).is_empty());
    let outputs = w.poll();
    assert_eq!(outputs.len(), 1, "{outputs:?}");
    assert_eq!(w.committed(&outputs).unwrap().0, 4);
    assert_eq!(w.poll(), [Output::Drained { partition: p(0) }]);
    assert_eq!(w.ack(s, 1, 0, 3)[0].reason, RejectReason::StaleEpoch);
}

#[test]
fn at_the_deadline_of_a_revoke_open_leases_are_fenced() {
    let mut w = World::new();
    w.assign(0);
    let s = w.open(None, 4);
    w.receive(0, 0..4);
    w.poll();
    assert!(w.ack(s, 1, 1, 1).is_empty());
    w.engine.revoking(w.now, &[p(0)], w.now.plus(100));
    let outputs = w.after(100);
    assert!(matches!(&outputs[0], Output::Revoked { reason: RevokeReason::Reassigned, .. }));
    assert_eq!(w.ack(s, 1, 0, 0)[0].reason, RejectReason::StaleEpoch);
    assert_eq!(w.committed(&outputs).unwrap().0, 0);
    assert_eq!(w.poll(), [Output::Drained { partition: p(0) }]);
    assert!(w.engine.wake_at().is_none());
}

#[test]
fn a_lease_that_would_have_expired_after_the_grace_is_fenced_and_no_failure_even_by_a_late_tick() {
    let mut w = World::new();
    w.assign(0);
    let s = w.open(None, 10);
    w.receive(0, 0..2);
    w.poll();
    w.engine.revoking(w.now, &[p(0)], w.now.plus(1_000));
    let outputs = w.after(400_000);
    let reasons: Vec<_> = outputs
        .iter()
        .filter_map(|output| match output {
            Output::Revoked { session, reason, .. } => Some((*session, *reason)),
            _ => None,
        })
        .collect();
    assert_eq!(reasons, [(s, RevokeReason::Reassigned)]);
    assert_eq!((w.engine.stats().expired, w.engine.stats().failed), (0, 0));
}
