//! Pods whose network namespace no manifest names: told by the CNI plugin before they start, or found by their cgroup.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{SECOND, Test, marker, own, unstarted};
use crate::{
    cgroups::{self, Cgroup},
    load::ports,
    manifests::pod_uid,
    process::{self, Finished, Process, eventually},
    topology::{MESHED, Pod, UNMESHED},
    world::World,
};

pub(super) const TESTS: &[Test] = &[
    own(
        "cni::a_pod_is_captured_before_it_starts",
        "ADD enrols; the very first connection is mTLS",
        &[],
        birth,
    ),
    own("cni::without_an_agent_only_meshed_pods_wait", "code 11, or untouched; heals", &[], without_agent),
    unstarted(
        "cni::a_pod_without_room_does_not_start",
        "PODS is full: ADD fails, and says what is",
        &["--map-entries", "PODS=1"],
        without_room,
    ),
    own("cni::running_pods_are_found_by_their_cgroup", "and lose no traffic when one ends", &[], by_cgroup),
    unstarted(
        "cni::the_installation_is_kept_and_removed",
        "repaired, left by a stop, undone",
        &[],
        installation,
    ),
];

const LIST: &str = "{\n  \"cniVersion\": \"1.0.0\",\n  \"name\": \"net\",\n  \"plugins\": [\n    {\"type\": \"bridge\"}\n  ]\n}\n";

fn birth(world: &mut World) -> Result<()> {
    newborn(world, "a")?;
    let secret = marker("newborn");
    let capture = world.capture_link("newborn")?;
    let added = call(world, "a", "ADD")?;
    let result: Value = serde_json::from_str(&added.ok()?).context("the plugin's result")?;
    ensure!(result == previous(world.pod("a")), "the result was changed: {result:#}");
    // At once: the answer promises it.
    let attempt = world.connect("a", (world.pod("b").v4, ports::HTTP), &["--send", &secret])?;
    ensure!(attempt.error.is_none(), "the first connection failed: {attempt:?}");
    ensure!(!capture.stop()?.contains(&secret), "the first connection went in plaintext");
    let status = world.agents[0].status()?;
    let listed = status["pods"].as_array().context("pods")?.iter().find(|pod| pod["name"] == "a").cloned();
    ensure!(listed.as_ref().is_some_and(|pod| pod["foundBy"] == "cni"), "{listed:#?}");
    world.must_reach("a", "b")?;

    call(world, "a", "CHECK")?.ok()?;
    let passed = call(world, "c", "ADD")?;
    ensure!(
        serde_json::from_str::<Value>(&passed.ok()?)? == previous(world.pod("c")),
        "a pod outside of the mesh"
    );
    call(world, "a", "DEL")?.ok()?;
    call(world, "a", "GC")?.ok()?;
    let metrics = world.agents[0].metrics()?;
    for (command, result) in
        [("ADD", "enrolled"), ("ADD", "passed"), ("CHECK", "enrolled"), ("DEL", "passed")]
    {
        let labels = [format!("command=\"{command}\""), format!("result=\"{result}\"")];
        let count = metrics.sum("ambit_cni_requests_total", &[&labels[0], &labels[1]]);
        ensure!(count == 1.0, "{command} {result} was counted {count} times");
    }
    Ok(())
}

fn without_agent(world: &mut World) -> Result<()> {
    newborn(world, "a")?;
    eventually(3 * SECOND, || {
        let state = fs::read_to_string(world.agents[0].run_dir().join("ambit-cni.state"))?;
        ensure!(state.contains(MESHED) && !state.contains(UNMESHED), "{state}");
        Ok(())
    })?;
    world.agents[0].kill();
    let refused = call(world, "a", "ADD")?;
    let error: Value = serde_json::from_str(&refused.stdout).with_context(|| refused.told())?;
    ensure!(!refused.status.success() && error["code"] == 11, "{}", refused.told());
    ensure!(refused.stdout.contains("the ambit agent of this node is not running"), "{}", refused.told());
    let passed = call(world, "c", "ADD")?;
    ensure!(
        serde_json::from_str::<Value>(&passed.ok()?)? == previous(world.pod("c")),
        "a pod outside of the mesh"
    );
    for command in ["DEL", "CHECK", "STATUS", "VERSION"] {
        call(world, "a", command)?.ok()?;
    }
    world.agents[0].start()?;
    call(world, "a", "ADD")?.ok()?;
    world.must_reach("a", "b")
}

fn without_room(world: &mut World) -> Result<()> {
    world.manifests.write("pod-a.yaml", &manifest(world, world.pod("a"), false))?;
    world.start_agents()?;
    world.must_reach("b", "e")?;
    let refused = call(world, "a", "ADD")?;
    let told = refused.stdout.contains("PODS is full") && refused.stdout.contains("--map-entries");
    ensure!(!refused.status.success() && told, "{}", refused.told());
    let status = world.agents[0].status()?;
    ensure!(status["pending"] == json!(["capture"]), "{status:#}");
    world.must_reach("b", "e")
}

fn by_cgroup(world: &mut World) -> Result<()> {
    newborn(world, "a")?;
    // It has its address, but neither its manifest nor a CNI tells where it is.
    world.manifests.write("pod-a.yaml", &manifest(world, world.pod("a"), true))?;
    let kubelet = format!("{}-kubelet", world.topology.nodes[0].name);
    // Removed with all that is in it.
    let _group = Cgroup::create(&kubelet)?;
    let first = pause(world, "a", &kubelet)?;
    let found = |world: &World| -> Result<u64> {
        let status = world.agents[0].status()?;
        let pod = status["pods"].as_array().context("pods")?.iter().find(|pod| pod["name"] == "a").cloned();
        let pod = pod.with_context(|| format!("not listed: {status:#}"))?;
        // Where it was once enrolled, it is known without another search.
        ensure!(pod["foundBy"] == "cgroup" || pod["foundBy"] == "pin", "{pod:#}");
        pod["netnsCookie"].as_u64().context("cookie")
    };
    let cookie = eventually(3 * SECOND, || found(world))?;
    world.must_reach("a", "b")?;
    // The namespace is held, whatever becomes of the process that led to it.
    drop(first);
    std::thread::sleep(2 * SECOND);
    world.must_reach("a", "b").context("after the process ended")?;
    let _second = pause(world, "a", &kubelet)?;
    ensure!(eventually(3 * SECOND, || found(world))? == cookie, "another namespace was found");
    world.agents[0].kill();
    world.must_not_reach("a", "b").context("with the agent away")?;
    world.agents[0].start()?;
    eventually(3 * SECOND, || found(world))?;
    world.must_reach("a", "b").context("found again")
}

fn installation(world: &mut World) -> Result<()> {
    let (bin, conf) = (world.folder.join("cni-bin"), world.folder.join("cni-conf"));
    fs::create_dir_all(&conf)?;
    let list = conf.join("10-net.conflist");
    fs::write(&list, LIST)?;
    let [bin_flag, conf_flag] = [&bin, &conf].map(|folder| folder.display().to_string());
    let flags = ["--cni-bin-dir", &bin_flag, "--cni-conf-dir", &conf_flag];
    world.agents[0].add_flags(&flags);
    world.agents[0].start()?;
    let installed = || {
        let text = fs::read_to_string(&list)?;
        let parsed: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
        ensure!(parsed["plugins"][1]["type"] == "ambit-cni", "{text}");
        process::must(Command::new(bin.join("ambit-cni")).env("CNI_COMMAND", "VERSION"))
    };
    eventually(15 * SECOND, installed)?;
    fs::write(&list, LIST)?;
    eventually(10 * SECOND, installed).context("the entry was overwritten")?;
    fs::write(bin.join("ambit-cni"), "#!/bin/false\n")?;
    eventually(10 * SECOND, installed).context("the binary was overwritten")?;
    eventually(3 * SECOND, || {
        ensure!(world.agents[0].metrics()?.sum("ambit_cni_repairs_total", &[]) >= 2.0, "not counted");
        Ok(())
    })?;
    world.agents[0].stop()?;
    installed().context("a stopped agent takes nothing with it")?;
    let mut uninstall = Command::new(binary(world)?);
    uninstall.args(["uninstall", "--node", &world.topology.nodes[0].name, "--run-dir"]);
    // Where the plugin is, the agent has written down.
    uninstall.arg(world.agents[0].run_dir());
    process::must(&mut uninstall)?;
    ensure!(fs::read_to_string(&list)? == LIST, "the list is not what it was");
    let left: Vec<_> = fs::read_dir(&conf)?.chain(fs::read_dir(&bin)?).collect::<Result<_, _>>()?;
    ensure!(left.len() == 1, "left behind: {left:?}");
    Ok(())
}

/// Makes a pod of the world one that has not started yet: no address, no annotation, a UID as Kubernetes makes them.
pub(super) fn newborn(world: &World, name: &str) -> Result<()> {
    world.manifests.write(&format!("pod-{name}.yaml"), &manifest(world, world.pod(name), false))?;
    eventually(3 * SECOND, || {
        let status = world.agents[0].status()?;
        let listed = status["pods"].as_array().context("pods")?.iter().any(|pod| pod["name"] == name);
        ensure!(!listed, "still enrolled: {status:#}");
        Ok(())
    })
}

pub(super) fn manifest(world: &World, pod: &Pod, addressed: bool) -> String {
    let Pod { name, namespace, service_account, v4, v6, .. } = pod;
    let status = if addressed {
        format!("  phase: Running\n  podIP: {v4}\n  podIPs:\n  - ip: {v4}\n  - ip: {v6}\n")
    } else {
        "  phase: Pending\n".to_owned()
    };
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  uid: {uid}\n  \
         creationTimestamp: \"2026-01-01T00:00:00Z\"\nspec:\n  nodeName: {node}\n  \
         serviceAccountName: {service_account}\n  containers:\n  - name: main\n    image: example.invalid/main:1\n\
         status:\n{status}",
        uid = uid(pod),
        node = world.topology.nodes[pod.node].name,
    )
}

pub(super) fn uid(pod: &Pod) -> String {
    let [a, b, c, d] = pod.v4.octets();
    format!("{a:02x}{b:02x}{c:02x}{d:02x}-66c5-4ae3-9c29-9e1d0b2f2a51")
}

/// The result of the plugins before ours.
fn previous(pod: &Pod) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "interfaces": [{ "name": "eth0", "sandbox": pod.netns.path() }],
        "ips": [
            { "address": format!("{}/32", pod.v4), "interface": 0 },
            { "address": format!("{}/128", pod.v6), "interface": 0 },
        ],
        "dns": {},
    })
}

/// Calls the daemon as `ambit-cni`, as a container runtime does on the first node.
pub(super) fn call(world: &World, name: &str, command: &str) -> Result<Finished> {
    let pod = world.pod(name);
    let plugin = world.folder.join("ambit-cni");
    if !plugin.exists() {
        std::os::unix::fs::symlink(binary(world)?, &plugin)?;
    }
    let conf = json!({
        "cniVersion": "1.0.0",
        "name": "net",
        "type": "ambit-cni",
        "runDir": world.agents[0].run_dir(),
        "prevResult": previous(pod),
    });
    let arguments = format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={name};K8S_POD_UID={}",
        pod.namespace,
        uid_in_force(pod)
    );
    let mut runtime = world.topology.nodes[0].netns.command(&plugin);
    runtime
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", format!("sandbox-{name}"))
        .env("CNI_NETNS", pod.netns.path())
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", &world.folder)
        .env("CNI_ARGS", arguments);
    process::run_with_input(&mut runtime, &conf.to_string(), Duration::from_secs(30))
}

/// The UID in the manifest: pods that were not made newborn keep the world's.
fn uid_in_force(pod: &Pod) -> String {
    if pod.namespace == MESHED { uid(pod) } else { pod_uid(pod) }
}

fn binary(world: &World) -> Result<PathBuf> {
    let command = world.agents[0].command();
    let program = command.get_args().find(|argument| Path::new(argument).is_absolute());
    program.map(PathBuf::from).context("the agent's command names its program")
}

/// Starts a process of a pod: in its network namespace, and in its group in the cgroup tree, as a kubelet with the cgroupfs
/// driver makes it below `kubelet`.
pub(super) fn pause(world: &World, name: &str, kubelet: &str) -> Result<Process> {
    let pod = world.pod(name);
    let group = format!("{kubelet}/kubepods/burstable/pod{}/sandbox", uid(pod));
    let mut command = cgroups::inside(&group, pod.netns.command("sleep").arg("600"))?;
    Process::start(&mut command, &world.folder.join("pause.log"))
}
