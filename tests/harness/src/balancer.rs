//! The balancers that operators use, started from the very files in `deploy/`: only addresses are filled in, and what a test
//! sets on purpose.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::gateway::Gateway;
use crate::place::Place;
use crate::process::{self, Signal};
use crate::{SOON, python, scratch};

/// Which one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// HAProxy.
    Haproxy,
    /// nginx.
    Nginx,
    /// Envoy.
    Envoy,
}

/// The nodes that the files name.
pub const NODES: [&str; 3] = ["sluice-0", "sluice-1", "sluice-2"];

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Haproxy, Self::Nginx, Self::Envoy];

    /// Its file in `deploy/`.
    #[must_use]
    pub fn file(self) -> &'static str {
        match self {
            Self::Haproxy => "haproxy.cfg",
            Self::Nginx => "nginx.conf",
            Self::Envoy => "envoy.yaml",
        }
    }

    /// Settings of a silence that cuts a stream.
    fn idle_settings(self) -> &'static [&'static str] {
        match self {
            Self::Haproxy => &["timeout client ", "timeout server "],
            Self::Nginx => &["client_body_timeout ", "grpc_read_timeout ", "grpc_send_timeout ", " send_timeout "],
            Self::Envoy => &["stream_idle_timeout: "],
        }
    }

    /// What stands in the file where clients connect, and what is to stand there.
    fn listen(self, host: &str, port: u16) -> (&'static str, String) {
        match self {
            Self::Haproxy => ("bind *:7070 proto", format!("bind {host}:{port} proto")),
            Self::Nginx => ("listen 7070 http2;", format!("listen {host}:{port} http2;")),
            Self::Envoy => {
                ("{ address: 0.0.0.0, port_value: 7070 }", format!("{{ address: {host}, port_value: {port} }}"))
            }
        }
    }

    /// What stands in a node's line, and what is to stand there.
    fn node(self, name: &str, gateway: &Gateway) -> (String, String) {
        let (grpc, admin) = (gateway.address(), port(gateway.admin_address()));
        match self {
            Self::Haproxy => (
                format!("{name}:7070 check check-proto h1 port 7071"),
                format!("{grpc} check check-proto h1 port {admin}"),
            ),
            Self::Nginx => (format!("{name}:7070"), grpc.to_owned()),
            Self::Envoy => (
                format!("{{ address: {name}, port_value: 7070 }}"),
                format!("{{ address: 127.0.0.1, port_value: {} }}", port(grpc)),
            ),
        }
    }

    fn command(self, place: &Place, folder: &Path) -> Command {
        let file = folder.join(self.file());
        match self {
            Self::Haproxy => {
                let mut command = place.command(installed("haproxy"));
                command.arg("-db").arg("-f").arg(file);
                command
            }
            Self::Nginx => {
                let mut command = place.command(installed("nginx"));
                let global = format!("daemon off; master_process off; pid {};", folder.join("nginx.pid").display());
                command.arg("-e").arg("stderr").arg("-p").arg(folder).arg("-c").arg(file).arg("-g").arg(global);
                command
            }
            Self::Envoy => {
                let requirements = scratch::workspace().join("tests/harness/balancers/envoy-requirements.txt");
                let mut command = place.command(python::environment("envoy", &requirements).join("envoy"));
                command.args(["--disable-hot-restart", "--concurrency", "1", "-l", "warning", "-c"]).arg(file);
                command
            }
        }
    }
}

/// A balancer's file, and what a test changes in it.
#[derive(Debug, Clone)]
pub struct Settings {
    kind: Kind,
    text: String,
    place: Place,
    /// Where clients connect, and by which port; 0: one that is free.
    host: String,
    port: u16,
}

impl Settings {
    /// As in `deploy/`.
    #[must_use]
    pub fn of(kind: Kind) -> Self {
        let path = scratch::workspace().join("deploy").join(kind.file());
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
        Self { kind, text, place: Place::default(), host: "127.0.0.1".to_owned(), port: 0 }
    }

    /// Somewhere else, at this address, where nobody else has the port.
    #[must_use]
    pub fn place(self, place: Place, host: &str, port: u16) -> Self {
        Self { place, host: host.to_owned(), port, ..self }
    }

    /// The times of silence after which it cuts a stream.
    #[must_use]
    pub fn idle_timeouts(&self) -> Vec<(&'static str, Duration)> {
        let read = |setting: &'static str| {
            let (_, value, _) = self.find(setting);
            (setting.trim_end_matches([':', ' ']).trim_start(), seconds(value))
        };
        self.kind.idle_settings().iter().map(|setting| read(setting)).collect()
    }

    /// With this for all of them.
    #[must_use]
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        for setting in self.kind.idle_settings() {
            let (before, value, after) = self.find(setting);
            let _ = seconds(value);
            self.text = format!("{before}{}s{after}", timeout.as_secs());
        }
        self
    }

    /// What stands before the only value of a setting, the value, and what stands after it.
    fn find(&self, setting: &str) -> (&str, &str, &str) {
        let set = |line: &&str| !line.trim_start().starts_with('#') && line.contains(setting);
        let mut lines = self.text.lines().filter(set);
        let (Some(line), None) = (lines.next(), lines.next()) else {
            panic!("`{setting}` is not set once in {}", self.kind.file());
        };
        let at = line.as_ptr() as usize - self.text.as_ptr() as usize;
        let start = at + line.find(setting).expect("it contains it") + setting.len();
        let end = start + self.text[start..].find([';', '\n', ' ']).expect("the file ends with a line");
        (&self.text[..start], &self.text[start..end], &self.text[end..])
    }

    fn replace(&mut self, old: &str, new: &str) {
        assert_eq!(self.text.matches(old).count(), 1, "`{old}` stands not once in {}", self.kind.file());
        self.text = self.text.replace(old, new);
    }

    /// Starts it in front of these nodes, and waits until it leads somewhere.
    pub async fn start(mut self, nodes: &[Gateway]) -> Balancer {
        let kind = self.kind;
        let port = if self.port == 0 { scratch::free_ports(1)[0] } else { self.port };
        let (old, new) = kind.listen(&self.host, port);
        self.replace(old, &new);
        for (at, name) in NODES.iter().enumerate() {
            if let Some(node) = nodes.get(at) {
                let (old, new) = kind.node(name, node);
                self.replace(&old, &new);
            } else {
                let others = self.text.lines().filter(|line| line.starts_with('#') || !line.contains(name));
                self.text = others.fold(String::new(), |text, line| text + line + "\n");
            }
        }
        if kind == Kind::Envoy {
            self.replace("port_value: 9901", "port_value: 0");
        }
        let folder = scratch::folder(kind.file());
        fs::write(folder.join(kind.file()), &self.text).expect("write the balancer's configuration");
        let log = folder.join("balancer.log");
        let output = File::create(&log).expect("create the balancer's log");
        let mut command = kind.command(&self.place, &folder);
        command.stdin(Stdio::null()).stdout(output.try_clone().expect("a second handle")).stderr(output);
        let child = process::spawn(command).unwrap_or_else(|error| panic!("start {kind:?}: {error}"));
        let mut balancer = Balancer { child, address: format!("{}:{port}", self.host), log };
        balancer.leads().await;
        balancer
    }
}

/// A running balancer. Ends with its value; when the test fails, the end of its log is printed.
#[derive(Debug)]
pub struct Balancer {
    child: Child,
    address: String,
    log: PathBuf,
}

impl Balancer {
    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Resident memory, in bytes.
    #[must_use]
    pub fn rss(&self) -> u64 {
        process::rss(self.child.id())
    }

    /// For connections to it.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        Channel::from_shared(format!("http://{}", self.address)).expect("an address is a URI")
    }

    /// A connection to it.
    pub async fn channel(&self) -> Channel {
        self.endpoint().connect().await.expect("connect to the balancer")
    }

    /// Waits until a call reaches a node that is ready.
    async fn leads(&mut self) {
        let endpoint = self.endpoint();
        crate::eventually("the balancer leads to a node", SOON, async || {
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("the balancer ended with {status}:\n{}", process::tail(&self.log, 40));
            }
            let channel = endpoint.connect().await.map_err(|error| format!("{error:?}"))?;
            let service = "sluice.v1.ConsumerService".to_owned();
            let answer = HealthClient::new(channel).check(HealthCheckRequest { service }).await;
            match answer.map(|answer| answer.into_inner().status) {
                Ok(status) if status == ServingStatus::Serving as i32 => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        // In good order, so that its log ends with whatever it has to say.
        process::signal(&self.child, Signal::Term);
        let ended = (0..100).any(|_| {
            let ended = matches!(self.child.try_wait(), Ok(Some(_)));
            if !ended {
                std::thread::sleep(Duration::from_millis(20));
            }
            ended
        });
        if !ended {
            process::signal(&self.child, Signal::Kill);
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- the end of {}:\n{}\n---", self.log.display(), process::tail(&self.log, 60));
        }
    }
}

/// Where Debian puts it too, which is not on every user's path.
fn installed(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    let found = folders.map(|folder| folder.join(program)).find(|file| file.is_file());
    found.unwrap_or_else(|| panic!("{program} is missing; install it with:\n    apt-get install -y {program}"))
}

fn port(address: &str) -> &str {
    address.rsplit(':').next().expect("an address has a port")
}

fn seconds(value: &str) -> Duration {
    let number = value.strip_suffix('s').and_then(|number| number.parse().ok());
    Duration::from_secs(number.unwrap_or_else(|| panic!("`{value}` is no number of seconds")))
}
