//! SIGTERM and SIGINT.

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The two signals that end a process in good order.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// From here on neither signal ends the process by itself.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
        let terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        Ok(Self { interrupt, terminate })
    }

    /// Waits for the next one: its name, and the status with which a process that it ended would exit.
    pub(crate) async fn next(&mut self) -> (&'static str, i32) {
        tokio::select! {
            _ = self.interrupt.recv() => ("SIGINT", 130),
            _ = self.terminate.recv() => ("SIGTERM", 143),
        }
    }

    /// Waits for the work, which a first signal began to end; the next one ends the process at once.
    pub(crate) async fn or_exit<T>(&mut self, work: impl Future<Output = T>) -> T {
        tokio::select! {
            done = work => done,
            (name, status) = self.next() => {
                eprintln!("{name} again: ending at once");
                std::process::exit(status)
            }
        }
    }
}
