//! Addresses as both applications see them, from every kind of socket.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};

use super::{Test, shared};
use crate::{
    load::{self, ports},
    manifests::SINGLE_V4,
    process::Process,
    tools::Attempt,
    world::World,
};

pub(super) const TESTS: &[Test] = &[
    shared(
        "addresses::kept_over_ipv4",
        "server sees the client pod, client sees what it dialled and itself",
        |world| kept(world, IpAddr::V4(world.pod("b").v4), &[]),
    ),
    shared("addresses::kept_over_ipv6", "the same over IPv6", |world| {
        kept(world, IpAddr::V6(world.pod("b").v6), &[])
    }),
    shared(
        "addresses::kept_by_an_ipv4_mapped_socket",
        "an IPv6 socket that dials ::ffff:a.b.c.d, as Java and Node do",
        |world| kept(world, IpAddr::V6(world.pod("b").v4.to_ipv6_mapped()), &[]),
    ),
    shared(
        "addresses::kept_by_a_source_bound_socket",
        "a socket bound to the pod's address, and to a port of it",
        |world| {
            let source = world.pod("a").v4;
            kept(world, IpAddr::V4(world.pod("b").v4), &["--bind", &format!("{source}:0")])?;
            kept(world, IpAddr::V4(world.pod("b").v4), &["--bind", &format!("{source}:45678")])
        },
    ),
    shared("addresses::kept_by_a_device_bound_socket", "SO_BINDTODEVICE eth0", |world| {
        kept(world, IpAddr::V4(world.pod("b").v4), &["--device", "eth0"])?;
        kept(world, IpAddr::V6(world.pod("b").v6), &["--device", "eth0"])
    }),
    shared(
        "addresses::a_service_address_is_what_the_client_sees",
        "getpeername shows the cluster IP",
        service,
    ),
    shared(
        "addresses::a_pod_may_use_any_port",
        "ports that other meshes reserve, listened on and connected to",
        any_port,
    ),
    shared("addresses::a_pod_reaches_itself", "by its own address and over loopback", itself),
];

fn kept(world: &mut World, server: IpAddr, flags: &[&str]) -> Result<()> {
    let dialled = SocketAddr::new(server, ports::WHOAMI);
    let attempt = world.connect("a", dialled, flags)?;
    let client = client_address(world, server);
    ensure!(attempt.peer == Some(dialled), "getpeername shows {:?}, dialled was {dialled}", attempt.peer);
    let local = attempt.local.with_context(|| format!("not connected: {attempt:?}"))?;
    ensure!(local.ip() == client, "getsockname shows {local}, the pod has {client}");
    seen_by_server(&attempt, client.to_canonical(), SocketAddr::new(server.to_canonical(), ports::WHOAMI))
}

fn service(world: &mut World) -> Result<()> {
    let vip: Ipv4Addr = SINGLE_V4.parse()?;
    let dialled = SocketAddr::from((vip, ports::WHOAMI));
    let attempt = world.connect("a", dialled, &[])?;
    ensure!(attempt.peer == Some(dialled), "getpeername shows {:?}", attempt.peer);
    seen_by_server(&attempt, world.pod("a").v4.into(), (world.pod("b").v4, ports::WHOAMI).into())
}

fn any_port(world: &mut World) -> Result<()> {
    let pod = world.pod("b").clone();
    for port in [15_001, 15_006, 15_008, 15_020, 15_021] {
        let mut server = load::tool(&pod.netns)?;
        server.args(["whoami-server", "--listen", &format!("[::]:{port}")]);
        let log = world.folder.join(format!("any-port-{port}.log"));
        let mut server = Process::start(&mut server, &log)?;
        server
            .wait_for("ready", 5 * super::SECOND)
            .with_context(|| format!("pod b cannot listen on {port}"))?;
        let attempt = world.connect("a", (pod.v4, port), &[])?;
        seen_by_server(&attempt, world.pod("a").v4.into(), (pod.v4, port).into())
            .with_context(|| format!("port {port}"))?;
    }
    Ok(())
}

fn itself(world: &mut World) -> Result<()> {
    let pod = world.pod("b").clone();
    let own: [IpAddr; 4] =
        [pod.v4.into(), pod.v6.into(), Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    for ip in own {
        let attempt = world.connect("b", (ip, ports::WHOAMI), &[])?;
        seen_by_server(&attempt, ip, (ip, ports::WHOAMI).into()).with_context(|| format!("by {ip}"))?;
    }
    Ok(())
}

fn seen_by_server(attempt: &Attempt, client: IpAddr, server: SocketAddr) -> Result<()> {
    let words: Vec<&str> = attempt.received.split_whitespace().collect();
    let [_, peer, _, local] = words[..] else {
        anyhow::bail!("the server did not say whom it sees: {attempt:?}");
    };
    let peer: SocketAddr = peer.parse()?;
    ensure!(peer.ip() == client, "the server sees {peer}, the client is {client}");
    ensure!(local == server.to_string(), "the server was reached at {local}, not at {server}");
    Ok(())
}

/// The client's own address in the form of the socket that dials `server`.
fn client_address(world: &World, server: IpAddr) -> IpAddr {
    let pod = world.pod("a");
    match server {
        IpAddr::V4(_) => pod.v4.into(),
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => pod.v4.to_ipv6_mapped().into(),
        IpAddr::V6(_) => pod.v6.into(),
    }
}
