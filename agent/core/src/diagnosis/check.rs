//! What is for a pod: its identity, the mode of mutual TLS on each port and what set it, and every policy.

use std::sync::Arc;

use super::{
    Cluster, Layer7, Reference, Role, Unanswerable,
    layer7::{layer7, read_ports},
};
use crate::{
    model::{ObjectName, SpiffeId, Workload},
    policy::{AuthorizationPolicy, MtlsOrigin, RequestAuthentication, Target, WorkloadPolicy},
};

/// Groups of pods that are told apart.
const MAX_GROUPS: usize = 64;

/// Pods for which the same holds, and what that is.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The pods.
    pub pods: Vec<ObjectName>,
    /// Their identity.
    pub identity: SpiffeId,
    /// Whether they are in the mesh; outside of it nothing here is enforced.
    pub in_mesh: bool,
    /// Ports on which the kubelet's probes go past all policies.
    pub probe_ports: Vec<u16>,
    /// The mode of mutual TLS where no port says otherwise.
    pub mtls: MtlsOrigin,
    /// Ports with a mode of their own.
    pub ports: Vec<PortMode>,
    /// The AuthorizationPolicies for them, in force or not.
    pub policies: Vec<Arc<AuthorizationPolicy>>,
    /// The RequestAuthentications for them.
    pub requests: Vec<Arc<RequestAuthentication>>,
    /// What is read as HTTP on the ports of which anything speaks.
    pub layer7: Layer7,
    /// The issuers whose tokens count.
    pub issuers: Vec<Box<str>>,
}

/// The mode of mutual TLS on one port.
#[derive(Clone, Debug)]
pub struct PortMode {
    /// The pod's own port.
    pub port: u16,
    /// The mode, and what set it.
    pub mtls: MtlsOrigin,
}

/// What is for the pods that a reference leads to.
pub fn check(
    cluster: Cluster<'_>,
    reference: &Reference,
    namespace: Option<&str>,
) -> Result<Vec<Checked>, Unanswerable> {
    let pods = match reference {
        Reference::Identity(identity) => cluster.bearers(identity),
        Reference::Address(ip) => cluster.mesh.workload_by_ip(*ip).cloned().into_iter().collect(),
        Reference::Object { kind, namespace: own, name } => {
            cluster.find(*kind, own.as_deref().or(namespace), name, Role::Source)?.pods
        }
    };
    if pods.is_empty() {
        let what = match reference {
            Reference::Identity(identity) => format!("pod in the mesh with the identity {identity}"),
            Reference::Address(ip) => format!("pod with the address {ip}"),
            Reference::Object { name, .. } => format!("pod behind {name}"),
        };
        return Err(Unanswerable::NotFound { what, hint: String::new() });
    }
    let mut groups: Vec<(Arc<WorkloadPolicy>, Checked)> = Vec::new();
    for pod in pods {
        let compiled = cluster.policies.compile(&pod);
        let in_mesh = cluster.is_in_mesh(&pod);
        let alike = |(policy, checked): &&mut (Arc<WorkloadPolicy>, Checked)| {
            *policy == compiled
                && checked.identity == pod.identity
                && checked.in_mesh == in_mesh
                && checked.probe_ports == pod.probe_ports
                && checked.layer7.ports == read_ports(cluster, &pod)
        };
        if let Some((_, checked)) = groups.iter_mut().find(alike) {
            checked.pods.push(pod.name.clone());
        } else if groups.len() < MAX_GROUPS {
            groups.push((compiled, checked(cluster, &pod, in_mesh)));
        }
    }
    Ok(groups.into_iter().map(|(_, checked)| checked).collect())
}

fn checked(cluster: Cluster<'_>, pod: &Arc<Workload>, in_mesh: bool) -> Checked {
    let Workload { name, labels, .. } = &**pod;
    let origin = |port| cluster.policies.mtls_origin(&name.namespace, labels, port);
    let ports = cluster.policies.mtls_ports(&name.namespace, labels);
    let requests = cluster
        .policies
        .request_authentications()
        .filter(|request| cluster.is_for(&request.name, &request.target, pod));
    Checked {
        pods: vec![name.clone()],
        identity: pod.identity.clone(),
        in_mesh,
        probe_ports: pod.probe_ports.clone(),
        mtls: origin(None),
        ports: ports.into_iter().map(|port| PortMode { port, mtls: origin(Some(port)) }).collect(),
        policies: cluster.policies.authorizations_for(&name.namespace, labels).cloned().collect(),
        requests: requests.cloned().collect(),
        layer7: layer7(cluster, pod),
        issuers: cluster.policies.compile(pod).tokens().iter().map(|rule| rule.issuer.clone()).collect(),
    }
}

impl Cluster<'_> {
    /// Whether an object of that name and target is for a pod.
    pub(super) fn is_for(&self, object: &ObjectName, target: &Target, pod: &Workload) -> bool {
        let selects = |selector: &crate::model::Labels| {
            selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
        };
        let same_namespace = object.namespace == pod.name.namespace;
        match target {
            Target::Pods(selector) => {
                (same_namespace || object.namespace == *self.policies.root_namespace()) && selects(selector)
            }
            Target::Services(services) => {
                let selector = |service: &Arc<str>| {
                    let service = ObjectName::new(Arc::clone(&object.namespace), Arc::clone(service));
                    self.mesh.service_selector(&service).is_some_and(|own| !own.is_empty() && selects(own))
                };
                same_namespace && services.iter().any(selector)
            }
        }
    }
}
