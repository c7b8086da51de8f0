//! `sluice seek`: move the position of a subscription.

use anyhow::Context as _;
use clap::Parser;
use sluice_proto::v1::seek_subscription_request::Target;
use sluice_proto::v1::{PartitionOffset, PartitionOffsets, SeekSubscriptionRequest};

use crate::cli::Output;
use crate::cli::operator::{Server, said, table};

/// Move the committed offsets of a subscription, on whichever nodes its partitions are.
///
/// What is leased there is taken back, the new position is committed, and only then is dealt from it: all records from there on
/// come again, those too that were done. Prints each partition's offset before and after.
#[derive(Debug, Parser)]
pub(crate) struct Args {
    /// The subscription.
    #[arg(long, short)]
    subscription: String,
    /// Where to: `earliest`, `latest`, a time as 2026-01-31T12:00:00Z, or offsets as orders:0=17,orders:3=4, where partitions that
    /// are not named stay.
    #[arg(long, value_name = "WHERE", value_parser = target)]
    to: Target,
    /// Only show what would be done.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    server: Server,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let mut operator = args.server.connect().await?;
    let request =
        SeekSubscriptionRequest { name: args.subscription, target: Some(args.to), validate_only: args.dry_run };
    let moved = operator.seek_subscription(request).await.map_err(said)?.into_inner();
    let before = |of: &PartitionOffset| {
        let mut of_this = moved.before.iter().filter(|one| (&one.topic, one.partition) == (&of.topic, of.partition));
        of_this.next().map_or_else(|| "-".to_owned(), |one| one.offset.to_string())
    };
    let row = |of: &PartitionOffset| [of.topic.clone(), of.partition.to_string(), before(of), of.offset.to_string()];
    let rows: Vec<_> = moved.after.iter().map(row).collect();
    for line in table(["TOPIC", "PARTITION", "BEFORE", "AFTER"], &rows, 1) {
        Output.line(line)?;
    }
    Ok(())
}

fn target(text: &str) -> anyhow::Result<Target> {
    match text {
        "earliest" => return Ok(Target::Earliest(true)),
        "latest" => return Ok(Target::Latest(true)),
        _ => {}
    }
    if text.contains('=') {
        let offsets = text.split(',').map(offset).collect::<anyhow::Result<_>>()?;
        return Ok(Target::Offsets(PartitionOffsets { offsets }));
    }
    let time = humantime::parse_rfc3339(text);
    time.map(|time| Target::Time(time.into())).ok().context(
        "is not earliest, latest, a time as 2026-01-31T12:00:00Z, or offsets as topic:partition=offset,topic:partition=offset",
    )
}

fn offset(text: &str) -> anyhow::Result<PartitionOffset> {
    let parsed = || {
        let (place, offset) = text.split_once('=')?;
        let (topic, partition) = place.rsplit_once(':')?;
        Some(PartitionOffset {
            topic: topic.to_owned(),
            partition: partition.trim().parse().ok()?,
            offset: offset.trim().parse().ok()?,
        })
    };
    parsed().with_context(|| format!("{text:?} is not topic:partition=offset"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_to_is_a_word_a_time_or_offsets() {
        assert_eq!(target("latest").unwrap(), Target::Latest(true));
        let Target::Time(time) = target("1970-01-01T00:01:00Z").unwrap() else { panic!("a time") };
        assert_eq!(time.seconds, 60);
        let Target::Offsets(of) = target("a.b:0=17,c:3=4").unwrap() else { panic!("offsets") };
        let of: Vec<_> = of.offsets.iter().map(|one| (one.topic.as_str(), one.partition, one.offset)).collect();
        assert_eq!(of, [("a.b", 0, 17), ("c", 3, 4)]);
        for odd in ["", "now", "a:0=", "a=3", "a:0=1,", "a:x=1", "2026-01-31"] {
            target(odd).expect_err(odd);
        }
    }
}
