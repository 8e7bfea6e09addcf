//! Policies that decide nothing: what they would have made of connections, and that they leave verdicts alone.

use super::*;
use crate::{policy::rehearse, reason::Rehearsed};

/// The refusal that would be, and what each policy would have made of it, by name.
pub(super) fn rehearsed(policies: &PolicySet, call: &Call) -> (Option<Refusal>, BTreeMap<String, Rehearsed>) {
    let compiled = policies.compile_for(&"shop".into(), &labels(&[("app", "web")]));
    let mut told = BTreeMap::new();
    let refusal = call.judged(|facts| {
        rehearse(&compiled, facts, |policy, rehearsed| {
            assert!(told.insert(policy.name.name.to_string(), rehearsed).is_none(), "told twice");
        })
    });
    (refusal, told)
}

fn dry(policy: AuthorizationPolicy) -> AuthorizationPolicy {
    AuthorizationPolicy { dry_run: true, ..policy }
}

fn of(account: &str) -> WrittenRule {
    from(&[field("serviceAccounts", &[account])])
}

#[test]
fn a_dry_run_deny_tells_whom_it_would_refuse() {
    let policies = set([dry(policy("no-b", Action::Deny, &[of("a/a"), of("a/b")]))]);
    assert!(lets_in(&policies, &by("a/b")));
    let (refusal, told) = rehearsed(&policies, &by("a/b"));
    let refusal = refusal.unwrap();
    assert_eq!((refusal.policy.as_deref(), refusal.rule.as_deref()), (Some("shop/no-b"), Some("rules[1]")));
    assert_eq!(told["no-b"], Rehearsed::WouldRefuse);
    let (refusal, told) = rehearsed(&policies, &by("a/c"));
    assert_eq!((refusal, told["no-b"]), (None, Rehearsed::Unchanged));
}

/// A baseline and what it is to let through are rehearsed as they will be: together.
#[test]
fn dry_run_allows_are_taken_together() {
    let policies =
        set([dry(policy("nobody", Action::Allow, &[])), dry(policy("only-b", Action::Allow, &[of("a/b")]))]);
    assert_eq!(rehearsed(&policies, &by("a/b")).0, None);
    let (refusal, told) = rehearsed(&policies, &by("a/c"));
    let refusal = refusal.unwrap();
    assert_eq!(refusal.policy.as_deref(), Some("shop/only-b"));
    assert_eq!(refusal.field.as_deref(), Some("serviceAccounts"));
    assert!(told.values().all(|rehearsed| *rehearsed == Rehearsed::WouldRefuse), "{told:?}");
    // One that is in force lets it in all the same.
    let mut policies = policies;
    let in_force = policy("all", Action::Allow, &[anything()]);
    policies.apply(policy::Change::AuthorizationPolicy(Arc::new(in_force)));
    assert_eq!(rehearsed(&policies, &by("a/c")).0, None);
}

#[test]
fn a_dry_run_allow_tells_whom_it_would_admit() {
    let policies = set([
        policy("only-a", Action::Allow, &[of("a/a")]),
        dry(policy("b-too", Action::Allow, &[of("x/x"), of("a/b")])),
    ]);
    let (refusal, told) = rehearsed(&policies, &by("a/b"));
    assert_eq!((refusal, told["b-too"]), (None, Rehearsed::WouldAdmit(1)));
    assert!(!lets_in(&policies, &by("a/b")));
    assert_eq!(rehearsed(&policies, &by("a/c")).1["b-too"], Rehearsed::Unchanged);
    assert!(!rehearsed(&policies, &by("a/a")).1.contains_key("only-a"), "it is in force");
}

#[test]
fn audit_tells_of_what_it_matches_whatever_becomes_of_it() {
    let policies =
        set([policy("seen", Action::Audit, &[of("a/b")]), policy("only-a", Action::Allow, &[of("a/a")])]);
    for (account, expected) in [("a/b", Rehearsed::Audited(0)), ("a/a", Rehearsed::Unchanged)] {
        let (refusal, told) = rehearsed(&policies, &by(account));
        assert_eq!((refusal, told["seen"]), (None, expected), "{account}");
    }
    assert!(lets_in(&set([policy("seen", Action::Audit, &[anything()])]), &by("a/b")));
}

/// Plaintext that STRICT refuses meets no AuthorizationPolicy, in force or not.
#[test]
fn strict_is_not_rehearsed_away() {
    let mut policies = set([
        dry(policy("all", Action::Allow, &[anything()])),
        policy("nobody", Action::Allow, &[]),
        policy("seen", Action::Audit, &[anything()]),
    ]);
    assert_eq!(rehearsed(&policies, &plaintext()).1["all"], Rehearsed::WouldAdmit(0));
    policies.upsert(Arc::new(PeerAuthentication {
        name: ObjectName::new("shop", "strict"),
        created: None,
        selector: Labels::new(),
        mode: Some(Mode::Strict),
        port_modes: BTreeMap::new(),
        doubt: None,
    }));
    assert!(rehearsed(&policies, &plaintext()).1.is_empty());
    assert_eq!(rehearsed(&policies, &by("a/b")).1["all"], Rehearsed::WouldAdmit(0));
}

#[test]
fn live_connections_are_rehearsed_again_where_there_is_something_new() {
    let compile = |policies: &PolicySet| policies.compile_for(&"shop".into(), &labels(&[("app", "web")]));
    let before = set([policy("only-a", Action::Allow, &[of("a/a")])]);
    let mut after = before.clone();
    after.apply(policy::Change::AuthorizationPolicy(Arc::new(dry(policy("p", Action::Deny, &[anything()])))));
    assert!(!compile(&before).rehearses_as(&compile(&after)));
    assert!(compile(&after).rehearses_as(&compile(&after.clone())));
    assert_ne!(compile(&before), compile(&after), "followers would not hear of it");
}

/// Of a request it is told what it would have met, not what its connection would.
#[test]
fn requests_are_rehearsed_one_by_one() {
    let no_post = policy("no-post", Action::Deny, &[to(&[field("methods", &["POST"])])]);
    let seen = policy("seen", Action::Audit, &[to(&[field("paths", &["/admin*"])])]);
    let policies = set([dry(no_post), seen]);
    for (method, path, refused, audited) in
        [("POST", "/", true, false), ("GET", "/", false, false), ("GET", "/admin/x", false, true)]
    {
        let (refusal, told) = rehearsed(&policies, &by("a/b").sends(Sent::new(method, path)));
        assert_eq!(refusal.is_some(), refused, "{method} {path}");
        assert_eq!(told["no-post"] == Rehearsed::WouldRefuse, refused, "{method} {path}");
        assert_eq!(told["seen"] == Rehearsed::Audited(0), audited, "{method} {path}");
    }
    let (refusal, told) = rehearsed(&policies, &by("a/b"));
    assert!(
        refusal.is_some() && told["seen"] == Rehearsed::Audited(0),
        "of what is not HTTP the rest counts"
    );
}
