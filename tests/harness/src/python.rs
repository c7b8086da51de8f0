//! Programs from the Python package index, in environments of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::run;
use crate::scratch;

/// The folder of programs of an environment with what this file of requirements names, `python` among them. Made once.
#[must_use]
pub fn environment(name: &str, requirements: &Path) -> PathBuf {
    let _guard = scratch::lock("python.lock");
    let home = scratch::cache().join(name);
    let programs = home.join("bin");
    let installed = home.join("installed");
    let wanted = fs::read(requirements).unwrap_or_else(|error| panic!("read {}: {error}", requirements.display()));
    if fs::read(&installed).ok().as_ref() != Some(&wanted) {
        let make = "make a Python environment, with: apt-get install -y python3 python3-venv";
        run(make, Command::new("python3").args(["-m", "venv"]).arg(&home));
        let pip = programs.join("python");
        run("pip install", Command::new(pip).args(["-m", "pip", "install", "--quiet", "-r"]).arg(requirements));
        fs::write(installed, wanted).expect("note what was installed");
    }
    programs
}
