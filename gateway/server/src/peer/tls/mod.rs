//! TLS between nodes: each shows a certificate and asks for one, whichever side it is. Who is a peer is said by `identities`, not
//! by an address: nodes are found by IP addresses that change, and a CA may have signed for others than nodes.
//!
//! Contract: only TLS 1.3, nothing resumed, so every connection is verified by the files as they are. Files are looked at all the
//! time: what was replaced is taken for new connections, and what is no good is said and not taken. Connections that are up stay.

mod files;
mod identity;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use self::files::Files;
pub(crate) use self::files::Mistake;
pub(crate) use self::identity::{Identity, WrongIdentity};
use crate::config::PeersTlsConfig;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What both sides of a connection are made with.
#[derive(Debug)]
struct Sides {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

/// What the files have come to.
#[derive(Debug, Default)]
pub(crate) struct Reloads {
    /// New files that were taken.
    pub(crate) taken: AtomicU64,
    /// New files that were not.
    pub(crate) refused: AtomicU64,
    /// The files that are there are not those in use.
    pub(crate) stale: AtomicBool,
}

/// This node's certificate, and what it asks of others.
#[derive(Debug)]
pub(crate) struct Tls {
    current: watch::Receiver<Arc<Sides>>,
    /// Sent to a server that is dialed. It is for people who look at the wire: nobody chooses by it.
    name: Option<ServerName<'static>>,
    reloads: Arc<Reloads>,
}

/// Reads and checks the files, as they are now.
pub(crate) fn check(config: &PeersTlsConfig) -> Result<(), Mistake> {
    let files = Files::read(config)?;
    files.sides(config).map(drop)
}

impl Tls {
    /// Reads the files, and looks at them until `close`.
    pub(super) fn start(config: &PeersTlsConfig, close: CancellationToken) -> Result<Self, Mistake> {
        let files = Files::read(config)?;
        let (sides, note) = files.sides(config)?;
        say(note);
        let (sender, current) = watch::channel(Arc::new(sides));
        let reloads = Arc::new(Reloads::default());
        let name = config.identities.iter().find_map(|identity| match Identity::parse(identity) {
            Ok(Identity::Name(name)) => Some(name),
            _ => None,
        });
        tokio::spawn(look(config.clone(), files, sender, reloads.clone(), close));
        Ok(Self { current, name, reloads })
    }

    pub(super) fn server(&self) -> Arc<ServerConfig> {
        self.current.borrow().server.clone()
    }

    pub(super) fn client(&self) -> Arc<ClientConfig> {
        self.current.borrow().client.clone()
    }

    /// What to call a server at this host.
    pub(super) fn name_for(&self, host: &str) -> ServerName<'static> {
        let of_host = || ServerName::try_from(host.to_owned()).ok();
        self.name.clone().or_else(of_host).unwrap_or_else(|| {
            // A host that is neither a name nor an address.
            ServerName::try_from("peer.invalid").expect("it is a name")
        })
    }

    pub(super) fn reloads(&self) -> &Reloads {
        &self.reloads
    }
}

/// Takes new files as they come.
async fn look(
    config: PeersTlsConfig,
    mut used: Files,
    current: watch::Sender<Arc<Sides>>,
    reloads: Arc<Reloads>,
    close: CancellationToken,
) {
    let mut timer = interval(LOOK_EVERY);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // What was said last of files that are no good: once is enough.
    let mut complaint: Option<String> = None;
    loop {
        tokio::select! {
            () = close.cancelled() => return,
            _ = timer.tick() => {}
        }
        let from = config.clone();
        let Ok(read) = tokio::task::spawn_blocking(move || Files::read(&from)).await else { return };
        let taken = read.and_then(|files| {
            if files == used {
                return Ok(None);
            }
            files.sides(&config).map(|sides| Some((files, sides)))
        });
        match taken {
            Ok(None) => complaint = None,
            Ok(Some((files, (sides, note)))) => {
                complaint = None;
                used = files;
                current.send_replace(Arc::new(sides));
                reloads.taken.fetch_add(1, Ordering::Relaxed);
                tracing::info!(cert = config.cert, "new files of peers.tls are taken for new connections");
                say(note);
            }
            Err(mistake) => {
                let text = mistake.to_string();
                if complaint.as_ref() != Some(&text) {
                    reloads.refused.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(
                        error = text,
                        "new files of peers.tls are not taken: those before them stay in use"
                    );
                    complaint = Some(text);
                }
            }
        }
        reloads.stale.store(complaint.is_some(), Ordering::Relaxed);
    }
}

fn say(note: Option<String>) {
    if let Some(why) = note {
        tracing::warn!(
            why,
            "this node's own certificate is not what it accepts of others: nodes like it will refuse it"
        );
    }
}
