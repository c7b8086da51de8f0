//! Sluice and Kafka's share groups, side by side on one broker: `docs/compare.md` says what is compared and why.
//!
//! `compare [--only NAME]… [--write FILE]` runs it and prints the tables. `compare worker …` is a process of Sluice workers,
//! which it starts itself.

mod crew;
mod lab;
mod line;
mod measure;
mod scenario;
mod table;
mod work;
mod worker;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Instant;

use crate::lab::Lab;
use crate::scenario::{ALL, Scenario};
use crate::table::Rows;

const USAGE: &str = "usage: compare [--only NAME]... [--write FILE]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, rest @ ..] = arguments.as_slice()
        && first == "worker"
    {
        worker::run(rest);
        return ExitCode::SUCCESS;
    }
    let (chosen, write) = match options(&arguments) {
        Ok(options) => options,
        Err(error) => {
            let names: Vec<_> = ALL.iter().map(|scenario| scenario.name).collect();
            eprintln!("{error}\n{USAGE}\nnames: {}", names.join(", "));
            return ExitCode::from(2);
        }
    };
    let text = compare(&chosen);
    println!("{text}");
    match write.map(|path| table::write(&path, &text)) {
        Some(Err(error)) => {
            eprintln!("compare: {error}");
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

fn options(arguments: &[String]) -> Result<(Vec<&'static Scenario>, Option<PathBuf>), String> {
    let (mut chosen, mut write) = (Vec::new(), None);
    let mut left = arguments.iter();
    while let Some(option) = left.next() {
        let value = left.next().ok_or_else(|| format!("{option} needs a value"))?;
        match option.as_str() {
            "--only" => {
                let found = ALL.into_iter().find(|scenario| scenario.name == value);
                chosen.push(found.ok_or_else(|| format!("there is no scenario {value}"))?);
            }
            "--write" => write = Some(PathBuf::from(value)),
            _ => return Err(format!("there is no option {option}")),
        }
    }
    Ok((if chosen.is_empty() { ALL.to_vec() } else { chosen }, write))
}

fn compare(chosen: &[&Scenario]) -> String {
    // Built before anything is measured.
    let gateway = sluice_tests::gateway::executable();
    let start = Instant::now();
    let lab = Lab::start();
    let mut text = conditions(&gateway);
    for (number, scenario) in chosen.iter().enumerate() {
        eprintln!("{:>4} s  {}", start.elapsed().as_secs(), scenario.title);
        let columns = run(&lab, scenario);
        write!(text, "\n### {}. {}\n\n{}\n\n{}", number + 1, scenario.title, scenario.setup, table::table(&columns))
            .expect("a String takes all");
    }
    eprintln!("{:>4} s  done", start.elapsed().as_secs());
    text
}

fn run(lab: &Lab, scenario: &Scenario) -> Vec<(String, Rows)> {
    let variants = (scenario.variants)();
    if !scenario.waits {
        // A B A B: what else the machine does meets all of them.
        let mut rounds: Vec<Vec<Rows>> = vec![Vec::new(); variants.len()];
        for _ in 0..scenario.rounds {
            for (variant, rounds) in variants.iter().zip(&mut rounds) {
                rounds.push((scenario.run)(lab, variant));
            }
        }
        return variants
            .iter()
            .zip(&rounds)
            .map(|(variant, rounds)| (variant.name.clone(), table::joined(rounds)))
            .collect();
    }
    std::thread::scope(|scope| {
        let running: Vec<_> = variants.iter().map(|variant| scope.spawn(|| (scenario.run)(lab, variant))).collect();
        let rows = running.into_iter().map(|thread| thread.join().expect("a contestant's run panicked"));
        variants.iter().map(|variant| variant.name.clone()).zip(rows).collect()
    })
}

/// When, on what, with what.
fn conditions(gateway: &std::path::Path) -> String {
    let said = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().ok();
        let text = output.map(|output| [output.stdout, output.stderr].concat()).unwrap_or_default();
        String::from_utf8_lossy(&text).lines().next().unwrap_or("unknown").to_owned()
    };
    let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    format!(
        "Run on {} with {cpus} processors (load before: {}). Broker and share client: Apache Kafka 4.4.0, {}. {} and its Rust \
         client, {profile} profile.\n",
        said("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
        load.split(' ').next().unwrap_or("unknown"),
        said("java", &["-version"]),
        said(&gateway.display().to_string(), &["--version"]),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_name_scenarios_and_a_page() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let (chosen, write) = options(&words("--only crash --write page.md")).expect("good options");
        assert_eq!((chosen[0].name, write), ("crash", Some(PathBuf::from("page.md"))));
        assert_eq!(options(&[]).expect("no options").0.len(), ALL.len());
        for bad in ["--only", "--only nothing", "--loud yes"] {
            assert!(options(&words(bad)).is_err(), "{bad}");
        }
    }
}
