//! Policies that cannot be read: what they may say at the strictest.

use std::collections::BTreeMap;

use super::{Mode, PeerAuthentication};
use crate::model::{Labels, ObjectName};

/// What of an object could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// What it demands; whom it selects is known.
    Content,
    /// Even whom it selects: it may be any workload of its namespace, and in the root namespace the mesh.
    Scope,
}

impl PeerAuthentication {
    /// The strictest reading of an object of which only this is known: STRICT on all ports. Without `selector` it is not known
    /// whom it selects; without `created` not when it was made, and it goes before all others.
    pub fn unreadable(name: ObjectName, created: Option<Option<i64>>, selector: Option<Labels>) -> Self {
        let doubt = if selector.is_some() { Doubt::Content } else { Doubt::Scope };
        Self {
            name,
            created: created.unwrap_or(Some(i64::MIN)),
            selector: selector.unwrap_or_default(),
            mode: Some(Mode::Strict),
            port_modes: BTreeMap::new(),
            doubt: Some(doubt),
        }
    }
}
