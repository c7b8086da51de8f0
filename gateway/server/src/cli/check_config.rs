//! `sluice check-config`.

use std::path::PathBuf;

use clap::Parser;

use crate::cli::Output;
use crate::config::{Config, env};

/// Check a config file, with the overrides in the environment.
#[derive(Debug, Parser)]
pub(crate) struct Args {
    /// The file to check.
    file: PathBuf,
    /// Print the config that is in effect, overrides and defaults included; secrets are hidden.
    #[arg(long)]
    print: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let config = Config::load(&args.file, &env::process())?;
    let line = match config.subscriptions.len() {
        0 => "ok: 0 subscriptions: nothing can be consumed; write [subscriptions.orders] with topics = [\"orders\"]"
            .to_owned(),
        1 => "ok: 1 subscription".to_owned(),
        n => format!("ok: {n} subscriptions"),
    };
    if args.print {
        Output.line(format_args!("# {line}\n{}", config.to_toml().trim_end()))?;
    } else {
        Output.line(line)?;
    }
    Ok(())
}
