//! From the documents of a file to the objects in it: lists unrolled, kinds told apart.
//!
//! Promises that what may be a broken version of an object never takes that object out of force, and that a file which may
//! hold a policy that nobody could read is reported to the ledger as such. Reading the objects is left to their kinds.

use std::collections::HashSet;

use ambit_core::discovery::Settings;
use serde_json::{Map, Value};
use tracing::debug;

use super::documents::Documents;
use crate::discovery::{
    Origin, Problem,
    kinds::{Entry, FieldError, Key, Kind, SECURITY_GROUP},
    ledger::Ledger,
};

/// A file has new content. One that cannot be read to its end keeps what it held before; if it held nothing, the documents
/// before the error count.
pub(in crate::discovery) fn take(
    ledger: &mut Ledger,
    file: &Origin,
    documents: Documents,
    settings: &Settings,
) {
    let held = ledger.keys_at(file).next().is_some();
    if held {
        if let Some(error) = documents.error {
            return ledger.refuse(file, &error);
        }
        if documents.values.is_empty() {
            return ledger.refuse(file, "holds no document; remove the file to remove its objects");
        }
    }
    let Manifest { mut entries, mut complaints, unidentified, may_be_policy } =
        Manifest::read(documents.values, settings);
    // What it held of policies stays in force; of a file that was never read to its end that is not known.
    let unknown = (may_be_policy || documents.error.is_some()) && (!held || ledger.is_doubtful(file));
    if unidentified {
        let named: HashSet<&Key> = entries.iter().map(|entry| &entry.key).collect();
        let missing = ledger.keys_at(file).filter(|key| !named.contains(key)).cloned();
        let kept: Vec<_> = missing.map(Entry::unreadable).collect();
        entries.extend(kept);
    }
    complaints.extend(documents.error.map(|error| (None, FieldError::new("", error))));
    let problems = complaints.into_iter().map(|(object, error)| Problem::new(file, object, error));
    ledger.take(file, entries, problems.collect());
    if unknown {
        ledger.set_doubtful(file, true);
    }
}

/// What a file holds.
#[derive(Debug, Default)]
pub(in crate::discovery) struct Manifest {
    /// The objects of kinds that we read, in the order of the file.
    pub(in crate::discovery) entries: Vec<Entry>,
    /// What is wrong with other documents, with the object as far as it is known.
    pub(in crate::discovery) complaints: Vec<(Option<String>, FieldError)>,
    /// Something in the file could not be told what it is: it may be a broken version of any object.
    pub(in crate::discovery) unidentified: bool,
    /// That something may be a policy.
    pub(in crate::discovery) may_be_policy: bool,
}

impl Manifest {
    /// Reads the objects of a file's documents.
    pub(in crate::discovery) fn read(documents: Vec<Value>, settings: &Settings) -> Self {
        let mut manifest = Self::default();
        for document in documents {
            manifest.add(document, None, settings);
        }
        manifest
    }

    /// `list` gives kind and API version to items that have none, as a `PodList` straight from an API server does.
    fn add(&mut self, document: Value, list: Option<(&str, &Value)>, settings: &Settings) {
        let Value::Object(mut fields) = document else {
            return self.unidentified(None, FieldError::new("", "holds a value that is no object"));
        };
        if let Some((kind, version)) = list {
            fields.entry("kind").or_insert_with(|| kind.into());
            fields.entry("apiVersion").or_insert_with(|| version.clone());
        }
        let kind = match fields.get("kind") {
            Some(Value::String(kind)) => kind.clone(),
            Some(Value::Null) | None => {
                return self.unidentified(None, FieldError::new("kind", "is missing"));
            }
            Some(_) => return self.unidentified(None, FieldError::new("kind", "is not a text")),
        };
        match (kind.strip_suffix("List"), fields.get("items")) {
            (Some(of), Some(Value::Array(_) | Value::Null)) | (Some(of @ ""), None) => {
                self.add_list(&kind, of, &mut fields, settings);
            }
            (Some(_), Some(_)) => {
                self.unidentified(Some(kind), FieldError::new("items", "is not a list"));
            }
            _ => self.add_object(&kind, fields, settings),
        }
    }

    fn add_list(&mut self, kind: &str, of: &str, fields: &mut Map<String, Value>, settings: &Settings) {
        let Some(Value::Array(items)) = fields.remove("items") else { return };
        let version = fields.remove("apiVersion").unwrap_or_default();
        let defaults = (!of.is_empty()).then_some((of, &version));
        debug!(kind, items = items.len(), "reading a list");
        for item in items {
            self.add(item, defaults, settings);
        }
    }

    fn add_object(&mut self, name: &str, fields: Map<String, Value>, settings: &Settings) {
        let version = match fields.get("apiVersion") {
            Some(Value::String(version)) => version.clone(),
            _ => String::new(),
        };
        let (group, _) = version.rsplit_once('/').unwrap_or(("", &version));
        let Some(kind) = Kind::named(name, group) else {
            if group == SECURITY_GROUP {
                self.unknown_policy(name, &fields);
            } else {
                debug!(kind = name, version, "passing over an object of a kind that has no effect here");
            }
            return;
        };
        let object = Value::Object(fields);
        let known: Vec<String> = kind.row().api_versions().collect();
        let entry = if known.contains(&version) {
            Entry::read(kind, &object, settings)
        } else {
            let error =
                FieldError::new("apiVersion", format_args!("{version:?} is not {}", known.join(" or ")));
            Key::of(kind, &object).map(|key| Entry::invalid(key, &object, error, settings))
        };
        match entry {
            Ok(entry) => self.entries.push(entry),
            Err(error) => {
                self.complaints.push((Some(name.to_owned()), error));
                self.unidentified = true;
                self.may_be_policy |= kind.restricts();
            }
        }
    }

    /// Kinds of Istio's security API that are not known are not passed over in silence: they would restrict access, and a misspelt
    /// PeerAuthentication must not take the well-spelt one that stood there before out of force.
    fn unknown_policy(&mut self, kind: &str, fields: &Map<String, Value>) {
        let text = |field: &str| fields.get("metadata")?.get(field)?.as_str();
        let name = text("name").unwrap_or_default();
        let object =
            FieldError::new("", format_args!("{kind} {}/{name}", text("namespace").unwrap_or("default")));
        self.unidentified(Some(object.message), FieldError::new("kind", "is of an unknown kind"));
    }

    fn unidentified(&mut self, object: Option<String>, error: FieldError) {
        self.complaints.push((object, error));
        self.unidentified = true;
        self.may_be_policy = true;
    }
}

#[cfg(test)]
mod tests;
