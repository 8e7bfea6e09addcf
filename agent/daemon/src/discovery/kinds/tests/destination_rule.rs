//! DestinationRules, ServiceEntries, WorkloadEntries and Secrets.

use std::time::Duration;

use ambit_core::discovery::{
    ClientCertificate, ClientSettings, ClientTls, DestinationRule, EntryAddress, EntryProtocol, ExportTo,
    HostPattern, Resolution, Roots, ServiceEntry, TlsSecret,
};

use super::*;

fn object(kind: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: r, namespace: shop, creationTimestamp: \
         '2026-01-31T12:00:00Z'}}\nspec: {spec}\n"
    )
}

fn rule_of(entry: Entry) -> DestinationRule {
    match entry.stated {
        Stated::Good(Change::Mesh(MeshChange::DestinationRule(rule)))
        | Stated::Strictest(Change::Mesh(MeshChange::DestinationRule(rule))) => DestinationRule::clone(&rule),
        other => panic!("{other:?}"),
    }
}

fn rule(spec: &str) -> DestinationRule {
    let entry = read(&object("DestinationRule", spec));
    assert!(entry.stated.is_good(), "{:?}", entry.problem);
    rule_of(entry)
}

/// The settings for a port of a rule for `x` with this traffic policy.
fn settings(policy: &str, port: u16) -> ClientSettings {
    let rule = rule(&format!("{{host: x, trafficPolicy: {policy}}}"));
    ClientSettings::clone(rule.policy.unwrap().at(port))
}

fn entry(spec: &str) -> ServiceEntry {
    let entry = read(&object("ServiceEntry", spec));
    match entry.stated {
        Stated::Good(Change::Mesh(MeshChange::ServiceEntry(read))) => ServiceEntry::clone(&read),
        other => panic!("{spec}: {other:?} {:?}", entry.problem),
    }
}

#[test]
fn hosts_are_expanded_in_the_rules_namespace() {
    for (host, expected) in [
        ("x", HostPattern::Exact("x.shop.svc.cluster.local".into())),
        ("X.Example.com", HostPattern::Exact("x.example.com".into())),
        ("'*.local'", HostPattern::Suffix(".local".into())),
        ("'*'", HostPattern::Suffix("".into())),
    ] {
        assert_eq!(rule(&format!("{{host: {host}}}")).host, expected);
    }
    for bad in ["{}", "{host: ''}", "{host: 'a b'}", "{host: '*.'}"] {
        assert!(!read(&object("DestinationRule", bad)).stated.is_good(), "{bad}");
    }
}

#[test]
fn exports_and_selectors() {
    let exported = |list: &str| rule(&format!("{{host: x, exportTo: {list}}}")).exported_to;
    assert_eq!(exported("[]"), ExportTo::All);
    assert_eq!(exported("['.', '*']"), ExportTo::All);
    assert_eq!(exported("['.', other]"), ExportTo::Only(vec!["shop".into(), "other".into()]));
    assert_eq!(exported("['~']"), ExportTo::Only(vec![]));
    assert_eq!(rule("{host: x, workloadSelector: {matchLabels: {}}}").selector, None);
    let selector = rule("{host: x, workloadSelector: {matchLabels: {app: web}}}").selector.unwrap();
    assert_eq!(selector.get("app").map(String::as_str), Some("web"));
}

#[test]
fn every_mode_is_read() {
    assert_eq!(settings("{}", 80).tls, ClientTls::Unset);
    assert_eq!(settings("{tls: {}}", 80).tls, ClientTls::Disable);
    assert_eq!(settings("{tls: {mode: DISABLE}}", 80).tls, ClientTls::Disable);
    assert_eq!(settings("{tls: {mode: ISTIO_MUTUAL}}", 80).tls, ClientTls::IstioMutual);
    let ClientTls::Originate(simple) =
        settings("{tls: {mode: SIMPLE, sni: y, subjectAltNames: [a, b]}}", 80).tls
    else {
        panic!("not read")
    };
    assert_eq!((simple.sni.as_deref(), simple.names.len(), &simple.client), (Some("y"), 2, &None));
    assert_eq!(simple.roots, Roots::System);
    let files = "{tls: {mode: MUTUAL, clientCertificate: /c, privateKey: /k, caCertificates: /r, caCrl: /l}}";
    let ClientTls::Originate(mutual) = settings(files, 80).tls else { panic!("not read") };
    assert_eq!(mutual.client, Some(ClientCertificate::Files("/c".into(), "/k".into())));
    assert_eq!((&mutual.roots, mutual.crl.as_deref()), (&Roots::File("/r".into()), Some("/l")));
    let selecting = rule(
        "{host: x, workloadSelector: {matchLabels: {app: web}}, trafficPolicy: {tls: {mode: MUTUAL, credentialName: s}}}",
    );
    let ClientTls::Originate(secret) = &selecting.policy.unwrap().default.tls else { panic!("not read") };
    let name = ObjectName::new("shop", "s");
    assert_eq!(
        (&secret.client, &secret.roots),
        (&Some(ClientCertificate::Secret(name.clone())), &Roots::Secret(name))
    );
}

#[test]
fn case_50_ports_have_what_is_said_of_them_and_no_more() {
    let policy = "{tls: {mode: SIMPLE}, connectionPool: {tcp: {maxConnections: 7}}, portLevelSettings: [{port: {number: 80}}, \
                  {port: {number: 81}, tls: {mode: ISTIO_MUTUAL}}]}";
    assert_eq!(
        (settings(policy, 80).tls, settings(policy, 80).pool.max_connections),
        (ClientTls::Unset, None)
    );
    assert_eq!(settings(policy, 81).tls, ClientTls::IstioMutual);
    assert!(matches!(settings(policy, 82).tls, ClientTls::Originate(_)));
    let pool = settings(
        "{connectionPool: {tcp: {connectTimeout: 1.5s, idleTimeout: 1h, maxConnectionDuration: 0s, tcpKeepalive: {probes: 3, time: 10s}}}}",
        80,
    )
    .pool;
    assert_eq!(pool.connect_timeout, Some(Duration::from_millis(1500)));
    assert_eq!((pool.idle_timeout, pool.max_duration), (Some(Duration::from_secs(3600)), None));
    assert_eq!(pool.keepalive.unwrap().time, Some(Duration::from_secs(10)));
}

#[test]
fn what_cannot_be_meant_is_refused_with_its_field() {
    for (tls, field) in [
        ("{mode: SIMPEL}", "tls.mode"),
        ("{mode: MUTUAL}", "tls.clientCertificate"),
        ("{mode: MUTUAL, clientCertificate: /c}", "tls.privateKey"),
        ("{mode: ISTIO_MUTUAL, sni: x}", "tls.sni"),
        ("{mode: ISTIO_MUTUAL, insecureSkipVerify: true}", "tls.insecureSkipVerify"),
        ("{mode: SIMPLE, insecureSkipVerify: true, caCertificates: /r}", "tls.insecureSkipVerify"),
        ("{mode: SIMPLE, credentialName: s}", "tls.credentialName"),
        ("{mode: SIMPLE, subjectAltNames: ['']}", "tls.subjectAltNames[0]"),
        ("{mode: SIMPLE, mod: x}", "tls.mod"),
    ] {
        let text = object("DestinationRule", &format!("{{host: x, trafficPolicy: {{tls: {tls}}}}}"));
        let said = complaint(&text);
        assert!(said.contains(&format!("spec.trafficPolicy.{field}:")), "{tls}: {said}");
        // The way to the host is closed.
        let unreadable = rule_of(read(&text));
        assert_eq!(unreadable.host, HostPattern::Exact("x.shop.svc.cluster.local".into()));
        assert!(matches!(unreadable.policy.unwrap().default.tls, ClientTls::Unusable(_)));
    }
    // Of no host that can be read, to every one, for clients of its own namespace.
    let unreadable = rule_of(read(&object("DestinationRule", "{host: [1]}")));
    assert_eq!(unreadable.host, HostPattern::Suffix("".into()));
    assert_eq!(unreadable.exported_to, ExportTo::Only(vec!["shop".into()]));
}

#[test]
fn what_has_no_effect_is_told() {
    let text = object(
        "DestinationRule",
        "{host: x, subsets: [{name: v1}], trafficPolicy: {loadBalancer: {simple: RANDOM}, outlierDetection: {}, tls: {mode: SIMPLE, \
         insecureSkipVerify: true}}}",
    );
    let read = read(&text);
    let told = read.unsupported.unwrap();
    for words in ["spec.subsets", "loadBalancer", "outlierDetection"] {
        assert!(told.contains(words), "no {words} in {told}");
    }
    assert!(read.problem.unwrap().message.contains("NOT verified"));
}

#[test]
fn service_entries_are_read_whole() {
    let read = entry(
        "{hosts: [API.example.com, '*.example.org'], addresses: [192.0.2.1, 192.0.2.128/25], ports: [{number: 80, name: http, protocol: \
         HTTP, targetPort: 8080}, {number: 443, name: tls, protocol: TLS}], resolution: STATIC, endpoints: [{address: 192.0.2.9, ports: \
         {http: 9090}}], exportTo: ['.'], subjectAltNames: ['spiffe://td/x']}",
    );
    assert_eq!((&*read.hosts[0], &*read.wildcards[0]), ("api.example.com", ".example.org"));
    assert_eq!(
        read.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["192.0.2.1", "192.0.2.128/25"]
    );
    assert_eq!((read.ports[0].target, read.ports[1].target), (8080, 443));
    assert_eq!((read.ports[0].protocol, read.ports[1].protocol), (EntryProtocol::Http, EntryProtocol::Tls));
    assert_eq!(read.endpoints[0].port(&read.ports[0]), 9090);
    assert_eq!(
        (read.resolution, read.exported_to),
        (Resolution::Static, ExportTo::Only(vec!["shop".into()]))
    );
    let dns = entry(
        "{hosts: [x.example.com], addresses: [192.0.2.1], resolution: DNS, endpoints: [{address: Y.example.com}]}",
    );
    assert_eq!(dns.endpoints[0].address, EntryAddress::Name("y.example.com".into()));
    for (bad, field) in [
        ("{}", "spec.hosts"),
        ("{hosts: ['*']}", "spec.hosts[0]"),
        ("{hosts: [x], addresses: [192.0.2.0/24], resolution: DNS}", "spec.addresses"),
        ("{hosts: [x], addresses: [192.0.2.0/40]}", "spec.addresses[0]"),
        ("{hosts: [x], resolution: STATIC, endpoints: [{address: name}]}", "spec.endpoints[0].address"),
        ("{hosts: [x], ports: [{number: 80}, {number: 80}]}", "spec.ports[1].number"),
        ("{hosts: [x], ports: [{number: 80, protocol: UDP}]}", "spec.ports[0].protocol"),
        (
            "{hosts: [x], workloadSelector: {labels: {a: b}}, endpoints: [{address: 192.0.2.1}]}",
            "spec.workloadSelector",
        ),
    ] {
        let said = complaint(&object("ServiceEntry", bad));
        assert!(said.contains(&format!("{field}:")), "{bad}: {said}");
    }
}

#[test]
fn names_that_are_identities_count_for_endpoints_in_the_mesh() {
    let with = |names: &str| {
        format!("{{hosts: [x], addresses: [192.0.2.1], resolution: DNS, subjectAltNames: [{names}]}}")
    };
    let identities = |names: &str| {
        let read = entry(&with(names));
        read.identities.map_or_else(Vec::new, |all| all.iter().map(ToString::to_string).collect())
    };
    let own = "spiffe://td2/ns/shop/sa/web";
    for (names, expected) in [
        ("", &[][..]),
        ("web.example.com, spiffe://td2/web, spiffe://td2/ns/shop/sa/*, td2/ns/shop/sa/web", &[]),
        ("web.example.com, spiffe://td2/ns/shop/sa/web", &[own]),
    ] {
        assert_eq!(identities(names), expected, "{names}");
    }
    let many = vec![own; 65].join(", ");
    assert_eq!(identities(&many).len(), 64);
    let told = read(&object("ServiceEntry", &with(&many))).unsupported.unwrap();
    assert!(told.contains("spec.subjectAltNames: of 65 identities the first 64"), "{told}");
}

#[test]
fn hosts_that_nothing_tells_are_said_to_be_so() {
    for (spec, words) in [
        ("{hosts: ['*.example.com'], addresses: [192.0.2.1]}", "wildcard"),
        ("{hosts: [x.example.com]}", "spec.addresses is empty"),
        ("{hosts: [x.example.com], addresses: [192.0.2.1], resolution: DYNAMIC_DNS}", "DYNAMIC_DNS"),
        (
            "{hosts: [x], addresses: [192.0.2.1], resolution: STATIC, endpoints: [{address: 192.0.2.1, weight: 3}]}",
            "weight",
        ),
    ] {
        let told = read(&object("ServiceEntry", spec)).unsupported.unwrap();
        assert!(told.contains(words), "{spec}: {told}");
    }
}

#[test]
fn a_secret_keeps_its_keys_to_itself() {
    let text = "apiVersion: v1\nkind: Secret\nmetadata: {name: s, namespace: shop}\ndata: {tls.crt: Y2VydA==, tls.key: a2V5, ca.crt: cm9v\
                dHM=}\n";
    let Change::Mesh(MeshChange::Secret(secret)) = one(text) else { panic!("not read") };
    let bytes = |part: &Option<std::sync::Arc<[u8]>>| part.as_ref().map(|bytes| bytes.to_vec());
    let TlsSecret { certificate, key, roots, crl, .. } = &*secret;
    assert_eq!(
        [certificate, key, roots, crl].map(bytes),
        [Some(b"cert".to_vec()), Some(b"key".to_vec()), Some(b"roots".to_vec()), None]
    );
    assert!(!format!("{secret:?}").contains("107"), "bytes of the key are shown");
    let said = complaint(&text.replace("a2V5", "'&&SECRET'"));
    assert!(said.contains("data.tls.key: is not base64") && !said.contains("SECRET"), "{said}");
}
