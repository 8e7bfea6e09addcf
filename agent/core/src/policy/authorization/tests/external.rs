//! CUSTOM policies: whom they have asked, and what becomes of those whom nobody can be asked about.

use super::*;
use crate::policy::{External, external};

fn custom(name: &str, provider: Option<&str>, rules: &[WrittenRule]) -> AuthorizationPolicy {
    AuthorizationPolicy { provider: provider.map(Arc::from), ..policy(name, Action::Custom, rules) }
}

fn asked(policies: &PolicySet, call: &Call) -> External {
    call.judged(|facts| external(&web_of(policies), facts))
}

fn ask(policy: &str, rule: usize) -> External {
    External::Ask { provider: PROVIDER.into(), policy: ObjectName::new("shop", policy), rule }
}

fn admitted(call: Call) -> Call {
    Call { admitted: true, ..call }
}

#[test]
fn the_provider_of_what_matches_is_asked() {
    let rules = [to(&[field("ports", &["1"])]), to(&[field("paths", &["/admin*"])])];
    let policies = set([custom("c", Some(PROVIDER), &rules)]);
    let sends = |path| by("a/b").sends(Sent::new("GET", path));
    assert_eq!(asked(&policies, &sends("/admin")), ask("c", 1));
    assert_eq!(asked(&policies, &sends("/")), External::Nobody);
    assert!(lets_in(&policies, &sends("/")) && !lets_in(&policies, &sends("/admin")));
    assert!(lets_in(&policies, &admitted(sends("/admin"))));
    // Of what is not HTTP, the rest of the rule counts.
    assert_eq!(asked(&policies, &by("a/b")), ask("c", 1));
    assert!(!lets_in(&policies, &by("a/b")) && lets_in(&policies, &admitted(by("a/b"))));
}

#[test]
fn who_is_admitted_is_judged_by_the_others() {
    let deny = policy("d", Action::Deny, &[to(&[field("methods", &["POST"])])]);
    let policies = set([custom("c", Some(PROVIDER), &[anything()]), deny]);
    assert!(lets_in(&policies, &admitted(by("a/b").sends(Sent::new("GET", "/")))));
    let refused = refusal(&policies, &admitted(by("a/b").sends(Sent::new("POST", "/"))));
    assert_eq!(refused.policy.as_deref(), Some("shop/d"));
}

#[test]
fn whom_nobody_can_be_asked_about_is_refused() {
    let on = |port: &'static str| to(&[field("ports", &[port])]);
    let unknown = custom("c", Some("nobody"), &[on("8080")]);
    let unnamed = custom("c", None, &[on("8080")]);
    let two = [custom("c", Some(PROVIDER), &[on("8080")]), custom("e", Some("other"), &[on("1")])];
    for (policies, why) in [
        (set([unknown]), "\"nobody\" is none of the extension providers"),
        (set([unnamed]), "it is not known which provider it names"),
        (set(two), "these name opa, other"),
    ] {
        let External::Refused(refused) = asked(&policies, &by("a/b")) else {
            panic!("{why}: somebody is asked")
        };
        assert!(refused.text.contains(why), "{refused}");
        assert_eq!((refused.policy.as_deref(), refused.rule.as_deref()), (Some("shop/c"), Some("rules[0]")));
        // Nobody can have admitted it.
        assert!(!lets_in(&policies, &admitted(by("a/b"))), "{why}");
        assert!(lets_in(&policies, &super::on(80, by("a/b"))), "{why}: it does not match");
        assert_eq!(asked(&policies, &super::on(80, by("a/b"))), External::Nobody);
    }
}

#[test]
fn providers_that_become_known_are_asked() {
    let mut policies = PolicySet::new(ROOT);
    policies.apply(policy::Change::AuthorizationPolicy(Arc::new(custom("c", Some(PROVIDER), &[anything()]))));
    assert!(matches!(asked(&policies, &by("a/b")), External::Refused(_)));
    assert!(policies.set_providers([PROVIDER.into()]).covers(&pod("shop", "web")));
    assert_eq!(asked(&policies, &by("a/b")), ask("c", 0));
    assert!(policies.set_providers([PROVIDER.into()]).is_empty());
}

#[test]
fn several_policies_may_ask_the_same() {
    let policies = set([
        custom("c", Some(PROVIDER), &[to(&[field("ports", &["1"])])]),
        custom("d", Some(PROVIDER), &[anything()]),
    ]);
    assert_eq!(asked(&policies, &by("a/b")), ask("d", 0));
    // A rehearsal has nobody asked.
    let dry = AuthorizationPolicy { dry_run: true, ..custom("c", Some("x"), &[anything()]) };
    assert_eq!(asked(&set([dry]), &by("a/b")), External::Nobody);
}
