use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::string::Ia5String;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::peer::refusals::{Reason, Refusal};

const NODE: &str = "sluice.prod.svc";

struct Ca(Issuer<'static, KeyPair>, String);

/// A folder with a node's three files. Goes with its value.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
}

fn ca() -> Ca {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let text = pem("CERTIFICATE", params.self_signed(&key).unwrap().der());
    Ca(Issuer::new(params, key), text)
}

impl Ca {
    fn sign(&self, change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
        let mut params = CertificateParams::new(vec![NODE.to_owned()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (pem("CERTIFICATE", certificate.der()), pem("PRIVATE KEY", key.serialized_der()))
    }
}

fn folder(ca: &Ca, (cert, key): &(String, String)) -> (Folder, PeersTlsConfig) {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let name = format!("sluice-tls-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
    let path = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&path).unwrap();
    let write = |file: &str, text: &str| {
        std::fs::write(path.join(file), text).unwrap();
        path.join(file).display().to_string()
    };
    let config = PeersTlsConfig {
        cert: write("cert.pem", cert),
        key: write("key.pem", key),
        ca: write("ca.pem", &ca.1),
        identities: vec![NODE.to_owned()],
    };
    (Folder(path), config)
}

fn sides(config: &PeersTlsConfig) -> Sides {
    Files::read(config).unwrap().sides(config).unwrap().0
}

/// A dialer and a listener meet; what each of them makes of it.
async fn meet(dialer: &PeersTlsConfig, listener: &PeersTlsConfig) -> [Result<(), Option<Refusal>>; 2] {
    let (near, far) = tokio::io::duplex(64 << 10);
    let (dialer, listener) = (sides(dialer).client, sides(listener).server);
    let dial = async move {
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let mut stream = TlsConnector::from(dialer).connect(name, near).await?;
        // A client that is refused learns it when it reads.
        stream.read_u8().await.map(drop)
    };
    let listen = async move {
        let mut stream = TlsAcceptor::from(listener).accept(far).await?;
        stream.write_u8(1).await?;
        stream.flush().await
    };
    let (dialed, accepted) = tokio::join!(dial, listen);
    [dialed, accepted].map(|result| result.map_err(|error| Refusal::of(&error)))
}

fn reason(result: &Result<(), Option<Refusal>>) -> Option<Reason> {
    result.as_ref().err().map(|refusal| refusal.as_ref().expect("TLS knows why").reason)
}

#[tokio::test]
async fn nodes_of_one_ca_and_identity_meet() {
    let ca = ca();
    let (_one, one) = folder(&ca, &ca.sign(|_| ()));
    let (_other, other) = folder(&ca, &ca.sign(|_| ()));
    assert_eq!(meet(&one, &other).await, [Ok(()), Ok(())]);
}

#[tokio::test]
async fn a_uri_is_an_identity_letter_by_letter() {
    let ca = ca();
    let uri = "spiffe://prod/ns/sluice/sa/node";
    let signed = ca.sign(|params| {
        params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(uri).unwrap())];
    });
    let (_one, one) = folder(&ca, &signed);
    let with =
        |identity: &str| PeersTlsConfig { identities: vec!["other".to_owned(), identity.to_owned()], ..one.clone() };
    assert_eq!(meet(&with(uri), &with(uri)).await, [Ok(()), Ok(())]);
    let near = with("spiffe://prod/ns/sluice/sa/node2");
    assert_eq!(reason(&meet(&with(uri), &near).await[1]), Some(Reason::Identity));
    assert_eq!(reason(&meet(&near, &with(uri)).await[0]), Some(Reason::Identity));
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused_whichever_side_shows_it() {
    let ca = ca();
    let (_good, good) = folder(&ca, &ca.sign(|_| ()));
    let wrong =
        ca.sign(|params| params.subject_alt_names = vec![SanType::DnsName("other.prod.svc".try_into().unwrap())]);
    let (_wrong, wrong) = folder(&ca, &wrong);
    let [dialed, accepted] = meet(&wrong, &good).await;
    assert_eq!([reason(&dialed), reason(&accepted)], [Some(Reason::ByPeer), Some(Reason::Identity)]);
    let why = accepted.unwrap_err().unwrap().why;
    assert!(why.contains("other.prod.svc") && why.contains(NODE), "{why}");
    assert!(dialed.unwrap_err().unwrap().why.contains("identities"));
    let [dialed, accepted] = meet(&good, &wrong).await;
    assert_eq!([reason(&dialed), reason(&accepted)], [Some(Reason::Identity), Some(Reason::ByPeer)]);
}

#[tokio::test]
async fn a_certificate_of_another_ca_is_refused_whichever_side_shows_it() {
    let (ca, another) = (ca(), ca());
    let (_good, good) = folder(&ca, &ca.sign(|_| ()));
    // It trusts the good one, so that its own certificate is what fails.
    let (_wrong, wrong) = folder(&ca, &another.sign(|_| ()));
    let [dialed, accepted] = meet(&wrong, &good).await;
    assert_eq!([reason(&dialed), reason(&accepted)], [Some(Reason::ByPeer), Some(Reason::Issuer)]);
    let [dialed, accepted] = meet(&good, &wrong).await;
    assert_eq!([reason(&dialed), reason(&accepted)], [Some(Reason::Issuer), Some(Reason::ByPeer)]);
}

#[tokio::test]
async fn a_certificate_that_is_over_or_for_one_side_only_is_refused() {
    let ca = ca();
    let (_good, good) = folder(&ca, &ca.sign(|_| ()));
    let over = ca.sign(|params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
    let (_over, over) = folder(&ca, &over);
    assert_eq!(reason(&meet(&over, &good).await[1]), Some(Reason::Expired));
    assert_eq!(reason(&meet(&good, &over).await[0]), Some(Reason::Expired));
    let server = ca.sign(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    let (_server, server) = folder(&ca, &server);
    assert_eq!(meet(&good, &server).await, [Ok(()), Ok(())]);
    assert_eq!(reason(&meet(&server, &good).await[1]), Some(Reason::Usage));
}

#[test]
fn a_certificate_that_the_node_itself_would_refuse_is_said() {
    let (ca, another) = (ca(), ca());
    let note = |signed: &(String, String)| {
        let (_folder, config) = folder(&ca, signed);
        Files::read(&config).unwrap().sides(&config).unwrap().1
    };
    assert_eq!(note(&ca.sign(|_| ())), None);
    assert!(note(&another.sign(|_| ())).is_some());
    let other = ca.sign(|params| params.subject_alt_names = Vec::new());
    assert!(note(&other).unwrap().contains("no name"));
    let one_side = ca.sign(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]);
    assert!(note(&one_side).is_some());
}

#[test]
fn files_that_are_no_good_name_the_key_to_change() {
    let ca = ca();
    let signed = ca.sign(|_| ());
    let (_folder, good) = folder(&ca, &signed);
    let said = |config: &PeersTlsConfig| check(config).expect_err("a mistake").to_string();
    let mut all = Vec::new();
    let missing = "/no/such/file.pem".to_owned();
    all.push(said(&PeersTlsConfig { cert: missing.clone(), ..good.clone() }));
    all.push(said(&PeersTlsConfig { key: missing.clone(), ..good.clone() }));
    all.push(said(&PeersTlsConfig { ca: missing, ..good.clone() }));
    all.push(said(&PeersTlsConfig { cert: good.key.clone(), ..good.clone() }));
    all.push(said(&PeersTlsConfig { key: good.cert.clone(), ..good.clone() }));
    all.push(said(&PeersTlsConfig { ca: good.key.clone(), ..good.clone() }));
    let (_other, other) = folder(&ca, &ca.sign(|_| ()));
    all.push(said(&PeersTlsConfig { key: other.key, ..good.clone() }));
    all.push(said(&PeersTlsConfig { identities: vec!["*.prod.svc".to_owned()], ..good.clone() }));
    all.push(said(&PeersTlsConfig { identities: vec!["not a name".to_owned()], ..good.clone() }));
    let garbage = (pem("CERTIFICATE", b"no certificate"), signed.1);
    let (_garbage, garbage) = folder(&ca, &garbage);
    all.push(said(&garbage));
    all.push(said(&PeersTlsConfig { ca: garbage.cert, ..good }));
    let temp = std::env::temp_dir().display().to_string();
    let folders = regex::Regex::new(r"/sluice-tls-\d+-\d+").unwrap();
    insta::assert_snapshot!(folders.replace_all(&all.join("\n").replace(&temp, ""), ""), @r#"
    peers.tls.cert: /no/such/file.pem cannot be read: No such file or directory (os error 2)
    peers.tls.key: /no/such/file.pem cannot be read: No such file or directory (os error 2)
    peers.tls.ca: /no/such/file.pem cannot be read: No such file or directory (os error 2)
    peers.tls.cert: /key.pem has no certificate in PEM: it must have at least one
    peers.tls.key: /cert.pem has no private key in PEM without a passphrase: write that one
    peers.tls.ca: /key.pem has no certificate in PEM: it must have at least one
    peers.tls.key: /key.pem is not the key of the first certificate in /cert.pem: write its own
    peers.tls.identities: `*.prod.svc` is a pattern: name those whom you mean, one by one
    peers.tls.identities: `not a name` is neither a DNS name, as in "sluice.prod.svc", nor a URI, as in "spiffe://prod/sluice"
    peers.tls.cert: /cert.pem with /key.pem: invalid peer certificate: BadEncoding
    peers.tls.ca: /cert.pem has a certificate that is no CA's: invalid peer certificate: BadEncoding
    "#);
}

#[tokio::test]
async fn new_files_are_taken_and_those_that_are_no_good_are_not() {
    let (old, new) = (ca(), ca());
    let (_folder, config) = folder(&old, &old.sign(|_| ()));
    let close = CancellationToken::new();
    let _end = close.clone().drop_guard();
    let tls = Tls::start(&config, close).unwrap();
    let first = tls.server();
    let until = async |what: &str, holds: &dyn Fn() -> bool| {
        for _ in 0..3_000 {
            if holds() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("not in time: {what}");
    };
    let reloads = tls.reloads();
    std::fs::write(&config.key, "half a ke").unwrap();
    until("the bad key is seen", &|| reloads.stale.load(Ordering::Relaxed)).await;
    assert_eq!((reloads.taken.load(Ordering::Relaxed), reloads.refused.load(Ordering::Relaxed)), (0, 1));
    assert!(Arc::ptr_eq(&first, &tls.server()), "the old ones stay in use");
    let (cert, key) = new.sign(|_| ());
    std::fs::write(&config.cert, cert).unwrap();
    std::fs::write(&config.key, key).unwrap();
    std::fs::write(&config.ca, &new.1).unwrap();
    until("all three are taken", &|| {
        let tries = Files::read(&config).is_ok_and(|files| files.sides(&config).is_ok());
        tries && !reloads.stale.load(Ordering::Relaxed) && !Arc::ptr_eq(&first, &tls.server())
    })
    .await;
    assert!(reloads.taken.load(Ordering::Relaxed) >= 1);
}
