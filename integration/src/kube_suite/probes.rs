//! Kubelet probes go on under STRICT, and nothing else of the node does.

use std::{thread, time::Duration};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{
    Plan, Pod, Site, Test, installed,
    site::{IN_FORCE, SECOND},
};
use crate::{
    load::ports,
    process::{self, Finished, eventually},
};

pub(super) const TESTS: &[Test] = &[
    installed(
        "probes::kubelets_pass_and_other_host_processes_do_not",
        "HTTP, TCP and gRPC probes under STRICT; the node's curl is refused on the same port",
        strict,
    ),
    installed(
        "probes::a_kubelet_that_restarts_is_known_at_once",
        "under STRICT: no probe fails where one failure is enough, nor does a hook",
        restarted,
    ),
];

const GRPC: u16 = 2379;

/// One pod for each kind of probe, watched closely.
fn probed(node: &str) -> [Plan; 3] {
    let often = |kind: &str, what: Value| json!({ kind: what, "periodSeconds": 1, "failureThreshold": 2 });
    let every = |plan: Plan, probe: Value| {
        let startup = json!({ "startupProbe": probe })["startupProbe"].clone();
        plan.with("livenessProbe", probe.clone()).with("readinessProbe", probe).with("startupProbe", startup)
    };
    let listen = format!("--data-dir /tmp/etcd --listen-client-urls http://0.0.0.0:{GRPC}");
    let grpc = format!("exec etcd {listen} --advertise-client-urls http://0.0.0.0:{GRPC}");
    let http = often("httpGet", json!({ "port": ports::HTTP, "path": "/" }));
    let tcp = often("tcpSocket", json!({ "port": ports::ECHO }));
    [
        every(Plan::server("http").on(node), http),
        every(Plan::server("tcp").on(node), tcp),
        every(Plan::script("grpc", &grpc).on(node), often("grpc", json!({ "port": GRPC }))),
    ]
}

/// Makes a pod for each kind of probe, and demands that they get ready and stay so; the first is probed over HTTP.
pub fn probed_pods_must_stay_ready(site: &Site, namespace: &str) -> Result<[Pod; 3]> {
    let pods = site.pods(namespace, &probed("a"))?;
    stay_ready(site, namespace)?;
    Ok(pods)
}

fn stay_ready(site: &Site, namespace: &str) -> Result<()> {
    for _ in 0..8 {
        thread::sleep(SECOND);
        let list = site.cluster.api.json(&["get", "pods", "-n", namespace])?;
        for pod in list["items"].as_array().into_iter().flatten() {
            let (name, state) = (&pod["metadata"]["name"], &pod["status"]["containerStatuses"][0]);
            ensure!(state["ready"] == true && state["restartCount"] == 0, "{name}: {state:#}");
        }
    }
    Ok(())
}

fn restarted(site: &mut Site) -> Result<()> {
    let namespace = site.namespace(true)?;
    site.peer_authentication(&namespace, "STRICT")?;
    let startup = json!({ "tcpSocket": { "port": ports::ECHO }, "periodSeconds": 1 });
    let mut once = startup.clone();
    once["failureThreshold"] = json!(1);
    // Of a port that nothing probes.
    let hook = json!({ "preStop": { "httpGet": { "port": ports::HTTP, "path": "/" } } });
    let plans = [1, 2, 3].map(|at| {
        let plan = Plan::server(&format!("touchy{at}")).on("a").with("startupProbe", startup.clone());
        let plan = plan.with("livenessProbe", once.clone()).with("readinessProbe", once.clone());
        plan.with("lifecycle", hook.clone()).spec("terminationGracePeriodSeconds", json!(20))
    });
    site.pods(&namespace, &plans)?;
    for round in 1..=3 {
        site.cluster.stop_kubelet("a")?;
        thread::sleep(2 * SECOND);
        let before = probes_sent(site)?;
        site.cluster.start_kubelet("a")?;
        eventually(30 * SECOND, || {
            let now = probes_sent(site)?;
            ensure!(now > before + 10, "{} probes since the kubelet is back", now - before);
            Ok(())
        })?;
        let restarts = [
            "get",
            "pods",
            "-n",
            &namespace,
            "-o",
            "jsonpath={.items[*].status.containerStatuses[0].restartCount}",
        ];
        let restarts = site.cluster.api.kubectl(&restarts)?;
        ensure!(restarts.trim() == "0 0 0", "round {round}: pods were restarted: {restarts}");
        let failed = failed(site, &namespace)?;
        ensure!(failed.is_empty(), "round {round}: {failed:?}");
    }
    site.cluster.api.kubectl(&["delete", "pod", "touchy1", "-n", &namespace])?;
    let failed = failed(site, &namespace)?;
    ensure!(!failed.iter().any(|told| told.contains("Hook")), "{failed:?}");
    Ok(())
}

/// How many probes have gone past the mesh on node a. The kubelet need not be there.
fn probes_sent(site: &Site) -> Result<u64> {
    let mut command = site.cluster.access().on_node("a", "/opt/cni/bin/ambit-cni")?;
    let status = process::must(command.args(["status", "pods", "-o", "json"]))?;
    let status: Value = serde_json::from_str(&status)?;
    let pods = status["pods"].as_array().into_iter().flatten();
    Ok(pods.filter_map(|pod| pod["counters"]["probes"].as_u64()).sum())
}

/// What events tell of probes and hooks that failed.
fn failed(site: &Site, namespace: &str) -> Result<Vec<String>> {
    let events = site.cluster.api.json(&["get", "events", "-n", namespace])?;
    let events = events["items"].as_array().cloned().unwrap_or_default();
    let failed = events.iter().filter(|event| {
        ["Unhealthy", "FailedPreStopHook"].iter().any(|reason| event["reason"] == *reason)
            // A container that has only begun to start.
            && !event["message"].as_str().unwrap_or_default().starts_with("Startup")
    });
    Ok(failed.map(|event| event["message"].to_string()).collect())
}

fn strict(site: &mut Site) -> Result<()> {
    let namespace = site.namespace(true)?;
    site.peer_authentication(&namespace, "STRICT")?;
    let pods = probed_pods_must_stay_ready(site, &namespace)?;
    let from_node = |node: &str, pod: &Pod, port: u16| -> Result<Finished> {
        let mut command = site.cluster.access().on_node(node, "curl")?;
        let url = format!("http://{}:{port}/", pod.ip);
        process::run(command.args(["-sS", "-m", "3", &url]), Duration::from_secs(10))
    };
    for (pod, port) in pods.iter().zip([ports::HTTP, ports::ECHO, GRPC]) {
        for node in ["a", "b"] {
            let refused = from_node(node, pod, port)?;
            ensure!(
                !refused.status.success() && refused.stdout.is_empty(),
                "a process of node {node} that is no kubelet reached {}: {}",
                pod.name,
                refused.told()
            );
        }
    }
    // The control: what refused was STRICT, and it was asked.
    site.peer_authentication(&namespace, "PERMISSIVE")?;
    eventually(IN_FORCE, || from_node("a", &pods[0], ports::HTTP)?.ok().map(drop))?;
    let log = site.agents_log()?;
    ensure!(log.contains("mtls_required"), "no refusal is in the agents' logs");
    Ok(())
}
