//! Addresses of a pod that Kubernetes does not know: a second interface, listeners that are bound to one, containers nested
//! behind NAT. They work as without a mesh, and open no STRICT port.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Result, ensure};

use super::{SECOND, Test, marker, own};
use crate::{
    agent::IN_FORCE,
    load::{self, ports},
    netns::Netns,
    process::{self, Process, eventually},
    tools::Attempt,
    topology::MESHED,
    world::World,
};

pub(super) const TESTS: &[Test] = &[
    own(
        "other_addresses::a_second_interface",
        "in and out, as PERMISSIVE and as STRICT; bound to its address",
        &[],
        second_interface,
    ),
    own(
        "other_addresses::listeners_bound_to_an_interface",
        "SO_BINDTODEVICE, on the first and on the second one",
        &[],
        bound_listeners,
    ),
    own(
        "other_addresses::containers_behind_nat_call",
        "from a nested network out, and to the pod around it",
        &[],
        nested_clients,
    ),
    own(
        "other_addresses::containers_behind_nat_are_called",
        "a port that is published by DNAT, which takes CAP_NET_ADMIN, and one by a proxy",
        &[],
        nested_servers,
    ),
];

/// The second network of pods b and d.
const SECOND_B: Ipv4Addr = Ipv4Addr::new(198, 18, 77, 1);
const SECOND_D: Ipv4Addr = Ipv4Addr::new(198, 18, 77, 2);
/// The network inside pod b: its bridge, and a container.
const BRIDGE: Ipv4Addr = Ipv4Addr::new(198, 18, 78, 1);
const NESTED: Ipv4Addr = Ipv4Addr::new(198, 18, 78, 2);

const ON_ETH0: u16 = 7_001;
const ON_NET1: u16 = 7_002;
const BY_DNAT: u16 = 7_100;
const BY_PROXY: u16 = 7_101;

/// Gives pods b and d an interface on a network that nobody else is on, as Multus does.
fn second_network(world: &World) -> Result<()> {
    let (b, d) = (&world.pod("b").netns, &world.pod("d").netns);
    b.ip(&["link", "add", "net1", "type", "veth", "peer", "name", "net1", "netns", d.name()])?;
    for (netns, ip) in [(b, SECOND_B), (d, SECOND_D)] {
        netns.ip(&["address", "add", &format!("{ip}/24"), "dev", "net1"])?;
        netns.ip(&["link", "set", "net1", "up"])?;
    }
    Ok(())
}

fn strict(world: &World) -> Result<()> {
    world.manifests.peer_authentication(MESHED, "STRICT")?;
    eventually(IN_FORCE, || world.must_not_reach("c", "b").map(drop))
}

fn sees(attempt: &Attempt, client: Ipv4Addr) -> Result<()> {
    ensure!(attempt.received.starts_with(&format!("peer {client}:")), "{client} is not seen: {attempt:?}");
    Ok(())
}

fn turned_away(attempt: &Attempt) -> Result<()> {
    ensure!(attempt.received.is_empty() && attempt.error.is_some(), "not turned away: {attempt:?}");
    Ok(())
}

fn second_interface(world: &mut World) -> Result<()> {
    second_network(world)?;
    world.must_reach("a", "b")?;
    let hello = ["--send", "hello"];
    for flags in [&hello[..], &["--no-fin"]] {
        let attempt = world.connect("d", (SECOND_B, ports::WHOAMI), flags)?;
        sees(&attempt, SECOND_D)?;
        ensure!(attempt.took_ms < 1_000, "{attempt:?}");
    }
    sees(&world.connect("b", (SECOND_D, ports::WHOAMI), &hello)?, SECOND_B)?;
    sees(&world.connect("b", (SECOND_B, ports::WHOAMI), &hello)?, SECOND_B)?;

    // A meshed destination, from the second address: what cannot be led to the agent is refused.
    let text = marker("second");
    let link = world.on_the_link("second", || {
        let bound = ["--bind", &format!("{SECOND_B}:0"), "--send", &text];
        turned_away(&world.connect("b", (world.pod("e").v4, ports::WHOAMI), &bound)?)
    })?;
    ensure!(!link.contains(&text), "what went out from the second address was in plaintext");

    strict(world)?;
    let mark = world.agents[1].mark();
    turned_away(&world.connect("d", (SECOND_B, ports::WHOAMI), &hello)?)?;
    world.agents[1].wait_log(mark, &["mtls_required", &SECOND_B.to_string()])?;
    sees(&world.connect("b", (SECOND_D, ports::WHOAMI), &hello)?, SECOND_B)?;
    sees(&world.connect("b", (SECOND_B, ports::WHOAMI), &hello)?, SECOND_B)?;
    world.must_reach("a", "b")
}

fn bound_listeners(world: &mut World) -> Result<()> {
    world.must_reach("a", "b")?;
    // After the agent, as interfaces of other networks come.
    second_network(world)?;
    let b = world.pod("b").clone();
    let mut servers = Vec::new();
    for (port, device) in [(ON_ETH0, "eth0"), (ON_NET1, "net1")] {
        let mut socat = b.netns.command("socat");
        let listen = format!("TCP6-LISTEN:{port},ipv6only=0,so-bindtodevice={device},fork,reuseaddr");
        let log = world.folder.join(format!("socat-{device}.log"));
        servers.push(Process::start(socat.args([&listen, &format!("SYSTEM:echo on {device}")]), &log)?);
    }
    eventually(5 * SECOND, || {
        let listening = process::must(b.netns.command("ss").arg("-Hltn"))?;
        ensure!([ON_ETH0, ON_NET1].iter().all(|port| listening.contains(&port.to_string())), "{listening}");
        Ok(())
    })?;
    for (client, to, expected) in [
        ("a", (b.v4.into(), ON_ETH0), "on eth0\n"),
        ("c", (b.v4.into(), ON_ETH0), "on eth0\n"),
        ("a", (b.v6.into(), ON_ETH0), "on eth0\n"),
        ("d", (std::net::IpAddr::from(SECOND_B), ON_NET1), "on net1\n"),
    ] {
        let attempt = world.connect(client, to, &["--no-fin"])?;
        ensure!(attempt.received == expected, "{client} to {to:?}: {attempt:?}");
    }
    for (client, to) in [("a", (b.v4, ON_NET1)), ("c", (b.v4, ON_NET1)), ("d", (SECOND_B, ON_ETH0))] {
        turned_away(&world.connect(client, to, &["--no-fin"])?)?;
    }
    Ok(())
}

/// A container in pod b, with a network of its own behind a bridge and NAT, as Docker makes them.
fn nested(world: &World) -> Result<Netns> {
    let b = &world.pod("b").netns;
    let nested = Netns::create(&format!("{}-nested", b.name()))?;
    for line in [
        "link add docker0 type bridge",
        &format!("address add {BRIDGE}/24 dev docker0"),
        "link set docker0 up",
        &format!("link add nested type veth peer name eth0 netns {}", nested.name()),
        "link set nested master docker0",
        "link set nested up",
    ] {
        b.ip(&line.split(' ').collect::<Vec<_>>())?;
    }
    nested.ip(&["address", "add", &format!("{NESTED}/24"), "dev", "eth0"])?;
    nested.ip(&["link", "set", "eth0", "up"])?;
    nested.ip(&["route", "add", "default", "via", &BRIDGE.to_string()])?;
    b.sysctl(&["net.ipv4.ip_forward=1"])?;
    nft(
        b,
        &format!(
            "add table ip docker\n\
             add chain ip docker post {{ type nat hook postrouting priority 100 ; }}\n\
             add rule ip docker post ip saddr {NESTED} oifname eth0 masquerade\n\
             add chain ip docker pre {{ type nat hook prerouting priority -100 ; }}\n\
             add rule ip docker pre iifname eth0 tcp dport {BY_DNAT} dnat to {NESTED}:{BY_DNAT}\n"
        ),
    )?;
    Ok(nested)
}

fn nft(netns: &Netns, rules: &str) -> Result<()> {
    let mut command = netns.command("nft");
    process::run_with_input(command.args(["-f", "-"]), rules, Duration::from_secs(5))?.ok().map(drop)
}

/// One connection from the nested container.
fn from_nested(nested: &Netns, to: (Ipv4Addr, u16)) -> Result<Attempt> {
    let mut command = load::tool(nested)?;
    command.args(["connect", "--to", &format!("{}:{}", to.0, to.1), "--send", "hello"]);
    Ok(serde_json::from_str(&process::must(&mut command)?)?)
}

fn nested_clients(world: &mut World) -> Result<()> {
    let nested = nested(world)?;
    let (b, d, e) = (world.pod("b").v4, world.pod("d").v4, world.pod("e").v4);
    sees(&from_nested(&nested, (d, ports::WHOAMI))?, b)?;
    sees(&from_nested(&nested, (e, ports::WHOAMI))?, b)?;
    sees(&from_nested(&nested, (BRIDGE, ports::WHOAMI))?, NESTED)?;
    sees(&from_nested(&nested, (b, ports::WHOAMI))?, NESTED)?;
    let attempt = world.connect("b", (NESTED, 9), &[])?;
    ensure!(attempt.error.as_deref() == Some("ConnectionRefused"), "into the nested network: {attempt:?}");

    // It has no identity: where one is asked for, it gets nowhere, and it is no way around the policy of its pod.
    strict(world)?;
    sees(&from_nested(&nested, (d, ports::WHOAMI))?, b)?;
    turned_away(&from_nested(&nested, (e, ports::WHOAMI))?)?;
    turned_away(&from_nested(&nested, (BRIDGE, ports::WHOAMI))?)?;
    turned_away(&from_nested(&nested, (b, ports::WHOAMI))?)?;
    world.must_reach("a", "b")?;
    nested.delete()
}

fn nested_servers(world: &mut World) -> Result<()> {
    let nested = nested(world)?;
    let b = world.pod("b").clone();
    let mut whoami = load::tool(&nested)?;
    whoami.args(["whoami-server", "--listen", &format!("{NESTED}:{BY_DNAT}")]);
    let mut whoami = Process::start(&mut whoami, &world.folder.join("nested.log"))?;
    whoami.wait_for("ready", 5 * SECOND)?;
    let mut proxy = b.netns.command("socat");
    proxy.args([&format!("TCP-LISTEN:{BY_PROXY},fork,reuseaddr"), &format!("TCP:{NESTED}:{BY_DNAT}")]);
    let _proxy = Process::start(&mut proxy, &world.folder.join("docker-proxy.log"))?;

    let hello = ["--send", "hello"];
    let by_proxy = |client: &str| world.connect(client, (b.v4, BY_PROXY), &hello);
    eventually(5 * SECOND, || sees(&by_proxy("c")?, BRIDGE))?;
    sees(&by_proxy("a")?, BRIDGE)?;
    sees(&world.connect("c", (b.v4, BY_DNAT), &hello)?, world.pod("c").v4)?;
    // A tunnel ends where the packets go, and there is no agent: nothing gets there, least of all in plaintext.
    let text = marker("nested");
    let link = world
        .on_the_link("nested", || turned_away(&world.connect("a", (b.v4, BY_DNAT), &["--send", &text])?))?;
    ensure!(!link.contains(&text), "what went to a nested container was in plaintext");

    strict(world)?;
    sees(&by_proxy("a")?, BRIDGE)?;
    turned_away(&by_proxy("c")?)?;
    // What a pod forwards does not come to its own sockets, where the agent takes connections. Forwarding is the pod's own doing,
    // by rules that take CAP_NET_ADMIN in its network namespace.
    sees(&world.connect("c", (b.v4, BY_DNAT), &hello)?, world.pod("c").v4)?;
    let mut without = b.netns.command("setpriv");
    without.args(["--bounding-set", "-net_admin", "--inh-caps", "-net_admin", "nft", "list", "ruleset"]);
    let without = process::run(&mut without, 5 * SECOND)?;
    ensure!(!without.status.success(), "rules are to be had without CAP_NET_ADMIN");
    drop(whoami);
    nested.delete()
}
