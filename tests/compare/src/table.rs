//! The tables, as markdown.

use std::fmt::Write as _;
use std::path::Path;

/// What one contestant measured: a row's name and its value.
pub type Rows = Vec<(String, String)>;

const BEGIN: &str = "<!-- tables: begin -->";
const END: &str = "<!-- tables: end -->";

/// A row.
pub fn row(name: &str, value: impl ToString) -> (String, String) {
    (name.to_owned(), value.to_string())
}

/// Several rounds of one contestant as one: all values of a row, in the order of the rounds; one that never changed stands once.
pub fn joined(rounds: &[Rows]) -> Rows {
    let Some(first) = rounds.first() else { return Rows::new() };
    let all = |name: &str| -> Vec<&str> {
        let rows = rounds.iter().flatten().filter(|(known, _)| known == name);
        rows.map(|(_, value)| value.as_str()).collect()
    };
    let join = |name: &String| {
        let values = all(name);
        let constant = values.iter().all(|value| *value == values[0]);
        (name.clone(), if constant { values[0].to_owned() } else { values.join(" · ") })
    };
    first.iter().map(|(name, _)| join(name)).collect()
}

/// One table: a column for each contestant, a row for each name, in the order in which names first come.
pub fn table(columns: &[(String, Rows)]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in columns.iter().flat_map(|(_, rows)| rows) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let mut text = String::from("| |");
    columns.iter().for_each(|(head, _)| write!(text, " {head} |").expect("a String takes all"));
    text.push_str("\n| --- |");
    columns.iter().for_each(|_| text.push_str(" ---: |"));
    for name in names {
        write!(text, "\n| {name} |").expect("a String takes all");
        for (_, rows) in columns {
            let value = rows.iter().find(|(known, _)| known == name).map_or("–", |(_, value)| value);
            write!(text, " {value} |").expect("a String takes all");
        }
    }
    text.push('\n');
    text
}

/// Puts the tables between their marks in a page, or makes the page where there is none.
pub fn write(path: &Path, tables: &str) -> std::io::Result<()> {
    let page = std::fs::read_to_string(path).unwrap_or_else(|_| format!("{BEGIN}\n{END}\n"));
    std::fs::write(path, replaced(&page, tables))
}

fn replaced(page: &str, tables: &str) -> String {
    let parts = page.split_once(BEGIN).and_then(|(head, rest)| rest.split_once(END).map(|(_, tail)| (head, tail)));
    let (head, tail) = parts.unwrap_or((page, "\n"));
    format!("{head}{BEGIN}\n{tables}{END}{tail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_the_same_name_stand_in_one_line() {
        let columns = [
            ("A".to_owned(), vec![row("speed", 1), row("loss", 0)]),
            ("B".to_owned(), vec![row("speed", 2), row("delay", "3 s")]),
        ];
        assert_eq!(
            table(&columns),
            "| | A | B |\n| --- | ---: | ---: |\n| speed | 1 | 2 |\n| loss | 0 | – |\n| delay | – | 3 s |\n"
        );
    }

    #[test]
    fn all_rounds_stand_in_a_cell() {
        let rounds = [vec![row("speed", 1), row("loss", 0)], vec![row("speed", 2), row("loss", 0)]];
        assert_eq!(joined(&rounds), vec![row("speed", "1 · 2"), row("loss", 0)]);
        assert_eq!(joined(&[]), Rows::new());
    }

    #[test]
    fn only_what_is_between_the_marks_is_replaced() {
        let page = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
        assert_eq!(replaced(&page, "new\n"), format!("before\n{BEGIN}\nnew\n{END}\nafter\n"));
    }
}
