//! What a change costs the agent of one node in a big cluster: processor time, system calls on its maps, and connections
//! that are judged again.
//!
//! The cluster is a folder of manifests; all but a handful of its pods are objects only, on nodes that do not exist. A pod
//! that changes has a file of its own.

use std::{
    fmt::Write as _,
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    agent::Agent,
    console::Console,
    load::{self, ports},
    process::{Process, eventually},
    sandbox::Sandbox,
    topology::MESHED,
    world::World,
};

/// Pods of the cluster beside the node's own, on how many nodes, and how many are in one file.
const PODS: usize = 10_000;
const NODES: usize = 40;
const PER_FILE: usize = 250;
/// Services over them, and endpoints of each.
const SERVICES: usize = 1_000;
const ENDPOINTS: usize = 10;
/// Changes of each kind, and the time between two: each is taken in by itself, as the agent reads a file that has been left
/// alone for 100 ms.
const CHANGES: usize = 40;
const BETWEEN: Duration = Duration::from_millis(300);
/// How long a rest is looked at.
const REST: Duration = Duration::from_secs(10);
/// The agent tells of its maps once a second.
const TOLD: Duration = Duration::from_millis(2_500);
/// How long the agent may take to read the folder.
const START: Duration = Duration::from_secs(240);
/// Live connections to the pod that policies select, and to the other one of the node.
const SELECTED: usize = 5;
const OTHERS: usize = 7;
const NAMESPACE: &str = "far";

/// The figures.
#[derive(Clone, Debug, Serialize)]
pub struct Changes {
    /// Pods and services of the cluster.
    pub pods: usize,
    /// Services.
    pub services: usize,
    /// Processor time of the agent at rest, in microseconds a second.
    pub rest_us_per_second: f64,
    /// What each kind of change costs.
    pub kinds: Vec<Kind>,
    /// Live connections to the pod that the changed policy selects.
    pub connections_selected: usize,
    /// Live connections to the node's other pod.
    pub connections_others: usize,
}

/// What changes of one kind cost, each, beyond the agent's rest.
#[derive(Clone, Debug, Serialize)]
pub struct Kind {
    /// What was changed.
    pub what: &'static str,
    /// How often.
    pub changes: usize,
    /// Processor time, in microseconds.
    pub processor_us: f64,
    /// System calls on the maps.
    pub map_operations: f64,
    /// Live connections that were judged again.
    pub judged_again: f64,
}

impl Changes {
    /// Measures in a scene of its own.
    pub fn measure(sandbox: &Sandbox, binary: &std::path::Path, console: Console) -> Result<Self> {
        console.line(format_args!("  (making {PODS} pods and {SERVICES} services)"));
        let mut world = World::build(sandbox, "changes", binary, &[])?;
        crowd(&world)?;
        for agent in &mut world.agents {
            agent.spawn()?;
            eventually(START, || agent.wait_ready())?;
        }
        thread::sleep(TOLD);
        let agent = &world.agents[0];
        let rest = Rest::of(agent)?;
        let mut kinds = Vec::new();
        let mut measure = |what, change: &dyn Fn(usize) -> Result<()>| -> Result<()> {
            console.line(format_args!("  ({what}, {CHANGES} times)"));
            kinds.push(rest.measure(agent, what, change)?);
            Ok(())
        };
        measure("a far pod's label", &|round| write(&world, 0, &far_ip(0), round))?;
        measure("a far pod's address", &|round| write(&world, 0, &spare_ip(round), 0))?;
        measure("a near pod's label", &|round| {
            let round = format!("r{round}");
            world.manifests.pod(&world.topology, world.pod("e"), &[("round", &round)])
        })?;
        let live = connect(&world)?;
        let rest = Rest::of(agent)?;
        let mut measure = |what, change: &dyn Fn(usize) -> Result<()>| -> Result<()> {
            console.line(format_args!("  ({what}, {CHANGES} times)"));
            kinds.push(rest.measure(agent, what, change)?);
            Ok(())
        };
        measure("a policy of far pods", &|round| policy(&world, NAMESPACE, "app-1", round))?;
        measure("a policy of one of two near pods", &|round| policy(&world, MESHED, "a", round))?;
        for mut client in live {
            ensure!(client.runs(), "a live connection has ended: {}", client.output());
            client.kill();
        }
        world.remove()?;
        Ok(Self {
            pods: PODS,
            services: SERVICES,
            rest_us_per_second: rest.processor_us,
            kinds,
            connections_selected: SELECTED,
            connections_others: OTHERS,
        })
    }

    /// The figures in lines.
    pub fn told(&self) -> String {
        let mut text = format!(
            "one change in a cluster of {} pods and {} services costs the agent of a node:\n  {:<36} {:>10} {:>9} {:>13}\n",
            self.pods, self.services, "", "processor", "map calls", "judged again"
        );
        for kind in &self.kinds {
            let Kind { what, processor_us, map_operations, judged_again, .. } = kind;
            // Writing into a String does not fail.
            let _ = writeln!(
                text,
                "  {what:<36} {processor_us:>7.0} µs {map_operations:>9.1} {judged_again:>13.1}"
            );
        }
        let _ = write!(
            text,
            "  (the mean of {CHANGES} changes, less the agent's rest of {:.0} µs a second; {} connections to \
             the pod that the policy selects are live, and {} to the other)",
            self.rest_us_per_second, self.connections_selected, self.connections_others
        );
        text
    }
}

/// What an agent uses that has nothing to do, each second.
struct Rest {
    processor_us: f64,
    map_operations: f64,
}

/// What an agent has used since its start.
struct Used {
    at: Instant,
    map_operations: f64,
    policy_wakes: f64,
}

impl Rest {
    fn of(agent: &Agent) -> Result<Self> {
        let used = Used::by(agent)?;
        let (start, before) = (Instant::now(), processor_us(agent)?);
        thread::sleep(REST);
        let processor_us = (processor_us(agent)? - before) / start.elapsed().as_secs_f64();
        let now = Used::by(agent)?;
        let seconds = (now.at - used.at).as_secs_f64();
        Ok(Self { processor_us, map_operations: (now.map_operations - used.map_operations) / seconds })
    }

    fn measure(
        &self,
        agent: &Agent,
        what: &'static str,
        change: &dyn Fn(usize) -> Result<()>,
    ) -> Result<Kind> {
        let used = Used::by(agent)?;
        let (start, before) = (Instant::now(), processor_us(agent)?);
        for round in 1..=CHANGES {
            change(round)?;
            thread::sleep(BETWEEN);
        }
        thread::sleep(BETWEEN);
        let processor_us = processor_us(agent)? - before - self.processor_us * start.elapsed().as_secs_f64();
        // The last of it is told of within a second.
        thread::sleep(TOLD);
        let now = Used::by(agent)?;
        let seconds = (now.at - used.at).as_secs_f64();
        let each = |total: f64| total / CHANGES as f64;
        Ok(Kind {
            what,
            changes: CHANGES,
            processor_us: each(processor_us),
            map_operations: each(now.map_operations - used.map_operations - self.map_operations * seconds),
            judged_again: each(now.policy_wakes - used.policy_wakes),
        })
    }
}

impl Used {
    fn by(agent: &Agent) -> Result<Self> {
        let metrics = agent.metrics()?;
        let sum = |name| metrics.sum(name, &[]);
        Ok(Self {
            at: Instant::now(),
            map_operations: sum("ambit_map_operations_total"),
            policy_wakes: sum("ambit_policy_wakes_total"),
        })
    }
}

/// The processor time of all the agent's threads, in microseconds: `/proc/<pid>/task/<tid>/schedstat` counts nanoseconds
/// where `stat` counts ticks.
fn processor_us(agent: &Agent) -> Result<f64> {
    let tasks = fs::read_dir(format!("/proc/{}/task", agent.pid()?)).context("the agent's threads")?;
    let mut nanoseconds = 0;
    for task in tasks {
        // A thread may end meanwhile.
        let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
        nanoseconds += text.split_whitespace().next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(nanoseconds as f64 / 1_000.0)
}

/// Has connections to two pods of the node live, all from one outside the mesh.
fn connect(world: &World) -> Result<Vec<Process>> {
    let mut server = load::tool(&world.pod("a").netns)?;
    server.args(["echo-server", "--listen", &format!("0.0.0.0:{}", ports::ECHO)]);
    let mut processes = vec![Process::start(&mut server, &world.folder.join("changes-server.log"))?];
    processes[0].wait_for("ready", Duration::from_secs(5))?;
    let clients = [("a", SELECTED), ("e", OTHERS)];
    for (pod, number) in clients.into_iter().flat_map(|(pod, many)| (0..many).map(move |n| (pod, n))) {
        let mut client = load::tool(&world.pod("c").netns)?;
        let to = format!("{}:{}", world.pod(pod).v4, ports::ECHO);
        client.args(["ping-pong", "--to", &to, "--for-ms", "600000", "--rest-ms", "2000"]);
        let log = world.folder.join(format!("changes-{pod}-{number}.log"));
        processes.push(Process::start(&mut client, &log)?);
    }
    thread::sleep(Duration::from_secs(2));
    Ok(processes)
}

/// Writes a policy that leaves live connections alone: it closes a port that nobody uses.
fn policy(world: &World, namespace: &str, app: &str, round: usize) -> Result<()> {
    let policy = json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": { "name": "changes", "namespace": namespace },
        "spec": {
            "selector": { "matchLabels": { "app": app } },
            "mtls": { "mode": "PERMISSIVE" },
            "portLevelMtls": { (1 + round % 2).to_string(): { "mode": "STRICT" } },
        },
    });
    world.manifests.write(&format!("policy-{namespace}.json"), &policy.to_string())
}

/// Writes the manifests of all that are objects only.
fn crowd(world: &World) -> Result<()> {
    let namespace = json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": { "name": NAMESPACE, "labels": { "ambit.dev/dataplane": "enabled" } },
    });
    world.manifests.write("far.json", &namespace.to_string())?;
    write(world, 0, &far_ip(0), 0)?;
    for first in (1..PODS).step_by(PER_FILE) {
        let pods = (first..PODS.min(first + PER_FILE)).map(|number| far_pod(number, &far_ip(number), 0));
        world.manifests.write(&format!("far-pods-{first}.json"), &list(pods))?;
    }
    for first in (0..SERVICES).step_by(PER_FILE) {
        let services = (first..SERVICES.min(first + PER_FILE)).flat_map(service);
        world.manifests.write(&format!("far-services-{first}.json"), &list(services))?;
    }
    Ok(())
}

fn list(items: impl Iterator<Item = Value>) -> String {
    json!({ "apiVersion": "v1", "kind": "List", "items": items.collect::<Vec<_>>() }).to_string()
}

/// Writes a far pod to a file of its own.
fn write(world: &World, number: usize, ip: &str, round: usize) -> Result<()> {
    world.manifests.write(&format!("far-pod-{number}.json"), &far_pod(number, ip, round).to_string())
}

fn far_ip(number: usize) -> String {
    let each = PODS / NODES;
    format!("198.19.{}.{}", number / each, number % each + 1)
}

/// An address that no other pod has, another one each round.
fn spare_ip(round: usize) -> String {
    format!("198.19.60.{}", round % 250 + 1)
}

/// A pod with about as much in it as pods have.
fn far_pod(number: usize, ip: &str, round: usize) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": format!("pod-{number}"),
            "namespace": NAMESPACE,
            "uid": format!("uid-{number}"),
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": { "app": format!("app-{}", number % SERVICES), "round": format!("r{round}") },
            "annotations": { "example.com/owner": "a team that has a name" },
        },
        "spec": {
            "nodeName": format!("far-{}", number / (PODS / NODES)),
            "serviceAccountName": format!("app-{}", number % SERVICES),
            "containers": [{ "name": "main", "image": "localhost/none:1", "ports": [{ "name": "http", "containerPort": 8080 }] }],
        },
        "status": { "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }], "conditions": [{ "type": "Ready", "status": "True" }] },
    })
}

/// A service and its endpoints.
fn service(number: usize) -> [Value; 2] {
    let name = format!("service-{number}");
    let endpoints: Vec<Value> = (0..ENDPOINTS)
        .map(|nth| number + nth * SERVICES)
        .map(|pod| {
            json!({
                "addresses": [far_ip(pod)],
                "conditions": { "ready": true },
                "targetRef": { "kind": "Pod", "namespace": NAMESPACE, "name": format!("pod-{pod}") },
            })
        })
        .collect();
    let ip = format!("198.19.{}.{}", 110 + number / 250, number % 250 + 1);
    [
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": name, "namespace": NAMESPACE },
            "spec": {
                "clusterIP": ip,
                "clusterIPs": [ip],
                "selector": { "app": format!("app-{number}") },
                "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }],
            },
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": name,
                "namespace": NAMESPACE,
                "labels": { "kubernetes.io/service-name": name },
            },
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": [{ "name": "http", "port": 8080 }],
        }),
    ]
}
