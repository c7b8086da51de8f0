//! `sluice nodes`: the cluster, as a person looks at it.

use clap::Parser;
use sluice_proto::v1::{ListNodesRequest, ListSubscriptionsRequest, Node};

use crate::cli::Output;
use crate::cli::operator::{Server, said, table};

/// Show the nodes of the cluster: who is a member of the group, who owns how many partitions, whose clients get what from where.
///
/// `relayed` is the share of records that a node's clients were dealt by other nodes since it started. `policy` is a hash of what
/// nodes must agree on: a node that shows another than the rest has another config.
#[derive(Debug, Parser)]
pub(crate) struct Args {
    /// Only this subscription. Without it: all of them.
    #[arg(long, short)]
    subscription: Option<String>,
    #[command(flatten)]
    server: Server,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let mut operator = args.server.connect().await?;
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
    for line in table(HEAD, &rows, TEXTS) {
        Output.line(line)?;
    }
    Ok(())
}

const HEAD: [&str; 8] = ["SUBSCRIPTION", "NODE", "MEMBER", "PARTITIONS", "CLIENTS", "DELIVERED", "RELAYED", "POLICY"];
/// The first columns are no numbers.
const TEXTS: usize = 3;

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
        insta::assert_snapshot!(table(HEAD, &rows, TEXTS).join("\n"), @r"
        SUBSCRIPTION  NODE    MEMBER  PARTITIONS  CLIENTS  DELIVERED  RELAYED    POLICY
        orders        node-a  yes              3       12       1000     10 %  1a2b3c4d
        orders        b       no               0       12          0        -  1a2b3c4d
        ");
    }
}
