//! Ways of taking ambit off beside `helm uninstall`: nodes are open and clean afterwards, or after one command.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, ensure};

use super::{
    Plan, Pod, Site, Test, Wire,
    install::state_of_nodes,
    installed,
    site::{IN_FORCE, SECOND, SYSTEM},
};
use crate::{cluster::NODES, process, process::eventually};

pub(super) const TESTS: &[Test] = &[installed(
    "removal::a_deleted_namespace_opens_every_node",
    "a node whose agent could not hear of it stays closed, and takes one command",
    namespace_deleted,
)];

/// What takes a node clean from which ambit was removed unheard.
const WAY_BACK: [&str; 3] = ["/opt/cni/bin/ambit-cni", "uninstall", "--all"];

fn namespace_deleted(site: &mut Site) -> Result<()> {
    let namespace = site.namespace(true)?;
    let plans = [Plan::client("a").on("a"), Plan::server("a2").on("a"), Plan::server("b").on("b")];
    let [a, a2, b] = site.pods(&namespace, &plans)?;
    eventually(IN_FORCE, || site.must_go(&a, &b, Wire::Tls))?;
    // The agent of b dies with nobody to start it again, and so hears nothing of what comes.
    let deaf = site.agent("b")?;
    site.cluster.stop_kubelet("b")?;
    site.kill_pod(&deaf)?;

    site.cluster.api.kubectl(&["delete", "namespace", SYSTEM, "--wait=false"])?;
    eventually(90 * SECOND, || site.must_reach(&a, &a2).and_then(|()| clean(site, "a")))
        .context("the node whose agent heard of it")?;
    site.cluster.start_kubelet("b")?;
    site.cluster.api.kubectl(&["wait", "--for=delete", &format!("namespace/{SYSTEM}"), "--timeout=120s"])?;
    // What Helm made outside the namespace is Helm's to remove; its next installation takes it over.
    site.forget_installation();

    ensure!(clean(site, "b").is_err(), "node b is clean: its agent must have heard of the removal");
    site.must_not_be_reached(&a, &b).context("a node that is not known to be open")?;
    site.apply(&Plan::server("late").on("b").manifest(&namespace))?;
    let told = eventually(60 * SECOND, || waits(site, &namespace, "late"))?;
    ensure!(told.contains(&WAY_BACK.join(" ")), "the pod that waits does not say what to do: {told}");
    let mut command = site.cluster.access().on_node("b", WAY_BACK[0])?;
    let removed = process::run(command.args(&WAY_BACK[1..]), Duration::from_secs(20))?.ok()?;
    site.note(format!("one command took {} things off node b", removed.lines().count()));
    NODES.into_iter().try_for_each(|node| clean(site, node))?;
    eventually(5 * SECOND, || site.must_go(&a, &b, Wire::Plaintext)).context("after the one command")?;
    site.wait_ready(&namespace).context("the pod that waited")
}

/// Demands that nothing of ambit is on a node.
fn clean(site: &Site, node: &str) -> Result<()> {
    let state = state_of_nodes(site)?.remove(node).context("a state")?;
    let left: Vec<&str> = state.lines().filter(|line| line.contains("ambit")).collect();
    ensure!(left.is_empty(), "left on node {node}: {left:?}");
    Ok(())
}

/// What keeps a pod from being made, as its events tell.
fn waits(site: &Site, namespace: &str, name: &str) -> Result<String> {
    thread::sleep(SECOND);
    let of = format!("involvedObject.name={name},reason=FailedCreatePodSandBox");
    let events = site.cluster.api.json(&["get", "events", "-n", namespace, "--field-selector", &of])?;
    let told = events["items"][0]["message"].as_str();
    told.map(str::to_owned).with_context(|| format!("pod {name} does not wait yet"))
}

impl Site {
    fn must_not_be_reached(&self, from: &Pod, to: &Pod) -> Result<()> {
        let reached = self.must_reach(from, to);
        ensure!(reached.is_err(), "{} reaches {}", from.name, to.name);
        Ok(())
    }
}
