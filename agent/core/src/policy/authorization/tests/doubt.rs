//! What cannot be read closes, and never opens.

use super::*;

fn web() -> Option<Target> {
    Some(Target::Pods(labels(&[("app", "web")])))
}

fn db() -> Option<Target> {
    Some(Target::Pods(labels(&[("app", "db")])))
}

fn rule_for(account: &str) -> Rule {
    let value = account.to_owned();
    from(&[Written { name: "serviceAccounts", values: vec![value] }]).read("shop", &local())
}

fn unreadable(
    target: Option<Target>,
    action: Option<Action>,
    rules: Option<Vec<Option<Rule>>>,
) -> AuthorizationPolicy {
    AuthorizationPolicy::unreadable(ObjectName::new("shop", "broken"), target, action, rules, false)
}

#[test]
fn an_unreadable_policy_says_the_strictest_that_it_may() {
    let (allow, deny) = (Some(Action::Allow), Some(Action::Deny));
    let some = |rules: &[Option<Rule>]| Some(rules.to_vec());
    let (ab, cd) = (|| Some(rule_for("a/b")), || Some(rule_for("c/d")));
    // The object, and whether it lets in a/b and c/d, which another policy allows.
    let rows = [
        (unreadable(web(), None, None), [false, false]),
        (unreadable(db(), None, None), [true, true]),
        (unreadable(None, None, None), [false, false]),
        // A DENY refuses everything by a rule that it does not know.
        (unreadable(web(), deny, None), [false, false]),
        (unreadable(web(), deny, some(&[ab(), None])), [false, false]),
        (unreadable(None, deny, some(&[ab()])), [false, true]),
        (unreadable(web(), Some(Action::Custom), some(&[None])), [false, false]),
        // An ALLOW admits nobody by it; what others allow is let in.
        (unreadable(web(), allow, None), [true, true]),
        (unreadable(web(), Some(Action::Audit), None), [true, true]),
    ];
    for (row, (broken, expected)) in rows.into_iter().enumerate() {
        let open = AuthorizationPolicy {
            rules: vec![rule_for("a/b"), rule_for("c/d")],
            ..policy("open", Action::Allow, &[])
        };
        let policies = set([open, broken]);
        assert_eq!(["a/b", "c/d"].map(|account| lets_in(&policies, &by(account))), expected, "row {row}");
    }
    // Alone, an ALLOW lets in those whom its other rules name; and of whom it is not known whom it selects, nobody.
    let alone = |target| set([unreadable(target, allow, some(&[None, cd()]))]);
    assert_eq!(["a/b", "c/d"].map(|account| lets_in(&alone(web()), &by(account))), [false, true]);
    assert_eq!(["a/b", "c/d"].map(|account| lets_in(&alone(None), &by(account))), [false, false]);
}

#[test]
fn the_refusal_says_that_the_policy_cannot_be_read() {
    for broken in [unreadable(web(), None, None), unreadable(web(), Some(Action::Allow), None)] {
        let refused = refusal(&set([broken]), &by("a/b"));
        assert_eq!(refused.policy.as_deref(), Some("shop/broken"));
        assert!(refused.text.contains("cannot be read"), "{refused}");
    }
}

#[test]
fn in_the_root_namespace_doubt_is_everywhere() {
    let name = ObjectName::new(ROOT, "broken");
    let broken = AuthorizationPolicy::unreadable(name, None, None, None, false);
    let mut policies = PolicySet::new(ROOT);
    let reach = policies.apply(policy::Change::AuthorizationPolicy(Arc::new(broken)));
    assert!(reach.covers(&pod("shop", "web")) && !lets_in(&policies, &by("a/b")));
}

#[test]
fn while_policies_may_be_missing_nobody_is_let_in() {
    let mut policies = set([policy("open", Action::Allow, &[anything()])]);
    assert!(policies.set_closed(Some("a.yaml cannot be read".into())).covers(&pod("shop", "web")));
    for call in [plaintext(), by("a/b")] {
        let refused = refusal(&policies, &call);
        assert_eq!(refused.reason, Reason::NotReady);
        assert!(refused.text.ends_with("not all policies are known: a.yaml cannot be read"), "{refused}");
    }
    assert!(policies.set_closed(Some("a.yaml cannot be read".into())).is_empty());
    assert!(!policies.set_closed(None).is_empty() && lets_in(&policies, &by("a/b")));
}
