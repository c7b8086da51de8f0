//! A client that takes records, says so, and settles none: to be killed, frozen and half-closed from outside.
//!
//! `sluice-test-client ADDRESS SUBSCRIPTION WINDOW [CONSUMER_ID [OFFSET]]` prints one JSON line a record, and `subscribed`
//! first. With an offset it acks what it gets, and is gone at once when it gets that record, as by a signal. An empty
//! CONSUMER_ID is none.

use std::io::Write as _;

use sluice_proto::v1::Subscribe;
use sluice_tests::wire::{Seen, Wire, subscribe};
use tonic::transport::Channel;

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, subscription, window, rest @ ..] = arguments.as_slice() else {
        panic!("ADDRESS SUBSCRIPTION WINDOW [CONSUMER_ID]");
    };
    let channel =
        Channel::from_shared(format!("http://{address}")).expect("an address").connect().await.expect("connect");
    let first = subscribe(subscription, window.parse().expect("a window"));
    let dies_of: Option<i64> = rest.get(1).map(|offset| offset.parse().expect("an offset"));
    let first = Subscribe { consumer_id: rest.first().cloned().unwrap_or_default(), ..first };
    let mut wire = Wire::open(channel, first).await.expect("subscribe");
    say(&serde_json::json!({"event": "subscribed", "held": wire.subscribed.held.len()}));
    loop {
        let seen = wire.read(std::time::Duration::from_secs(3600)).await;
        let leases: Vec<_> = wire.inbox.drain(..).collect();
        for lease in &leases {
            say(&serde_json::json!({"event": "record", "offset": lease.offset, "attempts": lease.attempts}));
            if dies_of == Some(lease.offset) {
                std::process::abort();
            }
        }
        if dies_of.is_some() && !leases.is_empty() {
            wire.ack(&leases);
        }
        if let Seen::Ended(end) = seen {
            say(&serde_json::json!({"event": "ended", "status": format!("{end:?}")}));
            return;
        }
    }
}

fn say(line: &serde_json::Value) {
    let mut stdout = std::io::stdout().lock();
    // The test may be gone; then so is this process, in a moment.
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}
