//! Services.

use std::{net::IpAddr, sync::Arc, time::Duration};

use ambit_core::{
    discovery::{Change, Distribution, Prefix, Service, ServicePort, Settings, TargetPort},
    model::ObjectName,
};
use serde_json::Value;

use super::{
    FieldError, Valid,
    fields::{address, choice, cut, dedup, labels, network, port_number, present, protocol, timestamp},
    wire::{self, IntOrString, Metadata, Pairs},
};

wire::objects! {
    Object {
        metadata: Option<Metadata>,
        spec: Option<Spec>,
        status: Option<Status>,
    }

    Spec {
        #[serde(rename = "type")]
        kind: Option<String>,
        #[serde(rename = "clusterIP")]
        cluster_ip: Option<String>,
        #[serde(rename = "clusterIPs")]
        cluster_ips: Option<Vec<String>>,
        #[serde(rename = "externalIPs")]
        external_ips: Option<Vec<String>>,
        ports: Option<Vec<Port>>,
        selector: Option<Pairs>,
        session_affinity: Option<String>,
        session_affinity_config: Option<AffinityConfig>,
        internal_traffic_policy: Option<String>,
        external_traffic_policy: Option<String>,
        publish_not_ready_addresses: Option<bool>,
        traffic_distribution: Option<String>,
        load_balancer_source_ranges: Option<Vec<String>>,
    }

    AffinityConfig {
        #[serde(rename = "clientIP")]
        client_ip: Option<ClientIp>,
    }

    ClientIp {
        timeout_seconds: Option<i64>,
    }

    Port {
        name: Option<String>,
        port: Option<i64>,
        node_port: Option<i64>,
        target_port: Option<IntOrString>,
        protocol: Option<String>,
        app_protocol: Option<String>,
    }

    Status {
        load_balancer: Option<LoadBalancer>,
    }

    LoadBalancer {
        ingress: Option<Vec<Ingress>>,
    }

    /// A load balancer may have a host name instead of addresses.
    Ingress {
        ip: Option<String>,
        ip_mode: Option<String>,
    }
}

/// What Kubernetes fills in for `timeoutSeconds`: three hours.
const AFFINITY_SECONDS: i64 = 10_800;

/// External-name and headless services have no address of their own.
pub(super) fn read(name: ObjectName, object: &Value, _: &Settings) -> Result<Valid, FieldError> {
    let Object { metadata, spec, status } = wire::typed(object)?;
    let metadata = metadata.unwrap_or_default();
    let spec = spec.unwrap_or_default();
    let cluster_ips = if spec.kind.as_deref() == Some("ExternalName") {
        Vec::new()
    } else {
        cluster_ips(spec.cluster_ip.as_deref(), spec.cluster_ips.as_deref())?
    };
    let (distribution, notice) = distribution(spec.traffic_distribution.as_deref());
    let mut external_ips = usable(spec.external_ips.into_iter().flatten());
    let mut balancer_ips = usable(direct(status.and_then(|status| status.load_balancer)));
    balancer_ips.retain(|ip| !external_ips.contains(ip));
    external_ips.extend(&balancer_ips);
    let source_ranges = spec.load_balancer_source_ranges.into_iter().flatten().enumerate();
    let source_ranges = source_ranges
        .map(|(at, range)| network(&format!("spec.loadBalancerSourceRanges[{at}]"), range.trim()));
    let ports = spec.ports.into_iter().flatten().enumerate();
    let ports = ports.map(|(at, port)| service_port(port, &format!("spec.ports[{at}]")));
    let service = Service {
        name,
        created: timestamp(metadata.creation_timestamp)?,
        cluster_ips,
        external_ips,
        ports: ports.collect::<Result<_, _>>()?,
        selector: labels(spec.selector),
        session_affinity: session_affinity(spec.session_affinity, spec.session_affinity_config)?,
        local_only: choice("spec.internalTrafficPolicy", spec.internal_traffic_policy, ["Cluster", "Local"])?
            == 1,
        external_local: choice(
            "spec.externalTrafficPolicy",
            spec.external_traffic_policy,
            ["Cluster", "Local"],
        )? == 1,
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        distribution,
        source_ranges: source_ranges.collect::<Result<Vec<Prefix>, _>>()?,
        balancer_ips,
    };
    Ok(Valid { notice, ..Change::Service(Arc::new(service)).into() })
}

/// Which endpoints are wanted first, and what is to be said of a wish that is not known.
fn distribution(wish: Option<&str>) -> (Option<Distribution>, Option<FieldError>) {
    match wish {
        None | Some("") => (None, None),
        Some("PreferClose" | "PreferSameZone") => (Some(Distribution::SameZone), None),
        Some("PreferSameNode") => (Some(Distribution::SameNode), None),
        Some(other) => {
            let message =
                format!("{:?} is not known; only the hints of its endpoint slices count", cut(other));
            (None, Some(FieldError::new("spec.trafficDistribution", message)))
        }
    }
}

/// For how long a client keeps to an endpoint, where it does.
fn session_affinity(
    affinity: Option<String>,
    config: Option<AffinityConfig>,
) -> Result<Option<Duration>, FieldError> {
    if choice("spec.sessionAffinity", affinity, ["None", "ClientIP"])? == 0 {
        return Ok(None);
    }
    let stated = config.and_then(|config| config.client_ip?.timeout_seconds);
    let seconds = u64::try_from(stated.unwrap_or(AFFINITY_SECONDS)).ok().filter(|s| (1..=86_400).contains(s));
    let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
    let seconds = seconds.ok_or_else(|| FieldError::new(field, "is not between 1 and 86400"))?;
    Ok(Some(Duration::from_secs(seconds)))
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

/// The load balancer's addresses, unless traffic has to pass it: it may end TLS, or be no door to the cluster at all.
fn direct(balancer: Option<LoadBalancer>) -> impl Iterator<Item = String> {
    let ingress = balancer.and_then(|balancer| balancer.ingress).into_iter().flatten();
    let direct = ingress.filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"));
    direct.filter_map(|ingress| ingress.ip)
}

/// The addresses among them. Others write them: one that is of no use is no reason to pass the service over.
fn usable(stated: impl Iterator<Item = String>) -> Vec<IpAddr> {
    let mut ips: Vec<IpAddr> = stated.filter_map(|ip| address("", &ip).ok()).collect();
    dedup(&mut ips);
    ips
}

fn service_port(port: Port, path: &str) -> Result<ServicePort, FieldError> {
    let field = format!("{path}.port");
    let number = port.port.ok_or_else(|| FieldError::new(&*field, "is missing"))?;
    let number = port_number(&field, number)?;
    let field = format!("{path}.targetPort");
    let target = match port.target_port {
        None => TargetPort::Number(number),
        // What API servers that have not defaulted an object show.
        Some(IntOrString::Int(0)) => TargetPort::Number(number),
        Some(IntOrString::Int(target)) => TargetPort::Number(port_number(&field, target)?),
        Some(IntOrString::Text(text)) => match text.parse() {
            Ok(target) => TargetPort::Number(port_number(&field, target)?),
            Err(_) if text.is_empty() => return Err(FieldError::new(field, "is empty")),
            Err(_) => TargetPort::Name(text),
        },
    };
    let protocol = protocol(&format!("{path}.protocol"), port.protocol)?;
    let node_port = match port.node_port {
        None | Some(0) => None,
        Some(node_port) => Some(port_number(&format!("{path}.nodePort"), node_port)?),
    };
    Ok(ServicePort {
        name: port.name.unwrap_or_default(),
        port: number,
        node_port,
        target,
        protocol,
        app_protocol: present(port.app_protocol).map(String::into_boxed_str),
    })
}
