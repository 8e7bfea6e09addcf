use super::*;
use crate::{model::SpiffeId, reason::Reason};

mod doubt;

const ROOT: &str = "ambit-system";

fn object(namespace: &str, name: &str) -> PeerAuthentication {
    PeerAuthentication {
        name: ObjectName::new(namespace, name),
        created: Some(1_000),
        selector: Labels::new(),
        mode: None,
        port_modes: BTreeMap::new(),
        doubt: None,
    }
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
}

fn set(objects: impl IntoIterator<Item = PeerAuthentication>) -> PolicySet {
    let mut policies = PolicySet::new(ROOT);
    for object in objects {
        policies.upsert(Arc::new(object));
    }
    policies
}

fn app() -> Labels {
    labels(&[("app", "web"), ("tier", "front")])
}

/// Whether plaintext to `port` of the pod `shop` with [`app`] labels is taken.
fn takes_plaintext(policies: &PolicySet, port: u16) -> bool {
    verdict(policies, port, None) == Decision::Allow
}

/// The mode on `port` of a pod in `namespace` with [`app`] labels, and the object that set it.
fn mtls_mode(policies: &PolicySet, namespace: &str, port: u16) -> (MtlsMode, Option<ObjectName>) {
    let MtlsRule { mode, by, .. } = policies.compile_for(&namespace.into(), &app()).mtls(port).clone();
    (mode, by)
}

fn verdict(policies: &PolicySet, port: u16, peer: Option<&SpiffeId>) -> Decision {
    let [source_ip, destination_ip] = ["10.0.0.9", "10.0.0.1"].map(|ip| ip.parse().unwrap());
    let facts = Facts { port, peer, source_ip, destination_ip, request: None, admitted: false, sni: None };
    decide(&policies.compile_for(&"shop".into(), &app()), &facts)
}

/// The table of Istio's order of precedence, row by row; `Some(None)` is an object that says UNSET or nothing.
#[test]
fn effective_mode_table() {
    use Mode::{Disable, Permissive, Strict};
    type Cell = Option<Option<Mode>>;
    let (perm, strict) = (MtlsMode::Permissive, MtlsMode::Strict);
    let rows: [(Cell, Cell, Cell, Option<Mode>, MtlsMode, MtlsMode); 11] = [
        (None, None, None, None, perm, perm),
        (Some(Some(Strict)), None, None, None, strict, strict),
        (Some(Some(Strict)), Some(None), None, None, strict, strict),
        (Some(Some(Strict)), Some(Some(Permissive)), None, None, perm, perm),
        (Some(Some(Permissive)), Some(Some(Strict)), Some(Some(Permissive)), None, perm, perm),
        (Some(Some(Strict)), None, Some(None), Some(Permissive), perm, strict),
        (Some(Some(Strict)), None, Some(None), Some(Disable), perm, strict),
        (Some(Some(Permissive)), None, Some(None), Some(Strict), strict, perm),
        (None, Some(Some(Strict)), Some(Some(Disable)), Some(Strict), strict, perm),
        (None, None, Some(Some(Strict)), None, strict, strict),
        (Some(None), Some(None), Some(None), None, perm, perm),
    ];
    for (row, (mesh, ns, workload, port, at_8080, elsewhere)) in rows.into_iter().enumerate() {
        let mesh = mesh.map(|mode| PeerAuthentication { mode, ..object(ROOT, "mesh") });
        let ns = ns.map(|mode| PeerAuthentication { mode, ..object("shop", "ns") });
        let workload = workload.map(|mode| PeerAuthentication {
            mode,
            selector: labels(&[("app", "web")]),
            port_modes: port.map(|mode| (8080, mode)).into_iter().collect(),
            ..object("shop", "wl")
        });
        let policies = set([mesh, ns, workload].into_iter().flatten());
        assert_eq!(mtls_mode(&policies, "shop", 8080).0, at_8080, "row {row}, port 8080");
        assert_eq!(mtls_mode(&policies, "shop", 9090).0, elsewhere, "row {row}, other port");
    }
}

#[test]
fn case_01_same_second_name_decides() {
    let a = PeerAuthentication { mode: Some(Mode::Permissive), ..object("shop", "a") };
    let b = PeerAuthentication { mode: Some(Mode::Strict), ..object("shop", "b") };
    for policies in [set([a.clone(), b.clone()]), set([b.clone(), a.clone()])] {
        assert!(takes_plaintext(&policies, 80));
        assert_eq!(mtls_mode(&policies, "shop", 80).1, Some(ObjectName::new("shop", "a")));
    }
}

#[test]
fn case_02_selector_in_the_root_namespace_is_ignored() {
    let policy = PeerAuthentication {
        mode: Some(Mode::Strict),
        selector: labels(&[("app", "web")]),
        port_modes: BTreeMap::from([(80, Mode::Strict)]),
        ..object(ROOT, "sel")
    };
    let policies = set([policy]);
    assert!(takes_plaintext(&policies, 80));
    // Also for pods that live in the root namespace.
    assert_eq!(mtls_mode(&policies, ROOT, 80), (MtlsMode::Permissive, None));
}

#[test]
fn case_03_absent_mtls_inherits_mesh_strict() {
    let mesh = PeerAuthentication { mode: Some(Mode::Strict), ..object(ROOT, "mesh") };
    let policies = set([mesh, object("shop", "ns")]);
    assert!(!takes_plaintext(&policies, 80));
    assert_eq!(mtls_mode(&policies, "shop", 80).1, Some(ObjectName::new(ROOT, "mesh")));
}

fn strict_namespace_with_port(port: u16, mode: Mode) -> PolicySet {
    let ns = PeerAuthentication { mode: Some(Mode::Strict), ..object("shop", "ns") };
    let workload = PeerAuthentication {
        selector: labels(&[("app", "web")]),
        port_modes: BTreeMap::from([(port, mode)]),
        ..object("shop", "wl")
    };
    set([ns, workload])
}

#[test]
fn case_04_port_exception_under_a_strict_namespace() {
    let policies = strict_namespace_with_port(8080, Mode::Permissive);
    assert!(takes_plaintext(&policies, 8080));
    assert!(!takes_plaintext(&policies, 8081));
    assert_eq!(mtls_mode(&policies, "shop", 8080).1, Some(ObjectName::new("shop", "wl")));
    assert_eq!(mtls_mode(&policies, "shop", 8081).1, Some(ObjectName::new("shop", "ns")));
}

#[test]
fn case_05_port_level_keys_are_pod_ports_not_service_ports() {
    assert!(!takes_plaintext(&strict_namespace_with_port(80, Mode::Permissive), 8080));
}

#[test]
fn case_06_port_disable_under_a_strict_namespace() {
    let policies = strict_namespace_with_port(8080, Mode::Disable);
    assert!(takes_plaintext(&policies, 8080));
    assert!(!takes_plaintext(&policies, 80));
}

#[test]
fn case_07_disable_accepts_mutual_tls() {
    let policies = set([PeerAuthentication { mode: Some(Mode::Disable), ..object("shop", "ns") }]);
    let peer = "spiffe://cluster.local/ns/a/sa/b".parse().unwrap();
    assert_eq!(verdict(&policies, 80, Some(&peer)), Decision::Allow);
    assert_eq!(verdict(&policies, 80, None), Decision::Allow);
}

#[test]
fn case_08_only_the_oldest_selecting_object_counts() {
    let old = PeerAuthentication {
        created: Some(10),
        mode: Some(Mode::Permissive),
        selector: labels(&[("app", "web")]),
        ..object("shop", "z-old")
    };
    let new = PeerAuthentication {
        created: Some(11),
        selector: labels(&[("tier", "front")]),
        port_modes: BTreeMap::from([(9090, Mode::Strict)]),
        ..object("shop", "a-new")
    };
    assert!(takes_plaintext(&set([new, old]), 9090));
}

#[test]
fn case_09_application_tls_is_plaintext() {
    // The application's own TLS carries no identity of the mesh: `peer` is `None`, on 8443 as on any port.
    let policies = set([PeerAuthentication { mode: Some(Mode::Strict), ..object("shop", "default") }]);
    let Decision::Deny(denial) = verdict(&policies, 8443, None) else { panic!("accepted") };
    assert_eq!((denial.reason, denial.policy.as_deref()), (Reason::MtlsRequired, Some("shop/default")));
    assert_eq!(
        &*denial.text,
        "plaintext from 10.0.0.9 refused: mutual TLS is STRICT on port 8443 of pods in namespace shop \
         by PeerAuthentication shop/default"
    );
}

#[test]
fn case_10_strict_is_a_denial() {
    // An ALLOW cannot override it: `decide` answers for plaintext before any authorization policy is asked.
    let policies = set([PeerAuthentication { mode: Some(Mode::Strict), ..object(ROOT, "mesh") }]);
    assert!(matches!(verdict(&policies, 80, None), Decision::Deny(_)));
}

#[test]
fn scopes_are_apart() {
    let strict = |namespace, name| PeerAuthentication { mode: Some(Mode::Strict), ..object(namespace, name) };
    assert!(takes_plaintext(&set([strict("other", "default")]), 80), "another namespace's object");
    let elsewhere = PeerAuthentication { selector: labels(&[("app", "db")]), ..strict("shop", "db") };
    assert!(takes_plaintext(&set([elsewhere]), 80), "a selector that does not match");
    let both =
        PeerAuthentication { selector: labels(&[("app", "web"), ("tier", "back")]), ..strict("shop", "x") };
    assert!(takes_plaintext(&set([both]), 80), "a selector that matches in part");
    let root_pod = mtls_mode(&set([strict(ROOT, "mesh")]), ROOT, 80);
    assert_eq!(root_pod, (MtlsMode::Strict, Some(ObjectName::new(ROOT, "mesh"))));
}

#[test]
fn an_object_without_timestamp_is_the_newest() {
    let dated = PeerAuthentication { mode: Some(Mode::Strict), ..object("shop", "z") };
    let undated = PeerAuthentication { created: None, mode: Some(Mode::Permissive), ..object("shop", "a") };
    assert!(!takes_plaintext(&set([undated, dated]), 80));
}

#[test]
fn changes_replace_and_remove() {
    let mut policies = set([PeerAuthentication { mode: Some(Mode::Strict), ..object("shop", "p") }]);
    let before = policies.clone();
    // The same object may move from one list to the other.
    policies.upsert(Arc::new(PeerAuthentication {
        mode: Some(Mode::Strict),
        selector: labels(&[("app", "db")]),
        ..object("shop", "p")
    }));
    assert!(takes_plaintext(&policies, 80));
    assert!(!takes_plaintext(&before, 80), "a snapshot changed under its reader");
    policies.upsert(Arc::new(PeerAuthentication { mode: Some(Mode::Strict), ..object("shop", "p") }));
    assert!(!takes_plaintext(&policies, 80));
    policies.remove(&ObjectName::new("shop", "p"));
    policies.remove(&ObjectName::new("nowhere", "p"));
    assert!(takes_plaintext(&policies, 80));
}

fn workload(namespace: &str, labels: Labels) -> Workload {
    Workload {
        name: ObjectName::new(namespace, "pod"),
        uid: "u".into(),
        identity: "spiffe://cluster.local/ns/a/sa/b".parse().unwrap(),
        node: "n".into(),
        ips: vec![],
        labels,
        named_ports: BTreeMap::new(),
        probe_ports: vec![],
        host_network: false,
        enrolled: true,
        netns: None,
        http_telemetry: false,
    }
}

#[test]
fn a_change_reaches_those_whom_it_may_concern() {
    let (web, db) = (workload("shop", app()), workload("shop", labels(&[("app", "db")])));
    let elsewhere = workload("other", app());
    let covered = |reach: &Reach| [&web, &db, &elsewhere].map(|workload| reach.covers(workload));
    let mut policies = PolicySet::new(ROOT);

    let selecting = PeerAuthentication { selector: labels(&[("app", "web")]), ..object("shop", "p") };
    assert_eq!(covered(&policies.upsert(Arc::new(selecting))), [true, false, false]);
    let other = PeerAuthentication { selector: labels(&[("app", "db")]), ..object("shop", "p") };
    assert_eq!(
        covered(&policies.upsert(Arc::new(other))),
        [true, true, false],
        "those that it has left, too"
    );
    assert_eq!(covered(&policies.remove(&ObjectName::new("shop", "p"))), [false, true, false]);
    assert_eq!(covered(&policies.upsert(Arc::new(object("shop", "ns")))), [true, true, false]);
    assert_eq!(covered(&policies.upsert(Arc::new(object(ROOT, "mesh")))), [true, true, true]);
    let ignored = PeerAuthentication { selector: labels(&[("app", "web")]), ..object(ROOT, "sel") };
    assert!(policies.upsert(Arc::new(ignored)).is_empty());
    assert!(policies.remove(&ObjectName::new("nowhere", "p")).is_empty());
}

#[test]
fn what_decides_alike_is_equal() {
    let mut policies = set([PeerAuthentication { mode: Some(Mode::Strict), ..object("shop", "ns") }]);
    let before = policies.compile(&workload("shop", app()));
    policies.upsert(Arc::new(PeerAuthentication { created: Some(2_000), ..object("shop", "younger") }));
    assert_eq!(policies.compile(&workload("shop", app())), before);
    policies.remove(&ObjectName::new("shop", "ns"));
    assert_ne!(policies.compile(&workload("shop", app())), before);
}
