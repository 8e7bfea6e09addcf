//! Namespaces.

use std::sync::Arc;

use ambit_core::{
    discovery::{Change, Namespace, Settings},
    model::{Labels, ObjectName},
};
use serde_json::{Value, json};

use super::{
    FieldError, Valid,
    fields::{cut, labels},
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

pub(super) fn read(name: ObjectName, object: &Value, settings: &Settings) -> Result<Valid, FieldError> {
    let Object { metadata } = wire::typed(object)?;
    let labels = labels(metadata.unwrap_or_default().labels);
    let notice = odd_label(&labels, settings);
    let valid = Valid::from(Change::Namespace(Arc::new(Namespace { name: name.name, labels })));
    Ok(Valid { notice, ..valid })
}

/// What is to be said of an opt-in label that neither opts in nor out.
pub(super) fn odd_label(labels: &Labels, settings: &Settings) -> Option<FieldError> {
    let value = labels.get(&*settings.label)?;
    let Settings { label, enabled, disabled, .. } = settings;
    (*value != **enabled && *value != **disabled).then(|| {
        let value = cut(value);
        let message = format!("{value:?} is neither {enabled:?} nor {disabled:?}, and has no effect");
        FieldError::new(format!("metadata.labels.{label}"), message)
    })
}
