use std::{net::SocketAddr, sync::Arc, time::Duration};

use super::*;
use crate::{
    discovery::{
        Change, Distribution, EndpointSlice, Hints, Node, Pod, Prefix, Route, Service, SliceEndpoint,
        TargetPort,
        mesh::tests::{client, ips, mesh, name, pod, service, slice, way},
    },
    model::OriginalDst,
};

const WEB: &str = "10.96.0.1:80";

fn web() -> Service {
    service("shop/web", &["10.96.0.1"], &[(80, TargetPort::Number(8080))])
}

/// A mesh with three endpoints of a service outside any pod; `hints` are a node and a zone of each, `-` for none.
fn hinted(hints: [(&str, &str); 3], change: impl FnOnce(&mut Service)) -> Mesh {
    let mut mesh = mesh([]);
    let mut own = web();
    change(&mut own);
    mesh.apply(Change::Service(Arc::new(own)));
    mesh.apply(Change::EndpointSlice(Arc::new(hinted_slice(hints))));
    mesh
}

fn hinted_slice(hints: [(&str, &str); 3]) -> EndpointSlice {
    let addresses = ["192.0.2.1", "192.0.2.2", "192.0.2.3"];
    let endpoints = addresses.map(|ip| (ip, true, ""));
    let plain = slice("shop/web-a", "shop/web", &[("p80", 8080)], &endpoints);
    let stated = |text: &str| if text == "-" { vec![] } else { vec![Arc::from(text)] };
    let endpoints = plain.endpoints.iter().zip(hints).map(|(endpoint, (node, zone))| SliceEndpoint {
        hints: Some(Arc::new(Hints { nodes: stated(node), zones: stated(zone) })),
        ..endpoint.clone()
    });
    EndpointSlice { endpoints: endpoints.collect(), ..plain }
}

fn in_zone(mesh: &mut Mesh, zone: &str) {
    mesh.apply(Change::Node(Arc::new(Node { name: "n1".into(), zone: Some(zone.into()) })));
}

/// The last octets of all endpoints that chance may lead to.
fn reached(mesh: &Mesh) -> String {
    let mut ways: Vec<String> = (0..12).map(|random| way(mesh, &client(), WEB, random)).collect();
    ways.sort();
    ways.dedup();
    ways.iter().map(|way| way.trim_start_matches("plain 192.0.2.").trim_end_matches(":8080")).collect()
}

#[test]
fn hints_are_followed_as_kube_proxy_follows_them() {
    for (hints, zone, expected) in [
        ([("-", "east"), ("-", "west"), ("-", "east")], "east", "13"),
        ([("-", "east"), ("-", "west"), ("-", "east")], "west", "2"),
        // No endpoint for the zone, or no zone: all.
        ([("-", "east"), ("-", "west"), ("-", "east")], "north", "123"),
        ([("-", "east"), ("-", "west"), ("-", "east")], "", "123"),
        // One without hints: all.
        ([("-", "east"), ("-", "-"), ("-", "east")], "east", "123"),
        // The node goes before the zone; a node without an endpoint has its zone's.
        ([("n1", "east"), ("n2", "east"), ("n3", "west")], "east", "1"),
        ([("n4", "east"), ("n2", "east"), ("n3", "west")], "east", "12"),
        ([("n1", "east"), ("-", "east"), ("n3", "west")], "east", "12"),
    ] {
        let mut mesh = hinted(hints, |_| ());
        if !zone.is_empty() {
            in_zone(&mut mesh, zone);
        }
        assert_eq!(reached(&mesh), expected, "{hints:?} in {zone:?}");
    }
}

#[test]
fn hints_of_endpoints_that_are_not_ready_do_not_count() {
    let mut mesh = hinted([("-", "east"), ("-", "west"), ("-", "west")], |_| ());
    in_zone(&mut mesh, "east");
    assert_eq!(reached(&mesh), "1");
    let mut slice = hinted_slice([("-", "east"), ("-", "west"), ("-", "-")]);
    slice.endpoints[2].ready = false;
    mesh.apply(Change::EndpointSlice(Arc::new(slice.clone())));
    assert_eq!(reached(&mesh), "1");
    slice.endpoints[0].ready = false;
    slice.endpoints[0].leaving = true;
    mesh.apply(Change::EndpointSlice(Arc::new(slice)));
    assert_eq!(reached(&mesh), "2", "the others' zone serves before one that terminates");
}

#[test]
fn a_local_policy_goes_before_hints() {
    let mut mesh = hinted([("n2", "east"), ("n2", "east"), ("n2", "west")], |own| own.local_only = true);
    in_zone(&mut mesh, "west");
    // By the slice, all of them are on the client's node.
    assert_eq!(reached(&mesh), "123");
}

#[test]
fn affinity_keeps_to_those_that_are_near() {
    let mut mesh = hinted([("-", "east"), ("-", "west"), ("-", "west")], |own| {
        own.session_affinity = Some(Duration::from_secs(10));
    });
    in_zone(&mut mesh, "west");
    let kept = |ip: &'static str| {
        let kept = move |_: &ObjectName| ip.parse().ok();
        let dst = OriginalDst(WEB.parse().unwrap());
        match mesh.route(&client(), dst, 0, kept) {
            Route::Plain(endpoint) => endpoint.addr.0.ip().to_string(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(kept("192.0.2.2"), "192.0.2.2");
    assert_eq!(kept("192.0.2.3"), "192.0.2.3");
    assert_ne!(kept("192.0.2.1"), "192.0.2.1");
}

#[test]
fn without_slices_pods_are_near_by_their_own_node() {
    let on = |id: &str, ip: &str, node: &str| Pod { node: node.into(), ..pod(id, &[ip]) };
    let mut mesh = mesh([
        on("plain/web-1", "192.0.2.1", "n1"),
        on("plain/web-2", "192.0.2.2", "n2"),
        on("plain/web-3", "192.0.2.3", "n3"),
    ]);
    let own = |distribution| {
        let own = service("plain/web", &["10.96.0.1"], &[(80, TargetPort::Number(8080))]);
        Change::Service(Arc::new(Service { distribution, ..own }))
    };
    mesh.apply(own(Some(Distribution::SameNode)));
    assert_eq!(reached(&mesh), "1");
    mesh.apply(own(Some(Distribution::SameZone)));
    assert_eq!(reached(&mesh), "123");
    for (node, zone) in [("n1", "east"), ("n2", "east"), ("n3", "west")] {
        mesh.apply(Change::Node(Arc::new(Node { name: node.into(), zone: Some(zone.into()) })));
    }
    assert_eq!(reached(&mesh), "12");
    mesh.apply(Change::NodeGone("n3".into()));
    assert_eq!(reached(&mesh), "123", "an endpoint whose zone is not known has no hint");
    mesh.apply(own(None));
    assert_eq!(reached(&mesh), "123");
}

/// Where a connection goes that was `tried` with these endpoints, while those are `failing`; by last octets.
fn preferring(mesh: &Mesh, tried: &[u8], failing: &[u8]) -> String {
    let at = |octet: &u8| SocketAddr::from(([192, 0, 2, *octet], 8080));
    let tried: Vec<SocketAddr> = tried.iter().map(at).collect();
    let failing: Vec<SocketAddr> = failing.iter().map(at).collect();
    let mut ways: Vec<String> = (0..12)
        .map(|random| {
            let preferences = Preferences {
                tried: &tried,
                failing: &|at| failing.contains(&at),
                ..Preferences::random(random)
            };
            match mesh.route_preferring(&client(), OriginalDst(WEB.parse().unwrap()), &preferences) {
                Route::Plain(endpoint) => endpoint.addr.0.ip().to_string().split_off(8),
                Route::Refuse(_) => "-".to_owned(),
                other => panic!("{other:?}"),
            }
        })
        .collect();
    ways.sort();
    ways.dedup();
    ways.concat()
}

#[test]
fn what_fails_is_left_and_what_was_tried_is_not_tried_again() {
    let mut mesh = hinted([("-", "east"), ("-", "east"), ("-", "west")], |_| ());
    for (tried, failing, expected) in [
        (&[][..], &[][..], "123"),
        (&[1], &[], "23"),
        (&[], &[1], "23"),
        (&[2], &[1, 3], "13"),
        (&[1, 2], &[3], "3"),
        (&[1, 2, 3], &[], "-"),
        (&[], &[1, 2, 3], "123"),
    ] {
        assert_eq!(preferring(&mesh, tried, failing), expected, "tried {tried:?}, failing {failing:?}");
    }
    // One that is far goes before one that fails, but not before one that is near.
    in_zone(&mut mesh, "east");
    for (tried, failing, expected) in [
        (&[][..], &[][..], "12"),
        (&[1], &[], "2"),
        (&[1, 2], &[], "3"),
        (&[], &[1, 2], "3"),
        (&[], &[1, 2, 3], "12"),
        (&[1, 2, 3], &[], "-"),
    ] {
        assert_eq!(preferring(&mesh, tried, failing), expected, "near: tried {tried:?}, failing {failing:?}");
    }
}

#[test]
fn one_that_terminates_is_no_way_out_of_a_failure() {
    let mut mesh = mesh([]);
    mesh.apply(Change::Service(Arc::new(web())));
    let mut slice = hinted_slice([("-", "-"); 3]);
    slice.endpoints[1].ready = false;
    slice.endpoints[1].leaving = true;
    slice.endpoints.truncate(2);
    mesh.apply(Change::EndpointSlice(Arc::new(slice)));
    assert_eq!(preferring(&mesh, &[], &[1]), "1");
    assert_eq!(preferring(&mesh, &[1], &[]), "-");
}

#[test]
fn a_load_balancers_address_is_for_its_source_ranges() {
    let mut mesh = mesh([pod("shop/web-1", &["10.0.0.1"])]);
    let ranges = |prefix: &str, len| {
        let range = Prefix::new(prefix.parse().unwrap(), len).unwrap();
        Change::Service(Arc::new(Service {
            external_ips: ips(&["203.0.113.1", "203.0.113.2"]),
            balancer_ips: ips(&["203.0.113.1"]),
            source_ranges: vec![range],
            ..web()
        }))
    };
    mesh.apply(ranges("198.51.100.0", 24));
    assert_eq!(way(&mesh, &client(), "203.0.113.1:80", 0), "out of range");
    // Neither its other addresses nor its cluster IP are held to them.
    for dst in ["203.0.113.2:80", WEB] {
        assert_eq!(way(&mesh, &client(), dst, 0), "tunnel 10.0.0.1:8080");
    }
    mesh.apply(ranges("10.0.0.0", 8));
    assert_eq!(way(&mesh, &client(), "203.0.113.1:80", 0), "tunnel 10.0.0.1:8080");
    mesh.apply(Change::PodGone(name("shop/web-1")));
}
