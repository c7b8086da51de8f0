//! What clients get whose streams landed on nodes without a partition.

use std::time::Duration;

use sluice_proto::v1::{Flow, Subscribe};
use sluice_tests::wire::{Seen, Wire, subscribe};
use sluice_tests::{History, broker, eventually, unique};

use super::{cluster, others};
use crate::committed_to_the_end;

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
