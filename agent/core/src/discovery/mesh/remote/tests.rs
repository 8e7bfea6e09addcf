use std::collections::BTreeMap;

use super::*;
use crate::{
    discovery::{
        Change, EndpointSlice, EntryAddress, EntryEndpoint, EntryPort, EntryProtocol, ExportTo, Resolution,
        Service, ServiceEntry, TargetPort,
        mesh::tests::{client, mesh, name, namespace, pairs, pod, service, slice, way},
    },
    model::DATAPLANE_LABEL,
};

const VIP: &str = "10.96.0.1:80";

fn west() -> Arc<str> {
    "west".into()
}

/// The pod as the other cluster has it.
fn elsewhere(id: &str, ip: &str) -> Pod {
    let pod = pod(id, &[ip]);
    Pod { name: pod.name.in_cluster(&west()), node: "west/n1".into(), ..pod }
}

fn slice_elsewhere(pod: &str) -> EndpointSlice {
    let mut slice = slice("shop/web-a", "shop/web", &[("p80", 8080)], &[("10.1.0.1", true, pod)]);
    slice.name = slice.name.in_cluster(&west());
    for endpoint in &mut slice.endpoints {
        endpoint.node = Some("west/n1".into());
        endpoint.pod = endpoint.pod.take().map(|pod| pod.in_cluster(&west()));
    }
    slice
}

fn namespace_elsewhere(name: &str, enrolled: bool) -> Change {
    let labels = if enrolled { pairs(&[(DATAPLANE_LABEL, "enabled")]) } else { pairs(&[]) };
    let namespace = Namespace { name: name.into(), labels, http_telemetry: None };
    Change::RemoteNamespace { cluster: west(), namespace: Arc::new(namespace) }
}

fn web() -> Service {
    service("shop/web", &["10.96.0.1"], &[(80, TargetPort::Number(8080))])
}

fn apply(mesh: &mut Mesh, pod: Pod, slice: EndpointSlice) {
    mesh.apply(Change::Pod(Arc::new(pod)));
    mesh.apply(Change::EndpointSlice(Arc::new(slice)));
}

/// The ways that connections to the service take.
fn ways(mesh: &Mesh) -> Vec<String> {
    let mut ways: Vec<String> = (0..8).map(|random| way(mesh, &client(), VIP, random)).collect();
    ways.sort();
    ways.dedup();
    ways
}

#[test]
fn services_of_one_name_are_one() {
    let mut mesh = mesh([]);
    mesh.apply(Change::Service(Arc::new(web())));
    let own = slice("shop/web-a", "shop/web", &[("p80", 8080)], &[("10.0.0.1", true, "shop/web-1")]);
    apply(&mut mesh, pod("shop/web-1", &["10.0.0.1"]), own);
    mesh.apply(namespace_elsewhere("shop", true));
    // Of the same names as ours.
    apply(&mut mesh, elsewhere("shop/web-1", "10.1.0.1"), slice_elsewhere("shop/web-1"));
    assert_eq!(ways(&mesh), ["tunnel 10.0.0.1:8080", "tunnel 10.1.0.1:8080"]);
    assert_eq!(way(&mesh, &client(), "10.1.0.1:99", 0), "tunnel 10.1.0.1:99");

    mesh.apply(Change::EndpointSliceGone(name("shop/web-a")));
    assert_eq!(
        ways(&mesh),
        ["tunnel 10.0.0.1:8080", "tunnel 10.1.0.1:8080"],
        "no slice of ours: its selector"
    );
    mesh.apply(Change::PodGone(name("shop/web-1")));
    assert_eq!(ways(&mesh), ["tunnel 10.1.0.1:8080"]);
    mesh.apply(Change::EndpointSliceGone(name("shop/web-a").in_cluster(&west())));
    assert_eq!(ways(&mesh), ["no endpoint"]);
}

#[test]
fn a_pod_elsewhere_is_never_taken_for_one_outside_the_mesh() {
    let mut mesh = mesh([]);
    mesh.apply(Change::Service(Arc::new(web())));
    // Whatever comes first.
    mesh.apply(Change::EndpointSlice(Arc::new(slice_elsewhere("shop/web-1"))));
    assert_eq!(ways(&mesh), ["no endpoint"]);
    mesh.apply(Change::Pod(Arc::new(elsewhere("shop/web-1", "10.1.0.1"))));
    assert_eq!(ways(&mesh), ["no endpoint"], "its namespace is not known, though ours of that name is");
    mesh.apply(namespace_elsewhere("shop", true));
    assert_eq!(ways(&mesh), ["tunnel 10.1.0.1:8080"]);
    mesh.apply(namespace_elsewhere("shop", false));
    assert_eq!(ways(&mesh), ["plain 10.1.0.1:8080"], "that cluster's namespace says it, not ours");
    mesh.apply(namespace("shop", None));
    mesh.apply(namespace_elsewhere("shop", true));
    assert_eq!(ways(&mesh), ["tunnel 10.1.0.1:8080"]);
    mesh.apply(Change::RemoteNamespaceGone { cluster: west(), name: "shop".into() });
    assert_eq!(ways(&mesh), ["no endpoint"]);
}

#[test]
fn a_pod_elsewhere_is_captured_until_its_namespace_is_known() {
    let address = Destination::Address("10.1.0.1".parse().unwrap());
    let captured = |mesh: &Mesh| mesh.captured_destinations().any(|captured| captured == address);
    let dialled = |mesh: &Mesh| way(mesh, &client(), "10.1.0.1:80", 0);
    let mut mesh = mesh([]);
    let pod = || Change::Pod(Arc::new(elsewhere("shop/web-1", "10.1.0.1")));
    let delta = mesh.apply(pod());
    assert!(delta.begun().eq([address]) && captured(&mesh));
    assert_eq!(dialled(&mesh), "unjudged");
    let delta = mesh.apply(namespace_elsewhere("shop", false));
    assert!(delta.ended().eq([address]) && !captured(&mesh), "it is not in the mesh");
    assert_eq!(dialled(&mesh), "plain 10.1.0.1:80");
    mesh.apply(Change::RemoteNamespaceGone { cluster: west(), name: "shop".into() });
    assert!(captured(&mesh), "it may be again");
    mesh.apply(namespace_elsewhere("shop", true));
    assert!(captured(&mesh));
    assert_eq!(dialled(&mesh), "tunnel 10.1.0.1:80");
}

#[test]
fn nothing_goes_to_a_cluster_that_has_not_been_read() {
    let mut mesh = mesh([pod("shop/own", &["10.1.0.9"])]);
    let networks =
        |text: &str| text.split(' ').map(|ip| Prefix::new(ip.parse().unwrap(), 16).unwrap()).collect();
    let unread = |cluster: &str, text: &str| Change::ClusterUnread {
        cluster: cluster.into(),
        networks: networks(text),
    };
    let entry = |at: &str| ServiceEntry {
        name: name("shop/api"),
        created: None,
        hosts: vec!["api.example.com".into()],
        wildcards: vec![],
        addresses: vec![Prefix::single("198.18.9.9".parse().unwrap())],
        no_vips: false,
        ports: vec![EntryPort {
            number: 80,
            name: "http".into(),
            target: 8080,
            protocol: EntryProtocol::Http,
        }],
        resolution: Resolution::Static,
        endpoints: vec![EntryEndpoint {
            address: EntryAddress::Ip(at.parse().unwrap()),
            ports: BTreeMap::new(),
        }],
        selector: None,
        exported_to: ExportTo::All,
        subject_alt_names: vec![],
        identities: None,
    };
    mesh.apply(Change::ServiceEntry(Arc::new(entry("10.1.0.1"))));
    for (dst, before, while_unread) in [
        ("10.1.0.1:80", "pass", "unread"),
        ("10.1.0.9:80", "tunnel 10.1.0.9:80", "tunnel 10.1.0.9:80"),
        ("[fd01::1]:80", "pass", "unread"),
        ("10.2.0.1:80", "pass", "pass"),
        // Whoever names it, too.
        ("198.18.9.9:80", "plain 10.1.0.1:8080", "unread"),
    ] {
        let mut mesh = mesh.clone();
        assert_eq!(way(&mesh, &client(), dst, 0), before, "{dst}");
        let delta = mesh.apply(unread("west", "10.1.0.0 fd01::"));
        assert!(delta.reconsiders_pods() && mesh.captures_everything_of("shop"), "who is there is not known");
        assert_eq!(way(&mesh, &client(), dst, 0), while_unread, "{dst}");
        let delta = mesh.apply(unread("north", "10.1.0.0"));
        assert!(!delta.reconsiders_pods(), "all is captured already");
        mesh.apply(Change::ClusterKnown(west()));
        assert!(mesh.captures_everything_of("shop"), "there is another one");
        mesh.apply(Change::ClusterKnown("north".into()));
        assert!(!mesh.captures_everything_of("shop"));
        assert_eq!(way(&mesh, &client(), dst, 0), before, "{dst}");
    }
    // What has been read goes before what is only said.
    mesh.apply(unread("west", "10.1.0.0"));
    mesh.apply(namespace_elsewhere("shop", true));
    mesh.apply(Change::Pod(Arc::new(elsewhere("shop/web-1", "10.1.0.1"))));
    assert_eq!(way(&mesh, &client(), "10.1.0.1:80", 0), "tunnel 10.1.0.1:80");
}

#[test]
fn what_is_known_of_a_cluster_brings_about_the_same() {
    let mut mesh = mesh([pod("shop/ours", &["10.0.0.1"])]);
    mesh.apply(Change::Service(Arc::new(web())));
    mesh.apply(namespace_elsewhere("shop", true));
    apply(&mut mesh, elsewhere("shop/web-1", "10.1.0.1"), slice_elsewhere("shop/web-1"));
    let known: Vec<Change> = mesh.known_of(&west()).collect();
    assert!(matches!(known[..], [Change::RemoteNamespace { .. }, Change::Pod(_), Change::EndpointSlice(_)]));
    let mut other = self::mesh([]);
    other.apply(Change::Service(Arc::new(web())));
    known.into_iter().for_each(|change| drop(other.apply(change)));
    assert_eq!(ways(&other), ["tunnel 10.1.0.1:8080"]);
    assert_eq!(other.known_of(&"north".into()).count(), 0);
}

/// Pods and slices are read by watches of their own, either of which may be behind.
#[test]
fn an_endpoint_whose_pod_has_gone_is_left_for_another() {
    let mut mesh = mesh([]);
    mesh.apply(Change::Service(Arc::new(web())));
    mesh.apply(namespace_elsewhere("shop", true));
    let both = |mut slice: EndpointSlice| {
        let mut next = slice.endpoints[0].clone();
        next.addresses = vec!["10.1.0.2".parse().unwrap()];
        next.pod = Some(name("shop/next").in_cluster(&west()));
        slice.endpoints.push(next);
        slice
    };
    apply(&mut mesh, elsewhere("shop/web-1", "10.1.0.1"), both(slice_elsewhere("shop/web-1")));
    assert_eq!(ways(&mesh), ["tunnel 10.1.0.1:8080"], "the other one's pod is not known yet");
    mesh.apply(Change::Pod(Arc::new(elsewhere("shop/next", "10.1.0.2"))));
    assert_eq!(ways(&mesh), ["tunnel 10.1.0.1:8080", "tunnel 10.1.0.2:8080"]);
    mesh.apply(Change::PodGone(name("shop/web-1").in_cluster(&west())));
    assert_eq!(ways(&mesh), ["tunnel 10.1.0.2:8080"], "its slice is behind");
}

#[test]
fn what_is_ours_stays_ours() {
    let mut mesh = mesh([Pod { created: Some(1), ..pod("plain/a", &["10.0.0.1"]) }]);
    mesh.apply(namespace_elsewhere("shop", true));
    let delta =
        mesh.apply(Change::Pod(Arc::new(Pod { created: Some(9), ..elsewhere("shop/a", "10.0.0.1") })));
    assert_eq!(delta.begun().count(), 0);
    assert_eq!(way(&mesh, &client(), "10.0.0.1:80", 0), "plain 10.0.0.1:80");
    let disputed: Vec<String> =
        mesh.disputed_addresses().map(|(ip, owner, other)| format!("{ip} {owner} {other}")).collect();
    assert_eq!(disputed, ["10.0.0.1 plain/a west:shop/a"]);
    assert_eq!((mesh.pods().count(), mesh.remote_pods().count(), mesh.pods_on("n1").count()), (1, 1, 1));
    mesh.apply(Change::PodGone(name("plain/a")));
    assert_eq!(way(&mesh, &client(), "10.0.0.1:80", 0), "tunnel 10.0.0.1:80");
    assert_eq!(mesh.disputed_addresses().count(), 0);
    // The address of a node.
    let ip = "10.0.0.1".parse().unwrap();
    let on_host = Pod { host_ips: vec![ip], host_network: true, ..pod("plain/b", &["10.0.0.1"]) };
    mesh.apply(Change::Pod(Arc::new(on_host)));
    assert_eq!(way(&mesh, &client(), "10.0.0.1:80", 0), "pass");
}

#[test]
fn a_node_elsewhere_is_none_of_ours() {
    let mut mesh = mesh([]);
    mesh.apply(Change::Service(Arc::new(Service { local_only: true, ..web() })));
    mesh.apply(namespace_elsewhere("shop", true));
    apply(&mut mesh, elsewhere("shop/web-1", "10.1.0.1"), slice_elsewhere("shop/web-1"));
    assert_eq!(ways(&mesh), ["no endpoint"], "only endpoints of the client's node");
    assert_eq!(mesh.services_elsewhere().count(), 0);
    mesh.apply(Change::ServiceGone(name("shop/web")));
    let without: Vec<String> =
        mesh.services_elsewhere().map(|(cluster, name)| format!("{cluster} {name}")).collect();
    assert_eq!((without, ways(&mesh)), (vec!["west shop/web".to_owned()], vec!["pass".to_owned()]));
}
