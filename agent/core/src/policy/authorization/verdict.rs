//! The AuthorizationPolicies of one workload, and the verdict by them: what refuses goes first, then what allows. Judging
//! allocates nothing; only the words of a refusal are made when there is one.

use std::{fmt, sync::Arc};

use super::{Action, AuthorizationPolicy, Field, Shortfall};
use crate::{
    policy::Facts,
    reason::{Reason, Refusal},
};

/// What is for one workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::policy) struct Authorization {
    /// CUSTOM, then DENY.
    refusing: Arc<[Arc<AuthorizationPolicy>]>,
    /// Where there is one, only what one of them matches is let in.
    allowing: Arc<[Arc<AuthorizationPolicy>]>,
}

/// Why a connection is not let in.
pub(super) enum No<'a> {
    /// This policy refuses it, by its rule at this place.
    Matched(&'a AuthorizationPolicy, usize),
    /// No ALLOW policy matches it.
    NotAllowed,
}

/// The rule of an ALLOW policy that comes nearest to a match.
struct Nearest<'a> {
    policy: &'a AuthorizationPolicy,
    at: usize,
    shortfall: Shortfall<'a>,
}

impl Authorization {
    /// Of these policies.
    pub(in crate::policy) fn of<'a>(
        policies: impl IntoIterator<Item = &'a Arc<AuthorizationPolicy>>,
    ) -> Self {
        let (mut custom, mut deny, mut allow) = (Vec::new(), Vec::new(), Vec::new());
        for policy in policies {
            match policy.action {
                Action::Custom => custom.push(Arc::clone(policy)),
                Action::Deny => deny.push(Arc::clone(policy)),
                Action::Allow => allow.push(Arc::clone(policy)),
                Action::Audit => {}
            }
        }
        custom.append(&mut deny);
        Self { refusing: custom.into(), allowing: allow.into() }
    }

    /// The refusal of a connection to a pod in `namespace`, if it is refused.
    pub(in crate::policy) fn refusal(&self, namespace: &str, facts: &Facts<'_>) -> Option<Refusal> {
        let who = Who(facts);
        Some(match self.judge(facts)? {
            No::Matched(policy, at) => matched(policy, at, &who),
            No::NotAllowed => self.not_allowed(namespace, facts, &who),
        })
    }

    pub(super) fn judge(&self, facts: &Facts<'_>) -> Option<No<'_>> {
        let matched = |policy: &'_ Arc<AuthorizationPolicy>| policy.matching(facts);
        for policy in self.refusing.iter() {
            if let Some(at) = matched(policy) {
                return Some(No::Matched(policy, at));
            }
        }
        let allowed =
            self.allowing.is_empty() || self.allowing.iter().any(|policy| matched(policy).is_some());
        (!allowed).then_some(No::NotAllowed)
    }

    fn not_allowed(&self, namespace: &str, facts: &Facts<'_>, who: &Who<'_>) -> Refusal {
        let refused =
            format!("{who}: ALLOW policies exist for the pod in namespace {namespace}, and none allows it");
        let rules = self
            .allowing
            .iter()
            .flat_map(|policy| policy.rules.iter().enumerate().map(move |(at, rule)| (&**policy, at, rule)));
        let nearest = rules
            .map(|(policy, at, rule)| Nearest { policy, at, shortfall: rule.shortfall(facts) })
            .min_by_key(|nearest| nearest.shortfall.fields);
        let Some(Nearest { policy, at, shortfall }) = nearest else {
            let none = self.allowing.first();
            let name = none.map(|policy| policy.name.to_string());
            let doubt = none.map_or("", |policy| doubt(policy));
            let by = name.as_deref().unwrap_or_default();
            let text = format!("{refused}: AuthorizationPolicy {by} has no rule{doubt}");
            return Refusal { policy: name.map(Arc::from), ..Refusal::new(Reason::PolicyDenied, text) };
        };
        let why = match shortfall.first {
            Some(field) if field.needs_layer7() => {
                format!("{} can only be known within HTTP, which is not read", field.name())
            }
            Some(field) => format!("{} does not hold", Field::name(field)),
            None => "it does not match".to_owned(),
        };
        let text = format!(
            "{refused}; nearest is AuthorizationPolicy {} rules[{at}]: {why}{}",
            policy.name,
            doubt(policy)
        );
        let field = shortfall.first.map(|field| field.name().into());
        Refusal { field, ..refusal(policy, at, text) }
    }
}

fn matched(policy: &AuthorizationPolicy, at: usize, who: &Who<'_>) -> Refusal {
    let name = &policy.name;
    let by = match policy.action {
        Action::Custom => "CUSTOM AuthorizationPolicy, whose provider cannot be asked,",
        Action::Deny | Action::Allow | Action::Audit => "AuthorizationPolicy",
    };
    refusal(policy, at, format!("{who}: explicitly denied by {by} {name} rules[{at}]{}", doubt(policy)))
}

fn refusal(policy: &AuthorizationPolicy, at: usize, text: String) -> Refusal {
    Refusal {
        policy: Some(policy.name.to_string().into()),
        rule: Some(format!("rules[{at}]").into()),
        ..Refusal::new(Reason::PolicyDenied, text)
    }
}

/// What to add of a policy that cannot be read.
fn doubt(policy: &AuthorizationPolicy) -> &'static str {
    match policy.doubt {
        Some(_) => "; it cannot be read, and counts as the strictest that it may say until it can",
        None => "",
    }
}

/// The connection, as the beginning of a sentence on its refusal.
struct Who<'a>(&'a Facts<'a>);

impl fmt::Display for Who<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Facts { port, peer, source_ip, .. } = self.0;
        match peer {
            Some(peer) => write!(f, "{peer} at {source_ip} refused on port {port}"),
            None => write!(f, "plaintext from {source_ip} refused on port {port}"),
        }
    }
}
