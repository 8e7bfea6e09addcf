//! What of a pod's connections is read as HTTP, port by port and why, and what in its policies does not go with that.

use std::sync::Arc;

use super::{Cluster, Finding, analysis, connection::parties::known_ports};
use crate::{
    discovery::PortProtocol,
    model::Workload,
    policy::{Action, Attribute, AuthorizationPolicy, Rule},
};

/// What is read as HTTP of one pod's connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer7 {
    /// The ports of which anything speaks.
    pub ports: Vec<ReadPort>,
    /// Likely mistakes in the pod's policies about requests, tokens and providers.
    pub findings: Vec<Finding>,
}

/// One port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadPort {
    /// The pod's own.
    pub port: u16,
    /// What is spoken there.
    pub protocol: PortProtocol,
    /// For whom requests are read there, as far as what is spoken is HTTP: an object, or telemetry; `None` where bytes are passed on
    /// unread.
    pub read_for: Option<String>,
}

/// What is read as HTTP of the connections to `pod`.
pub fn layer7(cluster: Cluster<'_>, pod: &Arc<Workload>) -> Layer7 {
    Layer7 { ports: read_ports(cluster, pod), findings: analysis::layer7(cluster, pod) }
}

pub(super) fn read_ports(cluster: Cluster<'_>, pod: &Workload) -> Vec<ReadPort> {
    let read = |port| {
        let protocol = cluster.mesh.port_protocol(pod, port);
        let read_for = reader(cluster, pod, port).filter(|_| !matches!(protocol, PortProtocol::Other(_)));
        ReadPort { port, protocol, read_for }
    };
    known_ports(cluster, pod).into_iter().map(read).collect()
}

/// The first that needs requests on a port.
fn reader(cluster: Cluster<'_>, pod: &Workload, port: u16) -> Option<String> {
    let Workload { name, labels, .. } = pod;
    let needs = |policy: &&Arc<AuthorizationPolicy>| {
        let mut rules = policy.rules.iter().filter(|rule| names(rule, port));
        rules.any(|rule| policy.action == Action::Custom || rule.layer7_field().is_some())
    };
    let policies = cluster.policies.authorizations_for(&name.namespace, labels);
    let policy = policies.filter(|policy| policy.doubt.is_none()).find(needs);
    if let Some(policy) = policy {
        return Some(format!("AuthorizationPolicy {}", policy.name));
    }
    let mut requests = cluster.policies.request_authentications_for(&name.namespace, labels);
    if let Some(request) = requests.next() {
        return Some(format!("RequestAuthentication {}", request.name));
    }
    pod.http_telemetry.then(|| "telemetry".to_owned())
}

/// Whether a rule may match on a port.
fn names(rule: &Rule, port: u16) -> bool {
    let port = port.to_string();
    let mut fields = rule.fields().filter(|field| field.attribute() == Attribute::Port);
    fields.all(|field| field.values().contains(&port) != field.is_negated())
}
