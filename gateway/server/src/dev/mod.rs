//! `sluice dev`: everything in one process, with sample events and a demo worker that shows it working.

mod samples;
mod status;
mod worker;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use sluice_kafka::mock::MockBroker;
use sluice_kafka::tools::{Producer, create_topics};
use tokio::sync::watch;

use crate::cli::signals::Signals;
use crate::cli::{Output, logs};
use crate::config::{Config, LogConfig, RetryConfig, SubscriptionConfig};
use crate::node::Node;

/// The demo worker's subscription.
const DEMO: &str = "demo";
const PARTITIONS: i32 = 4;
/// A broker that does not answer within this is not there.
const BROKER_TIMEOUT: Duration = Duration::from_secs(10);
/// `dev` ends within this, whatever clients still hold.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Try sluice without a Kafka: a broker in memory, a gateway, sample events and a demo worker.
///
/// Not for production: the broker keeps nothing over a restart and at most 5 MiB a partition.
#[derive(Debug, Parser)]
pub(crate) struct Args {
    /// Use a real Kafka instead of the broker in memory. The sample topics are made if they are missing.
    #[arg(long, short, value_name = "HOST:PORT")]
    brokers: Option<String>,
    /// Address of the gRPC listener.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7070")]
    listen: SocketAddr,
    /// Address of the admin listener: /metrics, /healthz, /readyz.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7071")]
    admin_listen: SocketAddr,
    /// Sample events a second, both topics together. 0: none.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    rate: u32,
}

/// Where the sample events are: the topics' names at the broker.
#[derive(Debug, Clone)]
struct Topics {
    orders: String,
    pod_events: String,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    // The broker in memory does not tell topics' ids, which is worth a warning elsewhere.
    let quiet = if args.brokers.is_none() { ",sluice_kafka::lookup=error" } else { "" };
    logs::init(&LogConfig { level: format!("warn{quiet}"), ..LogConfig::default() })?;
    let mut signals = Signals::new()?;
    let started = tokio::select! {
        started = start(&args) => started?,
        _ = signals.next() => return Ok(()),
    };
    let (stop, stopped) = watch::channel(false);
    let server = format!("http://{}", started.node.grpc_addr());
    for line in banner(&args, &started) {
        Output.line(line)?;
    }
    let producer = Producer::new(&started.brokers, &BTreeMap::new(), BROKER_TIMEOUT)?;
    let tasks = [
        tokio::spawn(samples::produce(producer, started.topics.clone(), args.rate, stopped.clone())),
        tokio::spawn(worker::run(server.clone(), stopped.clone())),
        tokio::spawn(status::print(server, stopped)),
    ];
    let (signal, _) = signals.next().await;
    // A terminal that is gone does not keep us from ending well.
    let _gone = Output.line(format_args!("{signal}: giving back what is leased, then ending"));
    signals
        .or_exit(async {
            // The tasks hold clones of the receiver until they end; they end because of this.
            let _no_task_left = stop.send(true);
            for task in tasks {
                // A panic there was printed there, and the others must end all the same.
                let _panicked = task.await;
            }
            started.node.shutdown().await;
        })
        .await;
    Ok(())
}

/// What runs.
struct Started {
    brokers: String,
    topics: Topics,
    node: Node,
    /// The last to go.
    _broker: Option<MockBroker>,
}

async fn start(args: &Args) -> anyhow::Result<Started> {
    let (brokers, topics, broker) = match &args.brokers {
        None => {
            let topics = Topics { orders: "orders".to_owned(), pod_events: "pod-events".to_owned() };
            let broker = MockBroker::start(&[(&topics.orders, PARTITIONS), (&topics.pod_events, PARTITIONS)])?;
            (broker.bootstrap_servers().to_owned(), topics, Some(broker))
        }
        Some(brokers) => {
            // Names of our own: nobody's real topic `orders` shall get sample events.
            let topics =
                Topics { orders: "sluice-dev.orders".to_owned(), pod_events: "sluice-dev.pod-events".to_owned() };
            let wanted = [(topics.orders.as_str(), PARTITIONS), (topics.pod_events.as_str(), PARTITIONS)];
            create_topics(brokers, &BTreeMap::new(), &wanted, BROKER_TIMEOUT)
                .await
                .with_context(|| format!("cannot make the sample topics at {brokers}"))?;
            (brokers.clone(), topics, None)
        }
    };
    let config = config(args, &brokers, &topics, broker.is_some());
    config.check()?;
    let node = Node::start(config).await.with_context(|| {
        format!(
            "cannot start the gateway (--listen {}, --admin-listen {}; port 0 takes a free one)",
            args.listen, args.admin_listen
        )
    })?;
    Ok(Started { brokers, topics, node, _broker: broker })
}

fn config(args: &Args, brokers: &str, topics: &Topics, in_memory: bool) -> Config {
    let mut config = Config::default();
    config.node.listen = args.listen;
    config.node.admin_listen = args.admin_listen;
    config.node.drain_timeout = DRAIN_TIMEOUT;
    brokers.clone_into(&mut config.kafka.brokers);
    if in_memory {
        // The broker in memory answers a fetch only when it has waited this long.
        config.kafka.properties.insert("fetch.wait.max.ms".to_owned(), "10".to_owned());
    }
    let retry = RetryConfig { initial_backoff: Duration::from_millis(500), ..RetryConfig::default() };
    // The broker in memory lets a group that changes wait for almost a session timeout.
    let kafka_session_timeout =
        if in_memory { Duration::from_secs(3) } else { SubscriptionConfig::default().kafka_session_timeout };
    let subscription = |name: &str, topics: &[&String]| SubscriptionConfig {
        kafka_session_timeout,
        group: format!("sluice-dev-{name}"),
        topics: topics.iter().map(ToString::to_string).collect(),
        retry: retry.clone(),
        ..SubscriptionConfig::default()
    };
    for (name, topics) in [
        ("orders", vec![&topics.orders]),
        ("pod-events", vec![&topics.pod_events]),
        (DEMO, vec![&topics.orders, &topics.pod_events]),
    ] {
        config.subscriptions.insert(name.to_owned(), subscription(name, &topics));
    }
    config
}

/// What this is, what it is not for, and what to try.
fn banner(args: &Args, started: &Started) -> Vec<String> {
    let Started { brokers, topics, node, .. } = started;
    let (grpc, admin) = (node.grpc_addr(), node.admin_addr());
    let me = invocation();
    let server = if grpc.port() == 7070 { String::new() } else { format!(" --server http://{grpc}") };
    let what = if args.brokers.is_some() {
        [
            format!("sluice dev: a gateway on your Kafka at {brokers}, sample events, and a demo worker."),
            "For trying sluice, not for production: no config file, short drains, groups named sluice-dev-*."
                .to_owned(),
        ]
    } else {
        [
            "sluice dev: a Kafka broker in memory, a gateway, sample events, and a demo worker, all in this process.".to_owned(),
            "For trying sluice, not for production: nothing survives its end, and the broker keeps 5 MiB a partition and\n\
             drops what is older in silence; no transactions, no admin calls. A real Kafka: --brokers HOST:PORT."
                .to_owned(),
        ]
    };
    let mut lines: Vec<String> = what.into();
    lines.extend([
        String::new(),
        format!("  gRPC   {grpc}   subscriptions: orders, pod-events, demo"),
        format!("  admin  http://{admin}   /metrics /healthz /readyz"),
        format!("  Kafka  {brokers}   topics: {}, {}; any Kafka client may connect", topics.orders, topics.pod_events),
        String::new(),
        "Try in another terminal:".to_owned(),
        format!("  {me} consume --subscription orders --max-records 10{server}"),
        format!("  {me} consume --subscription pod-events --ack none --max-records 3{server}"),
        format!(
            "  {me} produce --brokers {brokers} --topic {} --key customer-7 --value '{{\"hello\":\"sluice\"}}'",
            topics.orders
        ),
        format!("  curl -s http://{admin}/readyz"),
        format!("  curl -s http://{admin}/metrics | grep ^sluice_"),
        String::new(),
        format!(
            "The demo worker leases from both topics ({DEMO}), settles out of order and lets some records fail once:"
        ),
    ]);
    lines
}

/// How this program was called, so that what we print can be typed.
fn invocation() -> String {
    let called = std::env::args().next().unwrap_or_else(|| "sluice".to_owned());
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@".contains(c);
    if called.chars().all(plain) { called } else { format!("'{}'", called.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_config_of_dev_is_consistent() {
        let args = Args::parse_from(["dev"]);
        let topics = Topics { orders: "orders".to_owned(), pod_events: "pod-events".to_owned() };
        config(&args, "127.0.0.1:9092", &topics, true).check().unwrap();
    }
}
