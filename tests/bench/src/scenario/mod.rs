//! The scenarios: each is one command.

mod cluster;
mod drain;
mod durable;
mod fairness;
mod idle;
mod latency;
mod measure;
mod pairs;
mod takeover;
mod together;

use anyhow::Result;

use crate::lab::Lab;
use crate::report::Findings;

pub use cluster::{Relay, Share};
pub use drain::Drain;
pub use fairness::Fairness;
pub use latency::Latency;

/// What may be measured.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Scenario {
    /// A full topic through raw, naive, tonic and sluice, in turn (P1, P3).
    Drain(Drain),
    /// Many streams that each hold a small window (P2, P7).
    Streams {
        #[arg(long, value_delimiter = ',', default_value = "10,100,1000,5000")]
        counts: Vec<usize>,
    },
    /// A thousand streams that take one record at a time (P4).
    WindowOne,
    /// Latency at a steady rate, against the intended send time (P5).
    Latency(Latency),
    /// Memory of idle streams and connections (P6).
    Idle,
    /// A million records acked behind one that stays open (P8).
    StuckHead,
    /// Order by key, with keys of a Zipf distribution, against no order (P9).
    Lanes {
        #[arg(long, default_value_t = 10_000)]
        keys: usize,
        #[arg(long, default_value_t = 1.0)]
        exponent: f64,
    },
    /// A tenth of the records is retried once (P10).
    Retries {
        #[arg(long, default_value_t = 10)]
        delay_ms: u64,
    },
    /// Settlements a second, and how long their answers take: plain, and when Kafka has them.
    Durable,
    /// 300 workers that take five milliseconds for a record, on six partitions (P11).
    Fairness(Fairness),
    /// A member of two is killed, or told to go (P12, P13).
    Takeover,
    /// 1 to 50 subscriptions of one topic, idle (P14).
    Subscriptions {
        #[arg(long, value_delimiter = ',', default_value = "1,10,50")]
        counts: Vec<usize>,
    },
    /// Two subscriptions drained at once, by one alone.
    Together,
    /// 1 to 1,000 partitions: a drain, and idle (P15).
    Partitions {
        #[arg(long, value_delimiter = ',', default_value = "1,100,1000")]
        counts: Vec<i32>,
    },
    /// Three nodes, and all clients on those that own nothing, by all clients on the owner and by one node (P16).
    Relay(Relay),
    /// Clients led to three nodes in turn, which take a while for each record (P17).
    Spread(Share),
    /// All clients on one node of three that own some partitions each (P18).
    OneNode,
    /// An owner is killed, and clients are on other nodes (P19).
    TakeoverCluster,
    /// What `[peers]` costs clients whose records are all on their own node (P20).
    Peers,
}

impl Scenario {
    pub fn run(&self, lab: &Lab) -> Result<Findings> {
        match self {
            Self::Drain(drain) => drain.run(lab),
            Self::Streams { counts } => pairs::streams(lab, counts),
            Self::WindowOne => pairs::window_one(lab),
            Self::Latency(latency) => latency.run(lab),
            Self::Idle => idle::memory(lab),
            Self::StuckHead => pairs::stuck_head(lab),
            Self::Lanes { keys, exponent } => pairs::lanes(lab, *keys, *exponent),
            Self::Retries { delay_ms } => pairs::retries(lab, *delay_ms),
            Self::Durable => durable::run(lab),
            Self::Fairness(fairness) => fairness.run(lab),
            Self::Takeover => takeover::run(lab),
            Self::Subscriptions { counts } => idle::subscriptions(lab, counts),
            Self::Together => together::run(lab),
            Self::Partitions { counts } => idle::partitions(lab, counts),
            Self::Relay(relay) => relay.run(lab),
            Self::Spread(share) => share.run(lab),
            Self::OneNode => cluster::one_node(lab),
            Self::TakeoverCluster => cluster::takeover(lab),
            Self::Peers => cluster::peers(lab),
        }
    }
}
