//! Policies as they stand in the cluster, compiled per workload, and the one verdict over the compiled form.
//!
//! Promises one answer for one set of facts, naming the object that decided, at a cost that does not grow with the policies
//! that do not apply. Knows nothing of discovery, sockets or HTTP parsing; objects arrive validated. Semantics are those
//! of Istio's security API (PeerAuthentication, AuthorizationPolicy and RequestAuthentication, `security.istio.io/v1`).

mod attachments;
mod authorization;
mod decision;
mod doubt;
mod explain;
pub mod path;
mod reach;
mod request;
mod request_authentication;

use std::{collections::BTreeMap, sync::Arc};

use rpds::HashTrieMapSync;

use self::{
    attachments::Attachments,
    authorization::{Authorization, Providers, Rehearsal},
    request_authentication::Tokens,
};
pub use self::{
    authorization::{
        Action, Attribute, AuthorizationPolicy, Context, Field, InvalidValue, Miss, PolicyVerdict, Rule,
        Target, TrustDomains,
    },
    decision::{Decision, External, Facts, Outlook, decide, external, outlook, rehearse},
    doubt::Doubt,
    explain::{Explanation, MtlsOrigin, MtlsScope, Remedy, Statement, What},
    path::PathNormalization,
    reach::Reach,
    request::{Claims, Headers, Request},
    request_authentication::{ClaimHeader, JwtRule, Keys, RequestAuthentication, TokenPlace, may_be_output},
};
use crate::model::{Labels, ObjectName, Workload};

/// The policy objects in force. Cheap to clone; readers take a snapshot.
///
/// The default set has no root namespace, so that no object in it is mesh-wide; see [`PolicySet::new`].
#[derive(Clone, Debug, Default)]
pub struct PolicySet {
    root_namespace: Arc<str>,
    objects: HashTrieMapSync<ObjectName, Arc<PeerAuthentication>>,
    namespaces: HashTrieMapSync<Arc<str>, Scope>,
    authorizations: Attachments<AuthorizationPolicy>,
    requests: Attachments<RequestAuthentication>,
    providers: Providers,
    paths: PathNormalization,
    /// Why the set may not be whole; then no plaintext is taken anywhere.
    incomplete: Option<Arc<str>>,
    /// Why AuthorizationPolicies may be missing; then nobody is let in anywhere.
    closed: Option<Arc<str>>,
}

/// The objects of one namespace, each list in the order of precedence.
#[derive(Clone, Debug, Default)]
struct Scope {
    wide: Vec<Arc<PeerAuthentication>>,
    selecting: Vec<Arc<PeerAuthentication>>,
}

/// One PeerAuthentication, or the strictest reading of one that cannot be read.
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
    /// What in it could not be read. The fields above are then the strictest that it may say.
    pub doubt: Option<Doubt>,
}

/// One step from a source: an object as it is now, or the name of one that is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A PeerAuthentication as it is now.
    PeerAuthentication(Arc<PeerAuthentication>),
    /// A PeerAuthentication is gone.
    PeerAuthenticationGone(ObjectName),
    /// An AuthorizationPolicy as it is now.
    AuthorizationPolicy(Arc<AuthorizationPolicy>),
    /// An AuthorizationPolicy is gone.
    AuthorizationPolicyGone(ObjectName),
    /// A RequestAuthentication as it is now.
    RequestAuthentication(Arc<RequestAuthentication>),
    /// A RequestAuthentication is gone.
    RequestAuthenticationGone(ObjectName),
}

/// A mode as an object states it. UNSET is the absence of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Accept plaintext beside mutual TLS.
    Permissive,
    /// Accept only mutual TLS.
    Strict,
    /// As [`Mode::Permissive`]: a node proxy cannot refuse the tunnel, and Istio's ambient mode does not either.
    Disable,
}

/// `mtls.mode` as it is in force for one port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MtlsMode {
    /// Plaintext is accepted beside mutual TLS.
    #[default]
    Permissive,
    /// Only mutual TLS is accepted.
    Strict,
}

/// A mode, and the object that set it; none is the default of a mesh without policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MtlsRule {
    /// The mode in force.
    pub mode: MtlsMode,
    /// The PeerAuthentication that says so.
    pub by: Option<ObjectName>,
    /// The object cannot be read, and this is the strictest that it may say.
    pub doubtful: bool,
}

/// What the policies make of one workload. Two that are equal decide and rehearse alike, whatever the objects behind them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkloadPolicy {
    /// Namespace of the workload.
    namespace: Arc<str>,
    mtls: MtlsRule,
    /// Ports that differ from `mtls`.
    port_mtls: BTreeMap<u16, MtlsRule>,
    authorization: Authorization,
    rehearsal: Rehearsal,
    tokens: Tokens,
    paths: PathNormalization,
    /// Why policies may be missing, if they may.
    incomplete: Option<Arc<str>>,
    /// Why AuthorizationPolicies may be missing, if they may.
    closed: Option<Arc<str>>,
}

impl PolicySet {
    /// An empty set; objects in `root_namespace` speak for the whole mesh.
    pub fn new(root_namespace: impl Into<Arc<str>>) -> Self {
        Self { root_namespace: root_namespace.into(), ..Self::default() }
    }

    /// How many policy objects are in force.
    pub fn len(&self) -> usize {
        self.objects.size() + self.authorizations.len() + self.requests.len()
    }

    /// Whether there is none, and none may be missing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0 && self.incomplete.is_none() && self.closed.is_none()
    }

    /// Whether policies may be missing, and why: until they are known, mutual TLS is STRICT on every port of every workload.
    /// Answers which workloads that may concern.
    pub fn set_incomplete(&mut self, why: Option<Arc<str>>) -> Reach {
        let differs = self.incomplete != why;
        self.incomplete = why;
        if differs { Reach::mesh() } else { Reach::default() }
    }

    /// Whether AuthorizationPolicies may be missing, and why: until they are known, nobody is let in anywhere. Answers which
    /// workloads that may concern.
    pub fn set_closed(&mut self, why: Option<Arc<str>>) -> Reach {
        let differs = self.closed != why;
        self.closed = why;
        if differs { Reach::mesh() } else { Reach::default() }
    }

    /// The external providers that CUSTOM policies may name; none at first. Answers which workloads that may concern.
    pub fn set_providers(&mut self, names: impl IntoIterator<Item = Arc<str>>) -> Reach {
        let providers = Providers::new(names);
        let differs = providers != self.providers;
        self.providers = providers;
        if differs { Reach::mesh() } else { Reach::default() }
    }

    /// How paths are rewritten before anybody judges them. Answers which workloads that may concern.
    pub fn set_paths(&mut self, mode: PathNormalization) -> Reach {
        let differs = mode != self.paths;
        self.paths = mode;
        if differs { Reach::mesh() } else { Reach::default() }
    }

    /// A service has this selector now; none if it is gone. Whoever applies an AuthorizationPolicy or a RequestAuthentication tells
    /// those of its [targets](AuthorizationPolicy::services), and what becomes of services later. Answers which workloads it may
    /// concern.
    pub fn set_service(&mut self, name: &ObjectName, selector: Option<&Labels>) -> Reach {
        let mut reach = self.authorizations.set_service(name, selector);
        reach.merge(self.requests.set_service(name, selector));
        reach
    }

    /// Takes in one change; answers which workloads it may concern.
    pub fn apply(&mut self, change: Change) -> Reach {
        match change {
            Change::PeerAuthentication(policy) => self.upsert(policy),
            Change::PeerAuthenticationGone(name) => self.remove(&name),
            Change::AuthorizationPolicy(policy) => self.authorizations.upsert(&self.root_namespace, policy),
            Change::AuthorizationPolicyGone(name) => self.authorizations.remove(&self.root_namespace, &name),
            Change::RequestAuthentication(request) => self.requests.upsert(&self.root_namespace, request),
            Change::RequestAuthenticationGone(name) => self.requests.remove(&self.root_namespace, &name),
        }
    }

    /// Takes a PeerAuthentication into force, in place of the one of the same name; answers which workloads it may concern.
    pub fn upsert(&mut self, policy: Arc<PeerAuthentication>) -> Reach {
        let mut reach = self.remove(&policy.name);
        reach.extend(&self.root_namespace, &policy);
        let namespace = Arc::clone(&policy.name.namespace);
        let mut scope = self.namespaces.get(&namespace).cloned().unwrap_or_default();
        for list in scope.lists_of(&policy) {
            list.insert(position(list, &policy), Arc::clone(&policy));
        }
        self.namespaces.insert_mut(namespace, scope);
        self.objects.insert_mut(policy.name.clone(), policy);
        reach
    }

    /// Takes the PeerAuthentication of that name out of force, if there is one; answers which workloads that may concern.
    pub fn remove(&mut self, name: &ObjectName) -> Reach {
        let mut reach = Reach::default();
        let Some(policy) = self.objects.get(name).cloned() else { return reach };
        self.objects.remove_mut(name);
        reach.extend(&self.root_namespace, &policy);
        if let Some(scope) = self.namespaces.get_mut(&name.namespace) {
            for list in scope.lists_of(&policy) {
                list.remove(position(list, &policy));
            }
            if scope.wide.is_empty() && scope.selecting.is_empty() {
                self.namespaces.remove_mut(&name.namespace);
            }
        }
        reach
    }

    /// What the policies make of `workload`.
    pub fn compile(&self, workload: &Workload) -> Arc<WorkloadPolicy> {
        Arc::new(self.compile_for(&workload.name.namespace, &workload.labels))
    }

    /// The same for any pod in `namespace` with these `labels`. Of PeerAuthentications only the oldest of each scope counts, as
    /// in Istio: the mesh, the namespace, and the objects that select the pod. AuthorizationPolicies count all.
    pub fn compile_for(&self, namespace: &Arc<str>, labels: &Labels) -> WorkloadPolicy {
        let (rehearsed, enforced): (Vec<_>, Vec<_>) = self
            .authorizations_for(namespace, labels)
            .cloned()
            .partition(|policy| policy.dry_run || policy.action == Action::Audit);
        let (mtls, port_mtls) = self.mtls_for(namespace, labels);
        WorkloadPolicy {
            namespace: Arc::clone(namespace),
            mtls,
            port_mtls,
            authorization: Authorization::of(&enforced, &self.providers),
            rehearsal: Rehearsal::of(&enforced, rehearsed, &self.providers),
            tokens: Tokens::of(self.request_authentications_for(namespace, labels)),
            paths: self.paths,
            incomplete: self.incomplete.clone(),
            closed: self.closed.clone(),
        }
    }
}

/// The PeerAuthentications that count for one workload: of each scope the oldest.
struct Counting<'a> {
    mesh: Option<&'a Arc<PeerAuthentication>>,
    wide: Option<&'a Arc<PeerAuthentication>>,
    selecting: Option<&'a Arc<PeerAuthentication>>,
}

impl PolicySet {
    /// The mode of mutual TLS for any pod in `namespace` with these `labels`, and ports that differ from it.
    fn mtls_for(&self, namespace: &Arc<str>, labels: &Labels) -> (MtlsRule, BTreeMap<u16, MtlsRule>) {
        if self.incomplete.is_some() {
            return (MtlsRule { mode: MtlsMode::Strict, by: None, doubtful: true }, BTreeMap::new());
        }
        let Counting { mesh, wide, selecting } = self.counting(namespace, labels);
        let inherited =
            [selecting, wide, mesh].into_iter().flatten().find_map(|policy| Some(policy.rule(policy.mode?)));
        let ports = selecting
            .into_iter()
            .flat_map(|policy| policy.port_modes.iter().map(move |(port, mode)| (*port, policy.rule(*mode))));
        (inherited.unwrap_or_default(), ports.collect())
    }

    fn counting(&self, namespace: &Arc<str>, labels: &Labels) -> Counting<'_> {
        let own = self.namespaces.get(namespace).filter(|_| *namespace != self.root_namespace);
        Counting {
            mesh: self.namespaces.get(&self.root_namespace).and_then(|scope| scope.wide.first()),
            wide: own.and_then(|scope| scope.wide.first()),
            selecting: own.and_then(|scope| scope.selecting.iter().find(|policy| policy.selects(labels))),
        }
    }
}

impl WorkloadPolicy {
    /// Whether only mutual TLS is accepted on one of the workload's own ports.
    pub fn is_strict(&self, port: u16) -> bool {
        self.mtls(port).mode == MtlsMode::Strict
    }

    /// Whether `other` would have the same rehearsed, and beside the same policies.
    pub fn rehearses_as(&self, other: &Self) -> bool {
        self.rehearsal == other.rehearsal
    }

    /// The issuers of all RequestAuthentications for the workload, sorted by name. Where there is none, tokens are ignored.
    pub fn tokens(&self) -> &[Arc<JwtRule>] {
        &self.tokens.rules
    }

    /// How the paths of requests to the workload are rewritten before anybody judges and forwards them.
    pub fn paths(&self) -> PathNormalization {
        self.paths
    }

    /// The mode in force on one of the workload's own ports.
    pub fn mtls(&self, port: u16) -> &MtlsRule {
        self.port_mtls.get(&port).unwrap_or(&self.mtls)
    }
}

impl Scope {
    /// An object of which the selector cannot be read may speak for the namespace, and may select any pod of it.
    fn lists_of(
        &mut self,
        policy: &PeerAuthentication,
    ) -> impl Iterator<Item = &mut Vec<Arc<PeerAuthentication>>> {
        let anywhere = policy.doubt == Some(Doubt::Scope);
        let wide = (anywhere || policy.selector.is_empty()).then_some(&mut self.wide);
        let selecting = (anywhere || !policy.selector.is_empty()).then_some(&mut self.selecting);
        wide.into_iter().chain(selecting)
    }
}

/// Where the object is in the list, or belongs.
fn position(list: &[Arc<PeerAuthentication>], policy: &PeerAuthentication) -> usize {
    list.partition_point(|other| other.precedence() < policy.precedence())
}

impl PeerAuthentication {
    /// Oldest first; timestamps count seconds, so ties are common, and the names decide them.
    pub(crate) fn precedence(&self) -> (i64, &str, &str) {
        (self.created.unwrap_or(i64::MAX), &self.name.name, &self.name.namespace)
    }

    fn selects(&self, labels: &Labels) -> bool {
        self.selector.iter().all(|(key, value)| labels.get(key) == Some(value))
    }

    fn rule(&self, mode: Mode) -> MtlsRule {
        let mode = match mode {
            Mode::Strict => MtlsMode::Strict,
            Mode::Permissive | Mode::Disable => MtlsMode::Permissive,
        };
        MtlsRule { mode, by: Some(self.name.clone()), doubtful: self.doubt.is_some() }
    }
}

#[cfg(test)]
mod tests;
