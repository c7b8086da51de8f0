//! Brokers as processes of their own.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use crate::kafka::client::Kafka;
use crate::kafka::install::{Installed, installed};
use crate::place::Place;
use crate::process::{self, Signal};
use crate::scratch;
use crate::way::Way;

/// A broker must answer this long after its start.
const START_DEADLINE: Duration = Duration::from_secs(90);
const HEAP: &str = "-Xmx320m";

/// The broker that all tests of a binary share; `SLUICE_TEST_KAFKA=host:port` names another one.
#[must_use]
pub fn broker() -> &'static Kafka {
    static SHARED: OnceLock<(Kafka, Option<Broker>)> = OnceLock::new();
    &SHARED
        .get_or_init(|| match std::env::var("SLUICE_TEST_KAFKA") {
            Ok(bootstrap) => (Kafka::new(bootstrap), None),
            Err(_) => {
                let own = Broker::start();
                (own.kafka().clone(), Some(own))
            }
        })
        .0
}

/// A broker of one test: it may be paused, killed and started again on its port with its log.
#[derive(Debug)]
pub struct Broker {
    kafka: Kafka,
    node: Mutex<Node>,
}

impl Broker {
    /// Starts one, and waits until it answers.
    #[must_use]
    pub fn start() -> Self {
        let this = Self::prepare();
        this.restart();
        this
    }

    /// One that has its port and its folder, but does not run: `restart` starts it.
    #[must_use]
    pub fn prepare() -> Self {
        Self::of(Node::format(installed(), &scratch::folder("broker")))
    }

    /// Starts one somewhere else, where it has this address and nobody else has its ports, and waits until it answers.
    #[must_use]
    pub fn start_in(place: Place, host: &str) -> Self {
        let node = Node::format_in(place, host, [9092, 9093], installed(), &scratch::folder("broker"));
        let this = Self::of(node);
        this.restart();
        this
    }

    fn of(node: Node) -> Self {
        Self { kafka: Kafka::new(node.address()), node: Mutex::new(node) }
    }

    /// Starts one for measurements: with flags of its own for the JVM and lines of its own for `server.properties`, which
    /// win over the harness's.
    #[must_use]
    pub fn start_with(jvm_flags: &[&str], properties: &str) -> Self {
        let this = Self::prepare();
        {
            let mut node = this.node();
            node.jvm_flags.extend(jvm_flags.iter().map(|flag| (*flag).to_owned()));
            let file = File::options().append(true).open(node.folder.join("server.properties"));
            file.and_then(|mut file| file.write_all(properties.as_bytes())).expect("write server.properties");
        }
        this.restart();
        this
    }

    /// Starts one that can be reached by a way too: whoever connects there is told no other address.
    pub async fn start_with_way() -> (Self, Way) {
        let this = Self::prepare();
        let far = free_port();
        let way = Way::to(&format!("127.0.0.1:{far}")).await;
        this.rewrite(|text| {
            text.replace("\nlisteners=", &format!("\nlisteners=FAR://127.0.0.1:{far},"))
                .replace("\nadvertised.listeners=", &format!("\nadvertised.listeners=FAR://{},", way.address()))
                .replace("protocol.map=", "protocol.map=FAR:PLAINTEXT,")
        });
        this.restart();
        (this, way)
    }

    /// Changes its properties for its next start.
    pub(crate) fn rewrite(&self, edit: impl FnOnce(String) -> String) {
        let file = self.node().folder.join("server.properties");
        let text = fs::read_to_string(&file).expect("read server.properties");
        fs::write(&file, edit(text)).expect("write server.properties");
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.node().child.as_ref().expect("the broker runs").id()
    }

    /// What may be asked of it.
    #[must_use]
    pub fn kafka(&self) -> &Kafka {
        &self.kafka
    }

    /// Freezes it: connections stay open, nothing answers.
    pub fn pause(&self) {
        self.node().signal(Signal::Stop);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.node().signal(Signal::Cont);
    }

    /// `kill -9`.
    pub fn kill(&self) {
        self.node().kill();
    }

    /// Starts it again after `kill`, with its port and its log, and waits until it answers.
    pub fn restart(&self) {
        self.node().start();
    }

    /// Forgets all records of a partition while the broker is killed; the topic keeps its id. What an unclean leader
    /// election does to a log.
    pub fn truncate(&self, topic: &str, partition: i32) {
        let node = self.node();
        assert!(node.child.is_none(), "kill the broker before its log is cut");
        let log = node.folder.join("data").join(format!("{topic}-{partition}"));
        for file in fs::read_dir(&log).expect("the partition has a folder").flatten() {
            if file.file_name() != "partition.metadata" {
                fs::remove_file(file.path()).expect("remove a file of the log");
            }
        }
    }

    fn node(&self) -> std::sync::MutexGuard<'_, Node> {
        self.node.lock().expect("no test panics inside the harness's lock")
    }
}

/// One broker's process, folder and ports.
#[derive(Debug)]
pub(crate) struct Node {
    installed: Installed,
    folder: PathBuf,
    place: Place,
    host: String,
    port: u16,
    child: Option<Child>,
    pub(crate) jvm_flags: Vec<String>,
}

impl Node {
    /// Chooses ports, writes the properties and formats the log folder.
    pub(crate) fn format(installed: Installed, folder: &Path) -> Self {
        Self::format_in(Place::default(), "127.0.0.1", [free_port(), free_port()], installed, folder)
    }

    /// The same with these ports, its own and its controller's, at this address.
    fn format_in(place: Place, host: &str, ports: [u16; 2], installed: Installed, folder: &Path) -> Self {
        let properties = properties(folder, host, ports);
        fs::write(folder.join("server.properties"), properties).expect("write server.properties");
        let (folder, host, port) = (folder.to_path_buf(), host.to_owned(), ports[0]);
        let node = Self { installed, folder, place, host, port, child: None, jvm_flags: Vec::new() };
        let output = node
            .java()
            .args(["kafka.tools.StorageTool", "format", "-t", "c2x1aWNlLXRlc3Rpbg", "-c"])
            .arg(node.folder.join("server.properties"))
            .output()
            .expect("java was found");
        assert!(
            output.status.success(),
            "formatting a broker's folder failed:\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        node
    }

    fn java(&self) -> Command {
        let mut java = self.place.command("java");
        java.args([HEAP, "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Dorg.slf4j.simpleLogger.showDateTime=true"]);
        if let Some(archive) = &self.installed.archive {
            java.arg(format!("-XX:SharedArchiveFile={}", archive.display())).arg("-Xshare:auto");
        }
        java.args(&self.jvm_flags).arg("-cp").arg(&self.installed.class_path);
        java
    }

    fn log(&self) -> PathBuf {
        self.folder.join("broker.log")
    }

    fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// Starts it and waits until it answers. One that runs already stays as it is.
    pub(crate) fn start(&mut self) {
        if self.child.is_some() {
            return;
        }
        let log = File::options().create(true).append(true).open(self.log()).expect("open the broker's log");
        let mut java = self.java();
        java.arg("kafka.Kafka").arg(self.folder.join("server.properties"));
        java.stdin(Stdio::null()).stdout(log.try_clone().expect("clone a file handle")).stderr(log);
        self.child = Some(process::spawn(java).expect("java was found"));
        self.wait_until_it_answers();
    }

    fn wait_until_it_answers(&mut self) {
        let start = Instant::now();
        let address = self.address();
        loop {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            let late = start.elapsed() > START_DEADLINE;
            assert!(
                ended.is_none() && !late,
                "the broker did not start ({ended:?}); the end of its log:\n{}",
                process::tail(&self.log(), 40)
            );
            if TcpStream::connect(&address).is_ok() && Kafka::new(address.clone()).answers() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn signal(&self, signal: Signal) {
        process::signal(self.child.as_ref().expect("the broker runs"), signal);
    }

    /// Asks it to end, and waits.
    pub(crate) fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            process::signal(&child, Signal::Term);
            child.wait().expect("wait for the broker");
        }
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            process::signal(&child, Signal::Kill);
            child.wait().expect("wait for the broker");
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("a bound listener has an address").port()
}

/// One node that is broker and controller; times lowered so that nothing waits for a default meant for production.
fn properties(folder: &Path, host: &str, [port, controller]: [u16; 2]) -> String {
    format!(
        "process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://{host}:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://{host}:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
log.dirs={data}
num.partitions=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
group.consumer.min.session.timeout.ms=2000
group.consumer.session.timeout.ms=3000
group.consumer.min.heartbeat.interval.ms=200
group.consumer.heartbeat.interval.ms=300
auto.create.topics.enable=false
log.cleaner.backoff.ms=200
log.cleaner.dedupe.buffer.size=2097152
log.retention.check.interval.ms=1000
log.segment.delete.delay.ms=1000
",
        data = folder.join("data").display()
    )
}
