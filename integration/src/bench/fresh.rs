//! Loads that begin with a fresh start of what carries the path: first bytes, memory, enrolment.

use std::{
    io::Write as _,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;

use super::{
    figures::{self, Figure},
    loads::{Ends, Kind, LOADS},
    ports,
    results::Spread,
    scene::Scene,
};
use crate::{
    agent::Agent,
    crowd::{self, Crowd},
    load::tool,
    manifests::pod_uid,
    process::{self, Process, eventually},
    tools::FirstByte,
    topology::Pod,
    world::World,
};

const LIMIT: Duration = Duration::from_secs(60);
/// Until what was started, or has got connections, holds the memory that it will.
const SETTLE: Duration = Duration::from_secs(2);
/// Memory is to be given back so soon after connections close.
const GIVEN_BACK_AFTER: Duration = Duration::from_secs(10);
const IDLE: u64 = 2_000;
const BUSY: u64 = 500;
const STALLED: u64 = 200;
const LATER_CONNECTIONS: usize = 20;
const NEWBORNS: usize = 10;
const MANY_PODS: usize = 250;

type Values = Vec<(&'static Figure, f64)>;

/// Runs such a load on a path.
pub(super) fn run(scene: &mut Scene, path: usize, kind: Kind) -> Result<Values> {
    scene.restart(path)?;
    thread::sleep(SETTLE / 2);
    match kind {
        Kind::FirstByte => first_byte(scene, path),
        Kind::Memory => memory(scene, path),
        Kind::Enrolment => enrolment(scene.world(path)?),
        _ => bail!("this load needs no fresh start"),
    }
}

fn first_byte(scene: &Scene, path: usize) -> Result<Values> {
    let ends = across(scene, path);
    let took = |count: usize| -> Result<Vec<f64>> {
        let mut command = ends.tool("first-byte", ports::ECHO)?;
        let text = process::run(command.args(["--count", &count.to_string()]), LIMIT)?.ok()?;
        let took: Vec<FirstByte> = serde_json::from_str(&text).context("first-byte's answer")?;
        Ok(took.iter().map(|one| one.first_byte_us).collect())
    };
    let cold = *took(1)?.first().context("no connection")?;
    Ok(vec![(&figures::COLD, cold), (&figures::WARM, Spread::of(&took(LATER_CONNECTIONS)?).median)])
}

fn memory(scene: &mut Scene, path: usize) -> Result<Values> {
    thread::sleep(SETTLE);
    let used = scene.used(path)?;
    let (_, one_pod) = *used.get(1).context("nothing but the kernel carries this path")?;
    let rest = resident(scene, path)?;
    let mut idle = many(scene, path, IDLE, &[])?;
    let held = resident(scene, path)?;
    idle.close_input();
    ensure!(idle.wait(LIMIT)?.success(), "{}", process::tail(&idle.output()));
    thread::sleep(GIVEN_BACK_AFTER);
    let closed = resident(scene, path)?;

    scene.restart(path)?;
    thread::sleep(SETTLE);
    let before_busy = resident(scene, path)?;
    let mut busy = many(scene, path, BUSY, &["--busy-every-ms", "20"])?;
    let with_busy = resident(scene, path)?;
    busy.kill();

    scene.restart(path)?;
    thread::sleep(SETTLE);
    let before_stalled = resident(scene, path)?;
    let stalled = stall(scene, path)?;
    let with_stalled = resident(scene, path)?;
    drop(stalled);

    let grown = held.saturating_sub(rest);
    let kept = closed.saturating_sub(rest);
    let mut values = vec![
        (&figures::AT_REST, one_pod as f64),
        (&figures::PER_IDLE, each(grown, IDLE)),
        (&figures::PER_BUSY, each(with_busy.saturating_sub(before_busy), BUSY)),
        (&figures::PER_STALLED, each(with_stalled.saturating_sub(before_stalled), STALLED)),
    ];
    if grown > 0 {
        values.push((&figures::GIVEN_BACK, 100.0 * (1.0 - kept as f64 / grown as f64).max(0.0)));
    }
    Ok(values)
}

/// Holds so many connections open, and waits until memory has settled.
fn many(scene: &Scene, path: usize, connections: u64, flags: &[&str]) -> Result<Process> {
    let mut command = across(scene, path).tool("many", ports::ECHO)?;
    command.args(["--connections", &connections.to_string(), "--rounds", "1", "--hold"]).args(flags);
    let mut process = start(scene, "many", &mut command)?;
    process.wait_for("holding", LIMIT)?;
    thread::sleep(SETTLE);
    Ok(process)
}

/// Connections that both ends write to and neither reads from; the server and the client of them.
fn stall(scene: &Scene, path: usize) -> Result<[Process; 2]> {
    let ends = across(scene, path);
    let mut command = tool(&ends.server)?;
    let mut server =
        start(scene, "mute", command.args(["mute-server", "--listen", &format!("[::]:{}", ports::MUTE)]))?;
    server.wait_for("ready", LIMIT)?;
    let mut command = ends.tool("flood", ports::MUTE)?;
    command.args(["--connections", &STALLED.to_string(), "--says", "stuffing", "--hold-ms", "60000"]);
    let mut client = start(scene, "flood", &mut command)?;
    client.wait_for("flooding", LIMIT)?;
    thread::sleep(2 * SETTLE);
    ensure!(client.runs(), "the clients have gone: {}", process::tail(&client.output()));
    Ok([server, client])
}

/// Starts a process with a log of its own.
fn start(scene: &Scene, name: &str, command: &mut Command) -> Result<Process> {
    let log = scene.scratch().join(format!("{name}.log"));
    let _ = std::fs::remove_file(&log);
    Process::start(command, &log)
}

/// Of all processes that carry the path, in KiB.
fn resident(scene: &Scene, path: usize) -> Result<u64> {
    Ok(scene.used(path)?.iter().map(|(_, kib)| kib).sum())
}

fn each(kib: u64, connections: u64) -> f64 {
    (kib * 1024 / connections) as f64
}

/// The ends on two nodes.
fn across(scene: &Scene, path: usize) -> Ends {
    scene.ends(path, &LOADS[0]).clone()
}

fn enrolment(world: &World) -> Result<Values> {
    let mut values = vec![(&figures::CNI_ADD, cni_add(world)?)];
    let crowd = Crowd::build(world, MANY_PODS)?;
    let measured = join(world, &crowd, &mut values);
    // The next round makes them anew.
    crowd.remove(world)?;
    measured?;
    eventually(LIMIT, || {
        let left = world.topology.nodes[0].netns.ip(&["-o", "link", "show", "type", "veth"])?;
        ensure!(!left.contains("crowd-"), "interfaces of pods that have gone are still there");
        Ok(())
    })?;
    world.topology.nodes[1].netns.ip(&["route", "delete", crowd::SUBNET])?;
    Ok(values)
}

/// Has more and more pods of the crowd join, all of them anew each time.
fn join(world: &World, crowd: &Crowd, values: &mut Values) -> Result<()> {
    let agent = &world.agents[0];
    for (pods, figure) in
        [(1, &figures::ENROL_1), (100, &figures::ENROL_100), (MANY_PODS, &figures::ENROL_250)]
    {
        let before = enrolled(agent)?;
        let start = Instant::now();
        crowd.announce_first(world, pods)?;
        wait_enrolled(agent, before + pods as f64)?;
        values.push((figure, start.elapsed().as_secs_f64() * 1e3));
        if pods == MANY_PODS {
            crowd.wait_certified(world, LIMIT)?;
            thread::sleep(SETTLE);
            values.push((&figures::PODS_250, agent.resident_kib()? as f64));
        }
        crowd.retract(world)?;
        eventually(LIMIT, || {
            ensure!(enrolled(agent)? <= before, "pods that have gone are still enrolled");
            Ok(())
        })?;
    }
    Ok(())
}

fn enrolled(agent: &Agent) -> Result<f64> {
    Ok(agent.metrics()?.sum("ambit_enrolled_pods", &[]))
}

fn wait_enrolled(agent: &Agent, wanted: f64) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    while enrolled(agent)? < wanted {
        ensure!(
            Instant::now() < deadline,
            "{} of {wanted} pods are enrolled after {LIMIT:?}",
            enrolled(agent)?
        );
    }
    Ok(())
}

/// How long the container runtime waits for the plugin when a pod is born, in milliseconds: the median of several.
fn cni_add(world: &World) -> Result<f64> {
    let (agent, pod) = (&world.agents[0], world.pod("n"));
    let plugin = world.folder.join("ambit-cni");
    if !plugin.exists() {
        std::os::unix::fs::symlink(&world.binary, &plugin)?;
    }
    let mut took = Vec::new();
    for birth in 0..NEWBORNS {
        let before = enrolled(agent)?;
        let uid = format!("{}-{birth}", pod_uid(pod));
        world.manifests.write("newborn.yaml", &newborn(world, pod, &uid))?;
        // The agent reads a file that has been left alone for 100 ms.
        thread::sleep(Duration::from_millis(300));
        let call = |command: &str| -> Result<Duration> {
            let mut runtime = world.topology.nodes[0].netns.command(&plugin);
            runtime.env("CNI_COMMAND", command).env("CNI_CONTAINERID", &uid).env("CNI_IFNAME", "eth0");
            runtime.env("CNI_NETNS", pod.netns.path()).env("CNI_PATH", &world.folder).env(
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_UID={uid}",
                    pod.namespace, pod.name
                ),
            );
            runtime.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let start = Instant::now();
            let mut child = runtime.spawn().context("the plugin")?;
            child.stdin.take().context("its input")?.write_all(plugin_input(agent, pod).as_bytes())?;
            // The plugin bounds its own time, and polling for its end would be coarser than what is measured.
            let ended = child.wait_with_output()?;
            let took = start.elapsed();
            ensure!(ended.status.success(), "{command}: {}", String::from_utf8_lossy(&ended.stdout));
            Ok(took)
        };
        took.push(call("ADD")?.as_secs_f64() * 1e3);
        wait_enrolled(agent, before + 1.0)?;
        call("DEL")?;
        world.manifests.remove("newborn.yaml")?;
        eventually(LIMIT, || {
            ensure!(enrolled(agent)? <= before, "a pod that has gone is still enrolled");
            Ok(())
        })?;
    }
    Ok(Spread::of(&took).median)
}

/// What a runtime writes to the plugin: its configuration with the result of the plugins before it.
fn plugin_input(agent: &Agent, pod: &Pod) -> String {
    json!({
        "cniVersion": "1.0.0",
        "name": "net",
        "type": "ambit-cni",
        "runDir": agent.run_dir(),
        "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [{ "name": "eth0", "sandbox": pod.netns.path() }],
            "ips": [{ "address": format!("{}/32", pod.v4), "interface": 0 }],
            "dns": {},
        },
    })
    .to_string()
}

/// A pod that is being born: it has no address yet.
fn newborn(world: &World, pod: &Pod, uid: &str) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": pod.name, "namespace": pod.namespace, "uid": uid },
        "spec": {
            "nodeName": world.topology.nodes[0].name,
            "serviceAccountName": pod.service_account,
            "containers": [{ "name": "main", "image": "example.invalid/main:1" }],
        },
        "status": { "phase": "Pending" },
    })
    .to_string()
}
