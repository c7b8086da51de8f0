//! Tables in Markdown, so that they can be pasted.

use std::fmt::Write as _;

use super::{Report, Table, spread};

pub(super) fn render(report: &Report) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "`sluice-bench {}`, {}", report.command, report.date);
    let _ = writeln!(text, "{}; {}; load average {:.1}", report.machine, report.pinning, report.load_average);
    for table in &report.findings.tables {
        self::table(&mut text, table);
    }
    text
}

fn table(text: &mut String, table: &Table) {
    let _ = writeln!(text, "\n### {}\n", table.title);
    let heads: Vec<&str> = table.columns.iter().map(|column| column.name).collect();
    let _ = writeln!(text, "| | | {} |", heads.join(" | "));
    let _ = writeln!(text, "| --- | --- |{}", " --- |".repeat(heads.len()));
    for row in &table.rows {
        let cells =
            row.cells.iter().zip(&table.columns).map(|(cell, column)| {
                cell.as_ref().map_or_else(|| "–".to_owned(), |cell| spread(cell, column.decimals))
            });
        let cells: Vec<String> = cells.collect();
        let _ = writeln!(text, "| {} | {} | {} |", row.case, row.who, cells.join(" | "));
    }
    for note in &table.notes {
        let _ = writeln!(text, "\n{note}");
    }
}
