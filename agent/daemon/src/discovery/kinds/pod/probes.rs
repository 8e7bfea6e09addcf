//! The ports on which the kubelet probes a pod: those of httpGet, tcpSocket and grpc in liveness, readiness and startup
//! probes. A probe of another host is not the pod's; a name that no port of the container bears is nobody's.

use std::net::IpAddr;

use super::{Container, FieldError, IntOrString, Probe, ProbeTarget, Protocol, port_number, protocol};

/// The ports, ascending, of a pod with these containers and addresses.
pub(super) fn ports(containers: &[(String, Container)], ips: &[IpAddr]) -> Result<Vec<u16>, FieldError> {
    let mut ports = Vec::new();
    for (path, container) in containers {
        let probes = [
            ("livenessProbe", &container.liveness_probe),
            ("readinessProbe", &container.readiness_probe),
            ("startupProbe", &container.startup_probe),
        ];
        for (probe, Probe { http_get, tcp_socket, grpc }) in
            probes.into_iter().filter_map(|(name, probe)| Some((name, probe.as_ref()?)))
        {
            for (kind, target) in [("httpGet", http_get), ("tcpSocket", tcp_socket), ("grpc", grpc)] {
                let Some(target) = target.as_ref().filter(|target| on_the_pod(target, ips)) else { continue };
                let field = format!("{path}.{probe}.{kind}.port");
                ports.extend(port(&field, target, container)?);
            }
        }
    }
    ports.sort_unstable();
    ports.dedup();
    Ok(ports)
}

/// Whether the probe goes to the pod itself; the kubelet takes `host` as it stands there.
fn on_the_pod(target: &ProbeTarget, ips: &[IpAddr]) -> bool {
    match target.host.as_deref() {
        None | Some("") => true,
        Some(host) => host.parse::<IpAddr>().is_ok_and(|host| ips.contains(&host.to_canonical())),
    }
}

/// The number of the port; a name is looked for in the probe's own container, as the kubelet does.
fn port(field: &str, target: &ProbeTarget, container: &Container) -> Result<Option<u16>, FieldError> {
    match &target.port {
        None => Ok(None),
        Some(IntOrString::Int(number)) => port_number(field, *number).map(Some),
        Some(IntOrString::Text(text)) => {
            if let Ok(number) = text.parse() {
                return port_number(field, number).map(Some);
            }
            let named = container.ports.iter().flatten().find(|port| port.name.as_ref() == Some(text));
            let Some(named) = named else { return Ok(None) };
            let tcp = protocol(field, named.protocol.clone())? == Protocol::Tcp;
            named.container_port.filter(|_| tcp).map(|number| port_number(field, number)).transpose()
        }
    }
}
