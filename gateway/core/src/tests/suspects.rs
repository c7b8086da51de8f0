//! Sessions that die, and the records that they die of.

use std::collections::BTreeMap;

use super::*;

impl World {
    fn with_topic_for_poison() -> Self {
        Self::with(|policy| {
            policy.dead_letter_topic = true;
            policy.on_exhausted = OnExhausted::DeadLetter;
        })
    }

    fn die(&mut self, session: SessionId) -> Vec<Output> {
        self.engine.close(self.now, session, End::Broken);
        self.poll()
    }

    fn view_of(&self, partition: usize) -> PartitionView {
        self.engine.partitions(self.now).swap_remove(partition)
    }
}

/// Offsets of the dead letters given to the driver, and the words beside them.
fn letters(outputs: &[Output]) -> Vec<(i64, u32, Option<String>)> {
    let of = |output: &Output| match output {
        Output::DeadLetter { letter, .. } => {
            Some((letter.record.offset, letter.attempts, letter.reason.as_deref().map(Into::into)))
        }
        _ => None,
    };
    outputs.iter().filter_map(of).collect()
}

/// `fleet` workers with windows of 100; whoever holds `poison` dies of it, and its place is taken at once. The others ack what
/// they hold after a while. Gives the deaths until the poison is in the dead letters.
fn deaths_until_the_letter(
    w: &mut World,
    consumer: impl Fn(usize) -> Option<String>,
    fleet: usize,
    poison: i64,
) -> usize {
    let (mut deaths, mut names) = (0, 0);
    let mut holds: BTreeMap<SessionId, Vec<i64>> = Default::default();
    for _ in 0..fleet {
        names += 1;
        holds.insert(w.open(consumer(names).as_deref(), 100), Vec::new());
    }
    let mut outputs = w.poll();
    for _ in 0..100_000 {
        for (session, _, offsets) in dealt(&outputs) {
            holds.entry(SessionId(session)).or_default().extend(offsets);
        }
        let found = letters(&outputs);
        w.committed(&outputs);
        if let Some((offset, attempts, reason)) = found.first() {
            assert_eq!(found.len(), 1);
            assert_eq!((*offset, *attempts), (poison, 5));
            assert_eq!(reason.as_deref(), Some("the session that held it died"));
            return deaths;
        }
        if let Some(session) = holds.iter().find(|(_, held)| held.contains(&poison)).map(|(id, _)| *id) {
            deaths += 1;
            if deaths < 30 {
                eprintln!(
                    "death {deaths} at {:?} session {session:?} fleet {fleet} {:?} {:?}",
                    w.now,
                    w.engine.stats().sessions_died,
                    w.view_of(0).suspects
                );
            }
            holds.remove(&session);
            outputs = w.die(session);
            names += 1;
            holds.insert(w.open(consumer(names).as_deref(), 100), Vec::new());
            outputs.extend(w.poll());
            continue;
        }
        let ready: Vec<(SessionId, Vec<i64>)> =
            holds.iter_mut().map(|(id, held)| (*id, std::mem::take(held))).collect();
        for (session, held) in ready {
            for offset in held {
                assert!(w.ack(session, 0, offset, offset).is_empty());
            }
        }
        outputs = w.after(50);
    }
    panic!("after {deaths} deaths it is not in the dead letters: {:?}", w.view_of(0));
}

#[test]
fn a_record_that_kills_its_workers_is_a_dead_letter_after_two_and_five_deaths_and_no_innocent_is() {
    for fleet in [1, 2, 3, 4, 5, 10, 100] {
        for named in [false, true] {
            let mut w = World::with_topic_for_poison();
            w.assign(0);
            w.receive(0, 0..1_000);
            let name = |n: usize| named.then(|| format!("worker-{n}"));
            assert_eq!(deaths_until_the_letter(&mut w, name, fleet, 57), 2 + 5, "{fleet} workers, named {named}");
            assert_eq!(w.engine.stats().failed, 1);
        }
    }
}

#[test]
fn a_worker_that_is_started_again_under_its_name_has_died() {
    let mut w = World::with_topic_for_poison();
    w.assign(0);
    w.receive(0, 0..100);
    let s = w.open(Some("a"), 100);
    assert_eq!(dealt(&w.poll())[0].2.len(), 100);
    for deaths in 1..=2 {
        w.engine.close(w.now, s, End::Broken);
        w.now = w.now.plus(10);
        assert_eq!(w.open(Some("a"), 100), s);
        // Alone, so that it waits for a second; then all at once, until they are suspects.
        assert_eq!(dealt(&w.poll()), []);
        let offsets = dealt(&w.after(1_000));
        if deaths < 2 {
            assert_eq!(offsets[0].2.len(), 100);
        } else {
            assert_eq!(offsets.iter().map(|d| d.2.clone()).collect::<Vec<_>>(), [vec![0]]);
        }
    }
    assert_eq!(w.view_of(0).suspects, 100);
    assert_eq!(w.engine.stats().sessions_died, 2);
    // One that comes back and knows what it was sent has not died.
    let open = Open { consumer_id: Some("a".into()), seen: 2, ..Open::default() };
    w.engine.close(w.now, s, End::Broken);
    w.engine.open(w.now, open);
    assert_eq!((w.after(2_000), w.engine.stats().sessions_died), (vec![], 2));
}

#[test]
fn a_balancer_that_cuts_all_streams_each_minute_marks_nobody() {
    for named in [false, true] {
        let mut w = World::with(|policy| policy.max_attempts = 2);
        w.assign(0);
        w.receive(0, 0..1_000);
        for minute in 0..10 {
            let name = |n: usize| named.then(|| format!("worker-{n}"));
            let sessions: Vec<SessionId> = (0..50).map(|n| w.open(name(n).as_deref(), 10)).collect();
            let held: usize = dealt(&w.poll()).iter().map(|d| d.2.len()).sum();
            assert_eq!(held, 500, "in minute {minute}");
            for (n, session) in sessions.into_iter().enumerate() {
                w.die(session);
                w.now = w.now.plus(if n % 3 == 0 { 20 } else { 1 });
            }
            w.after(60_000);
            let view = w.view_of(0);
            assert_eq!((view.suspects, view.ready, view.waiting_retry), (0, 1_000, 0));
        }
        let stats = w.engine.stats();
        assert_eq!((stats.sessions_died, stats.sessions_broke_together, stats.failed), (0, 500, 0));
    }
}

#[test]
fn half_close_release_and_drain_are_never_deaths() {
    let mut w = World::new();
    w.assign(0);
    w.receive(0, 0..10);
    for end in [End::HalfClose, End::Drained, End::Broken] {
        let s = w.open(Some("a"), 10);
        assert_eq!(dealt(&w.poll())[0].2.len(), 10);
        w.engine.drain_session(w.now, s);
        w.engine.close(w.now, s, end);
        w.after(3_000);
    }
    assert_eq!((w.engine.stats().sessions_died, w.view_of(0).ready), (0, 10));
}

#[test]
fn done_clears_the_marks_and_a_session_holds_one_suspect() {
    let mut w = World::new();
    w.assign(0);
    w.receive(0, 0..6);
    for _ in 0..2 {
        let s = w.open(None, 10);
        w.poll();
        w.die(s);
        w.after(1_001);
    }
    w.receive(0, 6..10);
    let a = w.open(None, 10);
    let b = w.open(None, 10);
    let outputs = w.poll();
    let mut offsets: Vec<_> = dealt(&outputs).into_iter().map(|d| (d.0, d.2)).collect();
    offsets.sort();
    // Suspects first, one each and by themselves; the others beside them.
    assert_eq!(offsets.iter().filter(|d| d.1 == [0] || d.1 == [1]).count(), 2);
    assert_eq!(offsets.iter().map(|d| d.1.len()).sum::<usize>(), 6);
    assert_eq!((w.view_of(0).suspects, w.view_of(0).blocked_on), (6, Some(BlockedOn::Leased)));
    for (session, seen) in [(a, 9), (b, 9)] {
        w.settle(session, seen, &[range(0, 5)], Outcome::Ack);
    }
    assert_eq!(w.view_of(0).suspects, 4);
    let next: Vec<_> = dealt(&w.poll()).into_iter().map(|d| d.2).collect();
    assert_eq!(next, [vec![2], vec![3]]);
    w.settle(a, 99, &[range(0, 1)], Outcome::Release);
    w.engine.close(w.now, a, End::HalfClose);
    w.engine.close(w.now, b, End::HalfClose);
    assert_eq!(w.view_of(0).blocked_on, Some(BlockedOn::NoSession));
    let one = w.open(None, 1);
    assert_eq!(dealt(&w.poll()).len(), 1);
    w.engine.window(w.now, one, Window { max_records: 2, max_bytes: 0 });
    assert_eq!(dealt(&w.poll())[0].2, [6], "a record beside it, and no second suspect");
    assert_eq!(w.view_of(0).blocked_on, Some(BlockedOn::Leased));
}

#[test]
fn a_suspect_that_fits_nobody_any_more_is_too_large() {
    let mut w = World::with_topic_for_poison();
    w.assign(0);
    w.engine.records(w.now, &p(0), EPOCH, vec![record_of(0, 100_000)]);
    for _ in 0..2 {
        let s = w.open(None, 10);
        assert_eq!(dealt(&w.poll())[0].2, [0]);
        w.die(s);
        w.after(1_001);
    }
    assert_eq!(w.view_of(0).suspects, 1);
    let window = Some(Window { max_records: 10, max_bytes: 0 });
    w.engine.open(w.now, Open { window, max_frame_bytes: 10_000, ..Open::default() });
    assert_eq!((dealt(&w.poll()), w.view_of(0).blocked_on), (vec![], Some(BlockedOn::NoWindow)));
    assert_eq!(w.after(299_999), []);
    // One whose frame it fits has it, by itself; then it waits again.
    let large = w.open(None, 10);
    assert_eq!(dealt(&w.poll())[0].2, [0]);
    w.engine.close(w.now, large, End::HalfClose);
    assert_eq!(w.poll(), []);
    let outputs = w.after(300_000);
    let causes: Vec<LetterCause> = outputs
        .iter()
        .filter_map(|o| if let Output::DeadLetter { letter, .. } = o { Some(letter.cause) } else { None })
        .collect();
    assert_eq!(causes, [LetterCause::TooLarge]);
    w.engine.dead_letter_result(w.now, &p(0), EPOCH, 0, Ok(()));
    w.poll();
    assert_eq!((w.view_of(0).committable, w.view_of(0).suspects), (NextOffset(1), 0));
}

#[test]
fn two_deaths_of_a_fleet_whose_others_have_nothing_left_to_do_are_two_deaths() {
    let mut w = World::with_topic_for_poison();
    w.assign(0);
    // Four hold something: so what the first leaves is dealt on at once.
    w.receive(0, 0..4);
    let fleet: Vec<SessionId> = (0..4).map(|_| w.open(None, 1)).collect();
    let held: BTreeMap<u64, Vec<i64>> = dealt(&w.poll()).into_iter().map(|d| (d.0, d.2)).collect();
    assert_eq!(held.len(), 4);
    let poison = held[&fleet[0].0][0];
    w.engine.window(w.now, fleet[1], Window { max_records: 2, max_bytes: 0 });
    assert_eq!(dealt(&w.die(fleet[0])), [(fleet[1].0, 2, vec![poison])]);
    for session in &fleet[2..] {
        w.ack(*session, 0, held[&session.0][0], held[&session.0][0]);
    }
    w.die(fleet[1]);
    w.after(1_001);
    assert_eq!((w.engine.stats().sessions_died, w.engine.stats().sessions_broke_together), (2, 0));
    assert_eq!(w.view_of(0).suspects, 1);
}

#[test]
fn a_cut_whose_streams_come_back_at_once_marks_nobody() {
    let mut w = World::with(|policy| policy.max_attempts = 2);
    w.assign(0);
    w.receive(0, 0..100);
    for minute in 0..5 {
        // Ten hold ten records each, forty came later and wait for work. Those are cut first.
        let working: Vec<SessionId> = (0..10).map(|_| w.open(None, 10)).collect();
        assert_eq!(dealt(&w.poll()).iter().map(|d| d.2.len()).sum::<usize>(), 100, "in minute {minute}");
        let idle: Vec<SessionId> = (0..40).map(|_| w.open(None, 10)).collect();
        let mut again = Vec::new();
        for session in idle.into_iter().chain(working) {
            w.die(session);
            w.now = w.now.plus(10);
            again.push(w.open(None, 10));
            w.poll();
        }
        w.after(30_000);
        again.into_iter().for_each(|session| w.engine.close(w.now, session, End::HalfClose));
        w.after(30_000);
        assert_eq!((w.view_of(0).suspects, w.view_of(0).ready), (0, 100), "in minute {minute}");
    }
    assert_eq!(w.engine.stats().sessions_died, 0);
}
