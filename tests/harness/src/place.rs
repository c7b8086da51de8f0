//! Where a process runs: beside the tests, or in a network namespace of its own.

use std::ffi::OsStr;
use std::process::Command;

/// A place for a process. By default that of this process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place(Option<String>);

impl Place {
    /// A network namespace, by the name that `ip netns` has for it.
    #[must_use]
    pub fn in_namespace(name: &str) -> Self {
        Self(Some(name.to_owned()))
    }

    /// A command that runs the program there. Its process is the program's: `ip` becomes it.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let Some(name) = &self.0 else { return Command::new(program) };
        let mut command = Command::new("ip");
        command.args(["netns", "exec", name]).arg(program);
        command
    }
}
