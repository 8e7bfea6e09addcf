//! Pods, each with the identity that its service account gives it.

mod probes;

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ambit_core::{
    discovery::{Change, HostPort, Pod, Protocol, Settings},
    model::{NETNS_ANNOTATION, ObjectName, SpiffeId},
};
use serde_json::Value;

use super::{
    FieldError, Valid,
    fields::{address, cut, dedup, labels, port_number, present, protocol, timestamp},
    namespace::{http_telemetry, odd_label, opted_in},
    wire::{self, IntOrString, Metadata},
};

wire::objects! {
    Object {
        metadata: Option<Metadata>,
        spec: Option<Spec>,
        status: Option<Status>,
    }

    Spec {
        node_name: Option<String>,
        service_account_name: Option<String>,
        /// The old name of `serviceAccountName`.
        service_account: Option<String>,
        host_network: Option<bool>,
        containers: Option<Vec<Container>>,
        init_containers: Option<Vec<Container>>,
    }

    Lifecycle {
        post_start: Option<Probe>,
        pre_stop: Option<Probe>,
    }

    Status {
        phase: Option<String>,
        #[serde(rename = "podIP")]
        pod_ip: Option<String>,
        #[serde(rename = "podIPs")]
        pod_ips: Option<Vec<PodIp>>,
        #[serde(rename = "hostIP")]
        host_ip: Option<String>,
        #[serde(rename = "hostIPs")]
        host_ips: Option<Vec<PodIp>>,
        conditions: Option<Vec<Condition>>,
    }

    PodIp {
        ip: Option<String>,
    }

    Condition {
        #[serde(rename = "type")]
        kind: Option<String>,
        status: Option<String>,
    }

    Container {
        ports: Option<Vec<ContainerPort>>,
        restart_policy: Option<String>,
        liveness_probe: Option<Probe>,
        readiness_probe: Option<Probe>,
        startup_probe: Option<Probe>,
        lifecycle: Option<Lifecycle>,
    }

    ContainerPort {
        name: Option<String>,
        container_port: Option<i64>,
        host_port: Option<i64>,
        #[serde(rename = "hostIP")]
        host_ip: Option<String>,
        protocol: Option<String>,
    }

    Probe {
        http_get: Option<ProbeTarget>,
        tcp_socket: Option<ProbeTarget>,
        grpc: Option<ProbeTarget>,
    }

    /// Where a probe of any kind connects to; `host` is not for gRPC.
    ProbeTarget {
        port: Option<IntOrString>,
        host: Option<String>,
    }
}

/// In the place of a service account that cannot be read: a name that no service account can have, so that nobody takes
/// the pod for another.
const NOBODY: &str = "_unreadable_";

/// Labels that cannot be read may opt the pod in.
pub(super) fn in_place_of(field: &str, settings: &Settings) -> Value {
    match field {
        "spec.serviceAccountName" | "spec.serviceAccount" => NOBODY.into(),
        _ if field.starts_with("metadata.labels") => opted_in(settings),
        _ => Value::Null,
    }
}

pub(super) fn read(name: ObjectName, object: &Value, settings: &Settings) -> Result<Valid, FieldError> {
    let Object { metadata, spec, status } = wire::typed(object)?;
    let metadata = metadata.unwrap_or_default();
    let spec = spec.unwrap_or_default();
    let status = status.unwrap_or_default();

    let account = present(spec.service_account_name).or_else(|| present(spec.service_account));
    let account = account.as_deref().unwrap_or("default");
    let identity = SpiffeId::new(settings.trust_domain.clone(), &name.namespace, account)
        .map_err(|error| FieldError::new("spec.serviceAccountName", error))?;

    let phase = status.phase.as_deref().unwrap_or_default();
    let ready =
        status.conditions.iter().flatten().find(|condition| condition.kind.as_deref() == Some("Ready"));
    let (http_telemetry, odd_annotation) = http_telemetry(metadata.annotations.as_ref());
    let netns = metadata.annotations.and_then(|mut all| present(all.remove(NETNS_ANNOTATION)?));
    let ips = pod_ips(status.pod_ip, status.pod_ips)?;
    let host_ips = host_ips(status.host_ip, status.host_ips);
    let foreign_probes = probes::foreign(spec.containers.iter().chain(&spec.init_containers).flatten(), &ips);
    let containers = lasting(spec.containers, spec.init_containers);
    let pod = Pod {
        uid: uid(metadata.uid)?.map_or_else(|| name.to_string().into(), Arc::from),
        created: timestamp(metadata.creation_timestamp)?,
        identity,
        node: spec.node_name.unwrap_or_default().into(),
        labels: labels(metadata.labels),
        host_network: spec.host_network.unwrap_or(false),
        deleting: present(metadata.deletion_timestamp).is_some(),
        terminal: matches!(phase, "Succeeded" | "Failed"),
        ready: ready.is_none_or(|condition| condition.status.as_deref() == Some("True")),
        named_ports: named_ports(&containers)?,
        ports: stated_ports(&containers),
        probe_ports: probes::ports(&containers, &ips)?,
        host_ports: host_ports(&containers),
        foreign_probes,
        ips,
        host_ips,
        netns: netns.map(Arc::from),
        http_telemetry,
        name,
    };
    let notice = odd_label(&pod.labels, settings).or(odd_annotation);
    Ok(Valid { notice, ..Change::Pod(Arc::new(pod)).into() })
}

/// A UID with a slash could be what stands for one where none is stated: a namespace and a name.
fn uid(text: Option<String>) -> Result<Option<String>, FieldError> {
    match present(text) {
        Some(uid) if uid.contains('/') => {
            Err(FieldError::new("metadata.uid", format_args!("{:?} is not a UID", cut(&uid))))
        }
        uid => Ok(uid),
    }
}

fn pod_ips(single: Option<String>, list: Option<Vec<PodIp>>) -> Result<Vec<IpAddr>, FieldError> {
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

/// The node's addresses, of which one that is of no use is no reason to pass the pod over.
fn host_ips(single: Option<String>, list: Option<Vec<PodIp>>) -> Vec<IpAddr> {
    let stated = single.into_iter().chain(list.into_iter().flatten().filter_map(|entry| entry.ip));
    let mut ips: Vec<IpAddr> = stated.filter_map(|ip| address("", &ip).ok()).collect();
    dedup(&mut ips);
    ips
}

/// The containers that run as long as the pod does, with their paths from the object's root.
fn lasting(containers: Option<Vec<Container>>, init: Option<Vec<Container>>) -> Vec<(String, Container)> {
    let lasting = |container: &Container| container.restart_policy.as_deref() == Some("Always");
    let containers = containers.into_iter().flatten().enumerate();
    let containers = containers.map(|(at, container)| (format!("spec.containers[{at}]"), container));
    let init = init.into_iter().flatten().enumerate().filter(|(_, container)| lasting(container));
    containers.chain(init.map(|(at, container)| (format!("spec.initContainers[{at}]"), container))).collect()
}

/// Named TCP ports; of two with one name the first counts, as it does for the endpoints controller.
fn named_ports(containers: &[(String, Container)]) -> Result<BTreeMap<String, u16>, FieldError> {
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

/// The TCP ports that containers state. What is no port is none.
fn stated_ports(containers: &[(String, Container)]) -> Vec<u16> {
    let ports = containers.iter().flat_map(|(_, container)| container.ports.iter().flatten());
    let tcp = ports.filter(|port| protocol("", port.protocol.clone()) == Ok(Protocol::Tcp));
    let mut numbers: Vec<u16> = tcp.filter_map(|port| port_number("", port.container_port?).ok()).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

/// TCP ports of the node that lead to the containers'. What is no port leads nowhere.
fn host_ports(containers: &[(String, Container)]) -> Vec<HostPort> {
    let ports = containers.iter().flat_map(|(_, container)| container.ports.iter().flatten());
    let tcp = ports.filter(|port| protocol("", port.protocol.clone()) == Ok(Protocol::Tcp));
    let host_port = |port: &ContainerPort| {
        Some(HostPort {
            // One that is given as unspecified means all.
            ip: port.host_ip.as_deref().and_then(|ip| address("", ip).ok()),
            port: port_number("", port.host_port?).ok()?,
            target: port_number("", port.container_port?).ok()?,
        })
    };
    tcp.filter_map(host_port).collect()
}
