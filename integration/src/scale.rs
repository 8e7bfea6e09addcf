//! What a big cluster asks of an agent: memory and processor at rest, and the time from a change to its effect.
//!
//! Thousands of pods are objects only, on nodes without kubelets; those of the node that is measured are real.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    cluster::Request,
    console::Console,
    kube_suite::{Kit, Plan, Pod, Site},
    load::ports,
    process::{self, eventually},
    sandbox::Sandbox,
};

/// Pods of the whole cluster but for the node that is measured, and how many are in one namespace.
const PODS: usize = 10_000;
const PODS_EACH: usize = 500;
/// On one of the nodes that no kubelet serves.
const PODS_A_NODE: usize = 250;
/// Services over them, and endpoints of each.
const SERVICES: usize = 1_000;
const ENDPOINTS: usize = 10;
/// Real pods on the node that is measured.
const NEAR: usize = 250;
/// So often policy goes to and fro.
const FLIPS: usize = 20;
/// The node that is measured.
const NODE: &str = "b";
/// How long a rest is looked at.
const REST: Duration = Duration::from_secs(20);
/// How long a change may take before it is an error.
const LIMIT: Duration = Duration::from_secs(60);
/// How long the kubelet may take for all its pods.
const BIRTH: Duration = Duration::from_secs(900);
/// Between looks at what is waited for.
const LOOK: Duration = Duration::from_millis(20);

/// An agent that has nothing to do.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Rest {
    /// Its resident memory.
    pub resident_kib: u64,
    /// Its processor time, in thousandths of one processor.
    pub milli_cpu: f64,
}

/// The figures.
#[derive(Clone, Debug, Serialize)]
pub struct Scale {
    /// Pods of the cluster, services, and pods in the mesh on the node.
    pub pods: usize,
    /// Services.
    pub services: usize,
    /// Pods in the mesh on the node.
    pub near: usize,
    /// With next to nothing in the cluster.
    pub empty: Rest,
    /// With all pods and services known, none of them on the node.
    pub known: Rest,
    /// With the node's pods in the mesh, too.
    pub enrolled: Rest,
    /// From the namespace's label until all running pods were captured, in milliseconds.
    pub enrolled_ms: u64,
    /// From a changed PeerAuthentication until a connection was refused or let in by it, in milliseconds, sorted.
    pub policy_ms: Vec<u64>,
    /// From SIGKILL until the agent served all pods again, the kubelet's part included, in milliseconds.
    pub restart_ms: u64,
}

impl Scale {
    /// Measures in a cluster of its own.
    pub fn measure(sandbox: &Sandbox, kit: &Kit, console: Console) -> Result<Self> {
        console.line("  (bringing up a cluster with ambit)");
        let mut site = Site::up(sandbox, kit, "scale")?;
        site.install(&[])?;
        let empty = rest(&site)?;
        console.line(format_args!("  (making {PODS} pods and {SERVICES} services)"));
        crowd(&site)?;
        eventually(2 * LIMIT, || settled(&site)).context("the agent does not come to rest")?;
        let known = rest(&site)?;

        console.line(format_args!("  (starting {NEAR} pods on node {NODE})"));
        let plain = site.namespace(false)?;
        let near = site.namespace(false)?;
        let [client] = site.pods(&plain, &[Plan::client("client").on("a")])?;
        let server = start_near(&site, &near)?;
        console.line("  (labelling their namespace)");
        let enrolled_ms = enrol(&site, &near)?;
        eventually(2 * LIMIT, || settled(&site)).context("the agent does not come to rest")?;
        let enrolled = rest(&site)?;
        console.line(format_args!("  (changing policy {FLIPS} times)"));
        let policy_ms = flips(&mut site, &near, &client, &server)?;
        console.line("  (killing the agent)");
        let restart_ms = restart(&site)?;
        site.down()?;
        Ok(Self {
            pods: PODS,
            services: SERVICES,
            near: NEAR,
            empty,
            known,
            enrolled,
            enrolled_ms,
            policy_ms,
            restart_ms,
        })
    }

    /// The figures in lines.
    pub fn told(&self) -> String {
        let rest = |what: &str, rest: Rest| {
            format!("  {what:<44} {:>7} KiB  {:>6.1} mCPU\n", rest.resident_kib, rest.milli_cpu)
        };
        let middle = self.policy_ms.get(self.policy_ms.len() / 2).copied().unwrap_or_default();
        let worst = self.policy_ms.last().copied().unwrap_or_default();
        let (near, pods, services) = (self.near, self.pods, self.services);
        format!(
            "the agent of a node, resident and at rest:\n{}{}{}\
             from the label until all {near} running pods were captured: {} ms\n\
             from a policy's change until it was in force: median {middle} ms, worst {worst} ms\n\
             from SIGKILL until all {near} pods were served again: {} ms",
            rest("an empty cluster", self.empty),
            rest(&format!("{pods} pods, {services} services"), self.known),
            rest(&format!("and {near} pods of the node in the mesh"), self.enrolled),
            self.enrolled_ms,
            self.restart_ms
        )
    }
}

fn rest(site: &Site) -> Result<Rest> {
    let agent = site.agent_process(NODE)?;
    let before = process::cpu_time(agent)?;
    let start = Instant::now();
    std::thread::sleep(REST);
    let used = process::cpu_time(agent)? - before;
    let milli_cpu = 1_000.0 * used.as_secs_f64() / start.elapsed().as_secs_f64();
    Ok(Rest { resident_kib: process::resident_kib(agent)?, milli_cpu })
}

/// Whether the agent has next to nothing to do.
fn settled(site: &Site) -> Result<()> {
    let agent = site.agent_process(NODE)?;
    let before = process::cpu_time(agent)?;
    std::thread::sleep(Duration::from_secs(2));
    let used = process::cpu_time(agent)? - before;
    ensure!(used < Duration::from_millis(50), "it used {used:?} in two seconds");
    Ok(())
}

/// Makes the pods and services that are objects only.
fn crowd(site: &Site) -> Result<()> {
    let api = &site.cluster.api;
    let nodes: Vec<Request> = (0..PODS / PODS_A_NODE)
        .map(|number| {
            let name = format!("far-{number}");
            Request::create("/api/v1/nodes", json!({ "metadata": { "name": name } }))
        })
        .collect();
    api.request(&nodes)?;
    let namespaces: Vec<String> = (0..PODS / PODS_EACH).map(|number| format!("far-{number}")).collect();
    for name in &namespaces {
        site.apply(&json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": { "name": name, "labels": { "ambit.dev/dataplane": "enabled" } },
        }))?;
    }
    eventually(LIMIT, || {
        // A pod is refused until its service account is there.
        let found = api.json(&["get", "serviceaccounts", "-A"])?;
        let found = found["items"]
            .as_array()
            .map_or(0, |items| items.iter().filter(|item| item["metadata"]["name"] == "default").count());
        ensure!(found > namespaces.len(), "{found} default service accounts");
        Ok(())
    })?;
    let path = |number: usize| format!("/api/v1/namespaces/far-{}/pods", number / PODS_EACH);
    let pods: Vec<Request> = (0..PODS).map(|number| Request::create(path(number), far_pod(number))).collect();
    api.request(&pods)?;
    let states: Vec<Request> = (0..PODS)
        .map(|number| {
            let ip = far_ip(number);
            let ready = json!([{ "type": "Ready", "status": "True" }]);
            let status =
                json!({ "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }], "conditions": ready });
            Request::patch(format!("{}/pod-{number}/status", path(number)), json!({ "status": status }))
        })
        .collect();
    api.request(&states)?;
    let services: Vec<Request> = (0..SERVICES).flat_map(service).collect();
    api.request(&services)
}

fn far_ip(number: usize) -> String {
    format!("198.19.{}.{}", number / PODS_A_NODE, number % PODS_A_NODE + 1)
}

/// A pod with about as much in it as pods have.
fn far_pod(number: usize) -> Value {
    let app = format!("app-{}", number % (SERVICES / (PODS / PODS_EACH)));
    let variables: Vec<Value> = (0..8)
        .map(|n| json!({ "name": format!("SETTING_{n}"), "value": "a value of some length" }))
        .collect();
    json!({
        "metadata": {
            "name": format!("pod-{number}"),
            "labels": { "app": app, "version": "v1", "pod-template-hash": "5d8f7c9b4" },
            "annotations": { "example.com/owner": "a team that has a name", "example.com/commit": "0123456789abcdef" },
        },
        "spec": {
            "nodeName": format!("far-{}", number / PODS_A_NODE),
            "tolerations": [{ "operator": "Exists" }],
            "containers": [{
                "name": "main",
                "image": "localhost/none:1",
                "env": variables,
                "ports": [{ "name": "http", "containerPort": 8080 }],
            }],
        },
    })
}

/// A service and its endpoints.
fn service(number: usize) -> [Request; 2] {
    let namespaces = PODS / PODS_EACH;
    let (namespace, name) = (format!("far-{}", number % namespaces), format!("service-{number}"));
    let first = (number % namespaces) * PODS_EACH + number / namespaces * ENDPOINTS % PODS_EACH;
    let endpoints: Vec<Value> = (first..first + ENDPOINTS)
        .map(|pod| {
            json!({
                "addresses": [far_ip(pod)],
                "conditions": { "ready": true },
                "targetRef": { "kind": "Pod", "namespace": namespace, "name": format!("pod-{pod}") },
            })
        })
        .collect();
    [
        Request::create(
            format!("/api/v1/namespaces/{namespace}/services"),
            json!({
                "metadata": { "name": name },
                "spec": { "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }] },
            }),
        ),
        Request::create(
            format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"),
            json!({
                "metadata": { "name": name, "labels": { "kubernetes.io/service-name": name } },
                "addressType": "IPv4",
                "endpoints": endpoints,
                "ports": [{ "name": "http", "port": 8080 }],
            }),
        ),
    ]
}

/// Starts the real pods; returns the one that is a server.
fn start_near(site: &Site, namespace: &str) -> Result<Pod> {
    let idle = (1..NEAR).map(|number| Plan::client(&format!("near-{number}")).on(NODE).manifest(namespace));
    let server = Plan::server("server").on(NODE).manifest(namespace);
    let items: Vec<Value> = std::iter::once(server).chain(idle).collect();
    site.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": items }))?;
    eventually(BIRTH, || {
        let pods = site.cluster.api.json(&["get", "pods", "-n", namespace])?;
        let runs = |pod: &&Value| pod["status"]["phase"] == "Running";
        let running = pods["items"].as_array().into_iter().flatten().filter(runs).count();
        ensure!(running == NEAR, "{running} of {NEAR} run");
        Ok(())
    })?;
    site.pod(namespace, "server")
}

/// Labels the namespace; how long until all its pods were captured.
fn enrol(site: &Site, namespace: &str) -> Result<u64> {
    let label = json!({ "metadata": { "labels": { "ambit.dev/dataplane": "enabled" } } });
    let start = Instant::now();
    site.cluster.api.request(&[Request::patch(format!("/api/v1/namespaces/{namespace}"), label)])?;
    wait_enrolled(site, start)
}

/// Milliseconds since `start` when all pods of the node are captured.
fn wait_enrolled(site: &Site, start: Instant) -> Result<u64> {
    loop {
        let found = captured(site).unwrap_or(0);
        let passed = start.elapsed();
        if found >= NEAR {
            return Ok(millis(passed));
        }
        ensure!(passed < LIMIT, "{found} of {NEAR} pods are captured after {passed:?}");
        std::thread::sleep(LOOK);
    }
}

/// How many pods of the node are captured now, by the agent's metrics.
fn captured(site: &Site) -> Result<usize> {
    let address = site.cluster.access().address(NODE)?;
    let mut curl: Command = site.cluster.access().outside().command("curl");
    curl.args(["-sS", "-m", "2", &format!("http://{address}:15020/metrics")]);
    let text = process::run(&mut curl, Duration::from_secs(5))?.ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("ambit_enrolled_pods "));
    Ok(line.context("no ambit_enrolled_pods")?.trim().parse()?)
}

/// Sets the namespace STRICT and PERMISSIVE in turn; how long each took to be felt.
fn flips(site: &mut Site, namespace: &str, client: &Pod, server: &Pod) -> Result<Vec<u64>> {
    site.peer_authentication(namespace, "PERMISSIVE")?;
    eventually(LIMIT, || site.must_reach(client, server))?;
    let path = format!("/apis/security.istio.io/v1/namespaces/{namespace}/peerauthentications/default");
    let mut took = Vec::new();
    for flip in 0..FLIPS {
        let (mode, open) = if flip % 2 == 0 { ("STRICT", false) } else { ("PERMISSIVE", true) };
        let start = Instant::now();
        let patch = json!({ "spec": { "mtls": { "mode": mode } } });
        site.cluster.api.request(&[Request::patch(&path, patch)])?;
        loop {
            let attempt = site.connect(client, (server.ip, ports::WHOAMI), &["--send", "hello"])?;
            if attempt.received.is_empty() != open {
                break;
            }
            if start.elapsed() > LIMIT {
                bail!("{mode} is not in force after {LIMIT:?}: {attempt:?}");
            }
        }
        took.push(millis(start.elapsed()));
    }
    took.sort_unstable();
    Ok(took)
}

/// Kills the agent; how long until it has all pods again.
fn restart(site: &Site) -> Result<u64> {
    let agent = site.agent_process(NODE)?;
    let start = Instant::now();
    kill(Pid::from_raw(agent), Signal::SIGKILL).context("kill")?;
    eventually(LIMIT, || {
        ensure!(captured(site).is_err(), "the agent still answers");
        Ok(())
    })?;
    wait_enrolled(site, start)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
