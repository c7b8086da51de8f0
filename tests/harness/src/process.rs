//! Processes that end with this one, whichever way it ends.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Output};
use std::sync::{Mutex, OnceLock, mpsc};
use std::time::Duration;

/// A signal, by its name.
#[derive(Debug, Clone, Copy)]
pub enum Signal {
    /// Ends it without a word.
    Kill,
    /// Asks it to end.
    Term,
    /// Freezes it.
    Stop,
    /// Lets it go on.
    Cont,
}

type Order = (Command, mpsc::Sender<io::Result<Child>>);

/// Spawns a child that the kernel kills when this process ends.
///
/// The kernel watches the *thread* that spawned it, and test threads end before the process does: so one thread that never
/// ends spawns them all.
///
/// # Errors
/// When the program cannot be started.
pub fn spawn(mut command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<Mutex<mpsc::Sender<Order>>> = OnceLock::new();
    die_with_parent(&mut command);
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        std::thread::Builder::new()
            .name("spawner".into())
            .spawn(move || {
                for (mut command, answer) in inbox {
                    let _ = answer.send(command.spawn());
                }
            })
            .expect("start the spawner thread");
        Mutex::new(orders)
    });
    let (answer, child) = mpsc::channel();
    spawner.lock().expect("the spawner never panics").send((command, answer)).expect("the spawner never ends");
    child.recv().expect("the spawner answers each order")
}

#[expect(unsafe_code, reason = "PR_SET_PDEATHSIG has no safe wrapper in the standard library")]
fn die_with_parent(command: &mut Command) {
    let parent = std::process::id();
    // SAFETY: between fork and exec only prctl and getppid run, both async-signal-safe; nothing is allocated on success.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            if u32::try_from(libc::getppid()) != Ok(parent) {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
}

/// Sends a signal to a child that was not waited for.
#[expect(unsafe_code, reason = "kill(2) has no safe wrapper in the standard library")]
pub fn signal(child: &Child, signal: Signal) {
    let number = match signal {
        Signal::Kill => libc::SIGKILL,
        Signal::Term => libc::SIGTERM,
        Signal::Stop => libc::SIGSTOP,
        Signal::Cont => libc::SIGCONT,
    };
    let pid = libc::pid_t::try_from(child.id()).expect("a process id fits pid_t");
    // SAFETY: kill(2) takes two numbers. The child was not waited for, so its id is not another process's.
    unsafe { libc::kill(pid, number) };
}

/// Runs a command to its end, which must be a good one.
pub fn run(what: &str, command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(
        output.status.success(),
        "{what}:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Resident memory of a process, in bytes.
#[must_use]
pub fn rss(pid: u32) -> u64 {
    status_bytes(pid, "VmRSS:")
}

/// The most resident memory that a process has ever had, in bytes.
#[must_use]
pub fn peak_rss(pid: u32) -> u64 {
    status_bytes(pid, "VmHWM:")
}

/// The time that a process has spent on processors so far, its ended threads' too.
#[must_use]
pub fn cpu(pid: u32) -> Duration {
    // The kernel gives it to programs in hundredths of a second, whatever its own tick is.
    const TICK: Duration = Duration::from_millis(10);
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process lives");
    let (_, fields) = stat.rsplit_once(')').expect("the name stands in brackets");
    let ticks = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u32>().ok());
    TICK * ticks.sum::<u32>()
}

fn status_bytes(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let line = status.lines().find(|line| line.starts_with(field)).expect("a live process has memory");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number of kB") * 1024
}

/// The last lines of a log file.
#[must_use]
pub fn tail(path: &Path, lines: usize) -> String {
    let text = std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
