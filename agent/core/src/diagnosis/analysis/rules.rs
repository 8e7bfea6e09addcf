//! Rules against each other: what another one makes useless, and what can match nothing.

use std::sync::Arc;

use super::{Level, Report, Subject};
use crate::{
    model::ObjectName,
    policy::{Action, Attribute, AuthorizationPolicy, Rule, Target},
};

/// Rules of one namespace that are compared with each other: the work grows with their square.
const MAX_COMPARED: usize = 2_000;

pub(super) fn look(report: &mut Report<'_>) {
    let policies = report.readable();
    for policy in &policies {
        matches_nothing(report, policy);
    }
    let root = report.cluster.policies.root_namespace();
    let mesh_wide: Vec<_> =
        policies.iter().filter(|policy| policy.name.namespace == *root).copied().collect();
    let mut rest = &policies[..];
    while let Some(first) = rest.first() {
        let namespace = &first.name.namespace;
        let (own, later) = rest.split_at(rest.partition_point(|policy| policy.name.namespace <= *namespace));
        rest = later;
        let others: Vec<_> = match namespace == root {
            true => own.to_vec(),
            false => mesh_wide.iter().chain(own).copied().collect(),
        };
        compare(report, own, &others);
    }
}

/// A rule, and where it stands.
#[derive(Clone, Copy)]
struct Placed<'a> {
    policy: &'a AuthorizationPolicy,
    at: usize,
    rule: &'a Rule,
}

fn compare(report: &mut Report<'_>, own: &[&Arc<AuthorizationPolicy>], others: &[&Arc<AuthorizationPolicy>]) {
    let rules = |policies: &[&'_ Arc<AuthorizationPolicy>]| -> usize {
        policies.iter().map(|policy| policy.rules.len()).sum()
    };
    if rules(own) > MAX_COMPARED || rules(others) > MAX_COMPARED {
        return;
    }
    let effective = |policy: &&&Arc<AuthorizationPolicy>| !policy.dry_run && policy.action != Action::Audit;
    for policy in own.iter().filter(effective) {
        for (at, rule) in policy.rules.iter().enumerate() {
            let placed = Placed { policy, at, rule };
            let against = others.iter().filter(effective).flat_map(|policy| {
                policy.rules.iter().enumerate().map(move |(at, rule)| Placed { policy, at, rule })
            });
            let useless = against
                .filter(|other| is_for_all_of(other.policy, policy))
                .find_map(|other| Some((useless_by(placed, other)?, other)));
            if let Some((code, other)) = useless {
                let Placed { policy: by, at: by_at, .. } = other;
                let message = match code {
                    "shadowed-rule" => format!(
                        "lets nobody in: AuthorizationPolicy {} rules[{by_at}] refuses whatever it matches",
                        by.name
                    ),
                    _ => format!(
                        "changes nothing: AuthorizationPolicy {} rules[{by_at}] matches whatever it does",
                        by.name
                    ),
                };
                let level = if code == "shadowed-rule" { Level::Warning } else { Level::Info };
                let field = format!("spec.rules[{at}]");
                report.add(code, level, &Subject::authorization(policy), &field, message);
            }
        }
    }
}

/// Which kind of use the other rule takes from the first.
fn useless_by(rule: Placed<'_>, other: Placed<'_>) -> Option<&'static str> {
    let itself = rule.policy.name == other.policy.name && rule.at == other.at;
    if itself || !other.rule.covers(rule.rule) {
        return None;
    }
    match (rule.policy.action, other.policy.action) {
        (Action::Allow, Action::Deny | Action::Custom) => Some("shadowed-rule"),
        (one, two) if one == two => {
            // Of two that are alike the first is of use; and a whole policy may be meant to stand for itself.
            let place = |placed: Placed<'_>| (placed.policy.name.clone(), placed.at);
            let alike = rule.rule.covers(other.rule) && rule.policy.target == other.policy.target;
            (!alike || place(other) < place(rule)).then_some("redundant-rule")
        }
        _ => None,
    }
}

/// Whether a policy is for every pod that another one is for, as far as their targets tell.
fn is_for_all_of(wide: &AuthorizationPolicy, narrow: &AuthorizationPolicy) -> bool {
    match (&wide.target, &narrow.target) {
        (Target::Pods(wide), _) if wide.is_empty() => true,
        (Target::Pods(wide), Target::Pods(narrow)) => {
            wide.iter().all(|(key, value)| narrow.get(key) == Some(value))
        }
        (Target::Services(wide), Target::Services(narrow)) => {
            narrow.iter().all(|service| wide.contains(service))
        }
        _ => false,
    }
}

fn matches_nothing(report: &mut Report<'_>, policy: &AuthorizationPolicy) {
    let subject = Subject::authorization(policy);
    if policy.rules.is_empty() && matches!(policy.action, Action::Deny | Action::Custom) {
        let message = "matches nothing without a rule: rules: [{}] would match everything".to_owned();
        report.add("never-matches", Level::Error, &subject, "spec.rules", message);
    }
    for (at, rule) in policy.rules.iter().enumerate() {
        for field in rule.fields().filter(|field| field.attribute() == Attribute::Principal) {
            for value in field.values() {
                if let Some(why) = never(&value) {
                    let path = format!("spec.rules[{at}].{}", field.name());
                    report.add("never-matches", Level::Error, &subject, &path, format!("{value:?} {why}"));
                }
            }
        }
    }
}

/// Why a principal is that of nobody.
fn never(principal: &str) -> Option<&'static str> {
    if principal.contains("://") {
        return Some("matches nobody: principals are written without spiffe://");
    }
    // Only one end is magic; a star in the rest is a star, which no identity has.
    let inner = principal.strip_prefix('*').or_else(|| principal.strip_suffix('*')).unwrap_or(principal);
    if inner.contains('*') {
        return Some(
            "matches nobody: * stands for something at the start or at the end, not elsewhere, nor at both",
        );
    }
    let parts: Vec<&str> = principal.split('/').collect();
    let exact = !principal.contains('*');
    let shaped = parts.len() == 5 && parts[1] == "ns" && parts[3] == "sa";
    (exact && !shaped).then_some(
        "matches nobody: a principal is TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT, or has a * at one end",
    )
}

/// The namespace and service account that an exact principal names.
pub(super) fn account_of(principal: &str) -> Option<ObjectName> {
    match principal.split('/').collect::<Vec<_>>()[..] {
        [_, "ns", namespace, "sa", account] if !namespace.contains('*') && !account.contains('*') => {
            Some(ObjectName::new(namespace, account))
        }
        _ => None,
    }
}
