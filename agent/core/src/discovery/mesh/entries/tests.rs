use std::collections::BTreeMap;

use crate::{
    discovery::{
        mesh::tests::{captured, client, ips, mesh, name, namespace, pairs, pod, service, way},
        *,
    },
    model::{Labels, OriginalDst, SpiffeId},
};
use std::sync::Arc;

fn prefix(text: &str) -> Prefix {
    match text.split_once('/') {
        Some((ip, len)) => Prefix::new(ip.parse().unwrap(), len.parse().unwrap()).unwrap(),
        None => Prefix::single(text.parse().unwrap()),
    }
}

fn entry(
    id: &str,
    host: &str,
    addresses: &[&str],
    resolution: Resolution,
    endpoints: &[&str],
) -> ServiceEntry {
    let endpoint = |text: &&str| EntryEndpoint {
        address: match text.parse() {
            Ok(ip) => EntryAddress::Ip(ip),
            Err(_) => EntryAddress::Name((*text).into()),
        },
        ports: BTreeMap::new(),
    };
    ServiceEntry {
        name: name(id),
        created: None,
        hosts: vec![host.into()],
        wildcards: vec![],
        addresses: addresses.iter().map(|text| prefix(text)).collect(),
        no_vips: false,
        ports: vec![EntryPort {
            number: 80,
            name: "http".into(),
            target: 8080,
            protocol: EntryProtocol::Http,
        }],
        resolution,
        endpoints: endpoints.iter().map(endpoint).collect(),
        selector: None,
        exported_to: ExportTo::All,
        subject_alt_names: vec![],
        identities: None,
    }
}

fn put(mesh: &mut Mesh, entry: ServiceEntry) {
    mesh.apply(Change::ServiceEntry(Arc::new(entry)));
}

const VIP: &str = "198.18.9.9";
const AT: &str = "198.18.9.9:80";

#[test]
fn every_resolution_leads_its_own_way() {
    for (resolution, endpoints, expected, is_captured) in [
        (Resolution::None, &[][..], "plain 198.18.9.9:80", false),
        (Resolution::Static, &["198.18.9.1"], "plain 198.18.9.1:8080", true),
        (Resolution::Static, &[], "no endpoint", true),
        (Resolution::Dns, &[], "resolve api.example.com:8080", true),
        (Resolution::Dns, &["a.example.net"], "resolve a.example.net:8080", true),
        (Resolution::Dns, &["198.18.9.1"], "plain 198.18.9.1:8080", true),
        (Resolution::DnsRoundRobin, &[], "resolve api.example.com:8080", true),
    ] {
        let mut mesh = mesh([]);
        put(&mut mesh, entry("shop/api", "api.example.com", &[VIP], resolution, endpoints));
        assert_eq!(way(&mesh, &client(), AT, 0), expected, "{resolution:?}");
        // A port that the entry does not have is nobody's.
        assert_eq!(way(&mesh, &client(), "198.18.9.9:81", 0), "pass");
        assert_eq!(captured(&mesh).contains(&AT.to_owned()), is_captured, "{resolution:?}");
        mesh.apply(Change::ServiceEntryGone(name("shop/api")));
        assert_eq!((way(&mesh, &client(), AT, 0), captured(&mesh).len()), ("pass".into(), 0));
    }
}

#[test]
fn an_endpoint_that_is_a_pod_in_the_mesh_is_reached_by_the_tunnel() {
    let mut mesh = mesh([pod("shop/web", &["10.0.0.1"]), pod("plain/web", &["10.0.0.2"])]);
    put(&mut mesh, entry("shop/api", "api.example.com", &[VIP], Resolution::Static, &["10.0.0.1"]));
    assert_eq!(way(&mesh, &client(), AT, 0), "tunnel 10.0.0.1:8080");
    put(&mut mesh, entry("shop/api", "api.example.com", &[VIP], Resolution::Static, &["10.0.0.2"]));
    assert_eq!(way(&mesh, &client(), AT, 0), "plain 10.0.0.2:8080");
}

/// Whoever dials the pod itself, or by another entry, still expects the pod.
#[test]
fn identities_of_an_entry_are_those_of_who_is_dialled_by_it() {
    let other: SpiffeId = "spiffe://td2/ns/shop/sa/web".parse().unwrap();
    let identities = |mesh: &Mesh, dst: &str| {
        let found = match mesh.route(&client(), OriginalDst(dst.parse().unwrap()), 0, |_| None) {
            Route::Tunnel(endpoint) | Route::Plain(endpoint) => endpoint.identities,
            Route::Resolve(named) => named.identities,
            other => panic!("{dst} leads to {other:?}"),
        };
        found.map_or_else(Vec::new, |found| found.to_vec())
    };
    let mut mesh = mesh([pod("shop/web", &["10.0.0.1"])]);
    for (resolution, endpoints) in [
        (Resolution::Static, &["10.0.0.1"][..]),
        (Resolution::Dns, &["10.0.0.1"]),
        (Resolution::Dns, &["web.example.net"]),
        (Resolution::DnsRoundRobin, &[]),
    ] {
        let entry = entry("shop/api", "api.example.com", &[VIP], resolution, endpoints);
        put(&mut mesh, ServiceEntry { identities: Some([other.clone()].into()), ..entry });
        assert_eq!(identities(&mesh, AT), [other.clone()], "{resolution:?} {endpoints:?}");
    }
    let Route::Resolve(named) = mesh.route(&client(), OriginalDst(AT.parse().unwrap()), 0, |_| None) else {
        panic!("a name is resolved");
    };
    let found = mesh.route_named(&client(), &named, "10.0.0.1:8080".parse().unwrap(), 0);
    assert!(matches!(found, Route::Tunnel(endpoint) if endpoint.identities == named.identities));

    put(&mut mesh, entry("shop/plain", "b.example.com", &["198.18.9.8"], Resolution::Static, &["10.0.0.1"]));
    for dst in ["10.0.0.1:8080", "198.18.9.8:80"] {
        assert!(identities(&mesh, dst).is_empty(), "{dst}");
    }
}

#[test]
fn an_entry_selects_workload_entries_and_pods_of_its_namespace() {
    let mut mesh = mesh([pod("plain/vm-1", &["10.0.0.2"]), pod("shop/vm-1", &["10.0.0.3"])]);
    let selecting = ServiceEntry {
        selector: Some(pairs(&[("app", "vm")])),
        ..entry("plain/api", "api.example.com", &[VIP], Resolution::Static, &[])
    };
    put(&mut mesh, selecting);
    assert_eq!(way(&mesh, &client(), AT, 0), "plain 10.0.0.2:8080");
    mesh.apply(Change::PodGone(name("plain/vm-1")));
    assert_eq!(way(&mesh, &client(), AT, 0), "no endpoint");
    let workload = |id: &str, ip: &str, labels: Labels, ports: &[(&str, u16)]| {
        let ports = ports.iter().map(|(name, port)| ((*name).into(), *port)).collect();
        let endpoint = EntryEndpoint { address: EntryAddress::Ip(ip.parse().unwrap()), ports };
        Change::WorkloadEntry(Arc::new(WorkloadEntry { name: name(id), labels, endpoint }))
    };
    mesh.apply(workload("shop/vm", "198.18.9.3", pairs(&[("app", "vm")]), &[]));
    mesh.apply(workload("plain/other", "198.18.9.4", pairs(&[("app", "other")]), &[]));
    assert_eq!(way(&mesh, &client(), AT, 0), "no endpoint");
    mesh.apply(workload("plain/vm", "198.18.9.5", pairs(&[("app", "vm")]), &[("http", 9090)]));
    assert_eq!(way(&mesh, &client(), AT, 0), "plain 198.18.9.5:9090");
    mesh.apply(Change::WorkloadEntryGone(name("plain/vm")));
    assert_eq!(way(&mesh, &client(), AT, 0), "no endpoint");
}

#[test]
fn of_several_that_claim_an_address_the_clients_own_counts_then_the_oldest() {
    let mut mesh = mesh([]);
    let to = |id: &str, host: &str, created: i64, ip: &str, exported_to: ExportTo| ServiceEntry {
        created: Some(created),
        exported_to,
        ..entry(id, host, &[VIP], Resolution::Static, &[ip])
    };
    put(&mut mesh, to("a/x", "x.example.com", 2, "198.18.9.1", ExportTo::All));
    put(&mut mesh, to("b/x", "y.example.com", 1, "198.18.9.2", ExportTo::All));
    put(&mut mesh, to("c/x", "z.example.com", 0, "198.18.9.3", ExportTo::Only(vec!["c".into()])));
    assert_eq!(way(&mesh, &client(), AT, 0), "plain 198.18.9.2:8080");
    put(&mut mesh, to("shop/x", "z.example.com", 9, "198.18.9.4", ExportTo::Only(vec!["shop".into()])));
    assert_eq!(way(&mesh, &client(), AT, 0), "plain 198.18.9.4:8080");
    // Of one host in one namespace the oldest counts.
    put(&mut mesh, to("shop/w", "z.example.com", 8, "198.18.9.5", ExportTo::All));
    assert_eq!(way(&mesh, &client(), AT, 0), "plain 198.18.9.5:8080");
}

#[test]
fn what_is_the_clusters_is_no_entrys() {
    let mut mesh = mesh([pod("shop/web", &["10.0.0.1"])]);
    mesh.apply(Change::Service(Arc::new(service(
        "shop/web",
        &["10.96.0.1"],
        &[(80, TargetPort::Number(80))],
    ))));
    for address in ["10.96.0.1", "10.0.0.1"] {
        put(
            &mut mesh,
            entry("plain/trap", "trap.example.com", &[address], Resolution::Static, &["198.18.9.1"]),
        );
        assert_eq!(way(&mesh, &client(), &format!("{address}:80"), 0), "tunnel 10.0.0.1:80");
    }
    // Nor is a service's host.
    put(
        &mut mesh,
        entry("plain/trap", "web.shop.svc.cluster.local", &[VIP], Resolution::Static, &["198.18.9.1"]),
    );
    assert_eq!(way(&mesh, &client(), AT, 0), "pass");
    mesh.apply(Change::ServiceGone(name("shop/web")));
    assert_eq!(way(&mesh, &client(), AT, 0), "plain 198.18.9.1:8080");
    assert!(captured(&mesh).contains(&AT.to_owned()));
}

#[test]
fn only_what_is_registered_can_be_reached_where_policy_says_so() {
    let near = Pod { host_ips: ips(&["198.18.0.2"]), ..pod("plain/web", &["10.0.0.2"]) };
    let mut mesh = mesh([near]);
    mesh.apply(Change::Service(Arc::new(service(
        "plain/web",
        &["10.96.0.1"],
        &[(80, TargetPort::Number(80))],
    ))));
    let outside = ServiceEntry {
        exported_to: ExportTo::Only(vec!["elsewhere".into()]),
        ..entry("plain/x", "x.example.com", &[VIP], Resolution::None, &[])
    };
    put(&mut mesh, outside.clone());
    let ways = |mesh: &Mesh| {
        [
            "10.96.0.1:80",
            "10.0.0.2:81",
            "198.18.0.2:10250",
            "169.254.20.10:53",
            "169.254.20.10:80",
            AT,
            "192.0.2.1:443",
        ]
        .map(|dst| way(mesh, &client(), dst, 0))
    };
    assert_eq!(
        ways(&mesh),
        ["plain 10.0.0.2:80", "plain 10.0.0.2:81", "pass", "pass", "pass", "pass", "pass"]
    );
    assert!(!mesh.captures_everything_of("shop"));
    let policy = |value: &str| {
        let labels = pairs(&[(crate::model::DATAPLANE_LABEL, "enabled"), (OUTBOUND_POLICY_LABEL, value)]);
        Change::Namespace(Arc::new(Namespace { name: "shop".into(), labels, http_telemetry: None }))
    };
    for value in ["REGISTRY_ONLY", "registry_only", "nonsense"] {
        let delta = mesh.apply(policy(value));
        assert!(mesh.captures_everything_of("shop"), "{value}");
        assert!(!delta.is_empty() || value != "REGISTRY_ONLY");
    }
    let closed = "not registered";
    assert_eq!(
        ways(&mesh),
        ["plain 10.0.0.2:80", "plain 10.0.0.2:81", "pass", "pass", closed, closed, closed]
    );
    put(&mut mesh, ServiceEntry { exported_to: ExportTo::All, ..outside });
    assert_eq!(ways(&mesh)[5], "plain 198.18.9.9:80");
    mesh.apply(policy("ALLOW_ANY"));
    assert_eq!(ways(&mesh)[6], "pass");
    mesh.apply(namespace("shop", Some("enabled")));
    assert!(!mesh.captures_everything_of("shop"));
}

#[test]
fn a_rule_has_what_it_speaks_of_captured() {
    let mut mesh = mesh([pod("plain/web", &["10.0.0.2"])]);
    mesh.apply(Change::Service(Arc::new(service(
        "plain/web",
        &["10.96.0.1"],
        &[(80, TargetPort::Number(80))],
    ))));
    put(&mut mesh, entry("shop/x", "x.example.com", &[VIP], Resolution::None, &[]));
    put(&mut mesh, entry("shop/y", "y.example.com", &["198.18.10.0/24"], Resolution::None, &[]));
    assert_eq!(captured(&mesh).len(), 0);
    let rule = |id: &str, host: &str| {
        let settings =
            ClientSettings { rule: name(id), tls: ClientTls::IstioMutual, pool: ConnectionPool::default() };
        let policy = TrafficPolicy { default: Arc::new(settings), ports: BTreeMap::new() };
        Change::DestinationRule(Arc::new(DestinationRule {
            name: name(id),
            created: None,
            host: HostPattern::new(host),
            exported_to: ExportTo::All,
            selector: None,
            policy: Some(policy),
        }))
    };
    mesh.apply(rule("shop/r", "web.plain.svc.cluster.local"));
    assert_eq!(captured(&mesh), ["10.96.0.1"]);
    mesh.apply(rule("shop/s", "x.example.com"));
    assert_eq!(captured(&mesh), ["10.96.0.1", "198.18.9.9:80"]);
    assert!(!mesh.captures_everything_of("shop"));
    mesh.apply(rule("shop/s", "*"));
    assert_eq!(captured(&mesh), ["10.96.0.1", "198.18.9.9:80"]);
    assert!(mesh.captures_everything_of("shop"), "a network can only be captured with all else");
    let found = mesh.route(&client(), OriginalDst("198.18.10.7:80".parse().unwrap()), 0, |_| None);
    let Route::Plain(endpoint) = found else { panic!("{found:?}") };
    let rule = endpoint.rule.expect("a rule");
    assert_eq!((&*rule.host, rule.settings.rule.to_string()), ("y.example.com", "shop/s".to_owned()));
    mesh.apply(Change::DestinationRuleGone(name("shop/s")));
    mesh.apply(Change::DestinationRuleGone(name("shop/r")));
    assert_eq!((captured(&mesh).len(), mesh.captures_everything_of("shop")), (0, false));
}
