//! What is asked about one connection or request, and answered by the policies of one workload.
//!
//! Promises that the answers agree: what [`outlook`] foresees is what [`decide`] says, whatever comes.

use std::{net::IpAddr, sync::Arc};

use super::{AuthorizationPolicy, MtlsMode, MtlsRule, Request, WorkloadPolicy, authorization::Prospect};
use crate::{
    model::{ObjectName, SpiffeId},
    reason::{Reason, Refusal, Rehearsed},
};

/// What a verdict is taken over: one inbound connection, or one request on it.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The pod's own (target) port.
    pub port: u16,
    /// The peer's verified identity; `None` for plaintext.
    pub peer: Option<&'a SpiffeId>,
    /// The client's address.
    pub source_ip: IpAddr,
    /// The pod's own address.
    pub destination_ip: IpAddr,
    /// The request that the verdict is on; `None` for a connection of which none is known.
    pub request: Option<&'a Request<'a>>,
    /// The external provider that CUSTOM policies name has let it in.
    pub admitted: bool,
    /// The name of the server that the application's own TLS asks for; empty where it speaks none, or asks for none. `None` while
    /// nobody has looked.
    pub sni: Option<&'a str>,
}

/// What can be said of a connection before anything of it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outlook {
    /// The same verdict for whatever it may carry.
    Same(Decision),
    /// It depends on the requests that it carries, or they have to be changed on their way.
    PerRequest,
}

/// Whether an external provider has to be asked before the verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum External {
    /// No CUSTOM policy matches.
    Nobody,
    /// This one, for this policy.
    Ask {
        /// As `spec.provider.name` has it.
        provider: Arc<str>,
        /// The policy whose rule matches.
        policy: ObjectName,
        /// The place of that rule.
        rule: usize,
    },
    /// None can be asked: the connection or request is refused.
    Refused(Refusal),
}

/// The answer for one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Let it through.
    Allow,
    /// Refuse it, and say why.
    Deny(Refusal),
}

/// The verdict on one connection, or request, to the workload that `policy` was compiled for: PeerAuthentication first, which no
/// AuthorizationPolicy can override. To let a connection in allocates nothing.
pub fn decide(policy: &WorkloadPolicy, facts: &Facts<'_>) -> Decision {
    let rule = policy.mtls(facts.port);
    if facts.peer.is_none() && rule.mode == MtlsMode::Strict {
        return Decision::Deny(mtls_required(policy, rule, facts));
    }
    if let Some(why) = &policy.closed {
        let text = format!(
            "nobody is let in to pods in namespace {}, because not all policies are known: {why}",
            policy.namespace
        );
        return Decision::Deny(Refusal::new(Reason::NotReady, text));
    }
    if let Some(name) = policy.tokens.unreadable.as_ref().filter(|_| facts.request.is_some()) {
        return Decision::Deny(unreadable(name));
    }
    match policy.authorization.refusal(&policy.namespace, facts) {
        None => Decision::Allow,
        Some(refusal) => Decision::Deny(refusal),
    }
}

/// What can be said of a connection of which no request is known yet, and of which nobody has looked for TLS: the same verdict only if
/// that is the answer of [`decide`] whatever it carries, and whatever a provider says. Never [`Outlook::Same`] with
/// [`Decision::Allow`] where a request may be refused, a token has to be judged, a provider asked, or a rehearsal needs requests.
pub fn outlook(policy: &WorkloadPolicy, facts: &Facts<'_>) -> Outlook {
    let needs_mtls = facts.peer.is_none() && policy.is_strict(facts.port);
    if needs_mtls || policy.closed.is_some() {
        return Outlook::Same(decide(policy, facts));
    }
    match policy.authorization.prospect(facts) {
        // Of what refuses in any case, what has nobody asked is named.
        Prospect::Refused => Outlook::Same(decide(policy, &Facts { admitted: true, ..*facts })),
        Prospect::LetIn if policy.tokens.is_empty() && !policy.rehearsal.is_open(facts) => {
            Outlook::Same(Decision::Allow)
        }
        Prospect::LetIn | Prospect::Open => Outlook::PerRequest,
    }
}

/// Whom to ask about a connection, or about the request on it, before tokens are judged and [`decide`] is called: what `facts`
/// hold of a token does not count, as CUSTOM policies do not go by identities. If the provider lets it in, `facts.admitted` is to be
/// set for [`decide`].
pub fn external(policy: &WorkloadPolicy, facts: &Facts<'_>) -> External {
    policy.authorization.external(facts)
}

/// What policies that are not in force would make of one connection: AUDIT, and those marked as dry-run, which are taken
/// together, as if all of them were in force. `tell` hears of each that is for the pod once. Answers the refusal of a
/// connection that is let in as things stand and would not be. Never part of a verdict; costs nothing where there is no such policy.
pub fn rehearse(
    policy: &WorkloadPolicy,
    facts: &Facts<'_>,
    tell: impl FnMut(&AuthorizationPolicy, Rehearsed),
) -> Option<Refusal> {
    let needs_mtls = facts.peer.is_none() && policy.is_strict(facts.port);
    if policy.rehearsal.is_empty() || needs_mtls || policy.closed.is_some() {
        return None;
    }
    policy.rehearsal.run(&policy.authorization, &policy.namespace, facts, tell)
}

fn mtls_required(policy: &WorkloadPolicy, rule: &MtlsRule, facts: &Facts<'_>) -> Refusal {
    let WorkloadPolicy { namespace, incomplete, .. } = policy;
    let by = rule.by.as_ref().map(ToString::to_string);
    let because = match (&by, incomplete) {
        (_, Some(why)) => format!(", because not all policies are known: {why}"),
        (Some(name), None) if rule.doubtful => {
            format!(" by PeerAuthentication {name}, which cannot be read and counts as STRICT until it can")
        }
        (Some(name), None) => format!(" by PeerAuthentication {name}"),
        (None, None) => String::new(),
    };
    let text = format!(
        "plaintext from {} refused: mutual TLS is STRICT on port {} of pods in namespace {namespace}{because}",
        facts.source_ip, facts.port
    );
    Refusal { policy: by.map(Arc::from), ..Refusal::new(Reason::MtlsRequired, text) }
}

fn unreadable(name: &ObjectName) -> Refusal {
    let text = format!(
        "RequestAuthentication {name} cannot be read: no request is taken until it can, as nobody knows which tokens it demands"
    );
    Refusal { policy: Some(name.to_string().into()), ..Refusal::new(Reason::PolicyDenied, text) }
}
