use super::*;
use crate::discovery::{
    ClientSettings, ClientTls, ConnectionPool, DestinationRule, EntryAddress, EntryEndpoint, EntryPort,
    EntryProtocol, ExportTo, HostPattern, Origination, Prefix, Resolution, Roots, ServiceEntry,
    TrafficPolicy, WorkloadEntry,
};

/// The findings of a scene, each as its code, object and field.
fn found(scene: &Scene) -> Vec<String> {
    let told = |finding: Finding| {
        format!("{} {} {}", finding.code, finding.subject, finding.field.unwrap_or_default())
            .trim_end()
            .to_owned()
    };
    analyze(scene.cluster()).into_iter().map(told).collect()
}

fn message(scene: &Scene, code: &str) -> String {
    let findings = analyze(scene.cluster());
    findings
        .into_iter()
        .find(|finding| finding.code == code)
        .map(|finding| finding.message)
        .unwrap_or_default()
}

fn principals(name: &str, values: &[&str]) -> Rule {
    Rule::new(
        vec![vec![field(&format!("from[0].source.{name}"), Attribute::Principal, values)]],
        vec![],
        vec![],
    )
}

fn namespaces(values: &[&str]) -> Rule {
    let field = field("from[0].source.namespaces", Attribute::Namespace, values);
    Rule::new(vec![vec![field]], vec![], vec![])
}

#[test]
fn what_is_right_is_left_alone() {
    let scene = shop()
        .peer("ambit-system/mesh", None, Some(Mode::Strict), &[])
        .policy("shop/base", None, Action::Allow, vec![])
        .policy("shop/port", Some("cart"), Action::Allow, vec![ports(&["8080"])])
        .policy("shop/no-old", None, Action::Deny, vec![namespaces(&["plain", "sto*"])]);
    assert_eq!(found(&scene), [""; 0]);
}

#[test]
fn selectors_that_match_nothing_are_told_with_the_label_that_differs() {
    let scene = shop().policy("shop/p", Some("crat"), Action::Allow, vec![]);
    assert_eq!(found(&scene), ["selects-nothing AuthorizationPolicy shop/p spec.selector.matchLabels"]);
    assert!(message(&scene, "selects-nothing").contains("app: crat is asked for, and pod shop/"));
    let scene = shop().peer("shop/p", Some("crat"), Some(Mode::Strict), &[]);
    assert_eq!(found(&scene), ["selects-nothing PeerAuthentication shop/p spec.selector.matchLabels"]);
    let mut scene = shop();
    let target = Target::Services(vec!["none".into()]);
    let policy = AuthorizationPolicy {
        name: named("shop/p"),
        target,
        action: Action::Deny,
        provider: None,
        rules: vec![Rule::default()],
        dry_run: false,
        doubt: None,
    };
    scene.policies.apply(policy::Change::AuthorizationPolicy(Arc::new(policy)));
    assert_eq!(found(&scene), ["selects-nothing AuthorizationPolicy shop/p spec.targetRefs"]);
    let scene = shop().policy("plain/p", None, Action::Allow, vec![]);
    assert_eq!(found(&scene), ["not-in-mesh AuthorizationPolicy plain/p"]);
}

#[test]
fn ports_of_services_are_told_with_those_of_the_pods() {
    let scene = shop().policy("shop/p", Some("cart"), Action::Allow, vec![ports(&["80"])]);
    assert_eq!(
        found(&scene),
        ["service-port AuthorizationPolicy shop/p spec.rules[0].to[0].operation.ports"]
    );
    assert!(
        message(&scene, "service-port")
            .contains("80 is the port of service shop/cart, whose pods listen on 8080")
    );
    let scene = shop().peer("shop/p", Some("cart"), None, &[(80, Mode::Strict), (7, Mode::Strict)]);
    assert_eq!(
        found(&scene),
        [
            "service-port PeerAuthentication shop/p spec.portLevelMtls.80",
            "undeclared-port PeerAuthentication shop/p spec.portLevelMtls.7"
        ]
    );
}

#[test]
fn rules_that_need_http_where_none_is_spoken() {
    let methods = || {
        Rule::new(vec![], vec![vec![field("to[0].operation.methods", Attribute::Method, &["GET"])]], vec![])
    };
    let scene = shop().policy("shop/p", Some("cart"), Action::Allow, vec![methods()]);
    assert_eq!(found(&scene), [""; 0], "the service's port is http");
    let scene = Scene::new()
        .pod("shop/db-0", "db", "10.0.0.9", &[3306])
        .service("shop/db", "db", "10.96.0.9", ("mysql-main", 3306, 3306))
        .policy("shop/p", Some("db"), Action::Allow, vec![methods()]);
    assert_eq!(
        found(&scene),
        ["http-rule-on-other-port AuthorizationPolicy shop/p spec.rules[0].to[0].operation.methods"]
    );
}

#[test]
fn exceptions_from_strict_and_objects_without_effect() {
    let scene = shop()
        .peer("ambit-system/mesh", None, Some(Mode::Strict), &[])
        .peer("shop/open", None, Some(Mode::Permissive), &[])
        .peer("stock/port", Some("web"), Some(Mode::Strict), &[(8080, Mode::Disable)]);
    assert_eq!(
        found(&scene),
        [
            "permissive-under-strict PeerAuthentication shop/open spec.mtls.mode",
            "permissive-under-strict PeerAuthentication stock/port spec.portLevelMtls.8080",
        ]
    );
    let scene = shop()
        .peer("shop/a", None, Some(Mode::Strict), &[])
        .peer("shop/b", None, Some(Mode::Permissive), &[])
        .peer("shop/c", Some("cart"), Some(Mode::Strict), &[])
        .peer("shop/d", Some("cart"), Some(Mode::Strict), &[(8080, Mode::Strict)]);
    assert_eq!(
        found(&scene),
        [
            "ignored-duplicate PeerAuthentication shop/b spec.selector",
            "ignored-duplicate PeerAuthentication shop/d spec.selector",
        ]
    );
}

#[test]
fn a_denial_by_identity_is_evaded_in_plaintext() {
    let deny = || shop().policy("shop/p", Some("web"), Action::Deny, vec![namespaces(&["stock"])]);
    let evaded = ["plaintext-evades-deny AuthorizationPolicy shop/p spec.rules[0].from[0].source.namespaces"];
    assert_eq!(found(&deny()), evaded);
    assert_eq!(found(&deny().peer("shop/s", None, Some(Mode::Strict), &[])), [""; 0]);
    // Whoever has no identity gets in by no ALLOW, or is refused by itself.
    assert_eq!(
        found(&deny().policy("shop/q", Some("web"), Action::Allow, vec![accounts(&["web"])])),
        [""; 0]
    );
    let all = || vec![principals("notPrincipals", &["*"])];
    assert_eq!(found(&deny().policy("shop/q", Some("web"), Action::Deny, all())), [""; 0]);
    assert_eq!(found(&deny().policy("shop/q", Some("web"), Action::Allow, vec![Rule::default()])), evaded);
}

#[test]
fn rules_that_others_make_useless() {
    let scene = shop().peer("ambit-system/mesh", None, Some(Mode::Strict), &[]).policy(
        "shop/deny",
        None,
        Action::Deny,
        vec![accounts(&["web", "cart"])],
    );
    assert_eq!(found(&scene), ["shadowed-rule AuthorizationPolicy shop/only-web spec.rules[0]"]);
    let scene = shop().policy("shop/a", None, Action::Allow, vec![accounts(&["web", "cart"])]);
    assert_eq!(found(&scene), ["redundant-rule AuthorizationPolicy shop/only-web spec.rules[0]"]);
    let scene = shop().policy("shop/z", Some("cart"), Action::Allow, vec![accounts(&["web"])]);
    assert_eq!(
        found(&scene),
        ["redundant-rule AuthorizationPolicy shop/z spec.rules[0]"],
        "the later of two"
    );
    // A narrower one takes nothing from a wider one, nor one of other pods.
    let scene = shop().policy("shop/a", Some("web"), Action::Allow, vec![accounts(&["web"])]).policy(
        "shop/b",
        Some("cart"),
        Action::Allow,
        vec![accounts(&["web", "cart"]), ports(&["8080"])],
    );
    assert_eq!(found(&scene), ["redundant-rule AuthorizationPolicy shop/only-web spec.rules[0]"]);
}

#[test]
fn what_can_match_nothing() {
    let scene = shop().policy("shop/none", None, Action::Deny, vec![]).policy(
        "shop/p",
        None,
        Action::Allow,
        vec![principals(
            "principals",
            &["spiffe://cluster.local/ns/shop/sa/web", "cluster.local/ns/shop/web", "*x*", "*/sa/web", "*"],
        )],
    );
    let path = "spec.rules[0].from[0].source.principals";
    let never = format!("never-matches AuthorizationPolicy shop/p {path}");
    assert_eq!(
        found(&scene),
        ["never-matches AuthorizationPolicy shop/none spec.rules", &never, &never, &never]
    );
}

#[test]
fn names_that_nothing_bears() {
    let scene = shop().policy(
        "shop/p",
        None,
        Action::Allow,
        vec![
            namespaces(&["shop", "elsewhere", "x*"]),
            accounts(&["web", "wbe"]),
            principals("principals", &["cluster.local/ns/nowhere/sa/x", "cluster.local/ns/stock/sa/web"]),
        ],
    );
    let at = |code: &str, rule: usize, field: &str| {
        format!("{code} AuthorizationPolicy shop/p spec.rules[{rule}].from[0].source.{field}")
    };
    let expected = [
        at("unknown-namespace", 0, "namespaces"),
        at("unknown-principal", 1, "serviceAccounts"),
        at("unknown-namespace", 2, "principals"),
    ];
    let findings = found(&scene);
    let unknown: BTreeSet<_> =
        findings.iter().filter(|finding| finding.starts_with("unknown")).cloned().collect();
    assert_eq!(unknown, BTreeSet::from(expected), "{findings:?}");
    assert!(
        message(&scene, "unknown-principal").contains("no pod has service account wbe in namespace shop")
    );
    // From policies alone nothing is known.
    let alone = Scene::new().policy("shop/p", None, Action::Allow, vec![namespaces(&["elsewhere"])]);
    assert_eq!(found(&alone), [""; 0]);
}

#[test]
fn every_code_is_listed_once() {
    let codes: BTreeSet<&str> = CODES.iter().map(|(code, _)| *code).collect();
    assert_eq!(codes.len(), CODES.len());
}

/// A scene with a rule for `host` whose TLS is this.
fn ruled(scene: Scene, host: &str, tls: ClientTls) -> Scene {
    let settings = ClientSettings { rule: named("shop/r"), tls, pool: ConnectionPool::default() };
    let rule = DestinationRule {
        name: named("shop/r"),
        created: None,
        host: HostPattern::new(host),
        exported_to: ExportTo::All,
        selector: None,
        policy: Some(TrafficPolicy { default: Arc::new(settings), ports: BTreeMap::new() }),
    };
    changed(scene, Change::DestinationRule(Arc::new(rule)))
}

fn changed(mut scene: Scene, change: Change) -> Scene {
    scene.mesh.apply(change);
    scene
}

fn entry(name: &str, address: &str, (number, target): (u16, u16), protocol: EntryProtocol) -> Change {
    Change::ServiceEntry(Arc::new(ServiceEntry {
        name: named(name),
        created: None,
        hosts: vec!["api.example.com".into()],
        wildcards: vec![],
        addresses: vec![Prefix::single(address.parse().unwrap())],
        no_vips: false,
        ports: vec![EntryPort { number, name: "p".into(), target, protocol }],
        resolution: Resolution::None,
        endpoints: vec![],
        selector: None,
        exported_to: ExportTo::All,
        subject_alt_names: vec![],
        identities: None,
    }))
}

fn simple() -> ClientTls {
    ClientTls::Originate(Arc::new(Origination {
        sni: None,
        names: vec![],
        roots: Roots::System,
        client: None,
        crl: None,
        insecure: false,
    }))
}

#[test]
fn rules_for_what_is_outside_are_looked_at() {
    let api = |port, protocol| changed(shop(), entry("shop/api", "192.0.2.1", port, protocol));
    let rule = |code: &str, field: &str| vec![format!("{code} DestinationRule shop/r spec.{field}")];
    let tls = "trafficPolicy.tls";
    for (scene, expected) in [
        (ruled(shop(), "api.example.com", simple()), rule("unknown-host", "host")),
        (ruled(api((80, 443), EntryProtocol::Http), "api.example.com", simple()), vec![]),
        (
            ruled(api((80, 80), EntryProtocol::Http), "api.example.com", simple()),
            rule("tls-to-plaintext-port", tls),
        ),
        (ruled(api((443, 443), EntryProtocol::Tls), "api.example.com", simple()), rule("tls-in-tls", tls)),
        (
            ruled(api((80, 443), EntryProtocol::Http), "*.example.com", ClientTls::IstioMutual),
            rule("mtls-outside-mesh", "trafficPolicy.tls.mode"),
        ),
        (
            ruled(api((80, 443), EntryProtocol::Http), "*.example.com", ClientTls::Disable),
            rule("rule-without-effect", "trafficPolicy"),
        ),
    ] {
        assert_eq!(found(&scene), expected);
    }
}

#[test]
fn addresses_of_entries_that_are_somebody_elses_are_told() {
    let at = |name: &str, address: &str| entry(name, address, (80, 80), EntryProtocol::Tcp);
    let scene = changed(changed(shop(), at("shop/x", "192.0.2.1")), at("shop/y", "192.0.2.1"));
    let of_the_younger = [
        "overlapping-address ServiceEntry shop/y spec.addresses",
        "hidden-host ServiceEntry shop/y spec.hosts",
    ];
    assert_eq!(found(&scene), of_the_younger);
    let service = shop().mesh.services().next().unwrap().cluster_ips[0].to_string();
    let scene = changed(shop(), at("shop/x", &service));
    assert_eq!(found(&scene), ["overlapping-address ServiceEntry shop/x spec.addresses"]);
}

#[test]
fn a_rule_that_takes_away_what_a_wider_one_says_has_an_effect() {
    let scene = changed(shop(), entry("shop/api", "192.0.2.1", (80, 443), EntryProtocol::Http));
    let wider = DestinationRule {
        name: named("shop/wider"),
        created: None,
        host: HostPattern::new("*.example.com"),
        exported_to: ExportTo::All,
        selector: None,
        policy: Some(TrafficPolicy {
            default: Arc::new(ClientSettings {
                rule: named("shop/wider"),
                tls: simple(),
                pool: ConnectionPool::default(),
            }),
            ports: BTreeMap::new(),
        }),
    };
    let scene = changed(scene, Change::DestinationRule(Arc::new(wider)));
    assert_eq!(found(&ruled(scene, "api.example.com", ClientTls::Disable)), [""; 0]);
}

#[test]
fn entries_that_something_else_goes_before_are_told() {
    let at = |name: &str, address: &str| entry(name, address, (80, 80), EntryProtocol::Tcp);
    let scene = changed(changed(shop(), at("shop/x", "192.0.2.1")), at("shop/y", "192.0.2.2"));
    assert_eq!(found(&scene), ["hidden-host ServiceEntry shop/y spec.hosts"]);
    let scene = changed(changed(shop(), at("shop/x", "192.0.2.1")), at("stock/y", "192.0.2.2"));
    assert_eq!(found(&scene), [""; 0], "each namespace has its own");
    let host = shop().mesh.host_of_service(&shop().mesh.services().next().unwrap().name);
    let Change::ServiceEntry(own) = at("shop/x", "192.0.2.1") else { panic!("no entry") };
    let own = ServiceEntry { hosts: vec![host], ..ServiceEntry::clone(&own) };
    let scene = changed(shop(), Change::ServiceEntry(Arc::new(own)));
    assert_eq!(found(&scene), ["hidden-host ServiceEntry shop/x spec.hosts"]);
}

#[test]
fn a_workload_that_nothing_selects_is_told() {
    let workload = |name: &str| {
        let address = EntryAddress::Ip("192.0.2.9".parse().unwrap());
        let endpoint = EntryEndpoint { address, ports: BTreeMap::new() };
        let labels = labels(&[("app", "vm")]);
        Change::WorkloadEntry(Arc::new(WorkloadEntry { name: named(name), labels, endpoint }))
    };
    let Change::ServiceEntry(own) = entry("shop/x", "192.0.2.1", (80, 80), EntryProtocol::Tcp) else {
        panic!("no entry")
    };
    let selecting = ServiceEntry {
        selector: Some(labels(&[("app", "vm")])),
        resolution: Resolution::Static,
        ..ServiceEntry::clone(&own)
    };
    let scene = changed(shop(), workload("shop/vm"));
    assert_eq!(found(&scene), ["unselected-workload WorkloadEntry shop/vm spec.labels"]);
    let scene = changed(scene, Change::ServiceEntry(Arc::new(selecting)));
    assert_eq!(found(&scene), [""; 0]);
    let scene = changed(scene, workload("stock/vm"));
    assert_eq!(found(&scene), ["unselected-workload WorkloadEntry stock/vm spec.labels"]);
}

#[test]
fn rules_about_requests_that_do_not_do_what_they_say() {
    let rule = |fields: Vec<Field>| Rule::new(vec![], vec![fields], vec![]);
    let policy = |action, fields| shop().policy("shop/p", Some("cart"), action, vec![rule(fields)]);
    let paths = |values: &[&str]| vec![field("to[0].operation.paths", Attribute::Path, values)];
    let at = "AuthorizationPolicy shop/p spec.rules[0].to[0].operation";
    let odd = policy(Action::Allow, paths(&["/a", "/b*", "*.js", "/c/{*}", "/d/*/e", "f", "/g?h"]));
    assert_eq!(found(&odd), vec![format!("never-matches {at}.paths"); 3]);
    let methods = vec![field("to[0].operation.methods", Attribute::Method, &["GET", "post"])];
    assert_eq!(found(&policy(Action::Allow, methods)), [format!("never-matches {at}.methods")]);
    let hosts = |values: &[&str]| vec![field("to[0].operation.hosts", Attribute::Host, values)];
    let both = ["a.example", "a.example:*", "*.example", "b.example:80"];
    assert_eq!(found(&policy(Action::Allow, hosts(&both))), [""; 0]);
    assert_eq!(
        found(&policy(Action::Deny, hosts(&["a.example"]))),
        [format!("host-without-port {at}.hosts")]
    );

    let custom = policy(Action::Custom, paths(&["/a"]));
    assert_eq!(found(&custom), [""; 0], "no provider is another mistake");

    let principals = || vec![field("from[0].source.requestPrincipals", Attribute::RequestPrincipal, &["*"])];
    let asks = shop().policy(
        "shop/p",
        Some("cart"),
        Action::Allow,
        vec![Rule::new(vec![principals()], vec![], vec![])],
    );
    let no_issuer = "no-issuer AuthorizationPolicy shop/p spec.rules[0].from[0].source.requestPrincipals";
    assert_eq!(found(&asks), [no_issuer]);

    let bare = Scene::new().pod("shop/db-0", "db", "10.0.0.9", &[9000]);
    let deny = bare.policy("shop/p", Some("db"), Action::Deny, vec![rule(paths(&["/admin"]))]);
    assert_eq!(found(&deny), ["deny-beyond-http AuthorizationPolicy shop/p spec.rules[0]"]);
}

#[test]
fn providers_that_are_not_there_or_would_be_asked_about_themselves_are_told() {
    let place = |provider: &str, host: &str, port| ProviderPlace {
        provider: provider.into(),
        namespace: None,
        host: host.into(),
        port,
    };
    let settings = Settings {
        provider_places: vec![
            place("good", "opa.stock.svc.cluster.local", 9191),
            place("gone", "gone.stock.svc.cluster.local", 9191),
            place("portless", "opa.stock", 9192),
            place("elsewhere", "opa.example", 9191),
        ],
        ..Settings::default()
    };
    let scene = || {
        Scene::of(settings.clone())
            .pod("shop/cart-0", "cart", "10.0.0.2", &[8080])
            .pod("stock/opa", "opa", "10.0.0.5", &[9191])
            .service("stock/opa", "opa", "10.96.0.2", ("grpc", 9191, 9191))
    };
    let custom = |scene: Scene, name: &str, app: Option<&str>, provider: &str| {
        let mut scene = scene;
        let target = Target::Pods(app.map(|app| labels(&[("app", app)])).unwrap_or_default());
        let policy = AuthorizationPolicy {
            name: named(name),
            target,
            action: Action::Custom,
            provider: Some(provider.into()),
            rules: vec![Rule::default()],
            dry_run: false,
            doubt: None,
        };
        scene.policies.set_providers(settings.provider_places.iter().map(|place| place.provider.clone()));
        scene.policies.apply(policy::Change::AuthorizationPolicy(Arc::new(policy)));
        scene
    };
    for provider in ["good", "elsewhere"] {
        assert_eq!(found(&custom(scene(), "shop/ask", Some("cart"), provider)), [""; 0]);
    }
    for (provider, words) in [("gone", "stock/gone, which is not there"), ("portless", "no such port")] {
        let scene = custom(scene(), "shop/ask", Some("cart"), provider);
        assert_eq!(found(&scene), ["provider-not-there AuthorizationPolicy shop/ask spec.provider.name"]);
        assert!(message(&scene, "provider-not-there").contains(words));
    }
    let scene = custom(scene(), "stock/ask", None, "good");
    assert_eq!(found(&scene), ["provider-asked-about-itself AuthorizationPolicy stock/ask"]);
    assert!(message(&scene, "provider-asked-about-itself").contains("pod stock/opa of the provider good"));
}

#[test]
fn where_requests_of_a_pod_are_read_and_for_whom() {
    let get = |ports: &[&str]| {
        let fields = [
            field("to[0].operation.methods", Attribute::Method, &["GET"]),
            field("to[0].operation.ports", Attribute::Port, ports),
        ];
        Rule::new(vec![], vec![fields.into_iter().collect()], vec![])
    };
    let scene = shop()
        .service("shop/raw", "cart", "10.96.0.9", ("tcp", 81, 8081))
        .policy("shop/get", Some("cart"), Action::Allow, vec![get(&["8080", "8081", "8082"])])
        .policy("shop/web-only", Some("web"), Action::Allow, vec![get(&["8080"])]);
    let pod = scene.mesh.pod(&named("shop/cart-0")).unwrap();
    let Layer7 { ports, findings } = layer7(scene.cluster(), pod);
    let told: Vec<_> = ports
        .iter()
        .map(|port| (port.port, port.protocol.reading(), port.read_for.as_deref().unwrap_or_default()))
        .collect();
    let reader = "AuthorizationPolicy shop/get";
    assert_eq!(told, [(8080, "http", reader), (8081, "tcp", ""), (8082, "sniffed", reader)]);
    let codes: Vec<_> = findings.iter().map(|finding| finding.code).collect();
    assert_eq!(codes, ["http-rule-on-other-port"], "{findings:?}");
    let unread = scene.policy("shop/get", Some("cart"), Action::Allow, vec![super::ports(&["8080"])]);
    let Layer7 { ports, .. } = layer7(unread.cluster(), unread.mesh.pod(&named("shop/cart-0")).unwrap());
    assert!(ports.iter().all(|port| port.read_for.is_none()), "{ports:?}");
}
