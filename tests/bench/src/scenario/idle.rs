//! What costs without doing anything: idle streams and connections, many subscriptions, many partitions.

use std::time::Duration;

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
                ready(gateway);
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
    ];
    let mut table = Table::new("Subscriptions of one topic of 6 partitions, joined and idle", &columns);
    let mut findings = Findings::default();
    let mut base: Option<(usize, f64, usize)> = None;
    for &count in counts {
        let lines: &[&str] = &["join = \"at_start\""];
        let subscription = |index| lab.subscription(&format!("bench-{index}"), &topic.name, &unique("sluice"), lines);
        let gateway = lab.gateway((0..count).map(subscription).collect());
        ready(&gateway);
        std::thread::sleep(SETTLE * 2);
        let core = idle_core(lab, gateway.pid());
        let (mib, threads) = (anonymous_kib(gateway.pid()) / 1_024.0, threads(gateway.pid()));
        let (from, mib_0, threads_0) = *base.get_or_insert((count, mib, threads));
        let each = |now: f64, then: f64| Spread::of([(now - then) / (count - from) as f64]);
        let mib_each = each(mib, mib_0);
        let threads_each = each(threads as f64, threads_0 as f64);
        let cells = vec![Spread::of([mib]), Spread::of([threads as f64]), Spread::of([core]), mib_each, threads_each];
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
    let mut idle = Table::new("Partitions: joined and idle", &[column("idle core", 3), column("MiB", 1)]);
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
        ready(&gateway);
        std::thread::sleep(SETTLE * 2);
        let core = Spread::of([idle_core(lab, gateway.pid())]);
        idle.row(&case, "sluice", vec![core, Spread::of([anonymous_kib(gateway.pid()) / 1_024.0])]);
        findings.figure("P15", format!("{case}, idle core"), core);
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

fn ready(gateway: &Gateway) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("start a runtime");
    runtime.block_on(gateway.ready());
}
