//! The Sluice side: a process of workers, each with a consumer of its own, or with `consumers=N` between them. Its twin is
//! `java/…/ShareWorker.java`.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{BufRead as _, Write as _};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sluice_client::{Consumer, Record};
use tokio::sync::{Mutex as AsyncMutex, Semaphore};

use crate::measure::now_us;
use crate::work::{Work, named};

const FLUSH: Duration = Duration::from_millis(5);
/// How often a paused worker looks whether it may go on.
const LOOK: Duration = Duration::from_millis(10);
const RENEW: Duration = Duration::from_secs(5);

struct Process {
    arguments: HashMap<String, String>,
    work: Work,
    out: Mutex<String>,
    down: AtomicBool,
    paused: AtomicBool,
    total: AtomicU64,
    counts: Vec<AtomicU64>,
    busy_us: Vec<AtomicI64>,
    subscribed: Semaphore,
}

/// Runs until it is killed, or cannot go on.
pub fn run(arguments: &[String]) {
    let arguments = named(arguments);
    let work = Work::parse(&arguments).expect("the arguments of `Work`");
    let process = Arc::new(Process {
        arguments,
        work,
        out: Mutex::default(),
        down: AtomicBool::new(work.down),
        paused: AtomicBool::new(false),
        total: AtomicU64::new(0),
        counts: (0..work.workers).map(|_| AtomicU64::new(0)).collect(),
        busy_us: (0..work.workers).map(|_| AtomicI64::new(0)).collect(),
        subscribed: Semaphore::new(0),
    });
    let flushed = Arc::clone(&process);
    std::thread::spawn(move || flushed.flush_for_ever());
    let obeyed = Arc::clone(&process);
    std::thread::spawn(move || obeyed.obey());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("start a runtime");
    runtime.block_on(async {
        let consumers = process.setting("consumers").parse().unwrap_or(work.workers);
        for first in 0..consumers {
            tokio::spawn(Arc::clone(&process).subscribe(first, consumers));
        }
        let all = u32::try_from(consumers).expect("a few consumers");
        process.subscribed.acquire_many(all).await.expect("never closed").forget();
        process.say("ready");
        std::future::pending::<()>().await;
    });
}

impl Process {
    fn setting(&self, name: &str) -> &str {
        self.arguments.get(name).map(String::as_str).unwrap_or_default()
    }

    /// A consumer, and each worker of its: `first` and every so manieth after it.
    async fn subscribe(self: Arc<Self>, first: usize, consumers: usize) {
        let mut builder = Consumer::builder(self.setting("address"), self.setting("group"));
        if let Ok(window) = self.setting("window").parse() {
            builder = builder.window(window);
        }
        let consumer = match builder.connect().await {
            Ok(consumer) => Arc::new(AsyncMutex::new(consumer)),
            Err(error) => return self.say(&format!("error worker {first}: {error}")),
        };
        for worker in (first..self.work.workers).step_by(consumers) {
            tokio::spawn(Arc::clone(&self).work_for_ever(worker, Arc::clone(&consumer)));
        }
        self.subscribed.add_permits(1);
    }

    async fn work_for_ever(self: Arc<Self>, worker: usize, consumer: Arc<AsyncMutex<Consumer>>) {
        loop {
            let next = consumer.lock().await.next().await;
            match next {
                Ok(Some(record)) if self.work.hold => {
                    self.say_record('d', now_us(), worker, &record);
                    tokio::spawn(hold(record));
                }
                Ok(Some(record)) => Arc::clone(&self).work(worker, record).await,
                Ok(None) => return,
                Err(error) => return self.say(&format!("error worker {worker}: {error}")),
            }
        }
    }

    async fn work(self: Arc<Self>, worker: usize, record: Record) {
        while self.paused.load(Ordering::Relaxed) {
            tokio::time::sleep(LOOK).await;
        }
        let from = now_us();
        self.say_record('d', from, worker, &record);
        if self.work.work_us > 0 {
            tokio::time::sleep(Duration::from_micros(self.work.work_us)).await;
        }
        let every = self.work.fail_first_every;
        let fails_first = every > 0 && record.attempts() == 0 && record.offset() % every == 0;
        let works = !self.down.load(Ordering::Relaxed) && !fails_first;
        let until = now_us();
        self.counts[worker].fetch_add(1, Ordering::Relaxed);
        self.busy_us[worker].fetch_add(until - from, Ordering::Relaxed);
        self.total.fetch_add(1, Ordering::Relaxed);
        self.say_record(if works { 'a' } else { 'f' }, until, worker, &record);
        match works {
            true if self.setting("ack") == "durable" => drop(tokio::spawn(self.ack_durable(worker, record))),
            true => record.ack(),
            false => record.retry(),
        }
    }

    async fn ack_durable(self: Arc<Self>, worker: usize, record: Record) {
        let (partition, offset) = (record.partition(), record.offset());
        // What is not confirmed may come again, as the count of acks shows.
        if record.ack_durable().await.is_ok() {
            self.say(&format!("c {} {worker} {partition} {offset}", now_us()));
        }
    }

    fn obey(&self) {
        for word in std::io::stdin().lock().lines().map_while(Result::ok) {
            match word.as_str() {
                "down" => self.down.store(true, Ordering::Relaxed),
                "up" => self.down.store(false, Ordering::Relaxed),
                "pause" => self.paused.store(true, Ordering::Relaxed),
                "go" => self.paused.store(false, Ordering::Relaxed),
                "report" => self.report(),
                _ => self.say(&format!("error no such word: {word}")),
            }
        }
    }

    fn report(&self) {
        for worker in 0..self.work.workers {
            let count = self.counts[worker].swap(0, Ordering::Relaxed);
            let busy = self.busy_us[worker].swap(0, Ordering::Relaxed);
            self.say(&format!("w {worker} {count} {busy}"));
        }
    }

    /// Quiet workers are measured: one write for many lines.
    fn flush_for_ever(&self) {
        let mut said = 0;
        loop {
            std::thread::sleep(FLUSH);
            let now = self.total.load(Ordering::Relaxed);
            if self.work.quiet && now != said {
                said = now;
                self.say(&format!("n {} {now}", now_us()));
            }
            self.flush();
        }
    }

    fn flush(&self) {
        let mut lines = self.out.lock().expect("never poisoned");
        let mut stdout = std::io::stdout().lock();
        // The driver may be gone; then so is this process, in a moment.
        let _ = stdout.write_all(lines.as_bytes()).and_then(|()| stdout.flush());
        lines.clear();
    }

    fn say_record(&self, what: char, at_us: i64, worker: usize, record: &Record) {
        if !self.work.quiet {
            self.say(&format!("{what} {at_us} {worker} {} {}", record.partition(), record.offset()));
            // An ack is said before it is sent, or a kill in between would make it look lost.
            self.flush();
        }
    }

    fn say(&self, line: &str) {
        let _ = writeln!(self.out.lock().expect("never poisoned"), "{line}");
    }
}

async fn hold(record: Record) {
    loop {
        tokio::time::sleep(RENEW).await;
        record.extend();
    }
}
