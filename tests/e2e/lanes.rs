//! `ordering = "key"` and `"partition"`: per-key histories of many clients, over all that can come between.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use sluice_tests::lanes::Lane;
use sluice_tests::process::Signal;
use sluice_tests::wire::retry_now;
use sluice_tests::{
    Act, Crew, GatewayConfig, History, Kafka, Lease, NewRecord, Produced, SOON, Wire, broker, eventually, unique,
};

use crate::{committed_to_the_end, gateway, has_committed, owns, reaches, subscription};

const PARTITIONS: i32 = 3;
const SESSIONS: usize = 100;
const KEYS: usize = 60;
/// Of a hundred records, so many have a null key.
const NULL_KEYS: u64 = 5;

/// Numbers by a seed, which the test prints: `SLUICE_SEED` runs one again.
#[derive(Debug)]
pub(crate) struct Dice(AtomicU64);

impl Dice {
    pub(crate) fn new() -> Arc<Self> {
        let chosen = std::env::var("SLUICE_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = chosen.unwrap_or_else(|| u64::try_from(sluice_tests::history::now_ms()).unwrap_or(1));
        println!("SLUICE_SEED={seed}");
        Arc::new(Self(AtomicU64::new(seed)))
    }

    pub(crate) fn roll(&self, below: u64) -> u64 {
        let state = self.0.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        let mut z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % below
    }

    /// A key by Zipf's law, or none.
    fn key(&self) -> Option<String> {
        if self.roll(100) < NULL_KEYS {
            return None;
        }
        let weight = |rank: usize| 1_000_000 / rank as u64;
        let mut left = self.roll((1..=KEYS).map(weight).sum());
        for rank in 1..=KEYS {
            match left.checked_sub(weight(rank)) {
                Some(rest) => left = rest,
                None => return Some(format!("key-{rank}")),
            }
        }
        None
    }
}

pub(crate) fn keyed(dice: &Dice, count: usize) -> Vec<NewRecord> {
    let of = |n: usize| {
        let key = dice.key();
        let partition = key.as_ref().map_or(n, |key| key.bytes().map(usize::from).sum());
        let partition = i32::try_from(partition % PARTITIONS as usize).expect("a partition");
        let record = NewRecord::to(partition, n.to_string());
        match key {
            Some(key) => record.key(key),
            None => record,
        }
    };
    (0..count).map(of).collect()
}

/// Now and then a client fails a record, dies, or forgets one.
pub(crate) fn clumsy(
    dice: &Arc<Dice>,
    deaths: usize,
    forgotten: usize,
) -> impl Fn(&Lease) -> Act + Send + Sync + 'static {
    let dice = Arc::clone(dice);
    let (deaths, forgotten) = (AtomicUsize::new(deaths), AtomicUsize::new(forgotten));
    let once_more =
        |left: &AtomicUsize| left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok();
    move |lease| match dice.roll(100) {
        0..10 if lease.attempts < 3 => Act::Retry(Duration::from_millis(dice.roll(40))),
        10..12 if once_more(&deaths) => Act::Die,
        12..14 if once_more(&forgotten) => Act::Forget,
        _ => Act::Ack,
    }
}

pub(crate) const LINES: [&str; 3] =
    ["ordering = \"key\"", "ack_timeout = \"2s\"", "retry = { initial_backoff = \"50ms\", max_attempts = 50 }"];

/// All is acked, committed, and each key's history is in order.
pub(crate) async fn ends_well(kafka: &Kafka, group: &str, topic: &str, history: &History, produced: &[Produced]) {
    reaches("all are acked", produced.len(), || history.acked_of(produced)).await;
    committed_to_the_end(kafka, group, topic).await;
    history.check_no_loss(produced);
    history.check_lanes(Lane::Key);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_stay_in_order_over_retries_expiries_and_clients_that_die() {
    let kafka = broker();
    let (topic, group) = (kafka.topic("keys", PARTITIONS), unique("keys"));
    let dice = Dice::new();
    let gateway = gateway(&group, &topic, &LINES);
    let history = History::default();
    let crew = Crew::new(&gateway, &group, &history).window(3).habit(clumsy(&dice, 60, 6)).start(SESSIONS);
    let produced = kafka.produce(&topic, keyed(&dice, 3_000));
    ends_well(kafka, &group, &topic, &history, &produced).await;
    history.check_commits(kafka, &group, &produced);
    assert!(!history.duplicates().is_empty(), "something was retried");
    crew.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_stay_in_order_while_another_gateway_joins_and_leaves() {
    let kafka = broker();
    let (topic, group) = (kafka.topic("keys-move", PARTITIONS), unique("keys-move"));
    let dice = Dice::new();
    let lines: Vec<&str> = LINES.into_iter().chain(["join = \"at_start\""]).collect();
    let config = GatewayConfig::new(kafka).subscription(subscription(&group, &[&topic], &lines));
    let stays = config.start();
    let history = History::default();
    let crew = || Crew::new(&stays, &group, &history).window(3).work(Duration::from_millis(5));
    let first = crew().habit(clumsy(&dice, 20, 2)).start(SESSIONS / 2);
    let produced = kafka.produce(&topic, keyed(&dice, 4_000));
    reaches("the first is at work", produced.len() / 8, || history.acked_of(&produced)).await;
    let mut leaves = config.start();
    let second = Crew::new(&leaves, &group, &history).or(&stays).window(3).work(Duration::from_millis(5));
    let second = second.habit(clumsy(&dice, 20, 2)).start(SESSIONS / 2);
    owns(&leaves, &group, 1).await;
    let before = history.acked_of(&produced);
    reaches("both are at work", produced.len().min(before + 300), || history.acked_of(&produced)).await;
    leaves.signal(Signal::Term);
    assert!(leaves.ended().await.success(), "a drain ends with status 0");
    ends_well(kafka, &group, &topic, &history, &produced).await;
    history.check_commits(kafka, &group, &produced);
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_stay_in_order_over_a_gateway_that_is_killed() {
    let kafka = broker();
    let (topic, group) = (kafka.topic("keys-killed", PARTITIONS), unique("keys-killed"));
    let dice = Dice::new();
    let mut gateway = gateway(&group, &topic, &LINES);
    let history = History::default();
    let produced = kafka.produce(&topic, keyed(&dice, 3_000));
    for (goal, commits) in [(400, 2), (1_200, 4)] {
        let crew = Crew::new(&gateway, &group, &history).window(3).habit(clumsy(&dice, 10, 1));
        let crew = crew.work(Duration::from_millis(5)).start(SESSIONS);
        reaches("work goes on", goal, || history.acked_of(&produced)).await;
        has_committed(kafka, &group, &topic, commits).await;
        gateway.kill();
        drop(crew);
        gateway.restart();
    }
    let crew = Crew::new(&gateway, &group, &history).window(3).habit(clumsy(&dice, 10, 1)).start(SESSIONS);
    ends_well(kafka, &group, &topic, &history, &produced).await;
    history.check_commits(kafka, &group, &produced);
    crew.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn null_keys_have_no_order_and_an_empty_key_has_one() {
    let kafka = broker();
    let (topic, group) = (kafka.topic("null-keys", 1), unique("null-keys"));
    let gateway = gateway(&group, &topic, &LINES[..1]);
    kafka.produce(&topic, (0..20).map(|n| NewRecord::to(0, n.to_string())));
    kafka.produce(&topic, (0..3).map(|n| NewRecord::to(0, n.to_string()).key("")));
    let mut wire = Wire::subscribe(&gateway, &group, 100).await;
    assert_eq!(wire.subscribed.ordering(), sluice_proto::v1::Ordering::Key);
    let at_once = wire.records(21).await;
    assert_eq!(at_once.iter().map(|lease| lease.offset).collect::<Vec<_>>(), (0..21).collect::<Vec<_>>());
    let mut last = at_once[20].clone();
    for offset in 21..23 {
        wire.barrier().await;
        assert!(wire.inbox.is_empty(), "its next came before it was acked");
        wire.ack(&[last]);
        last = wire.record().await;
        assert_eq!(last.offset, offset);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ordered_by_partition_each_partition_is_worked_record_by_record() {
    let kafka = broker();
    let (topic, group) = (kafka.topic("lines", PARTITIONS), unique("lines"));
    let dice = Dice::new();
    let lines = ["ordering = \"partition\"", LINES[1], LINES[2]];
    let gateway = gateway(&group, &topic, &lines);
    let history = History::default();
    let crew = Crew::new(&gateway, &group, &history).window(10).habit(clumsy(&dice, 10, 2)).start(20);
    let produced = kafka.produce(&topic, keyed(&dice, 600));
    reaches("all are acked", produced.len(), || history.acked_of(&produced)).await;
    committed_to_the_end(kafka, &group, &topic).await;
    history.check_no_loss(&produced);
    history.check_lanes(Lane::Partition);
    crew.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hot_key_slows_only_itself_until_its_partition_is_at_its_limit() {
    const SPAN: usize = 500;
    let kafka = broker();
    let (topic, group) = (kafka.topic("hot", 1), unique("hot"));
    let gateway = gateway(&group, &topic, &["ordering = \"key\"", "ack_timeout = \"10m\"", "span_limit = 500"]);
    let mut slow = Wire::subscribe(&gateway, &group, 1).await;
    let hot = |n: usize| NewRecord::to(0, n.to_string()).key("hot");
    kafka.produce(&topic, [hot(0)]);
    let held = slow.record().await;
    // Half of what follows has the key that is stuck; the rest is worked.
    let records = |from: usize, to: usize| {
        (from..to).map(|n| if n % 2 == 0 { hot(n) } else { NewRecord::to(0, n.to_string()).key(format!("key-{n}")) })
    };
    let some = kafka.produce(&topic, records(1, SPAN - 100));
    let history = History::default();
    let crew = Crew::new(&gateway, &group, &history).start(3);
    let others = |produced: &[Produced]| produced.iter().filter(|one| history.has_acked(one)).count();
    reaches("other keys are worked", some.len().div_ceil(2), || others(&some)).await;
    assert_eq!(history.duplicates(), []);
    let blocked = async |wanted: &str| {
        eventually("the partition says why it waits", SOON, async || {
            let found = gateway.partitions(&group).await[0].blocked_on.clone();
            if found == wanted { Ok(()) } else { Err(found) }
        })
        .await;
    };
    blocked("leased").await;
    let idle = gateway.consumers(&group).await;
    let shown = idle.iter().fold(BTreeMap::<_, usize>::new(), |mut shown, one| {
        *shown.entry(one.blocked_on.as_str()).or_default() += 1;
        shown
    });
    assert_eq!(shown, [("lane", 3), ("no_window", 1)].into());
    let rest = kafka.produce(&topic, records(SPAN - 100, SPAN * 4));
    blocked("span_limit").await;
    // It fails once; later records of the key go on waiting for it.
    slow.settle(std::slice::from_ref(&held), &retry_now());
    drop(slow);
    let all: Vec<Produced> = some.iter().chain(&rest).cloned().collect();
    reaches("all are acked", all.len(), || history.acked_of(&all)).await;
    committed_to_the_end(kafka, &group, &topic).await;
    history.check_lanes(Lane::Key);
    crew.stop().await;
}
