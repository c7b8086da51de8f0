//! A rolling upgrade, and back: nodes of two versions side by side.

use std::path::Path;
use std::time::Duration;

use sluice_tests::balancer::{Kind, Settings};
use sluice_tests::executable::{next_executable, old_executable};
use sluice_tests::process::Signal;
use sluice_tests::{Cluster, Crew, GatewayConfig, History, SOON, Wire, broker, eventually, unique};
use tokio::sync::watch;

use super::{Load, all_work_on_all};
use crate::balancers::rolling::{Given, consumer};
use crate::{committed_to_the_end, reaches, subscription};

const PARTITIONS: i32 = 6;
const SESSIONS: usize = 6;
/// On the node that is the first of the next version.
const SESSIONS_THERE: usize = 3;

/// The next version of a node says what this one does not know: see the gateway's `next.rs`.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_roll_to_the_next_version_and_back_and_no_record_is_lost_or_comes_twice() {
    let (old, next) = (old_executable(), next_executable());
    let kafka = broker();
    let topic = kafka.topic("versions", PARTITIONS);
    let (raw, ours) = (unique("versions-raw"), unique("versions-ours"));
    // A node is out of the balancer two seconds after it says that it is not ready.
    let config = GatewayConfig::new(kafka).node("drain_delay = \"3s\"").node("drain_timeout = \"30s\"");
    let config =
        [&raw, &ours].iter().fold(config, |config, name| config.subscription(subscription(name, &[&topic], &[])));
    let mut cluster = Cluster::start(&config, 3).await;
    for node in &mut cluster.nodes {
        node.kill();
        node.set_executable(&old);
        node.restart();
    }
    cluster.knows(2).await;
    let balancer = Settings::of(Kind::Haproxy).start(&cluster.nodes).await;

    let (history, given) = (History::default(), Given::default());
    let crew = |address: &str| Crew::by(address, &raw, &history).window(10).work(Duration::from_millis(20));
    let crews = (crew(balancer.address()).start(SESSIONS), crew(cluster.nodes[0].address()).start(SESSIONS_THERE));
    // Our own client.
    let (loaded, stop) = (watch::channel(false), watch::channel(false));
    let address = format!("http://{}", balancer.address());
    let client = tokio::spawn(consumer(address, ours.clone(), given.clone(), loaded.1, stop.1));
    let count = || given.lock().expect("not poisoned").len();
    cluster.spread(&raw, 6, 3).await;
    let load = Load::start(kafka, &topic, PARTITIONS);
    reaches("the sessions are at work", 100, || history.acked()).await;
    reaches("the consumer is at work", 100, count).await;

    let mut more = Vec::new();
    for (executable, at) in [&next, &old].into_iter().flat_map(|executable| (0..3).map(move |at| (executable, at))) {
        let is_first = executable == &next && at == 0;
        roll(&mut cluster, at, executable).await;
        let (acked, taken) = (history.acked(), count());
        reaches("the sessions go on", acked + 100, || history.acked()).await;
        reaches("the consumer goes on", taken + 100, count).await;
        if is_first {
            // Both ways: a client of the next version's node works on what others own, and theirs on what it owns.
            cluster.spread(&raw, 6, 3).await;
            more.extend(all_work_on_all(&history, SESSIONS + SESSIONS_THERE, kafka, &topic, PARTITIONS).await);
            says_something_unknown(&cluster, &raw).await;
        }
    }

    let mut produced = load.stop().await;
    produced.extend(more);
    reaches("all are acked by the sessions", produced.len(), || history.acked_of(&produced)).await;
    reaches("all are given to the consumer", produced.len(), count).await;
    committed_to_the_end(kafka, &raw, &topic).await;
    committed_to_the_end(kafka, &ours, &topic).await;
    history.check_no_loss(&produced);
    history.check_no_duplicates();
    history.check_one_holder();
    history.check_commits(kafka, &raw, &produced);
    stop.0.send_replace(true);
    let report = client.await.expect("the consumer did not fail");
    crews.0.stop().await;
    crews.1.stop().await;
    let given = given.lock().expect("not poisoned");
    let twice: Vec<_> = given.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "given twice: {twice:?}; {:?}", report.ends);
}

async fn roll(cluster: &mut Cluster, at: usize, executable: &Path) {
    cluster.nodes[at].signal(Signal::Term);
    assert!(cluster.nodes[at].ended().await.success(), "node {at} ends with status 0");
    cluster.nodes[at].set_executable(executable);
    cluster.nodes[at].restart();
    cluster.nodes[at].ready().await;
    cluster.knows(2).await;
}

/// The first node is of the next version: it must be seen to be, or the test shows nothing.
async fn says_something_unknown(cluster: &Cluster, subscription: &str) {
    let mut wire = Wire::subscribe(&cluster.nodes[0], subscription, 0).await;
    wire.barrier().await;
    assert!(wire.subscribed.revision > sluice_proto::REVISION && wire.unknown > 0, "{wire:?}");
    if std::env::var_os("SLUICE_OLD_BIN").is_some() {
        // It may not count them yet.
        return;
    }
    for node in &cluster.nodes[1..] {
        eventually("frames that are unknown are counted", SOON, async || {
            let unknown = node.metric("sluice_peer_frames_unknown_total", "");
            if unknown > Some(0.0) { Ok(()) } else { Err(unknown) }
        })
        .await;
    }
}
