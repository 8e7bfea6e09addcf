use std::{collections::BTreeMap, net::SocketAddr};

use super::*;
use crate::model::{Labels, OriginalDst, TrustDomain};

fn pairs(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
}

fn ips(list: &[&str]) -> Vec<IpAddr> {
    list.iter().map(|ip| ip.parse().unwrap()).collect()
}

fn name(text: &str) -> ObjectName {
    let (namespace, name) = text.split_once('/').unwrap();
    ObjectName::new(namespace, name)
}

/// A running pod on node `n1` with the label `app=<its name up to the first dash>`.
fn pod(id: &str, addresses: &[&str]) -> Pod {
    let id = name(id);
    let app = id.name.split('-').next().unwrap().to_owned();
    Pod {
        uid: id.to_string().into(),
        created: None,
        identity: crate::model::SpiffeId::new(TrustDomain::default(), &id.namespace, "default").unwrap(),
        name: id,
        node: "n1".into(),
        ips: ips(addresses),
        labels: pairs(&[("app", &app)]),
        host_network: false,
        terminal: false,
        deleting: false,
        ready: true,
        named_ports: BTreeMap::new(),
        probe_ports: vec![],
        netns: None,
    }
}

fn service(id: &str, vips: &[&str], ports: &[(u16, TargetPort)]) -> Service {
    let id = name(id);
    Service {
        created: None,
        cluster_ips: ips(vips),
        ports: ports
            .iter()
            .map(|(port, target)| ServicePort {
                name: format!("p{port}"),
                port: *port,
                target: target.clone(),
                protocol: Protocol::Tcp,
            })
            .collect(),
        selector: pairs(&[("app", &id.name)]),
        session_affinity: false,
        local_only: false,
        publish_not_ready: false,
        name: id,
    }
}

fn slice(id: &str, service: &str, ports: &[(&str, u16)], endpoints: &[(&str, bool, &str)]) -> EndpointSlice {
    EndpointSlice {
        name: name(id),
        service: Some(name(service)),
        ports: ports
            .iter()
            .map(|(name, port)| SlicePort { name: (*name).into(), port: *port, protocol: Protocol::Tcp })
            .collect(),
        endpoints: endpoints
            .iter()
            .map(|(ip, ready, pod)| SliceEndpoint {
                addresses: ips(&[ip]),
                ready: *ready,
                pod: (!pod.is_empty()).then(|| name(pod)),
                node: Some("n1".into()),
            })
            .collect(),
    }
}

fn namespace(name: &str, label: Option<&str>) -> Change {
    let labels = label.map(|value| (crate::model::DATAPLANE_LABEL.to_owned(), value.to_owned()));
    Change::Namespace(Arc::new(Namespace { name: name.into(), labels: labels.into_iter().collect() }))
}

/// A mesh whose namespace `shop` is enrolled and `plain` is not.
fn mesh(pods: impl IntoIterator<Item = Pod>) -> Mesh {
    let mut mesh = Mesh::new(Settings::default());
    mesh.apply(namespace("shop", Some("enabled")));
    mesh.apply(namespace("plain", None));
    for pod in pods {
        mesh.apply(Change::Pod(Arc::new(pod)));
    }
    mesh
}

/// The way to `dst` in words: `tunnel 10.0.0.1:80`, `plain …`, `pass`, `no port`, `no endpoint`.
fn way(mesh: &Mesh, client: &Workload, dst: &str, random: u64) -> String {
    match mesh.route(client, OriginalDst(dst.parse().unwrap()), random) {
        Route::Tunnel(endpoint) => format!("tunnel {}", endpoint.addr.0),
        Route::Plain(endpoint) => format!("plain {}", endpoint.addr.0),
        Route::Passthrough => "pass".into(),
        Route::Refuse(RouteError::UnknownPort { .. }) => "no port".into(),
        Route::Refuse(RouteError::NoEndpoint { .. }) => "no endpoint".into(),
    }
}

fn client() -> Workload {
    let mesh = mesh([pod("shop/client", &["10.0.0.99"])]);
    Workload::clone(mesh.workload_by_ip("10.0.0.99".parse().unwrap()).unwrap())
}

fn captured(mesh: &Mesh) -> Vec<String> {
    let mut all: Vec<String> = mesh.captured_destinations().map(|ip| ip.to_string()).collect();
    all.sort();
    all
}

fn enrolled(mesh: &Mesh, ip: &str) -> bool {
    mesh.workload_by_ip(ip.parse().unwrap()).is_some_and(|workload| workload.enrolled)
}

/// spec/policy.md §8, by label of namespace and pod.
#[test]
fn enrolment_table() {
    let rows = [
        (None, None, false),
        (None, Some("disabled"), false),
        (None, Some("enabled"), true),
        (Some("disabled"), Some("enabled"), true),
        (Some("enabled"), None, true),
        (Some("enabled"), Some("unheard-of"), true),
        (Some("enabled"), Some("disabled"), false),
        (Some("Enabled"), None, false),
    ];
    for (on_namespace, on_pod, expected) in rows {
        let mut mesh = mesh([]);
        mesh.apply(namespace("x", on_namespace));
        let mut pod = pod("x/a", &["10.0.0.1"]);
        if let Some(value) = on_pod {
            pod.labels.insert(crate::model::DATAPLANE_LABEL.into(), value.into());
        }
        mesh.apply(Change::Pod(Arc::new(pod)));
        assert_eq!(enrolled(&mesh, "10.0.0.1"), expected, "namespace {on_namespace:?}, pod {on_pod:?}");
    }
}

#[test]
fn some_pods_are_never_enrolled() {
    let host = Pod { host_network: true, ..pod("shop/host", &["192.0.2.1"]) };
    let done = Pod { terminal: true, ..pod("shop/done", &["10.0.0.2"]) };
    let unborn = pod("shop/unborn", &[]);
    let mesh = mesh([host, done, unborn]);
    let on_node: Vec<_> = mesh.pods_on("n1").map(|pod| (&*pod.name.name, pod.enrolled)).collect();
    assert_eq!(on_node, [("done", false), ("host", false), ("unborn", false)]);
    assert!(mesh.workload_by_ip("192.0.2.1".parse().unwrap()).is_none(), "found by its node's address");
    assert!(mesh.workload_by_ip("10.0.0.2".parse().unwrap()).is_none(), "terminated pod keeps its address");
    assert_eq!(mesh.pods_on("n2").count(), 0);
}

#[test]
fn labels_take_effect_on_running_pods() {
    let mut mesh = mesh([pod("plain/a", &["10.0.0.1"])]);
    let before = mesh.clone();
    mesh.apply(namespace("plain", Some("enabled")));
    assert!(enrolled(&mesh, "10.0.0.1") && mesh.pods_on("n1").all(|pod| pod.enrolled));
    assert!(!enrolled(&before, "10.0.0.1"), "a snapshot changed under its reader");
    mesh.apply(Change::NamespaceGone("plain".into()));
    assert!(!enrolled(&mesh, "10.0.0.1"));
}

#[test]
fn the_opt_in_label_is_configurable() {
    let settings = Settings {
        label: "istio.io/dataplane-mode".into(),
        enabled: "ambient".into(),
        disabled: "none".into(),
        ..Settings::default()
    };
    let mut mesh = Mesh::new(settings);
    let labels = pairs(&[("istio.io/dataplane-mode", "ambient")]);
    mesh.apply(Change::Namespace(Arc::new(Namespace { name: "shop".into(), labels })));
    mesh.apply(Change::Pod(Arc::new(pod("shop/a", &["10.0.0.1"]))));
    let out = Pod { labels: pairs(&[("istio.io/dataplane-mode", "none")]), ..pod("shop/b", &["10.0.0.2"]) };
    mesh.apply(Change::Pod(Arc::new(out)));
    assert!(enrolled(&mesh, "10.0.0.1") && !enrolled(&mesh, "10.0.0.2"));
}

#[test]
fn pods_by_address() {
    let mesh = mesh([pod("shop/a", &["10.0.0.1", "fd00::1"]), pod("plain/b", &["10.0.0.2"])]);
    for (dst, expected) in [
        ("10.0.0.1:80", "tunnel 10.0.0.1:80"),
        ("[::ffff:10.0.0.1]:80", "tunnel 10.0.0.1:80"),
        ("[fd00::1]:65535", "tunnel [fd00::1]:65535"),
        ("10.0.0.2:80", "plain 10.0.0.2:80"),
        ("10.0.0.3:80", "pass"),
        ("[::ffff:10.0.0.3]:80", "pass"),
    ] {
        assert_eq!(way(&mesh, &client(), dst, 7), expected, "{dst}");
    }
    assert_eq!(captured(&mesh), ["10.0.0.1", "fd00::1"]);
}

#[test]
fn a_reused_address_is_the_newer_pods() {
    let at = |id, created| Pod { created, ..pod(id, &["10.0.0.1"]) };
    let owner = |mesh: &Mesh| mesh.workload_by_ip("10.0.0.1".parse().unwrap()).unwrap().name.to_string();
    let mut mesh = mesh([at("shop/new", Some(20)), at("shop/old", Some(10))]);
    assert_eq!(owner(&mesh), "shop/new");
    mesh.apply(Change::Pod(Arc::new(at("shop/newest", None))));
    assert_eq!(owner(&mesh), "shop/newest");
    mesh.apply(Change::Pod(Arc::new(Pod { terminal: true, ..at("shop/newest", None) })));
    assert_eq!(owner(&mesh), "shop/new");
    mesh.apply(Change::PodGone(name("shop/new")));
    assert_eq!(owner(&mesh), "shop/old");
    mesh.apply(Change::PodGone(name("shop/old")));
    assert!(mesh.workload_by_ip("10.0.0.1".parse().unwrap()).is_none());
}

#[test]
fn a_pod_that_is_to_go_leaves_its_address_to_its_successor() {
    let at = |id| Pod { created: Some(10), ..pod(id, &["10.0.0.1"]) };
    let owner = |mesh: &Mesh| mesh.workload_by_ip("10.0.0.1".parse().unwrap()).unwrap().name.to_string();
    let leaving = Pod { deleting: true, created: Some(11), ..at("shop/a") };
    let mut mesh = mesh([leaving]);
    assert_eq!(owner(&mesh), "shop/a", "it serves until it is gone");
    mesh.apply(Change::Pod(Arc::new(at("shop/b"))));
    assert_eq!(owner(&mesh), "shop/b");
    mesh.apply(Change::Pod(Arc::new(Pod { terminal: true, ..at("shop/b") })));
    assert_eq!(owner(&mesh), "shop/a");
}

#[test]
fn a_pod_opts_in_before_it_has_an_address() {
    let mut mesh = mesh([pod("plain/a", &[]), Pod { terminal: true, ..pod("plain/b", &[]) }]);
    assert_eq!((mesh.opts_in(&name("plain/a")), mesh.opts_in(&name("plain/none"))), (Some(false), None));
    mesh.apply(namespace("plain", Some("enabled")));
    assert_eq!((mesh.opts_in(&name("plain/a")), mesh.opts_in(&name("plain/b"))), (Some(true), Some(false)));
    assert!(!mesh.pod(&name("plain/a")).unwrap().enrolled);
    assert_eq!(mesh.pod_by_uid("plain/b").unwrap().name, name("plain/b"));
    assert_eq!(mesh.namespaces_opted_in().count(), 2);
}

fn web(targets: &[(u16, TargetPort)]) -> Change {
    Change::Service(Arc::new(service("shop/web", &["10.96.0.1", "fd96::1"], targets)))
}

#[test]
fn services_without_slices_go_by_selector() {
    let named = Pod {
        named_ports: BTreeMap::from([("http".into(), 8081)]),
        ..pod("shop/web-1", &["10.0.0.1", "fd00::1"])
    };
    let unnamed = pod("shop/web-2", &["10.0.0.2"]);
    let mut mesh = mesh([named, unnamed.clone(), pod("plain/web-3", &["10.0.0.3"])]);
    mesh.apply(web(&[(80, TargetPort::Number(8080)), (81, TargetPort::Name("http".into()))]));
    for (dst, random, expected) in [
        ("10.96.0.1:80", 0, "tunnel 10.0.0.1:8080"),
        ("10.96.0.1:80", 1, "tunnel 10.0.0.2:8080"),
        ("10.96.0.1:80", 2, "tunnel 10.0.0.1:8080"),
        ("[::ffff:10.96.0.1]:80", 1, "tunnel 10.0.0.2:8080"),
        ("10.96.0.1:81", 1, "tunnel 10.0.0.1:8081"),
        ("[fd96::1]:80", 1, "tunnel [fd00::1]:8080"),
        ("10.96.0.1:82", 0, "no port"),
    ] {
        assert_eq!(way(&mesh, &client(), dst, random), expected, "{dst} {random}");
    }
    assert_eq!(captured(&mesh), ["10.0.0.1", "10.0.0.2", "10.96.0.1", "fd00::1", "fd96::1"]);
    // Endpoints that were worked out already follow the pods.
    mesh.apply(Change::Pod(Arc::new(Pod { ready: false, ..unnamed })));
    assert_eq!(way(&mesh, &client(), "10.96.0.1:80", 1), "tunnel 10.0.0.1:8080");
    mesh.apply(Change::PodGone(name("shop/web-1")));
    assert_eq!(way(&mesh, &client(), "10.96.0.1:80", 1), "no endpoint");
    mesh.apply(Change::ServiceGone(name("shop/web")));
    assert_eq!(way(&mesh, &client(), "10.96.0.1:80", 1), "pass");
}

#[test]
fn slices_say_where_a_service_is() {
    let mut mesh = mesh([
        pod("shop/web-1", &["10.0.0.1"]),
        pod("shop/web-2", &["10.0.0.2"]),
        pod("plain/db", &["10.0.0.3"]),
        Pod { host_network: true, ..pod("shop/host", &["192.0.2.1"]) },
    ]);
    mesh.apply(web(&[(80, TargetPort::Number(1)), (81, TargetPort::Number(1))]));
    let route = |mesh: &Mesh, dst: &str| -> Vec<String> {
        let mut ways: Vec<_> = (0..8).map(|random| way(mesh, &client(), dst, random)).collect();
        ways.sort();
        ways.dedup();
        ways
    };
    mesh.apply(Change::EndpointSlice(Arc::new(slice(
        "shop/web-a",
        "shop/web",
        &[("p80", 8080)],
        &[
            ("10.0.0.1", true, "shop/web-1"),
            ("10.0.0.2", false, "shop/web-2"),
            ("10.0.0.3", true, ""),
            ("192.0.2.1", true, "shop/host"),
            ("198.51.100.7", true, ""),
        ],
    ))));
    assert_eq!(
        route(&mesh, "10.96.0.1:80"),
        ["plain 10.0.0.3:8080", "plain 192.0.2.1:8080", "plain 198.51.100.7:8080", "tunnel 10.0.0.1:8080"]
    );
    assert_eq!(route(&mesh, "10.96.0.1:81"), ["no endpoint"], "the slice has no such port");
    assert_eq!(route(&mesh, "[fd96::1]:80"), ["no endpoint"], "no endpoint of that family");
    // A second slice adds to the first; the slice that goes takes its endpoints along.
    mesh.apply(Change::EndpointSlice(Arc::new(slice(
        "shop/web-b",
        "shop/web",
        &[("p80", 8080), ("p81", 8443)],
        &[("10.0.0.2", true, "shop/web-2")],
    ))));
    assert_eq!(route(&mesh, "10.96.0.1:81"), ["tunnel 10.0.0.2:8443"]);
    mesh.apply(Change::EndpointSliceGone(name("shop/web-a")));
    assert_eq!(route(&mesh, "10.96.0.1:80"), ["tunnel 10.0.0.2:8080"]);
    // With the last slice gone the selector speaks again.
    mesh.apply(Change::EndpointSliceGone(name("shop/web-b")));
    assert_eq!(route(&mesh, "10.96.0.1:80"), ["tunnel 10.0.0.1:1", "tunnel 10.0.0.2:1"]);
}

#[test]
fn an_endpoint_that_is_not_its_pod_is_not_used() {
    // The slice is older than the pod's present address: whoever is at the old one now is not what the slice says.
    let mut mesh = mesh([pod("shop/web-1", &["10.0.0.5"])]);
    mesh.apply(web(&[(80, TargetPort::Number(80))]));
    let stale = slice("shop/web-a", "shop/web", &[("p80", 80)], &[("10.0.0.1", true, "shop/web-1")]);
    mesh.apply(Change::EndpointSlice(Arc::new(stale)));
    assert_eq!(way(&mesh, &client(), "10.96.0.1:80", 0), "no endpoint");
}

#[test]
fn a_slice_may_move_to_another_service() {
    let mut mesh = mesh([pod("shop/x", &["10.0.0.1"])]);
    mesh.apply(web(&[(80, TargetPort::Number(80))]));
    let at = |service| {
        Change::EndpointSlice(Arc::new(slice("shop/s", service, &[("p80", 80)], &[("10.0.0.1", true, "")])))
    };
    mesh.apply(at("shop/web"));
    assert_eq!(way(&mesh, &client(), "10.96.0.1:80", 0), "tunnel 10.0.0.1:80");
    mesh.apply(at("shop/other"));
    assert_eq!(way(&mesh, &client(), "10.96.0.1:80", 0), "no endpoint");
}

#[test]
fn only_tcp_ports_count() {
    let mut mesh = mesh([pod("shop/web-1", &["10.0.0.1"])]);
    let mut dns = service("shop/web", &["10.96.0.1"], &[(53, TargetPort::Number(53))]);
    dns.ports[0].protocol = Protocol::Udp;
    mesh.apply(Change::Service(Arc::new(dns)));
    assert_eq!(way(&mesh, &client(), "10.96.0.1:53", 0), "no port");
}

#[test]
fn a_shared_cluster_ip_goes_to_the_clients_namespace_else_the_oldest() {
    let mut mesh =
        mesh([pod("plain/a", &["10.0.0.1"]), pod("other/b", &["10.0.0.2"]), pod("shop/c", &["10.0.0.3"])]);
    let at = |id, created| {
        let service = service(id, &["10.96.0.9"], &[(80, TargetPort::Number(80))]);
        Change::Service(Arc::new(Service { created, ..service }))
    };
    mesh.apply(at("other/b", None));
    mesh.apply(at("plain/a", Some(5)));
    assert_eq!(way(&mesh, &client(), "10.96.0.9:80", 0), "plain 10.0.0.1:80");
    mesh.apply(at("shop/c", None));
    assert_eq!(way(&mesh, &client(), "10.96.0.9:80", 0), "tunnel 10.0.0.3:80");
}

#[test]
fn affinity_and_locality() {
    let far = Pod { node: "n2".into(), ..pod("shop/web-2", &["10.0.0.2"]) };
    let pods = [pod("shop/web-1", &["10.0.0.1"]), far, pod("shop/web-3", &["10.0.0.3"])];
    let base = service("shop/web", &["10.96.0.1"], &[(80, TargetPort::Number(80))]);
    let mut mesh = mesh(pods);

    mesh.apply(Change::Service(Arc::new(Service { local_only: true, ..base.clone() })));
    assert!((0..9).all(|random| way(&mesh, &client(), "10.96.0.1:80", random) != "tunnel 10.0.0.2:80"));
    let elsewhere = Workload { node: "n3".into(), ..client() };
    assert_eq!(way(&mesh, &elsewhere, "10.96.0.1:80", 0), "no endpoint");

    mesh.apply(Change::Service(Arc::new(Service { session_affinity: true, ..base })));
    let chosen = |client: &Workload, random| way(&mesh, client, "10.96.0.1:80", random);
    assert!((1..50).all(|random| chosen(&client(), random) == chosen(&client(), 0)));
    let spread: std::collections::BTreeSet<_> =
        (0..200).map(|n| chosen(&Workload { ips: ips(&[&format!("10.1.0.{n}")]), ..client() }, 0)).collect();
    assert_eq!(spread.len(), 3, "clients do not spread: {spread:?}");
}

#[test]
fn an_endpoint_outside_the_cluster_has_a_workload_of_no_one() {
    let mut mesh = mesh([]);
    mesh.apply(web(&[(80, TargetPort::Number(80))]));
    let external = slice("shop/web-a", "shop/web", &[("p80", 80)], &[("198.51.100.7", true, "")]);
    mesh.apply(Change::EndpointSlice(Arc::new(external)));
    let dst = OriginalDst(SocketAddr::from(([10, 96, 0, 1], 80)));
    let Route::Plain(endpoint) = mesh.route(&client(), dst, 0) else { panic!("not plain") };
    assert_eq!(endpoint.workload.name.to_string(), "shop/unknown");
    assert_eq!(&*endpoint.service.unwrap().host, "web.shop.svc.cluster.local");
    assert_eq!(captured(&mesh), [""; 0]);
}

#[test]
fn a_large_mesh_is_quick() {
    let start = std::time::Instant::now();
    let mut mesh = mesh([]);
    for n in 0..10_000u32 {
        let ip = format!("10.{}.{}.{}", 1 + n / 65_536, (n / 256) % 256, n % 256);
        mesh.apply(Change::Pod(Arc::new(pod(&format!("shop/svc{}-{n}", n % 1_000), &[&ip]))));
    }
    for n in 0..1_000u32 {
        let vip = format!("10.96.{}.{}", n / 256, n % 256);
        let service = service(&format!("shop/svc{n}"), &[&vip], &[(80, TargetPort::Number(80))]);
        let endpoints: Vec<(String, bool, &str)> = (0..10)
            .map(|k| k * 1_000 + n)
            .map(|n| (format!("10.1.{}.{}", n / 256, n % 256), true, ""))
            .collect();
        let endpoints: Vec<_> = endpoints.iter().map(|(ip, ready, pod)| (&**ip, *ready, *pod)).collect();
        mesh.apply(Change::Service(Arc::new(service)));
        let slice = slice(&format!("shop/s{n}"), &format!("shop/svc{n}"), &[("p80", 80)], &endpoints);
        mesh.apply(Change::EndpointSlice(Arc::new(slice)));
    }
    assert_eq!(mesh.captured_destinations().count(), 11_000);
    let client = client();
    for random in 0..100_000u64 {
        let dst =
            SocketAddr::from(([10, 96, (random % 1_000 / 256) as u8, (random % 1_000 % 256) as u8], 80));
        assert!(matches!(mesh.route(&client, OriginalDst(dst), random), Route::Tunnel(_)));
    }
    // Unoptimised builds on a loaded machine take about a second; a scan over all pods would take minutes.
    assert!(start.elapsed().as_secs() < 30, "{:?}", start.elapsed());
}
