//! Gets the broker's jars by Maven and an archive of its classes, once, into the cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::kafka::broker::Node;
use crate::scratch;

const VERSION: &str = "4.4.0";
const MEND: &str = "apt-get install -y openjdk-17-jre-headless maven";

/// Where a broker's classes are.
#[derive(Debug, Clone)]
pub(crate) struct Installed {
    /// All jars, in a fixed order: an archive of classes is good for one class path only.
    pub(crate) class_path: String,
    /// Classes as the JVM wants them in memory: halves the start.
    pub(crate) archive: Option<PathBuf>,
}

/// The jars and the archive; fetched and made when they are not there. Binaries that start side by side wait.
pub(crate) fn installed() -> Installed {
    let home = scratch::cache().join(format!("apache-kafka-{VERSION}"));
    let _guard = scratch::lock("install.lock");
    require("java", "-version");
    let libs = home.join("libs");
    if !libs.exists() {
        fetch(&home, &libs);
    }
    let class_path = class_path(&libs);
    let archive = home.join("classes.jsa");
    if !archive.exists() {
        make_archive(&class_path, &archive);
    }
    Installed { class_path, archive: Some(archive) }
}

/// A tool that is not there is an error with the command that installs it.
fn require(tool: &str, probe: &str) {
    let found = Command::new(tool).arg(probe).stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(
        found.is_ok_and(|status| status.success()),
        "the tests start an Apache Kafka and need `{tool}`. Install it with:\n    {MEND}\nor name a broker of yours: SLUICE_TEST_KAFKA=host:port"
    );
}

fn fetch(home: &Path, libs: &Path) {
    require("mvn", "--version");
    fs::create_dir_all(home).expect("create the cache's folder");
    let partial = home.join("libs.partial");
    let _ = fs::remove_dir_all(&partial);
    let pom = Path::new(env!("CARGO_MANIFEST_DIR")).join("harness/kafka/pom.xml");
    let output = Command::new("mvn")
        .args(["--batch-mode", "--quiet", "dependency:copy-dependencies", "-DincludeScope=runtime", "-f"])
        .arg(pom)
        .arg(format!("-DoutputDirectory={}", partial.display()))
        .current_dir(home)
        .output()
        .expect("mvn was found");
    assert!(
        output.status.success(),
        "mvn could not fetch Apache Kafka {VERSION}:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    fs::rename(&partial, libs).expect("move the jars into their place");
}

fn class_path(libs: &Path) -> String {
    let mut jars: Vec<String> = fs::read_dir(libs)
        .expect("read the folder of jars")
        .flatten()
        .map(|jar| jar.path().display().to_string())
        .filter(|path| path.ends_with(".jar"))
        .collect();
    jars.sort();
    jars.join(":")
}

/// Runs a broker once; the JVM writes what it loaded when it ends. Without an archive the tests run too, only slower.
fn make_archive(class_path: &str, archive: &Path) {
    let partial = archive.with_extension("partial");
    let plain = Installed { class_path: class_path.to_owned(), archive: None };
    let mut node = Node::format(plain, &scratch::folder("archive"));
    node.jvm_flags.push(format!("-XX:ArchiveClassesAtExit={}", partial.display()));
    node.start();
    node.stop();
    if partial.exists() {
        fs::rename(&partial, archive).expect("move the archive into its place");
    }
}
