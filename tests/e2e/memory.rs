//! Memory of the gateway, measured from outside. Its tests run one after another: each looks at the whole process.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use sluice_proto::v1::settlement::Outcome;
use sluice_proto::v1::{Ack, Settlements, consume_request::Request};
use sluice_tests::process::{cpu, peak_rss};
use sluice_tests::wire::{Lease, Seen, Wire, retry_after, settlement};
use sluice_tests::{Crew, GatewayConfig, History, SOON, SubscriptionConfig, broker, eventually, unique};
use tokio::sync::Mutex;

const MIB: u64 = 1 << 20;

/// One broker and one machine: side by side these tests would only be slower.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// Acks the next so many records, as they come.
async fn work_off(wire: &mut Wire, count: usize) {
    let mut acked = 0;
    while acked < count {
        let mut batch = wire.records(1).await;
        let more = wire.inbox.len().min(count - acked - batch.len());
        batch.extend(wire.inbox.drain(..more));
        acked += batch.len();
        wire.ack(&batch);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_million_records_acked_behind_a_stuck_head_cost_less_than_32_mib() {
    const BEHIND: usize = 1_000_000;
    const WARM: usize = 400_000;
    let _guard = ONE_AT_A_TIME.lock().await;
    let kafka = broker();
    let topic = kafka.topic("stuck", 1);
    kafka.fill(&topic, 1, WARM + 1 + BEHIND, 8);
    let group = unique("stuck");
    let lines = SubscriptionConfig::new(&group, &[&topic]).with("span_limit = 2000000").with("ack_timeout = \"1h\"");
    let gateway = GatewayConfig::new(kafka).subscription(lines).start();
    let mut wire = Wire::subscribe(&gateway, &group, 5_000).await;
    // First without a stuck head, until buffers, prefetch and allocator have what they ever take.
    work_off(&mut wire, WARM).await;
    let warm_rss = gateway.rss();
    let head = wire.record().await;
    work_off(&mut wire, BEHIND).await;
    wire.barrier().await;
    let grown = gateway.rss().saturating_sub(warm_rss);
    assert!(grown < 32 * MIB, "from {} to {} MiB", warm_rss / MIB, (warm_rss + grown) / MIB);
    assert_eq!(kafka.committed_offset(&group, &topic, 0), Some(head.offset), "nothing passes the head");
    wire.ack(&[head]);
    eventually("the commit jumps over a million", SOON, async || match kafka.committed_offset(&group, &topic, 0) {
        Some(1_400_001) => Ok(()),
        other => Err(other),
    })
    .await;
}

/// Retries the next so many records with this delay, as they come.
async fn fail(wire: &mut Wire, count: usize, delay: Duration) {
    let mut failed = 0;
    while failed < count {
        let mut batch = wire.records(1).await;
        let more = wire.inbox.len().min(count - failed - batch.len());
        batch.extend(wire.inbox.drain(..more));
        failed += batch.len();
        wire.settle(&batch, &retry_after(delay));
    }
    wire.barrier().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_records_that_wait_for_their_retry_cost_little_and_hold_up_nothing_but_the_commit() {
    const WAITING: usize = 100_000;
    const SPAN: usize = 150_000;
    const RECORD: usize = 256;
    const HOUR: Duration = Duration::from_secs(3_600);
    // Kafka keeps no more with an offset.
    const UNITS_MAX: usize = 4_096;
    let _guard = ONE_AT_A_TIME.lock().await;
    let kafka = broker();
    let topic = kafka.topic("waiting", 1);
    let group = unique("waiting");
    let lines = SubscriptionConfig::new(&group, &[&topic]).with("span_limit = 150000").with("ack_timeout = \"1h\"");
    let mut gateway = GatewayConfig::new(kafka).subscription(lines).start();
    let mut wire = Wire::subscribe(&gateway, &group, 2_000).await;
    kafka.fill(&topic, 1, SPAN, RECORD);
    // First as many without any that waits: buffers, prefetch and allocator have what they ever take, and work has a price.
    let before = cpu(gateway.pid());
    work_off(&mut wire, SPAN).await;
    wire.barrier().await;
    let price = cpu(gateway.pid()) - before;
    let warm_rss = gateway.rss();

    kafka.fill(&topic, 1, 2 * SPAN, RECORD);
    let commits_before = kafka.commit_history(&group).len();
    let began = Instant::now();
    let before = cpu(gateway.pid());
    fail(&mut wire, WAITING, HOUR).await;
    let mut others = 0;
    while others < SPAN - WAITING {
        work_off(&mut wire, 1_000).await;
        others += 1_000;
        // Work of its own length: what a hundred thousand waiting records cost is paid at each commit, so there are some.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    eventually("the limit of the span is named", SOON, async || {
        let one = gateway.partitions(&group).await.remove(0);
        let waiting = usize::try_from(one.waiting_retry).unwrap_or_default();
        if waiting == WAITING && one.blocked_on == "span_limit" { Ok(()) } else { Err(one) }
    })
    .await;
    let spent = cpu(gateway.pid()) - before;
    let took = began.elapsed();
    let grown = gateway.rss().saturating_sub(warm_rss);
    println!("{} MiB more, {spent:?} of CPU in {took:?}; {price:?} without any that waits", grown / MIB);
    // Payloads are 26 MB of it, and the limit of the partition's bytes is 64 MiB with all that is counted beside them.
    assert!(grown < 64 * MIB, "from {} to {} MiB", warm_rss / MIB, (warm_rss + grown) / MIB);
    assert!(spent < 10 * price + took / 2, "{spent:?} for what costs {price:?} without waiting records, in {took:?}");
    let commits = kafka.commit_history(&group).split_off(commits_before);
    let largest = commits.iter().map(|commit| commit.metadata.encode_utf16().count()).max();
    assert!(largest.is_some_and(|units| (1_000..=UNITS_MAX).contains(&units)), "{largest:?} units");
    assert!(gateway.metric("sluice_metadata_truncated_total", &group) >= Some(1.0), "what found no room is counted");
    let head = i64::try_from(SPAN).expect("small");
    assert!(commits.iter().all(|commit| commit.offset <= Some(head)), "nothing passes the first that waits");
    // Large ones once a second, and in between those of the beginning, each a commit interval.
    let per_second = u64::try_from(commits.len()).expect("small") / took.as_secs().max(1);
    assert!(per_second <= 8, "{} commits in {took:?}", commits.len());

    // And none of them is forgotten, whatever happens.
    gateway.kill();
    gateway.restart();
    let mut wire = Wire::subscribe(&gateway, &group, 2_000).await;
    let (mut come_again, mut counted) = (BTreeSet::new(), 0);
    let last = head + i64::try_from(WAITING).expect("small");
    while come_again.len() < WAITING {
        let mut batch = wire.records(1).await;
        batch.extend(wire.inbox.drain(..));
        counted += batch.iter().filter(|lease| lease.attempts == 1).count();
        let waited = batch.iter().map(|lease| lease.offset).filter(|offset| *offset < last);
        come_again.extend(waited);
        wire.ack(&batch);
    }
    assert!((1_000..=WAITING).contains(&counted), "as many attempts as found room in the commit: {counted}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gibibyte_of_large_records_stays_within_the_byte_budget_and_64_mib() {
    const RECORD: usize = 100 << 10;
    const COUNT: usize = (1 << 30) / RECORD;
    const BUDGET_MIB: u64 = 128;
    let _guard = ONE_AT_A_TIME.lock().await;
    let kafka = broker();
    let topic = kafka.topic("large", 4);
    // In parts: the producer holds what it writes, and what it wrote.
    let produced: usize = (0..16).map(|_| kafka.fill(&topic, 4, COUNT / 16, RECORD).len()).sum();
    let group = unique("large");
    let gateway = GatewayConfig::new(kafka)
        .limits(&format!("memory_budget = \"{BUDGET_MIB}MiB\""))
        .subscription(SubscriptionConfig::new(&group, &[&topic]))
        .start();
    let history = History::default();
    let crew = Crew::new(&gateway, &group, &history).window(4).start(4);
    eventually("all are acked", Duration::from_secs(180), async || match history.acked() {
        acked if acked >= produced => Ok(()),
        acked => Err(acked),
    })
    .await;
    let peak = peak_rss(gateway.pid()) / MIB;
    assert!(peak < BUDGET_MIB + 64, "{peak} MiB with a budget of {BUDGET_MIB} MiB");
    crew.stop().await;
    kafka.delete_topic(&topic);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_at_its_byte_limit_does_not_stop_the_others() {
    const EACH: usize = 1_000;
    let _guard = ONE_AT_A_TIME.lock().await;
    let kafka = broker();
    let topic = kafka.topic("limit", 3);
    kafka.fill(&topic, 3, 3 * EACH, 10 << 10);
    let group = unique("limit");
    let lines =
        SubscriptionConfig::new(&group, &[&topic]).with("partition_bytes = \"1MiB\"").with("ack_timeout = \"1h\"");
    let gateway = GatewayConfig::new(kafka).subscription(lines).start();
    let mut wire = Wire::subscribe(&gateway, &group, 5_000).await;
    let mut held = Vec::new();
    let mut acked = 0;
    while acked < 2 * EACH {
        let batch = wire.records(1).await;
        let (stuck, others): (Vec<Lease>, Vec<Lease>) = batch.into_iter().partition(|lease| lease.partition == 0);
        held.extend(stuck);
        acked += others.len();
        wire.ack(&others);
    }
    eventually("the gateway says what holds it up", SOON, async || {
        let partitions = gateway.partitions(&group).await;
        let first = partitions.iter().find(|one| one.partition == 0).cloned();
        first.clone().filter(|one| one.blocked_on == "memory_budget").map(drop).ok_or(first)
    })
    .await;
    assert!(held.len() < EACH, "{} of {EACH} were taken in spite of the limit", held.len());
    // What is settled makes room, and it goes on.
    while held.len() < EACH {
        let lease = held.last().expect("some are held").clone();
        let settlements = vec![settlement(lease.range(0, i64::MAX), Outcome::Ack(Ack {}))];
        wire.send(Request::Settle(Settlements { seen: wire.seen, settlements, ..Settlements::default() }));
        wire.held.clear();
        match wire.read(Duration::from_millis(100)).await {
            Seen::Ended(end) => panic!("the stream ended: {end:?}"),
            Seen::Frame | Seen::Nothing => held.extend(wire.inbox.drain(..)),
        }
    }
}
