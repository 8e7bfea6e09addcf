//! Namespaces.

use std::sync::Arc;

use ambit_core::{
    discovery::{Change, Namespace, Settings},
    model::{HTTP_TELEMETRY_ANNOTATION, Labels, ObjectName},
};
use serde_json::{Value, json};

use super::{
    FieldError, Valid,
    fields::{cut, labels},
    wire::{self, Metadata, Pairs},
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
    let metadata = wire::typed::<Object>(object)?.metadata.unwrap_or_default();
    let labels = labels(metadata.labels);
    let (http_telemetry, odd_annotation) = http_telemetry(metadata.annotations.as_ref());
    let notice = odd_label(&labels, settings).or(odd_annotation);
    let namespace = Namespace { name: name.name, labels, http_telemetry };
    Ok(Valid { notice, ..Change::Namespace(Arc::new(namespace)).into() })
}

/// Whether HTTP requests are to be counted and logged, as far as that is said, and what is to be said of a value that is none.
pub(super) fn http_telemetry(annotations: Option<&Pairs>) -> (Option<bool>, Option<FieldError>) {
    let value = annotations.and_then(|all| all.get(HTTP_TELEMETRY_ANNOTATION)?.as_deref());
    match value {
        None => (None, None),
        Some("enabled") => (Some(true), None),
        Some("disabled") => (Some(false), None),
        Some(value) => {
            let message = format!("{:?} is neither enabled nor disabled, and has no effect", cut(value));
            let field = format!("metadata.annotations.{HTTP_TELEMETRY_ANNOTATION}");
            (None, Some(FieldError::new(field, message)))
        }
    }
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
