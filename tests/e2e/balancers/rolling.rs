//! All nodes restarted one after another behind each balancer, under load.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sluice_client::{Consumer, Event};
use sluice_tests::balancer::{Kind, Settings};
use sluice_tests::kafka::client::Produced;
use sluice_tests::process::Signal;
use sluice_tests::wire::{Seen, Wire, subscribe};
use sluice_tests::{Cluster, GatewayConfig, History, SOON, broker, unique};
use tokio::sync::watch;
use tonic::Code;
use tonic::transport::Endpoint;

use crate::{committed_to_the_end, reaches, subscription};

const PARTITIONS: i32 = 6;
const WINDOW: i32 = 10;
/// A frame's work: shorter than the drain.
const WORK: Duration = Duration::from_millis(150);
const SESSIONS: usize = 6;
const CONSUMERS: usize = 3;

/// What one client saw.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// How its streams ended, or did not begin.
    pub(crate) ends: BTreeMap<String, usize>,
    /// The longest time between two records while there was work.
    longest_gap: Duration,
    last: Option<Instant>,
}

impl Report {
    fn end(&mut self, how: &str) {
        *self.ends.entry(how.to_owned()).or_default() += 1;
    }

    fn record(&mut self, is_load: bool) {
        let gap = self.last.replace(Instant::now()).map(|last| last.elapsed());
        if let Some(gap) = gap.filter(|_| is_load) {
            self.longest_gap = self.longest_gap.max(gap);
        }
    }
}

/// What there is to do: while `true`, records are produced.
pub(crate) type Load = watch::Receiver<bool>;

/// A client on the generated stubs, which sees each status.
async fn session(endpoint: Endpoint, name: String, history: History, load: Load, stop: Load) -> Report {
    let mut report = Report::default();
    while !*stop.borrow() {
        let channel = endpoint.connect().await.expect("the balancer is always there");
        let mut wire = match Wire::open(channel, subscribe(&name, WINDOW)).await {
            Ok(wire) => wire.recorded(&history),
            Err(status) => {
                report.end(&told(&status));
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let mut half_closed = false;
        loop {
            let seen = wire.read(Duration::from_millis(50)).await;
            let batch: Vec<_> = wire.inbox.drain(..).collect();
            if !batch.is_empty() {
                if half_closed {
                    report.end("dealt after its end");
                }
                report.record(*load.borrow());
                tokio::time::sleep(WORK).await;
                wire.ack(&batch);
            }
            match seen {
                Seen::Ended(Err(status)) => {
                    report.end(&told(&status));
                    break;
                }
                Seen::Ended(Ok(())) => {
                    report.end(if wire.drained { "Drain, OK" } else { "OK without Drain" });
                    break;
                }
                Seen::Frame | Seen::Nothing if wire.drained || *stop.borrow() => {
                    wire.half_close();
                    half_closed = true;
                }
                Seen::Frame | Seen::Nothing => {}
            }
        }
    }
    report
}

fn told(status: &tonic::Status) -> String {
    assert_eq!(status.code(), Code::Unavailable, "clients are told nothing else: {status:?}");
    format!("UNAVAILABLE: {}", status.message())
}

/// How often each record was given to an application.
pub(crate) type Given = Arc<Mutex<BTreeMap<(i32, i64), usize>>>;

/// Our own client, which comes back by itself.
pub(crate) async fn consumer(address: String, name: String, given: Given, load: Load, mut stop: Load) -> Report {
    let mut report = Report::default();
    let builder = Consumer::builder(address, name).window(u32::try_from(WINDOW).expect("positive"));
    let mut consumer = builder.connect().await.expect("it connects");
    let mut events = consumer.events().expect("nobody took them");
    loop {
        let record = tokio::select! {
            record = consumer.next() => record.expect("it never ends by itself").expect("nobody closed it"),
            _ = stop.wait_for(|stop| *stop) => break,
        };
        report.record(*load.borrow());
        *given.lock().expect("not poisoned").entry((record.partition(), record.offset())).or_default() += 1;
        tokio::time::sleep(WORK / 15).await;
        record.ack();
    }
    consumer.close(Duration::from_secs(10)).await.expect("it closes");
    while let Ok(event) = events.try_recv() {
        match event {
            Event::Disconnected { cause } => report.end(&cause),
            Event::Revoked { offsets, reason } => report.end(&format!("revoked {reason:?} {}", offsets.partition)),
            Event::Rejected { offsets, reason } => report.end(&format!("rejected {reason:?} {}", offsets.partition)),
            _ => {}
        }
    }
    report
}

/// Writes records until there is no more load.
fn produce(topic: &str, load: &Load) -> Vec<Produced> {
    let mut produced = Vec::new();
    // A test that fails lets go of the other end: its runtime would wait for this thread.
    while *load.borrow() && load.has_changed().is_ok() {
        produced.extend(broker().fill(topic, PARTITIONS, 60, 64));
        // A rate: some 200 a second.
        std::thread::sleep(Duration::from_millis(250));
    }
    produced
}

async fn rolling_restart(kind: Kind) {
    let kafka = broker();
    let topic = kafka.topic("rolling", PARTITIONS);
    let (raw, ours) = (unique("rolling-raw"), unique("rolling-ours"));
    let config = GatewayConfig::new(kafka).node("drain_delay = \"4s\"").node("drain_timeout = \"30s\"");
    let config =
        [&raw, &ours].iter().fold(config, |config, name| config.subscription(subscription(name, &[&topic], &[])));
    let mut cluster = Cluster::start(&config, 3).await;
    cluster.knows(2).await;
    let balancer = Settings::of(kind).start(&cluster.nodes).await;

    let (history, given) = (History::default(), Given::default());
    let (loaded, load) = watch::channel(true);
    let (stops, stop) = watch::channel(false);
    let mut clients: Vec<_> = (0..SESSIONS)
        .map(|_| tokio::spawn(session(balancer.endpoint(), raw.clone(), history.clone(), load.clone(), stop.clone())))
        .collect();
    clients.extend((0..CONSUMERS).map(|_| {
        let address = format!("http://{}", balancer.address());
        tokio::spawn(consumer(address, ours.clone(), given.clone(), load.clone(), stop.clone()))
    }));
    let producer = tokio::task::spawn_blocking({
        let (topic, load) = (topic.clone(), load.clone());
        move || produce(&topic, &load)
    });
    let count = || given.lock().expect("not poisoned").len();
    reaches("the sessions are at work", 300, || history.acked()).await;
    reaches("the consumers are at work", 300, count).await;

    for at in 0..cluster.nodes.len() {
        let start = Instant::now();
        cluster.nodes[at].signal(Signal::Term);
        assert!(cluster.nodes[at].ended().await.success(), "node {at} ends with status 0");
        let ended = start.elapsed();
        cluster.nodes[at].restart();
        cluster.nodes[at].ready().await;
        cluster.knows(2).await;
        eprintln!("{kind:?}: node {at} ended {ended:?} after SIGTERM and was back after {:?}", start.elapsed());
        let (acked, taken) = (history.acked(), count());
        reaches("the sessions go on", acked + 100, || history.acked()).await;
        reaches("the consumers go on", taken + 100, count).await;
    }

    loaded.send_replace(false);
    let produced = producer.await.expect("all is produced");
    reaches("all are acked by the sessions", produced.len(), || history.acked_of(&produced)).await;
    reaches("all are given to the consumers", produced.len(), count).await;
    committed_to_the_end(kafka, &raw, &topic).await;
    committed_to_the_end(kafka, &ours, &topic).await;
    stops.send_replace(true);
    let mut longest = Duration::ZERO;
    for (at, client) in clients.into_iter().enumerate() {
        let report = client.await.expect("no client failed");
        let who = if at < SESSIONS { "session" } else { "consumer" };
        eprintln!("{kind:?}: {who} {at}: longest gap {:?}, {:?}", report.longest_gap, report.ends);
        longest = longest.max(report.longest_gap);
        let planned = ["Drain, OK", "UNAVAILABLE", "Unavailable", "the stream ended as planned", "OK without Drain"];
        let strange: Vec<_> =
            report.ends.keys().filter(|end| !planned.iter().any(|one| end.starts_with(one))).collect();
        assert!(strange.is_empty(), "{who} {at}: {strange:?}");
        let mid_stream_ok = report.ends.get("OK without Drain").copied().unwrap_or(0);
        assert!(mid_stream_ok <= 1, "only its own last half-close ends a stream so: {:?}", report.ends);
    }
    eprintln!("{kind:?}: {} records, longest gap of any client {longest:?}", produced.len());

    history.check_no_loss(&produced);
    history.check_no_duplicates();
    history.check_one_holder();
    history.check_commits(kafka, &raw, &produced);
    let given = given.lock().expect("not poisoned");
    let twice: Vec<_> = given.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "{} records were given twice: {:?}", twice.len(), &twice[..twice.len().min(5)]);
    assert_eq!(given.len(), produced.len());
    assert!(longest < SOON / 2, "a client waited {longest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_restart_behind_haproxy_and_no_record_is_lost_or_comes_twice() {
    rolling_restart(Kind::Haproxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_restart_behind_nginx_and_no_record_is_lost_or_comes_twice() {
    rolling_restart(Kind::Nginx).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_restart_behind_envoy_and_no_record_is_lost_or_comes_twice() {
    rolling_restart(Kind::Envoy).await;
}
