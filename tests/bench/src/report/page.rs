//! One HTML file with its plots inside: bars for the first column of each table, with whiskers from the least run to the
//! greatest, and the table below.

use std::fmt::Write as _;

use super::{Report, Row, Table, number, spread};
use crate::spread::Spread;

const STYLE: &str =
    "body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .6rem;border-bottom:1px solid #ddd;text-align:right}
td:nth-child(-n+2),th:nth-child(-n+2){text-align:left}svg text{font:13px system-ui,sans-serif;fill:#333}p{color:#555}";
/// One colour for each contestant, the same in all plots, apart for the colour-blind too.
const COLOURS: [(&str, &str); 4] =
    [("raw", "#999999"), ("naive", "#e69f00"), ("tonic", "#56b4e9"), ("sluice", "#0072b2")];
const OTHER_COLOUR: &str = "#009e73";
const LABEL_WIDTH: f64 = 330.0;
const BAR_WIDTH: f64 = 520.0;
const BAR_HEIGHT: f64 = 16.0;
const LINE_HEIGHT: f64 = 22.0;

pub(super) fn render(report: &Report) -> String {
    let mut page = String::new();
    let title = format!("sluice-bench {}", report.command);
    let _ = write!(
        page,
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <title>{0}</title><style>{STYLE}</style><h1>{0}</h1><p>{1}<br>{2}; {3}; load average {4:.1}</p>",
        escape(&title),
        escape(&report.date),
        escape(&report.machine),
        escape(&report.pinning),
        report.load_average
    );
    for table in &report.findings.tables {
        let _ = write!(page, "<h2>{}</h2>", escape(&table.title));
        bars(&mut page, table);
        cells(&mut page, table);
        for note in &table.notes {
            let _ = write!(page, "<p>{}</p>", escape(note));
        }
    }
    page.push_str("</html>\n");
    page
}

fn bars(page: &mut String, table: &Table) {
    let Some(column) = table.columns.first() else { return };
    let measured: Vec<(&Row, Spread)> =
        table.rows.iter().filter_map(|row| Some((row, (*row.cells.first()?)?))).collect();
    let longest = measured.iter().map(|(_, spread)| spread.max).fold(0.0, f64::max);
    if longest <= 0.0 {
        return;
    }
    let height = LINE_HEIGHT * (measured.len() as f64 + 1.0);
    let _ = write!(
        page,
        "<svg role=img width={} height={height} aria-label=\"{1}\"><text x={LABEL_WIDTH} y=14>{1}</text>",
        LABEL_WIDTH + BAR_WIDTH + 120.0,
        escape(column.name)
    );
    for (index, (row, spread)) in measured.iter().enumerate() {
        let top = LINE_HEIGHT * (index as f64 + 1.0);
        bar(page, row, spread, top, longest, column.decimals);
    }
    page.push_str("</svg>");
}

fn bar(page: &mut String, row: &Row, spread: &Spread, top: f64, longest: f64, decimals: usize) {
    let x = |value: f64| LABEL_WIDTH + (value.max(0.0) / longest * BAR_WIDTH);
    let colour = COLOURS.iter().find(|(who, _)| row.who.starts_with(who)).map_or(OTHER_COLOUR, |(_, colour)| colour);
    let (middle, end) = (top + BAR_HEIGHT / 2.0, x(spread.median));
    let _ = write!(
        page,
        "<text x={0} y={1} text-anchor=end>{2}</text><rect x={LABEL_WIDTH} y={top} width={3:.1} height={BAR_HEIGHT} \
         fill=\"{colour}\"/><line x1={4:.1} x2={5:.1} y1={middle} y2={middle} stroke=\"#222\"/>\
         <text x={6:.1} y={1}>{7}</text>",
        LABEL_WIDTH - 8.0,
        top + 13.0,
        escape(&format!("{} · {}", row.case, row.who)),
        end - LABEL_WIDTH,
        x(spread.min),
        x(spread.max),
        x(spread.max) + 6.0,
        number(spread.median, decimals)
    );
}

fn cells(page: &mut String, table: &Table) {
    page.push_str("<table><tr><th></th><th></th>");
    for column in &table.columns {
        let _ = write!(page, "<th>{}</th>", escape(column.name));
    }
    page.push_str("</tr>");
    for row in &table.rows {
        let _ = write!(page, "<tr><td>{}</td><td>{}</td>", escape(&row.case), escape(&row.who));
        for (cell, column) in row.cells.iter().zip(&table.columns) {
            let text = cell.as_ref().map_or_else(|| "–".to_owned(), |cell| spread(cell, column.decimals));
            let _ = write!(page, "<td>{text}</td>");
        }
        page.push_str("</tr>");
    }
    page.push_str("</table>");
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
