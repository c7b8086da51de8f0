//! A cluster in network namespaces: Kafka, three gateways, HAProxy and clients in one each, and faults that only a network
//! has. `cargo run -p sluice-tests --bin netns -- check` says what it needs; see CONTRIBUTING.md.
//!
//! The process that a person starts makes the namespaces, runs itself in that of the clients, and removes them at the end,
//! whatever that is. Whatever it started ends with it.

mod needs;
mod net;
mod scenario;

use std::process::{Command, ExitCode};
use std::time::Instant;

use sluice_tests::{Broker, History, process};
use tokio::signal::unix::{SignalKind, signal};

use crate::net::{Host, Net};
use crate::scenario::{ALL, Scenario};

const USAGE: &str = "usage: netns [SCENARIO]...   all of them without a name
       netns list          the scenarios
       netns check         what the machine lacks
       netns clean         removes the namespaces that a run left behind";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["list"] => {
            ALL.iter().for_each(|scenario| println!("{:<16} {}", scenario.name, scenario.what));
            ExitCode::SUCCESS
        }
        ["clean"] => needs::rights().map_or_else(refuse, |()| {
            println!("{} namespaces removed", net::clean(|_| true));
            ExitCode::SUCCESS
        }),
        ["check"] => needs::look().map_or_else(refuse, |abilities| {
            println!("nothing is missing{}", if abilities.delays { "" } else { needs::NO_DELAYS });
            ExitCode::SUCCESS
        }),
        ["inside", run, names @ ..] => inside(Net::of(run), &chosen(names).unwrap_or_default()),
        names => match chosen(names) {
            Ok(scenarios) => outside(&scenarios),
            Err(name) => {
                eprintln!("there is no scenario {name}\n{USAGE}");
                ExitCode::from(2)
            }
        },
    }
}

fn refuse(missing: String) -> ExitCode {
    eprintln!("{missing}");
    ExitCode::from(2)
}

fn chosen(names: &[&str]) -> Result<Vec<&'static Scenario>, String> {
    let find = |name: &&str| ALL.iter().find(|one| one.name == *name).ok_or_else(|| (*name).to_owned());
    if names.is_empty() { Ok(ALL.iter().collect()) } else { names.iter().map(find).collect() }
}

/// Makes the network, and runs this program in it.
fn outside(scenarios: &[&Scenario]) -> ExitCode {
    let abilities = match needs::look() {
        Ok(abilities) => abilities,
        Err(missing) => return refuse(missing),
    };
    let able = |one: &&&Scenario| abilities.delays || !one.delays;
    let (can, cannot): (Vec<&&Scenario>, Vec<&&Scenario>) = scenarios.iter().partition(able);
    cannot.iter().for_each(|one| println!("{:<16} skipped{}", one.name, needs::NO_DELAYS));
    if can.is_empty() {
        return ExitCode::SUCCESS;
    }
    // Where there is a way to the outside: both may have to be fetched.
    let gateway = sluice_tests::gateway::executable();
    drop(Broker::prepare());
    // What runs left that were killed.
    net::clean(|run| !std::path::Path::new("/proc").join(run).exists());
    let net = Net::of(&std::process::id().to_string());
    let ended = net.make().and_then(|()| {
        let this = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut command = net.place(Host::Clients).command(this);
        command.args(["inside", net.run()]).args(can.iter().map(|one| one.name));
        command.env("SLUICE_BIN", &gateway).env("PATH", net::path());
        watch(command)
    });
    net.remove();
    match ended {
        Ok(code) => code,
        Err(error) => {
            eprintln!("netns: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Until it ends, or a person wants the end.
fn watch(command: Command) -> Result<ExitCode, String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let signals = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
        let (Ok(mut interrupt), Ok(mut terminate)) = signals else { return Err("signals cannot be heard".to_owned()) };
        let mut child = process::spawn(command).map_err(|error| format!("run in the clients' namespace: {error}"))?;
        loop {
            match child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(ExitCode::SUCCESS),
                Ok(None) => {}
                _ => return Ok(ExitCode::FAILURE),
            }
            tokio::select! {
                _ = interrupt.recv() => break,
                _ = terminate.recv() => break,
                () = tokio::time::sleep(std::time::Duration::from_millis(50)) => {}
            }
        }
        process::signal(&child, process::Signal::Kill);
        let _ = child.wait();
        Err("interrupted".to_owned())
    })
}

/// In the clients' namespace: one line a scenario.
fn inside(net: Net, scenarios: &[&'static Scenario]) -> ExitCode {
    let broker = Broker::start_in(net.place(Host::Kafka), &Host::Kafka.address());
    let mut failed = 0;
    for scenario in scenarios {
        let start = Instant::now();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
        let (net, kafka, history) = (net.clone(), broker.kafka().clone(), History::default());
        let run = || runtime.block_on(scenario::run(scenario, net, kafka, history));
        // The harness says by a panic what does not hold.
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
        let seconds = start.elapsed().as_secs();
        match ended {
            Ok(told) => println!("{:<16} ok      {seconds:>3} s  {told}", scenario.name),
            Err(panic) => {
                failed += 1;
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it failed");
                println!("{:<16} FAILED  {seconds:>3} s  {}", scenario.name, text.lines().next().unwrap_or_default());
            }
        }
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
