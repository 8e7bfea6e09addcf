//! Lists of settings: a command declares one, and flags, environment and config file share it.

use std::{fmt, path::Path, str::FromStr};

use serde::{Deserialize as _, Deserializer, de, de::DeserializeOwned};

use super::ConfigError;
use crate::files::{self, ReadError};

/// The longest config file read, in bytes.
const MAX_FILE: u64 = 1024 * 1024;

/// Declares a list of settings and how two of them are laid over each other. Those behind the arrow may be lists in a file.
macro_rules! settings {
    (
        struct $list:ident;
        $($(#[$meta:meta])* $name:ident: $kind:ty, $env:literal, $value:literal;)*
        $(=> $($(#[$listed_meta:meta])* $listed:ident: $listed_kind:ty, $listed_env:literal, $listed_value:literal;)*)?
    ) => {
        /// Everything that can be set; what is not set is `None`.
        #[derive(Debug, Default, clap::Args, serde::Deserialize)]
        #[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
        pub(crate) struct $list {
            $(
                $(#[$meta])*
                #[arg(long, env = $env, value_name = $value, hide_env_values = true)]
                #[serde(deserialize_with = "crate::config::settings::from_text")]
                pub(crate) $name: Option<$kind>,
            )*
            $($(
                $(#[$listed_meta])*
                #[arg(long, env = $listed_env, value_name = $listed_value, hide_env_values = true)]
                #[serde(deserialize_with = "crate::config::settings::from_list")]
                pub(crate) $listed: Option<$listed_kind>,
            )*)?
        }

        impl $list {
            /// Fills what is not set here from `below`.
            pub(crate) fn over(self, below: Self) -> Self {
                Self {
                    $($name: self.$name.or(below.$name),)*
                    $($($listed: self.$listed.or(below.$listed),)*)?
                }
            }
        }
    };
}

pub(super) use settings;

/// Reads a config file: YAML whose keys are the flags without the dashes.
pub(super) fn read<T: DeserializeOwned + Default>(path: &Path) -> Result<T, ConfigError> {
    let failed = |error: ReadError| ConfigError::File { path: path.to_owned(), source: error.into_problem() };
    let text = files::read_text(path, MAX_FILE).map_err(failed)?;
    let document = serde_yaml_ng::Deserializer::from_str(&text);
    // A file of comments only is an empty document, not an empty mapping.
    let read: Result<Option<T>, _> = serde_path_to_error::deserialize(document);
    read.map(Option::unwrap_or_default).map_err(|error| {
        let key = error.path().to_string();
        ConfigError::Setting {
            path: path.to_owned(),
            key: if key == "." { "not a list of settings".to_owned() } else { key },
            source: error.into_inner(),
        }
    })
}

/// Reads a text or a whole number and parses it as a flag's value would be.
pub(super) fn from_text<'de, D: Deserializer<'de>, T>(value: D) -> Result<Option<T>, D::Error>
where
    T: FromStr<Err: fmt::Display>,
{
    struct Text;

    impl de::Visitor<'_> for Text {
        type Value = String;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("one value, as the flag of this name takes it")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
            Ok(text.to_owned())
        }

        fn visit_u64<E: de::Error>(self, number: u64) -> Result<String, E> {
            Ok(number.to_string())
        }
    }

    parsed(&value.deserialize_any(Text)?)
}

/// The same of a list, whose flag takes it as one text in YAML.
pub(super) fn from_list<'de, D: Deserializer<'de>, T>(value: D) -> Result<Option<T>, D::Error>
where
    T: FromStr<Err: fmt::Display>,
{
    let list = Vec::<serde_json::Value>::deserialize(value)?;
    let text = serde_json::to_string(&list).map_err(de::Error::custom)?;
    text.parse().map(Some).map_err(de::Error::custom)
}

fn parsed<T: FromStr<Err: fmt::Display>, E: de::Error>(text: &str) -> Result<Option<T>, E> {
    let parsed = text.parse().map_err(|error| de::Error::custom(format!("invalid value {text:?}: {error}")));
    parsed.map(Some)
}
