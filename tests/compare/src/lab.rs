//! The broker, the two sides, and their processes.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use sluice_tests::kafka::client::numbered;
use sluice_tests::{Broker, Gateway, GatewayConfig, Kafka, NewRecord, Produced, SubscriptionConfig};
use sluice_tests::{process, scratch, unique};

use crate::line::{Event, Line, Share, parse};
use crate::measure::Id;
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

/// Kafka's defaults again where the tests' broker has others, and the one limit that 300 members need.
const PROPERTIES: &str = "share.coordinator.state.topic.num.partitions=50
offsets.topic.num.partitions=50
group.share.max.size=1000
";

/// A share group starts at the end of the log by default, a subscription of Sluice at its start.
const SHARE_START: (&str, &str) = ("share.auto.offset.reset", "earliest");

/// 300 share consumers need their time to start, more so on a busy machine.
const START_DEADLINE: Duration = Duration::from_secs(180);

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
    Sluice { lines: Vec<String>, window: Option<u32> },
}

impl Variant {
    /// A share group with all defaults.
    pub fn share(name: &str) -> Self {
        Self::new(name, Side::Share { settings: Vec::new() })
    }

    /// A subscription of Sluice with all defaults.
    pub fn sluice(name: &str) -> Self {
        Self::new(name, Side::Sluice { lines: Vec::new(), window: None })
    }

    fn new(name: &str, side: Side) -> Self {
        Self { name: name.to_owned(), side, dead_letters: false, kills_gateway: false }
    }

    /// With `consumer.X=Y`, `group.X=Y` or `commit=poll` for a share group, or a line of the subscription's table for Sluice.
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
            Side::Sluice { lines, .. } => Self { side: Side::Sluice { lines, window: Some(1) }, ..self },
        }
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
            Side::Sluice { window, .. } => {
                let mut worker = Command::new(std::env::current_exe().expect("this program has a path"));
                worker.arg("worker");
                worker.arg(format!("address={}", self.gateway.as_ref().expect("Sluice has a gateway").address()));
                worker.args(window.map(|window| format!("window={window}")));
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
        [process::cpu(self.lab.broker.pid()), gateway, process::cpu(workers.child.id())]
    }
}

/// A process of workers, and what it said so far. Ends with its value.
#[derive(Debug)]
pub struct Workers {
    child: Child,
    stdin: ChildStdin,
    said: Arc<Mutex<Said>>,
}

/// What a process of workers said.
#[derive(Debug, Default)]
pub struct Said {
    ready: bool,
    pub events: Vec<Event>,
    pub acked: HashSet<Id>,
    /// Quiet workers: when, how many.
    pub totals: Vec<(i64, u64)>,
    pub shares: Vec<Share>,
    pub errors: usize,
}

impl Workers {
    fn start(mut command: Command, name: &str) -> Self {
        let folder = scratch::folder("workers");
        let log = folder.join("workers.log");
        let mut evidence = File::create(folder.join("workers.out")).expect("create the workers' evidence");
        writeln!(evidence, "# {name}: {:?}", command.get_args().collect::<Vec<_>>())
            .expect("write the workers' evidence");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(File::create(&log).expect("create the workers' log"));
        let mut child = process::spawn(command).expect("start the workers");
        let stdin = child.stdin.take().expect("stdin is a pipe");
        let stdout = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
        let said = Arc::new(Mutex::new(Said::default()));
        let (heard, name) = (Arc::clone(&said), name.to_owned());
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                heard.lock().expect("never poisoned").note(parse(&line), &name);
                writeln!(evidence, "{line}").expect("write the workers' evidence");
            }
        });
        let workers = Self { child, stdin, said };
        assert!(
            until(START_DEADLINE, || workers.said().ready),
            "the workers did not start:\n{}",
            process::tail(&log, 20)
        );
        workers
    }

    /// What it said until now.
    pub fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().expect("never poisoned")
    }

    /// Says `down`, `up` or `report` to it.
    pub fn tell(&mut self, word: &str) {
        writeln!(self.stdin, "{word}").expect("the workers live");
    }

    /// What each worker did since it was asked last.
    pub fn report(&mut self, workers: usize) -> Vec<Share> {
        self.said().shares.clear();
        self.tell("report");
        assert!(until(Duration::from_secs(10), || self.said().shares.len() == workers), "each worker reports");
        self.said().shares.clone()
    }

    /// Waits until quiet workers have worked on so many records; when, if in time.
    pub fn reach(&self, total: u64, limit: Duration) -> Option<i64> {
        let at = || self.said().totals.iter().find(|(_, now)| *now >= total).map(|(at, _)| *at);
        until(limit, || at().is_some());
        at()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        process::signal(&self.child, process::Signal::Kill);
        self.child.wait().expect("wait for the workers");
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Said {
    fn note(&mut self, line: Line, name: &str) {
        match line {
            Line::Ready => self.ready = true,
            Line::Record(event) => {
                if event.what == crate::line::What::Acked {
                    self.acked.insert(event.record());
                }
                self.events.push(event);
            }
            Line::Total { at_us, total } => self.totals.push((at_us, total)),
            Line::Share(share) => self.shares.push(share),
            Line::Error(text) => {
                self.errors += 1;
                eprintln!("    {name}: {text}");
            }
        }
    }
}

/// The share worker's classes and jars.
#[derive(Debug)]
struct JavaClasses {
    folder: PathBuf,
}

impl JavaClasses {
    fn compile() -> Self {
        let folder = scratch::workspace().join("target/compare/java");
        let status = Command::new("mvn")
            .args([
                "--batch-mode",
                "--quiet",
                "compile",
                "dependency:copy-dependencies",
                "-DincludeScope=runtime",
                "-f",
            ])
            .arg(scratch::workspace().join("tests/compare/java/pom.xml"))
            .arg(format!("-DoutputDirectory={}", folder.join("libs").display()))
            .status();
        assert!(
            status.is_ok_and(|status| status.success()),
            "compiling tests/compare/java needs Maven and a JDK of 17 or later: apt-get install -y openjdk-17-jdk-headless maven"
        );
        Self { folder }
    }

    fn command(&self) -> Command {
        let mut java = Command::new("java");
        java.arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn").arg("-cp");
        java.arg(format!("{0}/classes:{0}/libs/*", self.folder.display())).arg("ShareWorker");
        java
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
