use super::*;

#[test]
fn sessions_with_equal_windows_share_evenly() {
    let mut w = World::new();
    w.assign(0);
    w.assign(1);
    for _ in 0..10 {
        w.open(None, 20);
    }
    w.receive(0, 0..100);
    w.receive(1, 0..100);
    let outputs = w.poll();
    let mut counts = [0; 10];
    for (session, _, offsets) in dealt(&outputs) {
        counts[session as usize - 1] += offsets.len();
    }
    assert_eq!(counts, [20; 10]);
    assert_eq!(w.engine.leases_open(), 200);
}

#[test]
fn frames_keep_to_records_bytes_and_the_clients_limit() {
    let mut w = World::new();
    w.assign(0);
    let window = Some(Window { max_records: 1_000, max_bytes: 0 });
    let open = Open { window, max_frame_bytes: 40_000, ..Open::default() };
    let small = w.engine.open(w.now, open).session;
    w.engine.records(
        w.now,
        &p(0),
        EPOCH,
        (0..200).map(|n| record_of(n, if n == 50 { 50_000 } else { 1_000 })).collect(),
    );
    for output in w.poll() {
        let Output::Deliver { batches, .. } = output else { continue };
        let bytes: usize = batches.iter().flat_map(|b| b.records.iter().map(|d| d.record.bytes())).sum();
        assert!(bytes < 40_000 && batches[0].records.len() <= 100);
    }
    assert_eq!(w.engine.leases_open(), 199, "what fits no connected session waits");
    assert_eq!(w.engine.partitions(w.now)[0].waiting_retry, 0, "it does not wait for time");
    w.ack(small, 100, 0, 300);
    assert_eq!(w.engine.partitions(w.now)[0].blocked_on, Some(BlockedOn::NoWindow));
    w.open(None, 1);
    assert_eq!(dealt(&w.poll()), [(2, 1, vec![50])]);
}

#[test]
fn a_window_of_bytes_is_kept_but_for_one_record_alone() {
    let mut w = World::new();
    w.assign(0);
    let window = Some(Window { max_records: 10, max_bytes: 100 });
    let s = w.engine.open(w.now, Open { window, ..Open::default() }).session;
    w.engine.records(w.now, &p(0), EPOCH, vec![record_of(0, 60), record_of(1, 60), record_of(2, 500), record_of(3, 1)]);
    for (frame, offset) in [(1, 0), (2, 1), (3, 2), (4, 3)] {
        assert_eq!(dealt(&w.poll()), [(1, frame, vec![offset])]);
        w.ack(s, frame, offset, offset);
    }
}

#[test]
fn a_partition_at_its_span_is_held_back_until_it_is_below_four_fifths() {
    let mut w = World::with(|policy| policy.span_max = 10);
    w.assign(0);
    let s = w.open(None, 100);
    w.receive(0, 0..12);
    let outputs = w.poll();
    assert_eq!(outputs[0], Output::Hold { partition: p(0) });
    assert_eq!(w.engine.partitions(w.now)[0].blocked_on, Some(BlockedOn::SpanLimit));
    w.ack(s, 1, 0, 3);
    assert_eq!(w.poll(), []);
    w.ack(s, 1, 4, 4);
    assert_eq!(w.poll(), [Output::Unhold { partition: p(0), next: NextOffset(12) }]);
}

#[test]
fn at_the_subscriptions_budget_the_fetch_rests() {
    let mut w = World::with(|policy| policy.subscription_bytes_max = 1_000);
    w.assign(0);
    w.assign(1);
    w.receive(0, 0..10);
    assert_eq!(w.poll(), [Output::Rest(true)]);
    let blocked: Vec<_> = w.engine.partitions(w.now).iter().map(|view| view.blocked_on).collect();
    assert_eq!(blocked, [Some(BlockedOn::MemoryBudget); 2], "the rest is for all");
    w.engine.lost(w.now, &[p(0)], RevokeReason::Reassigned);
    assert_eq!(w.poll(), [Output::Rest(false)]);
    assert_eq!(w.engine.bytes_held(), 0);
}

#[test]
fn what_is_known_of_failures_counts_as_bytes_held() {
    let mut w = World::new();
    w.assign(0);
    let s = w.open(None, 100);
    w.receive(0, 0..100);
    w.poll();
    let before = w.engine.bytes_held();
    w.settle(s, 1, &[range(0, 99)], Outcome::Retry { delay_ms: Some(1_000), reason: "no database".into() });
    w.poll();
    let failed = w.engine.bytes_held();
    assert!(failed >= before + 100 * 100, "from {before} to {failed}");
    w.after(1_000);
    assert!(w.ack(s, 2, 0, 99).is_empty());
    w.poll();
    assert_eq!(w.engine.bytes_held(), 0);
}

#[test]
fn a_paused_subscription_deals_nothing() {
    let mut w = World::new();
    w.assign(0);
    w.open(None, 100);
    w.engine.set_paused(w.now, true);
    w.receive(0, 0..10);
    assert_eq!(w.poll(), []);
    w.engine.set_paused(w.now, false);
    assert_eq!(dealt(&w.poll()).len(), 1);
}

#[test]
fn a_million_records_go_through_behind_a_stuck_one() {
    let mut w = World::with(|policy| policy.span_max = 2_000_000);
    w.assign(0);
    let stuck = w.open(None, 1);
    w.receive(0, [0]);
    w.poll();
    assert_eq!(w.engine.sessions()[0].leased, 1);
    let workers: Vec<SessionId> = (0..10).map(|_| w.open(None, 1_000)).collect();
    let (mut acked, mut committed) = (0, None);
    for first in (1..1_000_000).step_by(10_000) {
        w.receive(0, first..first + 10_000);
        while let Some(output) = w.engine.poll_output(w.now) {
            let Output::Deliver { session, sequence, batches } = output else {
                committed = w.committed(&[output]).or(committed);
                continue;
            };
            let offsets: Vec<i64> = batches[0].records.iter().map(|dealt| dealt.record.offset).collect();
            let offsets = vec![range(offsets[0], offsets[offsets.len() - 1])];
            acked += batches[0].records.len();
            let settlements = vec![Settlement { leases: leases(0, &offsets), outcome: Outcome::Ack }];
            let settlements = Settlements { seen: sequence, settlements, ..Settlements::default() };
            w.engine.settle(w.now, session, settlements);
        }
    }
    assert_eq!((acked, w.engine.leases_open()), (1_000_000, 1));
    let outputs = w.after(250);
    let (offset, metadata) = w.committed(&outputs).or(committed).unwrap();
    assert_eq!((offset, metadata::decode(&metadata).unwrap().done), (0, vec![range(1, 1_000_000)]));
    assert!(w.engine.bytes_held() < 1_000);
    assert!(workers.len() == 10 && w.ack(stuck, 1, 0, 0).is_empty());
    assert_eq!(w.engine.partitions(w.now)[0].committable, NextOffset(1_000_001));
}

#[test]
fn while_all_are_full_the_fetch_rests_at_what_is_ready_and_goes_on_at_half_of_it() {
    // A record counts 10 + 128 bytes.
    let mut w = World::with(|policy| policy.ready_bytes_max = 100 * 138);
    w.assign(0);
    let s = w.open(None, 50);
    w.receive(0, 0..149);
    assert_eq!(dealt(&w.poll()), [(1, 1, (0..50).collect())]);
    assert_eq!(w.poll(), [], "99 are ready");
    w.receive(0, 149..150);
    assert_eq!(w.poll(), [Output::Rest(true)]);
    assert!(!w.engine.is_over_budget(), "it is no lack of memory");
    assert_eq!(w.engine.partitions(w.now)[0].blocked_on, Some(BlockedOn::Leased));
    w.ack(s, 1, 0, 48);
    assert!(!w.poll().contains(&Output::Rest(false)), "51 are ready");
    w.ack(s, 1, 49, 49);
    let outputs = w.poll();
    assert_eq!(outputs.last(), Some(&Output::Rest(false)), "50 are ready");
}

#[test]
fn the_fetch_goes_on_while_somebody_has_room_that_nothing_ready_fits() {
    let mut w = World::with(|policy| policy.ready_bytes_max = 1_000);
    w.assign(0);
    let open = |max_records, max_frame_bytes| {
        let window = Some(Window { max_records, max_bytes: 0 });
        Open { window, max_frame_bytes, ..Open::default() }
    };
    w.engine.open(w.now, open(1, 1 << 20));
    w.engine.open(w.now, open(100, 20_000));
    w.engine.records(w.now, &p(0), EPOCH, (0..10).map(|n| record_of(n, 50_000)).collect());
    assert_eq!(dealt(&w.poll()), [(1, 1, vec![0])], "the large ones wait for the one whose frames are large");
    w.receive(0, 10..11);
    assert_eq!(dealt(&w.poll()), [(2, 1, vec![10])]);
}

#[test]
fn a_paused_subscription_fetches_no_more_than_what_may_be_ready() {
    let mut w = World::with(|policy| policy.ready_bytes_max = 1_000);
    w.assign(0);
    w.open(None, 100);
    w.engine.set_paused(w.now, true);
    w.receive(0, 0..50);
    assert_eq!(w.poll(), [Output::Rest(true)]);
    w.engine.set_paused(w.now, false);
    let outputs = w.poll();
    assert_eq!(outputs.last(), Some(&Output::Rest(false)));
    assert_eq!(w.engine.leases_open(), 50);
}

#[test]
fn who_settles_at_once_is_dealt_whole_frames() {
    let mut w = World::new();
    w.assign(0);
    for _ in 0..10 {
        w.open(None, 1_000);
    }
    w.receive(0, 0..50);
    let first = dealt(&w.poll());
    assert!(first.iter().all(|(_, _, offsets)| offsets.len() <= 5), "nothing is known of them: {first:?}");
    for (id, sequence, offsets) in &first {
        w.ack(SessionId(*id), *sequence, offsets[0], offsets[offsets.len() - 1]);
    }
    let mut next = 50;
    for _ in 0..60 {
        w.receive(0, next..next + 50);
        next += 50;
        for (id, sequence, offsets) in dealt(&w.poll()) {
            w.ack(SessionId(id), sequence, offsets[0], offsets[offsets.len() - 1]);
        }
    }
    w.receive(0, next..next + 100);
    let quick = dealt(&w.poll());
    assert_eq!(quick.len(), 1, "one frame for one that is done with it at once: {quick:?}");
}

#[test]
fn the_fetch_goes_on_while_a_partition_has_nothing_ready() {
    let mut w = World::with(|policy| policy.ready_bytes_max = 1_000);
    w.assign(0);
    w.assign(1);
    w.open(None, 1);
    w.receive(0, 0..50);
    assert_eq!(dealt(&w.poll()), [(1, 1, vec![0])]);
    assert_eq!(w.poll(), [], "what comes next may be of the other partition");
    w.receive(1, 0..1);
    assert_eq!(w.poll(), [Output::Rest(true)]);
    w.engine.lost(w.now, &[p(1)], RevokeReason::Reassigned);
    w.assign(1);
    let rests: Vec<_> = w.poll().into_iter().filter(|o| matches!(o, Output::Rest(_))).collect();
    assert_eq!(rests, [Output::Rest(false)]);
}
