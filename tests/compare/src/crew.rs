//! Processes of workers, and the share worker's classes.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use sluice_tests::{process, scratch};

use crate::lab::until;
use crate::line::{Event, Line, Share, What, parse};
use crate::measure::Id;

/// 300 share consumers need their time to start, more so on a busy machine.
const START_DEADLINE: Duration = Duration::from_secs(180);

/// A process of workers, and what it said so far. Ends with its value.
#[derive(Debug)]
pub struct Workers {
    child: Child,
    stdin: ChildStdin,
    said: Arc<Mutex<Said>>,
}

/// What a process of workers said.
#[derive(Debug, Default)]
pub struct Said {
    ready: bool,
    pub events: Vec<Event>,
    pub acked: HashSet<Id>,
    /// Quiet workers: when, how many.
    pub totals: Vec<(i64, u64)>,
    pub shares: Vec<Share>,
    pub errors: usize,
}

impl Workers {
    /// Starts it, and waits until all of them have subscribed.
    pub fn start(mut command: Command, name: &str) -> Self {
        let folder = scratch::folder("workers");
        let log = folder.join("workers.log");
        let mut evidence = File::create(folder.join("workers.out")).expect("create the workers' evidence");
        writeln!(evidence, "# {name}: {:?}", command.get_args().collect::<Vec<_>>())
            .expect("write the workers' evidence");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(File::create(&log).expect("create the workers' log"));
        let mut child = process::spawn(command).expect("start the workers");
        let stdin = child.stdin.take().expect("stdin is a pipe");
        let stdout = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
        let said = Arc::new(Mutex::new(Said::default()));
        let (heard, name) = (Arc::clone(&said), name.to_owned());
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                heard.lock().expect("never poisoned").note(parse(&line), &name);
                writeln!(evidence, "{line}").expect("write the workers' evidence");
            }
        });
        let workers = Self { child, stdin, said };
        assert!(
            until(START_DEADLINE, || workers.said().ready),
            "the workers did not start:\n{}",
            process::tail(&log, 20)
        );
        workers
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it said until now.
    pub fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().expect("never poisoned")
    }

    /// Says `down`, `up`, `pause`, `go` or `report` to it.
    pub fn tell(&mut self, word: &str) {
        writeln!(self.stdin, "{word}").expect("the workers live");
    }

    /// What each worker did since it was asked last.
    pub fn report(&mut self, workers: usize) -> Vec<Share> {
        self.said().shares.clear();
        self.tell("report");
        assert!(until(Duration::from_secs(10), || self.said().shares.len() == workers), "each worker reports");
        self.said().shares.clone()
    }

    /// Waits until quiet workers have worked on so many records; when, if in time.
    pub fn reach(&self, total: u64, limit: Duration) -> Option<i64> {
        let at = || self.said().totals.iter().find(|(_, now)| *now >= total).map(|(at, _)| *at);
        until(limit, || at().is_some());
        at()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        process::signal(&self.child, process::Signal::Kill);
        self.child.wait().expect("wait for the workers");
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Said {
    fn note(&mut self, line: Line, name: &str) {
        match line {
            Line::Ready => self.ready = true,
            Line::Record(event) => {
                if event.what == What::Acked {
                    self.acked.insert(event.record());
                }
                self.events.push(event);
            }
            Line::Total { at_us, total } => self.totals.push((at_us, total)),
            Line::Share(share) => self.shares.push(share),
            Line::Error(text) => {
                self.errors += 1;
                eprintln!("    {name}: {text}");
            }
        }
    }
}

/// The share worker's classes and jars.
#[derive(Debug)]
pub struct JavaClasses {
    folder: PathBuf,
}

impl JavaClasses {
    /// Asks Maven for them.
    pub fn compile() -> Self {
        let folder = scratch::workspace().join("target/compare/java");
        let status = Command::new("mvn")
            .args([
                "--batch-mode",
                "--quiet",
                "compile",
                "dependency:copy-dependencies",
                "-DincludeScope=runtime",
                "-f",
            ])
            .arg(scratch::workspace().join("tests/compare/java/pom.xml"))
            .arg(format!("-DoutputDirectory={}", folder.join("libs").display()))
            .status();
        assert!(
            status.is_ok_and(|status| status.success()),
            "compiling tests/compare/java needs Maven and a JDK of 17 or later: apt-get install -y openjdk-17-jdk-headless maven"
        );
        Self { folder }
    }

    /// What starts the share worker, without its arguments.
    pub fn command(&self) -> Command {
        let mut java = Command::new("java");
        java.arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn").arg("-cp");
        java.arg(format!("{0}/classes:{0}/libs/*", self.folder.display())).arg("ShareWorker");
        java
    }
}
