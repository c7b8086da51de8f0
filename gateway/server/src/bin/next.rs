//! `sluice` as its next version may speak, for tests: see `next.rs` of the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    sluice::cli::main()
}
