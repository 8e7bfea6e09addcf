//! Whom a question is about, as pods, addresses and ports.

use std::{collections::BTreeSet, sync::Arc};

use super::{Client, Question, Target, Targets};
use crate::{
    diagnosis::{Cluster, Reference, Role, Unanswerable, reference::Found},
    discovery::{Protocol, Service},
    model::Workload,
    policy::{Attribute, Field, Rule},
};

/// Pods of one side that are looked at.
const MAX_PODS: usize = 100;
/// Ports that are looked at where none is said.
const MAX_PORTS: usize = 32;

/// Who connects.
pub(super) fn clients(
    cluster: Cluster<'_>,
    question: &Question<'_>,
    notes: &mut Vec<String>,
) -> Result<Vec<Client>, Unanswerable> {
    let pods = match question.source {
        Reference::Identity(identity) => {
            let bearers = cluster.bearers(identity);
            if bearers.is_empty() {
                return Ok(vec![Client {
                    name: identity.to_string(),
                    pod: None,
                    identity: Some(identity.clone()),
                    ips: Vec::new(),
                    in_mesh: true,
                }]);
            }
            bearers
        }
        Reference::Address(ip) => match cluster.mesh.workload_by_ip(*ip) {
            Some(pod) => vec![Arc::clone(pod)],
            None => {
                return Ok(vec![Client {
                    name: ip.to_string(),
                    pod: None,
                    identity: None,
                    ips: vec![*ip],
                    in_mesh: false,
                }]);
            }
        },
        Reference::Object { kind, namespace, name } => {
            let namespace = namespace.as_deref().or(question.namespace);
            let Found { pods, service } = cluster.find(*kind, namespace, name, Role::Source)?;
            match service {
                Some(service) if pods.is_empty() => {
                    let what = format!("pod behind service {}", service.name);
                    return Err(Unanswerable::NotFound { what, hint: String::new() });
                }
                _ => pods,
            }
        }
    };
    let total = pods.len();
    if total > MAX_PODS {
        notes.push(format!("only the first {MAX_PODS} of {total} clients are looked at"));
    }
    let client = |pod: Arc<Workload>| Client {
        name: pod.name.to_string(),
        pod: Some(pod.name.clone()),
        identity: Some(pod.identity.clone()),
        ips: pod.ips.clone(),
        in_mesh: cluster.is_in_mesh(&pod),
    };
    Ok(pods.into_iter().take(MAX_PODS).map(client).collect())
}

/// The pods and ports that are connected to, and the service by which; none if it is no pod at all.
pub(super) fn targets(
    cluster: Cluster<'_>,
    question: &Question<'_>,
    notes: &mut Vec<String>,
) -> Result<Option<Targets>, Unanswerable> {
    let port = question.port;
    let (found, what) = match question.destination {
        Reference::Identity(identity) => {
            let pods = cluster.bearers(identity);
            if pods.is_empty() {
                let what = format!("pod in the mesh with the identity {identity}");
                return Err(Unanswerable::NotFound { what, hint: String::new() });
            }
            (Found { pods, service: None }, identity.to_string())
        }
        Reference::Address(ip) => {
            let at = |service: &&Arc<Service>| {
                let port = |port: u16| service.ports.iter().any(|own| own.port == port);
                service.cluster_ips.contains(ip)
                    || (service.external_ips.contains(ip) && question.port.is_some_and(port))
            };
            match (cluster.mesh.workload_by_ip(*ip), cluster.mesh.services().find(at)) {
                (_, Some(service)) if service.cluster_ips.contains(ip) => {
                    (Found { pods: Vec::new(), service: Some(Arc::clone(service)) }, ip.to_string())
                }
                (Some(pod), _) => (Found { pods: vec![Arc::clone(pod)], service: None }, ip.to_string()),
                (None, Some(service)) => {
                    (Found { pods: Vec::new(), service: Some(Arc::clone(service)) }, ip.to_string())
                }
                (None, None) => return Ok(None),
            }
        }
        Reference::Object { kind, namespace, name } => {
            let namespace = namespace.as_deref().or(question.namespace);
            (cluster.find(*kind, namespace, name, Role::Destination(port))?, name.to_string())
        }
    };
    if let Some(service) = found.service {
        let targets = of_service(cluster, &service, port, notes)?;
        return Ok(Some(Targets { targets, service: Some(service) }));
    }
    let total = found.pods.len();
    if total > MAX_PODS {
        notes.push(format!("only the first {MAX_PODS} of {total} pods are looked at"));
    }
    let mut targets = Vec::new();
    for pod in found.pods.into_iter().take(MAX_PODS) {
        let ports = port.map_or_else(|| known_ports(cluster, &pod), |port| vec![port]);
        targets.extend(ports.into_iter().map(|port| Target {
            pod: Arc::clone(&pod),
            port,
            service_port: None,
        }));
    }
    if targets.is_empty() {
        Err(Unanswerable::NoPort(what))
    } else {
        Ok(Some(Targets { targets, service: None }))
    }
}

fn of_service(
    cluster: Cluster<'_>,
    service: &Service,
    port: Option<u16>,
    notes: &mut Vec<String>,
) -> Result<Vec<Target>, Unanswerable> {
    let own = service.ports.iter().filter(|own| own.protocol == Protocol::Tcp).map(|own| own.port);
    let ports: Vec<u16> =
        own.clone().filter(|own| port.is_none_or(|port| port == *own)).take(MAX_PORTS).collect();
    if let (Some(port), true) = (port, ports.is_empty()) {
        let has: Vec<String> = own.map(|own| own.to_string()).collect();
        let has = if has.is_empty() { "none".to_owned() } else { has.join(", ") };
        return Err(Unanswerable::NoSuchPort { service: service.name.clone(), port, has });
    }
    let mut targets = Vec::new();
    for port in ports {
        let behind = cluster.mesh.behind(service, port);
        if behind.len() > MAX_PODS {
            notes.push(format!("only the first {MAX_PODS} of {} pods are looked at", behind.len()));
        }
        let behind = behind.into_iter().take(MAX_PODS);
        targets.extend(behind.map(|(pod, target)| Target { pod, port: target, service_port: Some(port) }));
    }
    if targets.is_empty() {
        let what = format!("pod behind service {}", service.name);
        return Err(Unanswerable::NotFound { what, hint: "; connections to it are refused".to_owned() });
    }
    Ok(targets)
}

/// The ports of a pod of which anything speaks: its containers, its services, its policies.
pub(in crate::diagnosis) fn known_ports(cluster: Cluster<'_>, pod: &Workload) -> Vec<u16> {
    let mut ports: BTreeSet<u16> = cluster.mesh.stated_ports(&pod.name).iter().copied().collect();
    for service in cluster.mesh.services_of(&pod.name) {
        for port in &service.ports {
            let behind = cluster.mesh.behind(service, port.port);
            ports.extend(behind.iter().filter(|(own, _)| own.name == pod.name).map(|(_, target)| *target));
        }
    }
    ports.extend(cluster.policies.mtls_ports(&pod.name.namespace, &pod.labels));
    let policies = cluster.policies.authorizations_for(&pod.name.namespace, &pod.labels);
    let fields = policies.flat_map(|policy| policy.rules.iter().flat_map(Rule::fields));
    let stated = fields.filter(|field| field.attribute() == Attribute::Port).flat_map(Field::values);
    ports.extend(stated.filter_map(|port| port.parse::<u16>().ok()).filter(|port| *port != 0));
    ports.into_iter().take(MAX_PORTS).collect()
}
