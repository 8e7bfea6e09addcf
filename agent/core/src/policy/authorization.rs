//! AuthorizationPolicy: who may connect to which pods, as an object says it, and as it is compiled for one workload.
//!
//! Promises that what cannot be known of a connection never opens it: without a request, an ALLOW rule that names an attribute of
//! HTTP matches nothing, and a DENY rule matches by the rest of it. Semantics are those of Istio's sidecars
//! (<https://istio.io/latest/docs/reference/config/security/authorization-policy/>); objects arrive validated.

mod explain;
mod external;
mod field;
mod http_value;
mod rehearsal;
mod sieve;
mod value;
mod verdict;

use std::sync::Arc;

pub use self::{
    explain::{Miss, PolicyVerdict},
    field::{Attribute, Context, Field},
    value::{InvalidValue, TrustDomains},
};
pub(super) use self::{
    external::Providers,
    rehearsal::Rehearsal,
    verdict::{Authorization, Prospect},
};
use self::{
    field::{Holds, Needs},
    sieve::Signs,
};
use super::{Doubt, Facts};
use crate::model::{Labels, ObjectName};

/// One AuthorizationPolicy, or the strictest reading of one that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizationPolicy {
    /// Namespace and name. The name has no meaning.
    pub name: ObjectName,
    /// The pods it is for.
    pub target: Target,
    /// What becomes of connections that a rule matches.
    pub action: Action,
    /// Whom a CUSTOM policy has asked: `spec.provider.name`. One without it refuses what it matches.
    pub provider: Option<Arc<str>>,
    /// It matches if one of these does.
    pub rules: Vec<Rule>,
    /// Annotation `istio.io/dry-run`: it decides nothing, and is only [rehearsed](crate::policy::rehearse).
    pub dry_run: bool,
    /// What in it could not be read. The fields above are then the strictest that it may say.
    pub doubt: Option<Doubt>,
}

/// The pods that a policy is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Those with all these labels in its namespace, and in the root namespace those of the whole mesh. No labels: all.
    Pods(Labels),
    /// Those behind one of these services of its namespace. A service that is not known has no pods.
    Services(Vec<Arc<str>>),
}

/// What a policy does with connections that it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Only what an ALLOW policy matches is let in.
    Allow,
    /// They are refused.
    Deny,
    /// They are counted.
    Audit,
    /// An external provider is asked about them, and they are refused unless it lets them in.
    Custom,
}

/// One rule. An empty one matches every connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    from: Vec<Vec<Field>>,
    to: Vec<Vec<Field>>,
    when: Vec<Field>,
    needs: Needs,
    signs: Signs,
}

/// Matches every connection.
impl Default for Rule {
    fn default() -> Self {
        Self::new(Vec::new(), Vec::new(), Vec::new())
    }
}

/// How far a rule is from matching.
#[derive(Clone, Copy, Debug)]
struct Shortfall<'a> {
    /// Fields that do not hold, of the alternatives that come nearest.
    fields: usize,
    /// The first of them.
    first: Option<&'a Field>,
}

impl AuthorizationPolicy {
    /// The strictest that an object may say of which only this is known. Of a rule that cannot be read an ALLOW policy admits
    /// nothing, and a DENY policy refuses everything. An object of which the action is not known refuses everything.
    ///
    /// An ALLOW policy of which it is not known whom it selects restricts all that it may select, and opens nothing to anybody.
    pub fn unreadable(
        name: ObjectName,
        target: Option<Target>,
        action: Option<Action>,
        rules: Option<Vec<Option<Rule>>>,
        dry_run: bool,
    ) -> Self {
        let everything = || vec![Rule::default()];
        let (action, rules) = match action {
            Some(Action::Allow) => {
                let readable = rules.filter(|_| target.is_some()).unwrap_or_default().into_iter().flatten();
                (Action::Allow, readable.collect())
            }
            Some(action @ (Action::Deny | Action::Custom)) => {
                let strict =
                    |rules: Vec<Option<Rule>>| rules.into_iter().map(Option::unwrap_or_default).collect();
                (action, rules.map_or_else(everything, strict))
            }
            Some(Action::Audit) => (Action::Audit, Vec::new()),
            None => (Action::Deny, everything()),
        };
        let doubt = Some(if target.is_some() { Doubt::Content } else { Doubt::Scope });
        let target = target.unwrap_or(Target::Pods(Labels::new()));
        Self { name, target, action, provider: None, rules, dry_run, doubt }
    }

    /// The place of the first rule that matches.
    fn matching(&self, facts: &Facts<'_>) -> Option<usize> {
        self.rules.iter().position(|rule| rule.matches(self.action, facts))
    }
}

impl Rule {
    /// A rule that matches where one of `from` does, one of `to`, and all of `when`. An empty list stands for one that is
    /// absent. Each of `from` and `to` matches where all its fields hold.
    pub fn new(from: Vec<Vec<Field>>, to: Vec<Vec<Field>>, when: Vec<Field>) -> Self {
        let fields = from.iter().chain(&to).flatten().chain(&when);
        let needs = fields.fold(Needs::default(), |needs, field| needs.and(field.needs()));
        let all = |fields: &[Field]| fields.iter().fold(Signs::ANY, |signs, field| signs.and(field.signs()));
        let any = |alternatives: &[Vec<Field>]| match alternatives {
            [] => Signs::ANY,
            some => some.iter().fold(Signs::NONE, |signs, fields| signs.or(all(fields))),
        };
        let signs = any(&from).and(any(&to)).and(all(&when));
        Self { from, to, when, needs, signs }
    }

    /// The first field that can only be known within HTTP or TLS of the application, or not at all.
    pub fn layer7_field(&self) -> Option<&Field> {
        self.fields().find(|field| field.needs_layer7())
    }

    /// Whether it names nothing that is known without reading HTTP, so that it may match every connection.
    pub fn is_unknown(&self) -> bool {
        !self.needs.is_nothing() && self.fields().all(Field::is_unknown)
    }

    /// Whether it matches wherever `other` does, as far as what they say tells.
    pub fn covers(&self, other: &Self) -> bool {
        let each = |own: &[Field], other: &[Field]| {
            own.iter().all(|field| other.iter().any(|other| field.covers(other)))
        };
        let any = |own: &[Vec<Field>], other: &[Vec<Field>]| {
            let within = |other: &Vec<Field>| own.iter().any(|own| each(own, other));
            own.is_empty() || (!other.is_empty() && other.iter().all(within))
        };
        any(&self.from, &other.from) && any(&self.to, &other.to) && each(&self.when, &other.when)
    }

    /// Its alternatives of sources, each with the conditions left out; none if it says nothing of sources.
    pub fn sources(&self) -> Option<impl Iterator<Item = &[Field]>> {
        (!self.from.is_empty()).then(|| self.from.iter().map(Vec::as_slice))
    }

    /// The fields of all its parts.
    pub fn fields(&self) -> impl Iterator<Item = &Field> {
        self.from.iter().chain(&self.to).flatten().chain(&self.when)
    }

    /// Whether it matches in a policy with this action, where what is not known stays unknown: in ALLOW a rule with a field of that
    /// kind matches nothing, elsewhere such fields count as holding.
    fn matches(&self, action: Action, facts: &Facts<'_>) -> bool {
        let opens_blindly = action == Action::Allow && self.needs.any_of(Needs::unmet_by(facts));
        !opens_blindly && self.holds(facts, true) != Holds::Never
    }

    /// Whether it matches whatever the connection turns out to carry, if it is for an `action`.
    fn will_match(&self, action: Action, facts: &Facts<'_>) -> Holds {
        let unmet = self.needs.any_of(Needs::unmet_by(facts));
        match self.holds(facts, false) {
            _ if action == Action::Allow && self.needs.any_of(Needs::MORE) => Holds::Never,
            holds if action == Action::Allow && unmet => holds.min(Holds::Perhaps),
            holds => holds,
        }
    }

    fn holds(&self, facts: &Facts<'_>, final_word: bool) -> Holds {
        let all = |fields: &[Field]| {
            let mut least = Holds::Surely;
            for field in fields {
                least = least.min(field.holds(facts, final_word));
                if least == Holds::Never {
                    break;
                }
            }
            least
        };
        let any = |alternatives: &[Vec<Field>]| {
            let mut most = if alternatives.is_empty() { Holds::Surely } else { Holds::Never };
            for fields in alternatives {
                most = most.max(all(fields));
                if most == Holds::Surely {
                    break;
                }
            }
            most
        };
        let mut least = any(&self.from);
        if least != Holds::Never {
            least = least.min(any(&self.to));
        }
        if least != Holds::Never {
            least = least.min(all(&self.when));
        }
        least
    }

    /// Of a connection with these `signs`.
    fn shortfall(&self, facts: &Facts<'_>, signs: Signs) -> Shortfall<'_> {
        let fails = |field: &Field| !field.signs().meet(signs) || field.holds(facts, true) == Holds::Never;
        let lacking = |fields: &'_ [Field]| fields.iter().filter(|field| fails(field)).count();
        let mut whole = Shortfall { fields: 0, first: None };
        let nearest = |alternatives: &'_ [Vec<Field>]| {
            (0..alternatives.len()).min_by_key(|at| lacking(&alternatives[*at]))
        };
        let from = nearest(&self.from).map(|at| &self.from[at]);
        let to = nearest(&self.to).map(|at| &self.to[at]);
        for field in [from, to, Some(&self.when)].into_iter().flatten().flatten() {
            if fails(field) {
                whole.fields += 1;
                whole.first = whole.first.or(Some(field));
            }
        }
        let unmet = Needs::unmet_by(facts);
        if self.needs.any_of(unmet) {
            whole.fields += 1;
            whole.first = whole.first.or_else(|| self.fields().find(|field| field.needs().any_of(unmet)));
        }
        whole
    }
}

#[cfg(test)]
mod tests;
