//! Folders and names that no other test uses.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// `name` with a suffix that is unique on this machine: for topics, groups and consumer ids.
#[must_use]
pub fn unique(name: &str) -> String {
    static START: OnceLock<u128> = OnceLock::new();
    let start = START.get_or_init(|| {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis()) % 100_000_000
    });
    format!("{name}-{}-{start}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// Ports that were free just now, none of which the kernel gives to others: a process that is started again gets its own.
#[must_use]
pub fn free_ports(count: usize) -> Vec<u16> {
    // Below those of outgoing connections and of listeners that take any.
    const FIRST: u64 = 10_000;
    const COUNT: u64 = 20_000;
    static NEXT: AtomicU64 = AtomicU64::new(0);
    // Tests of other processes begin elsewhere.
    let start = u64::from(std::process::id()) * 7_919;
    let ports = (0..COUNT).filter_map(|_| {
        let port = FIRST + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let port = u16::try_from(port).expect("below 30,000");
        TcpListener::bind(("127.0.0.1", port)).is_ok().then_some(port)
    });
    let ports: Vec<u16> = ports.take(count).collect();
    assert_eq!(ports.len(), count, "no free ports below 30,000");
    ports
}

/// The workspace's root.
#[must_use]
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ stands in the workspace").to_path_buf()
}

/// What outlives a run: `SLUICE_TEST_CACHE`, or `target/kafka`.
#[must_use]
pub fn cache() -> PathBuf {
    let path = std::env::var_os("SLUICE_TEST_CACHE").map_or_else(|| workspace().join("target/kafka"), PathBuf::from);
    fs::create_dir_all(&path).unwrap_or_else(|error| panic!("the tests' cache {}: {error}", path.display()));
    path
}

/// Holds a lock between test binaries for as long as the answer lives.
#[must_use]
pub fn lock(name: &str) -> File {
    let path = cache().join(name);
    let file = File::create(&path).unwrap_or_else(|error| panic!("lock {}: {error}", path.display()));
    file.lock().unwrap_or_else(|error| panic!("lock {}: {error}", path.display()));
    file
}

/// A new folder for one process that a test starts. It goes when another test binary starts after this one's end, so
/// that the logs of a failure can still be read.
#[must_use]
pub fn folder(name: &str) -> PathBuf {
    static RUN: OnceLock<(PathBuf, File)> = OnceLock::new();
    let (run, _) = RUN.get_or_init(|| {
        let _guard = lock("run.lock");
        let runs = cache().join("run");
        fs::create_dir_all(&runs).expect("create the folder of runs");
        remove_ended(&runs);
        let run = runs.join(std::process::id().to_string());
        fs::create_dir_all(&run).expect("create the folder of this run");
        let alive = File::create(run.join("alive")).expect("create the run's lock");
        alive.lock().expect("lock a file of our own");
        (run, alive)
    });
    let path = run.join(format!("{name}-{}", COUNTER.fetch_add(1, Ordering::Relaxed)));
    fs::create_dir_all(&path).expect("create a scratch folder");
    path
}

/// Removes what runs left that have ended: their lock is free.
fn remove_ended(runs: &Path) {
    for run in fs::read_dir(runs).into_iter().flatten().flatten() {
        let ended = File::open(run.path().join("alive")).map_or(true, |alive| alive.try_lock().is_ok());
        if ended {
            // Another binary may be at it too; what is left goes next time.
            let _ = fs::remove_dir_all(run.path());
        }
    }
}
