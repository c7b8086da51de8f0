//! Connections between nodes that do not come about, and why: for the log, once, and for the metric, always.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustls::{AlertDescription, CertificateError, InvalidMessage};
use tokio::time::Instant;

use super::tls::WrongIdentity;

/// A refusal of the same peer for the same reason is logged again after this.
const LOG_EVERY: Duration = Duration::from_secs(60);
/// Refusals that are remembered as logged. Beyond these a peer is not logged: it is one of many.
const LOGGED_MAX: usize = 1_024;

/// Who began the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Side {
    /// The other one.
    Accepted,
    /// This node.
    Dialed,
}

/// Why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Reason {
    /// The other side speaks without TLS.
    Plain,
    /// The other side speaks TLS, and this node does not.
    Tls,
    /// It shows no certificate.
    NoCertificate,
    /// No CA of ours signed its certificate.
    Issuer,
    /// Its certificate has none of the names.
    Identity,
    /// Its certificate's time is over, or has not come.
    Expired,
    /// Its certificate may not be used like this.
    Usage,
    /// The other side refuses this node's certificate.
    ByPeer,
    /// It said nothing in time.
    Silent,
    /// Anything else of the handshake.
    Handshake,
    /// It has waited, and gave its place to one that came later: more are at their handshake than may be at once.
    Busy,
}

/// A connection that does not come about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: Reason,
    /// In words.
    pub(crate) why: String,
}

/// All of a node.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    counts: Mutex<BTreeMap<(Side, Reason), u64>>,
    logged: Mutex<HashMap<(Side, Reason, String), Instant>>,
}

// === impl Side ===

impl Side {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Dialed => "dialed",
        }
    }
}

// === impl Reason ===

impl Reason {
    /// As in the metric.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Tls => "tls",
            Self::NoCertificate => "no_certificate",
            Self::Issuer => "issuer",
            Self::Identity => "identity",
            Self::Expired => "expired",
            Self::Usage => "usage",
            Self::ByPeer => "refused_by_peer",
            Self::Silent => "silent",
            Self::Handshake => "handshake",
            Self::Busy => "busy",
        }
    }
}

// === impl Refusal ===

impl Refusal {
    pub(crate) fn new(reason: Reason, why: impl Into<String>) -> Self {
        Self { reason, why: why.into() }
    }

    /// The other side speaks without TLS.
    pub(super) fn plain() -> Self {
        Self::new(Reason::Plain, "it speaks without TLS and this node has [peers.tls]: give every node the same")
    }

    /// The other side speaks TLS.
    pub(super) fn tls() -> Self {
        Self::new(Reason::Tls, "it speaks TLS and this node has no [peers.tls]: give every node the same")
    }

    /// What TLS said; `None`: it was something else that failed.
    pub(super) fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().map(Self::of_tls)
    }

    /// The same.
    pub(super) fn of_tls(error: &rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => Self::plain(),
            rustls::Error::NoCertificatesPresented => Self::new(Reason::NoCertificate, "it shows no certificate"),
            rustls::Error::InvalidCertificate(of) => Self::of_certificate(of),
            rustls::Error::AlertReceived(alert) => Self::new(Reason::ByPeer, said(*alert)),
            other => Self::new(Reason::Handshake, other.to_string()),
        }
    }

    fn of_certificate(error: &CertificateError) -> Self {
        match error {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                Self::new(Reason::Issuer, "its certificate is signed by none of peers.tls.ca")
            }
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => Self::new(Reason::Expired, error.to_string()),
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => Self::new(
                Reason::Usage,
                "its certificate is not for this use: a node's must be for server and client authentication",
            ),
            CertificateError::Other(other) if other.0.is::<WrongIdentity>() => {
                Self::new(Reason::Identity, other.0.to_string())
            }
            other => Self::new(Reason::Handshake, other.to_string()),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for Refusal {}

/// What the other side made of this node's certificate.
fn said(alert: AlertDescription) -> String {
    let why = match alert {
        AlertDescription::UnknownCA => "signed by none of its peers.tls.ca",
        AlertDescription::CertificateRequired => "none was shown",
        AlertDescription::CertificateExpired => "its time is over or has not come",
        // What a verifier of identities says.
        AlertDescription::CertificateUnknown => "it has none of its peers.tls.identities",
        AlertDescription::BadCertificate | AlertDescription::UnsupportedCertificate => "it cannot be used like this",
        other => return format!("the peer ended the handshake: {other:?}"),
    };
    format!("the peer refuses this node's certificate: {why}; its log says more")
}

// === impl Refusals ===

impl Refusals {
    /// Counts it, and logs it unless it was not long ago.
    pub(crate) fn note(&self, side: Side, peer: &str, refusal: &Refusal) {
        let Refusal { reason, why } = refusal;
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner).entry((side, *reason)).or_default() += 1;
        if self.is_news(Instant::now(), side, *reason, peer) {
            let (side, reason) = (side.as_str(), reason.as_str());
            tracing::warn!(peer, side, reason, why, "no connection with a peer");
        }
    }

    fn is_news(&self, now: Instant, side: Side, reason: Reason, peer: &str) -> bool {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        logged.retain(|_, at| now < *at + LOG_EVERY);
        let known = (side, reason, peer.to_owned());
        if logged.contains_key(&known) || logged.len() >= LOGGED_MAX {
            return false;
        }
        logged.insert(known, now);
        true
    }

    /// A connection of that side came about: what fails next with that peer is news.
    pub(crate) fn forget(&self, side: Side, peer: &str) {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        logged.retain(|(of, _, name), _| *of != side || name != peer);
    }

    /// How many there were.
    pub(crate) fn counts(&self) -> Vec<(Side, Reason, u64)> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.iter().map(|((side, reason), count)| (*side, *reason, *count)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_counted_always_and_logged_once_a_minute_for_each_peer_and_reason() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        (0..3).for_each(|_| refusals.note(Side::Dialed, "a:1", &Refusal::plain()));
        assert_eq!(refusals.counts(), [(Side::Dialed, Reason::Plain, 3)]);
        assert!(!refusals.is_news(now, Side::Dialed, Reason::Plain, "a:1"));
        assert!(refusals.is_news(now, Side::Accepted, Reason::Plain, "a:1"));
        assert!(refusals.is_news(now, Side::Dialed, Reason::Plain, "b:1"));
        let later = Instant::now() + LOG_EVERY;
        assert!(refusals.is_news(later, Side::Dialed, Reason::Plain, "a:1"));
        refusals.forget(Side::Dialed, "a:1");
        assert!(refusals.is_news(later, Side::Dialed, Reason::Plain, "a:1"), "it was up meanwhile");
    }

    #[test]
    fn many_peers_that_are_refused_do_not_fill_the_memory() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        let news = (0..2 * LOGGED_MAX).filter(|n| refusals.is_news(now, Side::Accepted, Reason::Tls, &n.to_string()));
        assert_eq!(news.count(), LOGGED_MAX);
    }
}
