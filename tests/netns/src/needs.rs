//! What the machine must have, looked for before anything starts.

use std::fmt::Write as _;
use std::fs;

use crate::net::{self, run};

pub(crate) const NO_DELAYS: &str =
    "; without delays: this kernel has no netem (module sch_netem, on Debian in linux-image-*, not in -cloud images)";

/// What a scenario may ask for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Abilities {
    /// `tc netem` works.
    pub(crate) delays: bool,
}

/// Linux' numbers of the two capabilities.
const NET_ADMIN: u32 = 12;
const SYS_ADMIN: u32 = 21;

/// Programs, and the Debian packages that have them.
const PROGRAMS: [(&str, &str); 4] =
    [("ip", "iproute2"), ("nft", "nftables"), ("haproxy", "haproxy"), ("java", "openjdk-17-jre-headless")];

/// # Errors
/// All that is missing, and how to get it.
pub(crate) fn look() -> Result<Abilities, String> {
    let mut missing = rights().err().map(|error| error + "\n").unwrap_or_default();
    let lacks: Vec<_> = PROGRAMS.iter().filter(|(program, _)| !net::is_installed(program)).collect();
    if !lacks.is_empty() {
        let programs: Vec<_> = lacks.iter().map(|(program, _)| *program).collect();
        let packages: Vec<_> = lacks.iter().map(|(_, package)| *package).collect();
        let _ = writeln!(
            missing,
            "netns: needs {}. On Debian or Ubuntu this installs it:\n  apt-get install -y {}",
            programs.join(", "),
            packages.join(" ")
        );
    }
    if missing.is_empty() { probe() } else { Err(missing.trim_end().to_owned()) }
}

/// # Errors
/// Says how to get them.
pub(crate) fn rights() -> Result<(), String> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    if [NET_ADMIN, SYS_ADMIN].iter().all(|capability| effective & (1 << capability) != 0) {
        return Ok(());
    }
    Err("netns: needs root, or CAP_NET_ADMIN and CAP_SYS_ADMIN: it makes network namespaces and filters packets in them.\n  \
         `make netns` runs it by sudo; in a container: docker run --privileged"
        .to_owned())
}

/// What only a try can tell: kernels and containers refuse each of these.
fn probe() -> Result<Abilities, String> {
    let name = format!("{}{}-probe", net::PREFIX, std::process::id());
    let steps: [(&str, &str, &[&str]); 4] = [
        ("make a network namespace", "ip", &["netns", "add", &name]),
        ("make a bridge", "ip", &["-n", &name, "link", "add", "probe", "type", "bridge"]),
        ("make a pair of veth", "ip", &["-n", &name, "link", "add", "one", "type", "veth", "peer", "name", "other"]),
        ("filter packets", "ip", &["netns", "exec", &name, "nft", "add", "table", "inet", "probe"]),
    ];
    let refused = steps.iter().find_map(|(what, program, arguments)| {
        run(program, arguments, "").err().map(|error| format!("netns: this machine does not let us {what}: {error}"))
    });
    let delay = ["-n", &name, "qdisc", "add", "dev", "one", "root", "netem", "delay", "1ms"];
    let delays = refused.is_none() && run("tc", &delay, "").is_ok();
    let _ = run("ip", &["netns", "del", &name], "");
    refused.map_or(Ok(Abilities { delays }), Err)
}
