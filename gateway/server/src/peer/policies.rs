//! Whether peers have the same policies as this node: edges too, which are members of no group.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use sluice_proto::peer::v1::Status;

use super::Shared;

/// What a peer said of each subscription of this node: the hash of its policy, 0 where it has no such subscription.
#[derive(Debug, Default)]
pub(super) struct Policies(Mutex<BTreeMap<String, u32>>);

impl Shared {
    /// A peer told how it is. Warns when it has another policy than it had, and than this node.
    pub(super) fn note_policies(&self, owner: super::OwnerId, status: &Status) {
        let Some(peer) = self.peer(owner) else { return };
        let mut known = peer.policies.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, edge) in &self.edges {
            let of = status.subscriptions.iter().find(|one| one.subscription == *name);
            let own = edge.handle.policy_hash;
            // An earlier version does not say it.
            let policy = of.map_or(0, |of| if of.policy == 0 { own } else { of.policy });
            if known.insert(name.clone(), policy) == Some(policy) || policy == own {
                continue;
            }
            let (node, address) = (&peer.node, &peer.address);
            if of.is_none() {
                tracing::warn!(subscription = name, node, address, "a peer does not have this subscription");
            } else {
                tracing::warn!(
                    subscription = name,
                    node,
                    address,
                    policy = format!("{policy:08x}"),
                    own = format!("{own:08x}"),
                    "a peer has another policy for this subscription: give all nodes the same config"
                );
            }
        }
    }

    /// Peers whose policy for the subscription is not this node's.
    pub(super) fn other_policies(&self, subscription: &str) -> usize {
        let Some(own) = self.edges.get(subscription).map(|edge| edge.handle.policy_hash) else { return 0 };
        let differs = |peer: &std::sync::Arc<super::Peer>| {
            let known = peer.policies.0.lock().unwrap_or_else(PoisonError::into_inner);
            known.get(subscription).is_some_and(|policy| *policy != own)
        };
        self.up().into_iter().filter(differs).count()
    }
}
