//! What a command found: tables for people, JSON for scripts, a page with plots.

mod page;
mod text;

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::spread::Spread;

/// What stands in a column.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Column {
    pub name: &'static str,
    pub decimals: usize,
}

/// One row: a contestant in a case.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub case: String,
    pub who: String,
    /// As many as there are columns; `None`: not measured for this one.
    pub cells: Vec<Option<Spread>>,
}

/// Rows that compare.
#[derive(Debug, Clone, Serialize)]
pub struct Table {
    pub title: String,
    pub columns: Vec<Column>,
    pub rows: Vec<Row>,
    /// What a reader must know to believe it.
    pub notes: Vec<String>,
}

/// One figure that a target is about.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// P1 to P20.
    pub target: &'static str,
    pub case: String,
    pub value: Spread,
}

/// What one scenario found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Findings {
    pub tables: Vec<Table>,
    pub figures: Vec<Figure>,
}

/// All that a command found, and where.
#[derive(Debug, Serialize)]
pub struct Report {
    pub command: String,
    pub date: String,
    pub machine: String,
    pub pinning: String,
    /// Before the first measurement.
    pub load_average: f64,
    pub findings: Findings,
}

pub const fn column(name: &'static str, decimals: usize) -> Column {
    Column { name, decimals }
}

impl Table {
    pub fn new(title: impl Into<String>, columns: &[Column]) -> Self {
        Self { title: title.into(), columns: columns.to_vec(), rows: Vec::new(), notes: Vec::new() }
    }

    pub fn row(&mut self, case: impl Into<String>, who: impl Into<String>, cells: Vec<Option<Spread>>) {
        self.rows.push(Row { case: case.into(), who: who.into(), cells });
    }

    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }
}

impl Findings {
    pub fn figure(&mut self, target: &'static str, case: impl Into<String>, value: Option<Spread>) {
        if let Some(value) = value {
            self.figures.push(Figure { target, case: case.into(), value });
        }
    }

    pub fn add(&mut self, other: Self) {
        self.tables.extend(other.tables);
        self.figures.extend(other.figures);
    }
}

impl Report {
    /// For people, on stdout.
    pub fn print(&self) {
        print!("{}", text::render(self));
    }

    /// For scripts.
    pub fn write_json(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        fs::write(file, text).with_context(|| format!("write {}", file.display()))
    }

    /// A page with plots that needs nothing else.
    pub fn write_page(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        let file = folder.join("index.html");
        fs::write(&file, page::render(self)).with_context(|| format!("write {}", file.display()))?;
        eprintln!("wrote {}", file.display());
        Ok(())
    }
}

/// A number as people read it: digits in groups.
fn number(value: f64, decimals: usize) -> String {
    let text = format!("{:.decimals$}", value.abs());
    let (whole, fraction) = text.split_once('.').map_or((text.as_str(), None), |(whole, part)| (whole, Some(part)));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    let sign = if value < 0.0 { "-" } else { "" };
    fraction.map_or_else(|| format!("{sign}{grouped}"), |fraction| format!("{sign}{grouped}.{fraction}"))
}

/// Median and, where there are several runs, both ends.
fn spread(spread: &Spread, decimals: usize) -> String {
    let of = |value| number(value, decimals);
    if spread.runs < 2 {
        return of(spread.median);
    }
    format!("{} ({}–{})", of(spread.median), of(spread.min), of(spread.max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(number(1_234_567.0, 0), "1,234,567");
        assert_eq!(number(-1_234.56, 1), "-1,234.6");
        assert_eq!(number(0.4321, 3), "0.432");
    }

    #[test]
    fn a_single_run_has_no_ends() {
        let one = Spread::of([1.5]).expect("one");
        let two = Spread::of([1.0, 2.0]).expect("two");
        assert_eq!(spread(&one, 1), "1.5");
        assert_eq!(spread(&two, 1), "1.5 (1.0–2.0)");
    }

    fn report() -> Report {
        let mut table = Table::new("drain <1>", &[column("CPU-s/1M", 3), column("records/s", 0)]).note("a note");
        table.row("128 B", "raw", vec![Spread::of([0.3, 0.4]), None]);
        table.row("128 B", "sluice", vec![Spread::of([0.6]), Spread::of([1e6])]);
        let mut findings = Findings { tables: vec![table], figures: Vec::new() };
        findings.figure("P1", "128 B", Spread::of([1.4]));
        let of = |text: &str| text.to_owned();
        let (command, date, machine, pinning) = (of("drain"), of("a day"), of("a machine"), of("pinned"));
        Report { command, date, machine, pinning, load_average: 0.1, findings }
    }

    #[test]
    fn a_table_for_people_has_each_row_and_what_was_not_measured() {
        let text = text::render(&report());
        assert!(text.contains("| 128 B | raw | 0.350 (0.300–0.400) | – |"), "{text}");
        assert!(text.contains("a note"), "{text}");
    }

    #[test]
    fn a_page_is_one_file_and_escapes_what_it_is_told() {
        let page = page::render(&report());
        assert!(page.contains("<svg") && page.contains("drain &lt;1&gt;") && !page.contains("<1>"), "{page}");
        assert!(!page.contains("src=") && !page.contains("http"), "nothing is loaded from elsewhere");
    }
}
