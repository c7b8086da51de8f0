use super::*;

#[test]
fn a_resumed_session_keeps_what_both_sides_have() {
    let mut w = World::new();
    w.assign(0);
    let s = w.open(Some("a"), 4);
    w.receive(0, 0..4);
    w.poll();
    w.engine.close(w.now, s, End::Broken);
    assert_eq!(w.engine.leases_open(), 4);
    w.open(None, 4);
    assert_eq!(dealt(&w.poll()), []);
    let open =
        Open { consumer_id: Some("a".into()), holding: vec![leases(0, &[range(0, 1)])], seen: 1, ..Open::default() };
    let opened = w.engine.open(w.now, open);
    assert_eq!((opened.session, opened.resumed), (s, Resumed::AfterBreak));
    assert_eq!(opened.held, [leases(0, &[range(0, 1)])]);
    assert_eq!(dealt(&w.poll()), [(2, 1, vec![2, 3])]);
    assert!(w.ack(s, 1, 0, 1).is_empty());
    assert_eq!(w.engine.stats().released, 0);
}

#[test]
fn a_broken_session_that_does_not_come_back_gives_its_leases_to_others_uncounted() {
    let mut w = World::new();
    w.assign(0);
    let s = w.open(Some("a"), 4);
    w.receive(0, 0..2);
    w.poll();
    w.engine.close(w.now, s, End::Broken);
    w.open(None, 4);
    assert!(w.after(2_999).is_empty());
    let outputs = w.after(1);
    assert!(outputs.contains(&Output::Gone { session: s }));
    assert_eq!(dealt(&outputs), [(2, 1, vec![0, 1])]);
}

#[test]
fn a_resume_that_lists_ranges_reversed_or_out_of_bounds_keeps_nothing_of_them() {
    let mut w = World::new();
    w.assign(0);
    let s = w.open(Some("a"), 4);
    w.receive(0, 0..4);
    w.poll();
    for odd in [range(1_000, 0), range(0, -500), range(i64::MAX, i64::MIN), range(i64::MIN, i64::MIN)] {
        w.engine.close(w.now, s, End::Broken);
        let window = Some(Window { max_records: 4, max_bytes: 0 });
        let holding = vec![leases(0, &[odd])];
        let open = Open { consumer_id: Some("a".into()), window, holding, ..Open::default() };
        let opened = w.engine.open(w.now, open);
        assert_eq!((opened.session, opened.held), (s, Vec::new()), "{odd:?}");
        assert_eq!(dealt(&w.poll())[0].2, [0, 1, 2, 3], "{odd:?}");
    }
}

#[test]
fn a_sequence_that_no_session_can_have_seen_stops_nothing() {
    let mut w = World::new();
    w.assign(0);
    w.receive(0, 0..2);
    let window = Some(Window { max_records: 1, max_bytes: 0 });
    let opened = w.engine.open(w.now, Open { window, seen: u64::MAX, ..Open::default() });
    let frames = dealt(&w.poll());
    assert_eq!(frames[0].2, [0]);
    assert!(w.ack(opened.session, u64::MAX, 0, 0).is_empty());
    assert_eq!(dealt(&w.poll())[0].1, frames[0].1 + 1);
}

#[test]
fn a_session_with_a_huge_window_remembers_a_bounded_number_of_leases() {
    let mut w = World::new();
    w.assign(0);
    let s = w.open(None, u32::MAX);
    for offset in 0..20_000 {
        w.receive(0, [offset]);
        while w.engine.poll_output(w.now).is_some() {}
        let settlements = vec![Settlement { leases: leases(0, &[range(offset, offset)]), outcome: Outcome::Ack }];
        let settlements = Settlements { settlements, ..Settlements::default() };
        assert!(w.engine.settle_unary(w.now, Some(s), settlements).now().unwrap().is_empty());
    }
    let remembered = w.engine.sessions[&s].past.entries();
    assert!(remembered <= crate::session::REMEMBERED_ENTRIES_MAX, "{remembered}");
    // The last are still known.
    assert!(w.ack(s, 0, 19_999, 19_999).is_empty());
}

#[test]
fn many_sessions_together_remember_a_bounded_number_of_leases() {
    use crate::session::{
        REMEMBERED_ENTRIES_MAX, REMEMBERED_ENTRIES_MIN, REMEMBERED_ENTRIES_SUM_MAX, remembered_share,
    };
    for sessions in [0, 1, 63, 64, 65, 1_000, 8_191, 8_192] {
        let share = remembered_share(sessions);
        assert!(
            share <= REMEMBERED_ENTRIES_MAX && share * sessions <= REMEMBERED_ENTRIES_SUM_MAX,
            "{sessions}: {share}"
        );
    }
    assert_eq!(remembered_share(usize::MAX / 4), REMEMBERED_ENTRIES_MIN, "what a usual window needs is always there");
    let mut w = World::with(|policy| policy.resume_timeout_ms = 1_000);
    w.assign(0);
    let s = w.open(None, u32::MAX);
    for offset in 0..1_000 {
        w.receive(0, [offset]);
        while w.engine.poll_output(w.now).is_some() {}
        assert!(w.ack(s, 0, offset, offset).is_empty());
    }
    assert_eq!(w.engine.remembered(), 1_000);
    // So many others come that it must forget most, and it still knows its last ones.
    let others: Vec<_> = (0..8_192).map(|n| w.open(Some(&n.to_string()), 0)).collect();
    assert_eq!(w.engine.remembered(), REMEMBERED_ENTRIES_MIN as u64);
    assert!(w.ack(s, 0, 999, 999).is_empty());
    assert_eq!(w.ack(s, 0, 0, 0)[0].reason, RejectReason::NotHeld);
    others.into_iter().for_each(|other| w.engine.close(w.now, other, End::Broken));
    w.after(1_000);
    assert_eq!(w.engine.remembered_share, REMEMBERED_ENTRIES_MAX, "and when they have gone there is room again");
}
