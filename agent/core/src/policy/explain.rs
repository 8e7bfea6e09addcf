//! Why one connection is let in or refused: the mode in force and what set it, what every policy makes of the connection, and what
//! would change the verdict.
//!
//! Promises the verdict of [`decide`], of which the parts here are taken; nothing is judged a second way. Finding out who connects to
//! whom is left to others.

use std::{fmt, sync::Arc};

use super::{
    Action, AuthorizationPolicy, Counting, Decision, Doubt, Facts, Mode, MtlsMode, MtlsRule,
    PeerAuthentication, PolicySet, PolicyVerdict, RequestAuthentication, WorkloadPolicy, decide,
};
use crate::{
    model::{Labels, ObjectName, SpiffeId},
    reason::Reason,
};

/// A verdict and its grounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The mode of mutual TLS on the port, and what set it.
    pub mtls: MtlsOrigin,
    /// Every AuthorizationPolicy for the pod, in the order in which they are asked, then those that have no effect.
    pub policies: Vec<PolicyVerdict>,
    /// The verdict.
    pub decision: Decision,
    /// What would change it, or would not.
    pub remedies: Vec<Remedy>,
}

/// A mode of mutual TLS, what set it, and what that took the place of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MtlsOrigin {
    /// The mode in force.
    pub rule: MtlsRule,
    /// What set it.
    pub scope: MtlsScope,
    /// What else states a mode for the pod, next to hold first.
    pub overridden: Vec<Statement>,
}

/// What a PeerAuthentication states for a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// For whom.
    pub scope: MtlsScope,
    /// What it states; of an object that cannot be read the strictest.
    pub mode: Mode,
    /// The object.
    pub by: ObjectName,
}

/// For whom a mode is stated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MtlsScope {
    /// For one port of the pods that an object selects.
    Port,
    /// For the pods that an object selects.
    Workload,
    /// For a namespace.
    Namespace,
    /// For the mesh.
    Mesh,
    /// Nothing states one.
    Default,
    /// Policies may be missing, and the strictest counts.
    Unknown,
}

/// A change, and the verdict that would follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remedy {
    /// The change.
    pub what: What,
    /// The verdict then.
    pub then: Decision,
}

/// A change that bears on a verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// This AuthorizationPolicy is taken away.
    Without(ObjectName),
    /// This AuthorizationPolicy, which is a dry run, is put in force.
    InForce(ObjectName),
    /// The mode of mutual TLS on this port becomes PERMISSIVE.
    Permissive(u16),
    /// The mode of mutual TLS on this port becomes STRICT.
    Strict(u16),
    /// The client comes in mutual TLS, as this identity.
    MutualTls(SpiffeId),
    /// A field of a rule of an ALLOW policy holds for what the connection has.
    Field {
        /// The policy.
        policy: ObjectName,
        /// The place of the rule in it.
        rule: usize,
        /// The field, as a path from the rule.
        field: String,
        /// What the connection has.
        has: String,
    },
}

impl PolicySet {
    /// Why `facts` are let in to a pod in `namespace` with these labels, or refused. `identity` is what the client would have if it
    /// came in mutual TLS.
    pub fn explain(
        &self,
        namespace: &Arc<str>,
        labels: &Labels,
        facts: &Facts<'_>,
        identity: Option<&SpiffeId>,
    ) -> Explanation {
        let compiled = self.compile_for(namespace, labels);
        let decision = decide(&compiled, facts);
        let mut policies: Vec<PolicyVerdict> = self
            .authorizations_for(namespace, labels)
            .map(|policy| PolicyVerdict::of(policy, facts))
            .collect();
        policies.sort_by_key(|verdict| (!verdict.is_in_force(), order(verdict.policy.action)));
        let what_if = WhatIf { compiled: &compiled, policies: &policies, facts, identity };
        let remedies = what_if.remedies(&decision);
        Explanation {
            mtls: self.mtls_origin(namespace, labels, Some(facts.port)),
            policies,
            decision,
            remedies,
        }
    }

    /// The mode of mutual TLS of a pod and what set it: on a port, or where none is given, on ports for which nothing is stated.
    pub fn mtls_origin(&self, namespace: &Arc<str>, labels: &Labels, port: Option<u16>) -> MtlsOrigin {
        let (mtls, mut ports) = self.mtls_for(namespace, labels);
        let rule = port.and_then(|port| ports.remove(&port)).unwrap_or(mtls);
        let mut stated = self.statements(namespace, labels, port);
        let scope = match (&self.incomplete, stated.first()) {
            (Some(_), _) => MtlsScope::Unknown,
            (None, None) => MtlsScope::Default,
            (None, Some(_)) => stated.remove(0).scope,
        };
        MtlsOrigin { rule, scope, overridden: stated }
    }

    /// The ports for which a mode of its own is stated for a pod.
    pub fn mtls_ports(&self, namespace: &Arc<str>, labels: &Labels) -> Vec<u16> {
        self.mtls_for(namespace, labels).1.into_keys().collect()
    }

    /// The AuthorizationPolicies for a pod in `namespace` with these labels, in force or not.
    pub fn authorizations_for<'a>(
        &'a self,
        namespace: &'a str,
        labels: &'a Labels,
    ) -> impl Iterator<Item = &'a Arc<AuthorizationPolicy>> {
        self.authorizations.for_pod(&self.root_namespace, namespace, labels)
    }

    /// All AuthorizationPolicies, by name.
    pub fn authorizations(&self) -> impl Iterator<Item = &Arc<AuthorizationPolicy>> {
        self.authorizations.all()
    }

    /// All PeerAuthentications, in no order.
    pub fn peer_authentications(&self) -> impl Iterator<Item = &Arc<PeerAuthentication>> {
        self.objects.values()
    }

    /// All RequestAuthentications, by name.
    pub fn request_authentications(&self) -> impl Iterator<Item = &Arc<RequestAuthentication>> {
        self.requests.all()
    }

    /// The RequestAuthentications for a pod in `namespace` with these labels.
    pub fn request_authentications_for<'a>(
        &'a self,
        namespace: &'a str,
        labels: &'a Labels,
    ) -> impl Iterator<Item = &'a Arc<RequestAuthentication>> {
        self.requests.for_pod(&self.root_namespace, namespace, labels)
    }

    /// Whether CUSTOM policies may name this provider.
    pub fn knows_provider(&self, name: &str) -> bool {
        self.providers.contains(name)
    }

    /// The namespace whose policies speak for the mesh.
    pub fn root_namespace(&self) -> &Arc<str> {
        &self.root_namespace
    }

    /// What is stated for a pod, what holds first.
    fn statements(&self, namespace: &Arc<str>, labels: &Labels, port: Option<u16>) -> Vec<Statement> {
        let Counting { mesh, wide, selecting } = self.counting(namespace, labels);
        let statement = |scope, policy: &Arc<PeerAuthentication>, mode| Statement {
            scope,
            mode,
            by: policy.name.clone(),
        };
        let of_port = selecting
            .and_then(|policy| Some(statement(MtlsScope::Port, policy, *policy.port_modes.get(&port?)?)));
        let scopes =
            [(MtlsScope::Workload, selecting), (MtlsScope::Namespace, wide), (MtlsScope::Mesh, mesh)];
        let others = scopes.into_iter().filter_map(|(scope, policy)| {
            let policy = policy?;
            Some(statement(scope, policy, policy.mode?))
        });
        of_port.into_iter().chain(others).collect()
    }
}

impl PeerAuthentication {
    /// Whether it selects pods with these labels, wherever it may speak for pods at all.
    pub fn is_for(&self, labels: &Labels) -> bool {
        self.doubt == Some(Doubt::Scope) || self.selects(labels)
    }
}

/// The order in which actions are asked.
fn order(action: Action) -> u8 {
    match action {
        Action::Custom => 0,
        Action::Deny => 1,
        Action::Allow => 2,
        Action::Audit => 3,
    }
}

/// Verdicts under other policies, or on another connection.
struct WhatIf<'a> {
    compiled: &'a WorkloadPolicy,
    policies: &'a [PolicyVerdict],
    facts: &'a Facts<'a>,
    identity: Option<&'a SpiffeId>,
}

impl WhatIf<'_> {
    fn remedies(&self, decision: &Decision) -> Vec<Remedy> {
        let changes = match decision {
            Decision::Allow => self.to_refuse(),
            Decision::Deny(refusal) if refusal.reason == Reason::MtlsRequired => self.to_take_plaintext(),
            Decision::Deny(refusal) if refusal.reason == Reason::PolicyDenied => self.to_let_in(),
            Decision::Deny(_) => Vec::new(),
        };
        let dry_runs = self.policies.iter().filter(|verdict| verdict.policy.dry_run);
        let in_force = dry_runs.map(|verdict| What::InForce(verdict.policy.name.clone()));
        changes
            .into_iter()
            .chain(in_force)
            .map(|what| Remedy { then: self.after(&what, decision), what })
            .collect()
    }

    fn to_refuse(&self) -> Vec<What> {
        let allowing = self.policies.iter().filter(|verdict| verdict.is_allowing());
        let by = allowing.filter(|verdict| verdict.matched.is_some()).map(|verdict| &verdict.policy.name);
        let without = by.take(1).map(|name| What::Without(name.clone()));
        let strict = self.facts.peer.is_none().then_some(What::Strict(self.facts.port));
        without.chain(strict).collect()
    }

    fn to_take_plaintext(&self) -> Vec<What> {
        let identity = self.identity.map(|identity| What::MutualTls(identity.clone()));
        identity.into_iter().chain([What::Permissive(self.facts.port)]).collect()
    }

    fn to_let_in(&self) -> Vec<What> {
        let refusing = self.policies.iter().find(|verdict| verdict.refuses());
        let mut changes: Vec<What> = match refusing {
            Some(verdict) => vec![What::Without(verdict.policy.name.clone())],
            None => self.nearest().into_iter().collect(),
        };
        if self.facts.peer.is_none() {
            changes.extend(self.identity.map(|identity| What::MutualTls(identity.clone())));
        }
        changes
    }

    /// The field that fails in the rule that comes nearest, of all ALLOW policies.
    fn nearest(&self) -> Option<What> {
        let allowing = self.policies.iter().filter(|verdict| verdict.is_allowing());
        let misses = allowing.filter_map(|verdict| Some((&verdict.policy.name, verdict.nearest.as_ref()?)));
        let (policy, miss) = misses.min_by_key(|(_, miss)| miss.failing)?;
        (!miss.needs_layer7).then(|| What::Field {
            policy: policy.clone(),
            rule: miss.rule,
            field: miss.field.clone(),
            has: miss.has.clone(),
        })
    }

    /// The verdict after a change.
    fn after(&self, what: &What, before: &Decision) -> Decision {
        let in_force = |but: &ObjectName, then: bool| {
            let policies = self.policies.iter().map(|verdict| &verdict.policy);
            let policies = policies.filter(|policy| if policy.name == *but { then } else { !policy.dry_run });
            WorkloadPolicy {
                authorization: self.compiled.authorization.with(policies),
                ..self.compiled.clone()
            }
        };
        match what {
            What::Without(name) => decide(&in_force(name, false), self.facts),
            What::InForce(name) => decide(&in_force(name, true), self.facts),
            What::Permissive(port) => decide(&self.with_mode(*port, MtlsMode::Permissive), self.facts),
            What::Strict(port) => decide(&self.with_mode(*port, MtlsMode::Strict), self.facts),
            What::MutualTls(identity) => {
                decide(self.compiled, &Facts { peer: Some(identity), ..*self.facts })
            }
            What::Field { policy, rule, .. } => {
                let verdict = self.policies.iter().find(|verdict| verdict.policy.name == *policy);
                let miss = verdict.and_then(|verdict| verdict.nearest.as_ref());
                // A field that holds beside others that do not changes nothing.
                match miss.is_some_and(|miss| miss.rule == *rule && miss.failing == 1) {
                    true => Decision::Allow,
                    false => before.clone(),
                }
            }
        }
    }

    fn with_mode(&self, port: u16, mode: MtlsMode) -> WorkloadPolicy {
        let mut policy = self.compiled.clone();
        policy.port_mtls.insert(port, MtlsRule { mode, by: None, doubtful: false });
        policy
    }
}

impl fmt::Display for MtlsScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Port => "port",
            Self::Workload => "workload",
            Self::Namespace => "namespace",
            Self::Mesh => "mesh",
            Self::Default => "default",
            Self::Unknown => "unknown",
        })
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Without(name) => write!(f, "without AuthorizationPolicy {name}"),
            Self::InForce(name) => write!(f, "with AuthorizationPolicy {name}, now a dry run, in force"),
            Self::Permissive(port) => write!(f, "with mutual TLS PERMISSIVE on port {port}"),
            Self::Strict(port) => write!(f, "with mutual TLS STRICT on port {port}"),
            Self::MutualTls(identity) => write!(f, "in mutual TLS, as {identity}"),
            Self::Field { policy, rule, field, has } => {
                write!(f, "if rules[{rule}].{field} of AuthorizationPolicy {policy} held for {has}")
            }
        }
    }
}

#[cfg(test)]
mod tests;
