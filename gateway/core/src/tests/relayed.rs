//! Sessions that another node relays.

use super::*;

impl World {
    fn open_relayed(&mut self, consumer: Option<&str>, max_records: u32, seen: u64) -> SessionId {
        let window = Some(Window { max_records, max_bytes: 0 });
        let consumer_id = consumer.map(Into::into);
        self.engine.open(self.now, Open { consumer_id, window, via: Via::FarEdge, seen, ..Open::default() }).session
    }
}

#[test]
fn sessions_of_this_node_come_first_and_the_rest_goes_to_relayed_ones() {
    let mut w = World::new();
    w.assign(0);
    let far = w.open_relayed(None, 100, 0);
    let near = w.open(None, 10);
    w.receive(0, 0..10);
    assert_eq!(dealt(&w.poll()), [(near.0, 1, (0..10).collect())]);
    w.receive(0, 10..15);
    assert_eq!(dealt(&w.poll()), [(far.0, 1, (10..15).collect())], "nobody here has room");
    w.ack(near, 1, 0, 4);
    w.receive(0, 15..25);
    let shares: Vec<_> = dealt(&w.poll()).into_iter().map(|(session, _, offsets)| (session, offsets.len())).collect();
    assert_eq!(shares, [(near.0, 5), (far.0, 5)]);
}

#[test]
fn relayed_sessions_take_turns() {
    let mut w = World::new();
    w.assign(0);
    let far: Vec<_> = (0..4).map(|_| w.open_relayed(None, 5, 0)).collect();
    w.receive(0, 0..40);
    let mut counts = std::collections::BTreeMap::new();
    for (session, _, offsets) in dealt(&w.poll()) {
        *counts.entry(session).or_insert(0) += offsets.len();
    }
    assert_eq!(counts, far.iter().map(|session| (session.0, 5)).collect());
}

#[test]
fn a_consumer_that_comes_back_through_another_node_is_dealt_to_in_its_new_turn() {
    let mut w = World::new();
    w.assign(0);
    let s = w.open(Some("a"), 10);
    w.engine.close(w.now, s, End::Broken);
    assert_eq!(w.open_relayed(Some("a"), 10, 1), s);
    let near = w.open(None, 10);
    w.receive(0, 0..12);
    assert_eq!(dealt(&w.poll()), [(near.0, 1, (0..10).collect()), (s.0, 1, vec![10, 11])]);
}

#[test]
fn of_a_relayed_consumer_all_that_both_sides_have_is_kept_whatever_its_edge_counted() {
    let mut w = World::new();
    w.assign(0);
    let s = w.open_relayed(Some("a"), 2, 0);
    w.receive(0, 0..2);
    w.poll();
    w.engine.close(w.now, s, End::EdgeGone);
    let holding = vec![leases(0, &[range(1, 1)])];
    let window = Some(Window { max_records: 2, max_bytes: 0 });
    let consumer_id = Some("a".into());
    // The edge that is gone had given the client's frames numbers of its own.
    let open =
        Open { consumer_id, window, holding: holding.clone(), seen: 1_000, via: Via::NearEdge, ..Open::default() };
    assert_eq!(w.engine.open(w.now, open).held, holding);
    assert_eq!(dealt(&w.poll()), [(s.0, 2, vec![0])], "the owner's numbering goes on");
}

#[test]
fn an_edge_that_dies_makes_no_suspects_and_its_consumers_may_come_back() {
    let mut w = World::with(|policy| policy.suspect_marks = 1);
    w.assign(0);
    let anonymous = w.open_relayed(None, 1, 0);
    let named = w.open_relayed(Some("a"), 1, 0);
    w.receive(0, 0..2);
    w.poll();
    w.engine.close(w.now, anonymous, End::EdgeGone);
    w.engine.close(w.now, named, End::EdgeGone);
    assert_eq!(w.engine.leases_open(), 1, "that of the consumer waits");
    w.open(None, 1);
    assert_eq!(dealt(&w.poll()).len(), 1, "the other is dealt on at once");
    let outputs = w.after(3_000);
    assert!(outputs.contains(&Output::Gone { session: named }));
    assert_eq!((w.engine.leases_open(), w.engine.partitions(w.now)[0].suspects), (1, 0));
    assert_eq!((w.engine.stats().sessions_died, w.engine.stats().sessions_broke_together), (0, 0));
}

#[test]
fn into_a_part_of_a_window_no_record_goes_that_is_larger_than_it() {
    let mut w = World::new();
    w.assign(0);
    let s = w.open_relayed(None, 0, 0);
    let window = Window { max_records: 10, max_bytes: 100 };
    w.engine.window_part(w.now, s, window);
    w.engine.records(w.now, &p(0), EPOCH, vec![record_of(0, 60), record_of(1, 500)]);
    assert_eq!(dealt(&w.poll()), [(s.0, 1, vec![0])]);
    w.ack(s, 1, 0, 0);
    assert_eq!(w.poll(), [], "it holds nothing, but others may hold something for the same consumer");
    w.engine.window(w.now, s, window);
    assert_eq!(dealt(&w.poll()), [(s.0, 2, vec![1])], "the whole window may be exceeded by one record");
    assert_eq!(w.engine.held(s), (1, 500));
}
