use bytes::Bytes;

use super::*;

impl World {
    fn keyed() -> Self {
        let mut w = Self::with(|policy| policy.ordering = Ordering::Key);
        w.assign(0);
        w
    }

    /// One record a key, from this offset on; `-` is a null key, the empty one is a key.
    fn receive_keys(&mut self, from: i64, keys: &[&'static str]) {
        let of = |(n, key): (i64, &&'static str)| Record {
            key: (*key != "-").then(|| Bytes::from_static(key.as_bytes())),
            ..record(n)
        };
        let records = (from..).zip(keys).map(of).collect();
        self.engine.records(self.now, &p(0), EPOCH, records);
    }

    fn dealt(&mut self) -> Vec<i64> {
        let outputs = self.poll();
        let mut offsets: Vec<i64> = dealt(&outputs).into_iter().flat_map(|(_, _, offsets)| offsets).collect();
        offsets.sort_unstable();
        offsets
    }

    fn ack_one(&mut self, session: SessionId, offset: i64) {
        assert!(self.ack(session, 0, offset, offset).is_empty());
    }

    fn retry_one(&mut self, session: SessionId, offset: i64, delay_ms: u64) {
        let outcome = Outcome::Retry { delay_ms: Some(delay_ms), reason: String::new() };
        assert!(self.settle(session, 0, &[range(offset, offset)], outcome).is_empty());
    }
}

#[test]
fn a_record_waits_until_the_one_before_it_of_its_key_is_done() {
    let mut w = World::keyed();
    let session = w.open(None, 100);
    w.receive_keys(0, &["a", "b", "a", "-", "a", "-", "", ""]);
    assert_eq!(w.dealt(), [0, 1, 3, 5, 6], "a null key waits for nobody, an empty one is a key");
    w.ack_one(session, 1);
    assert_eq!(w.dealt(), []);
    w.ack_one(session, 0);
    assert_eq!(w.dealt(), [2]);
    w.ack_one(session, 6);
    w.ack_one(session, 2);
    assert_eq!(w.dealt(), [4, 7]);
    w.receive_keys(8, &["a", "b"]);
    assert_eq!(w.dealt(), [9]);
}

#[test]
fn ordered_by_partition_one_record_is_out_at_a_time() {
    let mut w = World::with(|policy| policy.ordering = Ordering::Partition);
    w.assign(0);
    w.assign(1);
    let session = w.open(None, 100);
    w.receive_keys(0, &["a", "b", "-"]);
    w.receive(1, [0, 1]);
    assert_eq!(w.dealt(), [0, 0], "one of each partition");
    for offset in 0..2 {
        w.ack_one(session, offset);
        assert_eq!(w.dealt(), [offset + 1]);
    }
}

#[test]
fn a_retry_keeps_its_place_and_later_records_of_its_key_wait() {
    let mut w = World::keyed();
    let session = w.open(None, 100);
    w.receive_keys(0, &["a", "a", "b"]);
    assert_eq!(w.dealt(), [0, 2]);
    w.retry_one(session, 0, 500);
    assert_eq!(w.dealt(), []);
    let view = &w.engine.partitions(w.now)[0];
    assert_eq!((view.waiting_retry, view.lane_waiting, view.ready), (1, 1, 0));
    assert_eq!(view.blocked_on, Some(BlockedOn::RetryWait));
    assert_eq!(dealt(&w.after(500)), [(1, 2, vec![0])]);
    w.ack_one(session, 0);
    assert_eq!(w.dealt(), [1]);
}

#[test]
fn however_a_lease_ends_without_its_record_done_the_key_waits_for_it() {
    let mut w = World::keyed();
    let session = w.open(None, 1);
    w.receive_keys(0, &["a", "a"]);
    assert_eq!(w.dealt(), [0]);
    // Released; to another session at once.
    assert!(w.settle(session, 0, &[range(0, 0)], Outcome::Release).is_empty());
    let other = w.open(Some("c"), 1);
    assert_eq!(w.dealt(), [0]);
    // Its holder breaks, and comes back without it.
    w.engine.close(w.now, other, End::Broken);
    assert_eq!(w.dealt(), [], "it may still come back with it");
    let open = Open { consumer_id: Some("c".into()), seen: 1, ..Open::default() };
    w.engine.open(w.now, open);
    assert_eq!(w.dealt(), [0], "to the first session: the other has no window");
    // Its holder is gone.
    w.engine.close(w.now, session, End::HalfClose);
    w.open(None, 1);
    assert_eq!(w.dealt(), [0]);
    // It expires, and comes again after its backoff.
    assert_eq!(dealt(&w.after(300_000)), []);
    assert_eq!(dealt(&w.after(1_000)), [(3, 2, vec![0])]);
    w.ack_one(SessionId(3), 0);
    assert_eq!(w.dealt(), [1]);
}

#[test]
fn a_record_dropped_by_policy_frees_its_key() {
    let mut w = World::with(|policy| {
        policy.ordering = Ordering::Key;
        policy.max_attempts = 2;
        policy.on_exhausted = OnExhausted::Drop;
    });
    w.assign(0);
    let session = w.open(None, 10);
    w.receive_keys(0, &["a", "a"]);
    assert_eq!(w.dealt(), [0]);
    w.retry_one(session, 0, 0);
    assert_eq!(w.dealt(), [0]);
    w.retry_one(session, 0, 0);
    assert_eq!(w.dealt(), [1]);
}

#[test]
fn what_a_commit_says_is_done_never_joins_a_lane() {
    let mut w = World::keyed();
    let session = w.open(None, 10);
    w.receive_keys(0, &["a", "b", "a", "b"]);
    assert_eq!(w.dealt(), [0, 1]);
    w.ack_one(session, 1);
    assert_eq!(w.dealt(), [3]);
    w.ack_one(session, 3);
    let outputs = w.after(250);
    let (next, metadata) = w.committed(&outputs).unwrap();

    let mut w = World::with(|policy| policy.ordering = Ordering::Key);
    w.assign_at(0, next, Some(metadata));
    let session = w.open(None, 10);
    w.receive_keys(0, &["a", "b", "a", "b", "b"]);
    assert_eq!(w.dealt(), [0, 4], "b's first two are done, a's second waits for the first");
    w.ack_one(session, 0);
    assert_eq!(w.dealt(), [2]);
}

#[test]
fn a_partition_that_comes_again_starts_its_lanes_anew() {
    let mut w = World::keyed();
    let session = w.open(None, 10);
    w.receive_keys(0, &["a", "a"]);
    assert_eq!(w.dealt(), [0]);
    w.engine.revoking(w.now, &[p(0)], w.now.plus(50));
    assert_eq!(w.dealt(), []);
    w.ack_one(session, 0);
    assert_eq!(w.dealt(), [], "its next is ready, and the partition is handed over");
    let outputs = w.after(50);
    w.committed(&outputs);
    w.poll();
    w.assign_at(0, 1, None);
    w.receive_keys(1, &["a"]);
    assert_eq!(w.dealt(), [1]);
}

#[test]
fn a_session_with_room_is_told_that_lanes_keep_records_from_it() {
    let mut w = World::keyed();
    w.open(None, 1);
    w.receive_keys(0, &["a", "a"]);
    assert_eq!(w.dealt(), [0]);
    w.open(None, 5);
    assert_eq!(w.dealt(), []);
    let shown: Vec<_> = w.engine.sessions().into_iter().map(|s| s.blocked_on).collect();
    assert_eq!(shown, [Some(BlockedOn::NoWindow), Some(BlockedOn::Lane)]);
    assert_eq!(w.engine.partitions(w.now)[0].blocked_on, Some(BlockedOn::Leased));
    w.receive_keys(2, &["b"]);
    assert_eq!(w.dealt(), [2]);
}

#[test]
fn a_hot_key_slows_only_itself_until_its_partitions_limit() {
    let mut w = World::with(|policy| {
        policy.ordering = Ordering::Key;
        policy.span_max = 1_000;
    });
    w.assign(0);
    let session = w.open(None, 10);
    w.receive_keys(0, &["hot"]);
    assert_eq!(w.dealt(), [0]);
    for n in 0..499 {
        w.receive_keys(1 + n * 2, &["hot", "other"]);
        assert_eq!(w.dealt(), [2 + n * 2]);
        w.ack_one(session, 2 + n * 2);
    }
    assert!(!w.engine.partitions(w.now)[0].held_back);
    w.receive_keys(999, &["hot"]);
    assert!(w.poll().contains(&Output::Hold { partition: p(0) }));
    assert_eq!(w.engine.partitions(w.now)[0].blocked_on, Some(BlockedOn::SpanLimit));
    // What was prefetched is still accepted, and dealt.
    w.receive_keys(1_000, &["other"]);
    assert_eq!(w.dealt(), [1_000]);
    let mut offset = 0;
    let mut unheld = false;
    while offset <= 999 {
        w.ack_one(session, offset);
        let outputs = w.poll();
        unheld |= outputs.iter().any(|o| matches!(o, Output::Unhold { .. }));
        let Some((_, _, offsets)) = dealt(&outputs).pop() else { break };
        assert!(offsets[0] > offset, "first deliveries are in order");
        offset = offsets[0];
    }
    assert_eq!((offset, unheld), (999, true));
}

#[test]
fn lanes_cost_bytes_while_something_in_them_is_not_done() {
    let mut w = World::keyed();
    let session = w.open(None, 10_000);
    let unordered = {
        let mut w = World::with(|_| ());
        w.assign(0);
        w.receive_keys(0, &["a"; 3_000]);
        w.engine.bytes_held()
    };
    w.receive_keys(0, &["a"; 3_000]);
    assert!(w.engine.bytes_held() > unordered + 3_000 * 8, "what waits in a lane is counted");
    for offset in 0..3_000 {
        assert_eq!(w.dealt(), [offset]);
        w.ack_one(session, offset);
    }
    assert_eq!(w.engine.bytes_held(), 0);
}
