//! Clients and a producer on a cluster that runs somewhere, and a command under that load: a restart, a roll-out, a kill. Says
//! whether a record was lost or came twice, and how streams ended. `make compose` runs it; docs/balancers.md shows it on
//! Kubernetes. The nodes are reached by their balancer alone.

use std::collections::BTreeSet;
use std::process::{ExitCode, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde_json::Value;
use sluice_tests::{Crew, History, Produced, eventually};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::task::JoinHandle;

const USAGE: &str = "usage: under-load [--killed] ADDRESS SUBSCRIPTION PRODUCER COMMAND [ARGUMENT]...

Sessions of SUBSCRIPTION at the balancer ADDRESS (host:port) work on what PRODUCER writes, a line for the shell like
`sluice produce --brokers … --topic …`, while COMMAND runs. Nobody else may read or write there meanwhile.

Fails when COMMAND does, when a record is not worked, when one comes that was not written meanwhile, and, without --killed, when
one comes twice or a stream breaks. With --killed COMMAND kills: streams may break, and what was leased or not yet committed may
come again.";

const SESSIONS: usize = 12;
const WINDOW: i32 = 5;
/// With a frame. Records are always leased, and the sessions can do twice what comes.
const WORK: Duration = Duration::from_millis(150);
/// Records at a time, and the pause between.
const BATCH: usize = 20;
const PAUSE: Duration = Duration::from_millis(100);
/// What must be worked before COMMAND, and after it.
const SOME: usize = 600;
/// For what must be worked: longer than a drain, and than Kafka takes to notice that a member is gone.
const PATIENCE: Duration = Duration::from_secs(180);

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (killed, words) = match words.as_slice() {
        ["--killed", words @ ..] => (true, words),
        words => (false, words),
    };
    let [address, subscription, producer, command @ ..] = words else { return usage() };
    if command.is_empty() {
        return usage();
    }
    // What does not hold the harness says by a panic.
    println!("{}", run(address, subscription, producer, command, killed).await);
    ExitCode::SUCCESS
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}

async fn run(address: &str, subscription: &str, producer: &str, command: &[&str], killed: bool) -> String {
    let history = History::default();
    let crew = Crew::by(address, subscription, &history).window(WINDOW).work(WORK).start(SESSIONS);
    let load = Load::start(producer);
    reaches("work goes on", SOME, || history.acked()).await;

    let start = Instant::now();
    let (program, arguments) = command.split_first().expect("there is one");
    let ended = Command::new(program).args(arguments).stdin(Stdio::null()).kill_on_drop(true).status().await;
    let status = ended.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(status.success(), "{program}: {status}");
    let took = start.elapsed();
    reaches("work goes on after it", history.acked() + SOME, || history.acked()).await;

    let produced = load.stop().await;
    reaches("all is worked", produced.len(), || history.acked_of(&produced)).await;
    let closing = Instant::now();
    crew.stop().await;
    let closed = closing.elapsed();

    history.check_no_loss(&produced);
    history.check_one_holder();
    let places: BTreeSet<_> = produced.iter().map(|one| (one.topic.clone(), one.partition, one.offset)).collect();
    let strange: Vec<_> = history.deliveries().into_keys().filter(|place| !places.contains(place)).collect();
    let shown = &strange[..strange.len().min(5)];
    assert!(strange.is_empty(), "{} records came that were not written meanwhile: {shown:?}", strange.len());
    let (again, broken) = (history.duplicates().len(), history.broken());
    if !killed {
        history.check_no_duplicates();
        assert_eq!(broken, 0, "streams broke");
    }
    format!(
        "ok: {} records, {again} came again, {broken} streams broke; the command took {:.0} s, for {:.1} s at most nothing was done, \
         and streams closed within {:.1} s",
        produced.len(),
        took.as_secs_f64(),
        longest_gap(&history, &produced).as_secs_f64(),
        closed.as_secs_f64()
    )
}

/// The longest time in which nobody acked a record.
fn longest_gap(history: &History, produced: &[Produced]) -> Duration {
    let place = |one: &Produced| (one.topic.clone(), one.partition, one.offset);
    let mut acked: Vec<u128> = produced.iter().filter_map(|one| history.acked_at_ms(&place(one))).collect();
    acked.sort_unstable();
    let gaps = acked.windows(2).map(|pair| pair[1] - pair[0]);
    Duration::from_millis(u64::try_from(gaps.max().unwrap_or(0)).unwrap_or(u64::MAX))
}

async fn reaches(what: &str, goal: usize, count: impl Fn() -> usize) {
    eventually(what, PATIENCE, async || {
        let seen = count();
        if seen >= goal { Ok(()) } else { Err(seen) }
    })
    .await;
}

/// A producer at work.
struct Load {
    child: Child,
    writer: JoinHandle<()>,
    reader: JoinHandle<()>,
    produced: Arc<Mutex<Vec<Produced>>>,
}

// === impl Load ===

impl Load {
    fn start(producer: &str) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", producer]).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{producer}: {error}"));
        let (stdin, stdout) = (child.stdin.take().expect("it is piped"), child.stdout.take().expect("it is piped"));
        let produced: Arc<Mutex<Vec<Produced>>> = Arc::default();
        let seen = Arc::clone(&produced);
        let reader = tokio::spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            while let Some(line) = lines.next_line().await.expect("read what was produced") {
                lock(&seen).push(read(&line));
            }
        });
        Self { child, writer: tokio::spawn(write(stdin)), reader, produced }
    }

    async fn stop(mut self) -> Vec<Produced> {
        // With the writer goes the pipe: the producer says the rest and ends.
        self.writer.abort();
        let written = self.writer.await;
        assert!(written.is_err_and(|error| error.is_cancelled()), "the producer does not read any more");
        let status = self.child.wait().await.expect("wait for the producer");
        assert!(status.success(), "the producer failed: {status}");
        self.reader.await.expect("the producer prints what it writes");
        std::mem::take(&mut lock(&self.produced))
    }
}

fn lock(produced: &Mutex<Vec<Produced>>) -> MutexGuard<'_, Vec<Produced>> {
    produced.lock().expect("not poisoned")
}

/// Until it is aborted, or nobody reads.
async fn write(mut stdin: ChildStdin) {
    let mut last = 0;
    loop {
        let batch: String = (last..last + BATCH).map(|n| format!("record {n}\n")).collect();
        last += BATCH;
        if stdin.write_all(batch.as_bytes()).await.is_err() {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// A line of `sluice produce`.
fn read(line: &str) -> Produced {
    let place: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("this is not of `sluice produce`: {line}"));
    let number = |name: &str| place[name].as_i64().unwrap_or_else(|| panic!("no {name} in {line}"));
    Produced {
        topic: place["topic"].as_str().unwrap_or_default().to_owned(),
        partition: i32::try_from(number("partition")).expect("a partition"),
        offset: number("offset"),
        value: None,
    }
}
