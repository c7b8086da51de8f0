//! The cheap side of an edge, and what is said to it and by it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use sluice_core::Settlements;
use sluice_proto::peer::v1::SubscriptionStatus;
use sluice_proto::v1;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::error::Error;
use crate::peer::OwnerId;
use crate::peer::queue::Conn;
use crate::peer::wire::FromOwner;
use crate::session::Profile;
use crate::subscription::Handle;

/// What a peer link tells an edge.
#[derive(Debug)]
pub(crate) enum FromPeer {
    /// A connection is up.
    Up { owner: OwnerId, address: Arc<str>, since: Instant, number: usize, conn: Conn },
    /// A connection is over, with the sessions on it.
    Down { owner: OwnerId, number: usize },
    /// The peer is gone.
    Gone(OwnerId),
    /// What it has of this subscription, and whether it shuts down.
    Status { owner: OwnerId, status: SubscriptionStatus, draining: bool },
    /// About a session.
    Session { session: u64, said: FromOwner },
}

/// What others ask of the edge.
#[derive(Debug)]
pub(super) enum Ask {
    /// Who settles these, and by which of their numbers.
    Route {
        token: String,
        settlements: Settlements,
        reply: oneshot::Sender<Routed>,
    },
    View(oneshot::Sender<Vec<ClientView>>),
    /// Drain for this long, then end.
    Shutdown(Duration),
}

/// Settlements of a unary call, by owner; those of no owner last.
pub(crate) type Routed = (BTreeMap<OwnerId, Settlements>, Settlements);

/// A client whose stream landed here.
#[derive(Debug, Clone)]
pub(crate) struct ClientView {
    pub(crate) token: Arc<str>,
    pub(crate) consumer_id: Option<String>,
    pub(crate) profile: Profile,
    pub(crate) last_seen: SystemTime,
    pub(crate) window: sluice_core::Window,
    pub(crate) held: u64,
    pub(crate) draining: bool,
}

/// What the node tells its peers of the clients here, and what it counts.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) streams: AtomicU64,
    pub(crate) idle_room: AtomicU64,
    /// Records that clients here were dealt by this node.
    pub(crate) delivered_local: AtomicU64,
    /// And by others.
    pub(crate) delivered_relayed: AtomicU64,
    pub(crate) rejected: Rejected,
}

/// Rejections of settlements about which no owner was asked, or none answered.
#[derive(Debug, Default)]
pub(crate) struct Rejected {
    pub(crate) not_held: AtomicU64,
    pub(crate) stale_epoch: AtomicU64,
    pub(crate) invalid: AtomicU64,
}

/// The cheap side of an edge.
#[derive(Debug, Clone)]
pub(crate) struct EdgeHandle {
    pub(crate) handle: Arc<Handle>,
    pub(crate) peers: mpsc::UnboundedSender<FromPeer>,
    pub(crate) counts: Arc<Counts>,
    pub(super) asks: mpsc::UnboundedSender<Ask>,
    pub(super) ended: watch::Receiver<bool>,
}

// === impl Rejected ===

impl Rejected {
    /// One more.
    pub(crate) fn count(&self, reason: v1::RejectReason) {
        let of = match reason {
            v1::RejectReason::NotHeld => &self.not_held,
            v1::RejectReason::StaleEpoch => &self.stale_epoch,
            v1::RejectReason::Invalid | v1::RejectReason::Unspecified => &self.invalid,
        };
        of.fetch_add(1, Ordering::Relaxed);
    }
}

// === impl EdgeHandle ===

impl EdgeHandle {
    /// Who settles what of a unary call.
    pub(crate) async fn route(&self, token: &str, settlements: Settlements) -> Result<Routed, Error> {
        let (reply, answer) = oneshot::channel();
        let _ = self.asks.send(Ask::Route { token: token.to_owned(), settlements, reply });
        answer.await.map_err(|_| Error::Stopped)
    }

    /// The clients whose streams landed here.
    pub(crate) async fn view(&self) -> Result<Vec<ClientView>, Error> {
        let (reply, answer) = oneshot::channel();
        let _ = self.asks.send(Ask::View(reply));
        answer.await.map_err(|_| Error::Stopped)
    }

    /// Drains for at most this long and waits for the end.
    pub(crate) async fn shutdown(&self, deadline: Duration) {
        let _ = self.asks.send(Ask::Shutdown(deadline));
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }
}
