//! The kinds of Kubernetes objects that the agent reads, and what one object of them says.
//!
//! Promises that an object whose name can be read keeps that name when the rest of it is bad, and that an error names the
//! field as `kubectl explain` does. Where objects come from, and which version of each is in force, is left to others. A new
//! kind is a row in [`table`], a file beside it that reads the object, and the domain type that it becomes.

mod authorization_policy;
mod destination_rule;
mod doubt;
mod endpoint_slice;
mod fields;
mod namespace;
mod node;
mod peer_authentication;
mod pod;
mod remote;
mod request_authentication;
mod root;
mod secret;
mod service;
mod service_entry;
mod table;
mod wire;

use std::fmt;

use ambit_core::{
    discovery::{self, Settings},
    model::ObjectName,
    policy,
};
use serde_json::Value;

pub(super) use fields::{FieldError, network};
pub(crate) use remote::ClusterLocal;
pub(crate) use table::Kind;
pub(super) use table::{Origins, Report, Row, SECURITY_GROUP, Unreadable};

/// One object of a kind that the agent reads, whatever its state. Displays as `PeerAuthentication shop/default`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    /// Its kind.
    pub(crate) kind: Kind,
    /// Its namespace and name; of a kind that is not namespaced the namespace is empty.
    pub(crate) name: ObjectName,
}

/// What brings an object into force, or takes it out of force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Of workloads, services and endpoints.
    Mesh(discovery::Change),
    /// Of policies.
    Policies(policy::Change),
}

/// An object that was read and is valid.
#[derive(Debug)]
pub(super) struct Valid {
    /// What brings it into force.
    change: Change,
    /// What an operator should know of it all the same.
    notice: Option<FieldError>,
    /// What in it has another effect than it states, for its status.
    unsupported: Option<String>,
    /// It has no effect at all.
    idle: bool,
}

/// What brings an object into force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stated {
    /// It says so.
    Good(Change),
    /// It cannot be read, and counts as the strictest that it may say.
    Strictest(Change),
    /// It cannot be read: its last good version stays, or this, if it never was good.
    Bad(Option<Change>),
}

impl Stated {
    /// Whether the object could be read.
    pub(super) fn is_good(&self) -> bool {
        matches!(self, Self::Good(_))
    }
}

/// What a source says of one object.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: Key,
    /// What brings the object into force.
    pub(super) stated: Stated,
    /// Why it cannot be read, or what an operator should know of it all the same.
    pub(super) problem: Option<FieldError>,
    /// What in it has another effect than it states, for its status.
    pub(super) unsupported: Option<String>,
    /// It has no effect at all.
    pub(super) idle: bool,
}

impl Entry {
    /// Reads an object of this kind. Fails only if it has no good name.
    pub(super) fn read(kind: Kind, object: &Value, settings: &Settings) -> Result<Self, FieldError> {
        let key = Key::of(kind, object)?;
        Ok(match (kind.row().read)(key.name.clone(), object, settings) {
            Ok(Valid { change, notice, unsupported, idle }) => {
                Self { key, stated: Stated::Good(change), problem: notice, unsupported, idle }
            }
            Err(error) => Self::invalid(key, object, error, settings),
        })
    }

    /// An object that cannot be read, for this reason.
    pub(super) fn invalid(key: Key, object: &Value, error: FieldError, settings: &Settings) -> Self {
        let stated = doubt::reading(&key, object, &error, settings);
        let counts = match (&stated, key.kind.row().unreadable) {
            (Stated::Strictest(_), Unreadable::Strictest(_, counts)) => {
                format!("; until it can be read it {counts} for all that it may select")
            }
            _ => String::new(),
        };
        let problem = FieldError { message: error.message + &counts, field: error.field };
        Self { key, stated, problem: Some(problem), unsupported: None, idle: false }
    }

    /// An object of which nothing is known but that it may still be there.
    pub(super) fn unreadable(key: Key) -> Self {
        Self { key, stated: Stated::Bad(None), problem: None, unsupported: None, idle: false }
    }
}

impl Key {
    /// Reads the name alone, so that an error anywhere else in the object can be blamed on it.
    pub(super) fn of(kind: Kind, object: &Value) -> Result<Self, FieldError> {
        let field = |name: &str| match object.get("metadata").and_then(|metadata| metadata.get(name)) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(FieldError::new(format!("metadata.{name}"), "is not a text")),
        };
        let name = if kind.row().namespaced {
            fields::namespaced(field("namespace")?, field("name")?)?
        } else {
            ObjectName::new("", fields::object_name("metadata.name", field("name")?)?)
        };
        Ok(Self { kind, name })
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = self.kind.row();
        if row.namespaced {
            write!(f, "{} {}", row.name, self.name)
        } else {
            write!(f, "{} {}", row.name, self.name.name)
        }
    }
}

impl From<discovery::Change> for Valid {
    fn from(change: discovery::Change) -> Self {
        Self { change: Change::Mesh(change), notice: None, unsupported: None, idle: false }
    }
}

#[cfg(test)]
mod tests;
