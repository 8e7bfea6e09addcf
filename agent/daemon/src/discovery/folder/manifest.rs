//! From a document to the objects in it: lists unrolled, kinds told apart, each object named before it is judged.
//!
//! Promises that an object whose name can be read keeps that name when the rest of it is bad. What becomes of bad
//! objects is left to the ledger.

use std::{fmt, sync::Arc};

use ambit_core::{
    discovery::{EndpointSlice, Namespace, Pod, Service, Settings},
    model::ObjectName,
    policy::PeerAuthentication,
};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tracing::debug;

use super::{
    convert::{self, FieldError},
    wire,
};

/// The group of Istio's security API. Its other kinds are not passed over in silence: they would restrict access.
const SECURITY_GROUP: &str = "security.istio.io";

/// The kinds that the agent reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    Namespace,
    Pod,
    Service,
    EndpointSlice,
    PeerAuthentication,
}

/// An object of a kind we read, whatever its state. Displays as `PeerAuthentication shop/default`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) kind: Kind,
    /// Namespaces have an empty namespace.
    pub(super) name: ObjectName,
}

/// A valid object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Object {
    Namespace(Arc<Namespace>),
    Pod(Arc<Pod>),
    Service(Arc<Service>),
    EndpointSlice(Arc<EndpointSlice>),
    PeerAuthentication(Arc<PeerAuthentication>),
}

/// What one file says of one object: the object, or nothing usable, in which case its last good version stays.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: Key,
    pub(super) object: Option<Object>,
}

/// What a file holds.
#[derive(Debug, Default)]
pub(super) struct Manifest {
    /// In the order of the file.
    pub(super) entries: Vec<Entry>,
    /// Complaints, with the object as far as it is known.
    pub(super) complaints: Vec<(Option<String>, FieldError)>,
    /// Something in the file could not be told what it is: it may be a broken version of any object.
    pub(super) unidentified: bool,
}

impl Manifest {
    /// Reads the objects of a file's documents.
    pub(super) fn read(documents: Vec<Value>, settings: &Settings) -> Self {
        let mut manifest = Self::default();
        for document in documents {
            manifest.take(document, None, settings);
        }
        manifest
    }

    /// `list` gives kind and API version to items that have none, as a `PodList` straight from an API server does.
    fn take(&mut self, document: Value, list: Option<(&str, &Value)>, settings: &Settings) {
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
                self.take_list(&kind, of, &mut fields, settings);
            }
            (Some(_), Some(_)) => {
                self.unidentified(Some(kind), FieldError::new("items", "is not a list"));
            }
            _ => self.take_object(&kind, fields, settings),
        }
    }

    fn take_list(&mut self, kind: &str, of: &str, fields: &mut Map<String, Value>, settings: &Settings) {
        let Some(Value::Array(items)) = fields.remove("items") else { return };
        let version = fields.remove("apiVersion").unwrap_or_default();
        let defaults = (!of.is_empty()).then_some((of, &version));
        debug!(kind, items = items.len(), "reading a list");
        for item in items {
            self.take(item, defaults, settings);
        }
    }

    fn take_object(&mut self, kind: &str, fields: Map<String, Value>, settings: &Settings) {
        let version = match fields.get("apiVersion") {
            Some(Value::String(version)) => version.clone(),
            _ => String::new(),
        };
        let (group, _) = version.rsplit_once('/').unwrap_or(("", &version));
        let Some(kind) = Kind::of(kind, group) else {
            if group == SECURITY_GROUP {
                self.unenforced(kind, &fields);
            } else {
                debug!(kind, version, "passing over an object of a kind that has no effect here");
            }
            return;
        };
        let key = match key(kind, &fields) {
            Ok(key) => key,
            Err(error) => return self.unidentified(Some(format!("{kind:?}")), error),
        };
        let result = if kind.versions().contains(&&*version) {
            kind.convert(Value::Object(fields), settings)
        } else {
            let known = kind.versions().join(" or ");
            Err(FieldError::new("apiVersion", format_args!("{version:?} is not {known}")))
        };
        let (object, complaint) = match result {
            Ok((object, notice)) => (Some(object), notice),
            Err(error) => (None, Some(error)),
        };
        self.complaints.extend(complaint.map(|complaint| (Some(key.to_string()), complaint)));
        self.entries.push(Entry { key, object });
    }

    fn unenforced(&mut self, kind: &str, fields: &Map<String, Value>) {
        let text = |field: &str| fields.get("metadata")?.get(field)?.as_str();
        let name = text("name").unwrap_or_default();
        let object =
            FieldError::new("", format_args!("{kind} {}/{name}", text("namespace").unwrap_or("default")));
        let known = matches!(kind, "AuthorizationPolicy" | "RequestAuthentication");
        let message = if known { "is not enforced by this version" } else { "is of an unknown kind" };
        self.complaints.push((Some(object.message), FieldError::new("kind", message)));
        // A misspelt PeerAuthentication must not take the well-spelt one that stood there before out of force.
        self.unidentified |= !known;
    }

    fn unidentified(&mut self, object: Option<String>, error: FieldError) {
        self.complaints.push((object, error));
        self.unidentified = true;
    }
}

impl Kind {
    /// Our kind of that name. Services exist in other groups too (Knative's), the others do not.
    fn of(kind: &str, group: &str) -> Option<Self> {
        match kind {
            "Namespace" => Some(Self::Namespace),
            "Pod" => Some(Self::Pod),
            "Service" if group.is_empty() => Some(Self::Service),
            "EndpointSlice" => Some(Self::EndpointSlice),
            "PeerAuthentication" => Some(Self::PeerAuthentication),
            _ => None,
        }
    }

    fn versions(self) -> &'static [&'static str] {
        match self {
            Self::Namespace | Self::Pod | Self::Service => &["v1"],
            Self::EndpointSlice => &["discovery.k8s.io/v1"],
            Self::PeerAuthentication => &["security.istio.io/v1", "security.istio.io/v1beta1"],
        }
    }

    fn convert(self, value: Value, settings: &Settings) -> Result<(Object, Option<FieldError>), FieldError> {
        let object = match self {
            Self::Namespace => Object::Namespace(Arc::new(convert::namespace(typed(value)?)?)),
            Self::Pod => Object::Pod(Arc::new(convert::pod(typed(value)?, &settings.trust_domain)?)),
            Self::Service => Object::Service(Arc::new(convert::service(typed(value)?)?)),
            Self::EndpointSlice => Object::EndpointSlice(Arc::new(convert::endpoint_slice(typed(value)?)?)),
            Self::PeerAuthentication => {
                let (policy, notice) = convert::peer_authentication(typed(value)?, &settings.root_namespace)?;
                return Ok((Object::PeerAuthentication(Arc::new(policy)), notice));
            }
        };
        Ok((object, None))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Namespace => write!(f, "Namespace {}", self.name.name),
            kind => write!(f, "{kind:?} {}", self.name),
        }
    }
}

/// The name alone, so that trouble anywhere else in the object can be blamed on it.
fn key(kind: Kind, fields: &Map<String, Value>) -> Result<Key, FieldError> {
    let field = |name: &str| match fields.get("metadata").and_then(|metadata| metadata.get(name)) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(FieldError::new(format!("metadata.{name}"), "is not a text")),
    };
    let namespace = if kind == Kind::Namespace { None } else { field("namespace")? };
    let mut metadata = wire::Metadata { name: field("name")?, namespace, ..Default::default() };
    let mut name = convert::namespaced(&mut metadata)?;
    if kind == Kind::Namespace {
        name.namespace = "".into();
    }
    Ok(Key { kind, name })
}

fn typed<T: DeserializeOwned>(value: Value) -> Result<T, FieldError> {
    serde_path_to_error::deserialize(value)
        .map_err(|error| FieldError::new(error.path().to_string(), error.inner()))
}

#[cfg(test)]
mod tests;
