//! One view of the cluster, whichever node is asked.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use sluice_core::{BlockedOn, TopicPartition};
use sluice_proto::peer::v1::{Blocked, SeekRequest, SetPausedRequest, ViewRequest, ViewResponse};
use sluice_proto::v1;
use tokio::time::timeout;

use super::edge::EdgeHandle;
use super::{Cluster, Shared, link};
use crate::error::Error;
use crate::services::{client, consumer, partition, place, stats_of};
use crate::subscription::{Membership, SESSION_PREFIX, SessionSnapshot, Targets};

/// A peer that does not answer within this is left out of a view.
const VIEW_TIMEOUT: Duration = Duration::from_secs(3);

/// What the cluster knows of a subscription.
#[derive(Debug, Default)]
pub(crate) struct View {
    /// Of each node that answered, this one first.
    pub(crate) nodes: Vec<ViewResponse>,
}

impl Shared {
    fn edge(&self, subscription: &str) -> Result<&EdgeHandle, Error> {
        self.edges.get(subscription).ok_or_else(|| Error::SubscriptionNotFound(subscription.to_owned()))
    }

    /// What this node alone knows.
    pub(super) async fn view(&self, subscription: &str) -> Result<ViewResponse, Error> {
        let edge = self.edge(subscription)?;
        let snapshot = edge.handle.view().await?;
        let clients = edge.view().await?;
        let stats = stats_of(&snapshot);
        let blocked = snapshot.sessions.iter().filter_map(blocked).collect();
        // Clients that are gone and may come back have no stream on any node.
        let waiting = snapshot.sessions.into_iter().filter(|one| one.live.is_none());
        let waiting = waiting.map(|one| consumer(&self.node, one));
        let consumers = clients.into_iter().map(|one| client(&self.node, one)).chain(waiting).collect();
        let partitions = snapshot.partitions.into_iter().map(|one| partition(&self.node, &edge.handle, one)).collect();
        let member = matches!(edge.handle.state().membership, Membership::Joined | Membership::Draining);
        Ok(ViewResponse {
            partitions,
            consumers,
            stats: Some(stats),
            node: self.node.clone(),
            delivered_local: edge.counts.delivered_local.load(Ordering::Relaxed),
            delivered_relayed: edge.counts.delivered_relayed.load(Ordering::Relaxed),
            member,
            blocked,
            policy: edge.handle.policy_hash,
        })
    }
}

impl Cluster {
    /// What the cluster knows of a subscription. A node that does not answer is left out: this is for people.
    pub(crate) async fn view(&self, subscription: &str) -> Result<View, Error> {
        let own = self.shared.view(subscription).await?;
        let ask = |peer: std::sync::Arc<super::Peer>| async move {
            let request = ViewRequest { subscription: subscription.to_owned() };
            let mut client = link::client(peer.channel.clone());
            let answer = timeout(VIEW_TIMEOUT, client.view(request)).await;
            answer.ok()?.ok().map(tonic::Response::into_inner)
        };
        let others = join_all(self.shared.up().into_iter().map(ask)).await;
        Ok(View { nodes: std::iter::once(own).chain(others.into_iter().flatten()).collect() })
    }

    /// Stops the dealing on every node, or lets it go on. Who is not there hears it when it is back.
    pub(crate) async fn set_paused(&self, subscription: &str, paused: bool) -> Result<(), Error> {
        let handle = &self.shared.edge(subscription)?.handle;
        let pause = handle.pause_now(paused);
        handle.set_paused(pause).await?;
        let tell = |peer: std::sync::Arc<super::Peer>| async move {
            let request = SetPausedRequest { subscription: subscription.to_owned(), paused, paused_at_ms: pause.at_ms };
            let mut client = link::client(peer.channel.clone());
            if !matches!(timeout(VIEW_TIMEOUT, client.set_paused(request)).await, Ok(Ok(_))) {
                tracing::warn!(subscription, paused, node = peer.node, "a peer was not told to pause or resume");
            }
        };
        join_all(self.shared.up().into_iter().map(tell)).await;
        Ok(())
    }
}

impl Cluster {
    /// Seeks in those of the partitions that nodes own, and answers with them once Kafka has their new positions.
    pub(crate) async fn seek(&self, subscription: &str, targets: &Targets) -> Result<Vec<TopicPartition>, Error> {
        let own = self.shared.edge(subscription)?.handle.seek(targets.clone());
        let offsets: Vec<_> = targets.iter().map(|(partition, offset)| place(partition, offset.0)).collect();
        let ask = |peer: std::sync::Arc<super::Peer>| {
            let request = SeekRequest { subscription: subscription.to_owned(), offsets: offsets.clone() };
            async move {
                let mut client = link::client(peer.channel.clone());
                // It waits for Kafka, but not for a peer that is gone.
                let answer = tokio::select! {
                    answer = client.seek(request) => answer,
                    () = peer.over.cancelled() => return Vec::new(),
                };
                match answer {
                    Ok(answer) => answer.into_inner().done,
                    Err(status) => {
                        tracing::warn!(subscription, node = peer.node, %status, "a peer did not seek");
                        Vec::new()
                    }
                }
            }
        };
        let (own, others) = futures_util::future::join(own, join_all(self.shared.up().into_iter().map(ask))).await;
        let of_others = others.into_iter().flatten().map(|one| TopicPartition::new(one.topic, one.partition));
        Ok(own?.into_iter().chain(of_others).collect())
    }
}

impl View {
    pub(crate) fn nodes(&self) -> Vec<v1::Node> {
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let node = |view: &ViewResponse| v1::Node {
            node: view.node.clone(),
            member: view.member,
            partitions: count(view.partitions.len()),
            streams: count(view.consumers.len()),
            delivered_local: view.delivered_local,
            delivered_relayed: view.delivered_relayed,
            policy: format!("{:08x}", view.policy),
        };
        self.nodes.iter().map(node).collect()
    }

    pub(crate) fn partitions(&mut self) -> Vec<v1::Partition> {
        let mut all: Vec<_> = self.nodes.iter_mut().flat_map(|node| std::mem::take(&mut node.partitions)).collect();
        all.sort_by(|a, b| (&a.topic, a.partition).cmp(&(&b.topic, b.partition)));
        all
    }

    pub(crate) fn consumers(&mut self) -> Vec<v1::Consumer> {
        let all: Vec<_> = self.nodes.iter_mut().flat_map(|node| std::mem::take(&mut node.consumers)).collect();
        let (mut live, waiting): (Vec<_>, Vec<_>) = all.into_iter().partition(|one| one.connected_at.is_some());
        for note in self.nodes.iter_mut().flat_map(|node| std::mem::take(&mut node.blocked)) {
            let of = live.iter_mut().filter(|one| one.session_id_prefix == note.session_id_prefix);
            of.filter(|one| one.blocked_on != BlockedOn::Draining.as_str())
                .for_each(|one| one.blocked_on.clone_from(&note.blocked_on));
        }
        // A client that waits does so at each owner; one that is back may not be known to all of them yet.
        let mut known: BTreeSet<String> = live.iter().map(|one| one.consumer_id.clone()).collect();
        let waiting = waiting.into_iter().filter(|one| known.insert(one.consumer_id.clone()));
        let waiting: Vec<_> = waiting.collect();
        live.into_iter().chain(waiting).collect()
    }

    /// The sum over all nodes.
    pub(crate) fn stats(&mut self) -> v1::GetStatsResponse {
        let mut total = v1::Stats::default();
        let mut partitions = Vec::new();
        for stats in self.nodes.iter_mut().filter_map(|node| node.stats.take()) {
            if let Some(of) = stats.total {
                add(&mut total, &of);
            }
            partitions.extend(stats.partitions);
        }
        v1::GetStatsResponse { total: Some(total), partitions }
    }
}

/// What only an engine knows. That a part of a window is full is no news: the rest is with others.
fn blocked(session: &SessionSnapshot) -> Option<Blocked> {
    let why = session.view.blocked_on.filter(|why| *why != BlockedOn::NoWindow && session.live.is_some())?;
    let session_id_prefix = session.token.chars().take(SESSION_PREFIX).collect();
    Some(Blocked { session_id_prefix, blocked_on: why.as_str().to_owned() })
}

fn add(sum: &mut v1::Stats, of: &v1::Stats) {
    sum.received += of.received;
    sum.delivered += of.delivered;
    sum.acked += of.acked;
    sum.retried += of.retried;
    sum.expired += of.expired;
    sum.released += of.released;
    sum.dead_lettered += of.dead_lettered;
    sum.filtered += of.filtered;
    sum.failed += of.failed;
    sum.committed += of.committed;
}
