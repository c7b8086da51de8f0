//! The tables of the config file.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::config::keys::{Field, Key, Section, section};
use crate::config::values::{Assignor, Join, LogFormat, OnExhausted, Ordering, Protocol, Size, Start, duration};

section! {
    /// This process.
    pub struct NodeConfig {
        /// Address of the gRPC listener. Port 0 takes a free one.
        listen: SocketAddr = SocketAddr::from((Ipv4Addr::LOCALHOST, 7070)),
        /// Address of the admin listener: `/metrics`, `/healthz`, `/readyz`. Port 0 takes a free one.
        admin_listen: SocketAddr = SocketAddr::from((Ipv4Addr::LOCALHOST, 7071)),
        /// The node's name in metrics, in `Partition.node` and in Kafka's `client.id`. Empty: the host's name.
        name: String = String::new(),
        /// After SIGTERM the node is not ready, and goes on as before for this long, new streams included: the time in which a
        /// balancer takes notice. Then it drains. Longer than the balancer's health checks need; 0 s where nobody checks.
        #[serde(with = "duration")]
        drain_delay: Duration = Duration::ZERO,
        /// After `drain_delay` clients have this long to settle what they hold, before the node leaves its groups.
        #[serde(with = "duration")]
        drain_timeout: Duration = Duration::from_secs(30),
        /// A stream ends with `Drain` and OK at this age, ± 10 %.
        #[serde(with = "duration")]
        stream_max_age: Duration = Duration::from_secs(30 * 60),
        /// A stream on which nothing was sent for this long is sent a `Ping`. Proxies cut silent streams: at most
        /// 20 s. Where a subscription's `session_timeout` is short it is a third of that.
        #[serde(with = "duration")]
        ping_interval: Duration = Duration::from_secs(10),
    }
}

section! {
    /// Logs, to stderr. `RUST_LOG` wins over `level`.
    pub struct LogConfig {
        /// `text` for people, `json` for machines: one object a line.
        format: LogFormat = LogFormat::Text,
        /// A level (`error`, `warn`, `info`, `debug`, `trace`) or a filter as `RUST_LOG` takes it.
        level: String = "info".to_owned(),
    }
}

section! {
    /// The Kafka cluster, for all subscriptions.
    pub struct KafkaConfig {
        /// `bootstrap.servers`: host:port, several separated by commas.
        brokers: String = "127.0.0.1:9092".to_owned(),
        /// `client.id`: at most 200 bytes. Empty: `sluice-` and the node's name. Members of groups append a hash of the
        /// subscription's policy and, in a cluster, where their peers find them.
        client_id: String = String::new(),
        /// librdkafka properties for all subscriptions, from an allow-list: security, sockets, fetch sizes. What sluice
        /// sets itself is refused.
        properties: BTreeMap<String, String> = BTreeMap::new(),
    }
}

section! {
    /// The other nodes of a cluster. Without `listen` the node is alone. See docs/cluster.md.
    pub struct PeersConfig {
        /// Address of the listener for other nodes, never behind the clients' balancer. Port 0 takes a free one. Absent: the node
        /// is alone, and no other key of this table has a meaning.
        listen: Option<SocketAddr> = None,
        /// Where other nodes find this one, as host:port: its name among them, by which it is known who is a member of a group, and
        /// where it is dialed with `from_group`. Another for each node. Empty: the address of the listener.
        advertise: String = String::new(),
        /// Nodes of the cluster as host:port. This node itself may be among them: it is known by its answer.
        addresses: Vec<String> = Vec::new(),
        /// A DNS name as host:port, of which each address is a node: a headless service. Asked again each `resolve_interval`.
        dns: String = String::new(),
        /// Dial members of the subscriptions' Kafka groups too, where their `client.id` says that they are found, and nodes that
        /// dial this one. With it `addresses` and `dns` may be empty. Needs `tls`, unless `listen` is a loopback
        /// address.
        from_group: bool = false,
        /// How often names are resolved, and peers that are away are tried again at the latest.
        #[serde(with = "duration")]
        resolve_interval: Duration = Duration::from_secs(5),
        /// Peers that hear nothing from each other ask after this.
        #[serde(with = "duration")]
        ping_interval: Duration = Duration::from_secs(1),
        /// A peer from which nothing came for this long is taken for dead: its sessions break, its leases return.
        #[serde(with = "duration")]
        timeout: Duration = Duration::from_secs(3),
        /// Connections to each peer, 1 to 16. Sessions are spread over them.
        connections: u32 = 4,
        /// Peers speak without encryption, and believe whoever reaches the port: it must stay inside the cluster's own network.
        /// Must be said in so many words unless `listen` is a loopback address; with `peers.tls` it has no place.
        plain: bool = false,
        /// Mutual TLS between nodes.
        tls: PeersTlsConfig = PeersTlsConfig::default(),
    }
}

section! {
    /// Mutual TLS between nodes: each shows its certificate, and takes for a peer whose certificate `ca` has signed for one of
    /// `identities`. All four keys, or none. New files are taken within a second or so, for new connections.
    pub struct PeersTlsConfig {
        /// Mutual TLS between nodes: all four keys of `tls`, or none. This one is a file with the node's certificate in PEM, then what lies between it and the CA. It must be good for server and for
        /// client authentication. New files are taken within a second or so, for new connections; see docs/cluster.md.
        cert: String = String::new(),
        /// A file with its private key in PEM, without a passphrase.
        key: String = String::new(),
        /// A file with the certificates in PEM of the CAs that sign those of nodes. More than one while they change.
        ca: String = String::new(),
        /// Names of nodes: a certificate must have one of them among its subject alternative names, whichever side shows it. DNS
        /// names, as `sluice.prod.svc`, or URIs, as `spiffe://prod/ns/sluice/sa/node`. Where a node is dialed does not matter.
        identities: Vec<String> = Vec::new(),
    }
}

impl PeersTlsConfig {
    /// Whether any of it is.
    #[must_use]
    pub fn is_set(&self) -> bool {
        *self != Self::default()
    }
}

impl Field for PeersTlsConfig {
    const KIND: &'static str = "table";

    fn keys() -> Option<Vec<Key>> {
        Some(<Self as Section>::keys())
    }
}

section! {
    /// Limits of the process.
    pub struct LimitsConfig {
        /// Bytes of records held, all subscriptions together. Each subscription has a share of it to itself.
        memory_budget: Size = Size(1 << 30),
        /// Streams open at once; one more is refused with RESOURCE_EXHAUSTED and `STREAM_LIMIT`.
        max_streams: u32 = 10_000,
        /// A dead letter that Kafka has not acknowledged within this failed: it is held, and written again.
        #[serde(with = "duration")]
        dead_letter_timeout: Duration = Duration::from_secs(15),
        /// Bytes of dead letters on their way to Kafka at once, beside the memory budget. What does not fit is written again
        /// later; a record that is larger than this can never be a dead letter.
        dead_letter_queue: Size = Size::mib(128),
    }
}

section! {
    /// What happens to a record that failed: `min(max_backoff, initial_backoff × multiplier^(attempts − 1))` ± `jitter`.
    pub struct RetryConfig {
        /// Counted failures (a retry, an expiry) until `on_exhausted`.
        max_attempts: u32 = 5,
        /// Delay after the first failure.
        #[serde(with = "duration")]
        initial_backoff: Duration = Duration::from_secs(1),
        /// Factor for each further failure: 1 or more.
        multiplier: f64 = 2.0,
        /// The longest delay, before jitter.
        #[serde(with = "duration")]
        max_backoff: Duration = Duration::from_secs(300),
        /// Share of the delay by which it may be longer or shorter: 0 to 1.
        jitter: f64 = 0.2,
        /// After `max_attempts`: `dead_letter` writes the record to `dead_letter_topic`, `block` retries it at `max_backoff`
        /// for ever and says so, `drop` counts it as done. Absent: `dead_letter` where there is a topic for it, else `block`.
        on_exhausted: Option<OnExhausted> = None,
    }
}

impl Field for RetryConfig {
    const KIND: &'static str = "table";

    fn keys() -> Option<Vec<Key>> {
        Some(<Self as Section>::keys())
    }
}

section! {
    /// A subscription: a named consumer group on named topics, with its policy. The table's name is the subscription's.
    pub struct SubscriptionConfig {
        /// `group.id`. Empty: the subscription's name. Two subscriptions cannot share a group.
        group: String = String::new(),
        /// Names of topics: at least one.
        topics: Vec<String> = Vec::new(),
        /// Order among records of a partition. `key`: records of one key are worked one after another, by offset, retries
        /// included; a null key has no order. `partition`: all records of a partition are. See docs/ordering.md.
        ordering: Ordering = Ordering::None,
        /// Where a group without any commit of a topic begins. A partition that appears later starts at its beginning.
        start: Start = Start::Earliest,
        /// `on_session` joins the group with the first session and leaves it `leave_delay` after the last, so that a node
        /// without workers holds no partitions; `at_start` joins at once.
        join: Join = Join::OnSession,
        /// With `join = "on_session"`: the group is left this long after the last session.
        #[serde(with = "duration")]
        leave_delay: Duration = Duration::from_secs(10),
        /// A lease that is neither settled nor extended for this long expires. A client may ask for less.
        #[serde(with = "duration")]
        ack_timeout: Duration = Duration::from_secs(300),
        /// The longest that a client may extend a lease at once.
        #[serde(with = "duration")]
        max_ack_timeout: Duration = Duration::from_secs(12 * 3_600),
        /// The longest delay that a client may ask for in a retry.
        #[serde(with = "duration")]
        max_retry_delay: Duration = Duration::from_secs(3_600),
        /// A session is broken when nothing came from it for this long.
        #[serde(with = "duration")]
        session_timeout: Duration = Duration::from_secs(30),
        /// A broken session with a `consumer_id` keeps its leases this long for a reconnect.
        #[serde(with = "duration")]
        resume_timeout: Duration = Duration::from_secs(3),
        /// What happens to a record that failed.
        retry: RetryConfig = RetryConfig::default(),
        /// The topic for records that failed `max_attempts` times, that a client gave up, or that cannot be sent to any
        /// client. Empty: none, and they go the way of `retry.on_exhausted`. The gateway does not make it: it must be there.
        dead_letter_topic: String = String::new(),
        /// A record with more bytes of key, value and headers is not dealt: it goes to the dead letters as `too_large`.
        max_record_bytes: Size = Size::mib(64),
        /// A record that has fitted the `max_frame_bytes` of no connected session for this long goes to the dead letters as
        /// `too_large`.
        #[serde(with = "duration")]
        too_large_after: Duration = Duration::from_secs(300),
        /// A partition is stuck when its oldest record not done is older than this, or its span is above 80 % of `span_limit` and
        /// mostly done: `sluice_partition_stuck` is 1, the log says so once, ListPartitions shows who holds the record.
        #[serde(with = "duration")]
        stuck_after: Duration = Duration::from_secs(300),
        /// A commit at least this often while something changed.
        #[serde(with = "duration")]
        commit_interval: Duration = Duration::from_millis(250),
        /// And as soon as this many records became done since the last commit.
        commit_count: u64 = 10_000,
        /// A commit without a reply after this is given up.
        #[serde(with = "duration")]
        commit_deadline: Duration = Duration::from_secs(5),
        /// Records received above the frontier, a partition. At the limit the partition is not fetched.
        span_limit: u64 = 1_000_000,
        /// Bytes held, a partition. At the limit the partition is not fetched.
        partition_bytes: Size = Size::mib(64),
        /// This subscription's share of `limits.memory_budget`: at it nothing is fetched. Absent: what the others leave,
        /// divided evenly.
        memory_reserved: Option<Size> = None,
        /// Bytes that are ready to be dealt while every session is full. At the limit nothing is taken out of the prefetch.
        ready_bytes: Size = Size::mib(2),
        /// Bytes that librdkafka fetches ahead, beside the memory budget (`queued.max.messages.kbytes`). What is small stays
        /// in the processor's caches; a slow way to the brokers may need more.
        prefetch: Size = Size::mib(2),
        /// Group protocol. `consumer` is KIP-848 (broker 4.0 or later): session timeout and heartbeat are then the broker's.
        protocol: Protocol = Protocol::Classic,
        /// Classic only: who gets which partition.
        assignor: Assignor = Assignor::CooperativeSticky,
        /// Classic only: a gateway that is silent for this long is out of the group (`session.timeout.ms`).
        #[serde(with = "duration")]
        kafka_session_timeout: Duration = Duration::from_secs(10),
        /// Classic only: how often it says that it lives (`heartbeat.interval.ms`).
        #[serde(with = "duration")]
        heartbeat_interval: Duration = Duration::from_millis(250),
        /// Be a static member (`group.instance.id` is `node.name`, which no other node may have): a restart within
        /// `kafka_session_timeout` moves no partition. The price: a static member never leaves, so after a SIGTERM without a
        /// restart, and whenever its last client has gone, its partitions are without an owner for `kafka_session_timeout`.
        static_membership: bool = false,
        /// When the group takes a partition back, open leases have this long to be settled: at most 10 s, and at most half
        /// of `max.poll.interval.ms`.
        #[serde(with = "duration")]
        revoke_grace: Duration = Duration::from_secs(5),
        /// New partitions are seen after this at the latest (`topic.metadata.refresh.interval.ms`), and who else is in the group.
        #[serde(with = "duration")]
        metadata_refresh: Duration = Duration::from_secs(10),
        /// Ask Kafka each `metadata_refresh` who is in the group: foreign members and other policies are then said, and
        /// `peers.from_group` finds nodes. A process of its own asks, `sluice describe-groups`, for all subscriptions of one Kafka at
        /// once, and ends. Where nothing is set: in a cluster, and not by a node without `[peers]`.
        describe_group: Option<bool> = None,
        /// librdkafka properties for this subscription, over `kafka.properties`.
        kafka: BTreeMap<String, String> = BTreeMap::new(),
    }
}
