//! Endpoint slices.

use std::sync::Arc;

use ambit_core::{
    discovery::{Change, EndpointSlice, Hints, Settings, SliceEndpoint, SlicePort},
    model::ObjectName,
};
use serde_json::Value;

use super::{
    FieldError, Valid,
    fields::{address, choice, port_number, present, protocol},
    wire::{self, Metadata},
};

/// The label that ties an endpoint slice to its service.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

wire::objects! {
    Object {
        metadata: Option<Metadata>,
        address_type: Option<String>,
        endpoints: Option<Vec<Endpoint>>,
        ports: Option<Vec<Port>>,
    }

    Endpoint {
        addresses: Option<Vec<String>>,
        conditions: Option<Conditions>,
        target_ref: Option<ObjectReference>,
        node_name: Option<String>,
        hints: Option<WireHints>,
    }

    WireHints {
        for_zones: Option<Vec<Named>>,
        for_nodes: Option<Vec<Named>>,
    }

    Named {
        name: Option<String>,
    }

    Conditions {
        ready: Option<bool>,
        serving: Option<bool>,
        terminating: Option<bool>,
    }

    ObjectReference {
        kind: Option<String>,
        namespace: Option<String>,
        name: Option<String>,
    }

    Port {
        name: Option<String>,
        port: Option<i64>,
        protocol: Option<String>,
    }
}

/// A slice of host names (`addressType: FQDN`) has no endpoints.
pub(super) fn read(name: ObjectName, object: &Value, _: &Settings) -> Result<Valid, FieldError> {
    let wire: Object = wire::typed(object)?;
    let metadata = wire.metadata.unwrap_or_default();
    let service = metadata.labels.and_then(|mut labels| present(labels.remove(SERVICE_NAME_LABEL)?));
    let service = service.map(|service| ObjectName::new(Arc::clone(&name.namespace), service));

    let mut ports = Vec::new();
    for (at, port) in wire.ports.into_iter().flatten().enumerate() {
        // No number means "all ports", which nothing that routes by service port can use.
        let Some(number) = port.port else { continue };
        ports.push(SlicePort {
            name: port.name.unwrap_or_default(),
            port: port_number(&format!("ports[{at}].port"), number)?,
            protocol: protocol(&format!("ports[{at}].protocol"), port.protocol)?,
        });
    }

    let family = choice("addressType", wire.address_type, ["", "IPv4", "IPv6", "FQDN"])?;
    let mut endpoints = Vec::new();
    for (at, endpoint) in wire.endpoints.into_iter().flatten().enumerate().filter(|_| family != 3) {
        let mut addresses = Vec::new();
        for (nth, text) in endpoint.addresses.iter().flatten().enumerate() {
            let field = format!("endpoints[{at}].addresses[{nth}]");
            let ip = address(&field, text)?;
            if (family == 1 && ip.is_ipv6()) || (family == 2 && ip.is_ipv4()) {
                return Err(FieldError::new(field, format!("{ip} is not of the slice's addressType")));
            }
            addresses.push(ip);
        }
        let conditions = endpoint.conditions.unwrap_or_default();
        let pod = endpoint.target_ref.filter(|target| target.kind.as_deref() == Some("Pod"));
        endpoints.push(SliceEndpoint {
            addresses,
            ready: conditions.ready.unwrap_or(true),
            leaving: conditions.terminating == Some(true) && conditions.serving == Some(true),
            pod: pod.and_then(|target| {
                let namespace =
                    present(target.namespace).map_or_else(|| Arc::clone(&name.namespace), Arc::from);
                Some(ObjectName::new(namespace, present(target.name)?))
            }),
            node: present(endpoint.node_name).map(Arc::from),
            hints: hints(endpoint.hints),
        });
    }
    let slice = EndpointSlice { name, service, ports, endpoints };
    Ok(Change::EndpointSlice(Arc::new(slice)).into())
}

/// Whose clients an endpoint is meant for, if anything is said of it.
fn hints(hints: Option<WireHints>) -> Option<Arc<Hints>> {
    let WireHints { for_zones, for_nodes } = hints?;
    let names = |list: Option<Vec<Named>>| {
        list.into_iter().flatten().filter_map(|named| present(named.name)).map(Arc::from).collect()
    };
    let hints = Hints { nodes: names(for_nodes), zones: names(for_zones) };
    (hints != Hints::default()).then(|| Arc::new(hints))
}
