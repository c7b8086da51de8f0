//! Every metric of the node: names, meanings, and the export from what the drivers count anyway.
//!
//! Nothing is counted a record at a time: the engines count, and each scrape reads them into a recorder of its own. So two
//! nodes in one process (tests) do not mix, a partition that left has left the page, and nothing grows between scrapes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

use futures_util::future::join_all;
use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::PrometheusBuilder;
use sluice_core::Stats;

use crate::node::Shared;
use crate::peer::Cluster;
use crate::services::lag;
use crate::subscription::{Counts, Handle, Kind, PartitionSnapshot, Snapshot};

const RECEIVED: &str = "sluice_records_received_total";
const DELIVERED: &str = "sluice_records_delivered_total";
const ACKED: &str = "sluice_records_acked_total";
const RETRIED: &str = "sluice_records_retried_total";
const EXPIRED: &str = "sluice_records_expired_total";
const RELEASED: &str = "sluice_records_released_total";
const DEAD_LETTERED: &str = "sluice_records_dead_lettered_total";
const SESSIONS_DIED: &str = "sluice_sessions_died_total";
const SESSIONS_BROKE_TOGETHER: &str = "sluice_sessions_broke_together_total";
const DURABLE_ANSWERED: &str = "sluice_durable_requests_answered_total";
const DURABLE_WAITING: &str = "sluice_durable_records_waiting";
const SUSPECTS: &str = "sluice_suspects";
const FILTERED: &str = "sluice_records_filtered_total";
const FAILED: &str = "sluice_records_failed_total";
const COMMITTED: &str = "sluice_records_committed_total";
const REFETCHED: &str = "sluice_records_refetched_total";
const RESTORED_DONE: &str = "sluice_records_restored_done_total";
const LOST_TO_RETENTION: &str = "sluice_lost_to_retention_total";
const COMMITS: &str = "sluice_commits_total";
const COMMITS_FAILED: &str = "sluice_commits_failed_total";
const COMMIT_REWOUND: &str = "sluice_commit_rewound_total";
const METADATA_TRUNCATED: &str = "sluice_metadata_truncated_total";
const METADATA_IGNORED: &str = "sluice_metadata_ignored_total";
const INVARIANTS_BROKEN: &str = "sluice_invariants_broken_total";
const SETTLEMENTS_REJECTED: &str = "sluice_settlements_rejected_total";
const STREAMS_REFUSED: &str = "sluice_streams_refused_total";
const LOG_TRUNCATED: &str = "sluice_log_truncated_total";
const TOPICS_RECREATED: &str = "sluice_topics_recreated_total";
const SELF_FENCED: &str = "sluice_self_fenced_total";
const SEEKS: &str = "sluice_seeks_total";
const FETCH_RESTS: &str = "sluice_fetch_rests_total";
const PARTITION_HOLDS: &str = "sluice_partition_holds_total";

const LETTERS_FAILED: &str = "sluice_dead_letter_writes_failed_total";
const LETTERS_PENDING: &str = "sluice_dead_letters_pending";
const LETTERS_PENDING_BYTES: &str = "sluice_dead_letters_pending_bytes";
const LETTERS_FAILING: &str = "sluice_dead_letters_failing";

const PEERS: &str = "sluice_peers";
const PEERS_REFUSED: &str = "sluice_peer_connections_refused_total";
const PEERS_OTHER_POLICY: &str = "sluice_peers_of_other_policy";
const GROUP_MEMBERS: &str = "sluice_group_members";
const GROUP_UNCONNECTED: &str = "sluice_group_members_not_connected";
const PEER_TLS_RELOADS: &str = "sluice_peer_tls_reloads_total";
const PEER_TLS_STALE: &str = "sluice_peer_tls_stale";
const PEER_UNKNOWN: &str = "sluice_peer_frames_unknown_total";
const PEER_OVERFLOWS: &str = "sluice_peer_connections_given_up_total";
const EDGE_STREAMS: &str = "sluice_edge_streams";
const EDGE_ROOM: &str = "sluice_edge_idle_room";
const EDGE_DELIVERED: &str = "sluice_edge_records_delivered_total";
const EDGE_REJECTED: &str = "sluice_edge_settlements_rejected_total";

const STREAMS: &str = "sluice_streams";
const STREAMS_MAX: &str = "sluice_streams_max";
const MEMORY_BUDGET: &str = "sluice_memory_budget_bytes";
const MEMORY_HELD: &str = "sluice_memory_held_bytes";
const SESSIONS: &str = "sluice_sessions";
const LEASED: &str = "sluice_leased";
const BYTES_HELD: &str = "sluice_bytes_held";
const BYTES_MAX: &str = "sluice_bytes_max";
const QUEUED_BYTES: &str = "sluice_fetch_queued_bytes";
const READY_BYTES: &str = "sluice_ready_bytes";
const READY_BYTES_MAX: &str = "sluice_ready_bytes_max";
const FETCH_RESTING: &str = "sluice_fetch_resting";
const REMEMBERED: &str = "sluice_remembered_entries";

const PARTITION_PENDING: &str = "sluice_partition_pending";
const PARTITION_LEASED: &str = "sluice_partition_leased";
const PARTITION_SPAN: &str = "sluice_partition_span";
const PARTITION_SPAN_MAX: &str = "sluice_partition_span_max";
const PARTITION_BYTES: &str = "sluice_partition_bytes_held";
const PARTITION_BYTES_MAX: &str = "sluice_partition_bytes_max";
const PARTITION_COMMITTABLE: &str = "sluice_partition_committable_offset";
const PARTITION_COMMITTED: &str = "sluice_partition_committed_offset";
const PARTITION_LAG: &str = "sluice_partition_lag";
const PARTITION_AGE: &str = "sluice_partition_oldest_undone_age_seconds";
const PARTITION_STUCK: &str = "sluice_partition_stuck";
const PARTITION_HELD: &str = "sluice_partition_fetch_held";

const COUNTERS: [(&str, &str); 37] = [
    (
        PEERS_REFUSED,
        "In a cluster: connections with other nodes that did not come about, by `side` (accepted, dialed) and `reason`.",
    ),
    (PEER_TLS_RELOADS, "In a cluster: new files of peers.tls, by `result`: taken or refused."),
    (
        PEER_UNKNOWN,
        "In a cluster: frames of other nodes that hold nothing this version knows, and were ignored: theirs is later.",
    ),
    (
        PEER_OVERFLOWS,
        "In a cluster: connections with other nodes that were given up because the other side took nothing of what waited for it.",
    ),
    (
        EDGE_DELIVERED,
        "In a cluster: records that clients of this node were dealt, by `from`: this node, or other nodes.",
    ),
    (
        EDGE_REJECTED,
        "In a cluster: settlements of clients of this node, by `reason`, about which no owner was asked, or none answered.",
    ),
    (RECEIVED, "Records received from Kafka."),
    (DELIVERED, "Deliveries, redeliveries included."),
    (ACKED, "Records acked."),
    (RETRIED, "Leases settled by Retry."),
    (EXPIRED, "Leases that expired."),
    (RELEASED, "Leases settled by Release, or returned uncounted by a session's end."),
    (DEAD_LETTERED, "Records dead-lettered."),
    (SESSIONS_DIED, "Sessions that broke while they held leases, did not come back, and broke alone."),
    (
        SESSIONS_BROKE_TOGETHER,
        "The same, but with more than half of the sessions with leases within a second: nobody's fault.",
    ),
    (
        DURABLE_ANSWERED,
        "Durable requests answered: Kafka has what they settled, or the answer names what it may not have.",
    ),
    (FILTERED, "Records dropped or filtered by policy."),
    (FAILED, "Attempts that reached max_attempts."),
    (COMMITTED, "Records below acknowledged commits."),
    (REFETCHED, "Records below the position that came again after a hold and were dropped."),
    (RESTORED_DONE, "Records not delivered again because the commit said that they are done."),
    (LOST_TO_RETENTION, "Offsets that retention deleted before they were fetched."),
    (COMMITS, "Commits that Kafka acknowledged."),
    (COMMITS_FAILED, "Commits that Kafka refused; they are repeated."),
    (COMMIT_REWOUND, "Committed offsets that another member had rewound; they are committed again."),
    (METADATA_TRUNCATED, "Commits whose metadata was cut: what was cut may come again after a crash."),
    (METADATA_IGNORED, "Commit metadata that was not ours, or damaged."),
    (INVARIANTS_BROKEN, "Invariants seen broken: a bug in sluice, please report it."),
    (SETTLEMENTS_REJECTED, "Settlements that changed nothing, by reason."),
    (STREAMS_REFUSED, "Streams refused or ended with a status, by reason."),
    (LOG_TRUNCATED, "Logs that ended below the position: what lay between is gone."),
    (TOPICS_RECREATED, "Partitions whose topic was deleted and made again."),
    (SELF_FENCED, "Times that the node was away for a Kafka session and gave its partitions up."),
    (SEEKS, "Partitions in which an operator moved the position."),
    (FETCH_RESTS, "Times that fetching rested at the subscription's byte budget."),
    (LETTERS_FAILED, "Dead letters that Kafka did not take, by reason; they are held, and written again."),
    (PARTITION_HOLDS, "Times that a partition was taken off the fetch at its limit."),
];

const GAUGES: [(&str, &str); 37] = [
    (
        PEERS_OTHER_POLICY,
        "In a cluster: peers whose config for the subscription is another in what nodes must agree on.",
    ),
    (
        GROUP_MEMBERS,
        "Members of the Kafka group as it describes itself, by `kind`: same_policy and other_policy are nodes, foreign is not.",
    ),
    (GROUP_UNCONNECTED, "In a cluster: nodes that are members of the Kafka group and no peers of this one."),
    (PEER_TLS_STALE, "In a cluster: 1 while the files of peers.tls are no good, and those before them are in use."),
    (PEERS, "In a cluster: other nodes that this one is connected to."),
    (EDGE_STREAMS, "In a cluster: streams of clients that landed on this node."),
    (EDGE_ROOM, "In a cluster: records more that the clients of this node could hold."),
    (STREAMS, "Streams open."),
    (STREAMS_MAX, "Streams that may be open."),
    (MEMORY_BUDGET, "Bytes of records that the process may hold."),
    (MEMORY_HELD, "Bytes of records that the process holds, fetched and not yet taken by the engines included."),
    (SESSIONS, "Sessions, those that wait for a resume included."),
    (LEASED, "Records leased."),
    (BYTES_HELD, "Bytes of records held."),
    (BYTES_MAX, "Bytes of records that the subscription may hold."),
    (QUEUED_BYTES, "Bytes fetched and not yet taken by the engine."),
    (READY_BYTES, "About how many of the bytes held are ready to be dealt."),
    (READY_BYTES_MAX, "Ready bytes at which nothing is fetched while every session is full."),
    (FETCH_RESTING, "1 while fetching rests at the byte budget."),
    (REMEMBERED, "Leases remembered after their end, in entries of up to 128."),
    (DURABLE_WAITING, "Settled records whose durable settlement Kafka does not have yet."),
    (SUSPECTS, "Records that several sessions died with: each is dealt in a frame of its own."),
    (LETTERS_PENDING, "Dead letters on their way to Kafka."),
    (LETTERS_PENDING_BYTES, "Bytes of dead letters on their way to Kafka."),
    (LETTERS_FAILING, "1 while Kafka does not take dead letters: the last write failed. GetSubscription says why."),
    (PARTITION_PENDING, "Records received and not done."),
    (PARTITION_LEASED, "Records leased."),
    (PARTITION_SPAN, "Records received above the frontier, done or not."),
    (PARTITION_SPAN_MAX, "Records that may be received above the frontier."),
    (PARTITION_BYTES, "Bytes of records held."),
    (PARTITION_BYTES_MAX, "Bytes of records that may be held."),
    (PARTITION_COMMITTABLE, "The frontier: the offset that may be committed."),
    (PARTITION_COMMITTED, "The offset that Kafka acknowledged."),
    (PARTITION_LAG, "Offsets between the committed one and the log's end."),
    (PARTITION_AGE, "Seconds since the oldest record not done was received; 0: there is none."),
    (
        PARTITION_STUCK,
        "1 while one record holds its partition: older than stuck_after, or most of the span done behind it.",
    ),
    (PARTITION_HELD, "1 while the partition is off the fetch at its limit."),
];

/// The node's metrics.
pub(crate) struct Exporter {
    shared: Arc<Shared>,
}

// === impl Exporter ===

impl std::fmt::Debug for Exporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exporter").finish_non_exhaustive()
    }
}

impl Exporter {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Reads every driver, and writes the page.
    pub(crate) async fn render(&self) -> String {
        let views = self.shared.subscriptions.values().map(|handle| async move { (handle, handle.view().await) });
        let views = join_all(views).await;
        let page = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&page, || {
            describe();
            self.export_node();
            let held = views.iter().filter_map(|(_, view)| view.as_ref().ok());
            gauge!(MEMORY_HELD).set(held.map(|view| view.bytes_held + view.queued_bytes).sum::<u64>() as f64);
            for (handle, view) in &views {
                if let Ok(view) = view {
                    export_subscription(handle, view);
                }
            }
        });
        page.handle().render()
    }

    fn export_node(&self) {
        let limits = &self.shared.config.limits;
        gauge!(STREAMS).set(self.shared.streams.load(Ordering::Relaxed) as f64);
        gauge!(STREAMS_MAX).set(limits.max_streams);
        gauge!(MEMORY_BUDGET).set(limits.memory_budget.0 as f64);
        if let Some(cluster) = &self.shared.cluster {
            export_cluster(cluster);
        }
        for (reason, count) in self.shared.refusals.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            counter!(STREAMS_REFUSED, "reason" => *reason).absolute(*count);
        }
    }
}

/// Every name, for the test of the page that names some.
#[cfg(test)]
pub(crate) fn names() -> Vec<&'static str> {
    COUNTERS.iter().chain(&GAUGES).map(|(name, _)| *name).collect()
}

/// Names, units and meanings.
fn describe() {
    for (name, meaning) in COUNTERS {
        describe_counter!(name, Unit::Count, meaning);
    }
    for (name, meaning) in GAUGES {
        describe_gauge!(name, meaning);
    }
}

fn export_cluster(cluster: &Cluster) {
    gauge!(PEERS).set(cluster.peers() as f64);
    for (side, reason, count) in cluster.refusals() {
        counter!(PEERS_REFUSED, "side" => side.as_str(), "reason" => reason.as_str()).absolute(count);
    }
    if let Some(reloads) = cluster.tls_reloads() {
        for (result, count) in [("taken", &reloads.taken), ("refused", &reloads.refused)] {
            counter!(PEER_TLS_RELOADS, "result" => result).absolute(count.load(Ordering::Relaxed));
        }
        gauge!(PEER_TLS_STALE).set(f64::from(u8::from(reloads.stale.load(Ordering::Relaxed))));
    }
    for (name, other_policy, unconnected) in cluster.disagreements() {
        gauge!(PEERS_OTHER_POLICY, "subscription" => name.to_owned()).set(other_policy as f64);
        gauge!(GROUP_UNCONNECTED, "subscription" => name.to_owned()).set(unconnected as f64);
    }
    counter!(PEER_UNKNOWN).absolute(cluster.unknown_frames());
    counter!(PEER_OVERFLOWS).absolute(cluster.overflows());
    for (name, counts) in cluster.counts() {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        gauge!(EDGE_STREAMS, "subscription" => name.to_owned()).set(of(&counts.streams) as f64);
        gauge!(EDGE_ROOM, "subscription" => name.to_owned()).set(of(&counts.idle_room) as f64);
        for (from, count) in [("this_node", &counts.delivered_local), ("other_nodes", &counts.delivered_relayed)] {
            counter!(EDGE_DELIVERED, "subscription" => name.to_owned(), "from" => from).absolute(of(count));
        }
        let rejected = &counts.rejected;
        for (reason, count) in
            [("not_held", &rejected.not_held), ("stale_epoch", &rejected.stale_epoch), ("invalid", &rejected.invalid)]
        {
            counter!(EDGE_REJECTED, "subscription" => name.to_owned(), "reason" => reason).absolute(of(count));
        }
    }
}

fn export_subscription(handle: &Handle, view: &Snapshot) {
    let name = handle.name.to_string();
    for (metric, value) in totals(&view.stats, &view.counts) {
        counter!(metric, "subscription" => name.clone()).absolute(value);
    }
    let counts = &view.counts;
    for (reason, value) in [
        ("not_held", counts.rejected_not_held),
        ("stale_epoch", counts.rejected_stale_epoch),
        ("invalid", counts.rejected_invalid),
    ] {
        counter!(SETTLEMENTS_REJECTED, "subscription" => name.clone(), "reason" => reason).absolute(value);
    }
    for (reason, value) in [("failed", counts.letters_failed), ("too_large", counts.letters_too_large)] {
        counter!(LETTERS_FAILED, "subscription" => name.clone(), "reason" => reason).absolute(value);
    }
    let leased: u64 = view.partitions.iter().map(|partition| partition.view.leased).sum();
    let suspects: u64 = view.partitions.iter().map(|partition| partition.view.suspects).sum();
    let durable_waiting: u64 = view.partitions.iter().map(|partition| partition.view.durable_waiting).sum();
    for (metric, value) in [
        (SESSIONS, view.sessions.len() as u64),
        (LEASED, leased),
        (BYTES_HELD, view.bytes_held),
        (BYTES_MAX, handle.policy.subscription_bytes_max),
        (QUEUED_BYTES, view.queued_bytes),
        (READY_BYTES, view.ready_bytes),
        (READY_BYTES_MAX, handle.policy.ready_bytes_max),
        (DURABLE_WAITING, durable_waiting),
        (SUSPECTS, suspects),
        (LETTERS_PENDING, view.letters_pending),
        (LETTERS_PENDING_BYTES, view.letters_pending_bytes),
        (LETTERS_FAILING, u64::from(view.letters_failing)),
        (FETCH_RESTING, u64::from(counts.fetch_resting)),
        (REMEMBERED, view.remembered),
        (PARTITION_SPAN_MAX, handle.policy.span_max),
        (PARTITION_BYTES_MAX, handle.policy.partition_bytes_max),
    ] {
        gauge!(metric, "subscription" => name.clone()).set(value as f64);
    }
    let group = handle.group();
    for kind in Kind::ALL {
        let members = group.members.iter().filter(|member| member.kind(handle.policy_hash) == kind).count();
        gauge!(GROUP_MEMBERS, "subscription" => name.clone(), "kind" => kind.as_str()).set(members as f64);
    }
    for partition in &view.partitions {
        export_partition(&name, partition);
    }
}

fn totals(stats: &Stats, counts: &Counts) -> [(&'static str, u64); 28] {
    [
        (RECEIVED, stats.received),
        (DELIVERED, stats.delivered),
        (ACKED, stats.acked),
        (RETRIED, stats.retried),
        (EXPIRED, stats.expired),
        (RELEASED, stats.released),
        (DEAD_LETTERED, stats.dead_lettered),
        (FILTERED, stats.filtered),
        (SESSIONS_DIED, stats.sessions_died),
        (SESSIONS_BROKE_TOGETHER, stats.sessions_broke_together),
        (DURABLE_ANSWERED, stats.durable_answered),
        (FAILED, stats.failed),
        (COMMITTED, stats.committed),
        (REFETCHED, stats.refetched),
        (RESTORED_DONE, stats.restored_done),
        (COMMITS, stats.commits),
        (COMMITS_FAILED, stats.commits_failed),
        (METADATA_TRUNCATED, stats.metadata_truncated),
        (METADATA_IGNORED, stats.metadata_ignored),
        (INVARIANTS_BROKEN, stats.invariants_broken),
        (COMMIT_REWOUND, counts.commits_rewound),
        (LOST_TO_RETENTION, counts.lost_to_retention),
        (LOG_TRUNCATED, counts.log_truncated),
        (TOPICS_RECREATED, counts.topics_recreated),
        (SELF_FENCED, counts.self_fenced),
        (SEEKS, counts.seeks),
        (FETCH_RESTS, counts.fetch_rests),
        (PARTITION_HOLDS, counts.partition_holds),
    ]
}

fn export_partition(subscription: &str, partition: &PartitionSnapshot) {
    let view = &partition.view;
    let pending = view.span.saturating_sub(view.done_above_frontier);
    let rows = [
        (PARTITION_PENDING, pending as f64),
        (PARTITION_LEASED, view.leased as f64),
        (PARTITION_SPAN, view.span as f64),
        (PARTITION_BYTES, view.bytes as f64),
        (PARTITION_COMMITTABLE, view.committable.0 as f64),
        (PARTITION_COMMITTED, view.committed.map_or(-1.0, |offset| offset.0 as f64)),
        (PARTITION_LAG, lag(view, partition.watermarks) as f64),
        (PARTITION_AGE, view.oldest_undone_age_ms as f64 / 1_000.0),
        (PARTITION_STUCK, f64::from(u8::from(partition.stuck))),
        (PARTITION_HELD, f64::from(u8::from(view.held_back))),
    ];
    for (metric, value) in rows {
        let labels = [
            ("subscription", subscription.to_owned()),
            ("topic", view.partition.topic.to_string()),
            ("partition", view.partition.partition.to_string()),
        ];
        gauge!(metric, &labels).set(value);
    }
}
