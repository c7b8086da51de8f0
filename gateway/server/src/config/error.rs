//! What is wrong in a config, and where: file, line and key, or the environment variable.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use toml::de::{DeTable, DeValue};

/// Why there is no config.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the config file {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Every mistake that was found, one a line.
    #[error("{}", lines(.0))]
    Invalid(Vec<Problem>),
}

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where it stands.
    pub place: Place,
    /// Its key, dotted; empty when the file is not TOML at that place.
    pub key: String,
    /// What is wrong and what would be right.
    pub message: String,
}

/// Where a mistake stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In the file.
    Line {
        /// The file's name as it was given.
        file: String,
        /// From 1.
        line: usize,
    },
    /// In an environment variable.
    Variable(String),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Line { file, line } => write!(f, "{file}:{line}: ")?,
            Place::Variable(name) => write!(f, "{name}: ")?,
        }
        match (&self.place, self.key.as_str()) {
            (Place::Line { .. }, key) if !key.is_empty() => write!(f, "{key}: {}", self.message),
            _ => f.write_str(&self.message),
        }
    }
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// The file's text, and where its keys stand in it.
pub(crate) struct Source<'a> {
    file: &'a str,
    text: &'a str,
    table: DeTable<'a>,
}

impl<'a> Source<'a> {
    pub(crate) fn new(file: &'a str, text: &'a str) -> Self {
        let (table, _) = DeTable::parse_recoverable(text);
        Self { file, text, table: table.into_inner() }
    }

    /// What `toml` said, as a problem with line and key.
    pub(crate) fn problem(&self, error: &toml::de::Error) -> Problem {
        let span = error.span().unwrap_or(0..0);
        let path = path_at(&self.table, span.start).join(".");
        let (key, message) = match error.message() {
            "duplicate key" => (written_path(self.text, &span), "stands twice: keep one of them".to_owned()),
            message => (path, friendly(message)),
        };
        Problem { place: self.line(span.start), key, message }
    }

    /// The place of a key; of the nearest table above it when the key itself is not in the file.
    pub(crate) fn place(&self, path: &[String]) -> Place {
        let mut at = 0;
        let mut table = Some(&self.table);
        for part in path {
            let entry = table.and_then(|t| t.iter().find(|(key, _)| key.get_ref().as_ref() == part.as_str()));
            let Some((key, value)) = entry else { break };
            at = key.span().start;
            table = value.get_ref().as_table();
        }
        self.line(at)
    }

    fn line(&self, at: usize) -> Place {
        let line = 1 + self.text.bytes().take(at).filter(|byte| *byte == b'\n').count();
        Place::Line { file: self.file.to_owned(), line }
    }
}

/// The path of a key as the text has it: a table that stands twice is not in the parsed table a second time.
fn written_path(text: &str, span: &Range<usize>) -> String {
    let header = |line: &str| {
        let inner = line.trim().strip_prefix('[')?.split(']').next()?;
        Some(inner.trim_matches(['[', ' ']).to_owned())
    };
    let line_start = text.get(..span.start).unwrap_or_default().rfind('\n').map_or(0, |at| at + 1);
    let (above, line) = text.split_at(line_start);
    if let Some(table) = line.lines().next().and_then(header) {
        return table;
    }
    let name = text.get(span.clone()).unwrap_or_default().trim();
    above.lines().rev().find_map(header).map_or_else(|| name.to_owned(), |table| format!("{table}.{name}"))
}

/// The path of the deepest key whose name or value covers the position.
fn path_at(table: &DeTable<'_>, at: usize) -> Vec<String> {
    let covers = |span: Range<usize>| span.contains(&at);
    let mut best = Vec::new();
    for (key, value) in table {
        let below = match value.get_ref() {
            DeValue::Table(below) => path_at(below, at),
            _ => Vec::new(),
        };
        if covers(key.span()) || covers(value.span()) || !below.is_empty() {
            let path: Vec<_> = std::iter::once(key.get_ref().to_string()).chain(below).collect();
            if path.len() > best.len() {
                best = path;
            }
        }
    }
    best
}

/// An enum's unknown word.
fn unknown_word(rest: &str) -> String {
    let (given, expected) = rest.split_once('`').unwrap_or((rest, ""));
    let expected = expected.trim_start_matches([',', ' ']);
    format!("`{given}` is not one of the values: {expected}")
}

/// serde's words, for people: a key that is not there comes with the one that was probably meant.
pub(crate) fn friendly(message: &str) -> String {
    if let Some(rest) = message.strip_prefix("unknown variant `") {
        return unknown_word(rest);
    }
    let Some((given, expected)) = message.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`')) else {
        return match message {
            "invalid socket address syntax" => {
                "is no address: write an IP and a port, as in \"127.0.0.1:7070\"".to_owned()
            }
            // A section's type is of no use to a person.
            _ if message.contains("expected struct ") => {
                let given = message.split(", expected struct ").next().unwrap_or_default();
                format!("{given}, expected a table of keys")
            }
            _ => message
                .replace("expected u64", "expected a whole number, 0 or more")
                .replace("expected u32", "expected a whole number, 0 or more"),
        };
    };
    let known: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
    match closest(given, known.iter().copied()) {
        Some(meant) => format!("unknown key `{given}`: did you mean `{meant}`?"),
        None => format!("unknown key `{given}`: the keys here are {}", known.join(", ")),
    }
}

/// The known name that looks most like the given one, if any looks like it.
pub(crate) fn closest<'k>(given: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    known
        .into_iter()
        .map(|name| (strsim::normalized_damerau_levenshtein(given, name), name))
        .filter(|(likeness, _)| *likeness > 0.6)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}
