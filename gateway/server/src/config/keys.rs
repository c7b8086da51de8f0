//! The one description of every key: the structs are written with `section!`, and from
//! the same lines come the defaults, the environment overrides and the reference page.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::config::values::Size;

/// One key of the config file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Parts of its path, below the section: `["retry", "jitter"]`.
    pub path: Vec<&'static str>,
    /// Its doc comment, lines joined by spaces.
    pub doc: String,
    /// What its value looks like.
    pub kind: &'static str,
    /// Its default as it would stand in the file; `None`: there is none.
    pub default: Option<String>,
}

/// A type that stands as a value in the config file.
pub trait Field {
    /// What the value looks like, for messages and the reference page.
    const KIND: &'static str;

    /// Keys below, when the value is a table with keys of its own.
    fn keys() -> Option<Vec<Key>> {
        None
    }
}

/// A table with fixed keys.
pub trait Section {
    /// What the table is about.
    fn doc() -> String;

    /// Its keys in the order of the source.
    fn keys() -> Vec<Key>;
}

macro_rules! fields {
    ($($type:ty => $kind:literal),+ $(,)?) => { $(impl Field for $type { const KIND: &'static str = $kind; })+ };
}

fields! {
    String => "string",
    bool => "true or false",
    u32 => "integer",
    u64 => "integer",
    f64 => "number",
    SocketAddr => "IP address and port",
    Duration => "duration",
    Size => "size",
    Vec<String> => "list of strings",
    BTreeMap<String, String> => "table of strings",
}

impl<T: Field> Field for Option<T> {
    const KIND: &'static str = T::KIND;
}

/// Joins the lines of a doc comment.
pub(crate) fn join_doc(lines: &[&str]) -> String {
    lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ").trim().to_owned()
}

/// Builds the keys of a field: its own, or those below it.
pub(crate) fn keys_of<T: Field>(name: &'static str, doc: &[&str], default: Option<&serde_json::Value>) -> Vec<Key> {
    let Some(below) = T::keys() else {
        let default = default.filter(|value| !value.is_null()).map(ToString::to_string);
        return vec![Key { path: vec![name], doc: join_doc(doc), kind: T::KIND, default }];
    };
    below
        .into_iter()
        .map(|key| Key { path: std::iter::once(name).chain(key.path.iter().copied()).collect(), ..key })
        .collect()
}

/// Defines a table of the config file: documentation, name, type and default of each key in one place.
macro_rules! section {
    (
        $(#[doc = $doc:literal])+
        pub struct $name:ident {
            $(
                $(#[doc = $field_doc:literal])+
                $(#[serde($($serde:tt)*)])?
                $field:ident: $type:ty = $default:expr
            ),+ $(,)?
        }
    ) => {
        $(#[doc = $doc])+
        #[derive(Debug, Clone, PartialEq, serde::Deserialize, serde::Serialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $(
                $(#[doc = $field_doc])+
                $(#[serde($($serde)*)])?
                pub $field: $type,
            )+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)+ }
            }
        }

        impl $crate::config::keys::Section for $name {
            fn doc() -> String {
                $crate::config::keys::join_doc(&[$($doc),+])
            }

            fn keys() -> Vec<$crate::config::keys::Key> {
                let defaults = serde_json::to_value(Self::default()).expect("plain values, string keys");
                let mut keys = Vec::new();
                $(keys.extend($crate::config::keys::keys_of::<$type>(
                    stringify!($field), &[$($field_doc),+], defaults.get(stringify!($field)),
                ));)+
                keys
            }
        }
    };
}
pub(crate) use section;
