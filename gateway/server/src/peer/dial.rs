//! Finding peers, and keeping connections to them: addresses that stand in the config or that a DNS name has.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::edge::FromPeer;
use super::found::Unconnected;
use super::link::{Link, backoff, dial};
use super::{Peer, Shared};

/// The longest pause before a peer that is away is tried again, unless names are resolved less often.
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// Dials all peers there are, until the node ends.
pub(super) async fn run(shared: Arc<Shared>, close: CancellationToken) {
    let mut dialed: BTreeMap<String, CancellationToken> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    let mut timer = interval(shared.config.resolve_interval);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut unconnected = Unconnected::default();
    loop {
        tokio::select! {
            () = close.cancelled() => return,
            _ = timer.tick() => unconnected.look(&shared),
            () = shared.look.notified(), if shared.config.from_group => {}
        }
        let addresses = addresses(&shared).await;
        // An address that has left the name is dialed no more once it is away.
        dialed.retain(|address, end| {
            let stays = addresses.contains(address) || shared.is_up(address);
            if !stays {
                end.cancel();
            }
            stays
        });
        for address in addresses {
            if !dialed.contains_key(&address) {
                let end = close.child_token();
                dialed.insert(address.clone(), end.clone());
                tasks.spawn(peer(address, shared.clone(), end));
            }
        }
        while tasks.try_join_next().is_some() {}
    }
}

async fn addresses(shared: &Shared) -> BTreeSet<String> {
    let mut addresses: BTreeSet<String> = shared.config.addresses.iter().cloned().chain(shared.found()).collect();
    if shared.config.dns.is_empty() {
        return addresses;
    }
    match timeout(shared.config.resolve_interval, lookup_host(&shared.config.dns)).await {
        Ok(Ok(found)) => {
            let found: BTreeSet<String> = found.map(|address| address.to_string()).collect();
            *shared.resolved.lock().unwrap_or_else(PoisonError::into_inner) = found;
        }
        Ok(Err(error)) => tracing::warn!(name = shared.config.dns, %error, "peers.dns cannot be resolved"),
        Err(_) => tracing::warn!(name = shared.config.dns, "peers.dns is not resolved in time"),
    }
    // A name server that is away makes no peer disappear.
    addresses.extend(shared.resolved.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned());
    addresses
}

/// Keeps one peer connected. The first connection says who it is and what it owns; the others are there while it is.
async fn peer(address: String, shared: Arc<Shared>, end: CancellationToken) {
    let longest = BACKOFF_MAX.min(shared.config.resolve_interval);
    let mut tries = 0;
    loop {
        let dialed = tokio::select! {
            () = end.cancelled() => return,
            dialed = dial(&address, true, &shared) => dialed,
        };
        let pause = match dialed {
            Ok(link) if link.hello.instance == shared.instance => {
                // This node itself. Another may have the address one day.
                shared.config.resolve_interval
            }
            Ok(link) => match shared.register(&address, &link) {
                None => shared.config.resolve_interval,
                Some(peer) => {
                    tries = 0;
                    serve(link, &peer, &shared, &end).await;
                    backoff(tries, longest)
                }
            },
            Err(error) => {
                tracing::debug!(address, error, "peer is away");
                tries += 1;
                backoff(tries, longest)
            }
        };
        tokio::select! {
            () = end.cancelled() => return,
            () = sleep(pause) => {}
        }
    }
}

/// From the first connection's beginning to its end.
async fn serve(link: Link, peer: &Arc<Peer>, shared: &Arc<Shared>, end: &CancellationToken) {
    tracing::info!(address = peer.address, node = peer.node, "peer is up");
    shared.tell(|| up(peer, 0, &link));
    let rest = end.child_token();
    let mut others = JoinSet::new();
    for number in 1..usize::try_from(shared.config.connections).unwrap_or(1) {
        others.spawn(connection(number, peer.clone(), shared.clone(), rest.clone()));
    }
    let conn = link.conn.clone();
    let why = tokio::select! {
        () = end.cancelled() => "this node shuts down".to_owned(),
        why = link.run(peer.owner, shared) => why,
    };
    conn.over.cancel();
    rest.cancel();
    while others.join_next().await.is_some() {}
    shared.forget(peer);
    shared.tell(|| FromPeer::Gone(peer.owner));
    tracing::info!(address = peer.address, node = peer.node, why, "peer is gone");
}

/// Keeps a further connection of a peer that is up.
async fn connection(number: usize, peer: Arc<Peer>, shared: Arc<Shared>, end: CancellationToken) {
    let mut tries = 0;
    while !end.is_cancelled() {
        let dialed = tokio::select! {
            () = end.cancelled() => return,
            dialed = dial(&peer.address, false, &shared) => dialed,
        };
        match dialed {
            Ok(link) if link.hello.instance == peer.instance => {
                tries = 0;
                shared.tell(|| up(&peer, number, &link));
                let conn = link.conn.clone();
                let why = tokio::select! {
                    () = end.cancelled() => "the peer is gone".to_owned(),
                    why = link.run(peer.owner, &shared) => why,
                };
                conn.over.cancel();
                shared.tell(|| FromPeer::Down { owner: peer.owner, number });
                tracing::debug!(address = peer.address, number, why, "connection to a peer is over");
            }
            // Another process has the address now: the first connection will notice.
            Ok(_) | Err(_) => tries += 1,
        }
        tokio::select! {
            () = end.cancelled() => return,
            () = sleep(backoff(tries, BACKOFF_MAX)) => {}
        }
    }
}

fn up(peer: &Peer, number: usize, link: &Link) -> FromPeer {
    let (address, since) = (peer.rank.clone(), peer.since);
    FromPeer::Up { owner: peer.owner, address, since, number, conn: link.conn.clone() }
}
