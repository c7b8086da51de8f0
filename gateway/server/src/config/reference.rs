//! The reference page of the config file, made from the doc comments: `docs/reference/config.md`.

use std::fmt::Write;

use crate::config::env::variable;
use crate::config::keys::{Key, Section};
use crate::config::{KafkaConfig, LimitsConfig, LogConfig, NodeConfig, PeersConfig, SubscriptionConfig};

const INTRO: &str = "\
<!-- Made from the doc comments in gateway/server/src/config/sections.rs. Do not edit: change those, and run
     SLUICE_REWRITE_DOCS=1 cargo test -p sluice --lib config::reference -->

# The config file

`sluice serve --config sluice.toml` reads a TOML file; `sluice check-config sluice.toml` checks it, and with `--print` shows
what is in effect. [`deploy/sluice.toml`](../../deploy/sluice.toml) is an example with comments.

- A **duration** is a number with a unit in quotes: `\"250ms\"`, `\"30s\"`, `\"5m\"`, `\"12h\"`.
- A **size** is a whole number with a unit in quotes: `\"512KiB\"`, `\"64MiB\"`, `\"1GiB\"`; `kB`, `MB` and `GB` are decimal.
- A key that is not here is an error, and so is an override that names no key.

Every key can be overridden by an environment variable: `SLUICE_` and its path in upper case, with two underscores between
the parts and one for whatever is no letter or digit. Lists are separated by commas. A librdkafka property is overridden one
by one: `SLUICE_KAFKA__PROPERTIES__SASL_PASSWORD` is `sasl.password` in `kafka.properties`. A subscription must stand in the
file; overrides change its keys.
";

/// The page.
#[must_use]
pub fn page() -> String {
    let mut page = INTRO.to_owned();
    section::<NodeConfig>(&mut page, "node", &["node"]);
    section::<LogConfig>(&mut page, "log", &["log"]);
    section::<KafkaConfig>(&mut page, "kafka", &["kafka"]);
    section::<PeersConfig>(&mut page, "peers", &["peers"]);
    section::<LimitsConfig>(&mut page, "limits", &["limits"]);
    section::<SubscriptionConfig>(&mut page, "subscriptions.NAME", &["subscriptions", "NAME"]);
    page
}

fn section<S: Section>(page: &mut String, title: &str, path: &[&str]) {
    write!(page, "\n## `[{title}]`\n\n{}\n", S::doc()).expect("a String takes all");
    for key in S::keys() {
        self::key(page, path, &key);
    }
}

fn key(page: &mut String, section: &[&str], key: &Key) {
    let path: Vec<&str> = section.iter().copied().chain(key.path.iter().copied()).collect();
    let default = key.default.as_ref().map_or_else(|| "none".to_owned(), |default| format!("`{default}`"));
    let (name, kind, doc, variable) = (key.path.join("."), key.kind, &key.doc, variable(&path));
    write!(page, "\n### `{name}`\n\n{doc}\n\n{kind} · default {default} · `{variable}`\n").expect("a String takes all");
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::config::Config;

    fn repository() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
    }

    #[test]
    fn the_page_in_the_repository_is_what_the_doc_comments_say() {
        let path = repository().join("docs/reference/config.md");
        if std::env::var_os("SLUICE_REWRITE_DOCS").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, page()).unwrap();
        }
        let stands = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            stands == page(),
            "docs/reference/config.md is stale: SLUICE_REWRITE_DOCS=1 cargo test -p sluice --lib config::reference"
        );
    }

    /// Words in code marks of the limits page, with the table row they stand in.
    fn words_of_limits(column: usize) -> Vec<String> {
        let page = std::fs::read_to_string(repository().join("docs/reference/limits.md")).unwrap();
        let rows = page.lines().filter(|line| line.starts_with("| ") && line.matches(" | ").count() == 4);
        let cells = rows.filter_map(|row| row.split(" | ").nth(column));
        cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
    }

    #[test]
    fn the_limits_page_names_keys_and_metrics_that_there_are() {
        let sections = [NodeConfig::keys(), PeersConfig::keys(), LimitsConfig::keys(), SubscriptionConfig::keys()];
        let keys: Vec<String> = sections.iter().flatten().map(|key| key.path.join(".")).collect();
        let named = words_of_limits(2);
        let unknown: Vec<_> = named.iter().filter(|name| !keys.contains(name)).collect();
        assert!(named.len() > 20 && unknown.is_empty(), "no such keys: {unknown:?}");
        let metrics = crate::metrics::names();
        let named = words_of_limits(3);
        let unknown: Vec<_> = named.iter().filter(|name| !metrics.contains(&name.as_str())).collect();
        assert!(named.len() > 20 && unknown.is_empty(), "no such metrics: {unknown:?}");
    }

    #[test]
    fn the_limits_page_names_every_key_of_the_limits() {
        let named = words_of_limits(2);
        for key in LimitsConfig::keys() {
            assert!(named.contains(&key.path.join(".")), "{:?} is on no row of docs/reference/limits.md", key.path);
        }
    }

    #[test]
    fn the_example_config_is_accepted() {
        let config = Config::load(&repository().join("deploy/sluice.toml"), &[]).unwrap();
        assert_eq!(config.subscriptions.len(), 2);
    }
}
