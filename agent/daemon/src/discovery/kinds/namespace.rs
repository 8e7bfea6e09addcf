//! Namespaces.

use std::sync::Arc;

use ambit_core::{
    discovery::{Change, Namespace, Settings},
    model::ObjectName,
};
use serde_json::{Value, json};

use super::{
    FieldError, Valid,
    fields::labels,
    wire::{self, Metadata},
};

/// Labels that cannot be read may opt the namespace in.
pub(super) fn in_place_of(field: &str, settings: &Settings) -> Value {
    if field.starts_with("metadata.labels") { opted_in(settings) } else { Value::Null }
}

/// Labels of what is in the mesh.
pub(super) fn opted_in(settings: &Settings) -> Value {
    json!({ (&*settings.label): &*settings.enabled })
}

wire::objects! {
    Object {
        metadata: Option<Metadata>,
    }
}

pub(super) fn read(name: ObjectName, object: &Value, _: &Settings) -> Result<Valid, FieldError> {
    let Object { metadata } = wire::typed(object)?;
    let labels = labels(metadata.unwrap_or_default().labels);
    Ok(Change::Namespace(Arc::new(Namespace { name: name.name, labels })).into())
}
