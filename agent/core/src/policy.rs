//! The compiled policy set and the one verdict over it (spec/policy.md §1 and §2).
//!
//! Promises one answer for one set of facts, naming the object that decided. Knows nothing of discovery, sockets or
//! HTTP parsing; objects arrive validated.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use crate::model::{Labels, ObjectName, SpiffeId};

/// The PeerAuthentication objects in force, compiled. Cheap to clone; readers take a snapshot.
///
/// The default set has no root namespace, so that no object in it is mesh-wide; see [`Policies::new`].
#[derive(Clone, Debug, Default)]
pub struct Policies {
    root_namespace: Arc<str>,
    objects: Arc<HashMap<ObjectName, Arc<PeerAuthentication>>>,
    namespaces: Arc<HashMap<Arc<str>, Scope>>,
}

/// The objects of one namespace, each list in the order of precedence.
#[derive(Clone, Debug, Default)]
struct Scope {
    wide: Vec<Arc<PeerAuthentication>>,
    selecting: Vec<Arc<PeerAuthentication>>,
}

/// One valid PeerAuthentication (spec/policy.md §2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAuthentication {
    /// Namespace and name. The name has no meaning beyond ties.
    pub name: ObjectName,
    /// `metadata.creationTimestamp` in seconds since 1970. Absent (a manifest that no API server has seen) counts as
    /// newer than every timestamp.
    pub created: Option<i64>,
    /// `spec.selector.matchLabels`; empty means the whole namespace, or the whole mesh in the root namespace.
    pub selector: Labels,
    /// `spec.mtls.mode`; `None` when absent or UNSET: inherited.
    pub mode: Option<Mode>,
    /// `spec.portLevelMtls` by the pod's own port; entries that are UNSET are left out.
    pub port_modes: BTreeMap<u16, Mode>,
}

/// A mode as an object states it. UNSET is the absence of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Accept plaintext beside mutual TLS.
    Permissive,
    /// Accept only mutual TLS.
    Strict,
    /// As [`Mode::Permissive`]: a node proxy cannot refuse the tunnel (spec/policy.md §2.2).
    Disable,
}

/// `mtls.mode` of a PeerAuthentication as it is in force for one port (spec/policy.md §2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MtlsMode {
    /// Plaintext is accepted beside mutual TLS.
    Permissive,
    /// Only mutual TLS is accepted.
    Strict,
}

/// What a verdict is taken over: one inbound connection.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Namespace of the receiving pod.
    pub namespace: &'a str,
    /// Labels of the receiving pod.
    pub labels: &'a Labels,
    /// The pod's own (target) port.
    pub port: u16,
    /// The peer's verified identity; `None` for plaintext.
    pub peer: Option<&'a SpiffeId>,
    /// The client's address.
    pub source_ip: IpAddr,
}

/// The answer for one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Let it through.
    Allow,
    /// Refuse it, and say why.
    Deny(Denial),
}

/// Why a connection is refused, for logs, metrics and the DENY frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// The policy object that decided, if one did.
    pub policy: Option<ObjectName>,
    /// One sentence for an operator.
    pub text: Arc<str>,
}

/// The verdict for one connection under `policies`.
pub fn decide(policies: &Policies, facts: &Facts<'_>) -> Verdict {
    if facts.peer.is_some() {
        return Verdict::Allow;
    }
    match policies.mtls_mode(facts.namespace, facts.labels, facts.port) {
        (MtlsMode::Permissive, _) => Verdict::Allow,
        (MtlsMode::Strict, policy) => Verdict::Deny(plaintext_denial(policy, facts)),
    }
}

impl Policies {
    /// How many policy objects are in force.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// An empty set; objects in `root_namespace` speak for the whole mesh.
    pub fn new(root_namespace: impl Into<Arc<str>>) -> Self {
        Self { root_namespace: root_namespace.into(), ..Self::default() }
    }

    /// Takes an object into force, in place of the one of the same name.
    pub fn upsert(&mut self, policy: Arc<PeerAuthentication>) {
        self.remove(&policy.name);
        let namespaces = Arc::make_mut(&mut self.namespaces);
        let list = namespaces.entry(Arc::clone(&policy.name.namespace)).or_default().list_of(&policy);
        list.insert(position(list, &policy), Arc::clone(&policy));
        Arc::make_mut(&mut self.objects).insert(policy.name.clone(), policy);
    }

    /// Takes the object of that name out of force, if there is one.
    pub fn remove(&mut self, name: &ObjectName) {
        if !self.objects.contains_key(name) {
            return;
        }
        let Some(policy) = Arc::make_mut(&mut self.objects).remove(name) else { return };
        let namespaces = Arc::make_mut(&mut self.namespaces);
        if let Some(scope) = namespaces.get_mut(&name.namespace) {
            let list = scope.list_of(&policy);
            list.remove(position(list, &policy));
            if scope.wide.is_empty() && scope.selecting.is_empty() {
                namespaces.remove(&name.namespace);
            }
        }
    }

    /// The mode in force on `port` of a pod with these `labels`, and the object that set it; `None` is the default of a
    /// mesh without policy. Only the oldest object of each scope counts (spec/policy.md §2.1).
    pub fn mtls_mode(&self, namespace: &str, labels: &Labels, port: u16) -> (MtlsMode, Option<ObjectName>) {
        let mesh = self.namespaces.get(&*self.root_namespace).and_then(|scope| scope.wide.first());
        let own = self.namespaces.get(namespace).filter(|_| namespace != &*self.root_namespace);
        let wide = own.and_then(|scope| scope.wide.first());
        let workload = own.and_then(|scope| scope.selecting.iter().find(|policy| policy.selects(labels)));

        let on_port = workload.and_then(|policy| Some((*policy.port_modes.get(&port)?, policy)));
        let inherited =
            || [workload, wide, mesh].into_iter().flatten().find_map(|policy| Some((policy.mode?, policy)));
        match on_port.or_else(inherited) {
            None => (MtlsMode::Permissive, None),
            Some((Mode::Strict, policy)) => (MtlsMode::Strict, Some(policy.name.clone())),
            Some((Mode::Permissive | Mode::Disable, policy)) => {
                (MtlsMode::Permissive, Some(policy.name.clone()))
            }
        }
    }
}

impl Scope {
    fn list_of(&mut self, policy: &PeerAuthentication) -> &mut Vec<Arc<PeerAuthentication>> {
        if policy.selector.is_empty() { &mut self.wide } else { &mut self.selecting }
    }
}

/// Where the object is in the list, or belongs.
fn position(list: &[Arc<PeerAuthentication>], policy: &PeerAuthentication) -> usize {
    list.partition_point(|other| other.precedence() < policy.precedence())
}

impl PeerAuthentication {
    /// The full tuple of spec/policy.md §1, oldest first.
    fn precedence(&self) -> (i64, &str, &str) {
        (self.created.unwrap_or(i64::MAX), &self.name.name, &self.name.namespace)
    }

    fn selects(&self, labels: &Labels) -> bool {
        self.selector.iter().all(|(key, value)| labels.get(key) == Some(value))
    }
}

fn plaintext_denial(policy: Option<ObjectName>, facts: &Facts<'_>) -> Denial {
    let by = policy.as_ref().map_or_else(String::new, |name| format!(" by PeerAuthentication {name}"));
    let text = format!(
        "plaintext from {} refused: mutual TLS is STRICT on port {} of pods in namespace {}{by}",
        facts.source_ip, facts.port, facts.namespace
    );
    Denial { policy, text: text.into() }
}

#[cfg(test)]
mod tests;
