//! Lines on stdout. `println!` panics when the reader has gone; here that is an ordinary end.

use std::io::{self, Write};

/// stdout, line by line.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Output;

impl Output {
    /// Writes a line and flushes it, so that a reader sees it at once.
    pub(crate) fn line(self, line: impl std::fmt::Display) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{line}")?;
        stdout.flush()
    }
}

/// Whether the reader of stdout has gone.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
