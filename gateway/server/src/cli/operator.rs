//! What the commands that speak to a gateway have in common.

use std::time::Duration;

use anyhow::Context as _;
use sluice_proto::v1::subscription_service_client::SubscriptionServiceClient;
use tonic::transport::{Channel, Endpoint};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the cluster is.
#[derive(Debug, clap::Args)]
pub(crate) struct Server {
    /// Address of any node, or of the balancer.
    #[arg(
        long,
        value_name = "URL",
        default_value = "http://127.0.0.1:7070",
        env = "SLUICE_SERVER",
        hide_env_values = true
    )]
    server: String,
}

impl Server {
    pub(crate) fn url(&self) -> &str {
        &self.server
    }

    pub(crate) async fn connect(&self) -> anyhow::Result<SubscriptionServiceClient<Channel>> {
        let endpoint = Endpoint::from_shared(self.server.clone()).context("--server is not a URL")?;
        let channel = endpoint.connect_timeout(CONNECT_TIMEOUT).connect().await;
        Ok(SubscriptionServiceClient::new(channel.with_context(|| format!("connecting to {}", self.server))?))
    }
}

/// What a node answered, without what is of gRPC.
pub(crate) fn said(status: tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("{}", status.message())
}

/// Columns as wide as their widest cell. The first `texts` to the left, numbers to the right.
pub(crate) fn table<const N: usize>(head: [&str; N], rows: &[[String; N]], texts: usize) -> Vec<String> {
    let head = head.map(str::to_owned);
    let width = |at: usize| std::iter::once(&head).chain(rows).map(|row| row[at].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |row: &[String; N]| {
        let cells =
            row.iter().zip(&widths).enumerate().map(|(at, (cell, width))| {
                if at < texts { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    std::iter::once(&head).chain(rows).map(line).collect()
}
