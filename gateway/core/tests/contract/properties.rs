//! Random schedules of every input, against the naive model. A failing schedule is shrunk and printed by proptest.

use proptest::prelude::*;
use sluice_core::{
    Backoff, CommitError, End, Epoch, Leases, LetterError, Millis, OffsetRange, OnExhausted, Open, Ordering, Outcome,
    Policy, RevokeReason, SessionId, Settlement, Settlements, TopicPartition, Via, Window,
};

use crate::support::client;
use crate::support::plant::Plant;
use crate::support::world::{Lease, World};

/// Schedules of a run without `PROPTEST_CASES`.
const CASES: u32 = 10_000;

/// One input. Indices are taken modulo what there is, so that a shrunk schedule still means something.
#[derive(Debug, Clone)]
enum Op {
    Produce { part: u8, gaps: Vec<u8>, padding: u8 },
    Markers { part: u8, count: u8 },
    Fetch { part: u8, max: u8, anyway: bool },
    Refetch { part: u8, back: u8 },
    Position { part: u8 },
    Open { who: u8, records: u8, bytes: u16, holding: Holding, forget_seen: bool },
    Window { who: u8, records: u8, bytes: u16 },
    Settle { who: u8, what: What, outcome: u8, seen: Seen, ask: Ask },
    Unary { who: u8, what: What, outcome: u8, durable: bool },
    Close { who: u8, end: u8 },
    DrainSession { who: u8 },
    Advance { ms: u16 },
    Pass { ms: u16 },
    Answer { part: u8, how: u8 },
    AnswerLetter { which: u8, how: u8 },
    Rewound { part: u8 },
    Revoking { part: u8, grace: u16 },
    Lost { part: u8 },
    Assign,
    Seek { part: u8, to: u8 },
    Pause(bool),
    Crash,
}

/// What a client says that it holds when it comes back.
#[derive(Debug, Clone)]
enum Holding {
    Truth,
    Nothing,
    /// Half of it.
    Half,
    /// Everything there is, of any epoch.
    Everything,
}

/// Which leases a settlement names.
#[derive(Debug, Clone)]
enum What {
    /// Some of its own, one range each.
    Own {
        from: u8,
        count: u8,
    },
    /// A range over some of its own, and whatever lies between.
    Coalesced {
        from: u8,
        count: u8,
    },
    /// A range of the partition.
    Range {
        part: u8,
        first: u8,
        len: u8,
    },
    One {
        part: u8,
        offset: u8,
    },
    Wide {
        part: u8,
    },
    Reversed {
        part: u8,
        first: u8,
    },
    Stale {
        part: u8,
        first: u8,
        len: u8,
    },
}

#[derive(Debug, Clone)]
enum Seen {
    Last,
    Older(u8),
    Absent,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Ask {
    Nothing,
    Answer,
    Durable,
}

fn what() -> impl Strategy<Value = What> {
    let small = || 0u8..24;
    prop_oneof![
        6 => (small(), 1u8..6).prop_map(|(from, count)| What::Own { from, count }),
        6 => (small(), 1u8..8).prop_map(|(from, count)| What::Coalesced { from, count }),
        2 => (0u8..3, small(), small()).prop_map(|(part, first, len)| What::Range { part, first, len }),
        1 => (0u8..3, small()).prop_map(|(part, offset)| What::One { part, offset }),
        1 => (0u8..3).prop_map(|part| What::Wide { part }),
        1 => (0u8..3, small()).prop_map(|(part, first)| What::Reversed { part, first }),
        1 => (0u8..3, small(), small()).prop_map(|(part, first, len)| What::Stale { part, first, len }),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let part = || 0u8..3;
    let who = || 0u8..4;
    let holding =
        || prop_oneof![Just(Holding::Truth), Just(Holding::Nothing), Just(Holding::Half), Just(Holding::Everything)];
    let seen = || prop_oneof![4 => Just(Seen::Last), 3 => (1u8..4).prop_map(Seen::Older), 1 => Just(Seen::Absent)];
    let ask = || prop_oneof![2 => Just(Ask::Nothing), 1 => Just(Ask::Answer), 2 => Just(Ask::Durable)];
    let gaps = || proptest::collection::vec(prop_oneof![3 => Just(0u8), 1 => 1u8..4], 1..12);
    let produce = (part(), gaps(), 0u8..60);
    prop_oneof![
        6 => produce.prop_map(|(part, gaps, padding)| Op::Produce { part, gaps, padding }),
        1 => (part(), 1u8..4).prop_map(|(part, count)| Op::Markers { part, count }),
        8 => (part(), 1u8..20, any::<bool>()).prop_map(|(part, max, anyway)| Op::Fetch { part, max, anyway }),
        1 => (part(), 1u8..6).prop_map(|(part, back)| Op::Refetch { part, back }),
        3 => part().prop_map(|part| Op::Position { part }),
        6 => (who(), 0u8..12, prop_oneof![2 => Just(0u16), 1 => 10u16..200], holding(), any::<bool>()).prop_map(
            |(who, records, bytes, holding, forget_seen)| Op::Open { who, records, bytes, holding, forget_seen }
        ),
        3 => (who(), 0u8..12, prop_oneof![2 => Just(0u16), 1 => 10u16..200])
            .prop_map(|(who, records, bytes)| Op::Window { who, records, bytes }),
        20 => (who(), what(), any::<u8>(), seen(), ask())
            .prop_map(|(who, what, outcome, seen, ask)| Op::Settle { who, what, outcome, seen, ask }),
        2 => (who(), what(), any::<u8>(), any::<bool>())
            .prop_map(|(who, what, outcome, durable)| Op::Unary { who, what, outcome, durable }),
        3 => (who(), any::<u8>()).prop_map(|(who, end)| Op::Close { who, end }),
        1 => who().prop_map(|who| Op::DrainSession { who }),
        8 => prop_oneof![3 => 0u16..120, 1 => 120u16..1500].prop_map(|ms| Op::Advance { ms }),
        2 => (0u16..400).prop_map(|ms| Op::Pass { ms }),
        8 => (part(), any::<u8>()).prop_map(|(part, how)| Op::Answer { part, how }),
        6 => (any::<u8>(), any::<u8>()).prop_map(|(which, how)| Op::AnswerLetter { which, how }),
        1 => part().prop_map(|part| Op::Rewound { part }),
        2 => (part(), 0u16..500).prop_map(|(part, grace)| Op::Revoking { part, grace }),
        1 => part().prop_map(|part| Op::Lost { part }),
        3 => Just(Op::Assign),
        1 => (part(), 0u8..60).prop_map(|(part, to)| Op::Seek { part, to }),
        1 => any::<bool>().prop_map(Op::Pause),
        3 => Just(Op::Crash),
    ]
}

fn policy() -> impl Strategy<Value = Policy> {
    let sizes = (
        prop_oneof![3 => Just(4_096usize), 1 => Just(40), 1 => Just(14)],
        prop_oneof![3 => Just(1_000u64), 1 => 5u64..20],
        prop_oneof![3 => Just(1u64 << 20), 1 => 200u64..600],
        prop_oneof![Just(100usize), 2usize..5],
        prop_oneof![2 => Just(1usize << 17), 1 => Just(100)],
    );
    let failures = (
        2u32..6,
        0u8..3,
        prop_oneof![2 => Just(0.0f64), 1 => Just(0.2)],
        any::<bool>(),
        prop_oneof![Just(100usize), 1usize..4],
        any::<bool>(),
    );
    let ordering = prop_oneof![2 => Just(Ordering::None), 2 => Just(Ordering::Key), 1 => Just(Ordering::Partition)];
    (sizes, failures, ordering).prop_map(|(sizes, failures, ordering)| {
        let (units, span, bytes, frame, frame_bytes) = sizes;
        let (attempts, way, jitter, count, letters, topic) = failures;
        Policy {
            ordering,
            ack_timeout_ms: 1_000,
            resume_timeout_ms: 300,
            max_attempts: attempts,
            backoff: Backoff { initial_ms: 100, multiplier: 2.0, max_ms: 1_000, jitter },
            on_exhausted: match way {
                0 => OnExhausted::Block,
                1 => OnExhausted::Drop,
                _ => OnExhausted::DeadLetter,
            },
            dead_letter_topic: topic || way == 2,
            dead_letter_backoff: Backoff { initial_ms: 50, multiplier: 2.0, max_ms: 400, jitter },
            dead_letters_in_flight_max: letters,
            commit_count: if count { 3 } else { 10_000 },
            metadata_units_max: units,
            span_max: span,
            partition_bytes_max: bytes,
            frame_records_max: frame,
            frame_bytes_max: frame_bytes,
            ..Policy::default()
        }
    })
}

/// The consumers that come and go: two that can be resumed, two that cannot.
const NAMES: [Option<&str>; 4] = [Some("a"), Some("b"), None, None];

fn outcome(n: u8) -> Outcome {
    let reason = String::new();
    match n % 18 {
        16 | 17 => Outcome::DeadLetter { reason: format!("cause {}", n % 4) },
        0..=6 => Outcome::Ack,
        7 | 8 => Outcome::Retry { delay_ms: Some(0), reason },
        9 => Outcome::Retry { delay_ms: Some(50), reason },
        10 => Outcome::Retry { delay_ms: None, reason },
        11 | 12 => Outcome::Release,
        13 => Outcome::Extend { ack_timeout_ms: Some(1_500) },
        14 => match n % 3 {
            0 => Outcome::Extend { ack_timeout_ms: None },
            1 => Outcome::Extend { ack_timeout_ms: Some(u64::MAX) },
            _ => Outcome::Retry { delay_ms: Some(u64::MAX), reason },
        },
        _ if n.is_multiple_of(2) => Outcome::Unreadable,
        _ => Outcome::DeadLetter { reason },
    }
}

impl World {
    fn part(&self, n: u8) -> TopicPartition {
        self.topics[usize::from(n) % self.topics.len()].clone()
    }

    fn session(&self, who: u8) -> Option<SessionId> {
        let all: Vec<_> = self.clients.keys().copied().collect();
        (!all.is_empty()).then(|| all[usize::from(who) % all.len()])
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Produce { part, gaps, padding } => {
                let tp = self.part(part);
                self.kafka.produce(&tp, &gaps, usize::from(padding));
                self.fetch(&tp, 6, false);
            }
            Op::Markers { part, count } => self.kafka.produce_markers(&self.part(part), count),
            Op::Fetch { part, max, anyway } => self.fetch(&self.part(part), usize::from(max), anyway),
            Op::Refetch { part, back } => {
                let tp = self.part(part);
                if let Some(owned) = self.owned.get_mut(&tp) {
                    owned.fetch_from = (owned.fetch_from - i64::from(back)).max(0);
                }
                self.fetch(&tp, 4, true);
                self.fetch(&tp, 4, false);
            }
            Op::Position { part } => self.position(&self.part(part)),
            Op::Advance { ms } => self.advance(u64::from(ms)),
            // When exactly a grace that is over fences is the engine's choice: there, time goes on with a tick.
            Op::Pass { ms } if self.driver.model.parts.values().any(|p| p.revoking.is_some()) => {
                self.advance(ms.into())
            }
            Op::Pass { ms } => self.driver.pass(u64::from(ms)),
            Op::Answer { part, how } => {
                let (applied, error) = match how % 10 {
                    0..=5 => (true, None),
                    6 => (true, Some(CommitError::Retriable)),
                    7 => (false, Some(CommitError::Retriable)),
                    // A broker's limit stays: what it took once it takes again, and answers stand on that.
                    8 if self.units_in_flight(&self.part(part)) > self.kafka.units_taken => {
                        (false, Some(CommitError::MetadataTooLarge))
                    }
                    8 => (true, None),
                    _ => (false, Some(CommitError::NotMember)),
                };
                self.answer_commit(&self.part(part), applied, error);
                if error == Some(CommitError::NotMember) {
                    self.lose(&self.part(part), RevokeReason::Reassigned);
                }
            }
            Op::AnswerLetter { which, how } => {
                let result = match how % 6 {
                    0..=3 => Ok(()),
                    4 => Err(LetterError::Failed),
                    _ => Err(LetterError::TooLarge),
                };
                self.answer_letter(usize::from(which), result, how >= 200);
            }
            Op::Rewound { part } => {
                let tp = self.part(part);
                if self.owned.contains_key(&tp) {
                    self.driver.commit_rewound(&tp);
                    self.absorb();
                }
            }
            Op::Revoking { part, grace } => {
                let deadline = Millis(self.driver.now().0 + u64::from(grace));
                self.driver.revoking(&[self.part(part)], deadline);
                self.absorb();
            }
            Op::Lost { part } => self.lose(&self.part(part), RevokeReason::Reassigned),
            Op::Assign => self.assign_all(),
            Op::Seek { part, to } => {
                let tp = self.part(part);
                self.seek(&tp, i64::from(to).min(self.kafka.end(&tp)));
            }
            Op::Pause(paused) => {
                self.driver.set_paused(paused);
                self.absorb();
            }
            Op::Crash => self.crash(),
            other => self.run_client(other),
        }
    }

    fn run_client(&mut self, op: Op) {
        match op {
            Op::Open { who, records, bytes, holding, forget_seen } => {
                self.come(who, records, bytes, &holding, forget_seen)
            }
            Op::Window { who, records, bytes } => {
                let Some(session) = self.session(who) else { return };
                let window = Window { max_records: u32::from(records), max_bytes: u64::from(bytes) };
                self.driver.window(session, window);
                self.absorb();
            }
            Op::Settle { who, what, outcome: n, seen, ask } => {
                let Some(session) = self.session(who) else { return };
                if self.driver.model.sessions[&session].broken.is_some() {
                    return;
                }
                let last = self.clients[&session].last_frame;
                let seen = match seen {
                    Seen::Last => last,
                    Seen::Older(by) => last.saturating_sub(u64::from(by)),
                    Seen::Absent => 0,
                };
                let mut frame =
                    Settlements { seen, settlements: self.named(session, &what, n), ..Settlements::default() };
                if ask != Ask::Nothing {
                    self.requests += 1;
                    frame.request_id = self.requests;
                    frame.durable = ask == Ask::Durable;
                }
                self.settle(session, frame);
            }
            Op::Unary { who, what, outcome: n, durable } => {
                let Some(session) = self.session(who) else { return };
                let seen = self.clients[&session].last_frame;
                let settlements = self.named(session, &what, n);
                let frame = Settlements { seen, settlements, durable, ..Settlements::default() };
                let known = !n.is_multiple_of(8);
                self.driver.settle_unary(known.then_some(session), frame);
                self.absorb();
            }
            Op::Close { who, end } => {
                let Some(session) = self.session(who) else { return };
                let end = match end % 5 {
                    0 | 1 => End::Broken,
                    2 => End::HalfClose,
                    3 => End::EdgeGone,
                    _ => End::Drained,
                };
                self.close(session, end);
            }
            Op::DrainSession { who } => {
                let Some(session) = self.session(who) else { return };
                self.driver.drain_session(session);
                self.absorb();
            }
            _ => {}
        }
    }

    fn come(&mut self, who: u8, records: u8, bytes: u16, holding: &Holding, forget_seen: bool) {
        let consumer_id = NAMES[usize::from(who) % NAMES.len()];
        let known = self.clients.values().find(|c| consumer_id.is_some() && c.consumer_id.as_deref() == consumer_id);
        let mut leases: Vec<Lease> = known.map(|c| c.leases.clone()).unwrap_or_default();
        match holding {
            Holding::Truth | Holding::Everything => {}
            Holding::Nothing => leases.clear(),
            Holding::Half => {
                let mut keep = false;
                leases.retain(|_| {
                    keep = !keep;
                    keep
                });
            }
        }
        let mut holding: Vec<Leases> = match holding {
            Holding::Everything => self
                .topics
                .iter()
                .filter_map(|tp| {
                    let epoch = self.owned.get(tp)?.epoch;
                    Some(client::leases(tp, epoch, vec![OffsetRange { first: 0, last: i64::MAX }]))
                })
                .collect(),
            _ => Vec::new(),
        };
        holding.extend(leases.iter().map(|l| client::leases(&l.partition, l.epoch, vec![OffsetRange::one(l.offset)])));
        let seen = known.filter(|_| !forget_seen).map_or(0, |c| c.last_frame);
        let window = Window { max_records: u32::from(records), max_bytes: u64::from(bytes) };
        let open = Open {
            consumer_id: consumer_id.map(Into::into),
            window: Some(window),
            ack_timeout_ms: records.is_multiple_of(3).then_some(600),
            report_commits: records.is_multiple_of(2),
            holding,
            seen,
            via: [Via::Nobody, Via::Nobody, Via::NearEdge, Via::FarEdge][usize::from(records % 4)],
            ..Open::default()
        };
        self.open(open);
    }

    /// The settlements of one frame. The client forgets the leases that it ended; a lying one need not.
    fn named(&mut self, session: SessionId, what: &What, n: u8) -> Vec<Settlement> {
        let outcome = outcome(n);
        let client = self.clients.get_mut(&session).expect("the caller looked it up");
        let some = |from: u8, count: u8| -> Vec<Lease> {
            let len = client.leases.len();
            let skip = if len == 0 { 0 } else { usize::from(from) % len };
            client.leases.iter().skip(skip).take(usize::from(count)).cloned().collect()
        };
        let (own, bridge) = match what {
            What::Own { from, count } => (some(*from, *count), 0),
            What::Coalesced { from, count } => (some(*from, *count), 10),
            _ => (Vec::new(), 0),
        };
        if matches!(outcome, Outcome::Ack | Outcome::Retry { .. } | Outcome::Release | Outcome::DeadLetter { .. })
            && !n.is_multiple_of(5)
        {
            client.leases.retain(|l| !own.contains(l));
        }
        let range = |part: u8, first: i64, last: i64, stale: bool| {
            let tp = self.topics[usize::from(part) % self.topics.len()].clone();
            let epoch = self.owned.get(&tp).map_or(Epoch(5), |o| if stale { Epoch(o.epoch.0 - 1) } else { o.epoch });
            vec![client::leases(&tp, epoch, vec![OffsetRange { first, last }])]
        };
        let leases = match *what {
            What::Own { .. } | What::Coalesced { .. } => by_partition(&own, bridge),
            What::Range { part, first, len } => range(part, first.into(), i64::from(first) + i64::from(len), false),
            What::One { part, offset } => range(part, offset.into(), offset.into(), false),
            What::Wide { part } => range(part, 0, i64::MAX, false),
            What::Reversed { part, first } => range(part, i64::from(first) + 1, first.into(), false),
            What::Stale { part, first, len } => range(part, first.into(), i64::from(first) + i64::from(len), true),
        };
        leases.into_iter().map(|leases| Settlement { leases, outcome: outcome.clone() }).collect()
    }
}

fn by_partition(own: &[Lease], bridge: i64) -> Vec<Leases> {
    let mut all: Vec<(TopicPartition, Epoch)> = own.iter().map(|l| (l.partition.clone(), l.epoch)).collect();
    all.dedup();
    all.into_iter()
        .map(|(tp, epoch)| {
            let here = own.iter().filter(|l| l.partition == tp && l.epoch == epoch);
            let offsets: Vec<i64> = here.map(|l| l.offset).collect();
            client::leases(&tp, epoch, client::coalesce(&offsets, bridge))
        })
        .collect()
}

/// `PROPTEST_CASES` and `PROPTEST_RNG_SEED` choose more, or one run again; a failure prints its shrunk schedule.
fn config() -> ProptestConfig {
    let config = ProptestConfig { max_shrink_iters: 20_000, failure_persistence: None, ..ProptestConfig::default() };
    let chosen = std::env::var_os("PROPTEST_CASES").is_some();
    ProptestConfig { cases: if chosen { config.cases } else { CASES }, ..config }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn every_schedule_keeps_the_contract(
        policy in policy(),
        partitions in 1i32..4,
        ops in proptest::collection::vec(op(), 1..80),
    ) {
        let mut world = World::new(policy, partitions, Plant::Nothing);
        for op in ops {
            world.run(op);
        }
        world.finale();
    }
}
