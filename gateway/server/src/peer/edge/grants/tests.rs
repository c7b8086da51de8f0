use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

/// An owner as an engine is one: it deals under the last grant it read.
#[derive(Debug, Default)]
struct Owner {
    unread: VecDeque<Grant>,
    echoes: VecDeque<(u64, u64, u64)>,
    window: Window,
    whole: bool,
    held: Vec<u64>,
}

impl Owner {
    fn bytes(&self) -> u64 {
        self.held.iter().sum()
    }

    fn deal(&mut self, bytes: u64) {
        let room = (self.held.len() as u64) < u64::from(self.window.max_records);
        let fits = self.window.max_bytes == 0 || self.bytes() + bytes <= self.window.max_bytes;
        if room && (fits || (self.whole && self.held.is_empty())) {
            self.held.push(bytes);
        }
    }

    fn read(&mut self) {
        if let Some(grant) = self.unread.pop_front() {
            (self.window, self.whole) = (grant.window, grant.whole);
            self.echoes.push_back((grant.number, self.held.len() as u64, self.bytes()));
        }
    }
}

/// A client, its split window, and owners that are some way off.
struct Cluster {
    split: Split,
    owners: Vec<Owner>,
    most: Window,
}

impl Cluster {
    fn new(window: Window, owners: usize) -> Self {
        let mut split = Split::new(window, 0);
        (0..owners).for_each(|n| split.add(id(n), 0, false));
        let mut cluster = Self { split, owners: (0..owners).map(|_| Owner::default()).collect(), most: window };
        let grants = cluster.split.plan();
        cluster.send(grants);
        cluster
    }

    fn send(&mut self, grants: Vec<Grant>) {
        for grant in grants {
            self.owners[grant.owner.0 as usize].unread.push_back(grant);
        }
    }

    fn plan(&mut self) {
        let grants = self.split.plan();
        self.send(grants);
    }

    fn hear(&mut self, n: usize) {
        if let Some((number, records, bytes)) = self.owners[n].echoes.pop_front() {
            self.split.echo(id(n), number, records, bytes);
            self.plan();
        }
    }

    fn check(&self) {
        let records: usize = self.owners.iter().map(|owner| owner.held.len()).sum();
        let bytes: u64 = self.owners.iter().map(Owner::bytes).sum();
        assert!(records <= self.most.max_records as usize, "{records} records in {:?}", self.most);
        let within = self.most.max_bytes == 0 || bytes <= self.most.max_bytes || records == 1;
        assert!(within, "{bytes} bytes in {records} records in {:?}", self.most);
    }

    /// All messages arrive, and time goes on while anybody waits for it.
    fn settle_down(&mut self) {
        for _ in 0..8 {
            for _ in 0..4 {
                for n in 0..self.owners.len() {
                    self.owners[n].read();
                    self.hear(n);
                }
            }
            if self.split.is_restless() {
                let grants = self.split.next_turn();
                self.send(grants);
            }
        }
    }

    fn granted(&self) -> Vec<u32> {
        self.owners.iter().map(|owner| owner.window.max_records).collect()
    }
}

fn id(n: usize) -> OwnerId {
    OwnerId(u32::try_from(n).unwrap())
}

fn window(max_records: u32, max_bytes: u64) -> Window {
    Window { max_records, max_bytes }
}

#[test]
fn the_only_owner_has_all_of_it() {
    let mut cluster = Cluster::new(window(100, 1_000), 1);
    cluster.settle_down();
    assert_eq!((cluster.owners[0].window, cluster.owners[0].whole), (window(100, 1_000), true));
}

#[test]
fn with_nothing_ready_all_share_and_with_something_ready_those_that_have_it() {
    let mut cluster = Cluster::new(window(100, 0), 3);
    cluster.settle_down();
    assert_eq!(cluster.granted(), [34, 33, 33]);
    cluster.split.set_active(id(1), true);
    cluster.plan();
    cluster.settle_down();
    assert_eq!(cluster.granted(), [1, 98, 1]);
    cluster.split.set_active(id(2), true);
    cluster.plan();
    cluster.settle_down();
    assert_eq!(cluster.granted(), [1, 50, 49]);
}

#[test]
fn room_is_given_to_another_only_when_the_first_says_that_it_holds_less() {
    let mut cluster = Cluster::new(window(20, 0), 2);
    cluster.split.set_active(id(0), true);
    cluster.plan();
    cluster.settle_down();
    assert_eq!(cluster.granted(), [19, 1]);
    (0..19).for_each(|_| cluster.owners[0].deal(1));
    cluster.split.set_active(id(0), false);
    cluster.split.set_active(id(1), true);
    cluster.plan();
    cluster.settle_down();
    assert_eq!(cluster.granted(), [1, 1], "it still holds nineteen");
    cluster.owners[0].held.truncate(4);
    cluster.settle_down();
    assert_eq!(cluster.granted(), [1, 16]);
    cluster.owners[0].held.clear();
    cluster.settle_down();
    assert_eq!(cluster.granted(), [1, 19]);
}

#[test]
fn a_window_of_one_goes_round() {
    let mut cluster = Cluster::new(window(1, 0), 3);
    (0..3).for_each(|n| cluster.split.set_active(id(n), true));
    let mut had = [0; 3];
    for _ in 0..30 {
        if cluster.split.is_restless() {
            let grants = cluster.split.next_turn();
            cluster.send(grants);
        }
        for (n, times) in had.iter_mut().enumerate() {
            cluster.owners[n].read();
            cluster.hear(n);
            *times += cluster.owners[n].window.max_records;
        }
        cluster.check();
    }
    assert!(had.iter().all(|times| *times > 0), "{had:?}");
}

#[test]
fn a_record_larger_than_its_part_goes_into_the_whole_window() {
    let mut cluster = Cluster::new(window(10, 1_000), 2);
    (0..2).for_each(|n| cluster.split.set_active(id(n), true));
    cluster.plan();
    cluster.settle_down();
    cluster.owners[0].deal(5_000);
    assert!(cluster.owners[0].held.is_empty(), "the other may hold something");
    assert!(cluster.split.is_unused(id(0), 0));
    cluster.split.set_solo(Some(id(0)));
    cluster.plan();
    cluster.settle_down();
    cluster.owners[0].deal(5_000);
    assert_eq!(cluster.owners[0].held, [5_000]);
    cluster.split.set_solo(None);
    cluster.plan();
    cluster.settle_down();
    cluster.owners[1].deal(1);
    cluster.check();
    cluster.owners[0].held.clear();
    cluster.settle_down();
    assert_eq!(cluster.granted(), [5, 5]);
}

#[test]
fn leases_of_a_session_that_came_back_count() {
    let mut split = Split::new(window(20, 0), 0);
    split.add(id(0), 8, false);
    split.add(id(1), 0, true);
    let given = |grants: &[Grant]| grants.iter().map(|g| (g.owner.0, g.window.max_records)).collect::<Vec<_>>();
    assert_eq!(given(&split.plan()), [(0, 1), (1, 12)]);
    split.remove(id(0));
    split.echo(id(1), 1, 0, 0);
    assert_eq!(given(&split.plan()), [(1, 20)]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn windows_are_never_exceeded_and_nothing_of_them_is_lost(
        (records, bytes, owners) in (1u32..12, prop_oneof![Just(0u64), 1u64..200], 1usize..4),
        ops in proptest::collection::vec((0u8..9, 0usize..4, 1u64..150), 0..120),
    ) {
        let mut cluster = Cluster::new(window(records, bytes), owners);
        for (op, n, size) in ops {
            let n = n % owners;
            match op {
                0 | 1 => cluster.owners[n].deal(size),
                2 => cluster.owners[n].read(),
                3 => cluster.hear(n),
                4 => drop(cluster.owners[n].held.pop()),
                5 => {
                    cluster.split.set_active(id(n), size % 2 == 0);
                    cluster.plan();
                }
                6 => {
                    let grants = cluster.split.next_turn();
                    cluster.send(grants);
                }
                7 => {
                    cluster.split.set_solo((size % 2 == 0).then_some(id(n)));
                    cluster.plan();
                }
                _ => {
                    let next = window(u32::try_from(size % 12).unwrap(), if bytes == 0 { 0 } else { size });
                    // A window that shrinks takes nothing back: what is checked is the largest.
                    cluster.most.max_records = cluster.most.max_records.max(next.max_records);
                    cluster.most.max_bytes = cluster.most.max_bytes.max(next.max_bytes);
                    cluster.split.set_window(next);
                    cluster.plan();
                }
            }
            cluster.check();
        }
        cluster.owners.iter_mut().for_each(|owner| owner.held.clear());
        cluster.split.set_solo(None);
        cluster.split.set_window(window(9, 0));
        (0..owners).for_each(|n| cluster.split.set_active(id(n), true));
        cluster.plan();
        cluster.settle_down();
        prop_assert_eq!(cluster.granted().iter().sum::<u32>(), 9);
    }
}
