//! Two pods of one node: joined in the agent, and with a tunnel between them where that is asked for. Both ways the same is
//! promised as between nodes; what tells them apart is what is on the wire, and what it is called.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};

use super::{
    SECOND, Test, own,
    revocation::{follow_lists, revoke},
    unstarted,
};
use crate::{
    agent::IN_FORCE,
    capture::Capture,
    load::{self, ports},
    process::{Process, eventually},
    topology::MESHED,
    world::World,
};

pub(super) const TESTS: &[Test] = &[
    own(
        "one_node::both_ends_count_and_log_what_is_joined",
        "as local_identity, under one connection id, with both identities",
        JOIN,
        |world| told(world, "local_identity"),
    ),
    own(
        "one_node::both_ends_count_and_log_what_is_encrypted",
        "as mutual_tls, with --local-traffic encrypt",
        ENCRYPT,
        |world| told(world, "mutual_tls"),
    ),
    own(
        "one_node::nothing_that_is_joined_leaves_its_pod",
        "no packet between the two pods",
        JOIN,
        joined_wire,
    ),
    own("one_node::policies_hold_where_it_is_joined", POLICIES, JOIN, policies),
    own("one_node::policies_hold_where_it_is_encrypted", POLICIES, ENCRYPT, policies),
    unstarted(
        "one_node::a_revoked_pod_is_not_joined",
        "its live connections end, new ones are refused at both ends, others go on",
        JOIN,
        revoked,
    ),
    unstarted("one_node::programs_notice_nothing_joined", PROGRAMS, JOIN, |world| {
        super::transparency::on_one_node(world, true)
    }),
    unstarted("one_node::programs_notice_nothing_encrypted", PROGRAMS, ENCRYPT, |world| {
        super::transparency::on_one_node(world, false)
    }),
];

const JOIN: &[&str] = &["--local-traffic", "join"];
const ENCRYPT: &[&str] = &["--local-traffic", "encrypt"];
const POLICIES: &str = "refused at both ends with the policy's name, cut while it runs, STRICT is met";
const PROGRAMS: &str = "connects, endings, data, events and options as between two nodes outside the mesh";

const FILE: &str = "one-node.yaml";

/// An AuthorizationPolicy for pod e.
fn for_e(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: {name}\n  namespace: {MESHED}\n\
         spec: {{selector: {{matchLabels: {{app: e}}}}, {spec}}}\n"
    )
}

fn told(world: &mut World, security: &str) -> Result<()> {
    let (a, e) = (world.pod("a").identity(), world.pod("e").identity());
    let read = |world: &World, reporter: &str| -> Result<[f64; 4]> {
        let labels = [
            format!("reporter=\"{reporter}\""),
            format!("source_principal=\"{a}\""),
            format!("destination_principal=\"{e}\""),
            format!("connection_security_policy=\"{security}\""),
        ];
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let metrics = world.agents[0].metrics()?;
        Ok([
            "istio_tcp_connections_opened_total",
            "istio_tcp_connections_closed_total",
            "istio_tcp_received_bytes_total",
            "istio_tcp_sent_bytes_total",
        ]
        .map(|name| metrics.sum(name, &labels)))
    };
    let before = ["source", "destination"].map(|reporter| read(world, reporter));
    let mark = world.agents[0].mark();
    let to = format!("{}:{}", world.pod("e").v4, ports::ECHO);
    world.tool("a", &["ping-pong", "--to", &to, "--for-ms", "300", "--rest-ms", "20"], 10 * SECOND)?;
    let grown = eventually(3 * SECOND, || {
        let mut grown = Vec::new();
        for (reporter, before) in ["source", "destination"].into_iter().zip(&before) {
            let before = before.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))?;
            let after = read(world, reporter)?;
            let more: Vec<f64> = after.iter().zip(before).map(|(after, before)| after - before).collect();
            ensure!(more[0] == 1.0 && more[1] == 1.0, "{reporter}: {more:?}");
            ensure!(more[2] >= 128.0 && more[2] == more[3], "{reporter}: {more:?}");
            grown.push(more);
        }
        Ok(grown)
    })?;
    ensure!(grown[0] == grown[1], "the two ends count differently: {grown:?}");
    let log = world.agents[0].log_since(mark);
    let lines: Vec<&str> =
        log.lines().filter(|line| line.contains("connection complete") && line.contains(&to)).collect();
    ensure!(lines.len() == 2, "one line for each end: {lines:#?}");
    let id = |line: &str| {
        line.split("connection=").nth(1).map(|rest| rest.split(' ').next().unwrap_or_default().to_owned())
    };
    ensure!(id(lines[0]).is_some() && id(lines[0]) == id(lines[1]), "of one connection: {lines:#?}");
    for line in &lines {
        let security = format!("security=\"{security}\"");
        ensure!(line.contains(&a) && line.contains(&e) && line.contains(&security), "{line}");
    }
    for direction in ["direction=\"outbound\"", "direction=\"inbound\""] {
        ensure!(lines.iter().any(|line| line.contains(direction)), "{direction}: {lines:#?}");
    }
    Ok(())
}

fn joined_wire(world: &mut World) -> Result<()> {
    let node = &world.topology.nodes[0].netns;
    let capture = Capture::start(node, "pod-e", &world.folder, "joined-veth")?;
    world.must_reach("a", "e")?;
    // Something has to come by for it to be there.
    world.must_reach("b", "e")?;
    let captured = capture.stop()?;
    ensure!(!captured.packets.is_empty(), "nothing was captured at all");
    let a: [IpAddr; 2] = [false, true].map(|v6| world.pod("a").ip(v6));
    let between = captured.packets.iter().filter(|packet| a.contains(&packet.source.0)).count();
    ensure!(between == 0, "{between} packets of pod a came to pod e's interface");
    Ok(())
}

/// A connection from a to e's echo server that is in use for a while.
fn in_use(world: &World, name: &str) -> Result<Process> {
    let mut command = load::tool(&world.pod("a").netns)?;
    let to = format!("{}:{}", world.pod("e").v4, ports::ECHO);
    command.args(["ping-pong", "--to", &to, "--for-ms", "6000", "--rest-ms", "20"]);
    let mut process = Process::start(&mut command, &world.folder.join(format!("{name}.log")))?;
    std::thread::sleep(Duration::from_millis(500));
    ensure!(process.runs(), "{}", process.output());
    Ok(process)
}

fn policies(world: &mut World) -> Result<()> {
    world.manifests.peer_authentication(MESHED, "STRICT")?;
    eventually(IN_FORCE, || world.must_not_reach("c", "e").map(drop))?;
    world.must_reach("a", "e").context("STRICT is met on the node")?;
    let mut open = in_use(world, "open")?;
    let deny = "action: DENY, rules: [{from: [{source: {serviceAccounts: [a]}}]}]";
    world.manifests.write(FILE, &for_e("not-a", deny))?;
    let ended = open.wait(3 * SECOND)?;
    ensure!(!ended.success(), "a live connection goes on: {}", open.output());
    eventually(IN_FORCE, || world.must_not_reach("a", "e").map(drop))?;
    world.must_reach("b", "e").context("others are not meant")?;
    for (direction, by_peer) in [("outbound", true), ("inbound", false)] {
        let whole = |denial: &serde_json::Value| {
            denial["direction"] == direction
                && denial["byPeer"] == by_peer
                && denial["reason"] == "policy_denied"
                && denial["policy"] == "shop/not-a"
                && denial["rule"] == "rules[0]"
                && denial["source"]["workload"] == "a"
                && denial["source"]["identity"] == world.pod("a").identity().as_str()
                && denial["destination"]["workload"] == "e"
        };
        eventually(SECOND, || {
            let all = world.agents[0].ask(&["denials"])?;
            ensure!(all.as_array().is_some_and(|all| all.iter().any(whole)), "{direction}: {all:#}");
            Ok(())
        })?;
    }
    world.manifests.remove(FILE)?;
    eventually(IN_FORCE, || world.must_reach("a", "e"))
}

fn revoked(world: &mut World) -> Result<()> {
    follow_lists(world)?;
    world.start_agents()?;
    world.must_reach("a", "e")?;
    let mut open = in_use(world, "revoked")?;
    let identity = world.pod("a").identity();
    let certs = world.agents[0].certs()?;
    let all = certs["certificates"].as_array().context("certificates")?;
    let serial = all.iter().find(|one| one["identity"] == identity.as_str());
    let serial = serial.and_then(|one| one["serial"].as_str()).context("the serial of a's certificate")?;
    revoke(world, &world.ca, &[serial])?;
    let ended = open.wait(5 * SECOND)?;
    ensure!(!ended.success(), "the connection of a revoked pod went on: {}", open.output());
    let mark = world.agents[0].mark();
    world.must_not_reach("a", "e")?;
    for direction in ["inbound", "outbound"] {
        let direction = format!("direction=\"{direction}\"");
        world.agents[0].wait_log(mark, &["access", "certificate_revoked", &direction])?;
    }
    world.must_reach("b", "e")?;
    revoke(world, &world.ca, &[])?;
    eventually(4 * SECOND, || world.must_reach("a", "e"))
}
