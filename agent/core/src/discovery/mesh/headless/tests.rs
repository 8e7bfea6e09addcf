use std::{collections::BTreeMap, sync::Arc};

use crate::{
    discovery::{
        Change, ClientSettings, ClientTls, ConnectionPool, DestinationRule, ExportTo, HostPattern, Mesh, Pod,
        Route, Service, TargetPort, TrafficPolicy,
        mesh::tests::{captured, client, mesh, name, pod, service, slice},
    },
    model::{OriginalDst, Workload},
};

fn headless(id: &str) -> Change {
    Change::Service(Arc::new(service(id, &[], &[(80, TargetPort::Number(8080))])))
}

fn rule(id: &str, host: &str, tls: ClientTls) -> Change {
    let name = name(id);
    let settings = ClientSettings { rule: name.clone(), tls, pool: ConnectionPool::default() };
    Change::DestinationRule(Arc::new(DestinationRule {
        created: None,
        host: HostPattern::new(host),
        exported_to: ExportTo::All,
        selector: None,
        policy: Some(TrafficPolicy { default: Arc::new(settings), ports: BTreeMap::new() }),
        name,
    }))
}

/// The rule that holds where `client` dials this.
fn ruled(mesh: &Mesh, client: &Workload, dst: &str) -> String {
    match mesh.route(client, OriginalDst(dst.parse().unwrap()), 0, |_| None) {
        Route::Plain(endpoint) | Route::Tunnel(endpoint) => {
            endpoint.rule.map_or("none".to_owned(), |rule| rule.settings.rule.to_string())
        }
        Route::Passthrough => "passed".to_owned(),
        other => panic!("{other:?}"),
    }
}

const POD: &str = "10.0.0.1:8080";

#[test]
fn a_pod_of_a_headless_service_is_reached_as_its_rule_says() {
    let mut mesh = mesh([pod("plain/db-1", &["10.0.0.1"])]);
    mesh.apply(headless("plain/db"));
    assert_eq!((ruled(&mesh, &client(), POD), captured(&mesh).len()), ("none".to_owned(), 0));
    mesh.apply(rule("plain/tls", "db.plain.svc.cluster.local", ClientTls::IstioMutual));
    assert_eq!(ruled(&mesh, &client(), POD), "plain/tls");
    assert_eq!(captured(&mesh), ["10.0.0.1"]);
    // A port that the service does not have is not the service's.
    assert_eq!(ruled(&mesh, &client(), "10.0.0.1:9090"), "none");
    // Slices speak for it from now on.
    mesh.apply(Change::EndpointSlice(Arc::new(slice(
        "plain/db-a",
        "plain/db",
        &[("p80", 8080)],
        &[("10.0.0.1", false, "plain/db-1")],
    ))));
    assert_eq!(ruled(&mesh, &client(), POD), "plain/tls", "whether it is ready does not matter");
    assert_eq!(captured(&mesh), ["10.0.0.1"]);
    mesh.apply(Change::EndpointSlice(Arc::new(slice("plain/db-a", "plain/db", &[("p80", 8080)], &[]))));
    assert_eq!((ruled(&mesh, &client(), POD), captured(&mesh).len()), ("none".to_owned(), 0));
    mesh.apply(Change::EndpointSliceGone(name("plain/db-a")));
    assert_eq!(captured(&mesh), ["10.0.0.1"]);
    mesh.apply(Change::DestinationRuleGone(name("plain/tls")));
    assert_eq!((ruled(&mesh, &client(), POD), captured(&mesh).len()), ("none".to_owned(), 0));
}

#[test]
fn what_is_captured_follows_pods_services_and_patterns() {
    let mut mesh = mesh([]);
    mesh.apply(rule("plain/tls", "*.plain.svc.cluster.local", ClientTls::IstioMutual));
    mesh.apply(headless("plain/db"));
    assert_eq!(captured(&mesh).len(), 0);
    mesh.apply(Change::Pod(Arc::new(pod("plain/db-1", &["10.0.0.1"]))));
    assert_eq!(captured(&mesh), ["10.0.0.1"]);
    mesh.apply(Change::Pod(Arc::new(pod("plain/db-1", &["10.0.0.2"]))));
    assert_eq!(captured(&mesh), ["10.0.0.2"]);
    mesh.apply(Change::ServiceGone(name("plain/db")));
    assert_eq!(captured(&mesh).len(), 0);
    mesh.apply(headless("plain/db"));
    mesh.apply(Change::PodGone(name("plain/db-1")));
    assert_eq!(captured(&mesh).len(), 0);
}

#[test]
fn a_service_with_a_cluster_ip_is_not_asked() {
    let mut mesh = mesh([pod("plain/db-1", &["10.0.0.1"])]);
    mesh.apply(Change::Service(Arc::new(service(
        "plain/db",
        &["10.96.0.9"],
        &[(80, TargetPort::Number(8080))],
    ))));
    mesh.apply(rule("plain/tls", "db.plain.svc.cluster.local", ClientTls::IstioMutual));
    assert_eq!(ruled(&mesh, &client(), POD), "none");
    assert_eq!(captured(&mesh), ["10.96.0.9"]);
}

#[test]
fn of_several_the_strictest_counts() {
    let mut mesh = mesh([pod("plain/db-1", &["10.0.0.1"])]);
    for id in ["plain/db", "plain/also"] {
        let own = Service {
            selector: service("plain/db", &[], &[]).selector,
            ..service(id, &[], &[(80, TargetPort::Number(8080))])
        };
        mesh.apply(Change::Service(Arc::new(own)));
    }
    mesh.apply(rule("plain/mutual", "db.plain.svc.cluster.local", ClientTls::IstioMutual));
    mesh.apply(rule("plain/off", "also.plain.svc.cluster.local", ClientTls::Disable));
    assert_eq!(ruled(&mesh, &client(), POD), "plain/mutual");
    mesh.apply(rule("plain/off", "also.plain.svc.cluster.local", ClientTls::Unusable("why".into())));
    assert_eq!(ruled(&mesh, &client(), POD), "plain/off");
}

#[test]
fn nobody_speaks_for_pods_of_others_but_to_their_own_clients() {
    let mut mesh = mesh([pod("plain/db-1", &["10.0.0.1"])]);
    // Of a third namespace, over a pod and an address that are not its own.
    mesh.apply(headless("evil/db"));
    let endpoints = [("10.0.0.1", true, ""), ("192.0.2.7", true, "")];
    mesh.apply(Change::EndpointSlice(Arc::new(slice("evil/db-a", "evil/db", &[("p80", 8080)], &endpoints))));
    mesh.apply(rule("evil/tls", "db.evil.svc.cluster.local", ClientTls::IstioMutual));
    assert_eq!(ruled(&mesh, &client(), POD), "none");
    assert_eq!(ruled(&mesh, &client(), "192.0.2.7:8080"), "passed");
    mesh.apply(Change::Pod(Arc::new(Pod { ..pod("evil/client", &["10.0.0.66"]) })));
    let own = Workload::clone(mesh.workload_by_ip("10.0.0.66".parse().unwrap()).unwrap());
    assert_eq!(ruled(&mesh, &own, POD), "evil/tls");
    assert_eq!(ruled(&mesh, &own, "192.0.2.7:8080"), "evil/tls", "an address that is no pod's");
}
