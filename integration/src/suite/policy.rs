//! PeerAuthentication and the opt-out label, changed under running pods.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{Test, marker, shared};
use crate::{
    agent::IN_FORCE,
    capture::Capture,
    load::{self, ports},
    process::{Process, eventually},
    topology::MESHED,
    world::World,
};

pub(super) const TESTS: &[Test] = &[
    shared(
        "policy::permissive_takes_plaintext",
        "without policy, pod c outside the mesh is accepted",
        |world| {
            world.must_reach("c", "b")?;
            world.must_reach("a", "b")
        },
    ),
    shared("policy::strict_resets_plaintext", "STRICT: a real RST for pod c, mutual TLS goes on", strict),
    shared(
        "policy::strict_holds_for_silent_clients",
        "a client that waits for the server is not left waiting",
        silent,
    ),
    shared("policy::changes_are_in_force_in_a_second", "PERMISSIVE, STRICT and back on running pods", live),
    shared(
        "policy::strict_ends_live_plaintext",
        "a plaintext connection ends when STRICT comes, mTLS ones do not",
        ends_live,
    ),
    shared(
        "policy::port_level_modes_hold",
        "STRICT for the pod, PERMISSIVE for one port, and the reverse",
        port_level,
    ),
    shared(
        "policy::a_running_pod_may_opt_out_and_in",
        "label ambit.dev/dataplane: disabled, and its removal",
        opt_out,
    ),
];

fn strict(world: &mut World) -> Result<()> {
    world.manifests.peer_authentication(MESHED, "STRICT")?;
    eventually(IN_FORCE, || world.must_not_reach("c", "b"))?;
    let mark = world.agent_of("b").mark();
    let before = world.agent_of("b").metrics()?.sum_of_value("mtls_required");
    let node = world.topology.nodes[0].netns.clone();
    let capture = Capture::start(&node, "pod-c", &world.folder, "strict-c")?;
    let to = world.pod("b").v4;
    let attempt = world.connect("c", (to, ports::HTTP), &["--send", "GET / HTTP/1.1\r\n\r\n", "--no-fin"])?;
    let captured = capture.stop()?;
    ensure!(
        attempt.error.as_deref() == Some("ConnectionReset") && attempt.received.is_empty(),
        "{attempt:?}"
    );
    ensure!(captured.reset_from(ports::HTTP), "no RST came from port {}", ports::HTTP);
    world.must_reach("a", "b")?;
    world.must_reach("e", "b")?;
    let client = world.pod("c").v4.to_string();
    world.agent_of("b").wait_log(mark, &["mtls_required", &client])?;
    let after = world.agent_of("b").metrics()?.sum_of_value("mtls_required");
    ensure!(after > before, "no metric counts the refusal by mtls_required: {before} before, {after} after");
    Ok(())
}

/// How long an agent may wait for a client's first bytes, which could be those of a tunnel.
const PATIENCE_MS: u64 = 2_000;

fn silent(world: &mut World) -> Result<()> {
    world.manifests.peer_authentication(MESHED, "STRICT")?;
    eventually(IN_FORCE, || world.must_not_reach("c", "b"))?;
    let to = (world.pod("b").v4, ports::WHOAMI);
    let attempt = world.connect("c", to, &["--no-fin"])?;
    ensure!(
        attempt.error.as_deref() == Some("ConnectionReset") && attempt.took_ms < PATIENCE_MS,
        "{attempt:?}"
    );
    let attempt = world.connect("c", to, &[])?;
    ensure!(attempt.received.is_empty() && attempt.took_ms < PATIENCE_MS, "FIN without a word: {attempt:?}");
    Ok(())
}

fn live(world: &mut World) -> Result<()> {
    for _ in 0..3 {
        world.manifests.peer_authentication(MESHED, "STRICT")?;
        eventually(IN_FORCE, || world.must_not_reach("c", "b"))?;
        world.must_reach("a", "b")?;
        world.manifests.peer_authentication(MESHED, "PERMISSIVE")?;
        eventually(IN_FORCE, || world.must_reach("c", "b"))?;
        world.must_reach("a", "b")?;
    }
    world.manifests.peer_authentication(MESHED, "STRICT")?;
    eventually(IN_FORCE, || world.must_not_reach("c", "b"))?;
    world.manifests.no_peer_authentication(MESHED)?;
    eventually(IN_FORCE, || world.must_reach("c", "b"))
}

fn ends_live(world: &mut World) -> Result<()> {
    let to = format!("{}:{}", world.pod("b").v4, ports::ECHO);
    let mut clients = Vec::new();
    for pod in ["a", "c"] {
        let mut command = load::tool(&world.pod(pod).netns)?;
        command.args(["ping-pong", "--to", &to, "--for-ms", "4000", "--rest-ms", "20"]);
        clients.push(Process::start(&mut command, &world.folder.join(format!("ends-live-{pod}.log")))?);
    }
    std::thread::sleep(Duration::from_millis(500));
    ensure!(clients.iter_mut().all(Process::runs), "a client has ended before anything changed");
    let start = Instant::now();
    world.manifests.peer_authentication(MESHED, "STRICT")?;
    let plaintext = clients[1].wait(Duration::from_secs(4))?;
    ensure!(!plaintext.success(), "the plaintext connection lived on under STRICT");
    ensure!(start.elapsed() < IN_FORCE, "the plaintext connection lived on for {:?}", start.elapsed());
    let meshed = clients[0].wait(Duration::from_secs(8))?;
    ensure!(meshed.success(), "the mutual TLS connection ended too: {}", clients[0].output());
    Ok(())
}

fn port_level(world: &mut World) -> Result<()> {
    let policy = |mode: &str, port: u16, port_mode: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  name: one-port\n  \
             namespace: {MESHED}\nspec:\n  selector:\n    matchLabels:\n      app: b\n  mtls:\n    mode: {mode}\n  \
             portLevelMtls:\n    {port}:\n      mode: {port_mode}\n"
        )
    };
    let reached = |world: &World, port: u16| -> Result<bool> {
        let flags = ["--send", "GET / HTTP/1.1\r\n\r\n"];
        Ok(world.connect("c", (world.pod("b").v4, port), &flags)?.error.is_none())
    };
    for (mode, port_mode, http, echo) in [
        ("STRICT", "PERMISSIVE", true, false),
        ("PERMISSIVE", "STRICT", false, true),
        ("STRICT", "DISABLE", true, false),
    ] {
        world.manifests.write("one-port.yaml", &policy(mode, ports::HTTP, port_mode))?;
        eventually(IN_FORCE, || {
            let now = (reached(world, ports::HTTP)?, reached(world, ports::ECHO)?);
            ensure!(now == (http, echo), "{mode}, port {port_mode}: http, echo = {now:?}");
            Ok(())
        })?;
        world.must_reach("a", "b")?;
        // The selector names b alone.
        world.must_reach("c", "e")?;
    }
    world.manifests.remove("one-port.yaml")
}

fn opt_out(world: &mut World) -> Result<()> {
    let pod = world.pod("b").clone();
    let url = format!("http://{}:{}/", pod.v4, ports::HTTP);
    world.manifests.peer_authentication(MESHED, "STRICT")?;
    eventually(IN_FORCE, || world.must_not_reach("c", "b"))?;
    for _ in 0..2 {
        world.manifests.pod(&world.topology, &pod, &[("ambit.dev/dataplane", "disabled")])?;
        eventually(IN_FORCE, || world.must_reach("c", "b"))?;
        eventually(IN_FORCE, || {
            let text = marker("opted-out");
            let link =
                world.on_the_link("opted-out", || world.curl("a", &["-d", &text, &url])?.ok().map(drop))?;
            ensure!(link.contains(&text), "traffic to a pod that has opted out is still in a tunnel");
            Ok(())
        })?;
        world.manifests.pod(&world.topology, &pod, &[])?;
        eventually(IN_FORCE, || world.must_not_reach("c", "b"))?;
        eventually(IN_FORCE, || world.must_reach("a", "b"))?;
        let text = marker("opted-in");
        let link = world.on_the_link("opted-in", || world.curl("a", &["-d", &text, &url])?.ok().map(drop))?;
        ensure!(!link.contains(&text), "traffic to a pod that has opted in again is in plaintext");
    }
    Ok(())
}
