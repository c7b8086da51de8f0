//! The executables of the gateway.
//!
//! Cargo gives a test no path to another package's executable, so they are built here, in the profile of the test; after the
//! first test binary that is a check of a second.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::scratch;

/// The gateway: `SLUICE_BIN`, or what cargo builds.
#[must_use]
pub fn executable() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| given("SLUICE_BIN").unwrap_or_else(|| built("sluice", &[]))).clone()
}

/// The gateway as its next version may speak: `SLUICE_NEXT_BIN`, or what cargo builds with the feature `next-protocol`.
#[must_use]
pub fn next_executable() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    // It is built for one test, which waits for it: what has the feature is not optimized.
    let own = ["sluice", "sluice-client", "sluice-proto"];
    let options = own.map(|package| format!("--config=profile.dev.package.{package}.opt-level=0"));
    let options: Vec<&str> =
        ["--features=next-protocol"].into_iter().chain(options.iter().map(String::as_str)).collect();
    BUILT.get_or_init(|| given("SLUICE_NEXT_BIN").unwrap_or_else(|| built("sluice-next", &options))).clone()
}

/// The gateway as an earlier version speaks: `SLUICE_OLD_BIN`, or the present one.
#[must_use]
pub fn old_executable() -> PathBuf {
    given("SLUICE_OLD_BIN").unwrap_or_else(executable)
}

fn given(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from)
}

fn built(program: &str, options: &[&str]) -> PathBuf {
    let this = std::env::current_exe().expect("a test has a path");
    let output = this.ancestors().skip(1).find(|folder| !folder.ends_with("deps"));
    let output: &Path = output.expect("tests stand in target/<profile>/deps, other programs in target/<profile>");
    let profile = match output.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let _guard = scratch::lock("build.lock");
    let built = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--quiet", "--package", "sluice", "--bin", program, "--profile", profile])
        .args(options)
        .arg("--target-dir")
        .arg(output.parent().expect("the profile's folder stands in target/"))
        .current_dir(scratch::workspace())
        .output()
        .expect("run cargo");
    assert!(built.status.success(), "cargo build failed:\n{}", String::from_utf8_lossy(&built.stderr));
    output.join(program)
}
