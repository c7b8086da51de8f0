//! What cannot be run here, for want of Docker and Kubernetes, is read: syntax, schemas, the gateway's config in it, and that
//! names, ports and times agree.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use sluice_tests::balancer::{Kind, NODES};
use sluice_tests::process::run;
use sluice_tests::{Authority, PeerFiles, gateway, python, scratch};

fn deploy(file: &str) -> PathBuf {
    scratch::workspace().join("deploy").join(file)
}

fn read(file: &str) -> String {
    let path = deploy(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
}

/// The documents of a YAML file.
fn documents(file: &str, kind: &str) -> Vec<Value> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/python");
    let programs = python::environment("manifests", &sources.join("manifests-requirements.txt"));
    let mut command = Command::new(programs.join("python"));
    command.arg(sources.join("manifests.py")).arg(deploy(file)).arg(kind);
    serde_json::from_slice(&run(&format!("read {file}"), &mut command).stdout).expect("it prints JSON")
}

/// The config that is in effect, as `sluice check-config --print` says.
fn config(path: &Path, overrides: &[(&str, &str)]) -> String {
    let mut command = Command::new(gateway::executable());
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SLUICE_")) {
        command.env_remove(name);
    }
    command.args(["check-config", "--print"]).arg(path).envs(overrides.iter().copied());
    String::from_utf8(run(&format!("check {}", path.display()), &mut command).stdout).expect("a config is text")
}

/// The value of a key of a config, without quotes.
fn value<'a>(config: &'a str, table: &str, key: &str) -> &'a str {
    let (_, rest) = config.split_once(&format!("[{table}]\n")).unwrap_or_else(|| panic!("no [{table}] in {config}"));
    let table = rest.split("\n[").next().unwrap_or(rest);
    let line = table.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "));
    line.unwrap_or_else(|| panic!("no {key} in {table}")).trim_matches('"')
}

fn seconds(value: &str) -> Duration {
    Duration::from_secs(value.trim_end_matches('s').parse().unwrap_or_else(|_| panic!("{value} is no seconds")))
}

fn port_of(config: &str, table: &str, key: &str) -> u64 {
    value(config, table, key).rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port")
}

/// Longer than both, by what closing takes.
fn outlasts(config: &str, grace: Duration) {
    let drain = seconds(value(config, "node", "drain_delay")) + seconds(value(config, "node", "drain_timeout"));
    assert!(grace >= drain + Duration::from_secs(5), "a grace of {grace:?} for a drain of {drain:?}");
}

/// Those of a kind.
fn of_kind<'a>(all: &'a [Value], kind: &str) -> Vec<&'a Value> {
    all.iter().filter(|document| document["kind"] == kind).collect()
}

#[test]
fn the_configs_in_deploy_are_taken_by_the_gateway() {
    for file in ["sluice.toml", "cluster.toml"] {
        config(&deploy(file), &[]);
    }
}

#[test]
fn the_certificates_that_are_commented_out_in_deploy_are_taken_by_the_gateway() {
    let text = read("cluster.toml");
    let files = PeerFiles::new(&Authority::new("nodes"), "sluice-peers");
    let lines = text.lines().filter(|line| !line.starts_with("plain = true"));
    let keys = ["# [peers.tls]", "# cert =", "# key =", "# ca =", "# identities ="];
    let lines = lines.map(|line| if keys.iter().any(|key| line.starts_with(key)) { &line[2..] } else { line });
    let text: String = lines.flat_map(|line| [line, "\n"]).collect();
    let text = [("tls.crt", "cert.pem"), ("tls.key", "key.pem"), ("ca.crt", "ca.pem")]
        .iter()
        .fold(text, |text, (there, here)| text.replace(&format!("/etc/sluice-tls/{there}"), &files.path(here)));
    let path = scratch::folder("manifests").join("sluice.toml");
    std::fs::write(&path, text).expect("write the config");
    let config = config(&path, &[]);
    assert_eq!(value(&config, "peers.tls", "identities"), "[\"sluice-peers\"]");
    let manifest = read("kubernetes/sluice.yaml");
    for agreed in ["mountPath: /etc/sluice-tls", "dnsNames: [sluice-peers]", "secretName: sluice-peers-tls"] {
        assert!(manifest.contains(agreed), "{agreed}");
    }
}

#[test]
fn the_manifests_of_kubernetes_agree_with_the_config_in_them() {
    let all = documents("kubernetes/sluice.yaml", "kubernetes");
    let map = of_kind(&all, "ConfigMap")[0];
    let text = map["data"]["sluice.toml"].as_str().expect("a config in the map");
    let whole = read("cluster.toml");
    let (_, body) = whole.split_once("\n\n").expect("a comment first");
    assert_eq!(text.trim(), body.trim(), "the config in the map is that of cluster.toml");
    let path = scratch::folder("manifests").join("sluice.toml");
    std::fs::write(&path, text).expect("write the config");

    let set = of_kind(&all, "StatefulSet")[0];
    let (spec, pod) = (&set["spec"], &set["spec"]["template"]["spec"]);
    let container = &pod["containers"][0];
    let overrides: Vec<(&str, &str)> = container["env"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|one| (one["name"].as_str().expect("a name"), one["value"].as_str().unwrap_or("sluice-0")))
        .map(|(name, value)| (name, if value.contains("$(") { "sluice-0.sluice-peers:7072" } else { value }))
        .collect();
    let config = config(&path, &overrides);
    assert_eq!(value(&config, "node", "name"), "sluice-0");
    // The grace period counts from the hook's begin on.
    let hook = container["lifecycle"]["preStop"]["exec"]["command"].as_array().expect("a hook that executes");
    let [program, waits] = &hook[..] else { panic!("`sleep SECONDS`, not {hook:?}") };
    assert_eq!(program, "sleep");
    let waits = seconds(waits.as_str().expect("arguments are text"));
    assert!(waits >= Duration::from_secs(3), "endpoints are gone everywhere within a few seconds, not in {waits:?}");
    let grace = Duration::from_secs(pod["terminationGracePeriodSeconds"].as_u64().expect("a number"));
    outlasts(&config, grace.saturating_sub(waits));

    // Ports.
    let ports: Vec<(&str, u64)> = container["ports"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|port| (port["name"].as_str().expect("a name"), port["containerPort"].as_u64().expect("a number")))
        .collect();
    let (grpc, admin) = (port_of(&config, "node", "listen"), port_of(&config, "node", "admin_listen"));
    let peers = port_of(&config, "peers", "listen");
    assert_eq!(ports, [("grpc", grpc), ("admin", admin), ("peers", peers)]);
    for probe in ["readinessProbe", "livenessProbe"] {
        assert_eq!(container[probe]["httpGet"]["port"], "admin");
    }
    assert_eq!(container["readinessProbe"]["httpGet"]["path"], "/readyz");
    assert_eq!(container["livenessProbe"]["httpGet"]["path"], "/healthz");
    // The readiness must have failed before the node drains.
    let probe = &container["readinessProbe"];
    let noticed =
        probe["periodSeconds"].as_u64().expect("a number") * probe["failureThreshold"].as_u64().expect("a number");
    assert!(Duration::from_secs(noticed + 1) < seconds(value(&config, "node", "drain_delay")));

    // Services, and whom they and the others select.
    let labels = &spec["template"]["metadata"]["labels"];
    assert_eq!(&spec["selector"]["matchLabels"], labels);
    for service in of_kind(&all, "Service") {
        assert_eq!(&service["spec"]["selector"], labels);
        for port in service["spec"]["ports"].as_array().expect("a list") {
            let (_, number) = ports.iter().find(|(name, _)| port["targetPort"] == *name).expect("the container has it");
            assert_eq!(port["port"].as_u64(), Some(*number));
        }
    }
    let headless: Vec<_> =
        of_kind(&all, "Service").into_iter().filter(|one| one["spec"]["clusterIP"] == "None").collect();
    let [headless] = headless[..] else { panic!("one headless service") };
    let name = headless["metadata"]["name"].as_str().expect("a name");
    assert_eq!(spec["serviceName"], name);
    assert_eq!(value(&config, "peers", "dns"), format!("{name}:{peers}"));
    assert_eq!(headless["spec"]["publishNotReadyAddresses"], true);
    let budget = of_kind(&all, "PodDisruptionBudget")[0];
    assert_eq!(
        (&budget["spec"]["selector"]["matchLabels"], budget["spec"]["maxUnavailable"].as_u64()),
        (labels, Some(1))
    );
    assert_eq!(&of_kind(&all, "NetworkPolicy")[0]["spec"]["podSelector"]["matchLabels"], labels);

    // What is mounted is what is read.
    let mount = &container["volumeMounts"][0];
    assert_eq!((&mount["name"], &pod["volumes"][0]["name"]), (&pod["volumes"][0]["name"], &mount["name"]));
    assert_eq!(pod["volumes"][0]["configMap"]["name"], map["metadata"]["name"]);
    let file = container["args"][2].as_str().expect("a path");
    assert_eq!(Some(file), mount["mountPath"].as_str().map(|folder| format!("{folder}/sluice.toml")).as_deref());
    let replicas = usize::try_from(spec["replicas"].as_u64().expect("a number")).expect("few");
    assert_eq!(replicas, NODES.len());
}

#[test]
fn the_compose_file_agrees_with_the_files_that_it_mounts() {
    let all = documents("compose.yaml", "compose");
    let services = all[0]["services"].as_object().expect("services");
    let config = config(&deploy("cluster.toml"), &[]);
    let nodes: BTreeSet<&str> =
        services.keys().map(String::as_str).filter(|name| name.starts_with("sluice-")).collect();
    assert_eq!(nodes, NODES.into());
    for name in nodes {
        let node = &services[name];
        assert_eq!(node["hostname"], name);
        outlasts(&config, seconds(node["stop_grace_period"].as_str().expect("a time")));
        let alias = node["networks"]["default"]["aliases"][0].as_str().expect("an alias");
        assert_eq!(value(&config, "peers", "dns"), format!("{alias}:{}", port_of(&config, "peers", "listen")));
        assert_eq!(node["image"], "sluice");
    }
    // Engines of today refuse the second one that exports an image of the same name at the same time.
    let built: Vec<&Value> =
        services.values().map(|service| &service["build"]).filter(|build| !build.is_null()).collect();
    let [build] = built[..] else { panic!("one service builds the image, not {}", built.len()) };
    assert!(deploy(build["dockerfile"].as_str().expect("a file").trim_start_matches("deploy/")).is_file());
    for service in services.values() {
        for volume in service["volumes"].as_array().into_iter().flatten() {
            let file = volume.as_str().and_then(|volume| volume.split(':').next()).expect("a path");
            assert!(deploy(file).is_file(), "{file} is mounted");
        }
        for needed in service["depends_on"].as_object().into_iter().flat_map(serde_json::Map::keys) {
            assert!(services.contains_key(needed), "{needed} is needed");
        }
    }
    assert_eq!(value(&config, "kafka", "brokers"), "kafka:9092");
    let listen = port_of(&config, "node", "listen");
    assert_eq!(services["balancer"]["ports"][0], format!("{listen}:{listen}"));
}

#[test]
fn balancers_lead_to_the_nodes_of_the_compose_file_at_the_ports_of_its_config() {
    let config = config(&deploy("cluster.toml"), &[]);
    let (listen, admin) = (port_of(&config, "node", "listen"), port_of(&config, "node", "admin_listen"));
    for kind in Kind::ALL {
        let text = read(kind.file());
        for node in NODES {
            let server = match kind {
                Kind::Haproxy => format!("server {node} {node}:{listen} check check-proto h1 port {admin}\n"),
                Kind::Nginx => format!("server {node}:{listen} "),
                Kind::Envoy => format!("{{ address: {node}, port_value: {listen} }}"),
            };
            assert_eq!(text.matches(&server).count(), 1, "`{server}` in {}", kind.file());
        }
    }
    // What asks nodes once a second and wants two bad answers knows before the drain begins.
    assert!(seconds(value(&config, "node", "drain_delay")) > Duration::from_secs(3));
    let haproxy = read(Kind::Haproxy.file());
    assert!(haproxy.contains("inter 1s fall 2 "), "{haproxy}");
}
