use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use crate::discovery::{
    mesh::tests::{captured, client, ips, mesh, name, namespace, pairs, pod, service, way},
    *,
};

fn entry(id: &str, hosts: &[&str], resolution: Resolution, created: i64) -> ServiceEntry {
    ServiceEntry {
        name: name(id),
        created: Some(created),
        hosts: hosts.iter().map(|host| (*host).into()).collect(),
        wildcards: vec![],
        addresses: vec![],
        no_vips: false,
        ports: vec![EntryPort {
            number: 443,
            name: "tls".into(),
            target: 8443,
            protocol: EntryProtocol::Tls,
        }],
        resolution,
        endpoints: vec![EntryEndpoint {
            address: EntryAddress::Ip("198.18.9.1".parse().unwrap()),
            ports: BTreeMap::new(),
        }],
        selector: None,
        exported_to: ExportTo::All,
        subject_alt_names: vec![],
        identities: None,
    }
}

fn put(mesh: &mut Mesh, entry: ServiceEntry) {
    mesh.apply(Change::ServiceEntry(Arc::new(entry)));
}

fn v4(mesh: &Mesh, namespace: &str, host: &str) -> IpAddr {
    let addresses = mesh.addresses_of_host(namespace, host).unwrap();
    assert_eq!(addresses.len(), 2, "one of each family: {addresses:?}");
    *addresses.iter().find(|ip| ip.is_ipv4()).unwrap()
}

#[test]
fn each_host_has_an_address_that_leads_to_it_alone() {
    let mut mesh = mesh([]);
    put(&mut mesh, entry("shop/api", &["a.example.com", "b.example.com"], Resolution::Static, 1));
    let (a, b) = (v4(&mesh, "shop", "a.example.com"), v4(&mesh, "shop", "b.example.com"));
    assert_ne!(a, b);
    assert_eq!(way(&mesh, &client(), &format!("{a}:443"), 0), "plain 198.18.9.1:8443");
    // All of its ports are the host's: nothing else is there.
    assert_eq!(way(&mesh, &client(), &format!("{a}:80"), 0), "no port");
    assert!(captured(&mesh).contains(&a.to_string()), "{:?}", captured(&mesh));
    assert_eq!(captured(&mesh).len(), 4, "two hosts, two families");
    for unknown in ["c.example.com", "a.example.com.shop.svc.cluster.local", "example.com", ""] {
        assert_eq!(mesh.addresses_of_host("shop", unknown), None, "{unknown:?}");
    }
    mesh.apply(Change::ServiceEntryGone(name("shop/api")));
    assert_eq!((mesh.addresses_of_host("shop", "a.example.com"), captured(&mesh).len()), (None, 0));
    assert_eq!(way(&mesh, &client(), &format!("{a}:443"), 0), "pass");
}

#[test]
fn who_states_addresses_wants_none_or_is_where_it_was_dialled_gets_none() {
    let mut mesh = mesh([]);
    let host = "a.example.com";
    let plain = || entry("shop/api", &[host], Resolution::Static, 1);
    put(&mut mesh, ServiceEntry { no_vips: true, ..plain() });
    assert_eq!(mesh.addresses_of_host("shop", host), None);
    put(&mut mesh, ServiceEntry { resolution: Resolution::None, ..plain() });
    assert_eq!(mesh.addresses_of_host("shop", host), None);
    let stated = Prefix::single("198.18.9.9".parse().unwrap());
    put(&mut mesh, ServiceEntry { addresses: vec![stated], ..plain() });
    assert_eq!(mesh.addresses_of_host("shop", host), Some(ips(&["198.18.9.9"])));
    let wide = Prefix::new("198.18.9.0".parse().unwrap(), 24).unwrap();
    put(&mut mesh, ServiceEntry { addresses: vec![wide], ..plain() });
    assert_eq!(mesh.addresses_of_host("shop", host), None, "a network is no address");
}

#[test]
fn a_client_is_told_of_what_it_sees_its_own_first_then_the_oldest() {
    let mut mesh = mesh([]);
    let host = "a.example.com";
    let only = |namespace: &str| ExportTo::Only(vec![namespace.into()]);
    put(
        &mut mesh,
        ServiceEntry { exported_to: only("other"), ..entry("other/x", &[host], Resolution::Dns, 0) },
    );
    assert_eq!(mesh.addresses_of_host("shop", host), None);
    let hidden = v4(&mesh, "other", host);
    assert_eq!(way(&mesh, &client(), &format!("{hidden}:443"), 0), "no endpoint");
    put(&mut mesh, entry("young/x", &[host], Resolution::Dns, 9));
    put(&mut mesh, entry("old/x", &[host], Resolution::Dns, 1));
    let old = v4(&mesh, "old", host);
    assert_eq!((v4(&mesh, "shop", host), v4(&mesh, "young", host) == old), (old, false));
    put(&mut mesh, entry("shop/x", &[host], Resolution::Dns, 10));
    assert_ne!(v4(&mesh, "shop", host), old);
    assert_eq!(v4(&mesh, "plain", host), old, "nobody's address has changed");
    // A service of that name goes before all of them.
    let cluster = "web.shop.svc.cluster.local";
    put(&mut mesh, entry("shop/y", &[cluster], Resolution::Dns, 1));
    assert!(mesh.addresses_of_host("shop", cluster).is_some());
    mesh.apply(Change::Service(Arc::new(service(
        "shop/web",
        &["10.96.0.1"],
        &[(80, TargetPort::Number(80))],
    ))));
    assert_eq!(mesh.addresses_of_host("shop", cluster), None);
}

#[test]
fn of_two_entries_for_a_host_in_a_namespace_the_older_says_whether_it_has_addresses() {
    let mut mesh = mesh([]);
    let host = "a.example.com";
    put(&mut mesh, entry("shop/young", &[host], Resolution::Static, 9));
    let first = v4(&mesh, "shop", host);
    put(&mut mesh, ServiceEntry { no_vips: true, ..entry("shop/old", &[host], Resolution::Static, 1) });
    assert_eq!((mesh.addresses_of_host("shop", host), captured(&mesh).len()), (None, 0));
    mesh.apply(Change::ServiceEntryGone(name("shop/old")));
    assert_eq!(v4(&mesh, "shop", host), first);
}

#[test]
fn a_pods_label_goes_before_its_namespaces_and_that_before_the_installations() {
    let mut quiet = pod("shop/quiet-1", &["10.0.0.2"]);
    quiet.labels.extend(pairs(&[(DNS_CAPTURE_LABEL, "disabled")]));
    let mut mesh = mesh([pod("shop/web-1", &["10.0.0.1"]), quiet]);
    let (web, quiet) = (name("shop/web-1"), name("shop/quiet-1"));
    assert!(!mesh.captures_dns_of(&web));
    for (value, expected) in [("enabled", true), ("nonsense", false), ("disabled", false), ("enabled", true)]
    {
        let labels = pairs(&[("ambit.dev/dataplane", "enabled"), (DNS_CAPTURE_LABEL, value)]);
        let before = mesh.captures_dns_of(&web);
        let delta = mesh.apply(Change::Namespace(Arc::new(Namespace {
            name: "shop".into(),
            labels,
            http_telemetry: None,
        })));
        assert_eq!(mesh.captures_dns_of(&web), expected, "{value}");
        assert_eq!(delta.reconsiders_pods(), before != expected, "{value}");
        assert!(!mesh.captures_dns_of(&quiet));
    }
    let mut loud = pod("shop/quiet-1", &["10.0.0.2"]);
    loud.labels.extend(pairs(&[(DNS_CAPTURE_LABEL, "enabled")]));
    assert!(mesh.apply(Change::Pod(Arc::new(loud))).reconsiders_pods());
    let mut everywhere = Mesh::new(Settings { dns_capture: true, ..Settings::default() });
    everywhere.apply(namespace("shop", Some("enabled")));
    assert!(everywhere.captures_dns_of(&web));
}
