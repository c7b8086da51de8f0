//! The demo worker: one consumer, a few records worked at once, settled in the order in which the work happens to end.

use std::time::Duration;

use sluice_client::{Consumer, Record};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::dev::DEMO;
use crate::dev::samples::Random;

/// Records worked at once.
const WINDOW: u32 = 16;
/// One record in so many fails at its first try.
const FAILURES: u64 = 40;
/// At the end the work that is under way gets this.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Works until told to stop.
pub(super) async fn run(server: String, mut stopped: watch::Receiver<bool>) {
    let connect = Consumer::builder(&server, DEMO).window(WINDOW).connect();
    let mut consumer = tokio::select! {
        connected = connect => match connected {
            Ok(consumer) => consumer,
            Err(error) => return tracing::error!(%error, "the demo worker cannot connect"),
        },
        _ = stopped.wait_for(|stop| *stop) => return,
    };
    let mut random = Random::new();
    let mut work = JoinSet::new();
    loop {
        tokio::select! {
            next = consumer.next() => match next {
                Ok(Some(record)) => {
                    let takes = Duration::from_millis(5 + random.below(150));
                    let fails = record.attempts() == 0 && random.below(FAILURES) == 0;
                    work.spawn(handle(record, takes, fails));
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::error!(%error, "the demo worker ended");
                    break;
                }
            },
            // Keeps the set small; a panic in there was printed there.
            Some(_) = work.join_next() => {}
            _ = stopped.wait_for(|stop| *stop) => break,
        }
    }
    let finish = async {
        while work.join_next().await.is_some() {}
        consumer.close(CLOSE_TIMEOUT).await
    };
    // What is not finished by then is given back with the stream's end.
    let _unfinished = tokio::time::timeout(CLOSE_TIMEOUT, finish).await;
}

async fn handle(record: Record, takes: Duration, fails: bool) {
    tokio::time::sleep(takes).await;
    if fails {
        record.retry_because("the demo lets a record fail now and then");
    } else {
        record.ack();
    }
}
