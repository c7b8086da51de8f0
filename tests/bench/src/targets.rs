//! `targets`: what performance is promised, and what this machine says now.

use anyhow::Result;

use crate::lab::Lab;
use crate::report::{Figure, Findings};
use crate::scenario::{Drain, Fairness, Latency, Relay, Scenario, Share};

/// One line of the table.
struct Target {
    id: &'static str,
    what: &'static str,
    bar: &'static str,
    goal: &'static str,
    command: &'static str,
}

const TARGETS: [Target; 20] = [
    Target {
        id: "P1",
        what: "sluice ÷ naive, CPU a record; 10 streams, window 1,000",
        bar: "≤ 1.5",
        goal: "≤ 1.15, below 1 from 1 KiB",
        command: "drain --sizes 128,1024,16384",
    },
    Target {
        id: "P2",
        what: "the same with 100 and 1,000 streams, window 100",
        bar: "≤ 1.8",
        goal: "≤ 1.2",
        command: "streams",
    },
    Target {
        id: "P3",
        what: "sluice ÷ raw, records/s of a core, 128 B",
        bar: "≥ 0.43",
        goal: "≥ 0.57",
        command: "drain",
    },
    Target {
        id: "P4",
        what: "sluice ÷ naive, 1,000 streams, window 1",
        bar: "≤ 1.6",
        goal: "≤ 1.15",
        command: "window-one",
    },
    Target {
        id: "P5",
        what: "latency above raw at 1,000/s and 5,000/s, p50 and p99",
        bar: "+0.5 and +5 ms",
        goal: "+0.15 (1,000/s), +0.4 (5,000/s) and +1 ms",
        command: "latency",
    },
    Target {
        id: "P6",
        what: "memory of an idle stream, connection ÷ tonic",
        bar: "≤ 2",
        goal: "≤ 1.4",
        command: "idle",
    },
    Target {
        id: "P7",
        what: "10 → 5,000 streams: log-log slope of CPU a record, above naive's",
        bar: "≤ +0.08",
        goal: "≤ +0.02",
        command: "streams",
    },
    Target {
        id: "P8",
        what: "a million behind a stuck head ÷ none: CPU an ack",
        bar: "≤ 1.5",
        goal: "≤ 1.1",
        command: "stuck-head",
    },
    Target { id: "P9", what: "order by key, Zipf keys ÷ no order", bar: "≤ 2.0", goal: "≤ 1.3", command: "lanes" },
    Target { id: "P10", what: "a tenth retried once ÷ none", bar: "≤ 1.5", goal: "≤ 1.25", command: "retries" },
    Target {
        id: "P11",
        what: "300 workers × 5 ms × 6 partitions, of the ideal",
        bar: "≥ 90 %",
        goal: "≥ 98 %",
        command: "fairness",
    },
    Target {
        id: "P12",
        what: "kill -9 → first record at the survivor ÷ raw group",
        bar: "≤ 1.3",
        goal: "≤ 1.1",
        command: "takeover",
    },
    Target {
        id: "P13",
        what: "SIGTERM: gap of a partition; records given twice",
        bar: "≤ 3 s; 0",
        goal: "≤ 0.6 s; 0",
        command: "takeover",
    },
    Target {
        id: "P14",
        what: "1 → 50 subscriptions: memory, threads, CPU idle",
        bar: "measured",
        goal: "linear, ≤ 12 MiB each",
        command: "subscriptions",
    },
    Target {
        id: "P15",
        what: "1 → 1,000 partitions: CPU idle, CPU a record",
        bar: "measured",
        goal: "flat ± 20 %",
        command: "partitions",
    },
    Target {
        id: "P16",
        what: "all clients on nodes that own nothing ÷ all-local: records/s; CPU a record in the cluster; p50 added at 1,000/s",
        bar: "≥ 0.6; ≤ 2; ≤ 0.5 ms",
        goal: "–",
        command: "relay",
    },
    Target {
        id: "P17",
        what: "300 clients over 3 nodes × 20 ms × 12 partitions: of the ideal; CPU-s of the nodes, busiest ÷ idlest",
        bar: "≥ 90 %; ≤ 1.5",
        goal: "–",
        command: "spread",
    },
    Target {
        id: "P18",
        what: "all clients on one node of three ÷ clients on all: records/s",
        bar: "≥ 0.6",
        goal: "–",
        command: "one-node",
    },
    Target {
        id: "P19",
        what: "kill -9 of an owner → first record from the next, clients on other nodes ÷ raw group",
        bar: "≤ 1.3",
        goal: "–",
        command: "takeover-cluster",
    },
    Target {
        id: "P20",
        what: "the drain with [peers] ÷ without, clients on the owner: CPU a record",
        bar: "measured",
        goal: "–",
        command: "peers",
    },
];

/// All scenarios in one go. One that fails is named, and the others go on.
pub fn run(lab: &Lab) -> Findings {
    let scenarios = [
        ("drain", Scenario::Drain(Drain::full())),
        ("streams", Scenario::Streams { counts: vec![10, 100, 1_000, 5_000] }),
        ("window-one", Scenario::WindowOne),
        ("latency", Scenario::Latency(Latency::default())),
        ("idle", Scenario::Idle),
        ("stuck-head", Scenario::StuckHead),
        ("lanes", Scenario::Lanes { keys: 10_000, exponent: 1.0 }),
        ("retries", Scenario::Retries { delay_ms: 10 }),
        ("fairness", Scenario::Fairness(Fairness::default())),
        ("takeover", Scenario::Takeover),
        ("subscriptions", Scenario::Subscriptions { counts: vec![1, 10, 50] }),
        ("together", Scenario::Together),
        ("partitions", Scenario::Partitions { counts: vec![1, 100, 1_000] }),
        ("relay", Scenario::Relay(Relay::default())),
        ("spread", Scenario::Spread(Share::default())),
        ("one-node", Scenario::OneNode),
        ("takeover-cluster", Scenario::TakeoverCluster),
        ("peers", Scenario::Peers),
    ];
    let mut findings = Findings::default();
    for (name, scenario) in scenarios {
        eprintln!("{name} …");
        match scenario.run(lab) {
            Ok(found) => findings.add(found),
            Err(error) => eprintln!("{name} failed: {error:#}"),
        }
    }
    findings
}

/// A pair of drains, small; an error when sluice costs more than `limit` times what naive does.
pub fn ci(lab: &Lab) -> Result<Findings> {
    Drain::small().run(lab)
}

/// The median of P1, for `ci`.
pub fn drain_ratio(findings: &Findings) -> Option<f64> {
    findings.figures.iter().find(|figure| figure.target == "P1").map(|figure| figure.value.median)
}

/// The table of targets. What was not measured says so.
pub fn table(figures: &[Figure]) -> String {
    use std::fmt::Write as _;
    let mut text =
        "\n| | what | bar | goal | measured | `sluice-bench` |\n| --- | --- | --- | --- | --- | --- |\n".to_owned();
    for target in &TARGETS {
        let measured = figures.iter().filter(|figure| figure.target == target.id).map(|figure| {
            let (median, min, max) = (figure.value.median, figure.value.min, figure.value.max);
            let ends = if figure.value.runs > 1 { format!(" ({min:.2}–{max:.2})") } else { String::new() };
            format!("{}: {median:.2}{ends}", figure.case)
        });
        let measured: Vec<String> = measured.collect();
        let measured = if measured.is_empty() { "not measured".to_owned() } else { measured.join("; ") };
        let Target { id, what, bar, goal, command } = target;
        let _ = writeln!(text, "| {id} | {what} | {bar} | {goal} | {measured} | {command} |");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spread::Spread;

    #[test]
    fn the_table_has_each_target_and_what_was_found() {
        let value = Spread::of([1.25]).expect("a value");
        let text = table(&[Figure { target: "P4", case: "1,000 streams".to_owned(), value }]);
        assert!(text.contains("1,000 streams: 1.25 | window-one"), "{text}");
        assert_eq!(text.matches("not measured").count(), TARGETS.len() - 1);
    }
}
