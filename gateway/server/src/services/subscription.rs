//! `sluice.v1.SubscriptionService`: what operators ask and do.

use std::sync::Arc;
use std::time::Duration;

use sluice_core::BlockedOn;
use sluice_kafka::KafkaState;
use sluice_proto::v1::subscription_service_server::SubscriptionService;
use sluice_proto::v1::{self as pb};
use tonic::{Request, Response, Status};

use crate::error::Error;
use crate::node::Shared;
use crate::peer::edge::ClientView;
use crate::services::spec_of;
use crate::session::encode::duration;
use crate::subscription::{Handle, Membership, PartitionSnapshot, SESSION_PREFIX, SessionSnapshot, Snapshot};

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct Subscriptions {
    node: Arc<Shared>,
}

impl Subscriptions {
    pub(crate) fn new(node: Arc<Shared>) -> Self {
        Self { node }
    }

    fn subscription(&self, name: &str) -> Result<pb::Subscription, Error> {
        let handle = self.node.subscription(name)?;
        let config = self.node.config.subscriptions.get(name);
        let config = config.ok_or_else(|| Error::SubscriptionNotFound(name.to_owned()))?;
        let spec = Some(spec_of(name, config));
        let state = handle.state();
        let dead_letter_error = state.dead_letter_error.unwrap_or_default();
        Ok(pb::Subscription { name: name.to_owned(), spec, paused: state.pause.paused, dead_letter_error })
    }

    async fn set_paused(&self, name: &str, paused: bool) -> Result<pb::Subscription, Error> {
        let handle = self.node.subscription(name)?;
        match &self.node.cluster {
            Some(cluster) => cluster.set_paused(name, paused).await?,
            None => handle.set_paused(handle.pause_now(paused)).await?,
        }
        Ok(pb::Subscription { paused, ..self.subscription(name)? })
    }
}

/// A partition, as an operator sees it.
pub(crate) fn partition(node: &str, handle: &Handle, snapshot: PartitionSnapshot) -> pb::Partition {
    let view = snapshot.view;
    let (holder, holder_consumer) = snapshot.holder.unwrap_or_default();
    let unreachable = match handle.state().kafka {
        KafkaState::Unreachable(_) | KafkaState::Refused(_) => true,
        KafkaState::RightsMissing(missing) => missing.group.is_some() || !missing.may_read(&view.partition.topic),
        _ => false,
    };
    let lag = lag(&view, snapshot.watermarks);
    // The fetch rests for all partitions, also for one that has nothing to fetch.
    let idle = lag == 0 && view.oldest_undone_offset.is_none();
    let waits = view.blocked_on.filter(|cause| !idle || *cause != BlockedOn::MemoryBudget);
    let blocked_on = if unreachable { Some(BlockedOn::Broker) } else { waits };
    pb::Partition {
        topic: view.partition.topic.to_string(),
        partition: view.partition.partition,
        node: node.to_owned(),
        epoch: view.epoch.0,
        log_start_offset: snapshot.watermarks.map_or(-1, |(low, _)| low),
        high_watermark: snapshot.watermarks.map_or(-1, |(_, high)| high),
        committed_offset: view.committed.map_or(-1, |offset| offset.0),
        committable_offset: view.committable.0,
        lag,
        leased: signed(view.leased),
        waiting_retry: signed(view.waiting_retry),
        done_above_frontier: signed(view.done_above_frontier),
        oldest_undone_offset: view.oldest_undone_offset,
        oldest_undone_age: view
            .oldest_undone_offset
            .map(|_| duration(Duration::from_millis(view.oldest_undone_age_ms))),
        blocked_on: blocked_on.map_or_else(String::new, |cause| cause.as_str().to_owned()),
        holder_session_id_prefix: holder.chars().take(SESSION_PREFIX).collect(),
        holder_consumer_id: holder_consumer.unwrap_or_default(),
        stuck: snapshot.stuck,
        span: signed(view.span),
        bytes_held: signed(view.bytes),
    }
}

/// A session of this node's engine, as an operator sees it.
pub(crate) fn consumer(node: &str, snapshot: SessionSnapshot) -> pb::Consumer {
    let view = snapshot.view;
    let (revision, last_seen) =
        snapshot.live.as_ref().map_or((0, None), |(profile, seen)| (profile.revision, Some((*seen).into())));
    let (peer, labels, connected_at) = match snapshot.live {
        Some((profile, _)) => (profile.peer, profile.labels, Some(profile.connected_at.into())),
        None => Default::default(),
    };
    pb::Consumer {
        consumer_id: view.consumer_id.unwrap_or_default(),
        session_id_prefix: snapshot.token.chars().take(SESSION_PREFIX).collect(),
        node: node.to_owned(),
        peer,
        labels,
        window_records: i32::try_from(view.window.max_records).unwrap_or(i32::MAX),
        window_bytes: signed(view.window.max_bytes),
        leased: signed(view.leased),
        connected_at,
        last_seen,
        blocked_on: view.blocked_on.map_or_else(String::new, |cause| cause.as_str().to_owned()),
        revision,
    }
}

/// A client whose stream landed on this node, which holds leases of several owners.
pub(crate) fn client(node: &str, view: ClientView) -> pb::Consumer {
    let is_full = view.held >= u64::from(view.window.max_records);
    let blocked_on = match (view.draining, is_full) {
        (true, _) => Some(BlockedOn::Draining),
        (false, true) => Some(BlockedOn::NoWindow),
        (false, false) => None,
    };
    pb::Consumer {
        consumer_id: view.consumer_id.unwrap_or_default(),
        session_id_prefix: view.token.chars().take(SESSION_PREFIX).collect(),
        node: node.to_owned(),
        peer: view.profile.peer,
        labels: view.profile.labels,
        window_records: i32::try_from(view.window.max_records).unwrap_or(i32::MAX),
        window_bytes: signed(view.window.max_bytes),
        leased: signed(view.held),
        connected_at: Some(view.profile.connected_at.into()),
        last_seen: Some(view.last_seen.into()),
        blocked_on: blocked_on.map_or_else(String::new, |cause| cause.as_str().to_owned()),
        revision: view.profile.revision,
    }
}

/// The counters of this node.
pub(crate) fn stats_of(snapshot: &Snapshot) -> pb::GetStatsResponse {
    let partitions = snapshot.partitions.iter().map(|partition| pb::PartitionStats {
        topic: partition.view.partition.topic.to_string(),
        partition: partition.view.partition.partition,
        stats: Some(stats(partition.view.stats)),
    });
    pb::GetStatsResponse { total: Some(stats(snapshot.stats)), partitions: partitions.collect() }
}

/// What is behind the committed offset: to the log's end where it is known, else to what was fetched.
pub(crate) fn lag(view: &sluice_core::PartitionView, watermarks: Option<(i64, i64)>) -> i64 {
    let end = watermarks.map_or(view.next.0, |(_, high)| high.max(view.next.0));
    let from = view.committed.unwrap_or(view.committable);
    end.saturating_sub(from.0).max(0)
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn stats(stats: sluice_core::Stats) -> pb::Stats {
    pb::Stats {
        received: stats.received,
        delivered: stats.delivered,
        acked: stats.acked,
        retried: stats.retried,
        expired: stats.expired,
        released: stats.released,
        dead_lettered: stats.dead_lettered,
        filtered: stats.filtered,
        failed: stats.failed,
        committed: stats.committed,
    }
}

fn later(what: &'static str) -> Status {
    Error::Unimplemented(what).into()
}

#[tonic::async_trait]
impl SubscriptionService for Subscriptions {
    async fn list_subscriptions(
        &self,
        _: Request<pb::ListSubscriptionsRequest>,
    ) -> Result<Response<pb::ListSubscriptionsResponse>, Status> {
        let names = self.node.config.subscriptions.keys();
        let subscriptions = names.map(|name| self.subscription(name)).collect::<Result<_, _>>()?;
        Ok(Response::new(pb::ListSubscriptionsResponse { subscriptions }))
    }

    async fn get_subscription(
        &self,
        request: Request<pb::GetSubscriptionRequest>,
    ) -> Result<Response<pb::GetSubscriptionResponse>, Status> {
        let subscription = Some(self.subscription(&request.into_inner().name)?);
        Ok(Response::new(pb::GetSubscriptionResponse { subscription }))
    }

    async fn list_nodes(
        &self,
        request: Request<pb::ListNodesRequest>,
    ) -> Result<Response<pb::ListNodesResponse>, Status> {
        let name = request.into_inner().subscription;
        let handle = self.node.subscription(&name)?;
        if let Some(cluster) = &self.node.cluster {
            return Ok(Response::new(pb::ListNodesResponse { nodes: cluster.view(&name).await?.nodes() }));
        }
        let snapshot = handle.view().await?;
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let alone = pb::Node {
            node: self.node.name.clone(),
            member: handle.state().membership != Membership::Idle,
            partitions: count(snapshot.partitions.len()),
            streams: count(snapshot.sessions.iter().filter(|session| session.live.is_some()).count()),
            delivered_local: snapshot.stats.delivered,
            delivered_relayed: 0,
            policy: format!("{:08x}", handle.policy_hash),
        };
        Ok(Response::new(pb::ListNodesResponse { nodes: vec![alone] }))
    }

    async fn list_partitions(
        &self,
        request: Request<pb::ListPartitionsRequest>,
    ) -> Result<Response<pb::ListPartitionsResponse>, Status> {
        let name = request.into_inner().subscription;
        let handle = self.node.subscription(&name)?;
        if let Some(cluster) = &self.node.cluster {
            let partitions = cluster.view(&name).await?.partitions();
            return Ok(Response::new(pb::ListPartitionsResponse { partitions }));
        }
        let snapshot = handle.view().await?;
        let partitions = snapshot.partitions.into_iter().map(|p| partition(&self.node.name, &handle, p)).collect();
        Ok(Response::new(pb::ListPartitionsResponse { partitions }))
    }

    async fn list_consumers(
        &self,
        request: Request<pb::ListConsumersRequest>,
    ) -> Result<Response<pb::ListConsumersResponse>, Status> {
        let name = request.into_inner().subscription;
        let handle = self.node.subscription(&name)?;
        if let Some(cluster) = &self.node.cluster {
            let consumers = cluster.view(&name).await?.consumers();
            return Ok(Response::new(pb::ListConsumersResponse { consumers }));
        }
        let snapshot = handle.view().await?;
        let consumers = snapshot.sessions.into_iter().map(|session| consumer(&self.node.name, session)).collect();
        Ok(Response::new(pb::ListConsumersResponse { consumers }))
    }

    async fn get_stats(&self, request: Request<pb::GetStatsRequest>) -> Result<Response<pb::GetStatsResponse>, Status> {
        let name = request.into_inner().subscription;
        let handle = self.node.subscription(&name)?;
        if let Some(cluster) = &self.node.cluster {
            return Ok(Response::new(cluster.view(&name).await?.stats()));
        }
        Ok(Response::new(stats_of(&handle.view().await?)))
    }

    async fn pause_subscription(
        &self,
        request: Request<pb::PauseSubscriptionRequest>,
    ) -> Result<Response<pb::PauseSubscriptionResponse>, Status> {
        let subscription = Some(self.set_paused(&request.into_inner().name, true).await?);
        Ok(Response::new(pb::PauseSubscriptionResponse { subscription }))
    }

    async fn resume_subscription(
        &self,
        request: Request<pb::ResumeSubscriptionRequest>,
    ) -> Result<Response<pb::ResumeSubscriptionResponse>, Status> {
        let subscription = Some(self.set_paused(&request.into_inner().name, false).await?);
        Ok(Response::new(pb::ResumeSubscriptionResponse { subscription }))
    }

    async fn create_subscription(
        &self,
        _: Request<pb::CreateSubscriptionRequest>,
    ) -> Result<Response<pb::CreateSubscriptionResponse>, Status> {
        Err(later("subscriptions are made in the config file; CreateSubscription is not built yet"))
    }

    async fn update_subscription(
        &self,
        _: Request<pb::UpdateSubscriptionRequest>,
    ) -> Result<Response<pb::UpdateSubscriptionResponse>, Status> {
        Err(later("subscriptions are changed in the config file; UpdateSubscription is not built yet"))
    }

    async fn delete_subscription(
        &self,
        _: Request<pb::DeleteSubscriptionRequest>,
    ) -> Result<Response<pb::DeleteSubscriptionResponse>, Status> {
        Err(later("subscriptions are removed in the config file; DeleteSubscription is not built yet"))
    }

    async fn seek_subscription(
        &self,
        request: Request<pb::SeekSubscriptionRequest>,
    ) -> Result<Response<pb::SeekSubscriptionResponse>, Status> {
        Ok(Response::new(super::seek::seek(&self.node, request.into_inner()).await?))
    }

    async fn list_dead_letters(
        &self,
        _: Request<pb::ListDeadLettersRequest>,
    ) -> Result<Response<pb::ListDeadLettersResponse>, Status> {
        Err(later(
            "dead letters are written, but listing and redriving them is not built yet: read the dead-letter topic",
        ))
    }

    async fn redrive_dead_letters(
        &self,
        _: Request<pb::RedriveDeadLettersRequest>,
    ) -> Result<Response<pb::RedriveDeadLettersResponse>, Status> {
        Err(later(
            "dead letters are written, but listing and redriving them is not built yet: read the dead-letter topic",
        ))
    }
}
