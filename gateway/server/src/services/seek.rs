//! SeekSubscription: an operator moves the committed offsets, whichever nodes the partitions are on.

use std::collections::HashSet;
use std::time::SystemTime;

use sluice_core::{NextOffset, TopicPartition};
use sluice_kafka::{SeekError, SeekTo, Start};
use sluice_proto::v1 as pb;
use sluice_proto::v1::seek_subscription_request::Target;

use crate::error::Error;
use crate::node::Shared;
use crate::subscription::Targets;

/// Partitions that a message of an error names.
const NAMED_MAX: usize = 20;

/// Looks everything up before anything is changed; then each owner seeks in its partitions, and what nobody owns is committed.
pub(super) async fn seek(
    node: &Shared,
    request: pb::SeekSubscriptionRequest,
) -> Result<pb::SeekSubscriptionResponse, Error> {
    let handle = node.subscription(&request.name)?;
    let found = handle.find(target(request.target)?).await?;
    let committed = found.iter().filter_map(|one| Some(place(&one.partition, one.committed?)));
    let response = pb::SeekSubscriptionResponse {
        before: committed.collect(),
        after: found.iter().map(|one| place(&one.partition, one.offset)).collect(),
    };
    if request.validate_only {
        return Ok(response);
    }
    let mut left: Targets = found.into_iter().map(|one| (one.partition, NextOffset(one.offset))).collect();
    let done = match &node.cluster {
        Some(cluster) => cluster.seek(&request.name, &left).await?,
        None => handle.seek(left.clone()).await?,
    };
    let done: HashSet<TopicPartition> = done.into_iter().collect();
    left.retain(|(partition, _)| !done.contains(partition));
    if !left.is_empty() {
        handle.commit_for_nobody(left.clone()).await.map_err(|error| match error {
            SeekError::Moving => Error::SeekIncomplete {
                left: names(left.iter().map(|(partition, _)| partition)),
                done: names(done.iter()),
            },
            other => other.into(),
        })?;
    }
    tracing::info!(subscription = request.name, owned = done.len(), unowned = left.len(), "sought by an operator");
    Ok(response)
}

/// A partition and an offset, on the wire.
pub(crate) fn place(partition: &TopicPartition, offset: i64) -> pb::PartitionOffset {
    pb::PartitionOffset { topic: partition.topic.to_string(), partition: partition.partition, offset }
}

fn target(target: Option<Target>) -> Result<SeekTo, Error> {
    let invalid = |problem: &str| Error::Invalid { field: "target", problem: problem.to_owned() };
    match target {
        None => Err(invalid("say where to: time, earliest, latest or offsets")),
        Some(Target::Earliest(_)) => Ok(SeekTo::Start(Start::Earliest)),
        Some(Target::Latest(_)) => Ok(SeekTo::Start(Start::Latest)),
        Some(Target::Time(time)) => {
            let time = SystemTime::try_from(time).map_err(|_| invalid("the time cannot be represented"))?;
            Ok(SeekTo::Start(Start::Time(time)))
        }
        Some(Target::Offsets(pb::PartitionOffsets { offsets })) if offsets.is_empty() => {
            Err(invalid("offsets: name at least one partition"))
        }
        Some(Target::Offsets(pb::PartitionOffsets { offsets })) => {
            let of = |one: pb::PartitionOffset| (TopicPartition::new(one.topic, one.partition), one.offset);
            Ok(SeekTo::Offsets(offsets.into_iter().map(of).collect()))
        }
    }
}

fn names<'a>(partitions: impl ExactSizeIterator<Item = &'a TopicPartition>) -> String {
    let more = partitions.len().saturating_sub(NAMED_MAX);
    let mut names: Vec<_> = partitions.take(NAMED_MAX).map(ToString::to_string).collect();
    if more > 0 {
        names.push(format!("{more} more"));
    }
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
