//! What goes wrong, and what must hold all the same.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sluice_tests::balancer::{Kind, Settings};
use sluice_tests::history::now_ms;
use sluice_tests::seats::{Seat, know, owners};
use sluice_tests::{
    Crew, Fault, Gateway, GatewayConfig, History, Kafka, Produced, SOON, SubscriptionConfig, eventually, unique,
};

use crate::net::{Host, NODES, Net};

const PARTITIONS: i32 = 6;
const SESSIONS: usize = 30;
/// A burst fills the windows of clients that are on the owners themselves, and the rest of it is relayed; and yet clients can do
/// more than comes.
const WINDOW: i32 = 5;
/// With a frame.
const WORK: Duration = Duration::from_millis(250);
/// Records at a time, and the pause between.
const BATCH: usize = 200;
const PAUSE: Duration = Duration::from_millis(100);
/// For a count that must be reached after a fault: connections that were in the dark are tried again ever more seldom.
const HEALED: Duration = Duration::from_secs(120);
/// An ack that was on its way when a fault began was written so long before it at most.
const BEFORE_MS: u128 = 1_000;

/// One fault.
#[derive(Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    /// It needs `tc netem`.
    pub(crate) delays: bool,
    /// Once it is noticed all goes on around it.
    goes_on: bool,
    lasts: Duration,
    /// An owner, and a node that relays from it.
    begin: fn(&Net, Host, Host),
}

pub(crate) const ALL: [Scenario; 7] = [
    Scenario {
        name: "link",
        what: "nothing gets through between two nodes, for 10 s",
        delays: false,
        goes_on: true,
        lasts: Duration::from_secs(10),
        begin: |net, owner, edge| net.part(owner, edge),
    },
    Scenario {
        name: "link-to-owner",
        what: "nothing gets from an edge to an owner, but from it to the edge, for 10 s",
        delays: false,
        goes_on: true,
        lasts: Duration::from_secs(10),
        begin: |net, owner, edge| net.drop(edge, owner),
    },
    Scenario {
        name: "link-to-edge",
        what: "nothing gets from an owner to an edge, but from it to the owner, for 10 s",
        delays: false,
        goes_on: true,
        lasts: Duration::from_secs(10),
        begin: |net, owner, edge| net.drop(owner, edge),
    },
    Scenario {
        name: "owner-kafka",
        what: "an owner does not reach Kafka for 15 s, more than its session there lasts; its peers reach it",
        delays: false,
        goes_on: true,
        lasts: Duration::from_secs(15),
        begin: |net, owner, _| net.part(owner, Host::Kafka),
    },
    Scenario {
        name: "isolated",
        what: "a node's plug is pulled for 15 s: no peer, no Kafka, no client",
        delays: false,
        goes_on: true,
        lasts: Duration::from_secs(15),
        begin: |net, owner, _| net.plug(owner, false),
    },
    Scenario {
        name: "kafka-gone",
        what: "no node reaches Kafka for 15 s",
        delays: false,
        goes_on: false,
        lasts: Duration::from_secs(15),
        begin: |net, _, _| (0..NODES).for_each(|node| net.part(Host::Node(node), Host::Kafka)),
    },
    Scenario {
        name: "slow",
        what: "all that nodes send takes 50 ms, for 10 s",
        delays: true,
        goes_on: true,
        lasts: Duration::from_secs(10),
        begin: |net, _, _| (0..NODES).for_each(|node| net.delay(Host::Node(node), Duration::from_millis(50))),
    },
];

/// Load without an end.
struct Load {
    stop: Arc<AtomicBool>,
    produced: Arc<Mutex<Vec<Produced>>>,
    thread: std::thread::JoinHandle<()>,
}

/// Runs one, and says what was seen. Panics when something does not hold.
pub(crate) async fn run(scenario: &'static Scenario, net: Net, kafka: Kafka, history: History) -> String {
    net.heal();
    let topic = kafka.topic(scenario.name, PARTITIONS);
    let group = unique(scenario.name);
    let nodes = nodes(&net, &kafka, &group, &topic);
    know(&nodes, NODES - 1).await;
    let settings = Settings::of(Kind::Haproxy).place(net.place(Host::Balancer), &Host::Balancer.address(), 7070);
    let balancer = settings.start(&nodes).await;
    let crew = Crew::by(balancer.address(), &group, &history).window(WINDOW).work(WORK).start(SESSIONS);
    let owner = owners(&nodes, &group, PARTITIONS as usize, NODES).await[0];
    let edge = (owner + 1) % NODES;
    let load = Load::start(&kafka, &topic);
    reaches("work goes on", 3_000, || history.acked()).await;
    has_committed(&kafka, &group, &topic).await;

    // In the middle of a burst: a fault when nobody holds anything costs nothing.
    reaches("clients hold a burst", SESSIONS, || history.held()).await;
    let (began, before) = (now_ms(), history.acked());
    (scenario.begin)(&net, Host::Node(owner), Host::Node(edge));
    tokio::time::sleep(scenario.lasts / 2).await;
    let noticed = history.acked();
    tokio::time::sleep(scenario.lasts / 2).await;
    let (meanwhile, late) = (history.acked() - before, history.acked() - noticed);
    net.heal();
    let healing = Instant::now();
    know(&nodes, NODES - 1).await;
    owners(&nodes, &group, PARTITIONS as usize, NODES).await;
    let produced = load.stop();
    reaches("all are acked", produced.len(), || history.acked_of(&produced)).await;
    let healed = healing.elapsed();
    committed_to_the_end(&kafka, &group, &topic).await;
    let until = now_ms();
    // And then it works as if nothing had been.
    let after = kafka.fill(&topic, PARTITIONS, 3_000, 64);
    reaches("all that came later are acked", after.len(), || history.acked_of(&after)).await;
    committed_to_the_end(&kafka, &group, &topic).await;

    // Before its sessions end: what is lost with a session has a cause.
    assert!(!scenario.goes_on || late > 0, "nobody had a record in the second half of the fault");
    let all: Vec<Produced> = produced.into_iter().chain(after).collect();
    history.check_no_loss(&all);
    history.check_one_holder();
    history.check_commits(&kafka, &group, &all);
    history.check_causes(&kafka, &group, &[Fault { from_ms: began - BEFORE_MS, until_ms: until }]);
    let again = history.duplicates().len();
    crew.stop().await;
    format!(
        "{} records, {meanwhile} while it lasted; {again} dealt again; all done {:.1} s after the end",
        all.len(),
        healed.as_secs_f64()
    )
}

fn nodes(net: &Net, kafka: &Kafka, group: &str, topic: &str) -> Vec<Gateway> {
    let seat = |node| Seat { host: Host::Node(node).address(), ports: [7070, 7071, 7072] };
    let seats: Vec<Seat> = (0..NODES).map(seat).collect();
    // Between namespaces of one machine nobody listens.
    let config = GatewayConfig::new(kafka).peers("plain = true");
    let config = config.subscription(SubscriptionConfig::new(group, &[topic]));
    let configs = Seat::configure_all(&seats, &config).into_iter().enumerate();
    configs.map(|(node, config)| config.place(net.place(Host::Node(node))).start()).collect()
}

impl Load {
    fn start(kafka: &Kafka, topic: &str) -> Self {
        let (stop, produced) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (stopped, written) = (Arc::clone(&stop), Arc::clone(&produced));
        let (kafka, topic) = (kafka.clone(), topic.to_owned());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                let batch = kafka.fill(&topic, PARTITIONS, BATCH, 64);
                written.lock().expect("not poisoned").extend(batch);
                std::thread::sleep(PAUSE);
            }
        });
        Self { stop, produced, thread }
    }

    fn stop(self) -> Vec<Produced> {
        self.stop.store(true, Ordering::Release);
        self.thread.join().expect("the producer failed");
        std::mem::take(&mut self.produced.lock().expect("not poisoned"))
    }
}

async fn reaches(what: &str, goal: usize, mut count: impl FnMut() -> usize) {
    eventually(what, HEALED, async || {
        let seen = count();
        if seen >= goal { Ok(()) } else { Err(seen) }
    })
    .await;
}

/// A fault before that shows little.
async fn has_committed(kafka: &Kafka, group: &str, topic: &str) {
    eventually("commits are made", SOON, async || {
        let committed = kafka.committed(group, topic);
        let moved = committed.values().filter(|(offset, _)| *offset > 0).count();
        if moved == PARTITIONS as usize { Ok(()) } else { Err(moved) }
    })
    .await;
}

async fn committed_to_the_end(kafka: &Kafka, group: &str, topic: &str) {
    let ends = kafka.end_offsets(topic);
    eventually("everything is committed", SOON, async || {
        let committed = kafka.committed(group, topic);
        let committed: std::collections::BTreeMap<_, _> =
            committed.into_iter().map(|(partition, (offset, _))| (partition, offset)).collect();
        if committed == ends { Ok(()) } else { Err(committed) }
    })
    .await;
}
