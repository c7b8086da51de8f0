//! What costs without doing anything: idle streams and connections, many subscriptions, many partitions.

use std::time::{Duration, Instant};

use anyhow::Result;
use sluice_tests::{Gateway, unique};

use super::measure::{COLUMNS, Contestant, Kind, Runs};
use crate::fill::Shape;
use crate::lab::{Lab, Server};
use crate::machine::{anonymous_kib, cpu_s, threads};
use crate::report::{Findings, Table, column};
use crate::spread::Spread;

/// After a change, until memory is looked at.
const SETTLE: Duration = Duration::from_secs(1);
/// Partitions must have begun within this.
const BEGIN_WITHIN: Duration = Duration::from_secs(30);
const CONNECTIONS: usize = 200;
const STREAMS: usize = 2_000;

/// `idle`: P6.
pub fn memory(lab: &Lab) -> Result<Findings> {
    let topic = lab.topic(&Shape::new(12, 128), 0)?;
    let columns = [column("KiB a stream", 1), column("KiB a connection", 1), column("before, MiB", 1)];
    let title = format!("Idle: {STREAMS} streams on {CONNECTIONS} connections, memory of the process's own");
    let mut table = Table::new(title, &columns);
    let mut all = Vec::new();
    for name in ["tonic", "sluice"] {
        let mut samples = Vec::new();
        for _ in 0..lab.settings.runs {
            let server = if name == "tonic" {
                lab.tonic(128, 100)?
            } else {
                // In its group before memory is looked at: what that costs is no stream's.
                lab.sluice(&topic.name, &["join = \"at_start\""])
            };
            if let Server::Gateway(gateway) = &server {
                begun(gateway, &[crate::lab::SUBSCRIPTION.to_owned()], 12);
            }
            samples.push(idle_memory(lab, &server)?);
        }
        let of = |index: usize| Spread::of(samples.iter().map(|sample| sample[index]));
        table.row("", name, vec![of(0), of(1), of(2)]);
        all.push(samples);
    }
    let mut findings = Findings { tables: vec![table], figures: Vec::new() };
    if let [tonic, sluice] = &all[..] {
        for (index, case) in [(0, "a stream"), (1, "a connection")] {
            let of = |samples: &[[f64; 3]]| samples.iter().map(|sample| sample[index]).collect::<Vec<_>>();
            findings.figure("P6", format!("{case} ÷ tonic"), Spread::ratios(&of(sluice), &of(tonic)));
        }
    }
    Ok(findings)
}

/// KiB a stream, KiB a connection, MiB before.
fn idle_memory(lab: &Lab, server: &Server) -> Result<[f64; 3]> {
    let settled = || {
        std::thread::sleep(SETTLE);
        anonymous_kib(server.pid())
    };
    let before = settled();
    let arguments = ["--idle".to_owned(), format!("--connections={CONNECTIONS}"), format!("--streams={STREAMS}")];
    let mut load = lab.load_helper(server.address(), server.pid(), &arguments)?;
    load.event("connected")?;
    let connected = settled();
    load.tell("go on")?;
    load.event("subscribed")?;
    let subscribed = settled();
    Ok([(subscribed - connected) / STREAMS as f64, (connected - before) / CONNECTIONS as f64, before / 1_024.0])
}

/// `subscriptions`: P14.
pub fn subscriptions(lab: &Lab, counts: &[usize]) -> Result<Findings> {
    let topic = lab.topic(&Shape::new(6, 128), 0)?;
    let columns = [
        column("MiB", 1),
        column("threads", 0),
        column("idle core", 3),
        column("MiB a subscription", 2),
        column("threads a subscription", 1),
        column("partitions begun", 0),
    ];
    let title = "Subscriptions of one empty topic of 6 partitions, joined and idle, memory of the process's own";
    let mut table = Table::new(title, &columns);
    let mut findings = Findings::default();
    let mut base: Option<(usize, f64, usize)> = None;
    for &count in counts {
        let lines: &[&str] = &["join = \"at_start\""];
        let names: Vec<String> = (0..count).map(|index| format!("bench-{index}")).collect();
        let subscription = |name: &String| lab.subscription(name, &topic.name, &unique("sluice"), lines);
        let gateway = lab.gateway(names.iter().map(subscription).collect());
        let begun = begun(&gateway, &names, 6 * count);
        std::thread::sleep(SETTLE * 2);
        let core = idle_core(lab, gateway.pid());
        let (mib, threads) = (anonymous_kib(gateway.pid()) / 1_024.0, threads(gateway.pid()));
        let (from, mib_0, threads_0) = *base.get_or_insert((count, mib, threads));
        let each = |now: f64, then: f64| Spread::of([(now - then) / (count - from) as f64]);
        let mib_each = each(mib, mib_0);
        let threads_each = each(threads as f64, threads_0 as f64);
        let one = |value: f64| Spread::of([value]);
        let cells = vec![one(mib), one(threads as f64), one(core), mib_each, threads_each, one(begun as f64)];
        table.row(count.to_string(), "sluice", cells);
        findings.figure("P14", format!("{from} → {count}, MiB each"), mib_each);
        findings.figure("P14", format!("{from} → {count}, threads each"), threads_each);
        findings.figure("P14", format!("{count}, idle core"), Spread::of([core]));
    }
    findings.tables = vec![table];
    Ok(findings)
}

/// `partitions`: P15.
pub fn partitions(lab: &Lab, counts: &[i32]) -> Result<Findings> {
    let mut table = Table::new("Partitions: a drain of 128 B, 10 streams", &COLUMNS);
    let columns = [column("idle core", 3), column("MiB", 1), column("partitions begun", 0)];
    let mut idle = Table::new("Partitions: joined and idle", &columns).note(format!(
        "A partition costs what it costs only once it has begun. Those that had not after {} s are not in the figures of \
         their row: such a row is no measurement of all of them.",
        BEGIN_WITHIN.as_secs()
    ));
    let mut findings = Findings::default();
    let contestants =
        [("naive", Kind::Naive), ("sluice", Kind::Sluice)].map(|(name, kind)| Contestant::new(name, kind));
    let mut first: Option<Vec<f64>> = None;
    for &count in counts {
        let case = format!("{count} p");
        let topic = lab.topic(&Shape::new(count, 128), lab.count(500_000))?;
        let runs = Runs::of(lab, &topic, &contestants)?;
        runs.rows(&mut table, &case, &contestants);
        let cpu = runs.cpu("sluice");
        let first = first.get_or_insert_with(|| cpu.clone());
        findings.figure("P15", format!("{case}, CPU-s/1M ÷ the first"), Spread::ratios(&cpu, first));
        let empty = lab.topic(&Shape::new(count, 128), 0)?;
        let subscription = lab.subscription("bench", &empty.name, &unique("sluice"), &["join = \"at_start\""]);
        let gateway = lab.gateway(vec![subscription]);
        let all = usize::try_from(count)?;
        let begun = begun(&gateway, &["bench".to_owned()], all);
        std::thread::sleep(SETTLE * 2);
        let core = Spread::of([idle_core(lab, gateway.pid())]);
        let mib = Spread::of([anonymous_kib(gateway.pid()) / 1_024.0]);
        idle.row(&case, "sluice", vec![core, mib, Spread::of([begun as f64])]);
        // Of a part of them it says nothing about the target.
        if begun == all {
            findings.figure("P15", format!("{case}, idle core"), core);
        }
    }
    findings.tables = vec![table, idle];
    Ok(findings)
}

/// What share of a core it uses while nothing happens.
fn idle_core(lab: &Lab, pid: u32) -> f64 {
    let seconds = lab.seconds(5.0);
    let before = cpu_s(pid);
    std::thread::sleep(Duration::from_secs_f64(seconds));
    (cpu_s(pid) - before) / seconds
}

/// Waits until so many partitions of these subscriptions have begun, within reason; how many have.
fn begun(gateway: &Gateway, subscriptions: &[String], all: usize) -> usize {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("start a runtime");
    let start = Instant::now();
    loop {
        let counts = subscriptions.iter().map(|name| runtime.block_on(gateway.partitions(name)).len());
        let begun = counts.sum();
        if begun >= all || start.elapsed() > BEGIN_WITHIN {
            if begun < all {
                eprintln!("only {begun} of {all} partitions have begun after {} s", BEGIN_WITHIN.as_secs());
            }
            return begun;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
