//! Namespaces.

use std::sync::Arc;

use ambit_core::{
    discovery::{Change, Namespace, Settings},
    model::ObjectName,
};
use serde_json::Value;

use super::{
    FieldError, Valid,
    fields::labels,
    wire::{self, Metadata},
};

wire::objects! {
    Object {
        metadata: Option<Metadata>,
    }
}

pub(super) fn read(name: ObjectName, object: Value, _: &Settings) -> Result<Valid, FieldError> {
    let Object { metadata } = wire::typed(object)?;
    let labels = labels(metadata.unwrap_or_default().labels);
    Ok(Change::Namespace(Arc::new(Namespace { name: name.name, labels })).into())
}
