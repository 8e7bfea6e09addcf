//! From wire types to domain types. Every source of Kubernetes objects goes through here.
//!
//! Promises that what comes out is valid, and that an error names the field as `kubectl explain` does. Reading files and
//! watching servers are left to others.

mod policy;
mod probes;

use std::{
    collections::{BTreeMap, HashSet},
    fmt::Display,
    net::IpAddr,
    sync::Arc,
};

use ambit_core::{
    discovery::{
        EndpointSlice, Namespace, Pod, Protocol, Service, ServicePort, SliceEndpoint, SlicePort, TargetPort,
    },
    model::{Labels, NETNS_ANNOTATION, ObjectName, SpiffeId, TrustDomain},
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

pub(super) use policy::peer_authentication;

use super::wire;

/// The label that ties an endpoint slice to its service.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// Texts from a manifest that stand in a message are cut to this many characters.
const MAX_QUOTE: usize = 300;

/// What is wrong with one field of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FieldError {
    /// The path from the object's root; none where the object as a whole is meant.
    pub(super) field: Option<String>,
    /// What is wrong, as the end of a sentence that began with the field.
    pub(super) message: String,
}

impl FieldError {
    pub(super) fn new(field: impl Into<String>, message: impl Display) -> Self {
        let field = Some(field.into()).filter(|field| !field.is_empty() && field != ".");
        Self { field: field.map(|field| cut(&field)), message: cut(&message.to_string()) }
    }
}

/// A namespace.
pub(super) fn namespace(wire: wire::Namespace) -> Result<Namespace, FieldError> {
    let metadata = wire.metadata.unwrap_or_default();
    let name = object_name("metadata.name", metadata.name)?;
    Ok(Namespace { name: name.into(), labels: labels(metadata.labels) })
}

/// A pod, with the identity that its service account has in `trust_domain`.
pub(super) fn pod(wire: wire::Pod, trust_domain: &TrustDomain) -> Result<Pod, FieldError> {
    let mut metadata = wire.metadata.unwrap_or_default();
    let spec = wire.spec.unwrap_or_default();
    let status = wire.status.unwrap_or_default();
    let name = namespaced(&mut metadata)?;

    let account = present(spec.service_account_name).or_else(|| present(spec.service_account));
    let account = account.as_deref().unwrap_or("default");
    let identity = SpiffeId::new(trust_domain.clone(), &name.namespace, account)
        .map_err(|error| FieldError::new("spec.serviceAccountName", error))?;

    let phase = status.phase.as_deref().unwrap_or_default();
    let ready =
        status.conditions.iter().flatten().find(|condition| condition.kind.as_deref() == Some("Ready"));
    let netns = metadata.annotations.and_then(|mut all| present(all.remove(NETNS_ANNOTATION)?));
    let ips = pod_ips(status.pod_ip, status.pod_ips)?;
    let containers = lasting(spec.containers, spec.init_containers);
    Ok(Pod {
        uid: present(metadata.uid).map_or_else(|| name.to_string().into(), Arc::from),
        created: timestamp(metadata.creation_timestamp)?,
        identity,
        node: spec.node_name.unwrap_or_default().into(),
        labels: labels(metadata.labels),
        host_network: spec.host_network.unwrap_or(false),
        deleting: present(metadata.deletion_timestamp).is_some(),
        terminal: matches!(phase, "Succeeded" | "Failed"),
        ready: ready.is_none_or(|condition| condition.status.as_deref() == Some("True")),
        named_ports: named_ports(&containers)?,
        probe_ports: probes::ports(&containers, &ips)?,
        ips,
        netns: netns.map(Arc::from),
        name,
    })
}

/// A service; external-name and headless ones have no address of their own.
pub(super) fn service(wire: wire::Service) -> Result<Service, FieldError> {
    let mut metadata = wire.metadata.unwrap_or_default();
    let spec = wire.spec.unwrap_or_default();
    let cluster_ips = if spec.kind.as_deref() == Some("ExternalName") {
        Vec::new()
    } else {
        cluster_ips(spec.cluster_ip.as_deref(), spec.cluster_ips.as_deref())?
    };
    let ports = spec.ports.into_iter().flatten().enumerate();
    let ports = ports.map(|(at, port)| service_port(port, &format!("spec.ports[{at}]")));
    Ok(Service {
        name: namespaced(&mut metadata)?,
        created: timestamp(metadata.creation_timestamp)?,
        cluster_ips,
        ports: ports.collect::<Result<_, _>>()?,
        selector: labels(spec.selector),
        session_affinity: choice("spec.sessionAffinity", spec.session_affinity, ["None", "ClientIP"])? == 1,
        local_only: choice("spec.internalTrafficPolicy", spec.internal_traffic_policy, ["Cluster", "Local"])?
            == 1,
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
    })
}

/// An endpoint slice; one of host names (`addressType: FQDN`) has no endpoints.
pub(super) fn endpoint_slice(wire: wire::EndpointSlice) -> Result<EndpointSlice, FieldError> {
    let mut metadata = wire.metadata.unwrap_or_default();
    let name = namespaced(&mut metadata)?;
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
        let pod = endpoint.target_ref.filter(|target| target.kind.as_deref() == Some("Pod"));
        endpoints.push(SliceEndpoint {
            addresses,
            ready: endpoint.conditions.and_then(|conditions| conditions.ready).unwrap_or(true),
            pod: pod.and_then(|target| {
                let namespace =
                    present(target.namespace).map_or_else(|| Arc::clone(&name.namespace), Arc::from);
                Some(ObjectName::new(namespace, present(target.name)?))
            }),
            node: present(endpoint.node_name).map(Arc::from),
        });
    }
    Ok(EndpointSlice { name, service, ports, endpoints })
}

/// The name of a namespaced object; without a namespace it is in `default`.
pub(super) fn namespaced(metadata: &mut wire::Metadata) -> Result<ObjectName, FieldError> {
    let namespace = match present(metadata.namespace.take()) {
        Some(namespace) => object_name("metadata.namespace", Some(namespace))?,
        None => "default".to_owned(),
    };
    Ok(ObjectName::new(namespace, object_name("metadata.name", metadata.name.take())?))
}

fn object_name(field: &str, name: Option<String>) -> Result<String, FieldError> {
    let name = present(name).ok_or_else(|| FieldError::new(field, "is missing"))?;
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if name.len() > 253 || !name.chars().all(legal) || matches!(&*name, "." | "..") {
        return Err(FieldError::new(field, format_args!("{:?} is not a Kubernetes name", cut(&name))));
    }
    Ok(name)
}

fn pod_ips(single: Option<String>, list: Option<Vec<wire::PodIp>>) -> Result<Vec<IpAddr>, FieldError> {
    let mut ips = Vec::new();
    for (at, entry) in list.into_iter().flatten().enumerate() {
        if let Some(ip) = present(entry.ip) {
            ips.push(address(&format!("status.podIPs[{at}].ip"), &ip)?);
        }
    }
    if let Some(ip) = present(single) {
        let ip = address("status.podIP", &ip)?;
        if !ips.contains(&ip) {
            ips.insert(0, ip);
        }
    }
    dedup(&mut ips);
    Ok(ips)
}

fn cluster_ips(single: Option<&str>, list: Option<&[String]>) -> Result<Vec<IpAddr>, FieldError> {
    let stated = |text: &str| !text.is_empty() && text != "None";
    let mut ips = Vec::new();
    for (at, ip) in list.into_iter().flatten().enumerate().filter(|(_, ip)| stated(ip)) {
        ips.push(address(&format!("spec.clusterIPs[{at}]"), ip)?);
    }
    if let Some(ip) = single.filter(|ip| stated(ip)) {
        ips.push(address("spec.clusterIP", ip)?);
    }
    dedup(&mut ips);
    Ok(ips)
}

fn dedup(ips: &mut Vec<IpAddr>) {
    let mut seen = HashSet::new();
    ips.retain(|ip| seen.insert(*ip));
}

fn service_port(port: wire::ServicePort, path: &str) -> Result<ServicePort, FieldError> {
    let field = format!("{path}.port");
    let number = port.port.ok_or_else(|| FieldError::new(&*field, "is missing"))?;
    let number = port_number(&field, number)?;
    let field = format!("{path}.targetPort");
    let target = match port.target_port {
        None => TargetPort::Number(number),
        // What API servers that have not defaulted an object show.
        Some(wire::IntOrString::Int(0)) => TargetPort::Number(number),
        Some(wire::IntOrString::Int(target)) => TargetPort::Number(port_number(&field, target)?),
        Some(wire::IntOrString::Text(text)) => match text.parse() {
            Ok(target) => TargetPort::Number(port_number(&field, target)?),
            Err(_) if text.is_empty() => return Err(FieldError::new(field, "is empty")),
            Err(_) => TargetPort::Name(text),
        },
    };
    let protocol = protocol(&format!("{path}.protocol"), port.protocol)?;
    Ok(ServicePort { name: port.name.unwrap_or_default(), port: number, target, protocol })
}

/// The containers that run as long as the pod does, with their paths from the object's root.
fn lasting(
    containers: Option<Vec<wire::Container>>,
    init: Option<Vec<wire::Container>>,
) -> Vec<(String, wire::Container)> {
    let lasting = |container: &wire::Container| container.restart_policy.as_deref() == Some("Always");
    let containers = containers.into_iter().flatten().enumerate();
    let containers = containers.map(|(at, container)| (format!("spec.containers[{at}]"), container));
    let init = init.into_iter().flatten().enumerate().filter(|(_, container)| lasting(container));
    containers.chain(init.map(|(at, container)| (format!("spec.initContainers[{at}]"), container))).collect()
}

/// Named TCP ports; of two with one name the first counts, as it does for the endpoints controller.
fn named_ports(containers: &[(String, wire::Container)]) -> Result<BTreeMap<String, u16>, FieldError> {
    let mut named = BTreeMap::new();
    for (path, container) in containers {
        for (at, port) in container.ports.iter().flatten().enumerate() {
            let name = port.name.as_ref().filter(|name| !name.is_empty());
            let (Some(name), Some(number)) = (name, port.container_port) else { continue };
            let number = port_number(&format!("{path}.ports[{at}].containerPort"), number)?;
            if protocol(&format!("{path}.ports[{at}].protocol"), port.protocol.clone())? == Protocol::Tcp {
                named.entry(name.clone()).or_insert(number);
            }
        }
    }
    Ok(named)
}

fn timestamp(text: Option<String>) -> Result<Option<i64>, FieldError> {
    let Some(text) = present(text) else { return Ok(None) };
    match OffsetDateTime::parse(&text, &Rfc3339) {
        Ok(at) => Ok(Some(at.unix_timestamp())),
        Err(_) => Err(FieldError::new(
            "metadata.creationTimestamp",
            format_args!("{:?} is not a time of the form 2026-01-31T12:00:00Z", cut(&text)),
        )),
    }
}

fn address(field: &str, text: &str) -> Result<IpAddr, FieldError> {
    let ip = text.parse::<IpAddr>().map(|ip| ip.to_canonical());
    let ip = ip.map_err(|_| FieldError::new(field, format_args!("{:?} is not an IP address", cut(text))))?;
    if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() {
        return Err(FieldError::new(field, format_args!("{ip} cannot be the address of a pod or service")));
    }
    Ok(ip)
}

fn port_number(field: &str, number: i64) -> Result<u16, FieldError> {
    match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(FieldError::new(field, format_args!("{number} is not a port (1 to 65535)"))),
    }
}

fn protocol(field: &str, text: Option<String>) -> Result<Protocol, FieldError> {
    const ALL: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    Ok(ALL[choice(field, text, ["TCP", "UDP", "SCTP"])?])
}

/// Which of the values stands there; absent and empty mean the first.
fn choice<const N: usize>(field: &str, text: Option<String>, values: [&str; N]) -> Result<usize, FieldError> {
    let Some(text) = present(text) else { return Ok(0) };
    values.iter().position(|value| *value == text).ok_or_else(|| {
        let known: Vec<_> = values.into_iter().filter(|value| !value.is_empty()).collect();
        FieldError::new(field, format_args!("{:?} is not one of {}", cut(&text), known.join(", ")))
    })
}

fn labels(pairs: Option<wire::Pairs>) -> Labels {
    pairs.into_iter().flatten().map(|(key, value)| (key, value.unwrap_or_default())).collect()
}

/// Kubernetes writes an absent text as empty too.
fn present(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTE) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
