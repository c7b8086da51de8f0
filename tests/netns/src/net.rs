//! The network: a namespace for each of the broker, the nodes, the balancer and the clients, all on one bridge, which has a
//! namespace too. Nothing of it touches the machine's own network.

use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use sluice_tests::Place;

/// All namespaces of all runs begin with it; the run's process id follows.
pub(crate) const PREFIX: &str = "sluice-netns-";
pub(crate) const NODES: usize = 3;
/// Each has one interface.
const INTERFACE: &str = "eth0";

/// Who has a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Host {
    Kafka,
    Balancer,
    Clients,
    Node(usize),
}

/// The network of one run.
#[derive(Debug, Clone)]
pub(crate) struct Net {
    run: String,
}

// === impl Host ===

impl Host {
    fn all() -> impl Iterator<Item = Self> {
        [Self::Kafka, Self::Balancer, Self::Clients].into_iter().chain((0..NODES).map(Self::Node))
    }

    fn name(self) -> String {
        match self {
            Self::Kafka => "kafka".to_owned(),
            Self::Balancer => "balancer".to_owned(),
            Self::Clients => "clients".to_owned(),
            Self::Node(at) => format!("node-{at}"),
        }
    }

    pub(crate) fn address(self) -> String {
        let last = match self {
            Self::Kafka => 2,
            Self::Balancer => 3,
            Self::Clients => 4,
            Self::Node(at) => 10 + at,
        };
        format!("10.77.0.{last}")
    }
}

// === impl Net ===

impl Net {
    pub(crate) fn of(run: &str) -> Self {
        Self { run: run.to_owned() }
    }

    pub(crate) fn run(&self) -> &str {
        &self.run
    }

    fn namespace(&self, name: &str) -> String {
        format!("{PREFIX}{}-{name}", self.run)
    }

    pub(crate) fn place(&self, host: Host) -> Place {
        Place::in_namespace(&self.namespace(&host.name()))
    }

    /// # Errors
    /// What the kernel refused.
    pub(crate) fn make(&self) -> Result<(), String> {
        let hub = self.namespace("hub");
        run("ip", &["netns", "add", &hub], "")?;
        run("ip", &["-n", &hub, "link", "add", "bridge", "type", "bridge"], "")?;
        run("ip", &["-n", &hub, "link", "set", "bridge", "up"], "")?;
        for host in Host::all() {
            let (name, address) = (host.name(), format!("{}/24", host.address()));
            let own = self.namespace(&name);
            run("ip", &["netns", "add", &own], "")?;
            let pair = ["-n", &hub, "link", "add", &name, "type", "veth", "peer", "name", INTERFACE, "netns", &own];
            run("ip", &pair, "")?;
            run("ip", &["-n", &hub, "link", "set", &name, "master", "bridge", "up"], "")?;
            run("ip", &["-n", &own, "addr", "add", &address, "dev", INTERFACE], "")?;
            run("ip", &["-n", &own, "link", "set", INTERFACE, "up"], "")?;
            run("ip", &["-n", &own, "link", "set", "lo", "up"], "")?;
        }
        Ok(())
    }

    /// With all that is in them.
    pub(crate) fn remove(&self) {
        clean(|run| run == self.run);
    }

    // === faults ===

    /// Nothing that one sends reaches the other any more, and nobody is told.
    pub(crate) fn drop(&self, from: Host, to: Host) {
        let rule = format!(
            "table inet faults {{\nchain in {{\ntype filter hook input priority 0\nip saddr {} drop\n}}\n}}\n",
            from.address()
        );
        self.filter(to, &rule);
    }

    /// The same both ways.
    pub(crate) fn part(&self, one: Host, other: Host) {
        self.drop(one, other);
        self.drop(other, one);
    }

    /// Pulls the plug, or puts it in again.
    pub(crate) fn plug(&self, host: Host, is_in: bool) {
        let own = self.namespace(&host.name());
        let state = if is_in { "up" } else { "down" };
        run("ip", &["-n", &own, "link", "set", INTERFACE, state], "").expect("set a link");
    }

    /// What a host sends takes so long.
    pub(crate) fn delay(&self, host: Host, by: Duration) {
        let (own, by) = (self.namespace(&host.name()), format!("{}ms", by.as_millis()));
        run("tc", &["-n", &own, "qdisc", "replace", "dev", INTERFACE, "root", "netem", "delay", &by], "")
            .expect("delay what a link sends");
    }

    /// Everything goes through again, at once.
    pub(crate) fn heal(&self) {
        for host in Host::all() {
            self.filter(host, "table inet faults {}\ndelete table inet faults\n");
            self.plug(host, true);
            // There is none where nothing was delayed.
            let _ = run("tc", &["-n", &self.namespace(&host.name()), "qdisc", "del", "dev", INTERFACE, "root"], "");
        }
    }

    fn filter(&self, host: Host, rules: &str) {
        let own = self.namespace(&host.name());
        run("ip", &["netns", "exec", &own, "nft", "-f", "-"], rules).expect("filter packets");
    }
}

/// Removes the namespaces of these runs, named by process id. Says how many they were.
pub(crate) fn clean(is_over: impl Fn(&str) -> bool) -> usize {
    let mut removed = 0;
    for file in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = file.file_name().to_string_lossy().into_owned();
        let of = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if of.is_some_and(&is_over) {
            removed += usize::from(run("ip", &["netns", "del", &name], "").is_ok());
        }
    }
    removed
}

// === programs ===

/// Where Debian keeps them is not on every user's path.
pub(crate) fn path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    path
}

pub(crate) fn is_installed(program: &str) -> bool {
    let folders: Vec<PathBuf> = std::env::split_paths(&path()).collect();
    folders.iter().any(|folder| folder.join(program).is_file())
}

/// Runs a program to its end.
///
/// # Errors
/// What it said.
pub(crate) fn run(program: &str, arguments: &[&str], input: &str) -> Result<(), String> {
    let mut command = Command::new(program);
    command.args(arguments).env("PATH", path());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let ended = command.spawn().and_then(|mut child| {
        if let Some(mut stdin) = child.stdin.take() {
            // One that reads nothing may have ended.
            let _ = stdin.write_all(input.as_bytes());
        }
        child.wait_with_output()
    });
    let output = ended.map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(format!("{program} {}: {said}", arguments.join(" ")))
}
