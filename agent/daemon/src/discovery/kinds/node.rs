//! Nodes, of which only the zone counts.

use std::sync::Arc;

use ambit_core::{
    discovery::{Change, Node, Settings},
    model::ObjectName,
};
use serde_json::Value;

use super::{
    FieldError, Valid,
    fields::present,
    wire::{self, Metadata},
};

const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

wire::objects! {
    Object {
        metadata: Option<Metadata>,
    }
}

pub(super) fn read(name: ObjectName, object: &Value, _: &Settings) -> Result<Valid, FieldError> {
    let labels = wire::typed::<Object>(object)?.metadata.and_then(|metadata| metadata.labels);
    let zone = labels.and_then(|mut labels| present(labels.remove(ZONE_LABEL)?));
    Ok(Change::Node(Arc::new(Node { name: name.name, zone: zone.map(Arc::from) })).into())
}
