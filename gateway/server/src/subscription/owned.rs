//! What this node owns of a subscription, told to the rest of the cluster.

use std::sync::Arc;

use sluice_core::{Engine, Epoch, Millis, TopicPartition};
use sluice_kafka::{KafkaState, MissingRights};
use tokio::sync::{Notify, watch};

/// News of backlogs are at least this far apart; that a partition came or went is told at once.
const NEWS_GAP_MS: u64 = 20;

/// A partition that this node owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnedPartition {
    pub(crate) partition: TopicPartition,
    pub(crate) epoch: Epoch,
    /// Records that would be dealt if somebody had room.
    pub(crate) backlog: u64,
}

/// All of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Owned {
    pub(crate) partitions: Vec<OwnedPartition>,
    /// A member of the group, or on its way in or out.
    pub(crate) member: bool,
    /// What Kafka does not let this node read of the subscription. Empty: nothing that it has met.
    pub(crate) missing: MissingRights,
}

/// Keeps `Owned` up to date.
#[derive(Debug)]
pub(super) struct Publisher {
    owned: watch::Sender<Arc<Owned>>,
    news: Arc<Notify>,
    published_at: Millis,
    backlog: u64,
    /// A change waits for its time.
    is_stale: bool,
}

// === impl Owned ===

impl Owned {
    fn has_the_partitions_of(&self, engine: &Engine) -> bool {
        let mut known = self.partitions.iter().map(|one| (&one.partition, one.epoch));
        engine.backlogs().all(|(partition, epoch, _)| known.next() == Some((partition, epoch)))
            && known.next().is_none()
    }
}

// === impl Publisher ===

impl Publisher {
    pub(super) fn new(owned: watch::Sender<Arc<Owned>>, news: Arc<Notify>) -> Self {
        Self { owned, news, published_at: Millis(0), backlog: 0, is_stale: false }
    }

    /// To be called each turn.
    pub(super) fn publish(&mut self, now: Millis, engine: &Engine, member: bool, kafka: &KafkaState) {
        let last = self.owned.borrow().clone();
        let missing =
            if let KafkaState::RightsMissing(missing) = kafka { missing.clone() } else { MissingRights::default() };
        let moved = last.member != member || last.missing != missing || !last.has_the_partitions_of(engine);
        let backlog = engine.backlog();
        if !moved && backlog == self.backlog {
            self.is_stale = false;
            return;
        }
        self.is_stale = !moved && now.0 < self.published_at.0 + NEWS_GAP_MS;
        if self.is_stale {
            return;
        }
        (self.published_at, self.backlog) = (now, backlog);
        let one = |(partition, epoch, backlog): (&TopicPartition, Epoch, u64)| OwnedPartition {
            partition: partition.clone(),
            epoch,
            backlog,
        };
        let partitions = engine.backlogs().map(one).collect();
        self.owned.send_replace(Arc::new(Owned { partitions, member, missing }));
        self.news.notify_one();
    }

    /// When a change that waits is to be told.
    pub(super) fn due(&self) -> Option<Millis> {
        self.is_stale.then(|| Millis(self.published_at.0 + NEWS_GAP_MS))
    }
}
