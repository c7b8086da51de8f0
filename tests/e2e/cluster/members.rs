//! Who joins the Kafka group.

use std::time::{Duration, Instant};

use sluice_tests::wire::Wire;
use sluice_tests::{SOON, broker, eventually, unique};

use super::cluster;

#[tokio::test(flavor = "multi_thread")]
async fn of_eight_nodes_at_most_three_are_members_where_there_are_three_partitions() {
    let kafka = broker();
    let topic = kafka.topic("members", 3);
    let group = unique("members");
    let cluster = cluster(8, &group, &topic, &["leave_delay = \"2s\""]).await;
    assert_eq!(kafka.group(&group).1, [""; 0], "nobody has a client");
    // A client on each: members do not follow clients.
    let mut wires = Vec::new();
    for node in &cluster.nodes {
        wires.push(Wire::subscribe(node, &group, 10).await);
    }
    let most = |until: Duration| {
        let start = Instant::now();
        let (mut most, mut last) = (0, Vec::new());
        while start.elapsed() < until {
            let (state, members) = kafka.group(&group);
            if state == "Stable" {
                most = most.max(members.len());
                last = members;
            }
        }
        (most, last)
    };
    eventually("three are members", SOON, async || {
        let (most, members) = tokio::task::block_in_place(|| most(Duration::from_millis(200)));
        assert!(most <= 3, "{most} members at a stable generation: {members:?}");
        if members.len() == 3 { Ok(()) } else { Err(members) }
    })
    .await;
    let (seen, members) = tokio::task::block_in_place(|| most(Duration::from_secs(15)));
    assert_eq!((seen, members.len()), (3, 3), "{members:?}");
    cluster.spread(&group, 3, 3).await;
    drop(wires);
    eventually("the group is left", SOON, async || {
        let (_, members) = tokio::task::block_in_place(|| kafka.group(&group));
        if members.is_empty() { Ok(()) } else { Err(members) }
    })
    .await;
}
