//! What a session gets of a topic: never more than it asked for, and its share.

use std::time::Duration;

use sluice_proto::v1::{Flow, Subscribe};
use sluice_tests::wire::{Seen, Wire, subscribe};
use sluice_tests::{Crew, History, broker, eventually, unique};

use crate::{committed_to_the_end, gateway, reaches};

#[tokio::test(flavor = "multi_thread")]
async fn fifty_sessions_with_equal_windows_share_a_topic_evenly() {
    const SESSIONS: usize = 50;
    const EACH: usize = 1_000;
    let kafka = broker();
    let topic = kafka.topic("shared", 4);
    // So many that no session can run dry before the slowest has its thousand.
    kafka.fill(&topic, 4, SESSIONS * EACH * 3 / 2, 32);
    let group = unique("shared");
    let gateway = gateway(&group, &topic, &[]);
    let (done, finished) = tokio::sync::watch::channel(false);
    let counts: Vec<_> = (0..SESSIONS).map(|_| std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0))).collect();
    let mut wires = Vec::new();
    for _ in 0..SESSIONS {
        wires.push(Wire::connect(&gateway, Subscribe { flow: None, ..subscribe(&group, 0) }).await);
    }
    let workers: Vec<_> = wires
        .into_iter()
        .zip(&counts)
        .map(|(mut wire, count)| {
            let (finished, count) = (finished.clone(), std::sync::Arc::clone(count));
            tokio::spawn(async move {
                wire.flow(10, 0);
                while !*finished.borrow() {
                    if let Seen::Ended(end) = wire.read(Duration::from_millis(100)).await {
                        panic!("the stream ended: {end:?}");
                    }
                    let batch: Vec<_> = wire.inbox.drain(..).collect();
                    if !batch.is_empty() {
                        // Equal work: without it the scheduler of this test would decide who is fast.
                        tokio::time::sleep(Duration::from_millis(2)).await;
                        count.fetch_add(batch.len(), std::sync::atomic::Ordering::Relaxed);
                        wire.ack(&batch);
                    }
                }
            })
        })
        .collect();
    let read = || counts.iter().map(|count| count.load(std::sync::atomic::Ordering::Relaxed)).collect::<Vec<_>>();
    let shares = eventually("each session has had a thousand", Duration::from_secs(120), async || {
        let shares = read();
        if shares.iter().all(|share| *share >= EACH) { Ok(shares) } else { Err(shares) }
    })
    .await;
    let _ = done.send(true);
    for worker in workers {
        worker.await.expect("no session was dealt more than its window");
    }
    let (least, most) = (shares.iter().min().expect("sessions"), shares.iter().max().expect("sessions"));
    assert!(*most * 10 <= *least * 13, "from {least} to {most}: {shares:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_of_zero_is_silence_until_it_is_opened() {
    let kafka = broker();
    let topic = kafka.topic("closed", 1);
    kafka.fill(&topic, 1, 100, 32);
    let group = unique("closed");
    let gateway = gateway(&group, &topic, &[]);
    let mut closed = Wire::subscribe(&gateway, &group, 0).await;
    let mut open = Wire::subscribe(&gateway, &group, 50).await;
    let records = open.records(50).await;
    // Fifty more are ready, and nobody else has room: what was dealt to the closed one would have been written by now.
    closed.barrier().await;
    assert!(closed.inbox.is_empty(), "a closed window is dealt nothing");
    closed.flow(5, 0);
    assert_eq!(closed.records(5).await.len(), 5);
    closed.flow(0, 0);
    closed.barrier().await;
    open.ack(&records);
    assert_eq!(open.records(45).await.len(), 45, "all others go to the one with room");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_of_bytes_is_kept_and_one_record_may_be_larger_than_it() {
    let kafka = broker();
    let topic = kafka.topic("bytes", 1);
    let sizes = [100, 100, 100, 5_000, 100, 900, 200, 3_000, 50];
    let records = sizes
        .iter()
        .enumerate()
        .map(|(index, size)| sluice_tests::NewRecord::to(0, sluice_tests::kafka::client::numbered(index, *size)));
    let produced = kafka.produce(&topic, records);
    let group = unique("bytes");
    let gateway = gateway(&group, &topic, &[]);
    let history = History::default();
    let flow = Some(Flow { max_records: 100, max_bytes: 1_000 });
    let mut wire = Wire::connect(&gateway, Subscribe { flow, ..subscribe(&group, 0) }).await.recorded(&history);
    // The session itself fails when it is dealt more than 1,000 bytes and more than one record.
    while history.acked() < produced.len() {
        let batch = wire.records(1).await;
        wire.ack(&batch);
    }
    committed_to_the_end(kafka, &group, &topic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stops_reading_slows_nobody_else() {
    const WINDOW: usize = 1_000;
    let kafka = broker();
    let topic = kafka.topic("deaf", 2);
    // More in its window than all buffers between a gateway and a client hold.
    let produced = kafka.fill(&topic, 2, 6_000, 20_000);
    let group = unique("deaf");
    let gateway = gateway(&group, &topic, &["partition_bytes = \"256MiB\""]);
    let deaf = Wire::subscribe(&gateway, &group, i32::try_from(WINDOW).expect("small")).await;
    eventually("the deaf one holds its window", sluice_tests::SOON, async || {
        let consumers = gateway.consumers(&group).await;
        let leased = consumers.iter().map(|one| one.leased).max();
        if leased == Some(1_000) { Ok(()) } else { Err(leased) }
    })
    .await;
    let history = History::default();
    let crew = Crew::new(&gateway, &group, &history).start(2);
    reaches("all others are acked", produced.len() - WINDOW, || history.acked_of(&produced)).await;
    history.check_no_duplicates();
    crew.stop().await;
    drop(deaf);
}
