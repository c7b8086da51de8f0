//! An operator's seek, asked of a node that does not own what is sought.

use std::collections::BTreeSet;
use std::process::Command;

use sluice_proto::peer::v1::SeekRequest;
use sluice_proto::peer::v1::relay_service_client::RelayServiceClient;
use sluice_proto::v1::PartitionOffset;
use sluice_proto::v1::seek_subscription_request::Target;
use sluice_tests::executable::executable;
use sluice_tests::wire::Wire;
use sluice_tests::{broker, unique};
use tonic::Code;

use super::cluster;
use crate::committed_to_the_end;
use crate::seek::{offsets, seek};

#[tokio::test(flavor = "multi_thread")]
async fn a_seek_moves_the_partitions_of_all_nodes_whichever_is_asked() {
    let kafka = broker();
    let (topic, group) = (kafka.topic("everywhere", 3), unique("everywhere"));
    let cluster = cluster(3, &group, &topic, &[]).await;
    let mut wire = Wire::subscribe(&cluster.nodes[1], &group, 100).await;
    let owners = cluster.spread(&group, 3, 3).await;
    assert_eq!(owners.iter().collect::<BTreeSet<_>>().len(), 3);
    kafka.fill(&topic, 3, 60, 32);
    let first = wire.records(60).await;
    wire.ack(&first);
    committed_to_the_end(kafka, &group, &topic).await;
    let moved = seek(&cluster.nodes[0], &group, Target::Earliest(true)).await.expect("it seeks");
    assert_eq!(offsets(&moved.before), [(0, 20), (1, 20), (2, 20)].into());
    assert_eq!(offsets(&moved.after), [(0, 0), (1, 0), (2, 0)].into());
    let committed = kafka.committed(&group, &topic);
    assert!(committed.values().all(|(offset, _)| *offset == 0), "{committed:?}");
    let again = wire.records(60).await;
    let places =
        |leases: &[sluice_tests::Lease]| leases.iter().map(|one| (one.partition, one.offset)).collect::<BTreeSet<_>>();
    assert_eq!(places(&again), places(&first));
    wire.ack(&again);
    committed_to_the_end(kafka, &group, &topic).await;
    // As a command, of another node.
    let server = format!("http://{}", cluster.nodes[2].address());
    let seek = |more: &[&str]| {
        let mut command = Command::new(executable());
        let args = ["seek", "--server", &server, "-s", &group, "--to"];
        command.args(args).args(more).output().expect("run sluice seek")
    };
    let shown = seek(&[&format!("{topic}:1=7"), "--dry-run"]);
    let text = String::from_utf8_lossy(&shown.stdout);
    assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
    let cells: Vec<&str> = text.lines().last().unwrap_or_default().split_whitespace().collect();
    assert_eq!(cells, [topic.as_str(), "1", "20", "7"], "{text}");
    let refused = seek(&[&format!("{topic}:1=70")]);
    let why = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && why.contains("0 to 20"), "{why}");
    committed_to_the_end(kafka, &group, &topic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_seeks_to_no_offset_is_refused_and_stops_nothing() {
    let kafka = broker();
    let (topic, group) = (kafka.topic("no-offset", 1), unique("no-offset"));
    let cluster = cluster(2, &group, &topic, &[]).await;
    let mut wire = Wire::subscribe(&cluster.nodes[0], &group, 20).await;
    let owner = cluster.owners(&group, 1).await[0];
    let address = cluster.way(1 - owner, owner).address();
    let mut peer = RelayServiceClient::connect(format!("http://{address}")).await.expect("plain on loopback");
    let offset = PartitionOffset { topic: topic.clone(), partition: 0, offset: -5 };
    let asked = peer.seek(SeekRequest { subscription: group.clone(), offsets: vec![offset] }).await;
    assert_eq!(asked.expect_err("below 0").code(), Code::InvalidArgument);
    kafka.fill(&topic, 1, 10, 32);
    let records = wire.records(10).await;
    wire.ack(&records);
    committed_to_the_end(kafka, &group, &topic).await;
}
