//! Where connections go, and how their ends are told.

mod endpoints;

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{Test, marker, shared};
use crate::{
    agent::IN_FORCE,
    load::{HALF_CLOSE_BYTES, ports},
    manifests::{EMPTY_V4, SINGLE_V4, WEB_V4, WEB_V6, pod_uid},
    process,
    tools::HTTP_BODY,
    topology::MESHED,
    world::World,
};

pub(super) const TESTS: &[Test] = &[
    shared(
        "routing::service_ports_lead_to_target_ports",
        "a number, a name, another name; IPv4 and IPv6",
        service_ports,
    ),
    shared("routing::a_service_spreads_over_its_endpoints", "two endpoints on two nodes, both used", spread),
    shared(
        "routing::who_leaves_serves_where_none_is_ready",
        "an endpoint that terminates and serves; not one that does not",
        leaving,
    ),
    shared(
        "routing::a_client_keeps_to_its_endpoint",
        "sessionAffinity: ClientIP, while others join, for timeoutSeconds",
        affinity,
    ),
    shared(
        "routing::near_endpoints_go_first",
        "hints of endpoint slices by zone and by node, and a zone without endpoints",
        endpoints::near,
    ),
    shared(
        "routing::one_that_refuses_is_passed_over",
        "another endpoint takes the connection; where all refuse, so does the service",
        endpoints::refusing,
    ),
    shared(
        "routing::one_that_is_silent_is_passed_over",
        "another endpoint takes the connection after a while, and later ones go there at once",
        endpoints::silent,
    ),
    shared(
        "routing::a_policys_no_is_final",
        "one endpoint of two denies: its connections are refused, not led to the other",
        endpoints::denying,
    ),
    shared("routing::a_service_without_a_way_refuses", "no endpoint, and a port it does not have", no_way),
    shared(
        "routing::what_is_not_meshed_is_not_touched",
        "to an unmeshed pod: plaintext, end to end",
        passthrough,
    ),
    shared(
        "routing::a_server_may_speak_first",
        "MySQL and SMTP do; from meshed and unmeshed clients",
        server_first,
    ),
    shared(
        "routing::a_closed_port_refuses",
        "nothing listens: an error at once, not a connection",
        closed_port,
    ),
    shared("routing::a_reset_stays_a_reset", "an application's RST reaches the other application", reset),
    shared("routing::half_close_is_kept", "nc -N: request, FIN, then a long answer", half_close),
];

fn service_ports(world: &mut World) -> Result<()> {
    for url in [
        format!("http://{SINGLE_V4}/"),
        format!("http://{SINGLE_V4}:81/"),
        format!("http://{WEB_V4}/"),
        format!("http://[{WEB_V6}]/"),
        format!("http://[{WEB_V6}]:81/"),
    ] {
        let page = world.curl("a", &[&url])?.ok()?;
        ensure!(page == HTTP_BODY, "{url} answered {page:?}");
    }
    Ok(())
}

fn spread(world: &mut World) -> Result<()> {
    let vip: Ipv4Addr = WEB_V4.parse()?;
    let mut seen = BTreeSet::new();
    for _ in 0..40 {
        let attempt = world.connect("a", (vip, ports::WHOAMI), &[])?;
        let server = attempt.received.split_whitespace().nth(3).with_context(|| format!("{attempt:?}"))?;
        seen.insert(server.parse::<SocketAddr>()?.ip());
    }
    let both = BTreeSet::from([world.pod("b").v4.into(), world.pod("e").v4.into()]);
    ensure!(seen == both, "40 connections reached {seen:?}; the endpoints are {both:?}");
    Ok(())
}

/// The cluster IP of the services that these tests make.
const OWN_V4: Ipv4Addr = Ipv4Addr::new(198, 19, 100, 20);

/// Writes a service over pods b and e as far as their conditions are given, of that many seconds of affinity.
fn own_service(world: &World, affinity: Option<u32>, endpoints: &[(&str, &str)]) -> Result<()> {
    let affinity = affinity.map_or(String::new(), |seconds| {
        format!(
            "  sessionAffinity: ClientIP\n  sessionAffinityConfig: {{clientIP: {{timeoutSeconds: {seconds}}}}}\n"
        )
    });
    let endpoints: String = endpoints
        .iter()
        .map(|(name, conditions)| {
            let pod = world.pod(name);
            let uid = pod_uid(pod);
            format!(
                "- addresses: [{}]\n  conditions: {{{conditions}}}\n  targetRef: {{kind: Pod, name: {name}, namespace: {MESHED}, \
                 uid: {uid}}}\n",
                pod.v4
            )
        })
        .collect();
    let text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: own, namespace: {MESHED}}}\nspec:\n  clusterIP: {OWN_V4}\n{affinity}  \
         ports: [{{name: who, port: 80}}]\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  \
         name: own-1\n  namespace: {MESHED}\n  labels: {{kubernetes.io/service-name: own}}\naddressType: IPv4\n\
         endpoints:\n{endpoints}ports: [{{name: who, port: {whoami}}}]\n",
        whoami = ports::WHOAMI
    );
    world.manifests.write("own.yaml", &text)
}

/// The pod that takes a connection of pod a to the service.
fn taken_by(world: &World) -> Result<String> {
    let attempt = world.connect("a", (OWN_V4, 80), &[])?;
    let server = attempt.received.split_whitespace().nth(3).with_context(|| format!("{attempt:?}"))?;
    let server = server.parse::<SocketAddr>()?.ip();
    let pod = ["b", "e"].into_iter().find(|pod| world.pod(pod).v4 == server);
    pod.map(str::to_owned).with_context(|| server.to_string())
}

fn leaving(world: &mut World) -> Result<()> {
    let (ready, leaving, gone) = (
        "ready: true, serving: true, terminating: false",
        "ready: false, serving: true, terminating: true",
        "ready: false, serving: false, terminating: true",
    );
    for (b, e, expected) in [(leaving, ready, "e"), (leaving, gone, "b"), (ready, leaving, "b")] {
        own_service(world, None, &[("b", b), ("e", e)])?;
        process::eventually(IN_FORCE, || {
            for _ in 0..8 {
                let server = taken_by(world)?;
                ensure!(server == expected, "b {{{b}}}, e {{{e}}}: {server} was reached");
            }
            Ok(())
        })?;
    }
    own_service(world, None, &[("b", gone), ("e", gone)])?;
    process::eventually(IN_FORCE, || {
        let attempt = world.connect("a", (OWN_V4, 80), &[])?;
        ensure!(refused(attempt.error.as_deref()), "{attempt:?}");
        Ok(())
    })?;
    world.manifests.remove("own.yaml")
}

fn affinity(world: &mut World) -> Result<()> {
    const TIMEOUT: u32 = 4;
    let both = [("b", "ready: true"), ("e", "ready: true")];
    own_service(world, Some(TIMEOUT), &both)?;
    let first = process::eventually(IN_FORCE, || taken_by(world))?;
    for _ in 0..10 {
        ensure!(taken_by(world)? == first, "moved for no reason");
    }
    // With the other one alone it goes there, and stays when the first is back.
    let other = if first == "b" { "e" } else { "b" };
    own_service(world, Some(TIMEOUT), &[(other, "ready: true")])?;
    process::eventually(IN_FORCE, || {
        ensure!(taken_by(world)? == other, "still {first}");
        Ok(())
    })?;
    own_service(world, Some(TIMEOUT), &both)?;
    let back = Instant::now();
    while back.elapsed() < 3 * super::SECOND {
        ensure!(taken_by(world)? == other, "moved from {other} to {first} after {:?}", back.elapsed());
        thread::sleep(Duration::from_millis(100));
    }
    thread::sleep(Duration::from_secs(u64::from(TIMEOUT)) + super::SECOND / 2);
    let after = taken_by(world)?;
    ensure!(after == first, "{after} is kept to for longer than timeoutSeconds");
    world.manifests.remove("own.yaml")
}

fn no_way(world: &mut World) -> Result<()> {
    let single: Ipv4Addr = SINGLE_V4.parse()?;
    let attempt = world.connect("a", (single, 4_321), &[])?;
    ensure!(refused(attempt.error.as_deref()) && attempt.took_ms < 1_000, "no such port: {attempt:?}");
    // With no endpoint there is nothing meshed to capture for; the rest is kube-proxy's, which is not here.
    let empty: Ipv4Addr = EMPTY_V4.parse()?;
    let attempt = world.connect("a", (empty, 80), &[])?;
    ensure!(attempt.error.is_some() && attempt.received.is_empty(), "no endpoint: {attempt:?}");
    Ok(())
}

fn passthrough(world: &mut World) -> Result<()> {
    let marker = marker("plain");
    let url = format!("http://{}:{}/", world.pod("d").v4, ports::HTTP);
    let link = world.on_the_link("passthrough", || {
        let echoed = world.curl("a", &["-d", &marker, &url])?.ok()?;
        ensure!(echoed == marker, "{echoed:?}");
        Ok(())
    })?;
    ensure!(link.contains(&marker), "an unmeshed destination should be reached in plaintext");
    world.must_reach("a", "d")?;
    world.must_reach("c", "d")
}

fn server_first(world: &mut World) -> Result<()> {
    for client in ["a", "c"] {
        // The client says nothing and keeps its side open until the server has spoken and closed.
        let attempt = world.connect(client, (world.pod("b").v4, ports::WHOAMI), &["--no-fin"])?;
        ensure!(attempt.received.starts_with("peer "), "{client}: {attempt:?}");
        ensure!(
            attempt.took_ms < 1_000,
            "{client} waited {} ms for the server's first word",
            attempt.took_ms
        );
    }
    Ok(())
}

fn closed_port(world: &mut World) -> Result<()> {
    for client in ["a", "c"] {
        let attempt = world.connect(client, (world.pod("b").v4, 7_777), &["--send", "hello"])?;
        ensure!(refused(attempt.error.as_deref()) && attempt.took_ms < 1_000, "{client}: {attempt:?}");
    }
    Ok(())
}

fn reset(world: &mut World) -> Result<()> {
    let attempt = world.connect("a", (world.pod("b").v4, ports::RESET), &["--send", "hello", "--no-fin"])?;
    ensure!(attempt.connected && attempt.error.as_deref() == Some("ConnectionReset"), "{attempt:?}");
    Ok(())
}

fn half_close(world: &mut World) -> Result<()> {
    for ip in [world.pod("b").v4.to_string(), world.pod("b").v6.to_string()] {
        let mut nc = world.pod("a").netns.command("nc.openbsd");
        nc.args(["-N", "-w", "10", &ip, &ports::HALF_CLOSE.to_string()]);
        let answer = process::run_with_input(&mut nc, "forty-two", Duration::from_secs(20))?.ok()?;
        let (first, rest) =
            answer.split_once('\n').with_context(|| format!("the answer is {answer:.40?}"))?;
        ensure!(first == "9", "the server read {first} bytes, 9 were sent");
        ensure!(rest.len() == HALF_CLOSE_BYTES, "{} of {HALF_CLOSE_BYTES} bytes came back", rest.len());
    }
    Ok(())
}

fn refused(error: Option<&str>) -> bool {
    matches!(error, Some("ConnectionRefused" | "ConnectionReset"))
}
