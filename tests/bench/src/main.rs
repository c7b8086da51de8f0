//! What a record costs: the gateway beside a raw consumer, a bare tonic server and the simplest honest gateway.
//!
//! Contract: a command starts its own Kafka, fills what it needs, and measures in pairs of the same minutes, since on a
//! machine that others use too only those compare. The first figure is always CPU seconds of the measured process per
//! million records delivered and acked. See docs/performance.md.

mod fill;
mod floor;
mod lab;
mod latency;
mod load;
mod machine;
mod nodes;
mod report;
mod scenario;
mod spread;
mod targets;

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::{CommandFactory as _, Parser};

use lab::{Lab, Settings};
use report::Report;
use scenario::Scenario;

/// Measures Sluice.
#[derive(Debug, Parser)]
#[command(name = "sluice-bench")]
struct Cli {
    #[command(flatten)]
    settings: Settings,
    /// Write what was found as JSON.
    #[arg(long, value_name = "FILE", global = true)]
    json: Option<PathBuf>,
    /// Write a page with plots into this folder.
    #[arg(long, value_name = "DIR", global = true)]
    report: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show the scenarios.
    List,
    /// Run all scenarios and compare with what is promised. Takes a quarter of an hour.
    Targets,
    /// One small pair, naive and sluice: fails when sluice costs more than `limit` times as much.
    Ci {
        /// Wide: what other programs do to a shared machine is in it.
        #[arg(long, default_value_t = 2.0)]
        limit: f64,
    },
    #[command(flatten)]
    Scenario(Scenario),
    /// A raw consumer, as a process of its own.
    #[command(hide = true)]
    Raw(floor::raw::Args),
    /// The simplest honest gateway, as a process of its own.
    #[command(hide = true)]
    Naive(floor::naive::Args),
    /// A bare tonic server, as a process of its own.
    #[command(hide = true)]
    Tonic(floor::tonic_only::Args),
    /// The load client, as a process of its own.
    #[command(hide = true)]
    Load(load::Args),
    /// A producer at a steady rate, as a process of its own.
    #[command(hide = true)]
    Produce(fill::Args),
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    match cli.command {
        Command::List => {
            let cli = Cli::command();
            for scenario in cli.get_subcommands().filter(|scenario| !scenario.is_hide_set()) {
                println!("{:<14} {}", scenario.get_name(), scenario.get_about().unwrap_or_default());
            }
            Ok(())
        }
        Command::Raw(args) => floor::raw::run(&args),
        Command::Naive(args) => floor::naive::run(args),
        Command::Tonic(args) => floor::tonic_only::run(&args),
        Command::Load(args) => load::run(args),
        Command::Produce(args) => fill::run(&args),
        Command::Scenario(scenario) => {
            let report = measure(cli.settings, |lab| scenario.run(lab))?;
            hand_over(&report, cli.json, cli.report)
        }
        Command::Targets => {
            let report = measure(cli.settings, |lab| Ok(targets::run(lab)))?;
            hand_over(&report, cli.json, cli.report)?;
            print!("{}", targets::table(&report.findings.figures));
            Ok(())
        }
        Command::Ci { limit } => {
            let report = measure(cli.settings, targets::ci)?;
            hand_over(&report, cli.json, cli.report)?;
            print!("{}", targets::table(&report.findings.figures));
            let ratio = targets::drain_ratio(&report.findings).context("the pair was measured")?;
            if ratio > limit {
                bail!("sluice costs {ratio:.2} times what naive does for a record; the limit is {limit}");
            }
            Ok(())
        }
    }
}

fn measure(settings: Settings, scenario: impl FnOnce(&Lab) -> Result<report::Findings>) -> Result<Report> {
    let command: Vec<String> = std::env::args().skip(1).collect();
    let load_average = machine::load_average();
    let lab = Lab::start(settings);
    let findings = scenario(&lab)?;
    Ok(Report {
        command: command.join(" "),
        date: humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string(),
        machine: machine::describe(),
        pinning: lab.pinning.describe(),
        load_average,
        findings,
    })
}

fn hand_over(report: &Report, json: Option<PathBuf>, page: Option<PathBuf>) -> Result<()> {
    report.print();
    if let Some(file) = json {
        report.write_json(&file)?;
    }
    page.map_or(Ok(()), |folder| report.write_page(&folder))
}
