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
