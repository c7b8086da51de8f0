//! The three files, and what is made of them.

use std::fmt;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::Sides;
use super::identity::{Identity, Verifier};
use crate::config::PeersTlsConfig;
use crate::peer::refusals::Refusal;

/// gRPC is HTTP/2.
const ALPN: &[u8] = b"h2";

/// A key of `[peers.tls]` that is wrong, and what would be right.
#[derive(Debug)]
pub(crate) struct Mistake {
    pub(crate) key: &'static str,
    pub(crate) message: String,
}

/// What stands in the files. Never shown: one of them is a key.
#[derive(PartialEq, Eq)]
pub(super) struct Files {
    cert: Vec<u8>,
    key: Vec<u8>,
    ca: Vec<u8>,
}

// === impl Mistake ===

impl Mistake {
    fn new(key: &'static str, message: String) -> Self {
        Self { key, message }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "peers.tls.{}: {}", self.key, self.message)
    }
}

impl std::error::Error for Mistake {}

// === impl Files ===

impl Files {
    pub(super) fn read(config: &PeersTlsConfig) -> Result<Self, Mistake> {
        let read = |key, path: &str| {
            std::fs::read(path).map_err(|error| Mistake::new(key, format!("{path} cannot be read: {error}")))
        };
        Ok(Self { cert: read("cert", &config.cert)?, key: read("key", &config.key)?, ca: read("ca", &config.ca)? })
    }

    /// Both sides; and why nodes with the same configuration would refuse this one, if they would.
    pub(super) fn sides(&self, config: &PeersTlsConfig) -> Result<(Sides, Option<String>), Mistake> {
        let chain = certificates("cert", &config.cert, &self.cert)?;
        let key = || {
            PrivateKeyDer::from_pem_slice(&self.key).map_err(|_| {
                let path = &config.key;
                Mistake::new("key", format!("{path} has no private key in PEM without a passphrase: write that one"))
            })
        };
        let mut roots = RootCertStore::empty();
        for certificate in certificates("ca", &config.ca, &self.ca)? {
            roots.add(certificate).map_err(|error| {
                Mistake::new("ca", format!("{} has a certificate that is no CA's: {error}", config.ca))
            })?;
        }
        let identities = config.identities.iter().map(|identity| Identity::parse(identity));
        let identities = identities.collect::<Result<Vec<_>, _>>().map_err(|why| Mistake::new("identities", why))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = Arc::new(
            Verifier::new(roots, identities, &provider)
                .map_err(|error| Mistake::new("ca", format!("{}: {error}", config.ca)))?,
        );
        let own = verifier.verify(&chain[0], &chain[1..], UnixTime::now());

        let with = |error: rustls::Error| match error {
            rustls::Error::InconsistentKeys(_) => {
                let (key, cert) = (&config.key, &config.cert);
                Mistake::new("key", format!("{key} is not the key of the first certificate in {cert}: write its own"))
            }
            other => Mistake::new("cert", format!("{} with {}: {other}", config.cert, config.key)),
        };
        let versions = &[&rustls::version::TLS13];
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)
            .map_err(with)?
            .with_client_cert_verifier(verifier.clone())
            .with_single_cert(chain.clone(), key()?)
            .map_err(with)?;
        // What is resumed is not verified again.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        server.alpn_protocols = vec![ALPN.to_vec()];
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(with)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_auth_cert(chain, key()?)
            .map_err(with)?;
        client.resumption = Resumption::disabled();
        client.alpn_protocols = vec![ALPN.to_vec()];
        let sides = Sides { server: Arc::new(server), client: Arc::new(client) };
        Ok((sides, own.err().map(|error| Refusal::of_tls(&error).why)))
    }
}

/// All of a file: at least one.
fn certificates(key: &'static str, path: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Mistake> {
    let all = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let all = all.map_err(|error| Mistake::new(key, format!("{path} is no PEM: {error}")))?;
    if all.is_empty() {
        return Err(Mistake::new(key, format!("{path} has no certificate in PEM: it must have at least one")));
    }
    Ok(all)
}
