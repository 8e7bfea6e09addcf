use std::collections::BTreeMap;

use super::*;
use crate::{
    discovery::{Protocol, ServicePort, SliceEndpoint, SlicePort, TargetPort},
    model::{Labels, OriginalDst, TrustDomain},
};

pub(super) fn pairs(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
}

pub(super) fn ips(list: &[&str]) -> Vec<IpAddr> {
    list.iter().map(|ip| ip.parse().unwrap()).collect()
}

pub(super) fn name(text: &str) -> ObjectName {
    let (namespace, name) = text.split_once('/').unwrap();
    ObjectName::new(namespace, name)
}

/// A running pod on node `n1` with the label `app=<its name up to the first dash>`.
pub(super) fn pod(id: &str, addresses: &[&str]) -> Pod {
    let id = name(id);
    let app = id.name.split('-').next().unwrap().to_owned();
    Pod {
        uid: id.to_string().into(),
        created: None,
        identity: crate::model::SpiffeId::new(TrustDomain::default(), &id.namespace, "default").unwrap(),
        name: id,
        node: "n1".into(),
        ips: ips(addresses),
        host_ips: vec![],
        labels: pairs(&[("app", &app)]),
        host_network: false,
        terminal: false,
        deleting: false,
        ready: true,
        named_ports: BTreeMap::new(),
        ports: vec![],
        probe_ports: vec![],
        host_ports: vec![],
        foreign_probes: vec![],
        netns: None,
        http_telemetry: None,
    }
}

pub(super) fn service(id: &str, vips: &[&str], ports: &[(u16, TargetPort)]) -> Service {
    let id = name(id);
    Service {
        created: None,
        cluster_ips: ips(vips),
        external_ips: vec![],
        ports: ports
            .iter()
            .map(|(port, target)| ServicePort {
                name: format!("p{port}"),
                port: *port,
                node_port: None,
                target: target.clone(),
                protocol: Protocol::Tcp,
                app_protocol: None,
            })
            .collect(),
        selector: pairs(&[("app", &id.name)]),
        session_affinity: None,
        local_only: false,
        external_local: false,
        publish_not_ready: false,
        distribution: None,
        source_ranges: Vec::new(),
        balancer_ips: Vec::new(),
        name: id,
    }
}

pub(super) fn slice(
    id: &str,
    service: &str,
    ports: &[(&str, u16)],
    endpoints: &[(&str, bool, &str)],
) -> EndpointSlice {
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
                leaving: false,
                pod: (!pod.is_empty()).then(|| name(pod)),
                node: Some("n1".into()),
                hints: None,
            })
            .collect(),
    }
}

pub(super) fn namespace(name: &str, label: Option<&str>) -> Change {
    let labels = label.map(|value| (crate::model::DATAPLANE_LABEL.to_owned(), value.to_owned()));
    Change::Namespace(Arc::new(Namespace {
        name: name.into(),
        labels: labels.into_iter().collect(),
        http_telemetry: None,
    }))
}

/// A mesh whose namespace `shop` is enrolled and `plain` is not.
pub(super) fn mesh(pods: impl IntoIterator<Item = Pod>) -> Mesh {
    let mut mesh = Mesh::new(Settings::default());
    mesh.apply(namespace("shop", Some("enabled")));
    mesh.apply(namespace("plain", None));
    for pod in pods {
        mesh.apply(Change::Pod(Arc::new(pod)));
    }
    mesh
}

/// The way to `dst` in words: `tunnel 10.0.0.1:80`, `plain …`, `pass`, `no port`, `no endpoint`.
pub(super) fn way(mesh: &Mesh, client: &Workload, dst: &str, random: u64) -> String {
    match mesh.route(client, OriginalDst(dst.parse().unwrap()), random, |_| None) {
        Route::Tunnel(endpoint) => format!("tunnel {}", endpoint.addr.0),
        Route::Plain(endpoint) => format!("plain {}", endpoint.addr.0),
        Route::Passthrough => "pass".into(),
        Route::Refuse(RouteError::UnknownPort { .. }) => "no port".into(),
        Route::Refuse(RouteError::NoEndpoint { .. }) => "no endpoint".into(),
        Route::Refuse(RouteError::Contested { .. }) => "contested".into(),
        Route::Refuse(RouteError::Unjudged { .. }) => "unjudged".into(),
        Route::Refuse(RouteError::Unread { .. }) => "unread".into(),
        Route::Refuse(RouteError::NotRegistered { .. }) => "not registered".into(),
        Route::Refuse(RouteError::SourceRange { .. }) => "out of range".into(),
        Route::Resolve(named) => {
            let names: Vec<String> =
                named.names.iter().map(|(name, port)| format!("{name}:{port}")).collect();
            format!("resolve {}", names.join(" "))
        }
    }
}

pub(super) fn client() -> Workload {
    let mesh = mesh([pod("shop/client", &["10.0.0.99"])]);
    Workload::clone(mesh.workload_by_ip("10.0.0.99".parse().unwrap()).unwrap())
}

pub(super) fn captured(mesh: &Mesh) -> Vec<String> {
    let text = |destination| match destination {
        Destination::Address(ip) => ip.to_string(),
        Destination::Port(at) => at.to_string(),
        Destination::NodePort(port) => format!("*:{port}"),
        Destination::Node(ip) => format!("node {ip}"),
    };
    let mut all: Vec<String> = mesh.captured_destinations().map(text).collect();
    all.sort();
    all
}

fn enrolled(mesh: &Mesh, ip: &str) -> bool {
    mesh.workload_by_ip(ip.parse().unwrap()).is_some_and(|workload| workload.enrolled)
}

/// By label of namespace and pod.
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
    mesh.apply(Change::Namespace(Arc::new(Namespace { name: "shop".into(), labels, http_telemetry: None })));
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

/// Which of two pods has an address may be told by their ages, but not so surely that plaintext may go there.
#[test]
fn an_address_that_may_be_a_meshed_pods_is_not_reached_in_plaintext() {
    let at = |id, created| Pod { created: Some(created), ..pod(id, &["10.0.0.1"]) };
    let rows = [
        (at("plain/b", 20), at("shop/a", 10), "contested", true),
        (at("plain/b", 10), at("shop/a", 20), "tunnel 10.0.0.1:80", true),
        (at("shop/b", 20), at("shop/a", 10), "tunnel 10.0.0.1:80", true),
        (at("plain/b", 20), at("plain/a", 10), "plain 10.0.0.1:80", false),
        (at("plain/b", 20), Pod { deleting: true, ..at("shop/a", 10) }, "plain 10.0.0.1:80", false),
        (at("plain/b", 20), Pod { terminal: true, ..at("shop/a", 10) }, "plain 10.0.0.1:80", false),
        (
            Pod { deleting: true, ..at("plain/b", 20) },
            Pod { deleting: true, ..at("shop/a", 10) },
            "contested",
            true,
        ),
    ];
    for (row, (one, other, expected, is_captured)) in rows.into_iter().enumerate() {
        for pods in [[one.clone(), other.clone()], [other, one]] {
            let mut mesh = mesh(pods);
            let web = service("other/web", &["10.96.0.1"], &[(80, TargetPort::Number(80))]);
            mesh.apply(Change::Service(Arc::new(web)));
            let slice = slice("other/s", "other/web", &[("p80", 80)], &[("10.0.0.1", true, "")]);
            mesh.apply(Change::EndpointSlice(Arc::new(slice)));
            assert_eq!(way(&mesh, &client(), "10.0.0.1:80", 0), expected, "row {row}");
            assert_eq!(way(&mesh, &client(), "10.96.0.1:80", 0), expected, "row {row}, by a service");
            let expected = if is_captured { vec!["10.0.0.1", "10.96.0.1"] } else { vec![] };
            assert_eq!(captured(&mesh), expected, "row {row}");
        }
    }
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
        // In the other order the service would look for its pods first.
        let slice = slice(&format!("shop/s{n}"), &format!("shop/svc{n}"), &[("p80", 80)], &endpoints);
        mesh.apply(Change::EndpointSlice(Arc::new(slice)));
        mesh.apply(Change::Service(Arc::new(service)));
    }
    assert_eq!(mesh.captured_destinations().count(), 11_000);
    let client = client();
    for random in 0..100_000u64 {
        let dst =
            SocketAddr::from(([10, 96, (random % 1_000 / 256) as u8, (random % 1_000 % 256) as u8], 80));
        assert!(matches!(mesh.route(&client, OriginalDst(dst), random, |_| None), Route::Tunnel(_)));
    }
    // A label, an address, and a place in the mesh, to and fro.
    for round in 0..5_000u32 {
        let mut changed = pod("shop/svc7-7", &[if round % 4 == 1 { "10.200.0.1" } else { "10.1.0.7" }]);
        changed.labels.insert("round".into(), round.to_string());
        if round % 4 == 3 {
            changed.labels.insert(crate::model::DATAPLANE_LABEL.into(), "disabled".into());
        }
        let delta = mesh.apply(Change::Pod(Arc::new(changed)));
        assert_eq!(delta.pods().count(), 1);
        assert!(delta.begun().count() + delta.ended().count() <= 2);
    }
    // Unoptimised builds on a loaded machine take about a second; a scan over all pods would take minutes.
    assert!(start.elapsed().as_secs() < 30, "{:?}", start.elapsed());
}
