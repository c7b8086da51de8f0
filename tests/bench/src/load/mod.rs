//! The load client: thousands of streams in one process, over several connections. It speaks `sluice.v1` to whatever
//! serves it, so that one client drives the gateway and the floors alike.

mod settle;
mod stream;
mod tally;
pub mod work;

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};

pub use tally::Outcome;
use tally::Tally;
use work::Work;

use crate::floor::say;

const RECEIVE_WINDOW_BYTES: u32 = 4 << 20;
/// So often the counters are looked at.
const LOOK: Duration = Duration::from_millis(5);
/// So often the series of (acked, CPU) gets a point.
const SERIES: Duration = Duration::from_millis(250);
/// Nothing acked for so long: it stands still.
const STALLED: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Default, clap::Args)]
pub struct Args {
    /// host:port; of several each connection goes to the next.
    #[arg(long, value_delimiter = ',')]
    pub address: Vec<String>,
    #[arg(long, default_value = "bench")]
    pub subscription: String,
    #[arg(long, default_value_t = 1)]
    pub connections: usize,
    #[arg(long, default_value_t = 1)]
    pub streams: usize,
    /// Records that a stream may hold.
    #[arg(long, default_value_t = 1_000)]
    pub window: i32,
    /// Measures from the start until so many are acked.
    #[arg(long)]
    pub records: Option<u64>,
    /// Or for so many seconds, after `warm`.
    #[arg(long, default_value_t = 5.0)]
    pub seconds: f64,
    #[arg(long, default_value_t = 1.0)]
    pub warm: f64,
    /// What is done with a record before it is acked: `none`, `delay:DISTRIBUTION` (records of a stream side by side) or
    /// `work:DISTRIBUTION` (one after another). A distribution is 5ms, 1ms..10ms (uniform) or exp:5ms.
    #[arg(long, default_value_t = Work::None)]
    pub work: Work,
    /// So many of a thousand records are retried at their first try.
    #[arg(long, default_value_t = 0)]
    pub retry_permille: u64,
    /// After this delay.
    #[arg(long, default_value_t = 0)]
    pub retry_delay_ms: u64,
    /// The first stream never settles the first record that it is dealt, and takes no other.
    #[arg(long)]
    pub hold_first: bool,
    /// So many streams read a frame only each `slow_ms`.
    #[arg(long, default_value_t = 0)]
    pub slow_streams: usize,
    #[arg(long, default_value_t = 100)]
    pub slow_ms: u64,
    /// Each settlement is to be answered, and the time to its answer is taken: `plain` or `durable`.
    #[arg(long)]
    pub ask: Option<Ask>,
    /// Values bear their intended send time.
    #[arg(long)]
    pub latency: bool,
    /// Says each record: its time, partition and offset.
    #[arg(long)]
    pub trace: bool,
    /// Connects, subscribes with a window of 0, and waits for words on stdin.
    #[arg(long)]
    pub idle: bool,
    /// The processes whose CPU time is taken.
    #[arg(long, value_delimiter = ',')]
    pub server_pid: Vec<u32>,
}

/// What an answer to a settlement promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Ask {
    /// The node has it.
    Plain,
    /// Kafka has it.
    Durable,
}

pub fn run(args: Args) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = tokio::task::LocalSet::new().block_on(&runtime, drive(Rc::new(args)))?;
    say(&serde_json::to_value(outcome)?);
    // Streams end with the process: half-closing thousands of them is not part of what is measured.
    std::process::exit(0)
}

async fn drive(args: Rc<Args>) -> Result<Outcome> {
    let tally = Rc::new(Tally::default());
    let begin = tally.snapshot(&args.server_pid);
    let mut channels = Vec::new();
    for address in args.address.iter().cycle().take(args.connections.max(1)) {
        channels.push(connect(address).await?);
    }
    if args.idle {
        say(&serde_json::json!({ "event": "connected" }));
        word().await;
    }
    for index in 0..args.streams {
        let channel = channels[index % channels.len()].clone();
        let (args, tally) = (Rc::clone(&args), Rc::clone(&tally));
        tokio::task::spawn_local(async move {
            if let Err(error) = stream::run(index, &args, &tally, channel).await {
                eprintln!("stream {index}: {error:#}");
                tally.failed.set(tally.failed.get() + 1);
            }
        });
    }
    while tally.subscribed.get() + tally.failed.get() < args.streams {
        tokio::time::sleep(LOOK).await;
    }
    say(&serde_json::json!({ "event": "subscribed" }));
    if args.idle {
        word().await;
        return Ok(tally.outcome(&args, &begin));
    }
    let begin = match args.records {
        Some(_) => begin,
        None => {
            tokio::time::sleep(Duration::from_secs_f64(args.warm)).await;
            tally.forget_warm_up();
            tally.snapshot(&args.server_pid)
        }
    };
    watch(&args, &tally).await?;
    if args.records.is_some() {
        tally.confirm(args.streams).await;
    }
    Ok(tally.outcome(&args, &begin))
}

/// Until the end of the measurement.
async fn watch(args: &Args, tally: &Tally) -> Result<()> {
    let began = Instant::now();
    let mut moved = (began, 0);
    let mut point = began;
    loop {
        let acked = tally.acked.get();
        match args.records {
            Some(records) if acked >= records => return Ok(()),
            None if began.elapsed().as_secs_f64() >= args.seconds => return Ok(()),
            _ => {}
        }
        if acked != moved.1 {
            moved = (Instant::now(), acked);
        } else if args.records.is_some() && moved.0.elapsed() > STALLED {
            bail!("nothing was acked for {} s: {acked} of {:?} are", STALLED.as_secs(), args.records);
        }
        if tally.failed.get() == args.streams {
            bail!("all streams have ended");
        }
        if point.elapsed() >= SERIES {
            point = Instant::now();
            tally.point(&args.server_pid);
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn connect(address: &str) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .initial_stream_window_size(RECEIVE_WINDOW_BYTES)
        .initial_connection_window_size(RECEIVE_WINDOW_BYTES)
        .tcp_nodelay(true);
    endpoint.connect().await.with_context(|| format!("connect to {address}"))
}

async fn word() {
    let _ = tokio::task::spawn_blocking(crate::floor::wait_for_word).await;
}
