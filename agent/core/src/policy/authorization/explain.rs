//! What one policy makes of one connection, told: the rule that matches, or the one that comes nearest and the field that it
//! lacks. By the same tests as the verdict.

use std::{fmt, sync::Arc};

use super::{Action, AuthorizationPolicy, Field, Rule, Signs};
use crate::policy::Facts;

/// What an AuthorizationPolicy makes of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyVerdict {
    /// The policy.
    pub policy: Arc<AuthorizationPolicy>,
    /// The first of its rules that matches.
    pub matched: Option<usize>,
    /// Where none matches, and there is one: the rule that comes nearest.
    pub nearest: Option<Miss>,
    /// The provider that it has asked has let the connection in.
    pub admitted: bool,
}

/// A rule that does not match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Miss {
    /// Its place in the policy.
    pub rule: usize,
    /// How many fields do not hold, of the alternatives that come nearest.
    pub failing: usize,
    /// The first of them, as a path from the rule.
    pub field: String,
    /// What that field demands, in words.
    pub wants: String,
    /// What the connection has instead, in words.
    pub has: String,
    /// It can only be known of a request or of the application's TLS, and neither is known.
    pub needs_layer7: bool,
}

impl PolicyVerdict {
    pub(in crate::policy) fn of(policy: &Arc<AuthorizationPolicy>, facts: &Facts<'_>) -> Self {
        let matched = policy.matching(facts);
        let rules = policy.rules.iter().enumerate().filter(|_| matched.is_none());
        let nearest = rules.map(|(at, rule)| Miss::of(at, rule, facts)).min_by_key(|miss| miss.failing);
        let admitted = policy.action == Action::Custom && facts.admitted;
        Self { policy: Arc::clone(policy), matched, nearest, admitted }
    }

    /// Whether it counts: it is no rehearsal, and its action has an effect.
    pub fn is_in_force(&self) -> bool {
        !self.policy.dry_run && self.policy.action != Action::Audit
    }

    /// Whether it refuses the connection.
    pub fn refuses(&self) -> bool {
        let refuses = matches!(self.policy.action, Action::Custom | Action::Deny);
        self.is_in_force() && refuses && !self.admitted && self.matched.is_some()
    }

    /// Whether it is one of those of which one has to match.
    pub fn is_allowing(&self) -> bool {
        self.is_in_force() && self.policy.action == Action::Allow
    }
}

impl Miss {
    fn of(at: usize, rule: &Rule, facts: &Facts<'_>) -> Self {
        let shortfall = rule.shortfall(facts, Signs::of(facts));
        let field = shortfall.first;
        Self {
            rule: at,
            failing: shortfall.fields,
            field: field.map(|field| field.name().to_owned()).unwrap_or_default(),
            wants: field.map(ToString::to_string).unwrap_or_default(),
            has: field.map(|field| field.seen(facts)).unwrap_or_default(),
            needs_layer7: field.is_some_and(|field| field.unmet(facts).is_some()),
        }
    }
}

/// In words, as `one of 8080, 9090` or `none of *`.
impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values = self.values();
        match self.is_negated() {
            true => write!(f, "none of {}", values.join(", ")),
            false if values.len() == 1 => f.write_str(&values[0]),
            false => write!(f, "one of {}", values.join(", ")),
        }
    }
}

/// In one line, as `from namespaces shop; to ports 8080`.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let alternative = |fields: &Vec<Field>| {
            let fields: Vec<String> =
                fields.iter().map(|field| format!("{} {field}", short(field))).collect();
            fields.join(" and ")
        };
        let mut parts = Vec::new();
        for (word, alternatives) in [("from", &self.from), ("to", &self.to)] {
            let alternatives: Vec<String> = alternatives.iter().map(alternative).collect();
            if !alternatives.is_empty() {
                parts.push(format!("{word} {}", alternatives.join(", or ")));
            }
        }
        if !self.when.is_empty() {
            parts.push(format!("when {}", alternative(&self.when)));
        }
        f.write_str(if parts.is_empty() { "everything" } else { "" })?;
        f.write_str(&parts.join("; "))
    }
}

/// The field's own name; of a condition, which has only its place, what it tests.
fn short(field: &Field) -> String {
    match field.name().rsplit('.').next() {
        Some("values" | "notValues") | None => field.attribute().to_string(),
        Some(name) => name.to_owned(),
    }
}
