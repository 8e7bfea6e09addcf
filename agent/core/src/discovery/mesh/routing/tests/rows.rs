//! What becomes of a connection by what is dialled, row by row, as Istio's ambient mode has it; where this differs, the row says so.

use super::*;
use crate::discovery::{ExportTo, Prefix, Resolution, ServiceEntry, mesh::tests::pairs};

/// A client, a pod in the mesh, one out of it, one on the host network, and the services that lead there.
fn scene() -> Mesh {
    let host = Pod { host_network: true, host_ips: ips(&["192.0.2.1"]), ..pod("shop/host", &["192.0.2.1"]) };
    let mut mesh = mesh([
        pod("shop/client", &["10.0.0.99"]),
        pod("shop/web", &["10.0.0.1"]),
        pod("plain/db", &["10.0.0.2"]),
        pod("shop/late", &["10.0.0.3"]),
        host,
    ]);
    mesh.apply(Change::Pod(Arc::new(Pod { ready: false, ..pod("shop/late", &["10.0.0.3"]) })));
    let port = || [(80, TargetPort::Number(8080))];
    let services = [
        service("shop/web", &["10.96.0.1"], &port()),
        service("plain/db", &["10.96.0.2"], &port()),
        service("shop/client", &["10.96.0.3"], &port()),
        service("shop/late", &["10.96.0.4"], &port()),
        Service {
            publish_not_ready: true,
            name: name("shop/early"),
            ..service("shop/late", &["10.96.0.5"], &port())
        },
        Service { selector: pairs(&[]), ..service("shop/host", &["10.96.0.6"], &port()) },
        Service { local_only: true, name: name("shop/near"), ..service("shop/web", &["10.96.0.7"], &port()) },
    ];
    for service in services {
        mesh.apply(Change::Service(Arc::new(service)));
    }
    let slice = slice("shop/host", "shop/host", &[("p80", 8080)], &[("192.0.2.1", true, "shop/host")]);
    mesh.apply(Change::EndpointSlice(Arc::new(slice)));
    mesh.apply(Change::ServiceEntry(Arc::new(ServiceEntry {
        name: name("shop/api"),
        created: None,
        hosts: vec!["api.example.com".into()],
        wildcards: vec![],
        addresses: vec![Prefix::single("198.18.9.9".parse().unwrap())],
        no_vips: false,
        ports: vec![],
        resolution: Resolution::None,
        endpoints: vec![],
        selector: None,
        exported_to: ExportTo::All,
        subject_alt_names: vec![],
        identities: None,
    })));
    mesh
}

#[test]
fn each_kind_of_destination_has_its_way() {
    let mesh = scene();
    let client = Workload::clone(mesh.workload_by_ip("10.0.0.99".parse().unwrap()).unwrap());
    for (what, dialled, expected) in [
        ("a cluster IP, endpoint in the mesh", "10.96.0.1:80", "tunnel 10.0.0.1:8080"),
        ("a cluster IP, endpoint outside", "10.96.0.2:80", "plain 10.0.0.2:8080"),
        ("a cluster IP that leads to the client itself", "10.96.0.3:80", "tunnel 10.0.0.99:8080"),
        ("a cluster IP, a port that it does not have", "10.96.0.1:81", "no port"),
        ("a cluster IP, no endpoint that is ready", "10.96.0.4:80", "no endpoint"),
        ("the same where unready ones are published", "10.96.0.5:80", "tunnel 10.0.0.3:8080"),
        ("a pod on the host network, by its service", "10.96.0.6:80", "plain 192.0.2.1:8080"),
        ("internalTrafficPolicy: Local, endpoint here", "10.96.0.7:80", "tunnel 10.0.0.1:8080"),
        ("a pod in the mesh, by its own address", "10.0.0.1:9", "tunnel 10.0.0.1:9"),
        ("a pod outside, by its own address", "10.0.0.2:9", "plain 10.0.0.2:9"),
        ("an entry with resolution NONE", "198.18.9.9:80", "pass"),
        ("a node, a port that is no node port", "192.0.2.1:22", "pass"),
        ("an address that nobody knows, as of an ExternalName", "203.0.113.7:443", "pass"),
        // No port of a pod is the agent's: what others reserve is the application's.
        ("a port that other meshes reserve", "10.0.0.1:15008", "tunnel 10.0.0.1:15008"),
    ] {
        assert_eq!(way(&mesh, &client, dialled, 0), expected, "{what}");
    }
    let elsewhere = Workload { node: "n2".into(), ..client };
    assert_eq!(way(&mesh, &elsewhere, "10.96.0.7:80", 0), "no endpoint", "internalTrafficPolicy: Local");
}

/// Nothing is captured but what may be in the mesh, or is an entry's that leads elsewhere.
#[test]
fn what_leads_nowhere_into_the_mesh_is_not_captured() {
    let captured = captured(&scene());
    for address in ["10.96.0.2", "10.96.0.6", "10.0.0.2", "198.18.9.9:80", "203.0.113.7", "127.0.0.1"] {
        assert!(!captured.contains(&address.to_owned()), "{address}: {captured:?}");
    }
    for address in
        ["10.96.0.1", "10.96.0.3", "10.96.0.4", "10.96.0.5", "10.96.0.7", "10.0.0.1", "node 192.0.2.1"]
    {
        assert!(captured.contains(&address.to_owned()), "{address}: {captured:?}");
    }
}
