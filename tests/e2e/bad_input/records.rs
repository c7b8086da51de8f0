//! Records that nobody expects.

use std::collections::BTreeMap;

use sluice_client::Consumer;
use sluice_proto::v1::Subscribe;
use sluice_tests::wire::{Wire, subscribe};
use sluice_tests::{GatewayConfig, NewRecord, SOON, broker, eventually, unique};

use crate::{committed_to_the_end, gateway, lag_is_zero, subscription};

#[tokio::test(flavor = "multi_thread")]
async fn unusual_records_come_as_they_are() {
    let kafka = broker();
    let topic = kafka.topic("unusual", 1);
    let many: Vec<_> = (0..1_000_u32)
        .map(|n| {
            let value = (n % 3 != 0).then(|| n.to_be_bytes().to_vec());
            (if n % 2 == 0 { "même".to_owned() } else { String::new() }, value)
        })
        .collect();
    let none = NewRecord { partition: Some(0), ..NewRecord::default() };
    let records = [
        NewRecord::to(0, ""),
        none.clone(),
        NewRecord::to(0, "v").key(""),
        NewRecord { value: None, ..none.clone() }.key("tombstone"),
        NewRecord { headers: many.clone(), ..none },
        NewRecord::to(0, [0xff, 0x00, 0xfe]).key([0x80, 0x81]),
    ];
    kafka.produce(&topic, records.clone());
    let group = unique("unusual");
    let gateway = gateway(&group, &topic, &[]);
    let mut consumer = Consumer::builder(gateway.address(), &group).connect().await.expect("connect");
    let mut seen = BTreeMap::new();
    while seen.len() < records.len() {
        let record = tokio::time::timeout(SOON, consumer.next()).await.expect("a record comes");
        let record = record.expect("the consumer lives").expect("the consumer is open");
        let headers = record.headers().map(|(name, value)| (name.to_owned(), value.map(|bytes| bytes.to_vec())));
        let found = NewRecord {
            partition: Some(record.partition()),
            key: record.key().map(|bytes| bytes.to_vec()),
            value: record.value().map(|bytes| bytes.to_vec()),
            headers: headers.collect(),
            timestamp_ms: None,
        };
        seen.insert(record.offset(), format!("{found:?}"));
        record.ack();
    }
    let expected: Vec<_> = records.iter().map(|record| format!("{record:?}")).collect();
    assert_eq!(seen.into_values().collect::<Vec<_>>(), expected);
    consumer.close(SOON).await.expect("closed in order");
    committed_to_the_end(kafka, &group, &topic).await;
    lag_is_zero(&gateway, &group).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_too_large_for_one_client_goes_to_another_and_holds_up_nothing_beside_it() {
    let kafka = broker();
    let topic = unique("too-large");
    kafka.create_topic(&topic, 1, &[("max.message.bytes", "8388608")]);
    let sizes = [10, 3 << 20, 10, 3 << 20, 10];
    kafka.produce(&topic, sizes.map(|bytes| NewRecord::to(0, vec![b'x'; bytes])));
    let group = unique("too-large");
    let gateway = GatewayConfig::new(kafka).subscription(subscription(&group, &[&topic], &[])).start();
    let mut small = Wire::connect(&gateway, Subscribe { max_frame_bytes: 1 << 20, ..subscribe(&group, 5) }).await;
    let fitting = small.records(3).await;
    assert_eq!(fitting.iter().map(|lease| lease.offset).collect::<Vec<_>>(), [0, 2, 4]);
    small.ack(&fitting);
    eventually("the rest is acked, and what does not fit waits", SOON, async || {
        let one = gateway.partitions(&group).await.remove(0);
        if (one.done_above_frontier, one.leased) == (2, 0) { Ok(()) } else { Err(one) }
    })
    .await;
    small.barrier().await;
    assert!(small.inbox.is_empty(), "nothing larger than its limit is dealt to it");
    // The default limit of every gRPC library takes one of them a frame.
    let mut large = Wire::subscribe(&gateway, &group, 5).await;
    let rest = large.records(2).await;
    assert_eq!(rest.iter().map(|lease| lease.offset).collect::<Vec<_>>(), [1, 3]);
    assert_eq!((rest[0].attempts, rest[1].sequence), (0, rest[0].sequence + 1), "uncounted, and in a frame each");
    large.ack(&rest);
    committed_to_the_end(kafka, &group, &topic).await;
    lag_is_zero(&gateway, &group).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_of_16_mib_comes_whole_to_a_client_that_takes_so_much() {
    const LARGE: usize = 16 << 20;
    let kafka = broker();
    let topic = unique("sixteen");
    kafka.create_topic(&topic, 1, &[("max.message.bytes", "20971520")]);
    // Not all the same byte: a piece in the wrong place would show.
    let large: Vec<u8> = (0..LARGE as u64 / 8).flat_map(u64::to_be_bytes).collect();
    let records = [NewRecord::to(0, "before"), NewRecord::to(0, large.clone()).key("k"), NewRecord::to(0, "after")];
    for record in records {
        kafka.produce(&topic, [record]);
    }
    let group = unique("sixteen");
    let gateway = GatewayConfig::new(kafka).subscription(subscription(&group, &[&topic], &[])).start();
    let mut small = Wire::subscribe(&gateway, &group, 10).await;
    let fitting = small.records(2).await;
    assert_eq!(fitting.iter().map(|lease| lease.offset).collect::<Vec<_>>(), [0, 2], "what fits goes on around it");
    small.ack(&fitting);
    let first = Subscribe { max_frame_bytes: 32 << 20, ..subscribe(&group, 10) };
    let mut able = Wire::connect(&gateway, first).await;
    let one = able.record().await;
    assert_eq!(one.key.as_deref(), Some(&b"k"[..]));
    assert!(one.value.as_deref() == Some(&large[..]), "byte for byte");
    able.ack(&[one]);
    committed_to_the_end(kafka, &group, &topic).await;
    lag_is_zero(&gateway, &group).await;
    kafka.delete_topic(&topic);
}
