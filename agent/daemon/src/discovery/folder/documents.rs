//! Text to JSON-like trees, within bounds: size of the text is the reader's to bound, the tree's is bounded here.
//!
//! Promises that no YAML alias makes more of a file than a file may hold. Knows nothing of Kubernetes.

use std::{cell::Cell, fmt};

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Values in one file, aliases spelled out.
const MAX_NODES: usize = 1_000_000;
/// Bytes of text in one file's values, aliases spelled out.
const MAX_TEXT: usize = 16 << 20;

/// Brackets open at one time, counted by character. The YAML scanner takes time in proportion to size × depth, before the
/// first value comes of it; this keeps an accident (a binary, a dump) from holding up discovery.
const MAX_OPEN_BRACKETS: usize = 500;

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Syntax {
    Yaml,
    Json,
}

/// What could be read of a file.
#[derive(Debug, Default)]
pub(in crate::discovery) struct Documents {
    /// The complete documents before the error, if there is one; empty documents are left out.
    pub(in crate::discovery) values: Vec<Value>,
    /// Why reading ended before the end of the text.
    pub(in crate::discovery) error: Option<String>,
}

/// Reads all documents of a text.
pub(in crate::discovery) fn read(bytes: &[u8], syntax: Syntax) -> Documents {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
        Err(error) => {
            let error = Some(format!("is not UTF-8 text: bad byte at offset {}", error.valid_up_to()));
            return Documents { values: Vec::new(), error };
        }
    };
    let budget = Budget { nodes: Cell::new(MAX_NODES), text: Cell::new(MAX_TEXT) };
    let mut values = Vec::new();
    let result = match syntax {
        Syntax::Yaml => yaml(text, &budget, &mut values),
        Syntax::Json => json(text, &budget, &mut values),
    };
    values.retain(|value| !value.is_null());
    Documents { values, error: result.err() }
}

fn yaml(text: &str, budget: &Budget, values: &mut Vec<Value>) -> Result<(), String> {
    let mut open = 0usize;
    for byte in text.bytes() {
        match byte {
            b'[' | b'{' => open += 1,
            b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        if open > MAX_OPEN_BRACKETS {
            return Err(format!("has more than {MAX_OPEN_BRACKETS} brackets open at once"));
        }
    }
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        let tree = Tree { budget, merge_keys: true };
        values.push(tree.deserialize(document).map_err(|error| format!("is not valid YAML: {error}"))?);
    }
    Ok(())
}

fn json(text: &str, budget: &Budget, values: &mut Vec<Value>) -> Result<(), String> {
    let mut stream = serde_json::Deserializer::from_str(text);
    while stream.end().is_err() {
        let tree = Tree { budget, merge_keys: false };
        let value = tree.deserialize(&mut stream);
        values.push(value.map_err(|error| format!("is not valid JSON: {error}"))?);
    }
    Ok(())
}

/// What a file may still make.
struct Budget {
    nodes: Cell<usize>,
    text: Cell<usize>,
}

impl Budget {
    fn spend<E: Error>(&self, text: usize) -> Result<(), E> {
        let left = |cell: &Cell<usize>, cost| cell.get().checked_sub(cost).map(|left| cell.set(left));
        match (left(&self.nodes, 1), left(&self.text, text)) {
            (Some(()), Some(())) => Ok(()),
            _ => Err(E::custom("more values than a manifest may hold (aliases count each time)")),
        }
    }
}

/// Builds one value and everything below it.
#[derive(Clone, Copy)]
struct Tree<'b> {
    budget: &'b Budget,
    /// `<<` takes over the entries of another mapping (YAML 1.1, and kubectl).
    merge_keys: bool,
}

impl<'de> DeserializeSeed<'de> for Tree<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value without tags")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        self.budget.spend(0)?;
        Ok(Value::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        self.visit_unit()
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        self.budget.spend(0)?;
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        self.budget.spend(0)?;
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        self.budget.spend(0)?;
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        self.budget.spend(0)?;
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("a number that JSON does not have"))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        self.budget.spend(value.len())?;
        Ok(Value::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        self.budget.spend(0)?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        self.budget.spend(0)?;
        let mut map = Map::new();
        let mut merged = Vec::new();
        while let Some(key) = entries.next_key_seed(Key { budget: self.budget })? {
            let value = entries.next_value_seed(self)?;
            match value {
                Value::Object(other) if self.merge_keys && key == "<<" => merged.push(other),
                Value::Array(others) if self.merge_keys && key == "<<" => {
                    for other in others {
                        match other {
                            Value::Object(other) => merged.push(other),
                            _ => return Err(Error::custom("<< takes mappings only")),
                        }
                    }
                }
                value => {
                    if map.contains_key(&key) {
                        return Err(Error::custom(format_args!(
                            "the key {key:?} stands twice in one mapping"
                        )));
                    }
                    map.insert(key, value);
                }
            }
        }
        for (key, value) in merged.into_iter().flatten() {
            map.entry(key).or_insert(value);
        }
        Ok(Value::Object(map))
    }
}

/// A mapping's key; numbers and booleans become text, as kubectl makes them.
struct Key<'b> {
    budget: &'b Budget,
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key that is text, a number or a boolean")
    }

    fn visit_bool<E: Error>(self, key: bool) -> Result<String, E> {
        self.visit_str(if key { "true" } else { "false" })
    }

    fn visit_i64<E: Error>(self, key: i64) -> Result<String, E> {
        self.visit_str(&key.to_string())
    }

    fn visit_u64<E: Error>(self, key: u64) -> Result<String, E> {
        self.visit_str(&key.to_string())
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<String, E> {
        self.budget.spend(key.len())?;
        Ok(key.to_owned())
    }
}

#[cfg(test)]
mod tests;
