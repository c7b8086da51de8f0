//! The broker, the two sides, and their processes.

use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use sluice_tests::kafka::client::numbered;
use sluice_tests::{Broker, Gateway, GatewayConfig, Kafka, NewRecord, Produced, SubscriptionConfig};
use sluice_tests::{process, unique};

use crate::crew::{JavaClasses, Workers};
use crate::work::Work;

/// What `kafka-server-start.sh` gives the JVM, in place of what the tests start a broker with.
const JVM: [&str; 7] = [
    "-Xms1g",
    "-Xmx1g",
    "-XX:TieredStopAtLevel=4",
    "-XX:-UseSerialGC",
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
];

/// Kafka's defaults again where the tests' broker has others that matter to either side, and the one limit that 300 members
/// need.
const PROPERTIES: &str = "share.coordinator.state.topic.num.partitions=50
offsets.topic.num.partitions=50
group.initial.rebalance.delay.ms=3000
group.min.session.timeout.ms=6000
group.share.max.size=1000
";

/// A share group starts at the end of the log by default, a subscription of Sluice at its start.
const SHARE_START: (&str, &str) = ("share.auto.offset.reset", "earliest");

/// Members hear of their assignment with a heartbeat: 5 s apart by default. Both sides wait that long before a measurement
/// that needs all workers there.
pub const ALL_JOINED: Duration = Duration::from_secs(6);

/// How Kafka's own producer batches by default. librdkafka would put up to 10,000 records into a batch, and a share group
/// gives whole batches to a worker.
const BATCHES: [(&str, &str); 2] = [("batch.size", "16384"), ("linger.ms", "5")];

/// The broker that all share.
#[derive(Debug)]
pub struct Lab {
    broker: Broker,
    java: JavaClasses,
}

/// One contestant's settings. What is not here is a default.
#[derive(Debug, Clone)]
pub struct Variant {
    /// The head of its column.
    pub name: String,
    side: Side,
    dead_letters: bool,
    /// Where it matters: the gateway is killed, not a worker.
    pub kills_gateway: bool,
}

#[derive(Debug, Clone)]
enum Side {
    Share { settings: Vec<String> },
    Sluice { lines: Vec<String>, arguments: Vec<String> },
}

impl Variant {
    /// A share group with all defaults.
    pub fn share(name: &str) -> Self {
        Self::new(name, Side::Share { settings: Vec::new() })
    }

    /// A subscription of Sluice with all defaults.
    pub fn sluice(name: &str) -> Self {
        Self::new(name, Side::Sluice { lines: Vec::new(), arguments: Vec::new() })
    }

    fn new(name: &str, side: Side) -> Self {
        Self { name: name.to_owned(), side, dead_letters: false, kills_gateway: false }
    }

    /// With an argument of the share worker (`consumer.X=Y`, `group.X=Y`: settings of Kafka's), or a line of the
    /// subscription's table for Sluice.
    pub fn with(mut self, setting: &str) -> Self {
        match &mut self.side {
            Side::Share { settings: all } | Side::Sluice { lines: all, .. } => all.push(setting.to_owned()),
        }
        self
    }

    /// A worker takes as few records at once as its side allows: one.
    pub fn one_at_a_time(self) -> Self {
        match self.side {
            Side::Share { .. } => {
                self.with("consumer.share.acquire.mode=record_limit").with("consumer.max.poll.records=1")
            }
            Side::Sluice { .. } => self.argument("window=1"),
        }
    }

    /// With an argument of the worker's own, on either side.
    pub fn argument(mut self, argument: &str) -> Self {
        match &mut self.side {
            Side::Share { settings: all } | Side::Sluice { arguments: all, .. } => all.push(argument.to_owned()),
        }
        self
    }

    /// With a topic for dead letters.
    pub fn dead_letters(self) -> Self {
        Self { dead_letters: true, ..self }
    }

    /// The gateway is the victim.
    pub fn kills_gateway(self) -> Self {
        Self { kills_gateway: true, ..self }
    }
}

impl Lab {
    /// Starts the broker and compiles the share worker.
    pub fn start() -> Self {
        let java = JavaClasses::compile();
        Self { broker: Broker::start_with(&JVM, PROPERTIES), java }
    }

    pub fn kafka(&self) -> &Kafka {
        self.broker.kafka()
    }

    /// Writes records as Kafka's own producer would; where each went, in their order.
    pub fn write(&self, topic: &str, records: impl IntoIterator<Item = NewRecord>) -> Vec<Produced> {
        self.kafka().produce_with(&BATCHES, topic, records)
    }

    /// Writes `count` records of 100 bytes, round robin over the partitions.
    pub fn fill(&self, topic: &str, partitions: i32, count: usize) {
        let of = |index| i32::try_from(index % partitions.unsigned_abs() as usize).expect("a few partitions");
        self.write(topic, (0..count).map(|index| NewRecord::to(of(index), numbered(index, 100))));
    }

    /// A variant with a topic, a group and, for Sluice, a gateway of its own.
    pub fn enter<'lab>(&'lab self, variant: &Variant, partitions: i32) -> Contestant<'lab> {
        let topic = self.kafka().topic("compare", partitions);
        let dead_letters = variant.dead_letters.then(|| {
            let topic = unique("dlq.compare");
            self.kafka().create_topic(&topic, 1, &[("errors.deadletterqueue.group.enable", "true")]);
            topic
        });
        let group = unique("compare");
        let gateway = match &variant.side {
            Side::Share { .. } => None,
            Side::Sluice { lines, .. } => {
                let mut subscription =
                    SubscriptionConfig::new(&group, &[&topic]).with("kafka_session_timeout = \"10s\"");
                for line in lines {
                    subscription = subscription.with(line);
                }
                let listen = format!("listen = \"127.0.0.1:{}\"", free_port());
                Some(GatewayConfig::new(self.kafka()).node(&listen).subscription(subscription).start())
            }
        };
        Contestant { lab: self, variant: variant.clone(), topic, group, dead_letters, gateway }
    }
}

/// A variant at work.
#[derive(Debug)]
pub struct Contestant<'lab> {
    lab: &'lab Lab,
    variant: Variant,
    pub topic: String,
    group: String,
    pub dead_letters: Option<String>,
    pub gateway: Option<Gateway>,
}

impl Contestant<'_> {
    pub fn kafka(&self) -> &Kafka {
        self.lab.kafka()
    }

    /// Writes so many records of 100 bytes to its topic.
    pub fn fill(&self, partitions: i32, count: usize) {
        self.lab.fill(&self.topic, partitions, count);
    }

    /// Starts workers, and waits until they have subscribed.
    pub fn workers(&self, work: Work) -> Workers {
        self.workers_of(&self.variant, work)
    }

    /// Starts one worker that holds one record for ever.
    pub fn holder(&self) -> Workers {
        self.workers_of(&self.variant.clone().one_at_a_time(), Work { hold: true, ..Work::of(1, 0) })
    }

    fn workers_of(&self, variant: &Variant, work: Work) -> Workers {
        let mut command = match &variant.side {
            Side::Share { settings } => {
                let mut java = self.lab.java.command();
                java.arg(format!("address={}", self.kafka().bootstrap())).args(settings);
                java.arg(format!("group.{}={}", SHARE_START.0, SHARE_START.1));
                if let Some(topic) = &self.dead_letters {
                    java.arg(format!("group.errors.deadletterqueue.topic.name={topic}"));
                }
                java
            }
            Side::Sluice { arguments, .. } => {
                let mut worker = Command::new(std::env::current_exe().expect("this program has a path"));
                worker.arg("worker");
                worker.arg(format!("address={}", self.gateway.as_ref().expect("Sluice has a gateway").address()));
                worker.args(arguments);
                worker
            }
        };
        command.arg(format!("group={}", self.group)).arg(format!("topic={}", self.topic)).args(work.arguments());
        Workers::start(command, &variant.name)
    }

    /// `kill -9` of the gateway, if there is one, and another one in its place.
    pub fn restart_gateway(&mut self) {
        if let Some(gateway) = &mut self.gateway {
            gateway.kill();
            gateway.restart();
        }
    }

    /// Records that wait for another try: Sluice says so, share groups have none.
    pub fn waiting(&self) -> usize {
        let Some(gateway) = &self.gateway else { return 0 };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("start a runtime");
        let waiting =
            runtime.block_on(gateway.partitions(&self.group)).iter().map(|one| one.waiting_retry).sum::<i64>();
        usize::try_from(waiting).expect("not negative")
    }

    /// CPU time so far of the broker, the gateway and these workers.
    pub fn cpu(&self, workers: &Workers) -> [Duration; 3] {
        let gateway = self.gateway.as_ref().map(|gateway| process::cpu(gateway.pid())).unwrap_or_default();
        [process::cpu(self.lab.broker.pid()), gateway, process::cpu(workers.pid())]
    }
}

/// Polls until it holds; false when it does not within the limit.
pub fn until(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !holds() {
        if start.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("a bound listener has an address").port()
}
