//! Helm brings ambit in, and takes it out without a trace.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, ensure};

use super::{
    Plan, Pod, Site, Test, Wire, bare, installed,
    site::{IN_FORCE, RELEASE, SECOND, SYSTEM},
};
use crate::{
    certs,
    cluster::NODES,
    load::ports,
    process::{self, eventually},
};

pub(super) const TESTS: &[Test] = &[
    bare("install::the_chart_lints_and_the_api_takes_it", "helm lint --strict, server-side dry run", lint),
    // First of those that install: it compares with nodes that have never had ambit.
    bare(
        "install::helm_uninstall_leaves_nothing",
        "files, pins, rules and routes of nodes and pods as before; plaintext goes on",
        uninstall,
    ),
    bare(
        "install::a_plugged_in_ca_signs",
        "ca.cacertsSecret: an operator's intermediate CA, its root published to the agents",
        plugged_in,
    ),
    installed("install::agents_and_ca_are_ready", "one agent a node, two replicas of the CA", ready),
    installed(
        "install::agents_show_status_and_certificates",
        "ambit status and certs in the container",
        shown,
    ),
];

fn lint(site: &mut Site) -> Result<()> {
    let chart = site.kit.chart.display().to_string();
    let settings = site.settings()?;
    let set: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    site.helm(&[["lint", "--strict", &chart].as_slice(), &set].concat())?;
    let dry_run = ["install", RELEASE, &chart, "-n", SYSTEM, "--create-namespace", "--dry-run=server"];
    site.helm(&[dry_run.as_slice(), &set].concat()).map(drop)
}

fn plugged_in(site: &mut Site) -> Result<()> {
    let folder = site.cluster.folder().join("cacerts");
    certs::plugged_in_authority(&folder)?;
    site.cluster.api.kubectl(&["create", "namespace", SYSTEM])?;
    let files = format!("--from-file={}", folder.display());
    site.cluster.api.kubectl(&["create", "secret", "generic", "operators-ca", "-n", SYSTEM, &files])?;
    site.install(&["ca.cacertsSecret=operators-ca"])?;
    let namespace = site.namespace(true)?;
    let [a, b] = site.pods(&namespace, &[Plan::client("a").on("a"), Plan::server("b").on("b")])?;
    eventually(2 * IN_FORCE, || site.must_go(&a, &b, Wire::Tls))?;
    let identity = format!("spiffe://cluster.local/ns/{namespace}/sa/default");
    let chain = site.ambit("a", &["certs", "-o", "pem", &identity])?.ok()?;
    certs::verify(&folder, &certs::blocks(&chain), &folder.join("root-cert.pem"))?;
    site.uninstall()
}

fn ready(site: &mut Site) -> Result<()> {
    let agents = site.cluster.api.json(&["get", "daemonset", RELEASE, "-n", SYSTEM])?;
    ensure!(agents["status"]["numberReady"] == NODES.len(), "{:#}", agents["status"]);
    for node in NODES {
        let agent = site.agent(node)?;
        ensure!(agent.node == node && agent.restarts == 0, "{agent:?}");
    }
    let services = site.cluster.api.json(&["get", "deployments", "-n", SYSTEM])?;
    let ready = services["items"][0]["status"]["readyReplicas"].as_u64();
    ensure!(ready >= Some(2), "the CA has {ready:?} replicas");
    Ok(())
}

fn shown(site: &mut Site) -> Result<()> {
    let namespace = site.namespace(true)?;
    let [a] = site.pods(&namespace, &[Plan::client("a").on("a")])?;
    let identity = format!("spiffe://cluster.local/ns/{namespace}/sa/default");
    eventually(5 * SECOND, || {
        let status = site.ambit("a", &["status"])?.ok()?;
        ensure!(status.contains(&a.name) && status.contains(&namespace), "{status}");
        let certificates = site.ambit("a", &["certs"])?.ok()?;
        ensure!(certificates.contains(&identity), "{certificates}");
        Ok(())
    })
}

fn uninstall(site: &mut Site) -> Result<()> {
    let namespace = site.namespace(true)?;
    let [a, b] = site.pods(&namespace, &[Plan::client("a").on("a"), Plan::server("b").on("b")])?;
    let before = (state_of_nodes(site)?, state_of_pods(site, &[&a, &b])?);
    let clean = before.0.values().all(|state| !state.contains("ambit"));
    ensure!(clean, "these nodes have had ambit before: {:#?}", before.0);
    site.install(&[])?;
    let while_installed = state_of_nodes(site)?;
    ensure!(while_installed != before.0, "installing changed nothing on the nodes: {while_installed:#?}");
    eventually(2 * IN_FORCE, || site.must_go(&a, &b, Wire::Tls))?;
    let to = format!("{}:{}", b.ip, ports::ECHO);
    let load =
        ["churn", "--to", &to, "--count", "1000000", "--for-ms", "600000", "--rest-ms", "5", "--until-eof"];
    let load = site.start_tool(&a, "uninstalled", &load)?;
    site.uninstall()?;
    eventually(5 * SECOND, || site.must_go(&a, &b, Wire::Plaintext)).context("after helm uninstall")?;
    let tally = load.stop()?;
    site.note(format!(
        "helm uninstall under load: {} of {} connections failed, the longest outage {} ms",
        tally.failed,
        tally.failed + tally.good,
        tally.longest_outage_ms
    ));
    let after = (state_of_nodes(site)?, state_of_pods(site, &[&a, &b])?);
    ensure!(after.0 == before.0, "nodes were {:#?}, are {:#?}", before.0, after.0);
    ensure!(after.1 == before.1, "pods were {:#?}, are {:#?}", before.1, after.1);
    let left =
        ["get", "clusterroles,clusterrolebindings,configmaps,secrets,priorityclasses", "-A", "-o", "name"];
    let left = site.cluster.api.kubectl(&left)?;
    let left: Vec<&str> = left.lines().filter(|line| line.contains("ambit")).collect();
    ensure!(left.is_empty(), "objects that were left: {left:?}");
    Ok(())
}

/// What ambit could have put on each node.
pub(super) fn state_of_nodes(site: &Site) -> Result<BTreeMap<&'static str, String>> {
    let look = "cd /etc/cni/net.d && for f in *; do echo \"$f $(sha256sum < \"$f\")\"; done; ls -1 /opt/cni/bin /run; \
                find /sys/fs/bpf -mindepth 1 -not -name '*.debug'; ip rule; ip route show table all; nft list tables";
    let state = |node| {
        let mut command = site.cluster.access().on_node(node, "sh")?;
        let text = process::run(command.args(["-c", look]), Duration::from_secs(10))?.ok()?;
        // Routes come and go with pods, and so do the runtime's mount points.
        let kept = text.lines().filter(|line| !line.contains(" dev veth"));
        Ok((node, kept.collect::<Vec<_>>().join("\n")))
    };
    NODES.into_iter().map(state).collect()
}

/// What ambit could have put into each pod.
fn state_of_pods(site: &Site, pods: &[&Pod]) -> Result<Vec<String>> {
    let look = "ip rule; ip route show table all; ss -Hltn | sort; sysctl -e net.ipv4.tcp_fwmark_accept";
    let state = |pod: &&Pod| {
        let mut command = site.in_pod(pod, "sh")?;
        let text = process::run(command.args(["-c", look]), Duration::from_secs(10))?.ok()?;
        // The kernel gives an interface its link-local address when it pleases.
        Ok(text.lines().filter(|line| !line.starts_with("local fe80")).collect::<Vec<_>>().join("\n"))
    };
    pods.iter().map(state).collect()
}
