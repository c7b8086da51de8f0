//! Several nodes, one address: a client lands anywhere, and never notices who holds the partition.

mod dns;
mod draining;
mod evenness;
mod faults;
mod floods;
mod group;
mod lanes;
mod links;
mod members;
mod moved_on;
mod moving;
mod numbers;
mod resuming;
mod seek;
mod tls;
mod versions;
mod views;
mod windows;
mod zombies;

use std::time::Duration;

use sluice_tests::kafka::client::Produced;
use sluice_tests::{Cluster, Fault, GatewayConfig, History, Kafka, SOON, broker, eventually};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::{committed_to_the_end, reaches, subscription};

/// So many nodes with one subscription of one topic; group and subscription have this name.
async fn cluster(nodes: usize, name: &str, topic: &str, lines: &[&str]) -> Cluster {
    let config = GatewayConfig::new(broker()).subscription(subscription(name, &[topic], lines));
    let cluster = Cluster::start(&config, nodes).await;
    cluster.knows(nodes - 1).await;
    cluster
}

/// All but this one.
fn others(nodes: usize, but: usize) -> Vec<usize> {
    (0..nodes).filter(|node| *node != but).collect()
}

/// All is acked and committed, nothing was lost, and what came twice has a cause.
async fn ends_well(
    kafka: &Kafka,
    group: &str,
    topic: &str,
    history: &History,
    produced: &[Produced],
    faults: &[Fault],
) {
    reaches("all are acked", produced.len(), || history.acked_of(produced)).await;
    committed_to_the_end(kafka, group, topic).await;
    history.check_no_loss(produced);
    history.check_causes(kafka, group, faults);
    history.check_one_holder();
    history.check_commits(kafka, group, produced);
}

/// Records that are written at a rate, until it is stopped.
struct Load {
    on: watch::Sender<bool>,
    task: JoinHandle<Vec<Produced>>,
}

impl Load {
    /// Some 200 records a second.
    fn start(kafka: &Kafka, topic: &str, partitions: i32) -> Self {
        let (on, loaded) = watch::channel(true);
        let (kafka, topic) = (kafka.clone(), topic.to_owned());
        let task = tokio::task::spawn_blocking(move || {
            let mut produced = Vec::new();
            // A test that fails lets go of the other end: its runtime would wait for this thread.
            while *loaded.borrow() && loaded.has_changed().is_ok() {
                produced.extend(kafka.fill(&topic, partitions, 50, 64));
                std::thread::sleep(Duration::from_millis(250));
            }
            produced
        });
        Self { on, task }
    }

    /// All that was written.
    async fn stop(self) -> Vec<Produced> {
        self.on.send_replace(false);
        self.task.await.expect("all is produced")
    }
}

/// Waits until so many sessions have worked on each partition since this call, and writes as many records as that takes: to
/// clients of other nodes an owner deals only what is too much for its own.
async fn all_work_on_all(
    history: &History,
    sessions: usize,
    kafka: &Kafka,
    topic: &str,
    partitions: i32,
) -> Vec<Produced> {
    let moment = history.moment();
    let mut produced = Vec::new();
    let all = usize::try_from(partitions).expect("not negative");
    eventually("everybody works on every partition", SOON, async || {
        let worked = history.worked_since(moment);
        if worked.values().filter(|partitions| partitions.len() == all).count() >= sessions {
            return Ok(());
        }
        if history.acked_of(&produced) >= produced.len() / 2 {
            produced.extend(kafka.fill(topic, partitions, sessions * 40, 64));
        }
        Err(worked)
    })
    .await;
    produced
}

/// Waits until so many sessions have done something since a moment.
async fn all_work(history: &History, sessions: usize, moment: usize) {
    eventually("everybody works", SOON, async || {
        let done = history.done_since(moment);
        if done.len() >= sessions { Ok(()) } else { Err(done) }
    })
    .await;
}
