//! A rival for the agent's port, full maps, ways around capture.

mod maps;

use std::{fmt::Write as _, net::SocketAddr, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    agent::{Agent, IN_FORCE},
    load::{self, ports},
    netns::Netns,
    process::{self, Process, eventually},
    suite::{SECOND, Test, marker, own, unstarted},
    topology::MESHED,
    world::World,
};

pub(super) const TESTS: &[Test] = &[
    own(
        "attacks::rivals::a_squatter_of_the_agents_port",
        "the agent away, another listens on its port: nobody is connected to it, and the agent comes back",
        &[],
        squatter,
    ),
    unstarted(
        "attacks::rivals::no_room_for_a_dial",
        "probes fill BYPASS: the agent's dials are refused, and none comes back to the agent for ever",
        &["--map-entries", "BYPASS=8"],
        maps::full_bypass,
    ),
    own(
        "attacks::rivals::a_server_that_takes_nothing",
        "a thousand dials to one pod wait: another pod of the node is reached all the same",
        &["--map-entries", "BYPASS=600"],
        maps::stuck_server,
    ),
    unstarted(
        "attacks::rivals::no_room_for_a_destination",
        "DESTINATIONS is full: everything is captured, and the agent says that it is not ready",
        &["--map-entries", "DESTINATIONS=10"],
        maps::full_destinations,
    ),
    unstarted(
        "attacks::rivals::no_room_for_a_pod",
        "PODS is full: the pod is told of and nobody gets into it, and the agent is not ready",
        &["--map-entries", "PODS=1"],
        maps::full_pods,
    ),
    own(
        "attacks::rivals::maps_of_another_size",
        "agents with larger maps take over: nothing goes out in plaintext meanwhile",
        &[],
        maps::other_maps,
    ),
    own(
        "attacks::rivals::node_ports_and_external_addresses",
        "of meshed services: in a tunnel, not by the node's DNAT; other ports of nodes are not touched",
        &[],
        outside_addresses,
    ),
    own(
        "attacks::rivals::a_pod_that_rewrites_addresses",
        "nft DNAT to a meshed pod: its own words in plaintext, and a STRICT receiver takes none",
        &[],
        rewritten,
    ),
];

fn squatter(world: &mut World) -> Result<()> {
    world.must_reach("a", "b")?;
    let pod = world.pod("a").clone();
    let agents = [agent_port(world, pod.v4.into())?, agent_port(world, pod.v6.into())?];
    let listen = |addr: SocketAddr, name: &str| -> Result<Process> {
        let mut server = load::tool(&pod.netns)?;
        server.args(["whoami-server", "--listen", &addr.to_string()]);
        let mut server = Process::start(&mut server, &world.folder.join(format!("squatter-{name}.log")))?;
        // With its line end: a port that is in use is so "already".
        server.wait_for("ready\n", 5 * SECOND).map(|()| server)
    };
    ensure!(listen(agents[0], "early").is_err(), "the agent's port was to be had while the agent lives");

    world.agents[0].kill();
    // One on the address itself, one on all that there are.
    let wildcard = SocketAddr::new([0_u16; 8].into(), agents[1].port());
    let mut squatters = [listen(agents[0], "v4")?, listen(wildcard, "v6")?];
    let secret = marker("squatter");
    for bound in [&[][..], &["--bind", "127.0.0.1:0"], &["--device", "eth0"]] {
        let flags = [bound, &["--send", &secret]].concat();
        nobody(world, (world.pod("b").v4, ports::HTTP).into(), &flags)?;
    }
    nobody(world, (world.pod("b").v6, ports::HTTP).into(), &["--send", &secret])?;
    for agent in agents {
        nobody(world, agent, &["--send", &secret])?;
    }

    world.agents[0].start()?;
    eventually(SECOND, || world.must_reach("a", "b"))?;
    ensure!(squatters.iter_mut().all(Process::runs), "a squatter has ended");
    // To itself a pod talks as ever, now that the port is not the agent's.
    let attempt = world.connect("a", agents[0], &[])?;
    ensure!(attempt.received.starts_with("peer "), "{attempt:?}");
    Ok(())
}

/// Demands that a connection of pod a is refused at once.
fn nobody(world: &World, to: SocketAddr, flags: &[&str]) -> Result<()> {
    let attempt = world.connect("a", to, flags)?;
    let refused = attempt.error.as_deref() == Some("ConnectionRefused") && attempt.took_ms < 1_000;
    ensure!(refused && attempt.received.is_empty(), "{to} with {flags:?}: {attempt:?}");
    Ok(())
}

/// Where the agent listens in a pod that has no servers, at this address of the pod's.
fn agent_port(world: &World, ip: std::net::IpAddr) -> Result<SocketAddr> {
    let listening = process::must(world.pod("a").netns.command("ss").arg("-Hltn"))?;
    let local = listening.lines().filter_map(|line| line.split_whitespace().nth(3)?.parse().ok());
    let mut at = local.filter(|at: &SocketAddr| at.ip() == ip);
    at.next().with_context(|| format!("nothing listens on {ip}: {listening}"))
}

/// What was counted in a pod until now: the agent reads it every second.
fn counters(agent: &Agent, pod: &str) -> Result<Value> {
    thread::sleep(SECOND * 3 / 2);
    let status = agent.status()?;
    let pods = status["pods"].as_array().context("pods")?;
    let pod = pods.iter().find(|found| found["name"] == pod).with_context(|| format!("pod {pod}"))?;
    Ok(pod["counters"].clone())
}

/// Demands that what pod a sends to the HTTP server at `host` is answered, and is not seen on the wire between the nodes.
fn in_a_tunnel(world: &World, host: &str) -> Result<()> {
    let text = marker("outside");
    let link = world.on_the_link("outside", || {
        let echoed = world.curl("a", &["-d", &text, &format!("http://{host}/")])?.ok()?;
        ensure!(echoed == text, "{host} answered {echoed:?}");
        Ok(())
    })?;
    ensure!(!link.contains(&text), "what went to {host} was in plaintext");
    Ok(())
}

const BALANCER: &str = "198.19.200.1";
const EXTERNAL: &str = "198.19.200.2";
const NODE_HTTP: u16 = 30_080;
const NODE_WHOAMI: u16 = 30_901;
const HOST_PORT: u16 = 30_902;

fn outside_addresses(world: &mut World) -> Result<()> {
    let (b, nodes) = (world.pod("b").clone(), world.topology.nodes.clone());
    // What kube-proxy would do.
    for node in &nodes {
        let mut rules = String::from(
            "add table ip proxy\n\
             add chain ip proxy pre { type nat hook prerouting priority -100 ; }\n\
             add chain ip proxy post { type nat hook postrouting priority 100 ; }\n",
        );
        let ways = [
            (node.v4.to_string(), NODE_HTTP, ports::HTTP),
            (node.v4.to_string(), NODE_WHOAMI, ports::WHOAMI),
            (BALANCER.to_owned(), 80, ports::HTTP),
            (EXTERNAL.to_owned(), 80, ports::HTTP),
            (node.v4.to_string(), HOST_PORT, ports::HTTP),
        ];
        for (ip, port, target) in ways {
            writeln!(
                rules,
                "add rule ip proxy pre ip daddr {ip} tcp dport {port} dnat to {}:{target}",
                b.v4
            )?;
        }
        writeln!(rules, "add rule ip proxy post ip daddr {} ct status dnat masquerade", b.v4)?;
        nft(&node.netns, &rules)?;
    }
    let plain = marker("before");
    let url = format!("http://{}:{NODE_HTTP}/", nodes[1].v4);
    ensure!(world.curl("c", &["-d", &plain, &url])?.ok()? == plain, "the node port leads nowhere");

    world.manifests.write("outside.yaml", &outside_service(world))?;
    let host_port = format!("    - containerPort: {}\n      hostPort: {HOST_PORT}\n", ports::HTTP);
    world.manifests.pod_with(&world.topology, &b, &[], &host_port)?;
    eventually(IN_FORCE, || in_a_tunnel(world, &format!("{}:{NODE_HTTP}", nodes[1].v4)))?;
    for host in [
        format!("{}:{NODE_HTTP}", nodes[0].v4),
        BALANCER.to_owned(),
        EXTERNAL.to_owned(),
        format!("[::ffff:{BALANCER}]"),
        format!("{}:{HOST_PORT}", nodes[1].v4),
    ] {
        in_a_tunnel(world, &host)?;
    }
    world.manifests.peer_authentication(MESHED, "STRICT")?;
    eventually(IN_FORCE, || world.must_not_reach("c", "b").map(drop))?;
    let attempt = world.connect("a", (nodes[1].v4, NODE_WHOAMI), &["--send", "hello"])?;
    ensure!(attempt.received.starts_with(&format!("peer {}:", world.pod("a").v4)), "{attempt:?}");
    ensure!(attempt.peer == Some((nodes[1].v4, NODE_WHOAMI).into()), "{attempt:?}");

    // The nodes' other ports are not touched.
    let mut server = load::tool(&nodes[0].netns)?;
    server.args(["whoami-server", "--listen", &format!("{}:{}", nodes[0].v4, NODE_HTTP + 1)]);
    let mut server = Process::start(&mut server, &world.folder.join("node-server.log"))?;
    server.wait_for("ready", 5 * SECOND)?;
    let before = counters(&world.agents[0], "a")?;
    let attempt = world.connect("a", (nodes[0].v4, NODE_HTTP + 1), &["--send", "hello"])?;
    ensure!(attempt.received.starts_with("peer "), "{attempt:?}");
    let now = counters(&world.agents[0], "a")?;
    ensure!(now["passed"].as_u64() > before["passed"].as_u64(), "was {before}, is {now}");
    ensure!(now["captured"] == before["captured"], "was {before}, is {now}");
    Ok(())
}

/// A service over pod b with all ways from outside.
fn outside_service(world: &World) -> String {
    let b = world.pod("b");
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: outside\n  namespace: {MESHED}\nspec:\n  \
         type: LoadBalancer\n  clusterIP: 198.19.100.9\n  externalIPs: [{EXTERNAL}]\n  selector: {{app: b}}\n  \
         ports:\n  - {{name: http, port: 80, targetPort: {http}, nodePort: {NODE_HTTP}}}\n  - {{name: who, port: 81, \
         targetPort: {whoami}, nodePort: {NODE_WHOAMI}}}\nstatus:\n  loadBalancer:\n    ingress:\n    - ip: \
         {BALANCER}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: outside-1\n  \
         namespace: {MESHED}\n  labels:\n    kubernetes.io/service-name: outside\naddressType: IPv4\nendpoints:\n- \
         addresses: [{ip}]\n  conditions: {{ready: true}}\n  nodeName: {node}\n  targetRef: {{kind: Pod, name: b, \
         namespace: {MESHED}}}\nports:\n- {{name: http, port: {http}}}\n- {{name: who, port: {whoami}}}\n",
        http = ports::HTTP,
        whoami = ports::WHOAMI,
        ip = b.v4,
        node = world.topology.nodes[b.node].name,
    )
}

fn rewritten(world: &mut World) -> Result<()> {
    let foreign = "198.19.66.66";
    let rules = format!(
        "add table ip around\n\
         add chain ip around out {{ type nat hook output priority -100 ; }}\n\
         add rule ip around out ip daddr {foreign} tcp dport {port} dnat to {to}:{port}\n",
        to = world.pod("b").v4,
        port = ports::HTTP,
    );
    nft(&world.pod("a").netns, &rules)?;
    let url = format!("http://{foreign}:{}/", ports::HTTP);
    // PERMISSIVE takes plaintext from whoever speaks it.
    let text = marker("around");
    let link = world.on_the_link("around", || {
        ensure!(world.curl("a", &["-d", &text, &url])?.ok()? == text, "PERMISSIVE has not taken it");
        Ok(())
    })?;
    ensure!(link.contains(&text), "plaintext that was a tunnel");
    world.manifests.peer_authentication(MESHED, "STRICT")?;
    eventually(IN_FORCE, || world.must_not_reach("c", "b").map(drop))?;
    let mark = world.agents[1].mark();
    let attempt = world.connect(
        "a",
        (foreign.parse::<std::net::Ipv4Addr>()?, ports::HTTP),
        &["--send", &format!("GET /{text} HTTP/1.1\r\n\r\n")],
    )?;
    ensure!(attempt.received.is_empty() && attempt.error.is_some(), "STRICT has taken it: {attempt:?}");
    world.agents[1].wait_log(mark, &["mtls_required"])?;
    world.must_reach("a", "b")
}

fn nft(netns: &Netns, rules: &str) -> Result<()> {
    let mut command = netns.command("nft");
    process::run_with_input(command.args(["-f", "-"]), rules, Duration::from_secs(5))?.ok().map(drop)
}
