//! The command line: `serve`, `dev`, `consume`, `produce`, `nodes`, `seek`, `check-config`.

mod check_config;
mod consume;
pub(crate) mod logs;
mod nodes;
mod operator;
mod output;
mod produce;
mod seek;
mod serve;
pub(crate) mod signals;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

pub(crate) use output::Output;

/// A gateway that turns Apache Kafka into a service of leases over gRPC.
///
/// It holds the consumer-group membership; clients in any language lease records over a stream, as many as they say they
/// can take, and settle them in any order.
#[derive(Debug, Parser)]
#[command(name = "sluice", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Args),
    Dev(crate::dev::Args),
    Consume(consume::Args),
    Produce(produce::Args),
    Nodes(nodes::Args),
    Seek(seek::Args),
    CheckConfig(check_config::Args),
    /// Asks Kafka who is in groups: started by a gateway, which says by standard input what to ask.
    #[command(hide = true)]
    DescribeGroups,
}

/// The name of the command that [`sluice_kafka::Describer`] starts.
pub(crate) const DESCRIBE_GROUPS: &str = "describe-groups";

/// Runs the command that the arguments name.
#[must_use]
pub fn main() -> ExitCode {
    let command = Cli::parse().command;
    if let Command::CheckConfig(args) = &command {
        return finish(check_config::run(args));
    }
    if let Command::DescribeGroups = &command {
        sluice_kafka::describe_groups();
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return finish(Err(anyhow::anyhow!("no runtime: {error}"))),
    };
    let result = runtime.block_on(async {
        match command {
            Command::Serve(args) => Box::pin(serve::run(args)).await,
            Command::Dev(args) => Box::pin(crate::dev::run(args)).await,
            Command::Consume(args) => Box::pin(consume::run(args)).await,
            Command::Produce(args) => Box::pin(produce::run(args)).await,
            Command::Nodes(args) => Box::pin(nodes::run(args)).await,
            Command::Seek(args) => Box::pin(seek::run(args)).await,
            Command::CheckConfig(args) => check_config::run(&args),
            Command::DescribeGroups => sluice_kafka::describe_groups(),
        }
    });
    // A thread that reads stdin cannot be interrupted: do not wait for it.
    runtime.shutdown_background();
    finish(result)
}

fn finish(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The definition of all commands, for help texts and completions.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests;
