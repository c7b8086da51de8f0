//! The gateway as a process of its own, with a configuration of its own.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use sluice_proto::v1::subscription_service_client::SubscriptionServiceClient;
use sluice_proto::v1::{Consumer, Partition, Stats, Subscription};
use sluice_proto::v1::{GetStatsRequest, GetSubscriptionRequest, ListConsumersRequest, ListPartitionsRequest};
use tonic::transport::Channel;

pub use crate::executable::executable;
use crate::kafka::client::Kafka;
use crate::place::Place;
use crate::process::{self, Signal};
use crate::{SOON, scratch};

/// What a gateway is started with. Values are lines of its TOML file.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    brokers: String,
    kafka: Vec<String>,
    node: Vec<String>,
    peers: Vec<String>,
    limits: Vec<String>,
    subscriptions: Vec<SubscriptionConfig>,
    names: Option<PathBuf>,
    place: Place,
}

/// One subscription of a `GatewayConfig`. Its group has its name.
#[derive(Debug, Clone)]
pub struct SubscriptionConfig {
    name: String,
    topics: Vec<String>,
    lines: Vec<String>,
}

impl SubscriptionConfig {
    /// A subscription of these topics. A group whose member was killed is free again after six seconds, the least that
    /// brokers allow by default.
    #[must_use]
    pub fn new(name: &str, topics: &[&str]) -> Self {
        let topics = topics.iter().map(|topic| (*topic).to_owned()).collect();
        Self { name: name.to_owned(), topics, lines: Vec::new() }.with("kafka_session_timeout = \"6s\"")
    }

    /// With another line; one that sets the same key is replaced. Under the consumer protocol the broker decides the
    /// session's time-out.
    #[must_use]
    pub fn with(mut self, line: &str) -> Self {
        if line == "protocol = \"consumer\"" {
            self.lines.retain(|known| key(known) != "kafka_session_timeout");
        }
        self.lines.retain(|known| key(known) != key(line));
        self.lines.push(line.to_owned());
        self
    }

    fn render(&self, text: &mut String) {
        let topics = self.topics.iter().map(|topic| format!("{topic:?}")).collect::<Vec<_>>().join(", ");
        let _ = write!(text, "\n[subscriptions.{:?}]\ntopics = [{topics}]\n{}\n", self.name, self.lines.join("\n"));
    }
}

fn key(line: &str) -> &str {
    line.split('=').next().unwrap_or_default().trim()
}

impl GatewayConfig {
    /// A gateway on this broker, on ports that it chooses itself.
    #[must_use]
    pub fn new(kafka: &Kafka) -> Self {
        let node = ["listen", "admin_listen"].map(|key| format!("{key} = \"127.0.0.1:0\"")).to_vec();
        Self {
            brokers: kafka.bootstrap().to_owned(),
            kafka: Vec::new(),
            node,
            peers: Vec::new(),
            limits: Vec::new(),
            subscriptions: Vec::new(),
            names: None,
            place: Place::default(),
        }
    }

    /// Somewhere else than beside the tests.
    #[must_use]
    pub fn place(mut self, place: Place) -> Self {
        self.place = place;
        self
    }

    /// With a line for `[node]`; one that sets the same key is replaced.
    #[must_use]
    pub fn node(mut self, line: &str) -> Self {
        self.node.retain(|known| key(known) != key(line));
        self.node.push(line.to_owned());
        self
    }

    /// With a line for `[kafka]`.
    #[must_use]
    pub fn kafka(mut self, line: &str) -> Self {
        self.kafka.push(line.to_owned());
        self
    }

    /// With a line for `[peers]`; one that sets the same key is replaced.
    #[must_use]
    pub fn peers(mut self, line: &str) -> Self {
        self.peers.retain(|known| key(known) != key(line));
        self.peers.push(line.to_owned());
        self
    }

    /// With a line for `[limits]`.
    #[must_use]
    pub fn limits(mut self, line: &str) -> Self {
        self.limits.push(line.to_owned());
        self
    }

    /// With this file in place of `/etc/hosts`, for this gateway alone. See `own_names`.
    #[must_use]
    pub fn names(mut self, hosts: &Path) -> Self {
        self.names = Some(hosts.to_owned());
        self
    }

    /// With a subscription.
    #[must_use]
    pub fn subscription(mut self, subscription: SubscriptionConfig) -> Self {
        self.subscriptions.push(subscription);
        self
    }

    fn render(&self) -> String {
        let mut text = format!("[node]\n{}\n\n[kafka]\nbrokers = {:?}\n", self.node.join("\n"), self.brokers);
        self.kafka.iter().for_each(|line| text.extend([line, "\n"]));
        if !self.peers.is_empty() {
            let _ = write!(text, "\n[peers]\n{}\n", self.peers.join("\n"));
        } else if std::env::var_os("SLUICE_TEST_AS_CLUSTER").is_some() {
            // A cluster of one: all that holds on a node that is alone must hold for the other way to the engine too.
            text.push_str("\n[peers]\nlisten = \"127.0.0.1:0\"\naddresses = [\"127.0.0.1:1\"]\n");
        }
        if !self.limits.is_empty() {
            let _ = write!(text, "\n[limits]\n{}\n", self.limits.join("\n"));
        }
        self.subscriptions.iter().for_each(|subscription| subscription.render(&mut text));
        text
    }

    /// Starts it, and waits until it listens.
    #[must_use]
    pub fn start(&self) -> Gateway {
        let folder = scratch::folder("gateway");
        fs::write(folder.join("sluice.toml"), self.render()).expect("write the gateway's configuration");
        let (names, place, grpc, admin) = (self.names.clone(), self.place.clone(), String::new(), String::new());
        let mut gateway = Gateway { folder, names, place, child: None, executable: executable(), grpc, admin };
        gateway.restart();
        gateway
    }
}

/// A running gateway. Ends with its value; when the test fails, the end of its log is printed.
#[derive(Debug)]
pub struct Gateway {
    folder: PathBuf,
    names: Option<PathBuf>,
    place: Place,
    child: Option<Child>,
    executable: PathBuf,
    grpc: String,
    admin: String,
}

impl Gateway {
    /// Where clients connect: `host:port`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.grpc
    }

    /// Where its admin pages are: `host:port`.
    #[must_use]
    pub fn admin_address(&self) -> &str {
        &self.admin
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.folder.join("gateway.log")
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the gateway runs").id()
    }

    /// Whether it was started and not killed.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Resident memory, in bytes.
    #[must_use]
    pub fn rss(&self) -> u64 {
        process::rss(self.pid())
    }

    /// Another version, from its next start on.
    pub fn set_executable(&mut self, executable: &Path) {
        self.executable = executable.to_path_buf();
    }

    /// Starts it again after `kill` or `terminate`, with its configuration; on other ports, unless that names them.
    pub fn restart(&mut self) {
        assert!(self.child.is_none(), "it runs");
        let log = File::options().create(true).append(true).open(self.log()).expect("open the gateway's log");
        let mut command = match &self.names {
            None => self.place.command(&self.executable),
            Some(hosts) => with_names(hosts, &self.executable),
        };
        command.arg("serve").arg("--config").arg(self.folder.join("sluice.toml"));
        // What is meant for the tests is no setting of the gateway's, and a person's settings are none of these tests'.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SLUICE_")) {
            command.env_remove(name);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut child = process::spawn(command).expect("start the gateway");
        let stdout = child.stdout.take().expect("stdout is a pipe");
        self.child = Some(child);
        let Some((grpc, admin)) = listening(stdout) else {
            panic!("the gateway did not say where it listens; the end of its log:\n{}", process::tail(&self.log(), 40));
        };
        (self.grpc, self.admin) = (grpc, admin);
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        process::signal(self.child.as_ref().expect("the gateway runs"), signal);
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            process::signal(&child, Signal::Kill);
            child.wait().expect("wait for the gateway");
        }
    }

    /// Waits until it has ended by itself, as after SIGTERM.
    pub async fn ended(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("the gateway runs");
        crate::eventually("the gateway has ended", SOON, async || match child.try_wait() {
            Ok(Some(status)) => Ok(status),
            other => Err(other),
        })
        .await
    }

    // === what it says ===

    /// An admin page: status and body.
    #[must_use]
    pub fn page(&self, path: &str) -> (u16, String) {
        self.try_page(path).unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    fn try_page(&self, path: &str) -> std::io::Result<(u16, String)> {
        let mut stream = TcpStream::connect(&self.admin)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: sluice\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let status = answer.split_whitespace().nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
        Ok((status, body))
    }

    /// The sum of a metric over its series whose labels contain `labels`; `None` when there is none.
    #[must_use]
    pub fn metric(&self, name: &str, labels: &str) -> Option<f64> {
        let (_, body) = self.page("/metrics");
        let values = body.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let value = rest.rsplit(' ').next()?;
            (rest.starts_with(['{', ' ']) && rest.contains(labels)).then(|| value.parse::<f64>().ok()).flatten()
        });
        values.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
    }

    /// Waits until `/readyz` answers 200.
    pub async fn ready(&self) {
        crate::eventually("the gateway is ready", SOON, async || match self.try_page("/readyz") {
            Ok((200, _)) => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    }

    /// A channel to it.
    pub async fn channel(&self) -> Channel {
        let endpoint = Channel::from_shared(format!("http://{}", self.grpc)).expect("an address is a URI");
        endpoint.connect().await.expect("connect to the gateway")
    }

    /// The service for operators.
    pub async fn operator(&self) -> SubscriptionServiceClient<Channel> {
        SubscriptionServiceClient::new(self.channel().await)
    }

    /// The partitions of a subscription that this gateway owns.
    pub async fn partitions(&self, subscription: &str) -> Vec<Partition> {
        let request = ListPartitionsRequest { subscription: subscription.to_owned() };
        self.operator().await.list_partitions(request).await.expect("list partitions").into_inner().partitions
    }

    /// The sessions of a subscription.
    pub async fn consumers(&self, subscription: &str) -> Vec<Consumer> {
        let request = ListConsumersRequest { subscription: subscription.to_owned() };
        self.operator().await.list_consumers(request).await.expect("list consumers").into_inner().consumers
    }

    /// A subscription, as an operator sees it.
    pub async fn subscription(&self, name: &str) -> Subscription {
        let request = GetSubscriptionRequest { name: name.to_owned() };
        let answer = self.operator().await.get_subscription(request).await.expect("get the subscription");
        answer.into_inner().subscription.unwrap_or_default()
    }

    /// A subscription's counters.
    pub async fn stats(&self, subscription: &str) -> Stats {
        let request = GetStatsRequest { subscription: subscription.to_owned() };
        self.operator().await.get_stats(request).await.expect("get stats").into_inner().total.unwrap_or_default()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- the end of {}:\n{}\n---", self.log().display(), process::tail(&self.log(), 60));
        }
    }
}

/// The two addresses of the line on stdout; `None` when the process ends before it.
fn listening(stdout: ChildStdout) -> Option<(String, String)> {
    let mut lines = BufReader::new(stdout).lines();
    let addresses = lines.by_ref().map_while(Result::ok).find_map(|line| {
        let event: serde_json::Value = serde_json::from_str(&line).ok()?;
        (event["event"] == "listening")
            .then(|| (event["grpc"].as_str().map(str::to_owned), event["admin"].as_str().map(str::to_owned)))
    });
    // A full pipe would stop the gateway.
    std::thread::spawn(move || lines.for_each(drop));
    let (grpc, admin) = addresses?;
    Some((grpc?, admin?))
}

/// Runs a program that finds this file in place of `/etc/hosts`: in a mount namespace of its own.
fn with_names(hosts: &Path, program: &Path) -> Command {
    let mut command = Command::new("unshare");
    if std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) != 0) {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--mount", "--propagation", "private", "sh", "-c"]);
    command.arg("mount --bind \"$0\" /etc/hosts && exec \"$@\"").arg(hosts).arg(program);
    command
}

/// Whether a gateway can be given names of its own, with as many addresses as a name has.
///
/// # Errors
/// What the machine says against it.
pub fn own_names() -> Result<(), String> {
    let hosts = scratch::folder("names").join("hosts");
    fs::write(&hosts, "127.0.0.1 sluice-test\n127.0.0.2 sluice-test\n").map_err(|error| error.to_string())?;
    let asked = with_names(&hosts, Path::new("getent")).args(["ahostsv4", "sluice-test"]).output();
    let asked = asked.map_err(|error| format!("unshare: {error}"))?;
    let said = String::from_utf8_lossy(&asked.stdout);
    if said.contains("127.0.0.1") && said.contains("127.0.0.2") {
        return Ok(());
    }
    Err(format!("{said}{}", String::from_utf8_lossy(&asked.stderr)))
}
