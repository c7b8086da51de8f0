//! What is at a limit says so, by its name and in a metric, holds up nothing else, and goes on when there is room.

use std::time::Duration;

use sluice_proto::v1::{Flow, Partition, Subscribe};
use sluice_tests::wire::{Lease, Seen, Wire, subscribe};
use sluice_tests::{Crew, Gateway, GatewayConfig, History, SOON, broker, eventually, unique};

use crate::{committed_to_the_end, gateway, reaches, subscription};

/// Waits until the only partition of a subscription is as wanted.
async fn partition_is(gateway: &Gateway, group: &str, what: &str, wanted: impl Fn(&Partition) -> bool) -> Partition {
    eventually(what, SOON, async || {
        let mut all = gateway.partitions(group).await;
        if all.len() == 1 && wanted(&all[0]) { Ok(all.remove(0)) } else { Err(all) }
    })
    .await
}

async fn metric_is(gateway: &Gateway, name: &str, labels: &str, wanted: f64) {
    eventually(&format!("{name} is {wanted}"), SOON, async || match gateway.metric(name, labels) {
        Some(found) if found.to_bits() == wanted.to_bits() => Ok(()),
        other => Err(other),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_is_fetched_up_to_its_span_limit_behind_a_held_head_and_on_from_there_afterwards() {
    const SPAN: usize = 500;
    let kafka = broker();
    let topic = kafka.topic("span", 1);
    let group = unique("span");
    let lines = ["span_limit = 500", "prefetch = \"1MiB\"", "ack_timeout = \"10m\""];
    let gateway = gateway(&group, &topic, &lines);
    let history = History::default();
    let mut slow = Wire::subscribe(&gateway, &group, 1).await.recorded(&history);
    let mut produced = kafka.fill(&topic, 1, 1, 32);
    let head = slow.record().await;
    // More than the prefetch and the queue to the engine hold: that much comes in spite of a limit.
    produced.extend(kafka.fill(&topic, 1, 20 * SPAN, 4 << 10));
    let crew = Crew::new(&gateway, &group, &history).window(10).start(3);
    let at_limit = partition_is(&gateway, &group, "the limit is named", |one| {
        one.blocked_on == "span_limit" && one.span == one.done_above_frontier + 1
    })
    .await;
    assert_eq!((at_limit.committable_offset, at_limit.leased), (0, 1), "all but the head is done: {at_limit:?}");
    let span = usize::try_from(at_limit.span).expect("positive");
    assert!((SPAN..produced.len()).contains(&span), "{at_limit:?}");
    assert_eq!(history.acked(), span - 1, "the partition's other records flowed until then");
    metric_is(&gateway, "sluice_partition_fetch_held", &group, 1.0).await;
    assert_eq!(gateway.metric("sluice_partition_span_max", &group), Some(500.0));
    assert!(gateway.metric("sluice_partition_holds_total", &group) >= Some(1.0));
    slow.ack(&[head]);
    reaches("all are acked", produced.len(), || history.acked_of(&produced)).await;
    committed_to_the_end(kafka, &group, &topic).await;
    metric_is(&gateway, "sluice_partition_fetch_held", &group, 0.0).await;
    history.check_no_duplicates();
    crew.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_is_stuck_takes_its_share_of_the_memory_and_no_others() {
    const EACH: usize = 4_000;
    const RECORD: usize = 10 << 10;
    const BUDGET: usize = 16 << 20;
    let kafka = broker();
    let topic = kafka.topic("shares", 2);
    let (stuck, flows) = (unique("stuck"), unique("flows"));
    let small = ["prefetch = \"1MiB\"", "ack_timeout = \"10m\""];
    let gateway = GatewayConfig::new(kafka)
        .limits("memory_budget = \"16MiB\"")
        .subscription(subscription(&stuck, &[&topic], &small))
        .subscription(subscription(&flows, &[&topic], &small))
        .start();
    let produced = kafka.fill(&topic, 2, EACH, RECORD);
    // It holds what it is dealt, within a window of bytes above any share; the session itself looks that it is kept.
    let flow = Some(Flow { max_records: 2_000, max_bytes: 64 << 20 });
    let mut holds = Wire::connect(&gateway, Subscribe { flow, ..subscribe(&stuck, 0) }).await;
    let resting = async |group: &str| {
        eventually("its fetch rests, and its partitions say why", SOON, async || {
            let all = gateway.partitions(group).await;
            let named = all.len() == 2 && all.iter().all(|one| one.blocked_on == "memory_budget");
            if named { Ok(()) } else { Err(all) }
        })
        .await;
    };
    resting(&stuck).await;
    metric_is(&gateway, "sluice_fetch_resting", &stuck, 1.0).await;
    assert!(gateway.metric("sluice_fetch_rests_total", &stuck) >= Some(1.0));
    assert_eq!(gateway.metric("sluice_bytes_max", &stuck), Some(BUDGET as f64 / 2.0), "half is its own");
    let history = History::default();
    let crew = Crew::new(&gateway, &flows, &history).window(20).start(3);
    reaches("the other one works everything", EACH, || history.acked_of(&produced)).await;
    committed_to_the_end(kafka, &flows, &topic).await;
    history.check_no_duplicates();
    crew.stop().await;
    resting(&stuck).await;
    // What is on its way when a limit is reached is taken: one prefetch queue each, and what the engine was told of.
    let held = gateway.metric("sluice_memory_held_bytes", "").expect("there");
    assert_eq!(gateway.metric("sluice_memory_budget_bytes", ""), Some(BUDGET as f64));
    assert!(held < 1.5 * BUDGET as f64, "{held} of {BUDGET} bytes");
    work_off(&mut holds, EACH).await;
    committed_to_the_end(kafka, &stuck, &topic).await;
    metric_is(&gateway, "sluice_fetch_resting", &stuck, 0.0).await;
}

/// Acks everything as it comes.
async fn work_off(wire: &mut Wire, count: usize) {
    let mut acked = 0;
    while acked < count {
        if wire.inbox.is_empty() {
            wire.until("more comes", |wire| (!wire.inbox.is_empty()).then_some(())).await;
        }
        let batch: Vec<Lease> = wire.inbox.drain(..).collect();
        acked += batch.len();
        wire.ack(&batch);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_whose_head_is_older_than_it_may_be_raises_an_alarm_that_names_the_holder() {
    let kafka = broker();
    let topic = kafka.topic("old-head", 1);
    kafka.fill(&topic, 1, 3, 32);
    let group = unique("old-head");
    let gateway = gateway(&group, &topic, &["stuck_after = \"2s\"", "ack_timeout = \"10m\""]);
    let consumer_id = unique("slow");
    let mut slow =
        Wire::connect(&gateway, Subscribe { consumer_id: consumer_id.clone(), ..subscribe(&group, 3) }).await;
    let held = slow.records(3).await;
    slow.ack(&held[1..]);
    let stuck = partition_is(&gateway, &group, "it is called stuck", |one| one.stuck).await;
    assert_eq!((stuck.oldest_undone_offset, stuck.blocked_on.as_str()), (Some(0), "leased"));
    assert_eq!(stuck.holder_consumer_id, consumer_id);
    assert!(!stuck.holder_session_id_prefix.is_empty());
    assert!(slow.subscribed.session_id.starts_with(&stuck.holder_session_id_prefix));
    assert_ne!(slow.subscribed.session_id, stuck.holder_session_id_prefix, "a beginning, not the right to settle");
    metric_is(&gateway, "sluice_partition_stuck", &group, 1.0).await;
    assert!(gateway.metric("sluice_partition_oldest_undone_age_seconds", &group) >= Some(2.0));
    eventually("the log says it once", SOON, async || {
        let log = std::fs::read_to_string(gateway.log()).expect("the log");
        let told = log.lines().filter(|line| line.contains("a record holds its partition")).count();
        if told == 1 { Ok(()) } else { Err(told) }
    })
    .await;
    slow.ack(&held[..1]);
    metric_is(&gateway, "sluice_partition_stuck", &group, 0.0).await;
    committed_to_the_end(kafka, &group, &topic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_is_mostly_done_behind_its_head_raises_an_alarm_before_it_is_at_its_limit() {
    let kafka = broker();
    let topic = kafka.topic("full-span", 1);
    let group = unique("full-span");
    let lines = ["stuck_after = \"10h\"", "ack_timeout = \"10m\"", "span_limit = 1000"];
    let gateway = gateway(&group, &topic, &lines);
    let mut wire = Wire::subscribe(&gateway, &group, 100).await;
    let produced = kafka.fill(&topic, 1, 900, 32);
    let head = wire.record().await;
    work_off(&mut wire, produced.len() - 1).await;
    let stuck = partition_is(&gateway, &group, "it is called stuck", |one| one.stuck).await;
    assert_eq!((stuck.span, stuck.blocked_on.as_str()), (900, "leased"), "the limit itself is not reached");
    assert_eq!(stuck.holder_consumer_id, "", "its holder has no id of its own");
    metric_is(&gateway, "sluice_partition_stuck", &group, 1.0).await;
    wire.ack(&[head]);
    metric_is(&gateway, "sluice_partition_stuck", &group, 0.0).await;
    committed_to_the_end(kafka, &group, &topic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_are_kept_while_everything_else_is_at_its_limit() {
    const SESSIONS: usize = 20;
    let kafka = broker();
    let topic = kafka.topic("at-limits", 1);
    let group = unique("at-limits");
    let lines = ["span_limit = 60", "partition_bytes = \"64KiB\"", "prefetch = \"1MiB\"", "ack_timeout = \"2s\""];
    let fast = "retry = { initial_backoff = \"50ms\", max_attempts = 1000 }";
    let gateway = gateway(&group, &topic, &[&lines[..], &[fast]].concat());
    let history = History::default();
    let mut sessions = Vec::new();
    for n in 0..SESSIONS {
        let flow = Some(Flow { max_records: 1 + i32::try_from(n % 4).expect("small"), max_bytes: 3_000 });
        let wire = Wire::connect(&gateway, Subscribe { flow, ..subscribe(&group, 0) }).await;
        sessions.push(wire.recorded(&history));
    }
    let produced = kafka.fill(&topic, 1, 2_000, 1_000);
    // A session panics when it was dealt more than its window. Every third forgets what it gets, so that it comes again.
    let workers: Vec<_> = sessions.into_iter().enumerate().map(|(n, wire)| tokio::spawn(at_work(n, wire))).collect();
    reaches("all are acked", produced.len(), || history.acked_of(&produced)).await;
    committed_to_the_end(kafka, &group, &topic).await;
    assert!(gateway.metric("sluice_partition_holds_total", &group) >= Some(1.0), "it was at its limit");
    assert!(gateway.stats(&group).await.expired >= 1, "and leases were lost");
    history.check_one_holder();
    for worker in workers {
        assert!(!worker.is_finished(), "{:?}", worker.await);
        worker.abort();
    }
}

/// Acks what comes, but for the first few records where its number says so.
async fn at_work(number: usize, mut wire: Wire) {
    let mut forgets = if number.is_multiple_of(3) { 5 } else { 0 };
    loop {
        match wire.read(Duration::from_millis(100)).await {
            Seen::Ended(end) => panic!("the stream ended: {end:?}"),
            Seen::Frame | Seen::Nothing => {}
        }
        let mut batch: Vec<Lease> = wire.inbox.drain(..).collect();
        let forgotten = batch.len().min(forgets);
        forgets -= forgotten;
        batch.drain(..forgotten);
        if !batch.is_empty() {
            wire.ack(&batch);
        }
    }
}
