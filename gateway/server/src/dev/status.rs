//! The status line of `sluice dev`, asked from the gateway as any operator would.

use std::time::{Duration, Instant};

use sluice_proto::v1::subscription_service_client::SubscriptionServiceClient;
use sluice_proto::v1::{GetStatsRequest, ListPartitionsRequest, Stats};
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint};

use crate::cli::Output;
use crate::dev::DEMO;

/// The first line is waited for, so it comes as soon as there is something to say.
const FIRST: Duration = Duration::from_millis(250);
/// Joining a group takes a few seconds; after this zeros are worth a line.
const PATIENCE: Duration = Duration::from_secs(10);
const EVERY: Duration = Duration::from_secs(3);

/// Prints a line now and then until told to stop, or until nobody reads.
pub(super) async fn print(server: String, mut stopped: watch::Receiver<bool>) {
    let channel = match Endpoint::from_shared(server) {
        Ok(endpoint) => endpoint.connect_lazy(),
        Err(error) => return tracing::error!(%error, "no status"),
    };
    let started = Instant::now();
    let mut client = SubscriptionServiceClient::new(channel);
    let mut wait = FIRST;
    loop {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = stopped.wait_for(|stop| *stop) => return,
        }
        let (stats, lag) = match ask(&mut client).await {
            Ok(answer) => answer,
            Err(status) => {
                tracing::warn!(%status, "no status");
                wait = EVERY;
                continue;
            }
        };
        if stats.committed == 0 && started.elapsed() < PATIENCE {
            continue;
        }
        wait = EVERY;
        if Output.line(line(started.elapsed(), &stats, lag)).is_err() {
            return;
        }
    }
}

async fn ask(client: &mut SubscriptionServiceClient<Channel>) -> Result<(Stats, i64), tonic::Status> {
    let stats = client.get_stats(GetStatsRequest { subscription: DEMO.to_owned() }).await?.into_inner();
    let partitions =
        client.list_partitions(ListPartitionsRequest { subscription: DEMO.to_owned() }).await?.into_inner();
    let lag = partitions.partitions.iter().map(|partition| partition.lag.max(0)).sum();
    Ok((stats.total.unwrap_or_default(), lag))
}

fn line(up: Duration, stats: &Stats, lag: i64) -> String {
    let Stats { received, delivered, acked, retried, committed, .. } = stats;
    format!(
        "  {:>4}s  received {received}  delivered {delivered}  acked {acked}  retried {retried}  committed {committed}  lag {lag}",
        up.as_secs()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_line_says_what_happened() {
        let stats = Stats { received: 90, delivered: 88, acked: 80, retried: 2, committed: 71, ..Stats::default() };
        insta::assert_snapshot!(line(Duration::from_secs(4), &stats, 19), @"     4s  received 90  delivered 88  acked 80  retried 2  committed 71  lag 19");
    }
}
