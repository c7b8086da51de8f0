//! Sample events: orders keyed by customer, and what happens to pods, keyed by pod.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde_json::json;
use sluice_kafka::tools::{Outgoing, Producer};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::dev::Topics;

const ITEMS: [(&str, u64); 5] =
    [("espresso", 280), ("flat white", 390), ("croissant", 310), ("filter", 350), ("cake", 470)];
const APPS: [&str; 4] = ["checkout", "catalog", "payments", "mailer"];
const REASONS: [(&str, &str, &str); 5] = [
    ("Normal", "Scheduled", "Successfully assigned pod to node"),
    ("Normal", "Pulled", "Container image already present on machine"),
    ("Normal", "Started", "Started container"),
    ("Warning", "BackOff", "Back-off restarting failed container"),
    ("Warning", "Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 503"),
];

/// Writes `rate` events a second until told to stop.
pub(super) async fn produce(producer: Producer, topics: Topics, rate: u32, mut stopped: watch::Receiver<bool>) {
    let mut random = Random::new();
    let mut ticks = (rate > 0).then(|| {
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate);
        // After a pause the trickle goes on; it does not catch up with a flood.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks
    });
    for n in 1u64.. {
        let tick = async {
            match &mut ticks {
                Some(ticks) => _ = ticks.tick().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = tick => {}
            _ = stopped.wait_for(|stop| *stop) => break,
        }
        let event =
            if n.is_multiple_of(2) { pod_event(n, &topics, &mut random) } else { order(n, &topics, &mut random) };
        let sent = producer.send(&event);
        tokio::spawn(async move {
            if let Err(error) = sent.await {
                tracing::warn!(%error, "a sample event was not written");
            }
        });
    }
    // Blocks a moment at most: the broker is near, and the process ends anyway.
    producer.flush(Duration::from_millis(500));
}

fn order(n: u64, topics: &Topics, random: &mut Random) -> Outgoing {
    let customer = format!("customer-{}", random.below(20));
    let (item, price_cents) = ITEMS[random.index(ITEMS.len())];
    let quantity = 1 + random.below(3);
    let value = json!({
        "order_id": n, "customer": customer, "item": item, "quantity": quantity,
        "total_cents": quantity * price_cents, "placed_at": now(),
    });
    outgoing(&topics.orders, customer, &value)
}

fn pod_event(n: u64, topics: &Topics, random: &mut Random) -> Outgoing {
    let pod = format!("{}-{}", APPS[random.index(APPS.len())], random.below(5));
    let (kind, reason, message) = REASONS[random.index(REASONS.len())];
    let value = json!({
        "apiVersion": "v1", "kind": "Event", "type": kind, "reason": reason, "message": message,
        "metadata": { "name": format!("{pod}.{n:x}"), "namespace": "default", "creationTimestamp": now() },
        "involvedObject": { "kind": "Pod", "name": pod, "namespace": "default" },
    });
    outgoing(&topics.pod_events, pod, &value)
}

fn outgoing(topic: &str, key: String, value: &serde_json::Value) -> Outgoing {
    Outgoing {
        topic: topic.to_owned(),
        key: Some(Bytes::from(key)),
        value: Some(Bytes::from(value.to_string())),
        headers: vec![("source".to_owned(), Bytes::from_static(b"sluice-dev"))],
    }
}

fn now() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

/// Enough chance for samples: xorshift64.
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new() -> Self {
        let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |now| now.as_nanos());
        Self(u64::try_from(nanos & u128::from(u64::MAX)).unwrap_or(1) | 1)
    }

    /// 0 to `n` − 1.
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }

    fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap_or_default()
    }
}
