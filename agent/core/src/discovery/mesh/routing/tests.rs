mod rows;

use super::*;
use crate::discovery::{
    Change, HostPort, Pod, TargetPort,
    mesh::tests::{captured, client, ips, mesh, name, namespace, pod, service, slice, way},
};

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

    let affinity = Some(Duration::from_secs(60));
    mesh.apply(Change::Service(Arc::new(Service { session_affinity: affinity, ..base })));
    let chosen = |client: &Workload, random| way(&mesh, client, "10.96.0.1:80", random);
    assert!((1..50).all(|random| chosen(&client(), random) == chosen(&client(), 0)));
    let spread: std::collections::BTreeSet<_> =
        (0..200).map(|n| chosen(&Workload { ips: ips(&[&format!("10.1.0.{n}")]), ..client() }, 0)).collect();
    assert_eq!(spread.len(), 3, "clients do not spread: {spread:?}");

    // What a client has kept to stays its endpoint, whoever joins, until that takes no connections.
    let keeps = |mesh: &Mesh, ip: &str| {
        let dst = OriginalDst("10.96.0.1:80".parse().unwrap());
        match mesh.route(&client(), dst, 0, |service| (*service.name == *"web").then(|| ip.parse().unwrap()))
        {
            Route::Tunnel(endpoint) => (endpoint.addr.0.ip().to_string(), endpoint.kept_for),
            other => panic!("{other:?}"),
        }
    };
    for ip in ["10.0.0.1", "10.0.0.2", "10.0.0.3"] {
        assert_eq!(keeps(&mesh, ip), (ip.to_owned(), affinity));
    }
    mesh.apply(Change::Pod(Arc::new(Pod { ready: false, ..pod("shop/web-3", &["10.0.0.3"]) })));
    assert_ne!(keeps(&mesh, "10.0.0.3").0, "10.0.0.3");
}

#[test]
fn one_that_leaves_serves_where_none_is_ready() {
    let leaving = Pod { deleting: true, ..pod("shop/web-1", &["10.0.0.1"]) };
    let pods = [leaving, pod("shop/web-2", &["10.0.0.2"])];
    let to = |mesh: &Mesh| -> Vec<String> {
        let mut ways: Vec<_> = (0..4).map(|random| way(mesh, &client(), "10.96.0.1:80", random)).collect();
        ways.sort();
        ways.dedup();
        ways
    };
    let mut mesh = mesh(pods.clone());
    mesh.apply(web(&[(80, TargetPort::Number(80))]));
    assert_eq!(to(&mesh), ["tunnel 10.0.0.2:80"]);
    mesh.apply(Change::Pod(Arc::new(Pod { ready: false, ..pods[1].clone() })));
    assert_eq!(to(&mesh), ["tunnel 10.0.0.1:80"]);
    mesh.apply(Change::Pod(Arc::new(Pod { ready: false, ..pods[0].clone() })));
    assert_eq!(to(&mesh), ["no endpoint"], "it leaves and does not serve");

    // As endpoint slices have it: ready, or leaving and serving, or neither.
    let stated = |conditions: [(bool, bool); 2]| {
        let endpoints = [("10.0.0.1", false, "shop/web-1"), ("10.0.0.2", false, "shop/web-2")];
        let mut slice = slice("shop/web-a", "shop/web", &[("p80", 80)], &endpoints);
        for (endpoint, (ready, leaving)) in slice.endpoints.iter_mut().zip(conditions) {
            (endpoint.ready, endpoint.leaving) = (ready, leaving);
        }
        Change::EndpointSlice(Arc::new(slice))
    };
    for (conditions, expected) in [
        ([(true, false), (true, false)], &["tunnel 10.0.0.1:80", "tunnel 10.0.0.2:80"][..]),
        ([(true, false), (false, true)], &["tunnel 10.0.0.1:80"]),
        ([(false, true), (false, true)], &["tunnel 10.0.0.1:80", "tunnel 10.0.0.2:80"]),
        ([(false, false), (false, true)], &["tunnel 10.0.0.2:80"]),
        ([(false, false), (false, false)], &["no endpoint"]),
    ] {
        mesh.apply(stated(conditions));
        assert_eq!(to(&mesh), expected, "{conditions:?}");
    }
    // Those that the client may use decide: none on its node is ready, and one there leaves.
    let local =
        Service { local_only: true, ..service("shop/web", &["10.96.0.1"], &[(80, TargetPort::Number(80))]) };
    mesh.apply(Change::Service(Arc::new(local)));
    let Change::EndpointSlice(far) = stated([(true, false), (false, true)]) else { unreachable!() };
    let mut far = Arc::unwrap_or_clone(far);
    far.endpoints[0].node = Some("n2".into());
    mesh.apply(Change::EndpointSlice(Arc::new(far)));
    assert_eq!(to(&mesh), ["tunnel 10.0.0.2:80"]);
}

#[test]
fn node_ports_and_external_addresses_lead_to_their_service() {
    let at = |id: &str, ip: &str, node: &str, host: &str| Pod {
        node: node.into(),
        host_ips: ips(&[host]),
        ..pod(id, &[ip])
    };
    let mut mesh = mesh([
        at("shop/web-1", "10.0.0.1", "n1", "192.0.2.1"),
        at("plain/other", "10.0.0.9", "n2", "192.0.2.2"),
        at("plain/other-2", "10.0.0.8", "n2", "192.0.2.2"),
    ]);
    let mut web = service("shop/web", &["10.96.0.1"], &[(80, TargetPort::Number(8080))]);
    web.ports[0].node_port = Some(30_080);
    web.external_ips = ips(&["203.0.113.1", "192.0.2.2"]);
    mesh.apply(Change::Service(Arc::new(web.clone())));
    let all = ["*:30080", "10.0.0.1", "10.96.0.1", "192.0.2.2:80", "203.0.113.1:80", "node 192.0.2.1"];
    assert_eq!(captured(&mesh), [&all[..], &["node 192.0.2.2"]].concat());
    let to = |mesh: &Mesh, dst: &str| way(mesh, &client(), dst, 0);
    for (dst, expected) in [
        ("192.0.2.1:30080", "tunnel 10.0.0.1:8080"),
        ("192.0.2.2:30080", "tunnel 10.0.0.1:8080"),
        ("[::ffff:192.0.2.2]:30080", "tunnel 10.0.0.1:8080"),
        ("203.0.113.1:80", "tunnel 10.0.0.1:8080"),
        ("192.0.2.2:80", "tunnel 10.0.0.1:8080"),
        // Neither a node, nor a port of the service.
        ("192.0.2.3:30080", "pass"),
        ("203.0.113.1:30080", "pass"),
        ("203.0.113.1:81", "pass"),
        ("192.0.2.1:80", "pass"),
        ("192.0.2.1:30081", "pass"),
    ] {
        assert_eq!(to(&mesh, dst), expected, "{dst}");
    }
    // A pod's own address, and a cluster IP, are nobody else's.
    let thief = Service { external_ips: ips(&["10.0.0.9", "10.96.0.1"]), ..service("shop/web-2", &[], &[]) };
    mesh.apply(Change::Service(Arc::new(Service { ports: web.ports.clone(), ..thief })));
    assert_eq!(to(&mesh, "10.0.0.9:80"), "plain 10.0.0.9:80");
    assert_eq!(to(&mesh, "10.96.0.1:80"), "tunnel 10.0.0.1:8080");
    mesh.apply(Change::ServiceGone(name("shop/web-2")));
    // A pod that has ended says nothing of its node, nor does the last but one that goes.
    mesh.apply(Change::PodGone(name("plain/other")));
    assert_eq!(to(&mesh, "192.0.2.2:30080"), "tunnel 10.0.0.1:8080");
    mesh.apply(Change::PodGone(name("plain/other-2")));
    assert_eq!(to(&mesh, "192.0.2.2:30080"), "pass");
    // Where nothing is meshed behind it nothing is captured but what costs nothing.
    mesh.apply(namespace("shop", None));
    assert_eq!(captured(&mesh), ["node 192.0.2.1"]);
}

#[test]
fn a_host_port_leads_to_its_pod() {
    let port = |ip: Option<&str>, port| HostPort { ip: ip.map(|ip| ip.parse().unwrap()), port, target: 8080 };
    let web = Pod {
        host_ips: ips(&["192.0.2.1", "2001:db8::1"]),
        host_ports: vec![port(None, 80), port(Some("192.0.2.1"), 81), port(Some("198.51.100.1"), 82)],
        ..pod("shop/web-1", &["10.0.0.1"])
    };
    let plain = Pod {
        host_ports: vec![port(None, 90)],
        host_ips: ips(&["192.0.2.1"]),
        ..pod("plain/a", &["10.0.0.2"])
    };
    let mut mesh = mesh([web.clone(), plain]);
    let at = ["10.0.0.1", "192.0.2.1:80", "192.0.2.1:81", "[2001:db8::1]:80"];
    assert_eq!(captured(&mesh), [&at[..], &["node 192.0.2.1", "node 2001:db8::1"]].concat());
    for (dst, expected) in [
        ("192.0.2.1:80", "tunnel 10.0.0.1:8080"),
        ("192.0.2.1:81", "tunnel 10.0.0.1:8080"),
        ("[2001:db8::1]:81", "pass"),
        ("198.51.100.1:82", "pass"),
        ("[2001:db8::1]:80", "pass"),
    ] {
        assert_eq!(way(&mesh, &client(), dst, 0), expected, "{dst}");
    }
    mesh.apply(Change::Pod(Arc::new(Pod { terminal: true, ..web })));
    assert_eq!(captured(&mesh), ["node 192.0.2.1"]);
}

#[test]
fn a_local_node_port_leads_to_the_node_that_is_dialled() {
    let at = |id: &str, ip: &str, node: &str, host: &str| Pod {
        node: node.into(),
        host_ips: ips(&[host]),
        ..pod(id, &[ip])
    };
    let mut mesh = mesh([
        at("shop/web-1", "10.0.0.1", "n1", "192.0.2.1"),
        at("shop/web-2", "10.0.0.2", "n2", "192.0.2.2"),
        at("plain/other", "10.0.0.9", "n3", "192.0.2.3"),
    ]);
    let mut web = service("shop/web", &["10.96.0.1"], &[(80, TargetPort::Number(80))]);
    web.ports[0].node_port = Some(30_080);
    web.external_ips = ips(&["203.0.113.1"]);
    mesh.apply(Change::Service(Arc::new(Service { external_local: true, ..web })));
    let ways = |node: &str, dst: &str| {
        let client = Workload { node: node.into(), ..client() };
        let mut ways: Vec<_> = (0..8).map(|random| way(&mesh, &client, dst, random)).collect();
        ways.sort();
        ways.dedup();
        ways
    };
    let both = ["tunnel 10.0.0.1:80", "tunnel 10.0.0.2:80"];
    assert_eq!(ways("n1", "192.0.2.2:30080"), ["tunnel 10.0.0.2:80"]);
    assert_eq!(ways("n1", "192.0.2.3:30080"), ["no endpoint"]);
    // As kube-proxy has it: a pod's own node is not outside, nor are a load balancer's addresses.
    assert_eq!(ways("n1", "192.0.2.1:30080"), both);
    assert_eq!(ways("n3", "192.0.2.3:30080"), both);
    assert_eq!(ways("n3", "203.0.113.1:80"), both);
}

#[test]
fn an_endpoint_outside_the_cluster_has_a_workload_of_no_one() {
    let mut mesh = mesh([]);
    mesh.apply(web(&[(80, TargetPort::Number(80))]));
    let external = slice("shop/web-a", "shop/web", &[("p80", 80)], &[("198.51.100.7", true, "")]);
    mesh.apply(Change::EndpointSlice(Arc::new(external)));
    let dst = OriginalDst(SocketAddr::from(([10, 96, 0, 1], 80)));
    let Route::Plain(endpoint) = mesh.route(&client(), dst, 0, |_| None) else { panic!("not plain") };
    assert_eq!(endpoint.workload.name.to_string(), "shop/unknown");
    assert_eq!(&*endpoint.service.unwrap().host, "web.shop.svc.cluster.local");
    assert_eq!(captured(&mesh), [""; 0]);
}

#[test]
fn a_service_is_found_by_its_name_whatever_addresses_it_has() {
    let mut mesh = mesh([pod("shop/web-1", &["10.0.0.1"]), pod("plain/db", &["10.0.0.3"])]);
    let headless =
        Service { cluster_ips: Vec::new(), ..service("shop/web", &[], &[(80, TargetPort::Number(8080))]) };
    mesh.apply(Change::Service(Arc::new(headless)));
    for (host, expected) in [
        ("web.shop", Ok(Some("shop/web"))),
        ("web.shop.svc", Ok(Some("shop/web"))),
        ("web.shop.svc.cluster.local", Ok(Some("shop/web"))),
        ("other.shop.svc.cluster.local", Err("shop/other")),
        ("web.shop.svc.other.test", Ok(None)),
        ("web.shop.example", Ok(None)),
        ("example.com", Ok(None)),
        ("web", Ok(None)),
    ] {
        assert_eq!(mesh.service_by_host(host), expected.map(|found| found.map(name)).map_err(name), "{host}");
    }
    let route = |service: &str, port| mesh.route_by_name(&client(), &name(service), port, 0);
    let Some(Route::Tunnel(endpoint)) = route("shop/web", 80) else { panic!("{:?}", route("shop/web", 80)) };
    assert_eq!(endpoint.addr.0.to_string(), "10.0.0.1:8080");
    assert!(matches!(route("shop/web", 81), Some(Route::Refuse(RouteError::UnknownPort { port: 81, .. }))));
    assert!(route("shop/other", 80).is_none());
    mesh.apply(Change::PodGone(name("shop/web-1")));
    let gone = mesh.route_by_name(&client(), &name("shop/web"), 80, 0);
    assert!(matches!(gone, Some(Route::Refuse(RouteError::NoEndpoint { .. }))), "{gone:?}");
}
