//! Nodes that know each other by certificates.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use sluice_tests::wire::Wire;
use sluice_tests::{
    Authority, Cluster, Crew, Gateway, GatewayConfig, History, PeerFiles, SOON, broker, eventually, scratch, unique,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::{committed_to_the_end, owns, reaches, subscription};

const NODE: &str = "sluice.test";
const REFUSED: &str = "sluice_peer_connections_refused_total";

/// With the files, and a subscription of one topic; group and subscription have this name.
fn config(files: Option<&PeerFiles>, name: &str, topic: &str) -> GatewayConfig {
    let config = GatewayConfig::new(broker()).subscription(subscription(name, &[topic], &[]));
    let lines = files.map(|files| files.lines(NODE)).into_iter().flatten();
    lines.fold(config, |config, line| config.peers(&line))
}

/// Connects as a client of TLS alone, with a certificate or none.
async fn handshake(address: &str, ca: &str, own: Option<(&str, &str)>) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).expect("a certificate")).expect("a CA");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
    let builder = builder.with_root_certificates(roots);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).expect("a certificate");
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
            builder.with_client_auth_cert(vec![certificate], key).expect("they belong together")
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(address).await?;
    let mut stream =
        TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(NODE).expect("a name"), stream).await?;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await?;
    // Whether the other side takes it shows when it speaks.
    let mut first = [0; 9];
    stream.read_exact(&mut first).await?;
    Ok(stream)
}

async fn refuses(node: &Gateway, labels: &str) {
    eventually(&format!("refused: {labels}"), SOON, async || match node.metric(REFUSED, labels) {
        Some(count) if count > 0.0 => Ok(()),
        _ => {
            Err(node.page("/metrics").1.lines().filter(|line| line.starts_with(REFUSED)).collect::<Vec<_>>().join("\n"))
        }
    })
    .await;
}

fn log(node: &Gateway) -> String {
    std::fs::read_to_string(node.log()).expect("read the log")
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_relay_over_mutual_tls() {
    let kafka = broker();
    let topic = kafka.topic("tls", 3);
    let group = unique("tls");
    let authority = Authority::new("nodes");
    let configs: Vec<GatewayConfig> =
        (0..3).map(|_| config(Some(&PeerFiles::new(&authority, NODE)), &group, &topic)).collect();
    let cluster = Cluster::of(&configs).await;
    cluster.knows(2).await;
    let history = History::default();
    let mut wire = Wire::subscribe(&cluster.nodes[0], &group, 10).await.recorded(&history);
    cluster.spread(&group, 3, 3).await;
    let produced = kafka.fill(&topic, 3, 60, 32);
    while history.acked_of(&produced) < produced.len() {
        let lease = wire.record().await;
        wire.ack(&[lease]);
    }
    let relayed = cluster.nodes[0].metric("sluice_edge_records_delivered_total", "other_nodes");
    assert_eq!(relayed, Some(40.0), "two of three partitions are owned by others");
    for node in &cluster.nodes {
        assert_eq!(node.metric(REFUSED, ""), None);
    }
    // What goes over the ways is TLS: a peer's port answers nothing else.
    let mut plain = TcpStream::connect(cluster.way(0, 1).address()).await.expect("connect");
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("write");
    let mut said = Vec::new();
    plain.read_to_end(&mut said).await.expect("an answer");
    assert_eq!(said, [0x15, 3, 3, 0, 2, 2, 70], "an alert and no more");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_no_peer_gets_no_session_and_hears_nothing() {
    let kafka = broker();
    let (topic, own) = (kafka.topic("known", 1), kafka.topic("unknown", 1));
    let group = unique("known");
    let (authority, another) = (Authority::new("nodes"), Authority::new("others"));
    let of_another_ca = PeerFiles::new(&another, NODE);
    of_another_ca.write_ca(&[&authority, &another]);
    let of_another_name = PeerFiles::new(&authority, "other.test");
    // A subscription of the same name, in a group of its own: nothing comes to it but by a peer.
    let stranger = |files: &PeerFiles| {
        let elsewhere = subscription(&group, &[&own], &[&format!("group = {:?}", unique("unknown"))]);
        let lines = files.lines(NODE);
        lines.iter().fold(GatewayConfig::new(kafka).subscription(elsewhere), |config, line| config.peers(line))
    };
    let configs = [
        config(Some(&PeerFiles::new(&authority, NODE)), &group, &topic),
        stranger(&of_another_ca),
        stranger(&of_another_name),
    ];
    let cluster = Cluster::of(&configs).await;
    let [good, strangers @ ..] = &cluster.nodes[..] else { panic!("three nodes") };
    let mut wires = Vec::new();
    for stranger in strangers {
        wires.push(Wire::subscribe(stranger, &group, 10).await);
    }
    let mut wire = Wire::subscribe(good, &group, 10).await;
    owns(good, &group, 1).await;
    let produced = kafka.fill(&topic, 1, 10, 32);
    // Both ways: each of them dials all others.
    for side in ["accepted", "dialed"] {
        for reason in ["issuer", "identity"] {
            refuses(good, &format!("side=\"{side}\",reason=\"{reason}\"")).await;
        }
    }
    for stranger in strangers {
        refuses(stranger, "reason=\"refused_by_peer\"").await;
        assert_eq!(stranger.metric("sluice_peers", ""), Some(0.0));
    }
    assert_eq!(good.metric("sluice_peers", ""), Some(0.0));
    let said = log(good);
    assert!(said.contains("signed by none of peers.tls.ca"), "{said}");
    assert!(said.contains("its certificate is for other.test, and peers.tls.identities has sluice.test"), "{said}");
    // The one client of the good node gets all, though the others had room first.
    let mut got = Vec::new();
    while got.len() < produced.len() {
        got.push(wire.record().await);
    }
    wire.ack(&got);
    committed_to_the_end(kafka, &group, &topic).await;
    for wire in &mut wires {
        wire.barrier().await;
        assert!(wire.inbox.is_empty(), "a stranger's client was dealt {:?}", wire.inbox);
    }
    let known: Vec<_> = good.consumers(&group).await.into_iter().map(|one| one.node).collect();
    assert_eq!(known, ["node-0"]);

    let port = cluster.way(1, 0).address().to_string();
    let without = handshake(&port, authority.pem(), None).await.expect_err("without a certificate");
    refuses(good, "side=\"accepted\",reason=\"no_certificate\"").await;
    assert!(without.to_string().contains("CertificateRequired"), "{without}");
    let (certificate, key) = authority.sign(NODE);
    handshake(&port, authority.pem(), Some((&certificate, &key))).await.expect("with one");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_node_and_one_with_tls_refuse_each_other_and_serve_their_own_clients() {
    let kafka = broker();
    let topic = kafka.topic("mixed", 2);
    let group = unique("mixed");
    let files = PeerFiles::new(&Authority::new("nodes"), NODE);
    let configs = [config(Some(&files), &group, &topic), config(None, &group, &topic)];
    let cluster = Cluster::of(&configs).await;
    let (with_tls, plain) = (&cluster.nodes[0], &cluster.nodes[1]);
    for side in ["accepted", "dialed"] {
        refuses(with_tls, &format!("side=\"{side}\",reason=\"plain\"")).await;
        refuses(plain, &format!("side=\"{side}\",reason=\"tls\"")).await;
    }
    assert!(log(with_tls).contains("it speaks without TLS and this node has [peers.tls]"));
    assert!(log(plain).contains("it speaks TLS and this node has no [peers.tls]"));
    // To Kafka they are two members of one group; each serves what it owns.
    let mut one = Wire::subscribe(with_tls, &group, 10).await;
    let mut other = Wire::subscribe(plain, &group, 10).await;
    owns(with_tls, &group, 1).await;
    owns(plain, &group, 1).await;
    kafka.fill(&topic, 2, 20, 32);
    for wire in [&mut one, &mut other] {
        let leases = wire.records(10).await;
        wire.ack(&leases);
    }
    committed_to_the_end(kafka, &group, &topic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_replaced_while_records_flow() {
    let kafka = broker();
    let topic = kafka.topic("rotated", 3);
    let group = unique("rotated");
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let files: Vec<PeerFiles> = (0..3).map(|_| PeerFiles::new(&old, NODE)).collect();
    let configs: Vec<GatewayConfig> = files.iter().map(|files| config(Some(files), &group, &topic)).collect();
    let cluster = Cluster::of(&configs).await;
    cluster.knows(2).await;
    let history = History::default();
    let crew = Crew::by(&cluster.address(), &group, &history).window(20).start(6);
    cluster.spread(&group, 3, 3).await;
    let mut produced = Vec::new();
    let mut taken = 0.0;
    let reloaded = async |times: f64| {
        for node in &cluster.nodes {
            eventually("the files are taken", SOON, async || {
                match node.metric("sluice_peer_tls_reloads_total", "taken") {
                    Some(count) if count >= times => Ok(()),
                    other => Err(other),
                }
            })
            .await;
        }
    };
    for step in 0..4 {
        produced.extend(kafka.fill(&topic, 3, 600, 32));
        match step {
            0 => files.iter().for_each(|files| files.write_ca(&[&old, &new])),
            // Certificate and key do not change at once: what lies between is no good, and is not taken.
            1 => files.iter().for_each(|files| files.write_certificate(&new, NODE)),
            2 => files.iter().for_each(|files| files.write_ca(&[&new])),
            _ => {
                files[0].write("key.pem", "-----BEGIN PRIVATE KEY-----\nhalf");
                eventually("the broken key is said", SOON, async || {
                    match cluster.nodes[0].metric("sluice_peer_tls_stale", "") {
                        Some(1.0) => Ok(()),
                        other => Err(other),
                    }
                })
                .await;
                assert!(log(&cluster.nodes[0]).contains("new files of peers.tls are not taken"));
            }
        }
        if step < 3 {
            taken += 1.0;
            reloaded(taken).await;
        }
        // What is there stays; what comes next is verified by the new files.
        for (from, to) in [(0, 1), (1, 2), (2, 0), (1, 0), (2, 1), (0, 2)] {
            cluster.way(from, to).cut();
        }
        cluster.knows(2).await;
        produced.extend(kafka.fill(&topic, 3, 600, 32));
        let goal = produced.len();
        reaches("all of it is acked", goal, || history.acked_of(&produced)).await;
    }
    let port = cluster.way(1, 0).address().to_string();
    let (certificate, key) = new.sign(NODE);
    handshake(&port, new.pem(), Some((&certificate, &key))).await.expect("the new CA");
    let (certificate, key) = old.sign(NODE);
    handshake(&port, new.pem(), Some((&certificate, &key))).await.expect_err("the old one");
    crew.stop().await;
    committed_to_the_end(kafka, &group, &topic).await;
    history.check_no_loss(&produced);
    history.check_one_holder();
    history.check_commits(kafka, &group, &produced);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_files_that_are_no_good_does_not_start_and_names_the_key() {
    let files = PeerFiles::new(&Authority::new("nodes"), NODE);
    let (_, key) = Authority::new("others").sign(NODE);
    files.write("key.pem", &key);
    let path = scratch::folder("no-good").join("sluice.toml");
    let lines = files.lines(NODE).join("\n");
    let text = format!("[peers]\nlisten = \"0.0.0.0:0\"\ndns = \"sluice-peers:7072\"\n{lines}\n");
    std::fs::write(&path, text).expect("write the config");
    for arguments in [vec!["check-config"], vec!["serve", "--config"]] {
        let mut command = std::process::Command::new(sluice_tests::gateway::executable());
        let ended = command.args(arguments).arg(&path).output().expect("run sluice");
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(!ended.status.success());
        assert!(said.contains("sluice.toml:5: peers.tls.key:") && said.contains("write its own"), "{said}");
    }
}
