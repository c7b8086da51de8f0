use std::ops::Range;
use std::sync::Arc;

use super::*;
use crate::run::Run;
use crate::tests::{range, record, record_of};
use crate::types::{Millis, Record};

fn ledger(offsets: impl IntoIterator<Item = i64>) -> Ledger {
    let mut ledger = Ledger::new(0, Ordering::None, 2);
    for offset in offsets {
        push(&mut ledger, record(offset));
    }
    ledger
}

fn push(ledger: &mut Ledger, record: Record) {
    ledger.push(Millis(0), &Run::of([&record])[0], 0, 0);
}

/// Makes the same of every record, and notes which it saw.
struct Always(Choice, Vec<i64>);

impl Dealer for Always {
    fn takes_all(&mut self, _: &Arc<Run>, _: &Range<usize>) -> bool {
        false
    }

    fn choose(&mut self, slot: Slot<'_>, _: usize) -> Choice {
        self.1.push(slot.offset());
        self.0
    }
}

/// Leases the first ready record, or leaves it.
fn first_ready(ledger: &mut Ledger, choice: Choice) -> Option<i64> {
    let mut dealer = Always(choice, Vec::new());
    ledger.deal(1, &mut dealer);
    dealer.1.pop()
}

fn finish(ledger: &mut Ledger, offset: i64) {
    let at = ledger.find(offset).unwrap();
    ledger.finish(at);
    ledger.advance();
}

#[test]
fn holes_stop_nothing() {
    let mut l = ledger([40, 41, 43, 44, 51, 52]);
    for offset in [41, 43, 51] {
        finish(&mut l, offset);
    }
    assert_eq!(l.frontier(), 40);
    assert_eq!(l.done_ranges(10, |_| false), [range(41, 43), range(45, 51)]);
    finish(&mut l, 40);
    assert_eq!(l.frontier(), 44);
    finish(&mut l, 44);
    finish(&mut l, 52);
    assert_eq!(l.frontier(), 53);
    l.position(60);
    assert_eq!((l.frontier(), l.span(), l.bytes()), (60, 0, 0));
    assert!(l.done_ranges(10, |_| false).is_empty());
}

#[test]
fn a_hole_between_records_not_done_is_not_said_to_be_done() {
    let mut l = ledger((0..2_000).map(|n| n * 2));
    assert!(l.done_ranges(10, |_| false).is_empty());
    finish(&mut l, 2_000);
    assert_eq!(l.done_ranges(10, |_| false), [range(1_999, 2_001)]);
}

#[test]
fn a_million_records_done_behind_a_stuck_one_cost_almost_nothing() {
    let mut l = ledger([0]);
    for offset in 1..=1_000_000 {
        push(&mut l, record(offset));
        finish(&mut l, offset);
    }
    assert_eq!((l.frontier(), l.span(), l.not_done()), (0, 1_000_001, 1));
    assert!(l.segments_live() <= 2);
    assert_eq!(l.done_ranges(10, |_| false), [range(1, 1_000_000)]);
    finish(&mut l, 0);
    assert_eq!(l.frontier(), 1_000_001);
}

#[test]
fn it_agrees_with_a_list_whatever_the_order() {
    for step in [1, 3, 7] {
        // A step coprime to the number visits every record once.
        let count = 1_000i64;
        let mut l = ledger((0..count).map(|n| n * step));
        let mut undone: std::collections::BTreeSet<i64> = (0..count).map(|n| n * step).collect();
        for n in 0..count {
            let offset = (n * 617 % count) * step;
            finish(&mut l, offset);
            undone.remove(&offset);
            assert_eq!(l.frontier(), undone.first().copied().unwrap_or((count - 1) * step + 1));
            assert_eq!(first_ready(&mut l, Choice::Stop), undone.first().copied());
        }
        assert_eq!(l.recount(), (0, 0, 0, 0));
    }
}

#[test]
fn the_lowest_ready_record_is_found_after_one_below_returns() {
    let mut l = ledger(0..600);
    for offset in 0..600 {
        assert_eq!(first_ready(&mut l, Choice::Take), Some(offset));
    }
    assert_eq!(first_ready(&mut l, Choice::Take), None);
    for offset in [550, 3] {
        let at = l.find(offset).unwrap();
        l.make_ready(at);
        assert_eq!(first_ready(&mut l, Choice::Stop), Some(offset));
    }
    let mut dealer = Always(Choice::Pass, Vec::new());
    l.deal(10, &mut dealer);
    assert_eq!(dealer.1, [3, 550]);
    assert_eq!(l.recount(), (l.ready(), l.leased(), l.not_done(), l.bytes()));
}

#[test]
fn a_record_done_out_of_its_turn_leaves_its_lane() {
    let mut l = Ledger::new(0, Ordering::Partition, 2);
    for offset in 0..5 {
        push(&mut l, record(offset));
    }
    assert_eq!((l.ready(), l.waiting(), l.lane_waiting()), (1, 0, 4));
    finish(&mut l, 2);
    l.make_ready(l.find(3).unwrap());
    assert_eq!((l.ready(), l.lane_waiting()), (1, 3), "its turn has not come");
    for offset in [0, 1, 3] {
        assert_eq!(l.state(l.find(offset).unwrap()), State::Ready);
        finish(&mut l, offset);
        l.check_lanes().unwrap();
    }
    finish(&mut l, 4);
    assert_eq!((l.frontier(), l.bytes(), l.lane_waiting()), (5, 0, 0));
}

#[test]
fn lanes_that_are_gone_give_their_room_back() {
    let mut l = Ledger::new(0, Ordering::Key, 2);
    for offset in 0..100_000i64 {
        let key = Some(bytes::Bytes::copy_from_slice(&offset.to_be_bytes()));
        push(&mut l, Record { key, ..record(offset) });
    }
    assert_eq!(l.ready(), 100_000);
    let room = l.lanes.as_ref().unwrap().room();
    for offset in 0..99_990 {
        finish(&mut l, offset);
    }
    assert!(l.lanes.as_ref().unwrap().room() < 100, "{room} before");
}

/// Records as they are fetched: of so many bytes, in runs, without those that `is_hole`.
fn fetched(count: i64, bytes: usize, is_hole: impl Fn(i64) -> bool) -> Vec<Arc<Run>> {
    let records: Vec<Record> = (0..count).filter(|n| !is_hole(*n)).map(|n| record_of(n, bytes)).collect();
    Run::of(&records)
}

#[test]
fn one_record_of_many_that_is_not_done_does_not_keep_their_run() {
    // Each sixth offset is a hole; each 512th record is never done.
    for (bytes, is_hole) in [(128, false), (128, true), (1_000, false), (20_000, false), (0, true)] {
        let mut l = Ledger::new(0, Ordering::None, 2);
        let stuck = |offset: i64| offset % 512 == 100;
        let hole = |offset: i64| is_hole && offset % 6 == 5;
        for run in fetched(100 * 512, bytes, hole) {
            l.push_all(Millis(0), &run, 0..run.len());
        }
        for offset in (0..100 * 512).filter(|n| !hole(*n) && !stuck(*n)) {
            finish(&mut l, offset);
        }
        let left: Vec<i64> = (0..100 * 512).filter(|n| stuck(*n) && !hole(*n)).collect();
        assert_eq!((l.frontier(), l.not_done()), (100, left.len() as u64));
        let needed = left.len() * (bytes + 64);
        let unseen = 2 * (FREED_BYTES_MAX as usize + bytes + FREED_RECORDS_MAX as usize * 64);
        assert!(l.pinned() <= needed + unseen, "{} bytes for {needed}", l.pinned());
        // A little traffic more, and they are what is kept.
        for offset in 51_200..51_200 + 2 * FREED_RECORDS_MAX as i64 {
            push(&mut l, record(offset));
            finish(&mut l, offset);
        }
        assert!(l.pinned() <= needed, "{} bytes for {needed}", l.pinned());
        let mut dealer = Always(Choice::Take, Vec::new());
        l.deal(u64::MAX, &mut dealer);
        assert_eq!(dealer.1, left, "and they are what they were");
        let slot = |offset| l.find(offset).and_then(|at| l.slot(at));
        assert!(left.iter().all(|n| slot(*n).unwrap().record().value == record_of(*n, bytes).value.as_deref()));
        for offset in left {
            let (base, bits) = (offset - 3, 1 << 3);
            assert_eq!(l.finish_leased(base, bits), deals::Finished { records: 1, bytes: bytes as u64 });
            l.advance();
        }
        assert_eq!((l.frontier(), l.bytes(), l.pinned()), (51_200 + 2 * FREED_RECORDS_MAX as i64, 0, 0));
    }
}

#[test]
fn records_that_were_done_before_they_came_do_not_keep_the_run_of_the_others() {
    let mut l = Ledger::new(0, Ordering::None, 2);
    for run in fetched(20 * FREED_RECORDS_MAX as i64, 128, |_| false) {
        for index in 0..run.len() {
            match run.offset(index) % 500 {
                7 => _ = l.push(Millis(0), &run, index, 1),
                _ => l.push_done(run.offset(index)),
            }
            l.advance();
        }
    }
    // What was not seen twice yet, a run beyond, and the records.
    let unseen = 2 * FREED_RECORDS_MAX as usize * 160 + (80 << 10);
    assert!(l.not_done() == 164 && l.pinned() < unseen + 164 * 200, "{} bytes for {}", l.pinned(), l.not_done());
}

#[test]
fn small_records_that_are_not_done_do_not_keep_large_ones_that_are() {
    // Each third is of ten bytes and stays; the others are fifteen kilobytes, and done one by one.
    let mut l = Ledger::new(0, Ordering::None, 2);
    let is_small = |offset: i64| offset % 3 == 0;
    let records: Vec<Record> = (0..3_000).map(|n| record_of(n, if is_small(n) { 10 } else { 15_000 })).collect();
    for run in Run::of(&records) {
        l.push_all(Millis(0), &run, 0..run.len());
    }
    for offset in (0..3_000).filter(|n| !is_small(*n)) {
        finish(&mut l, offset);
    }
    let unseen = 3 * (FREED_BYTES_MAX as usize + (64 << 10));
    assert!(l.pinned() <= 1_000 * 100 + unseen, "{} bytes", l.pinned());
}

#[test]
fn what_was_looked_at_is_not_looked_at_again_however_long_the_span() {
    // Each tenth of 100,000 stays.
    let mut l = Ledger::new(0, Ordering::None, 2);
    for run in fetched(100_000, 128, |_| false) {
        l.push_all(Millis(0), &run, 0..run.len());
    }
    for offset in (0..100_000).filter(|n| n % 10 != 0) {
        finish(&mut l, offset);
        assert!(l.touched.len() <= 3 * FREED_RECORDS_MAX as usize / SEGMENT_RECORDS, "{}", l.touched.len());
    }
}
