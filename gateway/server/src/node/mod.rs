//! A running node: both listeners, all subscriptions, and its end.

mod shared;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use sluice_kafka::{Describer, LetterWriter, WriterConfig};
use sluice_proto::v1::subscription_service_server::SubscriptionServiceServer;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

pub(crate) use shared::Shared;

use crate::admin;
use crate::cli;
use crate::config::{Config, Join, SubscriptionConfig};
use crate::metrics::Exporter;
use crate::peer::{self, News};
use crate::services::{Consumer, FrameLimit, Subscriptions};
use crate::session::Timing;
use crate::subscription::{self, DeadLetters, Handle, KafkaPort, Mark, SessionRegistry, Settings};

/// Server windows: 64 KiB, the default, halves the throughput of small records.
const HTTP2_WINDOW_BYTES: u32 = 1 << 20;
const STREAMS_PER_CONNECTION_MAX: u32 = 1_000;
/// Of one request, names and values and 32 bytes for each; above it the answer is 431. gRPC's own need a tenth.
const HEADERS_BYTES_MAX: u32 = 16 << 10;
/// Requests that were reset before anyone looked at them ("rapid reset"): one more ends the connection.
const RESETS_UNSEEN_MAX: usize = 20;
/// Streams that we had to reset because their client broke the protocol, a connection. tonic sets no limit by itself,
/// and each costs us more than the client.
const RESETS_BY_US_MAX: usize = 1_024;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often free memory is given back to the system.
const TRIM_INTERVAL: Duration = Duration::from_secs(5);
/// What connections are given to close after all streams ended.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
const CONSUMER_SERVICE: &str = "sluice.v1.ConsumerService";
const SUBSCRIPTION_SERVICE: &str = "sluice.v1.SubscriptionService";

/// A node that serves. Dropping it without [`Node::shutdown`] leaves its tasks to the runtime.
#[derive(Debug)]
pub struct Node {
    shared: Arc<Shared>,
    grpc_addr: SocketAddr,
    admin_addr: SocketAddr,
    changed: Arc<Notify>,
    /// Ends the gRPC listener, and its connections once they have no streams.
    refuse: CancellationToken,
    close: CancellationToken,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    stopped: watch::Sender<bool>,
}

impl Node {
    /// Binds both listeners and starts all subscriptions. Kafka being away is no error: the node is then not ready.
    ///
    /// # Errors
    /// An address that cannot be bound, a librdkafka property that is refused.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        sluice_kafka::alloc::tune();
        let grpc = TcpListener::bind(config.node.listen)
            .await
            .with_context(|| format!("binding node.listen {}", config.node.listen))?;
        let admin = TcpListener::bind(config.node.admin_listen)
            .await
            .with_context(|| format!("binding node.admin_listen {}", config.node.admin_listen))?;
        let (grpc_addr, admin_addr) = (grpc.local_addr()?, admin.local_addr()?);

        let changed = Arc::new(Notify::new());
        let sessions = Arc::new(SessionRegistry::new());
        let news = News::default();
        let writers = start_writers(&config)?;
        // Members of groups say where peers find them, so that must be known first.
        let place = peer::bind(&config).await?;
        let peer = place.as_ref().map(|place| place.address.clone());
        let subscriptions = start_subscriptions(&config, &sessions, &changed, &news, &writers, peer.as_ref())?;
        let cluster = match place {
            Some(place) => Some(peer::start(&config, place, &subscriptions, &sessions, news)?),
            None => None,
        };
        let shared = Arc::new(Shared {
            name: config.node_name(),
            timing: Timing {
                ping_interval: config.node.ping_interval,
                max_age: config.node.stream_max_age,
                grace: config.node.drain_timeout,
            },
            config,
            subscriptions,
            sessions,
            streams: Arc::new(AtomicUsize::new(0)),
            unary_ranges: Arc::new(AtomicUsize::new(0)),
            leaving: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            cluster,
            refusals: Mutex::default(),
        });
        let close = CancellationToken::new();
        let (health, health_service) = tonic_health::server::health_reporter();
        let mut router = server().add_service(health_service);
        router = router.add_service(FrameLimit::new(Consumer::new(shared.clone()), shared.clone()));
        router = router.add_service(SubscriptionServiceServer::new(Subscriptions::new(shared.clone())));
        router = router.add_service(reflection().build_v1()?).add_service(reflection().build_v1alpha()?);
        let incoming = TcpIncoming::from(grpc).with_nodelay(Some(true));
        let refuse = close.child_token();
        let closing = refuse.clone().cancelled_owned();
        let grpc_task = tokio::spawn(async move {
            if let Err(error) = router.serve_with_incoming_shutdown(incoming, closing).await {
                tracing::error!(%error, "the gRPC server failed");
            }
        });
        let exporter = Arc::new(Exporter::new(shared.clone()));
        let admin_task = tokio::spawn(admin::serve(admin, shared.clone(), exporter, close.clone()));
        let health_task = tokio::spawn(report_health(shared.clone(), health, changed.clone()));
        let trim_task = tokio::spawn(trim_memory());
        Ok(Self {
            shared,
            grpc_addr,
            admin_addr,
            changed,
            refuse,
            close,
            tasks: Mutex::new(vec![grpc_task, admin_task, health_task, trim_task]),
            stopped: watch::Sender::new(false),
        })
    }

    /// Where gRPC is served.
    #[must_use]
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc_addr
    }

    /// Where other nodes are served, in a cluster.
    #[must_use]
    pub fn peers_addr(&self) -> Option<SocketAddr> {
        self.shared.cluster.as_ref().map(|cluster| cluster.address())
    }

    /// How long it says that it is not ready before it drains.
    #[must_use]
    pub fn drain_delay(&self) -> Duration {
        self.shared.config.node.drain_delay
    }

    /// Where `/metrics`, `/healthz` and `/readyz` are served.
    #[must_use]
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin_addr
    }

    /// Not ready at once; after `drain_delay` it drains for at most `drain_timeout`: every stream is told, leases settle,
    /// commits go out, the groups are left, streams end OK, listeners close. A second call waits for the first.
    pub async fn shutdown(&self) {
        if self.shared.leaving.swap(true, Ordering::AcqRel) {
            return self.stopped().await;
        }
        self.changed.notify_one();
        tokio::time::sleep(self.shared.config.node.drain_delay).await;
        self.shared.draining.store(true, Ordering::Release);
        if self.shared.cluster.is_some() {
            // Other nodes do whatever a new connection asks for, and a balancer without health checks learns of it: what is
            // refused here it leads to them. A node alone still takes unary settlements.
            self.refuse.cancel();
        }
        let drain_timeout = self.shared.config.node.drain_timeout;
        let drains = self.shared.subscriptions.values().map(|handle| handle.shutdown(drain_timeout));
        let edges = async {
            if let Some(cluster) = &self.shared.cluster {
                cluster.drain(drain_timeout).await;
            }
        };
        let drains = futures_util::future::join(futures_util::future::join_all(drains), edges);
        if timeout(drain_timeout + CLOSE_TIMEOUT, drains).await.is_err() {
            tracing::warn!("a subscription did not end within the drain timeout");
        }
        if let Some(cluster) = &self.shared.cluster {
            cluster.close();
        }
        self.close.cancel();
        let tasks = self.tasks.lock().map(|mut tasks| std::mem::take(&mut *tasks)).unwrap_or_default();
        let mut tasks = tasks.into_iter();
        if let Some(mut grpc) = tasks.next()
            && timeout(CLOSE_TIMEOUT, &mut grpc).await.is_err()
        {
            grpc.abort();
        }
        tasks.for_each(|task| task.abort());
        self.stopped.send_replace(true);
    }

    /// Waits for the end of a shutdown.
    pub async fn stopped(&self) {
        let mut stopped = self.stopped.subscribe();
        // The sender lives as long as `self`, so this ends only when it says so.
        let _ = stopped.wait_for(|stopped| *stopped).await;
    }
}

fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .tcp_nodelay(true)
        .initial_stream_window_size(HTTP2_WINDOW_BYTES)
        .initial_connection_window_size(4 * HTTP2_WINDOW_BYTES)
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .http2_max_header_list_size(HEADERS_BYTES_MAX)
        .http2_max_pending_accept_reset_streams(Some(RESETS_UNSEEN_MAX))
        .http2_max_local_error_reset_streams(Some(RESETS_BY_US_MAX))
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(sluice_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

fn start_subscriptions(
    config: &Config,
    sessions: &Arc<SessionRegistry>,
    changed: &Arc<Notify>,
    news: &News,
    writers: &BTreeMap<String, Arc<LetterWriter>>,
    peer: Option<&Arc<str>>,
) -> anyhow::Result<BTreeMap<String, Arc<Handle>>> {
    let describer = start_describer(config)?;
    let mut subscriptions = BTreeMap::new();
    for (name, of) in &config.subscriptions {
        let mark = Mark { policy: of.policy_hash(), peer: peer.cloned() };
        let describer = describer.clone().filter(|_| config.is_group_described(of));
        let (kafka, events) =
            sluice_kafka::Subscription::start(config.kafka_config(name, of, mark.to_string()), describer)
                .with_context(|| format!("starting subscription {name}"))?;
        let gate = kafka.gate().clone();
        let writer = writers.get(name).cloned();
        let write = Box::new(move |write| match &writer {
            Some(writer) => writer.write(write),
            // Its sender hears that it failed.
            None => drop(write),
        });
        let port = KafkaPort { send: Box::new(move |command| kafka.send(command)), gate, events, write };
        let handle = subscription::start(settings(config, name, of, news), port, sessions.clone(), changed.clone());
        subscriptions.insert(name.clone(), handle);
    }
    Ok(subscriptions)
}

/// What asks who is in groups, by this program itself; nothing where nobody wants to know.
fn start_describer(config: &Config) -> anyhow::Result<Option<Describer>> {
    if !config.subscriptions.values().any(|of| config.is_group_described(of)) {
        return Ok(None);
    }
    // Not by its path where it can be helped: a release that is installed meanwhile has another program there.
    let program = if cfg!(target_os = "linux") { "/proc/self/exe".into() } else { std::env::current_exe()? };
    Ok(Some(Describer::new(program, vec![cli::DESCRIBE_GROUPS.into()])?))
}

/// One writer for all subscriptions that see Kafka with the same eyes; none where nobody has a dead-letter topic.
fn start_writers(config: &Config) -> anyhow::Result<BTreeMap<String, Arc<LetterWriter>>> {
    let mut by_client: BTreeMap<WriterConfig, Arc<LetterWriter>> = BTreeMap::new();
    let mut by_name = BTreeMap::new();
    for (name, of) in config.subscriptions.iter().filter(|(_, of)| of.dead_letter_topic().is_some()) {
        let client = config.writer_config(of);
        let writer = match by_client.get(&client) {
            Some(writer) => writer.clone(),
            None => {
                let writer = LetterWriter::start(client.clone())
                    .with_context(|| format!("starting the dead-letter writer of subscription {name}"))?;
                let writer = Arc::new(writer);
                by_client.insert(client, writer.clone());
                writer
            }
        };
        by_name.insert(name.clone(), writer);
    }
    Ok(by_name)
}

fn settings(config: &Config, name: &str, of: &SubscriptionConfig, news: &News) -> Settings {
    let in_a_cluster = |news: &Arc<Notify>| config.peers.listen.is_some().then(|| news.clone());
    Settings {
        name: name.into(),
        policy: config.policy(of),
        policy_hash: of.policy_hash(),
        session_timeout: of.session_timeout,
        kafka_session_timeout: of.kafka_session_timeout,
        revoke_grace: of.revoke_grace,
        leave_delay: match of.join {
            Join::AtStart => None,
            Join::OnSession => Some(of.leave_delay),
        },
        drain_grace: config.node.drain_timeout,
        stuck_after_ms: u64::try_from(of.stuck_after.as_millis()).unwrap_or(u64::MAX),
        dead_letters: of
            .dead_letter_topic()
            .map(|topic| DeadLetters { topic: topic.to_owned(), group: of.group(name).to_owned() }),
        news: in_a_cluster(&news.owned),
        group_news: in_a_cluster(&news.group),
    }
}

/// After a backlog the allocator keeps pages that nobody uses.
async fn trim_memory() {
    let mut interval = tokio::time::interval(TRIM_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        // A failed join means that the runtime ends, and this task with it.
        let _ = tokio::task::spawn_blocking(sluice_kafka::alloc::trim).await;
    }
}

/// Keeps `grpc.health.v1` up to date: "" while the process is up, the consumer service while Kafka answers and the node
/// does not drain.
async fn report_health(shared: Arc<Shared>, health: HealthReporter, changed: Arc<Notify>) {
    let serving = |serving: bool| if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
    health.set_service_status("", ServingStatus::Serving).await;
    health.set_service_status(SUBSCRIPTION_SERVICE, ServingStatus::Serving).await;
    let mut last = None;
    loop {
        let ready = shared.not_ready().is_empty();
        if last.replace(ready) != Some(ready) {
            health.set_service_status(CONSUMER_SERVICE, serving(ready)).await;
        }
        changed.notified().await;
    }
}
