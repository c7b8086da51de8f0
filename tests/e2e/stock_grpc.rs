//! A client with generated stubs and nothing of ours: Python with grpcio from PyPI.

use std::path::{Path, PathBuf};
use std::process::Command;

use sluice_tests::process::run;
use sluice_tests::{broker, python, scratch, unique};

use crate::{committed_to_the_end, gateway};

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/python")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_program_with_generated_stubs_consumes_and_acks() {
    let kafka = broker();
    let topic = kafka.topic("python", 2);
    kafka.fill(&topic, 2, 300, 32);
    let group = unique("python");
    let gateway = gateway(&group, &topic, &[]);
    let python = python::environment("python", &sources().join("requirements.txt")).join("python");
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
