//! What clients get whose streams landed on nodes without a partition.

use std::time::Duration;

use sluice_proto::v1::{Flow, Subscribe};
use sluice_tests::wire::{Seen, Wire, subscribe};
use sluice_tests::{Crew, History, SOON, broker, eventually, unique};

use super::{cluster, others};
use crate::{committed_to_the_end, reaches};

#[tokio::test(flavor = "multi_thread")]
async fn thirty_clients_on_the_two_nodes_without_the_partition_all_work_and_evenly() {
    const SESSIONS: usize = 30;
    const EACH: usize = 300;
    let kafka = broker();
    let topic = kafka.topic("far", 1);
    let group = unique("far");
    let cluster = cluster(3, &group, &topic, &["join = \"at_start\""]).await;
    let owner = cluster.owners(&group, 1).await[0];
    let edges = others(3, owner);
    let (done, finished) = tokio::sync::watch::channel(false);
    let counts: Vec<_> = (0..SESSIONS).map(|_| std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0))).collect();
    let history = History::default();
    let mut workers = Vec::new();
    for (at, count) in counts.iter().enumerate() {
        let node = &cluster.nodes[edges[at % 2]];
        let first = Subscribe { flow: Some(Flow { max_records: 10, max_bytes: 0 }), ..subscribe(&group, 10) };
        let mut wire = Wire::connect(node, first).await.recorded(&history);
        let (finished, count) = (finished.clone(), std::sync::Arc::clone(count));
        workers.push(tokio::spawn(async move {
            while !*finished.borrow() {
                if let Seen::Ended(end) = wire.read(Duration::from_millis(100)).await {
                    panic!("the stream ended: {end:?}");
                }
                let batch: Vec<_> = wire.inbox.drain(..).collect();
                if !batch.is_empty() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    count.fetch_add(batch.len(), std::sync::atomic::Ordering::Relaxed);
                    wire.ack(&batch);
                }
            }
            // What was dealt meanwhile is of no interest: it is given back.
            drop(wire);
        }));
    }
    let produced = kafka.fill(&topic, 1, SESSIONS * EACH * 3 / 2, 32);
    let shares = eventually("each has had its records", Duration::from_secs(120), async || {
        let read = counts.iter().map(|count| count.load(std::sync::atomic::Ordering::Relaxed));
        let shares: Vec<_> = read.collect();
        if shares.iter().all(|share| *share >= EACH) { Ok(shares) } else { Err(shares) }
    })
    .await;
    let (least, most) = (shares.iter().min().expect("sessions"), shares.iter().max().expect("sessions"));
    assert!(*most * 2 <= *least * 3, "from {least} to {most}: {shares:?}");
    eventually("all are acked", Duration::from_secs(60), async || match history.acked_of(&produced) {
        all if all == produced.len() => Ok(()),
        some => Err(some),
    })
    .await;
    let _ = done.send(true);
    for worker in workers {
        worker.await.expect("no session was dealt more than its window");
    }
    committed_to_the_end(kafka, &group, &topic).await;
    history.check_no_duplicates();
    history.check_one_holder();
    history.check_commits(kafka, &group, &produced);
    for edge in edges {
        let relayed = cluster.nodes[edge].metric("sluice_edge_records_delivered_total", "other_nodes");
        let local = cluster.nodes[edge].metric("sluice_edge_records_delivered_total", "this_node");
        assert!(relayed > Some(0.0) && local == Some(0.0), "relayed {relayed:?}, local {local:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_split_over_three_owners_are_never_exceeded() {
    let kafka = broker();
    let topic = kafka.topic("split", 6);
    let group = unique("split");
    let cluster = cluster(3, &group, &topic, &[]).await;
    for from in 0..3 {
        // Far enough that grants, echoes and records cross each other.
        others(3, from).into_iter().for_each(|to| cluster.way(from, to).set_delay(Duration::from_millis(5)));
    }
    let history = History::default();
    let windows = [(1, 0), (2, 0), (3, 900), (7, 0), (10, 2_000), (40, 0), (100, 5_000), (100, 0), (1, 100)];
    let (done, finished) = tokio::sync::watch::channel(false);
    let mut workers = Vec::new();
    for (at, (max_records, max_bytes)) in windows.into_iter().enumerate() {
        let first = Subscribe { flow: Some(Flow { max_records, max_bytes }), ..subscribe(&group, max_records) };
        // A session panics when it is dealt more than its window.
        let mut wire = Wire::connect(&cluster.nodes[at % 3], first).await.recorded(&history);
        let finished = finished.clone();
        workers.push(tokio::spawn(async move {
            let mut dealt = 0;
            while !*finished.borrow() {
                if let Seen::Ended(end) = wire.read(Duration::from_millis(50)).await {
                    panic!("the stream ended: {end:?}");
                }
                all_that_comes(&mut wire, Duration::from_millis(3)).await;
                let batch: Vec<_> = wire.inbox.drain(..).collect();
                dealt += batch.len();
                // In pieces: windows are never all free or all full.
                for piece in batch.chunks(3) {
                    tokio::time::sleep(Duration::from_millis(3)).await;
                    wire.ack(piece);
                }
            }
            dealt
        }));
    }
    cluster.spread(&group, 6, 3).await;
    let sizes = [10, 50, 300, 700, 1_500, 3_000];
    // In bursts, to one partition after the other: room has to move between owners all the time.
    let mut produced = Vec::new();
    for round in 0..30_usize {
        let partition = i32::try_from(round % 6).expect("small");
        let records = (0..200_usize).map(|index| {
            let value = sluice_tests::kafka::client::numbered(round * 200 + index, sizes[index % 7 % 6]);
            sluice_tests::NewRecord::to(partition, value)
        });
        produced.extend(kafka.produce(&topic, records));
        // Several owners have something at any time.
        let goal = produced.len().saturating_sub(2_400);
        reaches("most of it is acked", goal, || history.acked_of(&produced)).await;
    }
    eventually("all are acked", Duration::from_secs(120), async || match history.acked_of(&produced) {
        all if all == produced.len() => Ok(()),
        some => Err(some),
    })
    .await;
    let _ = done.send(true);
    for worker in workers {
        assert!(worker.await.expect("no session was dealt more than its window") > 0, "nobody starves");
    }
    committed_to_the_end(kafka, &group, &topic).await;
    history.check_no_duplicates();
    history.check_one_holder();
    history.check_commits(kafka, &group, &produced);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_client_with_a_window_of_one_gets_the_records_of_all_owners() {
    let kafka = broker();
    let topic = kafka.topic("narrow", 3);
    let group = unique("narrow");
    let cluster = cluster(3, &group, &topic, &[]).await;
    let history = History::default();
    let mut wire = Wire::subscribe(&cluster.nodes[0], &group, 1).await.recorded(&history);
    cluster.spread(&group, 3, 3).await;
    let produced = kafka.fill(&topic, 3, 60, 32);
    let mut partitions = std::collections::BTreeMap::new();
    while history.acked_of(&produced) < produced.len() {
        let lease = wire.record().await;
        *partitions.entry(lease.partition).or_insert(0) += 1;
        wire.ack(&[lease]);
    }
    assert_eq!(partitions, [(0, 20), (1, 20), (2, 20)].into());
    history.check_no_duplicates();
}

#[tokio::test(flavor = "multi_thread")]
async fn room_moves_to_another_owner_only_when_it_is_there() {
    let kafka = broker();
    let topic = kafka.topic("moves", 2);
    let group = unique("moves");
    let cluster = cluster(2, &group, &topic, &[]).await;
    // The session panics when it is dealt more than its window.
    let mut wire = Wire::subscribe(&cluster.nodes[0], &group, 10).await;
    let owners = cluster.spread(&group, 2, 2).await;
    assert_ne!(owners[0], owners[1]);
    let burst = |partition| {
        let record = |index| sluice_tests::NewRecord::to(partition, sluice_tests::kafka::client::numbered(index, 16));
        kafka.produce(&topic, (0..30).map(record));
    };
    burst(0);
    let first = wire.records(10).await;
    assert!(first.iter().all(|lease| lease.partition == 0), "nothing is ready anywhere else");
    burst(1);
    eventually("the other owner has something ready", SOON, async || {
        let partitions = cluster.nodes[0].partitions(&group).await;
        let lag = partitions.iter().find(|one| one.partition == 1).map(|one| (one.lag, one.leased));
        if lag == Some((30, 0)) { Ok(()) } else { Err(lag) }
    })
    .await;
    // What could have come would have come by now: several turns of the split.
    for _ in 0..10 {
        wire.barrier().await;
        wire.read(Duration::from_millis(100)).await;
    }
    assert_eq!(wire.held.len(), 10);
    wire.ack(&first[..8]);
    let next = wire.records(8).await;
    assert_eq!(
        next.iter().filter(|lease| lease.partition == 1).count(),
        5,
        "half of the window, as both have something"
    );
}

/// Reads until nothing came for so long: a record too many would be among it, and the session would panic.
async fn all_that_comes(wire: &mut Wire, quiet: Duration) {
    while matches!(wire.read(quiet).await, Seen::Frame) {}
}

/// Sessions check their windows at each record.
#[tokio::test(flavor = "multi_thread")]
async fn windows_are_never_exceeded_while_clients_come_and_go() {
    const VISITS: usize = 1_000;
    let kafka = broker();
    let (topic, group) = (kafka.topic("visits", 3), unique("visits"));
    let cluster = cluster(3, &group, &topic, &[]).await;
    let history = History::default();
    let work = Duration::from_millis(5);
    let crew = Crew::by(&cluster.address(), &group, &history).window(12).work(work).start(6);
    cluster.spread(&group, 3, 3).await;
    let produced = kafka.fill(&topic, 3, 12_000, 32);
    let mut channels = Vec::new();
    for node in &cluster.nodes {
        channels.push(node.channel().await);
    }
    let visitors: Vec<_> = (0..10)
        .map(|at| {
            let channels = channels.clone();
            let (group, history) = (group.clone(), history.clone());
            tokio::spawn(async move {
                for visit in 0..VISITS / 10 {
                    // Windows smaller than the number of owners, and larger ones.
                    let (at, window) = (at + visit, 1 + i32::try_from(visit % 7).expect("small"));
                    let first = subscribe(&group, window);
                    let mut wire =
                        Wire::open(channels[at % 3].clone(), first).await.expect("it is welcome").recorded(&history);
                    all_that_comes(&mut wire, Duration::from_millis(20)).await;
                    let batch: Vec<_> = wire.inbox.drain(..).collect();
                    match visit % 3 {
                        // It goes with all that it has, without a word.
                        0 => {}
                        1 => wire.half_close(),
                        _ => {
                            wire.flow(window + 3, 0);
                            wire.ack(&batch[..batch.len() / 2]);
                            all_that_comes(&mut wire, Duration::from_millis(20)).await;
                            wire.half_close();
                        }
                    }
                }
            })
        })
        .collect();
    for visitor in visitors {
        visitor.await.expect("no visitor was dealt more than its window");
    }
    reaches("all are acked", produced.len(), || history.acked_of(&produced)).await;
    committed_to_the_end(kafka, &group, &topic).await;
    crew.stop().await;
    history.check_no_loss(&produced);
    history.check_one_holder();
    history.check_commits(kafka, &group, &produced);
}
