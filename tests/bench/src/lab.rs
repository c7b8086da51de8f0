//! The broker, its topics, and the processes that are measured.

use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde::de::DeserializeOwned;
use sluice_tests::process::{self, Signal};
use sluice_tests::{Broker, Gateway, GatewayConfig, Kafka, SubscriptionConfig, unique};

use crate::fill::{Shape, fill};
use crate::floor::raw;
use crate::load;
use crate::machine::{Pinning, Role};

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
/// Kafka's default again where the tests' broker has another.
const PROPERTIES: &str = "offsets.topic.num.partitions=50\nlog.cleaner.backoff.ms=15000\n";
/// The subscription of every gateway here.
pub const SUBSCRIPTION: &str = "bench";
/// Records of a frame of the floors.
const FRAME_RECORDS: i32 = 100;

/// What every scenario may be told.
#[derive(Debug, Clone, clap::Args)]
pub struct Settings {
    /// Pairs, A B A B: medians are of so many.
    #[arg(long, global = true, default_value_t = 3)]
    pub runs: usize,
    /// Multiplies the records and seconds of a scenario.
    #[arg(long, global = true, default_value_t = 1.0)]
    pub scale: f64,
    /// A property of librdkafka's for all sides alike: name=value.
    #[arg(short = 'X', long = "property", global = true)]
    pub properties: Vec<String>,
    /// What librdkafka fetches ahead, for all sides alike, in KiB.
    #[arg(long, global = true, default_value_t = 2_048)]
    pub prefetch_kib: u32,
    /// A line for the gateway's subscription, in TOML.
    #[arg(long = "subscription-line", global = true)]
    pub lines: Vec<String>,
    /// Say each run as it ends.
    #[arg(long, short, global = true)]
    pub verbose: bool,
}

/// The machine and the broker of one command.
pub struct Lab {
    pub settings: Settings,
    pub pinning: Pinning,
    broker: Broker,
}

/// A topic that has been filled.
#[derive(Debug, Clone)]
pub struct Topic {
    pub name: String,
    pub shape: Shape,
    pub records: u64,
}

/// A process of this program, whose lines are read.
pub struct Helper {
    child: Child,
    stdin: ChildStdin,
    lines: Option<Lines<BufReader<ChildStdout>>>,
    name: String,
}

impl Lab {
    pub fn start(settings: Settings) -> Self {
        let pinning = Pinning::find();
        eprintln!("{}", pinning.describe());
        // Built before anything is pinned or timed.
        let _built = sluice_tests::gateway::executable();
        let broker = pinning.start(Role::Load, || Broker::start_with(&JVM, PROPERTIES));
        Self { settings, pinning, broker }
    }

    pub fn kafka(&self) -> &Kafka {
        self.broker.kafka()
    }

    /// So many, scaled.
    pub fn count(&self, records: u64) -> u64 {
        ((records as f64 * self.settings.scale) as u64).max(1_000)
    }

    pub fn seconds(&self, seconds: f64) -> f64 {
        (seconds * self.settings.scale).max(1.0)
    }

    /// A topic with so many records, read once: the first read finds cold pages and costs up to three times as much.
    pub fn topic(&self, shape: &Shape, records: u64) -> Result<Topic> {
        let name = unique("bench");
        self.kafka().create_topic(&name, shape.partitions, &[("segment.bytes", "1073741824")]);
        let topic = Topic { name, shape: shape.clone(), records };
        if records > 0 {
            self.pinning.start(Role::Measured, || fill(self.kafka().bootstrap(), &topic.name, shape, records))?;
            self.raw(&topic)?;
        }
        Ok(topic)
    }

    // === contestants ===

    /// Reads a topic by `raw`.
    pub fn raw(&self, topic: &Topic) -> Result<raw::Outcome> {
        let mut raw = self.raw_helper(&topic.name, &unique("raw"), &[&format!("--records={}", topic.records)])?;
        raw.tell("go")?;
        raw.answer()
    }

    /// A `raw` that waits for a word.
    pub fn raw_helper(&self, topic: &str, group: &str, arguments: &[&str]) -> Result<Helper> {
        let mut command = this("raw");
        self.consumer_arguments(&mut command, topic, group).args(arguments);
        let mut raw = self.start_helper(Role::Measured, command, "raw")?;
        raw.event("ready")?;
        Ok(raw)
    }

    /// Starts `naive` on a topic. Frames are no larger than the window.
    pub fn naive(&self, topic: &Topic, window: i32) -> Result<Server> {
        let mut command = this("naive");
        self.consumer_arguments(&mut command, &topic.name, &unique("naive"));
        command.arg(format!("--frame-records={}", window.clamp(1, FRAME_RECORDS)));
        self.serve(command, "naive")
    }

    /// Starts the bare tonic server.
    pub fn tonic(&self, value_bytes: usize, window: i32) -> Result<Server> {
        let mut command = this("tonic");
        command.arg(format!("--size={value_bytes}"));
        command.arg(format!("--frame-records={}", window.clamp(1, FRAME_RECORDS)));
        self.serve(command, "tonic")
    }

    fn serve(&self, command: Command, name: &str) -> Result<Server> {
        let mut helper = self.start_helper(Role::Measured, command, name)?;
        let ready = helper.event("ready")?;
        let address = ready["address"].as_str().context("a server says where it listens")?.to_owned();
        Ok(Server::Floor { helper, address })
    }

    /// Starts the gateway with one subscription of a topic, in a group of its own. The lines win over the settings.
    pub fn sluice(&self, topic: &str, lines: &[&str]) -> Server {
        Server::Gateway(self.gateway(vec![self.subscription(SUBSCRIPTION, topic, &unique("sluice"), lines)]))
    }

    /// A gateway with these subscriptions.
    pub fn gateway(&self, subscriptions: Vec<SubscriptionConfig>) -> Gateway {
        let mut config = GatewayConfig::new(self.kafka()).limits("max_streams = 20000");
        for subscription in subscriptions {
            config = config.subscription(subscription);
        }
        self.pinning.start(Role::Measured, || config.start())
    }

    /// A subscription with the defaults, the settings of this command, and these lines.
    pub fn subscription(&self, name: &str, topic: &str, group: &str, lines: &[&str]) -> SubscriptionConfig {
        let properties = self.settings.properties.iter().filter_map(|property| property.split_once('='));
        let properties: Vec<_> = properties.map(|(name, value)| format!("{name:?} = {value:?}")).collect();
        let mut subscription = SubscriptionConfig::new(name, &[topic])
            .with("kafka_session_timeout = \"10s\"")
            .with(&format!("group = {group:?}"))
            .with(&format!("prefetch = \"{}KiB\"", self.settings.prefetch_kib))
            .with(&format!("kafka = {{ {} }}", properties.join(", ")));
        for line in self.settings.lines.iter().map(String::as_str).chain(lines.iter().copied()) {
            subscription = subscription.with(line);
        }
        subscription
    }

    // === load ===

    /// Drives a server and waits for the end.
    pub fn load(&self, server: &Server, arguments: &[String]) -> Result<load::Outcome> {
        let mut load = self.load_helper(server.address(), server.pid(), arguments)?;
        load.event("subscribed")?;
        load.answer()
    }

    pub fn load_helper(&self, address: &str, server: u32, arguments: &[String]) -> Result<Helper> {
        self.load_of_many(&[address], &[server], arguments)
    }

    /// A load client whose connections go to these addresses in turn; the CPU time of all these processes is taken.
    pub fn load_of_many(&self, addresses: &[&str], servers: &[u32], arguments: &[String]) -> Result<Helper> {
        let servers: Vec<String> = servers.iter().map(u32::to_string).collect();
        let mut command = this("load");
        command.arg(format!("--address={}", addresses.join(",")));
        command.arg(format!("--server-pid={}", servers.join(","))).args(arguments);
        // One that is traced outlives its server, and would say so at length.
        if arguments.iter().any(|argument| argument == "--trace") {
            command.stderr(Stdio::null());
        }
        self.start_helper(Role::Load, command, "load")
    }

    /// A producer at a steady rate, beside what is measured: with a request a record, 5,000 a second and their fetches are
    /// as much as one processor does for the broker and the clients, and waits there would be all that is seen.
    pub fn produce(&self, topic: &Topic, rate: f64, seconds: f64) -> Result<Helper> {
        let mut command = this("produce");
        command.args([format!("--bootstrap={}", self.kafka().bootstrap()), format!("--topic={}", topic.name)]);
        command
            .args([format!("--partitions={}", topic.shape.partitions), format!("--size={}", topic.shape.value_bytes)]);
        command.args([format!("--rate={rate}"), format!("--seconds={seconds}")]);
        self.start_helper(Role::Measured, command, "produce")
    }

    fn consumer_arguments<'a>(&self, command: &'a mut Command, topic: &str, group: &str) -> &'a mut Command {
        command.arg(format!("--bootstrap={}", self.kafka().bootstrap()));
        command.args([format!("--topic={topic}"), format!("--group={group}")]);
        command.arg(format!("-Xqueued.max.messages.kbytes={}", self.settings.prefetch_kib));
        command.args(self.settings.properties.iter().map(|property| format!("-X{property}")))
    }

    fn start_helper(&self, role: Role, mut command: Command, name: &str) -> Result<Helper> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = self.pinning.start(role, || process::spawn(command))?;
        let stdin = child.stdin.take().context("stdin is a pipe")?;
        let lines = BufReader::new(child.stdout.take().context("stdout is a pipe")?).lines();
        Ok(Helper { child, stdin, lines: Some(lines), name: name.to_owned() })
    }
}

/// This program, as one of its hidden commands.
fn this(command: &str) -> Command {
    let mut this = Command::new(std::env::current_exe().expect("this program has a path"));
    this.arg(command);
    this
}

/// What streams connect to.
pub enum Server {
    Floor { helper: Helper, address: String },
    Gateway(Gateway),
}

impl Server {
    pub fn address(&self) -> &str {
        match self {
            Self::Floor { address, .. } => address,
            Self::Gateway(gateway) => gateway.address(),
        }
    }

    pub fn pid(&self) -> u32 {
        match self {
            Self::Floor { helper, .. } => helper.pid(),
            Self::Gateway(gateway) => gateway.pid(),
        }
    }
}

impl Helper {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Says a word to it.
    pub fn tell(&mut self, word: &str) -> Result<()> {
        writeln!(self.stdin, "{word}").with_context(|| format!("{} has ended", self.name))
    }

    pub fn signal(&self, signal: Signal) {
        process::signal(&self.child, signal);
    }

    /// The next thing it says.
    pub fn next(&mut self) -> Result<serde_json::Value> {
        let line = self.lines.as_mut().and_then(Iterator::next);
        let Some(line) = line else { bail!("{} ended without a word", self.name) };
        Ok(serde_json::from_str(&line?)?)
    }

    /// Waits until it says that something has happened.
    pub fn event(&mut self, event: &str) -> Result<serde_json::Value> {
        loop {
            let said = self.next()?;
            if said["event"] == event {
                return Ok(said);
            }
        }
    }

    /// From now on another reads what it says.
    pub fn take_lines(&mut self) -> Result<Lines<BufReader<ChildStdout>>> {
        self.lines.take().context("its lines are read already")
    }

    /// What it says at its end.
    pub fn answer<T: DeserializeOwned>(&mut self) -> Result<T> {
        let said = self.next()?;
        serde_json::from_value(said).with_context(|| format!("what {} says", self.name))
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        process::signal(&self.child, Signal::Kill);
        let _ = self.child.wait();
    }
}
