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

pub(super) const TESTS: &[Test] = &[installed(
    "probes::kubelets_pass_and_other_host_processes_do_not",
    "HTTP, TCP and gRPC probes under STRICT; the node's curl is refused on the same port",
    strict,
)];

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
