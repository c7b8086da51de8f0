//! Unary settlements, whichever node is asked: each goes to the owner of its epoch.

use futures_util::future::join_all;
use sluice_core::{RejectReason, Rejection, Settlements};
use sluice_proto::peer::v1::SettleRequest;
use sluice_proto::v1;

use super::edge::EdgeHandle;
use super::{Cluster, OwnerId, link, wire};
use crate::error::Error;
use crate::session::{all_not_held, encode};

impl Cluster {
    /// Settles leases of a session that may have been any node's.
    pub(crate) async fn settle(&self, token: &str, settlements: Settlements) -> Result<Vec<v1::Rejection>, Error> {
        let mut rest = settlements;
        let mut parts = Vec::new();
        for edge in self.shared.edges.values() {
            let (routed, nobody) = edge.route(token, rest).await?;
            rest = nobody;
            parts.extend(routed.into_iter().map(|(owner, part)| self.settle_at(owner, edge, token, part)));
            if rest.settlements.is_empty() {
                break;
            }
        }
        let mut rejections: Vec<v1::Rejection> = join_all(parts).await.into_iter().flatten().collect();
        // Of an epoch that lives nowhere as far as this node knows.
        let stale = all_not_held(rest).into_iter().map(stale);
        rejections.extend(stale.map(encode::rejection));
        Ok(rejections)
    }

    async fn settle_at(&self, owner: OwnerId, edge: &EdgeHandle, token: &str, part: Settlements) -> Vec<v1::Rejection> {
        if owner == OwnerId::SELF {
            let found = self.shared.sessions.get(token).map(|entry| entry.value().1);
            let Some(session) = found else { return all_not_held(part).into_iter().map(encode::rejection).collect() };
            let settled = edge.handle.settle(session, part.clone()).await;
            return settled.unwrap_or_else(|_| unanswered(part)).into_iter().map(encode::rejection).collect();
        }
        let Some(peer) = self.shared.peer(owner) else {
            return unanswered(part).into_iter().map(encode::rejection).collect();
        };
        let request = SettleRequest {
            token: token.to_owned(),
            durable: part.durable,
            seen: part.seen,
            settlements: part.settlements.iter().cloned().map(wire::settlement).collect(),
        };
        let mut client = link::client(peer.channel.clone());
        // What is durable may wait for Kafka for long, but not for a peer that is gone.
        let answer = tokio::select! {
            answer = client.settle(request) => answer.ok(),
            () = peer.over.cancelled() => None,
        };
        match answer {
            Some(answer) => answer.into_inner().rejections,
            None => unanswered(part).into_iter().map(encode::rejection).collect(),
        }
    }
}

/// The owner did not answer: what it was asked to settle may be stored or not.
fn unanswered(part: Settlements) -> Vec<Rejection> {
    all_not_held(part).into_iter().map(stale).collect()
}

fn stale(rejection: Rejection) -> Rejection {
    let reason = if rejection.reason == RejectReason::Invalid { rejection.reason } else { RejectReason::StaleEpoch };
    Rejection { reason, ..rejection }
}
