//! `sluice dev` as a person starts it, on a machine without a Kafka: it shows delivered and acked records, what it prints
//! can be tried, and it ends cleanly.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use sluice_tests::process::{Signal, signal, spawn};
use sluice_tests::{SOON, broker, eventually_blocking};

/// A running `sluice dev` on free ports.
struct Dev {
    process: Child,
    stdout: BufReader<ChildStdout>,
    /// What it printed up to the last line of the banner.
    banner: Vec<String>,
    started: Instant,
}

impl Dev {
    fn start(args: &[&str]) -> Self {
        let mut command = sluice();
        command
            .args(["dev", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
            .args(args)
            .stdout(Stdio::piped());
        let started = Instant::now();
        let mut process = spawn(command).expect("start sluice dev");
        let mut stdout = BufReader::new(process.stdout.take().expect("stdout is piped"));
        let mut banner = Vec::new();
        while !banner.last().is_some_and(|line: &String| line.starts_with("The demo worker")) {
            banner.push(next_line(&mut stdout));
        }
        Self { process, stdout, banner, started }
    }

    /// The word after `label` in the banner.
    fn told(&self, label: &str) -> String {
        let words = self.banner.iter().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let told =
            words.filter(|words| words.first() == Some(&label)).find_map(|words| words.get(1).map(ToString::to_string));
        told.unwrap_or_else(|| panic!("{label} is not in {:?}", self.banner))
    }

    fn metrics(&self) -> String {
        let admin = self.told("admin");
        let address = admin.trim_start_matches("http://");
        let mut stream = TcpStream::connect(address).expect("the admin listener is bound");
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")
            .expect("ask for metrics");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("read metrics");
        answer
    }

    fn records_flow(&self) {
        eventually_blocking("records are delivered, acked and committed", SOON, || {
            let metrics = self.metrics();
            let counts =
                ["delivered", "acked", "committed"].map(|what| demo(&metrics, &format!("sluice_records_{what}_total")));
            if counts.iter().all(|count| *count > 0) { Ok(()) } else { Err(counts) }
        });
    }

    /// Sends SIGTERM and waits for the end.
    fn stop(mut self) -> (Option<i32>, Duration) {
        signal(&self.process, Signal::Term);
        let asked = Instant::now();
        let status = self.process.wait().expect("wait for sluice dev");
        (status.code(), asked.elapsed())
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // Fails when it has ended already.
        let _ = self.process.kill();
    }
}

fn sluice() -> Command {
    Command::new(sluice_tests::gateway::executable())
}

fn next_line(stdout: &mut BufReader<ChildStdout>) -> String {
    let mut line = String::new();
    let read = stdout.read_line(&mut line).expect("read stdout");
    assert!(read > 0, "sluice dev ended early");
    line.trim_end().to_owned()
}

/// A counter of the demo's subscription.
fn demo(metrics: &str, name: &str) -> u64 {
    let prefix = format!("{name}{{subscription=\"demo\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&prefix)).and_then(|value| value.parse().ok()).unwrap_or(0)
}

#[test]
fn dev_shows_delivered_and_acked_records_and_ends_cleanly() {
    let dev = Dev::start(&[]);
    assert!(dev.banner[0].contains("broker in memory"), "{:?}", dev.banner);
    assert!(dev.banner[1].contains("not for production"), "{:?}", dev.banner);
    dev.records_flow();
    // On an idle machine within 10 s of the start; a busy one may take longer, so this is told, not asserted.
    println!("records flowed {:?} after the start", dev.started.elapsed());
    let (status, _) = dev.stop();
    assert_eq!(status, Some(0));
}

#[test]
fn what_dev_prints_to_try_next_works() {
    let mut dev = Dev::start(&[]);
    let first = next_line(&mut dev.stdout);
    assert!(first.contains("acked"), "{first}");
    let server = format!("http://{}", dev.told("gRPC"));
    let consumed = sluice()
        .args(["consume", "--subscription", "orders", "--max-records", "10", "--server", &server])
        .output()
        .expect("run sluice consume");
    assert!(consumed.status.success(), "{}", String::from_utf8_lossy(&consumed.stderr));
    let lines: Vec<serde_json::Value> = String::from_utf8(consumed.stdout)
        .expect("text")
        .lines()
        .map(|line| serde_json::from_str(line).expect("a line is a JSON object"))
        .collect();
    assert_eq!(lines.len(), 10);
    assert!(lines.iter().all(|line| line["topic"] == "orders"), "{lines:?}");

    let broker = dev.told("Kafka");
    let produced = sluice()
        .args(["produce", "--brokers", &broker, "--topic", "orders", "--key", "customer-7", "--value", "{}"])
        .output()
        .expect("run sluice produce");
    assert!(produced.status.success(), "{}", String::from_utf8_lossy(&produced.stderr));
    let went: serde_json::Value = serde_json::from_slice(&produced.stdout).expect("a JSON object");
    assert!(went["offset"].as_i64().is_some(), "{went}");
    assert_eq!(dev.stop().0, Some(0));
}

#[test]
fn dev_on_a_real_kafka_makes_its_topics_and_finds_them_again() {
    let brokers = broker().bootstrap();
    for _ in 0..2 {
        let dev = Dev::start(&["--brokers", brokers]);
        assert!(dev.banner[0].contains("your Kafka"), "{:?}", dev.banner);
        dev.records_flow();
        assert_eq!(dev.stop().0, Some(0));
    }
}
