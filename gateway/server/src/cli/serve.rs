//! `sluice serve`: the gateway, until a signal ends it.

use std::path::PathBuf;

use clap::Parser;

use crate::cli::signals::Signals;
use crate::cli::{Output, logs};
use crate::config::{Config, LogFormat, env};
use crate::node::Node;

/// Run the gateway.
///
/// When both listeners are bound it prints one line of JSON to stdout, with their addresses. At SIGTERM or SIGINT it is not
/// ready for `node.drain_delay`, then lets clients finish for `node.drain_timeout`, then it exits with 0; a second signal ends
/// it at once.
#[derive(Debug, Parser)]
pub(crate) struct Args {
    /// The config file (TOML). Every key has an override in the environment, as in SLUICE_NODE__LISTEN.
    #[arg(long, short, value_name = "FILE", env = "SLUICE_CONFIG", hide_env_values = true)]
    config: PathBuf,
    /// Format of the logs on stderr, over that of the config.
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<Format>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Format {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let mut config = Config::load(&args.config, &env::process())?;
    if let Some(format) = args.log_format {
        config.log.format = match format {
            Format::Text => LogFormat::Text,
            Format::Json => LogFormat::Json,
        };
    }
    logs::init(&config.log)?;
    let mut signals = Signals::new()?;
    let node = tokio::select! {
        node = Node::start(config) => node?,
        // Nothing is held yet.
        _ = signals.next() => return Ok(()),
    };
    let listening = serde_json::json!({
        "event": "listening", "grpc": node.grpc_addr().to_string(), "admin": node.admin_addr().to_string(),
        "peers": node.peers_addr().map(|address| address.to_string()),
    });
    Output.line(listening)?;
    let (signal, _) = signals.next().await;
    tracing::info!(signal, delay = ?node.drain_delay(), "draining");
    signals.or_exit(node.shutdown()).await;
    tracing::info!("drained");
    Ok(())
}
