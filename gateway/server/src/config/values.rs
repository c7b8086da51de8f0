//! Values with units and names: durations, sizes, a start, enums.

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::config::keys::Field;

/// A number of bytes, written with a unit: `"64MiB"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(pub u64);

/// Where a group without a commit begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Start {
    /// At the beginning of the log.
    #[default]
    Earliest,
    /// At its end.
    Latest,
    /// At the first record of this time or later.
    Time(SystemTime),
}

/// Defines an enum whose variants are words in the config file.
macro_rules! words {
    ($(#[doc = $doc:literal])+ pub enum $name:ident = $kind:literal {
        $($(#[doc = $variant_doc:literal])+ $variant:ident = $word:literal),+ $(,)?
    }) => {
        $(#[doc = $doc])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
        pub enum $name {
            #[default]
            $($(#[doc = $variant_doc])+ #[serde(rename = $word)] $variant),+
        }

        impl Field for $name {
            const KIND: &'static str = $kind;
        }
    };
}

words! {
    /// Order among records.
    pub enum Ordering = "`\"none\"`, `\"key\"` or `\"partition\"`" {
        /// None: every record may be worked at once.
        None = "none",
        /// Records of one key, one after another. A null key has no order.
        Key = "key",
        /// Records of one partition, one after another.
        Partition = "partition",
    }
}

words! {
    /// When the group is joined.
    pub enum Join = "`\"on_session\"` or `\"at_start\"`" {
        /// With the first session; left `leave_delay` after the last.
        OnSession = "on_session",
        /// When the node starts; left when it ends.
        AtStart = "at_start",
    }
}

words! {
    /// How members of the group agree who has which partition.
    pub enum Protocol = "`\"classic\"` or `\"consumer\"`" {
        /// The classic protocol.
        Classic = "classic",
        /// KIP-848: the broker's settings rule.
        Consumer = "consumer",
    }
}

words! {
    /// Assignors of the classic protocol.
    pub enum Assignor = "`\"cooperative-sticky\"`, `\"range\"` or `\"roundrobin\"`" {
        /// Partitions that stay are untouched.
        CooperativeSticky = "cooperative-sticky",
        /// Eager.
        Range = "range",
        /// Eager.
        RoundRobin = "roundrobin",
    }
}

words! {
    /// What happens to a record that failed `max_attempts` times.
    pub enum OnExhausted = "`\"block\"`, `\"drop\"` or `\"dead_letter\"`" {
        /// Retried at `max_backoff` for ever, and shown.
        Block = "block",
        /// Done without anyone having worked it, and counted.
        Drop = "drop",
        /// Written to the dead-letter topic; done when Kafka has acknowledged that write.
        DeadLetter = "dead_letter",
    }
}

words! {
    /// How logs look.
    pub enum LogFormat = "`\"text\"` or `\"json\"`" {
        /// For people.
        Text = "text",
        /// One object a line, for machines.
        Json = "json",
    }
}

// === impl Size ===

const UNITS: [(&str, u64); 8] = [
    ("B", 1),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

impl Size {
    /// So many MiB.
    #[must_use]
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let unit = text[digits..].trim_start();
        let Ok(number) = text[..digits].parse::<u64>() else {
            return Err(format!("`{text}` is not a size: write a whole number with a unit, as in \"64MiB\""));
        };
        let factor = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).map(|(_, factor)| *factor);
        let Some(factor) = factor else {
            let given =
                if unit.is_empty() { "has no unit".to_owned() } else { format!("has the unknown unit `{unit}`") };
            return Err(format!("`{text}` {given}: write B, KiB, MiB, GiB, TiB, kB, MB or GB, as in \"64MiB\""));
        };
        number.checked_mul(factor).map(Self).ok_or_else(|| format!("`{text}` is more than 2^64 bytes"))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let binary = [("TiB", 1u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
        match binary.into_iter().find(|(_, factor)| self.0 >= *factor && self.0.is_multiple_of(*factor)) {
            Some((unit, factor)) => write!(f, "{}{unit}", self.0 / factor),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer, "a size with a unit, as in \"64MiB\"", str::parse)
    }
}

// === impl Start ===

impl FromStr for Start {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "earliest" => Ok(Self::Earliest),
            "latest" => Ok(Self::Latest),
            _ => humantime::parse_rfc3339(text).map(Self::Time).map_err(|_| {
                format!("`{text}` is no start: write \"earliest\", \"latest\" or a time as \"2026-01-31T00:00:00Z\"")
            }),
        }
    }
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Earliest => f.write_str("earliest"),
            Self::Latest => f.write_str("latest"),
            Self::Time(time) => humantime::format_rfc3339(*time).fmt(f),
        }
    }
}

impl Field for Start {
    const KIND: &'static str = "`\"earliest\"`, `\"latest\"` or an RFC 3339 time in quotes";
}

impl Serialize for Start {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Start {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer, "\"earliest\", \"latest\" or a time as \"2026-01-31T00:00:00Z\"", str::parse)
    }
}

// === durations ===

/// Durations in the file: `"250ms"`, `"5m"`.
pub(crate) mod duration {
    use std::time::Duration;

    use serde::{Deserializer, Serializer};

    pub(crate) fn parse(text: &str) -> Result<Duration, String> {
        humantime::parse_duration(text).map_err(|error| {
            format!(
                "`{text}` is not a duration ({error}): write a number with ms, s, m, h or d, as in \"250ms\" or \"5m\""
            )
        })
    }

    pub(crate) fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*value))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        super::text(deserializer, "a duration with a unit, as in \"250ms\" or \"5m\"", parse)
    }
}

/// Reads a string and parses it; any other type is an error that says what is expected.
fn text<'de, D, T>(
    deserializer: D,
    expected: &'static str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
{
    struct Text<F>(&'static str, F);

    impl<T, F: Fn(&str) -> Result<T, String>> de::Visitor<'_> for Text<F> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }

        fn visit_str<E: de::Error>(self, value: &str) -> Result<T, E> {
            (self.1)(value).map_err(E::custom)
        }
    }

    deserializer.deserialize_str(Text(expected, parse))
}
