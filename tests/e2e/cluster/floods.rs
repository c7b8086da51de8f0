//! Peers that do what no node does: one that sends and never reads, and connections that say nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sluice_proto::peer::v1::relay_request::Request;
use sluice_proto::peer::v1::relay_service_client::RelayServiceClient;
use sluice_proto::peer::v1::{Grant, Hello, Open, Ping, RelayRequest};
use sluice_proto::v1::Flow;
use sluice_tests::{Cluster, GatewayConfig, SOON, Wire, broker, eventually, unique};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::cluster;
use crate::subscription;

const GIVEN_UP: &str = "sluice_peer_connections_given_up_total";

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_sends_and_never_reads_is_given_up_and_its_leases_return() {
    let kafka = broker();
    let topic = kafka.topic("deaf", 1);
    kafka.fill(&topic, 1, 10, 32);
    let group = unique("deaf");
    let cluster = cluster(2, &group, &topic, &["join = \"at_start\""]).await;
    let owner = cluster.owners(&group, 1).await[0];
    let node = &cluster.nodes[owner];

    let address = cluster.way(1 - owner, owner).target();
    let channel = Channel::from_shared(format!("http://{address}")).expect("a URI").connect().await.expect("connect");
    let (requests, outgoing) = mpsc::channel(1_024);
    let say = async |session: u64, request: Request| {
        requests.send(RelayRequest { session, request: Some(request) }).await.expect("the stream is open");
    };
    let revision = sluice_proto::REVISION;
    say(0, Request::Hello(Hello { revision, node: "deaf".to_owned(), instance: 7, ..Hello::default() })).await;
    let unread = RelayServiceClient::new(channel).relay(ReceiverStream::new(outgoing)).await.expect("it is served");
    let open = Open { subscription: group.clone(), token: unique("deaf"), client: "x".to_owned(), ..Open::default() };
    say(1, Request::Open(open)).await;
    let grant =
        |number| Request::Grant(Grant { number, flow: Some(Flow { max_records: 10, max_bytes: 0 }), whole: true });
    say(1, grant(1)).await;
    eventually("it is dealt all there is", SOON, async || {
        let leased: Vec<i64> = node.partitions(&group).await.into_iter().map(|one| one.leased).collect();
        if leased == [10] { Ok(()) } else { Err(leased) }
    })
    .await;

    // It goes on until nobody takes anything of it any more.
    let flood = tokio::spawn(async move {
        for number in 2.. {
            let asked = [(1, grant(number)), (0, Request::Ping(Ping {}))];
            for (session, request) in asked {
                if requests.send(RelayRequest { session, request: Some(request) }).await.is_err() {
                    return;
                }
            }
        }
    });
    eventually("it is given up", SOON, async || {
        let given_up = node.metric(GIVEN_UP, "");
        if given_up == Some(1.0) { Ok(()) } else { Err(given_up) }
    })
    .await;
    let mut wire = Wire::subscribe(node, &group, 10).await;
    let records = wire.records(10).await;
    assert_eq!(records.iter().map(|record| record.attempts).sum::<u32>(), 0, "nobody is to blame");
    // Those that read are none the worse.
    cluster.knows(1).await;
    assert_eq!(cluster.nodes[1 - owner].metric(GIVEN_UP, ""), Some(0.0));
    flood.abort();
    drop(unread);
}

/// Connects from there, says nothing, and does it again whenever it is hung up on.
async fn says_nothing(from: SocketAddr, to: SocketAddr, opened: Arc<AtomicUsize>) {
    loop {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(from).expect("an address of this machine");
        if let Ok(mut stream) = socket.connect(to).await {
            opened.fetch_add(1, Ordering::Relaxed);
            let _hung_up = stream.read(&mut [0; 1]).await;
        }
        // More often would be a test of this machine.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_say_nothing_keep_no_peer_out() {
    const SILENT: usize = 300;
    let kafka = broker();
    let topic = kafka.topic("silent", 1);
    // Nobody leaves a place because his time is over.
    let config = GatewayConfig::new(kafka).peers("timeout = \"5m\"");
    let config = config.subscription(subscription(&unique("silent"), &[&topic], &[]));
    let mut cluster = Cluster::start(&config, 2).await;
    cluster.knows(1).await;
    cluster.nodes[1].kill();
    let to = cluster.way(1, 0).target().parse().expect("an address");
    let opened = Arc::new(AtomicUsize::new(0));
    let mut silent = JoinSet::new();
    for _ in 0..SILENT {
        silent.spawn(says_nothing("127.0.0.2:0".parse().expect("an address"), to, opened.clone()));
    }
    eventually("there are more than may be", SOON, async || {
        let busy = cluster.nodes[0].metric("sluice_peer_connections_refused_total", "reason=\"busy\"");
        if busy >= Some(1.0) { Ok(()) } else { Err((busy, opened.load(Ordering::Relaxed))) }
    })
    .await;
    cluster.nodes[1].restart();
    cluster.knows(1).await;
    eventually("those that were closed come again", SOON, async || {
        let opened = opened.load(Ordering::Relaxed);
        if opened > SILENT { Ok(()) } else { Err(opened) }
    })
    .await;
}
