//! What cannot be read closes: whom it may select, whatever it says, and never more than it may.

use super::*;

fn unreadable(namespace: &str, created: Option<Option<i64>>, selector: Option<Labels>) -> PeerAuthentication {
    PeerAuthentication::unreadable(ObjectName::new(namespace, "broken"), created, selector)
}

fn permissive(name: &str, created: i64) -> PeerAuthentication {
    PeerAuthentication { created: Some(created), mode: Some(Mode::Permissive), ..object("shop", name) }
}

fn selecting(policy: PeerAuthentication) -> PeerAuthentication {
    PeerAuthentication { selector: labels(&[("app", "web")]), ..policy }
}

#[test]
fn an_unreadable_object_is_strict_for_whom_it_may_select() {
    let known = Some(Some(1_000));
    let web = || Some(labels(&[("app", "web")]));
    let db = || Some(labels(&[("app", "db")]));
    // The object, what stands beside it, and whether the pod takes plaintext.
    let rows = [
        (unreadable("shop", known, web()), None, false),
        (unreadable("shop", known, db()), None, true),
        (unreadable("shop", known, Some(Labels::new())), None, false),
        (unreadable("shop", known, None), None, false),
        (unreadable("other", known, None), None, true),
        (unreadable(ROOT, known, None), None, false),
        (unreadable(ROOT, known, web()), None, true),
        // It may select the pod, which goes before what holds for the namespace.
        (unreadable("shop", known, None), Some(permissive("ns", 10)), false),
        (unreadable("shop", known, Some(Labels::new())), Some(permissive("ns", 2_000)), false),
        // What is older counts, whatever it says.
        (unreadable("shop", known, Some(Labels::new())), Some(permissive("ns", 10)), true),
        (unreadable("shop", known, None), Some(selecting(permissive("wl", 10))), true),
        // An older object that says nothing of the mode inherits from the namespace, for which this one may speak.
        (
            unreadable("shop", known, None),
            Some(PeerAuthentication { mode: None, ..selecting(permissive("wl", 10)) }),
            false,
        ),
        // An age that cannot be read is the greatest.
        (unreadable("shop", None, None), Some(selecting(permissive("wl", 10))), false),
        (unreadable("shop", Some(None), web()), Some(selecting(permissive("wl", 10))), true),
    ];
    for (row, (broken, beside, expected)) in rows.into_iter().enumerate() {
        let policies = set([Some(broken), beside].into_iter().flatten());
        assert_eq!(takes_plaintext(&policies, 80), expected, "row {row}");
    }
}

#[test]
fn an_unreadable_object_goes_without_a_trace() {
    let mut policies = set([permissive("ns", 10), unreadable("shop", Some(Some(5)), None)]);
    assert!(!takes_plaintext(&policies, 80));
    policies.upsert(Arc::new(PeerAuthentication {
        name: ObjectName::new("shop", "broken"),
        ..permissive("", 20)
    }));
    assert!(takes_plaintext(&policies, 80), "mended, and still STRICT");
    policies.upsert(Arc::new(unreadable("shop", Some(Some(5)), None)));
    policies.remove(&ObjectName::new("shop", "broken"));
    assert!(takes_plaintext(&policies, 80), "gone, and still STRICT");
    policies.remove(&ObjectName::new("shop", "ns"));
    assert!(policies.is_empty() && policies.namespaces.is_empty());
}

#[test]
fn the_refusal_says_that_the_object_cannot_be_read() {
    let policies = set([unreadable("shop", None, None)]);
    let Decision::Deny(refusal) = verdict(&policies, 80, None) else { panic!("taken") };
    assert_eq!(refusal.policy.as_deref(), Some("shop/broken"));
    assert!(
        refusal.text.ends_with("shop/broken, which cannot be read and counts as STRICT until it can"),
        "{refusal}"
    );
    let peer = "spiffe://cluster.local/ns/a/sa/b".parse().unwrap();
    assert_eq!(verdict(&policies, 80, Some(&peer)), Decision::Allow);
}

#[test]
fn with_policies_missing_no_plaintext_is_taken() {
    let open = PeerAuthentication {
        port_modes: BTreeMap::from([(80, Mode::Permissive)]),
        ..selecting(permissive("wl", 10))
    };
    let mut policies = set([open]);
    assert!(takes_plaintext(&policies, 80));
    let reach = policies.set_incomplete(Some("a.yaml cannot be read".into()));
    assert!(reach.covers(&workload("shop", app())) && reach.covers(&workload("other", app())));
    let Decision::Deny(refusal) = verdict(&policies, 80, None) else { panic!("taken") };
    assert!(refusal.text.ends_with("not all policies are known: a.yaml cannot be read"), "{refusal}");
    assert!(policies.set_incomplete(Some("a.yaml cannot be read".into())).is_empty());
    assert!(!policies.set_incomplete(None).is_empty() && takes_plaintext(&policies, 80));
}
