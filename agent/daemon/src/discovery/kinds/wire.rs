//! Kubernetes objects as they are written, as far as the agent needs them.
//!
//! Lenient as the API machinery: every field may be absent or null, unknown ones are passed over. Judging values is left
//! to those who read the kinds.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize,
    de::{DeserializeOwned, Deserializer, Error, Visitor},
};
use serde_json::Value;

use super::FieldError;

/// Labels, annotations, selectors: a null value is an empty one.
pub(super) type Pairs = BTreeMap<String, Option<String>>;

/// The object as its type has it, or the field that is of another one.
pub(super) fn typed<T: DeserializeOwned>(object: &Value) -> Result<T, FieldError> {
    serde_path_to_error::deserialize(object)
        .map_err(|error| FieldError::new(error.path().to_string(), error.inner()))
}

/// Declares types that are read from an object only: what serde derives would take a list of the fields' values as well,
/// and a list in place of a `spec` is a mistake.
macro_rules! objects {
    ($($(#[$attribute:meta])* $name:ident { $($fields:tt)* })*) => {$(
        $(#[$attribute])*
        #[derive(Debug, Default, serde::Deserialize)]
        #[serde(rename_all = "camelCase", remote = "Self")]
        pub(super) struct $name { $($fields)* }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Fields;

                impl<'de> serde::de::Visitor<'de> for Fields {
                    type Value = $name;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str("an object")
                    }

                    fn visit_map<A: serde::de::MapAccess<'de>>(self, fields: A) -> Result<$name, A::Error> {
                        $name::deserialize(serde::de::value::MapAccessDeserializer::new(fields))
                    }
                }

                deserializer.deserialize_map(Fields)
            }
        }
    )*};
}
pub(super) use objects;

objects! {
    Metadata {
        pub(super) uid: Option<String>,
        pub(super) creation_timestamp: Option<String>,
        pub(super) deletion_timestamp: Option<String>,
        pub(super) labels: Option<Pairs>,
        pub(super) annotations: Option<Pairs>,
    }
}

/// A number or a text, as Kubernetes has it in `targetPort`.
#[derive(Debug)]
pub(super) enum IntOrString {
    Int(i64),
    Text(String),
}

impl<'de> Deserialize<'de> for IntOrString {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl Visitor<'_> for Either {
            type Value = IntOrString;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number or a text")
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<IntOrString, E> {
                Ok(IntOrString::Int(value))
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<IntOrString, E> {
                Ok(IntOrString::Int(i64::try_from(value).unwrap_or(i64::MAX)))
            }

            fn visit_str<E: Error>(self, value: &str) -> Result<IntOrString, E> {
                Ok(IntOrString::Text(value.to_owned()))
            }
        }

        deserializer.deserialize_any(Either)
    }
}
