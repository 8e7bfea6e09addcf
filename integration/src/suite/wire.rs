//! What is on the wire between nodes, and what is not.

mod pacing;

use std::net::IpAddr;

use anyhow::{Result, ensure};

use super::{Test, marker, own, shared};
use crate::{
    capture::{Capture, is_client_hello},
    load::ports,
    tools::HTTP_BODY,
    world::World,
};

pub(super) const TESTS: &[Test] = &[
    shared(
        "wire::ipv4_payload_is_never_in_the_clear",
        "curl over IPv4: TLS on the app's own port, no byte of payload",
        |world| curl_both_ways(world, "a", "b", false),
    ),
    shared(
        "wire::ipv6_payload_is_never_in_the_clear",
        "curl over IPv6: TLS on the app's own port, no byte of payload",
        |world| curl_both_ways(world, "a", "b", true),
    ),
    shared("wire::the_other_direction_is_encrypted_too", "a client on node2, a server on node1", |world| {
        curl_both_ways(world, "b", "e", false)
    }),
    own(
        "wire::pods_of_one_node_are_encrypted_too",
        "mutual TLS also where no node link is crossed, with --local-traffic encrypt",
        &["--local-traffic", "encrypt"],
        same_node,
    ),
    shared(
        "wire::only_the_leg_between_nodes_is_paced",
        "where the machine's congestion control paces, legs inside pods do not",
        pacing::legs,
    ),
];

fn curl_both_ways(world: &mut World, client: &str, server: &str, v6: bool) -> Result<()> {
    let server_ip = world.pod(server).ip(v6);
    let captures =
        (world.capture_link("curl")?, world.capture_pod(client, "curl")?, world.capture_pod(server, "curl")?);
    let (request, answer) = exchange(world, client, server_ip)?;
    let (link, in_client, in_server) = (captures.0.stop()?, captures.1.stop()?, captures.2.stop()?);
    for (place, captured) in [(client, &in_client), (server, &in_server)] {
        for marker in [&request, &answer] {
            ensure!(captured.contains(marker), "{marker} is not in the plaintext of pod {place}");
        }
        ensure!(
            captured.contains(HTTP_BODY.trim()),
            "the fixed answer is not in the plaintext of pod {place}"
        );
    }
    for secret in [request.as_str(), &answer, HTTP_BODY.trim(), "HTTP/1.1", "X-Request-Marker"] {
        ensure!(!link.contains(secret), "{secret:?} is in the clear on the node link");
    }
    let app = (server_ip, ports::HTTP);
    ensure!(
        link.dialled() == [app],
        "connections on the node link went to {:?}, not to {app:?}",
        link.dialled()
    );
    let openings = link.openings(app);
    ensure!(
        !openings.is_empty() && openings.iter().all(|first| is_client_hello(first)),
        "not TLS: {openings:?}"
    );
    Ok(())
}

fn same_node(world: &mut World) -> Result<()> {
    let node = &world.topology.nodes[0].netns;
    let capture = Capture::start(node, "pod-e", &world.folder, "same-node-veth")?;
    let (request, answer) = exchange(world, "a", world.pod("e").v4.into())?;
    let captured = capture.stop()?;
    for secret in [request.as_str(), &answer, "HTTP/1.1"] {
        ensure!(!captured.contains(secret), "{secret:?} is in the clear between two pods of one node");
    }
    ensure!(!captured.packets.is_empty(), "nothing went through the pod's interface");
    Ok(())
}

/// One POST whose header and body carry markers, the body being sent back, and one GET; returns both markers.
fn exchange(world: &World, client: &str, server: IpAddr) -> Result<(String, String)> {
    let (request, answer) = (marker("request"), marker("answer"));
    let host = match server {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    };
    let url = format!("http://{host}:{}/", ports::HTTP);
    let header = format!("X-Request-Marker: {request}");
    let echoed = world.curl(client, &["-H", &header, "-d", &answer, &url])?.ok()?;
    ensure!(echoed == answer, "the server sent back {echoed:?}, not {answer:?}");
    let page = world.curl(client, &[&url])?.ok()?;
    ensure!(page == HTTP_BODY, "the server answered {page:?}");
    Ok((request, answer))
}
