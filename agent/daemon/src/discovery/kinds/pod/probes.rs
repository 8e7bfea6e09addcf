//! The ports on which the kubelet connects to a pod: those of httpGet, tcpSocket and grpc in liveness, readiness and startup
//! probes and in lifecycle hooks. One of another host is not the pod's; a name that no port of the container bears is nobody's.
//! And where else a pod has the kubelet connect to, by the `host` of a probe or a hook.

use std::net::IpAddr;

use ambit_core::discovery::ForeignProbe;

use super::{
    Container, FieldError, IntOrString, Lifecycle, Probe, ProbeTarget, Protocol, port_number, protocol,
};

/// The most that is kept of one pod; one with more may have the kubelet connect anywhere.
const MAX_FOREIGN: usize = 1_024;

/// The ports, ascending, of a pod with these containers and addresses.
pub(super) fn ports(containers: &[(String, Container)], ips: &[IpAddr]) -> Result<Vec<u16>, FieldError> {
    let mut ports = Vec::new();
    for (path, container) in containers {
        let hook = |of: fn(&Lifecycle) -> &Option<Probe>| {
            container.lifecycle.as_ref().and_then(|all| of(all).as_ref())
        };
        let probes = [
            ("livenessProbe", container.liveness_probe.as_ref()),
            ("readinessProbe", container.readiness_probe.as_ref()),
            ("startupProbe", container.startup_probe.as_ref()),
            ("lifecycle.postStart", hook(|all| &all.post_start)),
            ("lifecycle.preStop", hook(|all| &all.pre_stop)),
        ];
        for (probe, Probe { http_get, tcp_socket, grpc }) in
            probes.into_iter().filter_map(|(name, probe)| Some((name, probe?)))
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

/// Where these containers have the kubelet connect to that is neither the pod at `ips` nor the node itself. What cannot be told
/// may be anywhere.
pub(super) fn foreign<'a>(
    containers: impl Iterator<Item = &'a Container>,
    ips: &[IpAddr],
) -> Vec<ForeignProbe> {
    let mut found = Vec::new();
    for container in containers {
        let Container { liveness_probe, readiness_probe, startup_probe, lifecycle, .. } = container;
        let hooks = lifecycle.iter().flat_map(|lifecycle| [&lifecycle.post_start, &lifecycle.pre_stop]);
        let asked = [liveness_probe, readiness_probe, startup_probe].into_iter().chain(hooks).flatten();
        let targets = asked.flat_map(|probe| [&probe.http_get, &probe.tcp_socket]).flatten();
        found.extend(targets.filter(|target| !on_the_pod(target, ips)).filter_map(|target| {
            let host = target.host.as_deref().unwrap_or_default();
            let address = host.parse::<IpAddr>().ok().map(|address| address.to_canonical());
            let on_the_node =
                address.map_or(host.eq_ignore_ascii_case("localhost"), |address| address.is_loopback());
            if on_the_node {
                None
            } else {
                Some(ForeignProbe { host: address, port: asked_port(target, container)? })
            }
        }));
    }
    found.sort_unstable();
    found.dedup();
    if found.len() > MAX_FOREIGN {
        return vec![ForeignProbe { host: None, port: None }];
    }
    found
}

/// The port that the kubelet would connect to: none if it would connect to no port, and any if that cannot be told. It looks a
/// name up whatever the port's protocol.
fn asked_port(target: &ProbeTarget, container: &Container) -> Option<Option<u16>> {
    let number = match &target.port {
        None => return Some(None),
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::Text(text)) => match text.parse() {
            Ok(number) => number,
            Err(_) => {
                container
                    .ports
                    .iter()
                    .flatten()
                    .find(|port| port.name.as_ref() == Some(text))?
                    .container_port?
            }
        },
    };
    u16::try_from(number).ok().map(Some)
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
