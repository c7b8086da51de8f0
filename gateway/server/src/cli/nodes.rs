//! `sluice nodes`: the cluster, as a person looks at it.

use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use sluice_proto::v1::subscription_service_client::SubscriptionServiceClient;
use sluice_proto::v1::{ListNodesRequest, ListSubscriptionsRequest, Node};
use tonic::transport::Endpoint;

use crate::cli::Output;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Show the nodes of the cluster: who is a member of the group, who owns how many partitions, whose clients get what from where.
///
/// `relayed` is the share of records that a node's clients were dealt by other nodes since it started. `policy` is a hash of what
/// nodes must agree on: a node that shows another than the rest has another config.
#[derive(Debug, Parser)]
pub(crate) struct Args {
    /// Only this subscription. Without it: all of them.
    #[arg(long, short)]
    subscription: Option<String>,
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

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let endpoint = Endpoint::from_shared(args.server.clone()).context("--server is not a URL")?;
    let channel = endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .connect()
        .await
        .with_context(|| format!("connecting to {}", args.server))?;
    let mut operator = SubscriptionServiceClient::new(channel);
    let names = match args.subscription {
        Some(name) => vec![name],
        None => {
            let all = operator.list_subscriptions(ListSubscriptionsRequest {}).await.map_err(said)?.into_inner();
            all.subscriptions.into_iter().map(|one| one.name).collect()
        }
    };
    let mut rows = Vec::new();
    for subscription in names {
        let request = ListNodesRequest { subscription: subscription.clone() };
        let mut nodes = operator.list_nodes(request).await.map_err(said)?.into_inner().nodes;
        nodes.sort_by(|a, b| a.node.cmp(&b.node));
        rows.extend(nodes.iter().map(|node| row(&subscription, node)));
    }
    for line in table(&rows) {
        Output.line(line)?;
    }
    Ok(())
}

fn said(status: tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("{}", status.message())
}

const HEAD: [&str; 8] = ["SUBSCRIPTION", "NODE", "MEMBER", "PARTITIONS", "CLIENTS", "DELIVERED", "RELAYED", "POLICY"];

fn row(subscription: &str, node: &Node) -> [String; 8] {
    let delivered = node.delivered_local + node.delivered_relayed;
    let share = (node.delivered_relayed * 100).checked_div(delivered);
    [
        subscription.to_owned(),
        node.node.clone(),
        if node.member { "yes" } else { "no" }.to_owned(),
        node.partitions.to_string(),
        node.streams.to_string(),
        delivered.to_string(),
        share.map_or_else(|| "-".to_owned(), |share| format!("{share} %")),
        node.policy.clone(),
    ]
}

/// Columns as wide as their widest cell; numbers to the right.
fn table(rows: &[[String; 8]]) -> Vec<String> {
    let head = HEAD.map(str::to_owned);
    let width = |at: usize| std::iter::once(&head).chain(rows).map(|row| row[at].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
    let line = |row: &[String; 8]| {
        let cells = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(at, (cell, width))| if at < 3 { format!("{cell:<width$}") } else { format!("{cell:>width$}") });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    std::iter::once(&head).chain(rows).map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_how_much_is_relayed() {
        let node = |node: &str, member, partitions, delivered_local, delivered_relayed| Node {
            node: node.to_owned(),
            member,
            partitions,
            streams: 12,
            delivered_local,
            delivered_relayed,
            policy: "1a2b3c4d".to_owned(),
        };
        let rows = [row("orders", &node("node-a", true, 3, 900, 100)), row("orders", &node("b", false, 0, 0, 0))];
        insta::assert_snapshot!(table(&rows).join("\n"), @r"
        SUBSCRIPTION  NODE    MEMBER  PARTITIONS  CLIENTS  DELIVERED  RELAYED    POLICY
        orders        node-a  yes              3       12       1000     10 %  1a2b3c4d
        orders        b       no               0       12          0        -  1a2b3c4d
        ");
    }
}
