//! Environment overrides: `SLUICE_NODE__LISTEN` is `listen` in `[node]`.
//!
//! Only variables with `SLUICE_` and a `__` are ours. Kubernetes sets `SLUICE_SERVICE_HOST`, `SLUICE_PORT` and the like
//! beside every pod of a service named `sluice`: these must not be errors.

use serde::Deserialize;
use toml::{Table, Value};

use crate::config::error::{Place, Problem, closest, friendly};
use crate::config::keys::{Key, Section};
use crate::config::{Config, KafkaConfig, LimitsConfig, LogConfig, NodeConfig, PeersConfig, SubscriptionConfig};

const PREFIX: &str = "SLUICE_";
const MAP: &str = <std::collections::BTreeMap<String, String> as crate::config::keys::Field>::KIND;

/// An override that was applied.
pub(crate) struct Applied {
    pub(crate) variable: String,
    pub(crate) path: Vec<String>,
}

/// A key that a variable can name.
struct Target {
    variable: String,
    path: Vec<String>,
    kind: &'static str,
}

/// The process's environment, without what is not UTF-8.
pub fn process() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// The variable that overrides the key.
#[must_use]
pub fn variable(path: &[impl AsRef<str>]) -> String {
    let parts: Vec<_> =
        path.iter().map(|part| part.as_ref().replace(|c: char| !c.is_ascii_alphanumeric(), "_")).collect();
    format!("{PREFIX}{}", parts.join("__").to_ascii_uppercase())
}

/// Writes the overrides into the file's table.
pub(crate) fn apply(table: &mut Table, env: &[(String, String)]) -> Result<Vec<Applied>, Vec<Problem>> {
    let targets = targets(table);
    let mut applied = Vec::new();
    let mut problems = Vec::new();
    for (name, raw) in env.iter().filter(|(name, _)| name.starts_with(PREFIX)) {
        match find(name, &targets).and_then(|found| found.map(|found| set(table, found, raw)).transpose()) {
            Ok(Some(path)) => applied.push(Applied { variable: name.clone(), path }),
            Ok(None) => {}
            Err(message) => {
                problems.push(Problem { place: Place::Variable(name.clone()), key: String::new(), message });
            }
        }
    }
    if problems.is_empty() { Ok(applied) } else { Err(problems) }
}

/// The key that a variable names, with its kind. `None`: the variable is none of ours.
fn find(name: &str, targets: &[Target]) -> Result<Option<(Vec<String>, &'static str)>, String> {
    let mut matching = targets.iter().filter_map(|target| {
        if target.kind != MAP {
            return (target.variable == name).then(|| (target.path.clone(), target.kind));
        }
        let property = name.strip_prefix(&target.variable)?.strip_prefix("__").filter(|rest| !rest.is_empty())?;
        let property = property.to_ascii_lowercase().replace('_', ".");
        Some((target.path.iter().cloned().chain([property]).collect(), "string"))
    });
    if let Some(found) = matching.next() {
        return match matching.next() {
            Some(other) => Err(format!("names two keys, {} and {}", found.0.join("."), other.0.join("."))),
            None => Ok(Some(found)),
        };
    }
    if let Some(target) = targets.iter().find(|target| target.variable == name) {
        return Err(format!("names a table: set one of its keys, as in {}__FETCH_WAIT_MAX_MS", target.variable));
    }
    let single = |variable: &str| variable.replace("__", "_");
    if !name.contains("__") {
        let meant = targets.iter().find(|target| single(&target.variable) == name);
        return meant.map_or(Ok(None), |t| Err(format!("names no key: write {} with two underscores", t.variable)));
    }
    Err(unknown(name, targets))
}

/// What to say of a variable that names no key.
fn unknown(name: &str, targets: &[Target]) -> String {
    let subscriptions = format!("{PREFIX}SUBSCRIPTIONS__");
    if let Some(rest) = name.strip_prefix(&subscriptions) {
        let given = rest.split("__").next().unwrap_or_default();
        let prefix = format!("{subscriptions}{given}__");
        if !targets.iter().any(|target| target.variable.starts_with(&prefix)) {
            return format!("names no key: the config file has no subscription that is written {given}");
        }
    }
    let known = targets.iter().filter_map(|target| target.variable.strip_prefix(PREFIX));
    match closest(name.trim_start_matches(PREFIX), known) {
        Some(meant) => format!("names no key: did you mean {PREFIX}{meant}?"),
        None => "names no key of the config file".to_owned(),
    }
}

/// Every key there is: those of the fixed tables, and those of each subscription in the file.
fn targets(table: &Table) -> Vec<Target> {
    let fixed: [(&str, Vec<Key>); 5] = [
        ("node", NodeConfig::keys()),
        ("log", LogConfig::keys()),
        ("kafka", KafkaConfig::keys()),
        ("peers", PeersConfig::keys()),
        ("limits", LimitsConfig::keys()),
    ];
    let names = table.get("subscriptions").and_then(Value::as_table).into_iter().flat_map(Table::keys);
    let fixed = fixed.into_iter().map(|(section, keys)| (vec![section.to_owned()], keys));
    let subscriptions = names.map(|name| (vec!["subscriptions".to_owned(), name.clone()], SubscriptionConfig::keys()));
    let all = fixed.chain(subscriptions);
    all.flat_map(|(section, keys)| {
        keys.into_iter().map(move |key| {
            let path: Vec<String> = section.iter().cloned().chain(key.path.iter().map(ToString::to_string)).collect();
            Target { variable: variable(&path), path, kind: key.kind }
        })
    })
    .collect()
}

fn set(table: &mut Table, (path, kind): (Vec<String>, &'static str), raw: &str) -> Result<Vec<String>, String> {
    let value = value(kind, raw)?;
    let (last, above) = path.split_last().expect("a key has a name");
    let mut changed = table.clone();
    let mut at = &mut changed;
    for part in above {
        let below = at.entry(part.clone()).or_insert_with(|| Value::Table(Table::new()));
        at = below.as_table_mut().expect("the file was read as a config, so a table is a table");
    }
    at.insert(last.clone(), value);
    Config::deserialize(Value::Table(changed.clone())).map_err(|error| friendly(error.message()))?;
    *table = changed;
    Ok(path)
}

fn value(kind: &str, raw: &str) -> Result<Value, String> {
    let parsed = match kind {
        "integer" => raw.trim().parse().ok().map(Value::Integer),
        "number" => raw.trim().parse().ok().map(Value::Float),
        "true or false" => raw.trim().parse().ok().map(Value::Boolean),
        "list of strings" => {
            let items = raw.split(',').map(str::trim).filter(|item| !item.is_empty());
            Some(Value::Array(items.map(|item| Value::String(item.to_owned())).collect()))
        }
        _ => Some(Value::String(raw.to_owned())),
    };
    parsed.ok_or_else(|| format!("`{raw}` is not the expected {kind}"))
}
