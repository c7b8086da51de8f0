//! Whom this node takes for a peer: the same rule for whoever dials it and for whomever it dials.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore, SignatureScheme,
};
use webpki::EndEntityCert;

/// A name that a peer's certificate may have among its subject alternative names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Identity {
    /// A DNS name or an IP address. A wildcard in the certificate counts.
    Name(ServerName<'static>),
    /// A URI, letter by letter: `spiffe://…`.
    Uri(String),
}

/// The CA signed it, and it is nobody's whom this node knows.
#[derive(Debug)]
pub(crate) struct WrongIdentity {
    has: Vec<String>,
    accepted: Vec<String>,
}

/// Verifies certificates of both sides.
#[derive(Debug)]
pub(super) struct Verifier {
    clients: Arc<dyn ClientCertVerifier>,
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
    identities: Vec<Identity>,
}

// === impl Identity ===

impl Identity {
    /// What stands in the config.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text.contains("://") {
            return Ok(Self::Uri(text.to_owned()));
        }
        if text.contains('*') {
            return Err(format!("`{text}` is a pattern: name those whom you mean, one by one"));
        }
        ServerName::try_from(text.to_owned()).map(Self::Name).map_err(|_| {
            format!(
                "`{text}` is neither a DNS name, as in \"sluice.prod.svc\", nor a URI, as in \"spiffe://prod/sluice\""
            )
        })
    }

    fn is_of(&self, certificate: &EndEntityCert<'_>) -> bool {
        match self {
            Self::Name(name) => certificate.verify_is_valid_for_subject_name(name).is_ok(),
            Self::Uri(uri) => certificate.valid_uri_names().any(|has| has == uri),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(&name.to_str()),
            Self::Uri(uri) => f.write_str(uri),
        }
    }
}

// === impl WrongIdentity ===

impl fmt::Display for WrongIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let has = if self.has.is_empty() { "no name".to_owned() } else { self.has.join(", ") };
        write!(f, "its certificate is for {has}, and peers.tls.identities has {}", self.accepted.join(", "))
    }
}

impl std::error::Error for WrongIdentity {}

// === impl Verifier ===

impl Verifier {
    pub(super) fn new(
        roots: RootCertStore,
        identities: Vec<Identity>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, VerifierBuilderError> {
        let roots = Arc::new(roots);
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build()?;
        Ok(Self { clients, roots, algorithms: provider.signature_verification_algorithms, identities })
    }

    /// As a server's and as a client's, which every node is.
    pub(super) fn verify(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        self.clients.verify_client_cert(certificate, intermediates, now)?;
        self.verify_server(certificate, intermediates, now)?;
        self.verify_identity(certificate)
    }

    fn verify_server(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let parsed = rustls::server::ParsedCertificate::try_from(certificate)?;
        let algorithms = self.algorithms.all;
        rustls::client::verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)
    }

    fn verify_identity(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let parsed = EndEntityCert::try_from(certificate).map_err(|_| CertificateError::BadEncoding)?;
        if self.identities.iter().any(|identity| identity.is_of(&parsed)) {
            return Ok(());
        }
        let has = parsed.valid_dns_names().chain(parsed.valid_uri_names()).map(str::to_owned).collect();
        let accepted = self.identities.iter().map(ToString::to_string).collect();
        let why = OtherError(Arc::new(WrongIdentity { has, accepted }));
        Err(CertificateError::Other(why).into())
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.clients.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.clients.verify_client_cert(certificate, intermediates, now)?;
        self.verify_identity(certificate)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for Verifier {
    /// The name that was dialed does not matter: see the module above.
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify_server(certificate, intermediates, now)?;
        self.verify_identity(certificate)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
