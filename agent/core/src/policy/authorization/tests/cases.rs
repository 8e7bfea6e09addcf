//! Cases in which implementations of Istio's API are known to differ, by number; those of PeerAuthentication are beside it, those of
//! requests in `http` and `token`.

use super::*;

fn allow(rules: &[WrittenRule]) -> AuthorizationPolicy {
    policy("allow", Action::Allow, rules)
}

fn deny(rules: &[WrittenRule]) -> AuthorizationPolicy {
    policy("deny", Action::Deny, rules)
}

#[test]
fn case_10_strict_goes_before_allow() {
    let mut policies = set([allow(&[anything()])]);
    policies.upsert(Arc::new(PeerAuthentication {
        name: ObjectName::new(ROOT, "mesh"),
        created: None,
        selector: Labels::new(),
        mode: Some(Mode::Strict),
        port_modes: BTreeMap::new(),
        doubt: None,
    }));
    assert_eq!(refusal(&policies, &plaintext()).reason, Reason::MtlsRequired);
    assert!(lets_in(&policies, &by("a/b")));
}

#[test]
fn case_11_allow_nothing_beside_another_allow() {
    let nothing = policy("nothing", Action::Allow, &[]);
    assert!(!lets_in(&set([nothing.clone()]), &by("a/b")));
    let policies = set([nothing, allow(&[from(&[field("principals", &["cluster.local/ns/a/sa/b"])])])]);
    assert!(lets_in(&policies, &by("a/b")));
    assert!(!lets_in(&policies, &by("a/c")));
}

#[test]
fn case_12_deny_without_rules_denies_nothing() {
    assert!(lets_in(&set([deny(&[])]), &plaintext()));
}

#[test]
fn case_13_only_dry_run_allow() {
    let dry = AuthorizationPolicy { dry_run: true, ..allow(&[]) };
    assert!(lets_in(&set([dry.clone()]), &by("a/b")));
    // Beside one in force it adds nothing.
    let dry = AuthorizationPolicy { rules: vec![Rule::default()], ..dry };
    assert!(!lets_in(&set([dry, policy("other", Action::Allow, &[])]), &by("a/b")));
}

#[test]
fn case_14_what_is_no_dry_run_is_enforced() {
    // Which annotations are one is told where objects are read.
    assert!(!lets_in(&set([deny(&[anything()])]), &by("a/b")));
    assert!(lets_in(&set([AuthorizationPolicy { dry_run: true, ..deny(&[anything()]) }]), &by("a/b")));
}

#[test]
fn case_15_a_principal_has_no_scheme() {
    let policies = set([allow(&[from(&[field("principals", &["spiffe://cluster.local/ns/a/sa/b"])])])]);
    assert!(!lets_in(&policies, &by("a/b")));
}

#[test]
fn case_16_principals_by_their_end_and_case() {
    assert!(lets_in(&set([allow(&[from(&[field("principals", &["*/sa/b"])])])]), &by("a/b")));
    let mixed = set([allow(&[from(&[field("principals", &["Cluster.local/ns/a/sa/b"])])])]);
    assert!(!lets_in(&mixed, &by("a/b")));
}

#[test]
fn case_17_deny_whoever_has_no_identity() {
    let policies = set([deny(&[from(&[field("notPrincipals", &["*"])])])]);
    assert!(!lets_in(&policies, &plaintext()));
    assert!(lets_in(&policies, &by("a/b")));
}

#[test]
fn case_18_plaintext_is_of_no_namespace() {
    let policies = set([deny(&[from(&[field("notNamespaces", &["a"])])])]);
    assert!(!lets_in(&policies, &plaintext()));
    assert!(lets_in(&policies, &by("a/b")) && !lets_in(&policies, &by("c/b")));
}

#[test]
fn case_19_a_bare_service_account_is_of_the_policys_namespace() {
    let rules = [from(&[field("serviceAccounts", &["web"])])];
    let policies = set([policy_in(ROOT, "root", Action::Allow, &rules, &local())]);
    assert!(!lets_in(&policies, &by("prod/web")));
    assert!(lets_in(&policies, &by("ambit-system/web")));
}

#[test]
fn case_26_ports_are_those_of_the_pod() {
    let policies = set([allow(&[to(&[field("ports", &["80"])])])]);
    assert!(!lets_in(&policies, &by("a/b")), "behind a service 80 → 8080 the pod is called on 8080");
    assert!(lets_in(&policies, &on(80, by("a/b"))));
}

#[test]
fn case_27_an_allow_rule_with_a_path_is_dropped_as_a_whole() {
    let rule = WrittenRule {
        to: vec![vec![field("ports", &["5432"])], vec![field("paths", &["/x"])]],
        ..WrittenRule::default()
    };
    assert!(!lets_in(&set([allow(&[rule])]), &on(5432, by("a/b"))));
}

#[test]
fn case_28_a_deny_rule_holds_by_the_rest_of_it() {
    let methods = || field("methods", &["POST"]);
    let principal = || field("principals", &["cluster.local/ns/a/sa/b"]);
    let when = |name, source| WrittenRule { when: vec![field(name, &["x"])], ..from(&[source]) };
    let both = WrittenRule { to: vec![vec![methods()]], ..from(&[field("namespaces", &["dev"])]) };
    let either = WrittenRule { to: vec![vec![methods()], vec![field("ports", &["80"])]], ..anything() };
    // The rules, and whether they refuse a/b and dev/b on 8080, and a/b on 80.
    let rows = [
        (vec![to(&[methods()])], [true, true, true]),
        (vec![to(&[field("ports", &["8080"]), methods()])], [true, true, false]),
        (vec![both], [false, true, false]),
        (vec![when("request.headers[x]", principal())], [true, false, true]),
        (vec![from(&[principal(), field("notRequestPrincipals", &["r"])])], [true, false, true]),
        (vec![either], [true, true, true]),
        (vec![from(&[field("remoteIpBlocks", &["10.0.0.9"])])], [true, true, true]),
        (vec![from(&[field("remoteIpBlocks", &["10.0.0.8"])])], [false, false, false]),
        (vec![to(&[methods()]), anything()], [true, true, true]),
    ];
    for (row, (rules, expected)) in rows.into_iter().enumerate() {
        let policies = set([deny(&rules)]);
        let calls = [by("a/b"), by("dev/b"), on(80, by("a/b"))];
        assert_eq!(calls.map(|call| !lets_in(&policies, &call)), expected, "row {row}");
        // CUSTOM, too; and ALLOW, the other way round, opens to nobody by a rule that it cannot judge.
        let custom = set([policy("custom", Action::Custom, &rules)]);
        assert_eq!(
            [by("a/b"), by("dev/b"), on(80, by("a/b"))].map(|call| !lets_in(&custom, &call)),
            expected
        );
        let allow = set([allow(&rules[..1])]);
        assert!(!lets_in(&allow, &by("a/b")), "row {row}: let in by what is not known");
    }
}

#[test]
fn case_32_cluster_local_is_our_own_trust_domain() {
    let td1 = TrustDomains::new("td1".parse().unwrap(), []);
    let rules = [from(&[field("principals", &["cluster.local/ns/a/sa/b"])])];
    let policies = set([policy_in("shop", "p", Action::Allow, &rules, &td1)]);
    let of = |id: &str| Call { peer: Some(id.parse().unwrap()), ..by("a/b") };
    assert!(lets_in(&policies, &of("spiffe://td1/ns/a/sa/b")));
    assert!(!lets_in(&policies, &of("spiffe://td2/ns/a/sa/b")));
}

#[test]
fn case_33_custom_without_a_provider_denies() {
    let custom = policy("custom", Action::Custom, &[to(&[field("ports", &["8080"])])]);
    let policies = set([custom, allow(&[anything()])]);
    let refused = refusal(&policies, &by("a/b"));
    assert!(
        refused
            .text
            .contains("provider opa of CUSTOM AuthorizationPolicy shop/custom rules[0] has not let it in"),
        "{refused}"
    );
    assert!(lets_in(&policies, &on(80, by("a/b"))));
}

#[test]
fn audit_refuses_nobody() {
    assert!(lets_in(&set([policy("audit", Action::Audit, &[anything()])]), &plaintext()));
}
