//! Peers that nobody wrote down: members of the Kafka groups say where they are found, and so does who dials this node.
//!
//! Contract: an address of these is dialed only with `peers.from_group`, and only where it can do no harm: with TLS, since what
//! answers must show who it is, or on the machine itself. Who may join a group could otherwise lead clients' sessions anywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use super::Shared;

/// Addresses that others said of themselves, at most: a group has fewer members.
const ADDRESSES_MAX: usize = 1_024;
/// A member of a group that is no peer for so many looks is warned of.
const LOOKS: u32 = 3;

/// Addresses of nodes that dial this one, and how many connections say so.
#[derive(Debug, Default)]
pub(super) struct Heard(Mutex<BTreeMap<Arc<str>, usize>>);

/// Takes the address back with the connection.
#[derive(Debug)]
pub(super) struct HeardFrom {
    shared: Arc<Shared>,
    address: Arc<str>,
}

/// Members of groups that are no peers, and for how many looks.
#[derive(Debug, Default)]
pub(super) struct Unconnected(BTreeMap<Arc<str>, u32>);

// === impl HeardFrom ===

impl HeardFrom {
    /// Whoever is at this address has dialed this node.
    pub(super) fn new(shared: Arc<Shared>, address: &str) -> Option<Self> {
        let mut heard = shared.heard.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = !heard.contains_key(address);
        if !shared.config.from_group || is_new && heard.len() >= ADDRESSES_MAX {
            return None;
        }
        let address: Arc<str> = address.into();
        *heard.entry(address.clone()).or_default() += 1;
        drop(heard);
        if is_new {
            shared.look.notify_one();
        }
        Some(Self { shared, address })
    }
}

impl Drop for HeardFrom {
    fn drop(&mut self) {
        let mut heard = self.shared.heard.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = heard.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                heard.remove(&self.address);
            }
        }
    }
}

// === impl Shared ===

impl Shared {
    /// Where members of the groups say that they are found, other nodes' alone.
    fn members(&self) -> BTreeSet<Arc<str>> {
        let groups = self.edges.values().map(|edge| edge.handle.group());
        let all = groups.flat_map(|group| group.peers().cloned().collect::<Vec<_>>());
        all.filter(|address| *address != self.address).collect()
    }

    /// Addresses to dial beside those of the config.
    pub(super) fn found(&self) -> BTreeSet<String> {
        if !self.config.from_group {
            return BTreeSet::new();
        }
        let heard = self.heard.0.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect::<Vec<_>>();
        let known: BTreeSet<Arc<str>> = self.up().iter().map(|peer| peer.rank.clone()).collect();
        let all = self.members().into_iter().chain(heard);
        let all = all.filter(|address| *address != self.address && !known.contains(address));
        let all = all.filter(|address| may_be_dialed(address, self.tls.is_some()));
        all.take(ADDRESSES_MAX).map(|address| address.to_string()).collect()
    }

    /// Members of a group that are nodes, and that this node is not connected with.
    pub(super) fn unconnected(&self, subscription: &str) -> usize {
        let known: BTreeSet<Arc<str>> = self.up().iter().map(|peer| peer.rank.clone()).collect();
        let Some(edge) = self.edges.get(subscription) else { return 0 };
        let group = edge.handle.group();
        group.peers().filter(|address| **address != self.address && !known.contains(*address)).count()
    }
}

fn may_be_dialed(address: &str, has_tls: bool) -> bool {
    let host_and_port = crate::config::is_host_and_port(address);
    let is_here = || address.parse().is_ok_and(|address: SocketAddr| address.ip().is_loopback());
    host_and_port && (has_tls || is_here())
}

// === impl Unconnected ===

impl Unconnected {
    /// To be called now and then.
    pub(super) fn look(&mut self, shared: &Shared) {
        let known: BTreeSet<Arc<str>> = shared.up().iter().map(|peer| peer.rank.clone()).collect();
        let unconnected = shared.members().into_iter().filter(|address| !known.contains(address));
        let looks = |address: Arc<str>| {
            let looks = self.0.get(&address).copied().unwrap_or(0).saturating_add(1);
            (address, looks)
        };
        self.0 = unconnected.map(looks).collect();
        for (address, _) in self.0.iter().filter(|(_, looks)| **looks == LOOKS) {
            tracing::warn!(
                %address,
                "a node is a member of a group and no peer of this one: clients here get nothing of what it owns; is it among \
                 peers.addresses or peers.dns, and can it be reached?"
            );
        }
    }
}

/// Wakes whoever looks for peers when a group has changed.
pub(super) async fn follow_groups(shared: Arc<Shared>, news: Arc<Notify>) {
    loop {
        news.notified().await;
        shared.look.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_say_is_dialed_only_with_tls_or_on_this_machine() {
        for address in ["10.0.0.3:7072", "sluice-0.sluice-peers:7072", "localhost:7072"] {
            assert!(may_be_dialed(address, true) && !may_be_dialed(address, false), "{address}");
        }
        for address in ["127.0.0.1:7072", "[::1]:7072"] {
            assert!(may_be_dialed(address, true) && may_be_dialed(address, false), "{address}");
        }
        for nonsense in ["", "10.0.0.3", ":7072", "a b:7072", "a/b:7072", "a:70720"] {
            assert!(!may_be_dialed(nonsense, true), "{nonsense:?}");
        }
    }
}
