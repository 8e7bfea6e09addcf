//! Where connections go, and how their ends are told.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use super::{Test, marker, shared};
use crate::{
    load::{HALF_CLOSE_BYTES, ports},
    manifests::{EMPTY_V4, SINGLE_V4, WEB_V4, WEB_V6},
    process,
    tools::HTTP_BODY,
    world::World,
};

pub(super) const TESTS: &[Test] = &[
    shared(
        "routing::service_ports_lead_to_target_ports",
        "a number, a name, another name; IPv4 and IPv6",
        service_ports,
    ),
    shared(
        "routing::a_service_spreads_over_its_endpoints",
        "two endpoints on two nodes, both used",
        endpoints,
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

fn endpoints(world: &mut World) -> Result<()> {
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
