//! The machine: which processor a process runs on, what a process has used, and the one clock of all processes.

use std::fs;
use std::time::Duration;

use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

/// Where the broker, the clients and the producer run.
const CLIENTS_CPU: usize = 0;
/// Where what is measured runs.
const MEASURED_CPU: usize = 1;

/// What a process is to the measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It is measured: on a processor of its own.
    Measured,
    /// It makes load, or answers it.
    Load,
}

/// Which processors there are to pin to.
#[derive(Debug, Clone, Copy)]
pub enum Pinning {
    /// Two or more: broker and clients on one, what is measured on another.
    Apart,
    /// One alone, or processors that cannot be chosen: everything runs where the kernel puts it.
    None,
}

impl Pinning {
    /// Looks at what this process may run on. Says so when there is nothing to pin to.
    pub fn find() -> Self {
        let apart = sched_getaffinity(None).is_ok_and(|set| set.is_set(CLIENTS_CPU) && set.is_set(MEASURED_CPU));
        if apart { Self::Apart } else { Self::None }
    }

    /// What to tell a reader of the numbers.
    pub fn describe(self) -> String {
        match self {
            Self::Apart => {
                format!("broker and clients on cpu {CLIENTS_CPU}, what is measured on cpu {MEASURED_CPU}")
            }
            Self::None => {
                "NOT PINNED: fewer than two processors to choose from; broker, clients and what is measured share them"
                    .to_owned()
            }
        }
    }

    /// Runs `start` so that processes which it starts are on the role's processor from their first instruction: they
    /// inherit it from this process's threads, and count their processors when they choose how many threads to have.
    pub fn start<T>(self, role: Role, start: impl FnOnce() -> T) -> T {
        let cpu = match (self, role) {
            (Self::None, _) => return start(),
            (Self::Apart, Role::Measured) => MEASURED_CPU,
            (Self::Apart, Role::Load) => CLIENTS_CPU,
        };
        move_threads_to(cpu);
        let started = start();
        move_threads_to(CLIENTS_CPU);
        started
    }
}

/// All threads of this process: children are spawned by one that the harness keeps.
fn move_threads_to(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    for thread in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let id = thread.file_name().to_str().and_then(|id| id.parse().ok()).and_then(Pid::from_raw);
        if let Some(id) = id {
            // A thread that has ended meanwhile starts nothing.
            let _ = sched_setaffinity(Some(id), &set);
        }
    }
}

/// CLOCK_MONOTONIC in nanoseconds: the same in all processes of the machine.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// Sleeps until a time of `now_ns`.
pub fn sleep_until_ns(until_ns: u64) {
    let now = now_ns();
    if until_ns > now {
        std::thread::sleep(Duration::from_nanos(until_ns - now));
    }
}

/// CPU seconds of a process so far, user and system, ended threads' too. The kernel counts in steps of 10 ms.
pub fn cpu_s(pid: u32) -> f64 {
    if pid == 0 { 0.0 } else { sluice_tests::process::cpu(pid).as_secs_f64() }
}

/// How many threads a process has.
pub fn threads(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

/// Resident memory that is the process's own: what it shares with the page cache, its executable say, left out.
pub fn anonymous_kib(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.split_whitespace().next()).and_then(|kib| kib.parse().ok()).unwrap_or(0.0)
}

/// The machine in a line, for reports.
pub fn describe() -> String {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpus = info.lines().filter(|line| line.starts_with("processor")).count().max(cpus);
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown processor", |(_, name)| name);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok());
    let gib = kib.unwrap_or(0.0_f64) / f64::from(1 << 20);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{cpus} × {model}, {gib:.0} GiB, Linux {}", kernel.trim())
}

/// The load average of the last minute: above the number of processors, absolute figures mean little.
pub fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0.0)
}
