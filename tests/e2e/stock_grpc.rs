//! A client with generated stubs and nothing of ours: Python with grpcio from PyPI.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use sluice_tests::{broker, scratch, unique};

use crate::{committed_to_the_end, gateway};

const MEND: &str = "apt-get install -y python3 python3-venv";

fn run(what: &str, command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{what}: {error}; install it with:\n    {MEND}"));
    assert!(
        output.status.success(),
        "{what}:\n{}{}\nif Python itself is missing: {MEND}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/python")
}

/// An environment with grpcio, made once.
fn python() -> PathBuf {
    let _guard = scratch::lock("python.lock");
    let home = scratch::cache().join("python");
    let python = home.join("bin/python");
    let installed = home.join("installed");
    let wanted = std::fs::read(sources().join("requirements.txt")).expect("read requirements.txt");
    if std::fs::read(&installed).ok().as_ref() != Some(&wanted) {
        run("make a Python environment", Command::new("python3").args(["-m", "venv"]).arg(&home));
        let requirements = sources().join("requirements.txt");
        run("pip install", Command::new(&python).args(["-m", "pip", "install", "--quiet", "-r"]).arg(requirements));
        std::fs::write(installed, wanted).expect("note what was installed");
    }
    python
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_program_with_generated_stubs_consumes_and_acks() {
    let kafka = broker();
    let topic = kafka.topic("python", 2);
    kafka.fill(&topic, 2, 300, 32);
    let group = unique("python");
    let gateway = gateway(&group, &topic, &[]);
    let python = python();
    let stubs = scratch::folder("stubs");
    let proto = scratch::workspace().join("proto");
    let mut protoc = Command::new(&python);
    protoc.args(["-m", "grpc_tools.protoc", "-I"]).arg(&proto);
    protoc.arg(format!("--python_out={}", stubs.display())).arg(format!("--grpc_python_out={}", stubs.display()));
    run(
        "generate stubs",
        protoc.args(["sluice/v1/consumer.proto", "sluice/v1/subscription.proto"]).current_dir(&proto),
    );
    let mut worker = Command::new(&python);
    worker.arg(sources().join("worker.py")).args([gateway.address(), &group, "300"]).env("PYTHONPATH", &stubs);
    let output = tokio::task::spawn_blocking(move || run("the Python worker", &mut worker)).await.expect("it ran");
    let acked = String::from_utf8_lossy(&output.stdout).lines().count();
    assert_eq!(acked, 300, "a line for each record");
    committed_to_the_end(kafka, &group, &topic).await;
}
