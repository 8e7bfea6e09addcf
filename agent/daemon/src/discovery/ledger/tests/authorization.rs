//! AuthorizationPolicies among other objects: services that they are for, and files that may hold some.

use ambit_core::policy::{Decision, Facts, decide};

use super::*;

impl Bench {
    /// Whether a peer may come to the pods `app: web` of namespace shop.
    fn lets_in(&self) -> bool {
        let labels = [("app".to_owned(), "web".to_owned())].into();
        let id = "spiffe://cluster.local/ns/a/sa/x".parse().unwrap();
        let [source_ip, destination_ip] = ["10.0.0.9", "10.0.0.1"].map(|ip| ip.parse().unwrap());
        let facts = Facts {
            port: 80,
            peer: Some(&id),
            source_ip,
            destination_ip,
            request: None,
            admitted: false,
            sni: None,
        };
        decide(&self.0.policies.compile_for(&"shop".into(), &labels), &facts) == Decision::Allow
    }
}

fn authorization(spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {spec}\n"
    )
}

fn service(selector: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: front, namespace: shop}}\nspec: {{selector: {selector}}}\n"
    )
}

#[test]
fn a_policy_for_a_service_is_for_its_pods() {
    let deny = authorization("{targetRefs: [{kind: Service, name: front}], action: DENY, rules: [{}]}");
    // Whichever comes first.
    for first in [&deny, &service("{app: web}")] {
        let mut bench = Bench::new();
        bench.put("first", first);
        assert!(bench.lets_in());
        bench.put("a", &deny);
        bench.put("b", &service("{app: web}"));
        assert!(!bench.lets_in());
        bench.drop("first");
        assert!(!bench.lets_in());
        bench.put("b", &service("{app: db}"));
        assert!(bench.lets_in());
        bench.put("b", &service("{app: web}"));
        assert!(!bench.lets_in());
        bench.drop("b");
        assert!(bench.lets_in());
    }
}

#[test]
fn an_unreadable_policy_counts_whatever_it_said_before() {
    let mut bench = Bench::new();
    bench.put("a", &authorization("{rules: [{}]}"));
    assert!(bench.lets_in());
    bench.put("a", &authorization("{action: ALLOWED, rules: [{}]}"));
    assert!(!bench.lets_in() && bench.problems()[0].contains("spec.action"), "{:?}", bench.problems());
    bench.drop("a");
    assert!(bench.lets_in() && bench.problems().is_empty());
}

#[test]
fn a_file_that_was_unread_from_the_start_lets_nobody_in() {
    let broken = "kind: [\n";
    let mut bench = Bench::new();
    bench.put("a", broken);
    bench.0.complete();
    assert!(
        !bench.lets_in() && bench.problems().iter().any(|text| text.contains("nobody is let in to any pod"))
    );
    // Other content that says no more is no better.
    bench.put("a", "kind: {\n");
    assert!(!bench.lets_in());
    bench.put("a", &pod("10.0.0.7"));
    assert!(bench.lets_in() && bench.problems().is_empty(), "{:?}", bench.problems());
    // What comes later and cannot be read was never in force.
    bench.put("b", broken);
    assert!(bench.lets_in() && bench.mode() == MtlsMode::Strict);
    let mut bench = Bench::new();
    bench.put("a", broken);
    bench.0.complete();
    bench.drop("a");
    assert!(bench.lets_in());
}

#[test]
fn a_definition_that_is_not_known_closes_by_its_kind() {
    for (kind, lets_in) in [(Kind::PeerAuthentication, true), (Kind::AuthorizationPolicy, false)] {
        let mut bench = Bench::new();
        bench.0.complete();
        bench.0.set_doubtful(&Origin::Definition(kind), true);
        bench.0.settle();
        assert_eq!((bench.lets_in(), bench.mode()), (lets_in, MtlsMode::Strict), "{kind:?}");
        bench.0.set_doubtful(&Origin::Definition(kind), false);
        bench.0.settle();
        assert!(bench.lets_in() && bench.mode() == MtlsMode::Permissive);
    }
}
