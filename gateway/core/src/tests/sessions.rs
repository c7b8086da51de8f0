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
