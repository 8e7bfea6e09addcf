//! What is said of a connection before anything of it is read.

use super::*;
use crate::policy::{JwtRule, Keys, Outlook, RequestAuthentication, outlook};

/// Whether it is let in or refused whatever it carries; none if that depends.
pub(super) fn foreseen(policies: &PolicySet, call: &Call) -> Option<bool> {
    match outlook(&web_of(policies), &call.facts()) {
        Outlook::Same(decision) => Some(decision == Decision::Allow),
        Outlook::PerRequest => None,
    }
}

pub(super) fn request_authentication(name: &str, issuer: &str, doubt: Option<Doubt>) -> policy::Change {
    let rule = JwtRule {
        issuer: issuer.into(),
        audiences: Vec::new(),
        keys: Keys::Discovered,
        places: Vec::new(),
        payload_header: None,
        claim_headers: Vec::new(),
        forward: false,
        timeout_ms: 5_000,
        space_delimited: Vec::new(),
    };
    policy::Change::RequestAuthentication(Arc::new(RequestAuthentication {
        name: ObjectName::new("shop", name),
        target: Target::Pods(labels(&[("app", "web")])),
        rules: if doubt.is_some() { Vec::new() } else { vec![Arc::new(rule)] },
        doubt,
    }))
}

#[test]
fn what_requests_cannot_change_is_decided_at_once() {
    let methods = || field("methods", &["GET"]);
    let of_a = || field("namespaces", &["a"]);
    let rule = |fields: &[Written], operations: &[Written]| WrittenRule {
        from: if fields.is_empty() { vec![] } else { vec![fields.to_vec()] },
        to: if operations.is_empty() { vec![] } else { vec![operations.to_vec()] },
        when: vec![],
    };
    let allow = |rules: &[WrittenRule]| policy("allow", Action::Allow, rules);
    let deny = |rules: &[WrittenRule]| policy("deny", Action::Deny, rules);
    let both = |one, other| set([one, other]);
    let (yes, no, open) = (Some(true), Some(false), None);
    for (row, (policies, expected)) in [
        (set([]), yes),
        (set([allow(&[rule(&[of_a()], &[])])]), yes),
        (set([allow(&[rule(&[field("namespaces", &["b"])], &[methods()])])]), no),
        (set([allow(&[rule(&[of_a()], &[methods()])])]), open),
        (set([allow(&[])]), no),
        // An ALLOW by layer 4 alone outweighs one that is open.
        (set([allow(&[rule(&[], &[methods()]), rule(&[of_a()], &[])])]), yes),
        (set([deny(&[rule(&[of_a()], &[])])]), no),
        (set([deny(&[rule(&[of_a()], &[methods()])])]), open),
        (set([deny(&[rule(&[field("namespaces", &["b"])], &[methods()])])]), yes),
        (set([deny(&[rule(&[], &[methods()]), rule(&[of_a()], &[])])]), no),
        (both(deny(&[rule(&[], &[methods()])]), allow(&[])), no),
        (both(deny(&[rule(&[], &[methods()])]), allow(&[rule(&[of_a()], &[])])), open),
        // Another address may be told of the client.
        (set([deny(&[from(&[field("remoteIpBlocks", &["10.0.0.8"])])])]), open),
        (set([deny(&[WrittenRule { when: vec![field("connection.sni", &["a"])], ..anything() }])]), open),
        (
            set([deny(&[WrittenRule {
                when: vec![field("experimental.envoy.filters.a", &["a"])],
                ..anything()
            }])]),
            no,
        ),
        (
            set([allow(&[WrittenRule {
                when: vec![field("experimental.envoy.filters.a", &["a"])],
                ..anything()
            }])]),
            no,
        ),
        // A provider may say no.
        (set([policy("custom", Action::Custom, &[anything()])]), open),
        (set([policy("custom", Action::Custom, &[rule(&[], &[field("ports", &["1"])])])]), yes),
        (both(policy("custom", Action::Custom, &[anything()]), deny(&[anything()])), no),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(foreseen(&policies, &by("a/b")), expected, "row {row}");
    }
}

#[test]
fn a_refusal_in_any_case_names_what_refuses_in_any_case() {
    let policies = set([
        policy("custom", Action::Custom, &[anything()]),
        policy("deny", Action::Deny, &[to(&[field("ports", &["8080"])])]),
    ]);
    let Outlook::Same(Decision::Deny(refusal)) = outlook(&web_of(&policies), &by("a/b").facts()) else {
        panic!()
    };
    assert_eq!(refusal.policy.as_deref(), Some("shop/deny"));
}

#[test]
fn tokens_are_in_requests() {
    let mut policies = set([]);
    let reach = policies.apply(request_authentication("ra", "https://b.example", None));
    assert!(reach.covers(&pod("shop", "web")) && !reach.covers(&pod("shop", "db")));
    assert_eq!(foreseen(&policies, &by("a/b")), None);
    assert!(lets_in(&policies, &by("a/b").sends(Sent::new("GET", "/"))), "case 34: no token is no bad one");
    policies.apply(request_authentication("other", "https://a.example", None));
    let compiled = web_of(&policies);
    let issuers: Vec<&str> = compiled.tokens().iter().map(|rule| &*rule.issuer).collect();
    assert_eq!(issuers, ["https://a.example", "https://b.example"]);
    assert!(policies.compile_for(&"shop".into(), &labels(&[("app", "db")])).tokens().is_empty());
    // Who is refused in any case is refused at once.
    policies.apply(policy::Change::AuthorizationPolicy(Arc::new(policy(
        "deny",
        Action::Deny,
        &[anything()],
    ))));
    assert_eq!(foreseen(&policies, &by("a/b")), Some(false));
    for name in ["ra", "other"] {
        let reach = policies.apply(policy::Change::RequestAuthenticationGone(ObjectName::new("shop", name)));
        assert!(reach.covers(&pod("shop", "web")));
    }
    assert!(web_of(&policies).tokens().is_empty());
}

#[test]
fn a_request_authentication_that_cannot_be_read_takes_no_request() {
    for doubt in [Doubt::Content, Doubt::Scope] {
        let mut policies = set([]);
        policies.apply(request_authentication("ra", "", Some(doubt)));
        assert_eq!(foreseen(&policies, &by("a/b")), None);
        let refused = refusal(&policies, &by("a/b").sends(Sent::new("GET", "/")));
        assert_eq!(refused.policy.as_deref(), Some("shop/ra"));
        assert!(refused.text.contains("RequestAuthentication shop/ra cannot be read"), "{refused}");
        assert!(lets_in(&policies, &by("a/b")), "what is not HTTP has no tokens");
        let db = policies.compile_for(&"shop".into(), &labels(&[("app", "db")]));
        assert_eq!(outlook(&db, &by("a/b").facts()) == Outlook::PerRequest, doubt == Doubt::Scope);
    }
}

#[test]
fn what_is_rehearsed_of_requests_has_them_read() {
    let dry = |rule: &WrittenRule, action| AuthorizationPolicy {
        dry_run: true,
        ..policy("dry", action, std::slice::from_ref(rule))
    };
    let methods = to(&[field("methods", &["GET"])]);
    let elsewhere = WrittenRule { from: vec![vec![field("namespaces", &["b"])]], ..methods.clone() };
    assert_eq!(foreseen(&set([dry(&methods, Action::Deny)]), &by("a/b")), None);
    assert_eq!(
        foreseen(&set([policy("audit", Action::Audit, std::slice::from_ref(&methods))]), &by("a/b")),
        None
    );
    assert_eq!(foreseen(&set([dry(&elsewhere, Action::Deny)]), &by("a/b")), Some(true));
    assert_eq!(foreseen(&set([dry(&anything(), Action::Deny)]), &by("a/b")), Some(true));
    let refused = set([dry(&methods, Action::Allow), policy("deny", Action::Deny, &[anything()])]);
    assert_eq!(foreseen(&refused, &by("a/b")), Some(false));
}

#[test]
fn services_that_change_take_their_tokens_along() {
    let front = ObjectName::new("shop", "front");
    let policy::Change::RequestAuthentication(request) = request_authentication("ra", "a", None) else {
        panic!()
    };
    let of_service =
        RequestAuthentication { target: Target::Services(vec!["front".into()]), ..(*request).clone() };
    let mut policies = set([]);
    policies.apply(policy::Change::RequestAuthentication(Arc::new(of_service)));
    assert!(web_of(&policies).tokens().is_empty());
    assert!(policies.set_service(&front, Some(&labels(&[("app", "web")]))).covers(&pod("shop", "web")));
    assert_eq!(web_of(&policies).tokens().len(), 1);
    policies.set_service(&front, None);
    assert!(web_of(&policies).tokens().is_empty());
}
