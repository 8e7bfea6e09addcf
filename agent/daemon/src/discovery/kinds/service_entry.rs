//! ServiceEntries and WorkloadEntries.

use std::{collections::BTreeMap, sync::Arc};

use ambit_core::{
    discovery::{
        Change as MeshChange, EntryAddress, EntryEndpoint, EntryPort, EntryProtocol, Prefix, Resolution,
        ServiceEntry, Settings, VipRanges, WorkloadEntry,
    },
    model::{ObjectName, SpiffeId},
};
use serde_json::Value;

use super::{
    Change, FieldError, Valid,
    destination_rule::{entry_selector, exported_to},
    fields::{address, choice, cut, labels, network, port_number, present, timestamp},
    wire::{self, Metadata, Pairs},
};

/// The label by which an entry wants no addresses allocated, as Istio has it.
const AUTO_ALLOCATE_LABEL: &str = "networking.istio.io/enable-autoallocate-ip";
/// Hosts of an entry, as in Istio's schema.
const MAX_HOSTS: usize = 256;
/// Identities that endpoints of an entry may have instead of their own.
const MAX_IDENTITIES: usize = 64;

wire::objects! {
    Object {
        metadata: Option<Metadata>,
        spec: Option<Spec>,
    }

    Spec {
        hosts: Option<Vec<String>>,
        addresses: Option<Vec<String>>,
        ports: Option<Vec<Port>>,
        resolution: Option<String>,
        endpoints: Option<Vec<Endpoint>>,
        workload_selector: Option<Value>,
        export_to: Option<Vec<String>>,
        subject_alt_names: Option<Vec<String>>,
    }

    Port {
        number: Option<i64>,
        name: Option<String>,
        protocol: Option<String>,
        target_port: Option<i64>,
    }

    Endpoint {
        address: Option<String>,
        ports: Option<BTreeMap<String, i64>>,
        labels: Option<Pairs>,
        weight: Option<i64>,
        network: Option<String>,
        locality: Option<String>,
    }

    WorkloadObject {
        metadata: Option<Metadata>,
        spec: Option<Endpoint>,
    }
}

pub(super) fn read(name: ObjectName, object: &Value, settings: &Settings) -> Result<Valid, FieldError> {
    let Object { metadata, spec } = wire::typed(object)?;
    let spec = spec.unwrap_or_default();
    let mut ignored = Vec::new();
    const RESOLUTIONS: [&str; 5] = ["NONE", "STATIC", "DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS"];
    let resolution = match choice("spec.resolution", spec.resolution, RESOLUTIONS)? {
        0 => Resolution::None,
        1 => Resolution::Static,
        2 => Resolution::Dns,
        3 => Resolution::DnsRoundRobin,
        _ => {
            ignored.push(
                "spec.resolution: DYNAMIC_DNS needs a waypoint; connections go where pods dial".to_owned(),
            );
            Resolution::None
        }
    };
    let (hosts, wildcards) = hosts(&spec.hosts.unwrap_or_default())?;
    let addresses = spec.addresses.unwrap_or_default().into_iter().enumerate();
    let addresses: Vec<Prefix> = addresses
        .map(|(at, text)| network(&format!("spec.addresses[{at}]"), &text))
        .collect::<Result<_, _>>()?;
    if addresses.iter().any(|prefix| prefix.as_single().is_none())
        && !matches!(resolution, Resolution::None | Resolution::Static)
    {
        let message = "networks can only be resolved by NONE or STATIC";
        return Err(FieldError::new("spec.addresses", message));
    }
    let endpoints = endpoints(spec.endpoints.unwrap_or_default(), resolution, &mut ignored)?;
    let selector = entry_selector(spec.workload_selector.as_ref(), "spec.workloadSelector")?;
    if selector.is_some() && !endpoints.is_empty() {
        return Err(FieldError::new("spec.workloadSelector", "excludes endpoints"));
    }
    if !wildcards.is_empty() {
        ignored.push(
            "spec.hosts: a host with a wildcard is known by the name in TLS only, and by no DestinationRule"
                .to_owned(),
        );
    }
    let metadata = metadata.unwrap_or_default();
    let allocated = labels(metadata.labels).remove(AUTO_ALLOCATE_LABEL);
    let no_vips = allocated.is_some_and(|value| value.eq_ignore_ascii_case("false"))
        || settings.vip_ranges == VipRanges::NONE;
    if addresses.is_empty() && (no_vips || resolution == Resolution::None) {
        ignored.push(
            "spec.addresses is empty, and none are allocated: connections to its hosts are told from others only by the name in TLS, \
             and only where the outbound policy is REGISTRY_ONLY; DestinationRules for them have no effect"
                .to_owned(),
        );
    }
    let subject_alt_names: Names = spec.subject_alt_names.into_iter().flatten().map(Into::into).collect();
    let identities = identities(&subject_alt_names, &mut ignored);
    let entry = ServiceEntry {
        created: timestamp(metadata.creation_timestamp)?,
        hosts,
        wildcards,
        addresses,
        no_vips,
        ports: ports(spec.ports.unwrap_or_default())?,
        resolution,
        endpoints,
        selector,
        exported_to: exported_to(spec.export_to, &name),
        subject_alt_names,
        identities,
        name,
    };
    let unsupported = (!ignored.is_empty()).then(|| ignored.join("; "));
    let notice = unsupported.as_ref().map(|text| FieldError::new("", text));
    let change = Change::Mesh(MeshChange::ServiceEntry(Arc::new(entry)));
    Ok(Valid { change, notice, unsupported, idle: false })
}

pub(super) fn read_workload(name: ObjectName, object: &Value, _: &Settings) -> Result<Valid, FieldError> {
    let WorkloadObject { metadata, spec } = wire::typed(object)?;
    let spec = spec.unwrap_or_default();
    let mut all = labels(metadata.unwrap_or_default().labels);
    all.extend(labels(spec.labels));
    let address = entry_address("spec.address", spec.address)?
        .ok_or_else(|| FieldError::new("spec.address", "is a socket of a node, which is not supported"))?;
    let endpoint = EntryEndpoint { address, ports: endpoint_ports("spec.ports", spec.ports)? };
    let workload = WorkloadEntry { name, labels: all, endpoint };
    Ok(MeshChange::WorkloadEntry(Arc::new(workload)).into())
}

type Names = Vec<Arc<str>>;

/// Hosts without wildcards, and the ends of those with one.
fn hosts(list: &[String]) -> Result<(Names, Names), FieldError> {
    if list.is_empty() || list.len() > MAX_HOSTS {
        return Err(FieldError::new("spec.hosts", format_args!("must have 1 to {MAX_HOSTS} hosts")));
    }
    let (mut hosts, mut wildcards) = (Names::new(), Names::new());
    for (at, text) in list.iter().enumerate() {
        let text = text.to_ascii_lowercase();
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let bare = text.strip_prefix("*.").unwrap_or(&text);
        if bare.is_empty() || bare.len() > 253 || !bare.chars().all(legal) {
            return Err(FieldError::new(
                format!("spec.hosts[{at}]"),
                format_args!("{:?} is no host", cut(&text)),
            ));
        }
        match text.strip_prefix('*') {
            Some(suffix) => wildcards.push(suffix.into()),
            None => hosts.push(text.into()),
        }
    }
    Ok((hosts, wildcards))
}

/// The names that are identities of workloads. A SPIFFE ID of another form is nobody's in the mesh; a server outside may have it.
fn identities(names: &[Arc<str>], ignored: &mut Vec<String>) -> Option<Arc<[SpiffeId]>> {
    let all: Vec<SpiffeId> = names.iter().filter_map(|name| name.parse().ok()).collect();
    if all.len() > MAX_IDENTITIES {
        ignored.push(format!(
            "spec.subjectAltNames: of {} identities the first {MAX_IDENTITIES} count for endpoints in the mesh",
            all.len()
        ));
    }
    (!all.is_empty()).then(|| all.into_iter().take(MAX_IDENTITIES).collect())
}

fn ports(list: Vec<Port>) -> Result<Vec<EntryPort>, FieldError> {
    let mut ports: Vec<EntryPort> = Vec::new();
    for (at, port) in list.into_iter().enumerate() {
        let path = format!("spec.ports[{at}]");
        let number = port.number.ok_or_else(|| FieldError::new(format!("{path}.number"), "is missing"))?;
        let number = port_number(&format!("{path}.number"), number)?;
        if ports.iter().any(|other| other.number == number) {
            return Err(FieldError::new(
                format!("{path}.number"),
                format_args!("{number} stands there twice"),
            ));
        }
        let target = match port.target_port {
            None | Some(0) => number,
            Some(target) => port_number(&format!("{path}.targetPort"), target)?,
        };
        let protocol = port.protocol.unwrap_or_default().to_ascii_uppercase();
        let protocol = match &*protocol {
            "HTTP" => EntryProtocol::Http,
            "HTTP2" | "GRPC" | "GRPC-WEB" => EntryProtocol::Http2,
            "HTTPS" | "TLS" => EntryProtocol::Tls,
            "TCP" | "MONGO" | "REDIS" | "MYSQL" | "" => EntryProtocol::Tcp,
            other => {
                let known = "HTTP, HTTPS, GRPC, HTTP2, MONGO, TCP, TLS";
                let message = format!("{:?} is not one of {known}", cut(other));
                return Err(FieldError::new(format!("{path}.protocol"), message));
            }
        };
        ports.push(EntryPort { number, name: port.name.unwrap_or_default().into(), target, protocol });
    }
    Ok(ports)
}

fn endpoints(
    list: Vec<Endpoint>,
    resolution: Resolution,
    ignored: &mut Vec<String>,
) -> Result<Vec<EntryEndpoint>, FieldError> {
    let mut endpoints = Vec::new();
    for (at, endpoint) in list.into_iter().enumerate() {
        let path = format!("spec.endpoints[{at}]");
        let field = format!("{path}.address");
        let Some(address) = entry_address(&field, endpoint.address)? else {
            ignored.push(format!("{field}: a socket of a node is not supported; this endpoint is not used"));
            continue;
        };
        if resolution == Resolution::Static && matches!(address, EntryAddress::Name(_)) {
            return Err(FieldError::new(field, "is a name, which is resolved only by DNS"));
        }
        for (there, field) in [
            (endpoint.weight.is_some_and(|weight| weight != 0), "weight"),
            (endpoint.network.is_some_and(|network| !network.is_empty()), "network"),
            (endpoint.locality.is_some_and(|locality| !locality.is_empty()), "locality"),
        ] {
            if there {
                ignored.push(format!("{path}.{field} has no effect: endpoints are chosen at random"));
            }
        }
        endpoints.push(EntryEndpoint {
            address,
            ports: endpoint_ports(&format!("{path}.ports"), endpoint.ports)?,
        });
    }
    Ok(endpoints)
}

fn endpoint_ports(
    path: &str,
    ports: Option<BTreeMap<String, i64>>,
) -> Result<BTreeMap<Arc<str>, u16>, FieldError> {
    let ports = ports.unwrap_or_default().into_iter();
    ports
        .map(|(name, port)| Ok((name.as_str().into(), port_number(&format!("{path}.{name}"), port)?)))
        .collect()
}

/// An address, or a name; none where it is a socket of a node.
fn entry_address(field: &str, text: Option<String>) -> Result<Option<EntryAddress>, FieldError> {
    let text = present(text).ok_or_else(|| FieldError::new(field, "is missing"))?;
    if text.starts_with("unix://") {
        return Ok(None);
    }
    if text.parse::<std::net::IpAddr>().is_ok() {
        return address(field, &text).map(|ip| Some(EntryAddress::Ip(ip)));
    }
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if text.len() > 253 || !text.chars().all(legal) {
        return Err(FieldError::new(
            field,
            format_args!("{:?} is neither an address nor a name", cut(&text)),
        ));
    }
    Ok(Some(EntryAddress::Name(text.to_ascii_lowercase().into())))
}
