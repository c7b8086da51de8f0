//! Certificates for nodes, made where they are needed.

use std::fs;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::scratch;

/// Who signs.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// The three files of a node, which it looks at while it runs.
#[derive(Debug, Clone)]
pub struct PeerFiles {
    folder: PathBuf,
}

impl Authority {
    /// A CA of its own.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        let pem = pem("CERTIFICATE", certificate.der());
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Its certificate.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A certificate for this DNS name, and its key.
    #[must_use]
    pub fn sign(&self, name: &str) -> (String, String) {
        let params = CertificateParams::new(vec![name.to_owned()]).expect("a DNS name");
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        (pem("CERTIFICATE", certificate.der()), pem("PRIVATE KEY", key.serialized_der()))
    }
}

impl PeerFiles {
    /// Of a node whose certificate is for this name, which trusts its own signer.
    #[must_use]
    pub fn new(authority: &Authority, name: &str) -> Self {
        let files = Self { folder: scratch::folder("certificates") };
        files.write_ca(&[authority]);
        files.write_certificate(authority, name);
        files
    }

    /// From now on these sign.
    pub fn write_ca(&self, authorities: &[&Authority]) {
        let pems: String = authorities.iter().map(|authority| authority.pem()).collect();
        self.write("ca.pem", &pems);
    }

    /// From now on it has a new certificate.
    pub fn write_certificate(&self, authority: &Authority, name: &str) {
        let (certificate, key) = authority.sign(name);
        self.write("cert.pem", &certificate);
        self.write("key.pem", &key);
    }

    /// One of `cert.pem`, `key.pem`, `ca.pem`; replaced at once, as those who rotate files do.
    pub fn write(&self, file: &str, text: &str) {
        let path = self.folder.join(file);
        let new = path.with_extension("new");
        fs::write(&new, text).expect("write a file of certificates");
        fs::rename(new, path).expect("put it in place");
    }

    /// The file's path.
    #[must_use]
    pub fn path(&self, file: &str) -> String {
        self.folder.join(file).display().to_string()
    }

    /// Lines for `[peers]`, for a node that takes those with this name for peers.
    #[must_use]
    pub fn lines(&self, identity: &str) -> [String; 4] {
        let file = |key: &str| format!("tls.{key} = {:?}", self.folder.join(format!("{key}.pem")));
        [file("cert"), file("key"), file("ca"), format!("tls.identities = [{identity:?}]")]
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
