//! The AuthorizationPolicies of one workload, and the verdict by them: what refuses goes first, then what allows. Judging
//! allocates nothing; only the words of a refusal are made when there is one.

use std::{
    fmt::{self, Write},
    sync::Arc,
};

use super::{
    Action, Attribute, AuthorizationPolicy, Field, Holds, Providers, Rule, Shortfall, Signs, external::Asked,
};
use crate::{
    model::ObjectName,
    policy::{External, Facts},
    reason::{Reason, Refusal},
};

/// Bytes that nearly all sentences fit into.
const MOST_SENTENCES: usize = 384;

/// What is for one workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::policy) struct Authorization {
    custom: Ordered,
    deny: Ordered,
    /// Where there is one, only what one of them matches is let in.
    allow: Ordered,
    asked: Asked,
    providers: Providers,
}

/// Policies of one action, and their rules side by side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Ordered {
    policies: Arc<[Named]>,
    rules: Arc<[Entry]>,
}

/// A policy, and its name as refusals have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Named {
    policy: Arc<AuthorizationPolicy>,
    name: Arc<str>,
}

/// A rule by its place, and its signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    signs: Signs,
    policy: u32,
    rule: u32,
}

/// Why a connection is not let in.
pub(super) enum No<'a> {
    /// This policy refuses it, by its rule at this place.
    Matched(&'a Named, usize),
    /// No ALLOW policy matches it.
    NotAllowed,
}

/// What is known of a verdict before it is known what a connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::policy) enum Prospect {
    Refused,
    LetIn,
    Open,
}

/// The rule of an ALLOW policy that comes nearest to a match.
struct Nearest<'a> {
    policy: &'a Named,
    at: usize,
    shortfall: Shortfall<'a>,
}

impl Authorization {
    /// Of these policies, where an installation has these providers.
    pub(in crate::policy) fn of<'a>(
        policies: impl IntoIterator<Item = &'a Arc<AuthorizationPolicy>>,
        providers: &Providers,
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
        let asked = Asked::by(&custom, providers);
        let [custom, deny, allow] = [custom, deny, allow].map(Ordered::new);
        Self { custom, deny, allow, asked, providers: providers.clone() }
    }

    /// The same of other policies.
    pub(in crate::policy) fn with<'a>(
        &self,
        policies: impl IntoIterator<Item = &'a Arc<AuthorizationPolicy>>,
    ) -> Self {
        Self::of(policies, &self.providers)
    }

    /// The refusal of a connection to a pod in `namespace`, if it is refused.
    pub(in crate::policy) fn refusal(&self, namespace: &str, facts: &Facts<'_>) -> Option<Refusal> {
        Some(match self.judge(facts)? {
            No::Matched(policy, at) => self.matched(policy, at, facts),
            No::NotAllowed => self.not_allowed(namespace, facts),
        })
    }

    pub(super) fn judge(&self, facts: &Facts<'_>) -> Option<No<'_>> {
        if self.is_empty() {
            return None;
        }
        let signs = Signs::of(facts);
        let passed = |policy: &AuthorizationPolicy| facts.admitted && self.asked.about(policy).is_ok();
        let custom = self.custom.matching(signs, facts).find(|(named, _)| !passed(&named.policy));
        if let Some((policy, at)) = custom.or_else(|| self.deny.matching(signs, facts).next()) {
            return Some(No::Matched(policy, at));
        }
        let allowed = self.allow.policies.is_empty() || self.allow.matching(signs, facts).next().is_some();
        (!allowed).then_some(No::NotAllowed)
    }

    /// Whom CUSTOM policies have asked.
    pub(in crate::policy) fn external(&self, facts: &Facts<'_>) -> External {
        if self.custom.policies.is_empty() {
            return External::Nobody;
        }
        let mut answer = External::Nobody;
        for (policy, rule) in self.custom.matching(Signs::of(facts), facts) {
            match self.asked.about(&policy.policy) {
                Err(_) => return External::Refused(self.matched(policy, rule, facts)),
                Ok(provider) if answer == External::Nobody => {
                    let policy = policy.policy.name.clone();
                    answer = External::Ask { provider: Arc::clone(provider), policy, rule };
                }
                Ok(_) => {}
            }
        }
        answer
    }

    /// What is known of the verdict whatever the connection carries.
    pub(in crate::policy) fn prospect(&self, facts: &Facts<'_>) -> Prospect {
        if self.is_empty() {
            return Prospect::LetIn;
        }
        let signs = Signs::of(facts);
        let holds =
            |(Named { policy, .. }, at): (&Named, usize)| policy.rules[at].will_match(policy.action, facts);
        let most = |rules: &Ordered| rules.candidates(signs).map(holds).max();
        let refusing = most(&self.deny);
        let allowing = if self.allow.policies.is_empty() { Some(Holds::Surely) } else { most(&self.allow) };
        let allowing = allowing.unwrap_or(Holds::Never);
        let asks = most(&self.custom).is_some_and(|holds| holds != Holds::Never);
        if refusing == Some(Holds::Surely) || allowing == Holds::Never {
            Prospect::Refused
        } else if asks || refusing == Some(Holds::Perhaps) || allowing == Holds::Perhaps {
            Prospect::Open
        } else {
            Prospect::LetIn
        }
    }

    fn is_empty(&self) -> bool {
        [&self.custom, &self.deny, &self.allow].iter().all(|ordered| ordered.policies.is_empty())
    }

    fn matched(&self, named: &Named, at: usize, facts: &Facts<'_>) -> Refusal {
        let Named { policy, name } = named;
        let (who, doubt) = (Who(facts), doubt(policy));
        let text = match (policy.action, self.asked.about(policy)) {
            (Action::Custom, Ok(provider)) => sentence(format_args!(
                "{who}: provider {provider} of CUSTOM AuthorizationPolicy {name} rules[{at}] has not let it in"
            )),
            (Action::Custom, Err(why)) => sentence(format_args!(
                "{who}: CUSTOM AuthorizationPolicy {name} rules[{at}] matches, and nobody can be asked about it: {why}{doubt}"
            )),
            _ => sentence(format_args!(
                "{who}: explicitly denied by AuthorizationPolicy {name} rules[{at}]{doubt}"
            )),
        };
        refusal(named, Some(at), text)
    }

    fn not_allowed(&self, namespace: &str, facts: &Facts<'_>) -> Refusal {
        let who = Who(facts);
        let nearest = self.nearest(facts);
        let first = self.allow.policies.first();
        let Some(named) = nearest.as_ref().map(|nearest| nearest.policy).or(first) else {
            return Refusal::new(Reason::PolicyDenied, sentence(format_args!("{who}")));
        };
        let (name, doubt) = (&named.name, doubt(&named.policy));
        let Some(Nearest { at, shortfall, .. }) = nearest else {
            let text = sentence(format_args!(
                "{who}: ALLOW policies exist for the pod in namespace {namespace}, and none allows it: AuthorizationPolicy \
                 {name} has no rule{doubt}"
            ));
            return refusal(named, None, text);
        };
        let lack = Lack { field: shortfall.first, facts };
        let text = sentence(format_args!(
            "{who}: ALLOW policies exist for the pod in namespace {namespace}, and none allows it; nearest is \
             AuthorizationPolicy {name} rules[{at}]: {lack}{doubt}"
        ));
        let field = shortfall.first.map(|field| Arc::clone(field.shared_name()));
        Refusal { field, ..refusal(named, Some(at), text) }
    }

    fn nearest(&self, facts: &Facts<'_>) -> Option<Nearest<'_>> {
        let mut nearest: Option<Nearest<'_>> = None;
        let signs = Signs::of(facts);
        for named in self.allow.policies.iter() {
            for (at, rule) in named.policy.rules.iter().enumerate() {
                let shortfall = rule.shortfall(facts, signs);
                let closer = |nearest: &Nearest<'_>| shortfall.fields < nearest.shortfall.fields;
                if nearest.as_ref().is_none_or(closer) {
                    // None matches, so that nothing can come nearer.
                    let nearest_of_all = shortfall.fields <= 1;
                    nearest = Some(Nearest { policy: named, at, shortfall });
                    if nearest_of_all {
                        return nearest;
                    }
                }
            }
        }
        nearest
    }
}

impl Ordered {
    fn new(policies: Vec<Arc<AuthorizationPolicy>>) -> Self {
        let rules = policies.iter().enumerate().flat_map(|(at, policy)| {
            policy.rules.iter().enumerate().map(move |(rule, Rule { signs, .. })| Entry {
                signs: *signs,
                policy: at as u32,
                rule: rule as u32,
            })
        });
        let rules = rules.collect();
        let name =
            |ObjectName { namespace, name, .. }: &ObjectName| [&**namespace, "/", name].concat().into();
        let named = policies.into_iter().map(|policy| Named { name: name(&policy.name), policy });
        Self { rules, policies: named.collect() }
    }

    /// The rules that may match, with their places.
    fn candidates(&self, signs: Signs) -> impl Iterator<Item = (&Named, usize)> {
        let near = self.rules.iter().filter(move |entry| entry.signs.meet(signs));
        near.map(|entry| (&self.policies[entry.policy as usize], entry.rule as usize))
    }

    /// The rules that match, with their places.
    fn matching(&self, signs: Signs, facts: &Facts<'_>) -> impl Iterator<Item = (&Named, usize)> {
        let matches =
            |Named { policy, .. }: &Named, at: usize| policy.rules[at].matches(policy.action, facts);
        self.candidates(signs).filter(move |(named, at)| matches(named, *at))
    }
}

fn refusal(named: &Named, at: Option<usize>, text: Arc<str>) -> Refusal {
    Refusal {
        policy: Some(Arc::clone(&named.name)),
        rule: at.map(|at| format!("rules[{at}]").into()),
        ..Refusal::new(Reason::PolicyDenied, text)
    }
}

/// Written in one go.
fn sentence(words: fmt::Arguments<'_>) -> Arc<str> {
    let mut text = String::with_capacity(MOST_SENTENCES);
    // Memory is all that a text can lack.
    let _ = text.write_fmt(words);
    text.into()
}

/// What to add of a policy that cannot be read.
fn doubt(policy: &AuthorizationPolicy) -> &'static str {
    match policy.doubt {
        Some(_) => "; it cannot be read, and counts as the strictest that it may say until it can",
        None => "",
    }
}

/// Why a rule of an ALLOW policy does not let somebody in: for this field.
struct Lack<'a> {
    field: Option<&'a Field>,
    facts: &'a Facts<'a>,
}

impl fmt::Display for Lack<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { field, facts } = self;
        let Some(field) = field else { return f.write_str("it does not match") };
        f.write_str(field.name())?;
        f.write_str(match field.unmet(facts) {
            Some(Attribute::Unsupported) => " is not supported: a rule with it lets nobody in",
            Some(Attribute::Sni) => " can only be known of TLS that the application speaks",
            Some(_) => " can only be known of a request, and none of HTTP is read here",
            None => " does not hold",
        })
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
