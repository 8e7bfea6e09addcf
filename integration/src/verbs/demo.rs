//! Shows a newcomer what ambit does, step by step, on this machine.

mod kube;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

pub(super) use self::kube::{Args as KubeArgs, run as run_kube};
use crate::{
    agent::IN_FORCE,
    capture::is_client_hello,
    console::{self, Console},
    load::{Figures, ports, side_by_side},
    process::eventually,
    sandbox::{self, Sandbox},
    tools::HTTP_BODY,
    topology::{MESHED, NODE_LINK},
    world::World,
};

/// How a demo goes on and ends.
#[derive(Clone, Copy, clap::Args)]
struct How {
    /// Leave everything running at the end; `cargo xtask clean` removes it.
    #[arg(long)]
    keep: bool,
    /// Print the figures as JSON on stdout, and everything else on stderr.
    #[arg(long)]
    json: bool,
    /// How long each load lasts, in seconds.
    #[arg(long)]
    seconds: u32,
}

/// How the demo runs.
#[derive(clap::Args)]
pub struct Args {
    /// The daemon.
    #[arg(long)]
    binary: PathBuf,
    #[command(flatten)]
    how: How,
}

const PICTURE: &str = "
   node1                                   node2
  ┌──────────────────────────┐            ┌──────────────────────────┐
  │ pod a   shop, in the mesh│            │ pod b   shop, in the mesh│
  │ pod e   shop, in the mesh│  node link │                          │
  │ pod c   not in the mesh  │════════════│ pod d   not in the mesh  │
  │ ambit agent              │            │ ambit agent              │
  └──────────────────────────┘            └──────────────────────────┘";

/// Runs the verb.
pub(super) fn run(args: &Args) -> Result<ExitCode> {
    sandbox::supervised(|sandbox| {
        let How { keep, json, seconds } = args.how;
        let console = Console::new(json);
        let mut world = scene(sandbox, &args.binary, console)?;
        encryption(&mut world, console)?;
        addresses(&world, console)?;
        policy(&mut world, console)?;
        failure(&mut world, console)?;
        let (direct, ambit) = figures(&world, seconds, console)?;
        if json {
            console::answer(&json!({ "seconds": seconds, "direct": direct, "ambit": ambit }));
        }
        if keep {
            leave_running(sandbox, world, console)
        } else {
            console.line("\nTaking everything down again.");
            world.remove()
        }
    })
}

fn scene(sandbox: &Sandbox, binary: &std::path::Path, console: Console) -> Result<World> {
    console.heading("1. Two nodes, five pods");
    console.line(PICTURE);
    console.line("\n  Nodes and pods are network namespaces; the pods run curl, iperf3 and servers that know nothing of ambit.");
    let world = World::start(sandbox, "demo", binary, &[])?;
    console.good("namespaces wired, manifests written, servers started, one agent running on each node");
    Ok(world)
}

fn encryption(world: &mut World, console: Console) -> Result<()> {
    console.heading("2. curl from pod a to pod b: plaintext in the pods, mutual TLS on the wire");
    let secret = "the-secret-of-this-demo";
    let url = format!("http://{}:{}/", world.pod("b").v4, ports::HTTP);
    let captures =
        (world.capture_pod("a", "demo")?, world.capture_link("demo")?, world.capture_pod("b", "demo")?);
    console.line(format_args!("  pod a $ curl -d {secret} {url}"));
    let answer = world.curl("a", &["-d", secret, &url])?.ok()?;
    ensure!(answer == secret, "pod b should send back {secret:?}, not {answer:?}");
    console.line(format_args!("  {answer}"));
    console.line(format_args!("  pod a $ curl {url}"));
    console.line(format_args!("  {}", world.curl("a", &[&url])?.ok()?.trim_end()));
    let (in_a, link, in_b) = (captures.0.stop()?, captures.1.stop()?, captures.2.stop()?);
    for (pod, captured) in [("a", &in_a), ("b", &in_b)] {
        ensure!(captured.contains(secret), "the secret should be readable inside pod {pod}");
        console.good(format_args!(
            "tcpdump inside pod {pod}: {secret:?} is readable, as the application sent it"
        ));
    }
    for text in [secret, HTTP_BODY.trim(), "HTTP/1.1"] {
        ensure!(!link.contains(text), "{text:?} is readable on the node link");
    }
    console.good(format_args!(
        "tcpdump on the node link: {} packets, not one byte of it readable",
        link.packets.len()
    ));
    let app = (world.pod("b").v4.into(), ports::HTTP);
    ensure!(link.dialled() == [app], "the node link saw connections to {:?}", link.dialled());
    console.good(format_args!(
        "the packets there still go to {}:{}, the application's own address and port",
        app.0, app.1
    ));
    let openings = link.openings(app);
    let first = openings.first().context("nothing was sent on the node link")?;
    ensure!(is_client_hello(first), "the first bytes on the node link are no TLS: {first:02x?}");
    console.good(format_args!("and begin with {:02x?}…: a TLS ClientHello", &first[..6]));
    let line = world.agents[1].wait_log(0, &["access", &world.pod("a").identity()])?;
    console.good("the agent of node2 knows who called, and proved it by certificate:");
    console.line(format_args!("      {}", line.replace('\t', " ")));
    Ok(())
}

fn addresses(world: &World, console: Console) -> Result<()> {
    console.heading("3. Both applications see true addresses");
    let attempt = world.whoami("a", "b")?;
    let (peer, local) = (attempt.peer.context("connected")?, attempt.local.context("connected")?);
    ensure!(
        local.ip() == world.pod("a").v4 && attempt.received.contains(&format!("peer {}:", local.ip())),
        "{attempt:?}"
    );
    console.good(format_args!(
        "the server in pod b speaks first, and says whom it sees: {}",
        attempt.received.trim_end()
    ));
    console.good(format_args!("the client in pod a sees itself as {} and its peer as {peer}", local.ip()));
    Ok(())
}

fn policy(world: &mut World, console: Console) -> Result<()> {
    console.heading("4. PeerAuthentication: PERMISSIVE takes pod c, STRICT does not");
    world.must_reach("c", "b")?;
    console.good("no policy (PERMISSIVE): pod c, outside the mesh, reaches pod b in plaintext");
    world.manifests.peer_authentication(MESHED, "STRICT")?;
    eventually(IN_FORCE, || world.must_not_reach("c", "b"))?;
    let url = format!("http://{}:{}/", world.pod("b").v4, ports::HTTP);
    console.line("  kubectl apply: PeerAuthentication shop/default, mode STRICT");
    console.line(format_args!("  pod c $ curl {url}"));
    let refused = world.curl("c", &[&url])?;
    ensure!(!refused.status.success() && refused.stdout.is_empty(), "{}", refused.told());
    console.line(format_args!("  {}", refused.stderr.trim_end()));
    console.good("STRICT: pod c is reset, nothing was restarted");
    world.must_reach("a", "b")?;
    console.good("STRICT: pod a still reaches pod b, by mutual TLS");
    let line = world.agents[1].wait_log(0, &["mtls_required"])?;
    console.line(format_args!("      {}", line.replace('\t', " ")));
    world.manifests.no_peer_authentication(MESHED)?;
    eventually(IN_FORCE, || world.must_reach("c", "b"))?;
    console.good("policy removed: pod c is taken again");
    Ok(())
}

fn failure(world: &mut World, console: Console) -> Result<()> {
    console.heading("5. An agent dies: refused, never plaintext");
    let secret = "not-without-my-agent";
    let capture = world.capture_link("demo-killed")?;
    world.agents[0].kill();
    let attempt = world.connect("a", (world.pod("b").v4, ports::HTTP), &["--send", secret])?;
    let error = attempt.error.context("pod a reached pod b without its agent")?;
    console.good(format_args!(
        "SIGKILL to the agent of node1: pod a to pod b fails after {} ms: {error}",
        attempt.took_ms
    ));
    world.must_reach("c", "d")?;
    console.good("pod c to pod d, not in the mesh, is not touched");
    world.agents[0].start()?;
    world.must_reach("a", "b")?;
    ensure!(!capture.stop()?.contains(secret), "plaintext went out while the agent was away");
    console.good(
        "the agent is back and has adopted its pods: pod a reaches pod b; nothing had gone out in plaintext",
    );
    Ok(())
}

fn figures(world: &World, seconds: u32, console: Console) -> Result<(Figures, Figures)> {
    console.heading(format_args!("6. What it costs ({seconds} s each, on this machine, now)"));
    let ways = [
        ("plaintext, pod c to pod d", world.lane("c", "d")),
        ("ambit, pod a to pod b", world.lane("a", "b")),
    ];
    let [direct, ambit] = side_by_side(ways, seconds, |load, way| {
        console.line(format_args!("  measuring {load}: {way}"));
    })?;
    console.line(format_args!("\n{}", table(&direct, &ambit)));
    Ok((direct, ambit))
}

/// The figures side by side, with their ratio.
fn table(direct: &Figures, ambit: &Figures) -> String {
    let rows: [(&str, f64, f64, usize); 6] = [
        ("one stream, Gbit/s", direct.one_stream_gbps, ambit.one_stream_gbps, 2),
        ("eight streams, Gbit/s", direct.eight_streams_gbps, ambit.eight_streams_gbps, 2),
        ("128-byte round trip, p50 µs", direct.round_trip_p50_us, ambit.round_trip_p50_us, 1),
        ("128-byte round trip, p99 µs", direct.round_trip_p99_us, ambit.round_trip_p99_us, 1),
        ("HTTP keep-alive, requests/s", direct.http_requests_per_second, ambit.http_requests_per_second, 0),
        ("new connections/s (HTTP close)", direct.connections_per_second, ambit.connections_per_second, 0),
    ];
    let mut text = format!("  {:<32}{:>12}{:>12}{:>9}\n", "", "plaintext", "ambit", "ratio");
    for (name, direct, ambit, digits) in rows {
        let ratio = if direct > 0.0 { ambit / direct } else { 0.0 };
        text += &format!("  {name:<32}{direct:>12.digits$}{ambit:>12.digits$}{ratio:>8.2}×\n");
    }
    text
}

fn leave_running(sandbox: &Sandbox, world: World, console: Console) -> Result<()> {
    sandbox.keep()?;
    console.heading("Still running. To look around:");
    let (a, node) = (world.pod("a"), &world.topology.nodes[0]);
    let run_dir = world.agents[0].run_dir();
    let binary = sandbox.folder().join("ambit");
    for (what, command) in [
        ("a shell in pod a", format!("nsenter --net={} bash", a.netns.path().display())),
        ("pod b over HTTP, from there", format!("curl http://{}:{}/", world.pod("b").v4, ports::HTTP)),
        (
            "the wire between nodes",
            format!("nsenter --net={} tcpdump -ni {NODE_LINK} -X tcp", node.netns.path().display()),
        ),
        ("the agent of node1", format!("{} status --run-dir {}", binary.display(), run_dir.display())),
        ("its log", format!("tail -f {}", run_dir.with_file_name("agent.log").display())),
        (
            "its metrics",
            format!("nsenter --net={} curl -s http://127.0.0.1:15020/metrics", node.netns.path().display()),
        ),
        ("the manifests it watches", world.manifests.folder().display().to_string()),
        ("the end of it", "cargo xtask clean".to_owned()),
    ] {
        console.line(format_args!("  {what:<28} {command}"));
    }
    // Dropping the world would end its processes.
    std::mem::forget(world);
    Ok(())
}
