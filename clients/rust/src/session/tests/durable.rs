//! Settlements that Kafka is to have before their answer.

use futures_util::FutureExt as _;

use super::*;
use crate::outcome::Settling;

fn stale(ranges: &[(i64, i64)]) -> v1::Rejection {
    rejection(ranges, v1::RejectReason::StaleEpoch)
}

/// The answer, which must be there.
fn answered(settling: Settling) -> Result<(), SettleError> {
    settling.now_or_never().expect("it is answered")
}

/// Marked as durable, and what they ack.
fn acks(written: &[v1::Settlements]) -> Vec<(bool, Vec<(i64, i64)>)> {
    written.iter().map(|frame| (frame.durable, frame.settlements.iter().flat_map(ranges_of).collect())).collect()
}

#[test]
fn a_durable_ack_is_answered_when_its_request_is() {
    let mut harness = Harness::new();
    harness.deliver(&[1, 2, 3]);
    let mut first = harness.take(1).ack_durable();
    let second = harness.take(2).ack_durable();
    harness.take(3).ack();
    let written = harness.written();
    assert_eq!(acks(&written), [(false, vec![(3, 3)]), (true, vec![(1, 2)])], "many in one request");
    assert!((&mut first).now_or_never().is_none());
    harness.answer(written[1].request_id, vec![stale(&[(2, 2)])]);
    assert!(answered(first).is_ok());
    let error = answered(second).unwrap_err();
    assert!(matches!(error, SettleError::StaleEpoch), "{error}");
    assert!(error.to_string().contains("may come again"));
}

#[test]
fn what_comes_while_two_durable_requests_are_unanswered_goes_into_the_next_one() {
    let mut harness = Harness::new();
    harness.deliver(&(0..100).collect::<Vec<_>>());
    let mut requests = Vec::new();
    let mut waiting = Vec::new();
    for offset in 0..100 {
        waiting.push(harness.take(offset).ack_durable());
        requests.extend(harness.written());
    }
    assert_eq!(acks(&requests), [(true, vec![(0, 0)]), (true, vec![(1, 1)])]);
    assert!(!harness.session.has_frame(), "the task must not spin");
    harness.answer(requests[0].request_id, vec![]);
    let rest = harness.written();
    assert_eq!(acks(&rest), [(true, vec![(2, 99)])]);
    harness.answer(rest[0].request_id, vec![]);
    harness.answer(requests[1].request_id, vec![]);
    assert!(waiting.into_iter().all(|settling| answered(settling).is_ok()));
    assert!(harness.session.is_settled());
}

#[test]
fn a_flush_writes_what_waits_for_room() {
    let mut harness = Harness::with(|settings| settings.durable = true);
    harness.deliver(&[1, 2, 3]);
    for offset in 1..=3 {
        harness.ack(&[offset]);
        harness.written();
    }
    let last = harness.session.fold_pending();
    assert_eq!(acks(&harness.written()), [(true, vec![(3, 3)])]);
    for request in 1..=last {
        assert!(!harness.session.is_answered(last));
        harness.answer(request, vec![]);
    }
    assert!(harness.session.is_answered(last));
}

#[test]
fn a_release_waits_for_no_commit() {
    let mut harness = Harness::with(|settings| settings.durable = true);
    harness.deliver(&[1, 2]);
    harness.ack(&[1]);
    drop(harness.take(2));
    assert_eq!(acks(&harness.written()), [(false, vec![(2, 2)]), (true, vec![(1, 1)])]);
}

#[test]
fn a_durable_settlement_is_said_again_after_a_break_and_its_caller_waits_on() {
    let mut harness = Harness::new();
    harness.deliver(&[1, 2]);
    let mut waiting = harness.take(1).ack_durable();
    let before = harness.written();
    harness.subscribe(vec![leases(&[(2, 2)])]);
    assert_eq!(harness.written(), before);
    assert!((&mut waiting).now_or_never().is_none());
    harness.answer(before[0].request_id, vec![]);
    assert!(answered(waiting).is_ok());
}

#[test]
fn what_a_session_that_is_gone_was_told_is_not_said_to_the_next_one() {
    let mut harness = Harness::new();
    harness.deliver(&[1, 2, 3]);
    let waiting: Vec<Settling> = (1..=3).map(|offset| harness.take(offset).ack_durable()).collect();
    assert_eq!(acks(&harness.written()), [(true, vec![(1, 3)])]);
    // It came back too late. "Those of mine in 1 to 3" are none now, which is answered with no rejection.
    let subscribed = Subscribed { session_id: "another".to_owned(), ..Default::default() };
    harness.session.subscribe();
    harness.handle(Response::Subscribed(subscribed));
    for frame in harness.written() {
        harness.answer(frame.request_id, vec![]);
    }
    for settling in waiting {
        assert!(matches!(answered(settling), Err(SettleError::NotHeld)), "nobody stored it");
    }
    assert!(harness.session.is_settled());
}

#[test]
fn a_durable_retry_that_comes_back_before_its_answer_lost_the_answer_with_the_connection() {
    let mut harness = Harness::new();
    harness.deliver(&[1]);
    let waiting = harness.take(1).settle_durable(Outcome::Retry { delay: Some(Duration::ZERO), reason: String::new() });
    let retry = harness.written();
    harness.deliver(&[1]);
    harness.subscribe(vec![leases(&[(1, 1)])]);
    assert!(harness.written().is_empty(), "it would be taken for the lease of now");
    assert!(matches!(answered(waiting), Err(SettleError::StaleEpoch)));
    harness.answer(retry[0].request_id, vec![]);
    harness.ack(&[1]);
    assert_eq!(acks(&harness.written()), [(false, vec![(1, 1)])]);
}

#[test]
fn whoever_waits_hears_of_a_lost_lease_a_revoke_and_the_end() {
    let mut harness = Harness::new();
    harness.deliver(&[1, 2, 3, 4]);
    let [lost, late] = [1, 2].map(|offset| harness.take(offset));
    let revoked = v1::Revoked { leases: Some(leases(&[(1, 1)])), reason: v1::RevokeReason::Expired.into() };
    harness.handle(Response::Revoked(revoked));
    let lost = lost.ack_durable();
    let late = late.ack_durable();
    harness.pump();
    assert!(matches!(answered(lost), Err(SettleError::NotHeld)));
    let revoked = v1::Revoked { leases: Some(leases(&[(2, 2)])), reason: v1::RevokeReason::Reassigned.into() };
    harness.handle(Response::Revoked(revoked));
    assert!(matches!(answered(late), Err(SettleError::StaleEpoch)));
    let [unwritten, unanswered] = [3, 4].map(|offset| harness.take(offset));
    let unanswered = unanswered.ack_durable();
    harness.written();
    let unwritten = unwritten.ack_durable();
    harness.pump();
    harness.session.revoke_all();
    assert!(matches!(answered(unwritten), Err(SettleError::NoAnswer(_))));
    assert!(matches!(answered(unanswered), Err(SettleError::NoAnswer(_))));
}

#[test]
fn what_is_refused_as_invalid_is_an_error_for_who_waits_and_retried() {
    let mut harness = Harness::with(|settings| settings.durable = true);
    harness.deliver(&[1, 2]);
    let dead = harness.take(1).settle_durable(Outcome::DeadLetter { reason: "bad".to_owned() });
    harness.take(2).ack();
    let written = harness.written();
    harness.answer(written[0].request_id, vec![rejection(&[(1, 2)], v1::RejectReason::Invalid)]);
    assert!(matches!(answered(dead), Err(SettleError::Invalid)));
    // Plain: a node that refuses to be durable would refuse this too.
    let instead = harness.written();
    assert!(instead.iter().all(|frame| !frame.durable));
    let reasons: Vec<_> = instead[0].settlements.iter().map(|settlement| settlement.outcome.clone().unwrap()).collect();
    assert_eq!(reasons.len(), 2);
    for outcome in reasons {
        assert!(matches!(&outcome, WireOutcome::Retry(retry) if retry.delay.is_none()), "{outcome:?}");
    }
}

#[test]
fn what_has_no_answer_can_be_said_by_unary_calls_and_again_on_a_stream() {
    let mut harness = Harness::new();
    harness.deliver(&[1, 2, 3]);
    harness.ack(&[1]);
    harness.written();
    let durable = harness.take(2).ack_durable();
    drop(harness.take(3));
    harness.pump();
    assert!(harness.session.waits_for_answers_alone());
    let requests = harness.session.unary_requests();
    let said: Vec<_> =
        requests.iter().map(|(number, request)| (*number, request.durable, request.session_id.as_str())).collect();
    assert_eq!(said, [(1, false, "a-session"), (2, false, "a-session"), (3, true, "a-session")]);
    // Not answered: a stream says all of it again.
    harness.subscribe(vec![]);
    assert_eq!(harness.written().len(), 3);
    for (number, _) in requests {
        harness.session.on_settled(number, &[]);
    }
    assert!(answered(durable).is_ok());
    assert!(harness.session.is_settled());
}

#[test]
fn what_is_handed_over_is_neither_waited_for_nor_bridged_and_is_claimed_after_a_break() {
    let mut harness = Harness::new();
    harness.deliver(&[1, 2, 3]);
    let receipt = harness.take(2).hand_over();
    assert_eq!((receipt.offset, receipt.frame, receipt.session_id.as_str()), (2, 1, "a-session"));
    harness.ack(&[1, 3]);
    let written = harness.written();
    assert_eq!(acks(&written), [(false, vec![(1, 1), (3, 3)])]);
    harness.answer(written[0].request_id, vec![]);
    assert!(harness.session.is_settled() && harness.session.has_handed_over());
    let subscribe = harness.subscribe(vec![]);
    assert_eq!(subscribe.holding, [v1::Leases { offsets: vec![OffsetRange { first: 2, last: None }], ..leases(&[]) }]);
    assert!(!harness.session.has_handed_over(), "settled there, or dealt again: no longer ours");
}
