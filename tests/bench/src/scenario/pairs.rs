//! Scenarios that are a drain too, of one topic by two sides: many streams, window 1, a stuck head, lanes, retries.

use anyhow::Result;

use super::measure::{COLUMNS, Contestant, Kind, Runs};
use crate::fill::{Keys, Shape};
use crate::lab::Lab;
use crate::report::{Findings, Table, column};
use crate::spread::Spread;

/// `streams`: P2 and P7.
pub fn streams(lab: &Lab, counts: &[usize]) -> Result<Findings> {
    const WINDOW: i32 = 100;
    let topic = lab.topic(&Shape::new(12, 128), lab.count(800_000))?;
    let mut table = Table::new(format!("Many streams: 128 B, 12 partitions, window {WINDOW}"), &COLUMNS);
    let mut ratios = Table::new("Many streams: ratios of pairs", &[column("CPU", 2)]);
    let mut findings = Findings::default();
    let mut all = Vec::new();
    for &count in counts {
        let contestants = [("naive", Kind::Naive), ("sluice", Kind::Sluice)]
            .map(|(name, kind)| Contestant::new(name, kind).streams(count, WINDOW));
        let runs = Runs::of(lab, &topic, &contestants)?;
        let case = format!("{count} streams");
        runs.rows(&mut table, &case, &contestants);
        let ratio = runs.cpu_ratio("sluice", "naive");
        ratios.row(&case, "sluice ÷ naive", vec![ratio]);
        if count == 100 || count == 1_000 {
            findings.figure("P2", &case, ratio);
        }
        all.push((count, runs));
    }
    if let ([(few, first), ..], [.., (many, last)]) = (&all[..], &all[..])
        && few < many
    {
        let slope = |who: &str| -> Vec<f64> {
            let growth = first.cpu(who).into_iter().zip(last.cpu(who)).map(|(first, last)| last / first);
            growth.map(|growth| growth.ln() / (*many as f64 / *few as f64).ln()).collect()
        };
        let above = slope("sluice").into_iter().zip(slope("naive")).map(|(sluice, naive)| sluice - naive);
        findings.figure("P7", format!("{few} → {many} streams"), Spread::of(above));
    }
    findings.tables = vec![table, ratios];
    Ok(findings)
}

/// `window-one`: P4.
pub fn window_one(lab: &Lab) -> Result<Findings> {
    let topic = lab.topic(&Shape::new(12, 128), lab.count(80_000))?;
    let contestants = [("naive", Kind::Naive), ("sluice", Kind::Sluice)]
        .map(|(name, kind)| Contestant::new(name, kind).streams(1_000, 1));
    pair(lab, "P4", "Window 1: 1,000 streams, 128 B, 12 partitions", &topic, &contestants)
}

/// `stuck-head`: P8.
pub fn stuck_head(lab: &Lab) -> Result<Findings> {
    const LINES: &[&str] = &["span_limit = 2000000"];
    let records = lab.count(1_000_000);
    let topic = lab.topic(&Shape::new(1, 128), records)?;
    let free = Contestant { lines: LINES, ..Contestant::new("sluice, free head", Kind::Sluice) }.streams(11, 1_000);
    let stuck = Contestant { name: "sluice, stuck head", left: 1, ..free.clone() }.load("--hold-first");
    let title = format!("A stuck head: {records} records acked behind a record that stays open, 1 partition");
    pair(lab, "P8", &title, &topic, &[free, stuck])
}

/// `lanes`: P9.
pub fn lanes(lab: &Lab, keys: usize, exponent: f64) -> Result<Findings> {
    let shape = Shape { keys: Keys::Zipf(keys, exponent), ..Shape::new(12, 128) };
    let topic = lab.topic(&shape, lab.count(300_000))?;
    let unordered = Contestant::new("sluice, unordered", Kind::Sluice).streams(100, 100);
    let by_key = Contestant { name: "sluice, by key", lines: &["ordering = \"key\""], ..unordered.clone() };
    let title = format!("Lanes: {keys} keys, Zipf({exponent}), 100 streams, window 100, 12 partitions");
    pair(lab, "P9", &title, &topic, &[unordered, by_key])
}

/// `retries`: P10.
pub fn retries(lab: &Lab, delay_ms: u64) -> Result<Findings> {
    let topic = lab.topic(&Shape::new(12, 128), lab.count(800_000))?;
    let none = Contestant::new("sluice, no retry", Kind::Sluice).streams(10, 1_000);
    let some = Contestant { name: "sluice, 10 % retried", ..none.clone() };
    let some = some.load("--retry-permille=100").load(&format!("--retry-delay-ms={delay_ms}"));
    let title = format!("Retries: a tenth of the records once, after {delay_ms} ms; 10 streams, window 1,000");
    pair(lab, "P10", &title, &topic, &[none, some])
}

/// The second by the first.
fn pair(
    lab: &Lab,
    target: &'static str,
    title: &str,
    topic: &crate::lab::Topic,
    contestants: &[Contestant; 2],
) -> Result<Findings> {
    let runs = Runs::of(lab, topic, contestants)?;
    let mut table = Table::new(title, &COLUMNS);
    runs.rows(&mut table, "", contestants);
    let ratio = runs.cpu_ratio(contestants[1].name, contestants[0].name);
    let mut ratios = Table::new(format!("{target}: ratio of pairs"), &[column("CPU", 2)]);
    ratios.row("", format!("{} ÷ {}", contestants[1].name, contestants[0].name), vec![ratio]);
    let mut findings = Findings { tables: vec![table, ratios], figures: Vec::new() };
    findings.figure(target, contestants[1].name, ratio);
    Ok(findings)
}
