//! Which endpoints take the connections of a pod in the mesh: those that kube-proxy gives the same program in a pod outside it.
//!
//! Clients of both kinds run on both nodes, and dial the same addresses. What is meant to differ stands in docs/compatibility.md.

mod affinity;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::{
    Plan, Pod, Site, Test, installed,
    site::{IN_FORCE, SECOND},
};
use crate::{
    cluster::NODES,
    load::ports,
    process::{self, eventually},
};

pub(super) const TESTS: &[Test] = &[
    installed(
        "balancing::endpoints_are_those_that_kube_proxy_has",
        "traffic policies, hints, node ports, external IPs, a load balancer's; unready and leaving ones; and under STRICT",
        endpoints,
    ),
    installed(
        "balancing::clients_keep_to_an_endpoint_as_with_kube_proxy",
        "sessionAffinity: ClientIP: through endpoints that go and come, until timeoutSeconds are over",
        affinity::kept,
    ),
];

/// Connects, and tells by whom it was taken.
const REACH: &str = include_str!("balancing/reach.py");
/// Connections to one target: that chance leaves one of three endpoints out of so many happens once in a hundred thousand times.
const OFTEN: usize = 32;
/// Until Kubernetes, kube-proxy and agents have heard of services and endpoints.
const SETTLED: Duration = Duration::from_secs(40);

const EXTERNAL: &str = "198.19.200.7";
const BALANCER: &str = "198.19.200.8";
const LOCAL_BALANCER: &str = "198.19.200.9";
const GUARDED_BALANCER: &str = "198.19.200.10";

/// Whom the last of them takes.
const PODS_OF_A: &str = "198.18.11.0/24";

/// A pod in the mesh and one outside it, on the same node.
struct Pair {
    node: &'static str,
    within: Pod,
    outside: Pod,
}

/// A server that tells who it is.
fn server(name: &str, app: &str, node: &str) -> Plan {
    let serve = format!("exec harness tool whoami-server --listen [::]:{}", ports::WHOAMI);
    Plan::script(name, &serve).label("app", app).on(node)
}

/// The clients of a node: the label of one keeps it out of the mesh.
fn clients(node: &str) -> [Plan; 2] {
    let plan = |kind: &str| Plan::client(&format!("{kind}-{node}")).on(node);
    [plan("within"), plan("outside").label("ambit.dev/dataplane", "disabled")]
}

fn service(namespace: &str, name: &str, app: &str, spec: Value) -> Value {
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": {"app": app}, "ports": [{"name": "who", "port": 80, "targetPort": ports::WHOAMI}]},
    });
    if let (Some(all), Value::Object(more)) = (service["spec"].as_object_mut(), spec) {
        all.extend(more);
    }
    service
}

/// Which servers answered a client at each target, or which errors it had; each as a name of a pod where it is one's address.
type Reached = BTreeMap<String, BTreeSet<String>>;

/// What a client reaches when it dials all targets, so often each.
fn reach(site: &Site, client: &Pod, servers: &[Pod], often: usize, targets: &[String]) -> Result<Reached> {
    let mut command = site.in_pod(client, "python3")?;
    command.args(["-c", REACH, &often.to_string()]).args(targets);
    let told = process::run(&mut command, Duration::from_secs(120))?.ok()?;
    let told: BTreeMap<String, BTreeMap<String, usize>> =
        serde_json::from_str(&told).with_context(|| told.clone())?;
    let name = |who: String| {
        let known = servers.iter().find(|pod| pod.ip.to_string() == who);
        known.map_or(who, |pod| pod.name.clone())
    };
    Ok(told.into_iter().map(|(target, by)| (target, by.into_keys().map(name).collect())).collect())
}

/// A target with what clients of a node have to reach there.
struct Expected {
    what: &'static str,
    target: String,
    /// By node of the client.
    servers: [BTreeSet<String>; 2],
}

impl Expected {
    fn new(what: &'static str, target: String, from_a: &[&str], from_b: &[&str]) -> Self {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Self { what, target, servers: [set(from_a), set(from_b)] }
    }

    fn from(&self, node: &str) -> &BTreeSet<String> {
        &self.servers[usize::from(node != NODES[0])]
    }
}

/// Demands that `who` of each pair reaches exactly what is expected, in the end; all at a time.
fn must_reach(
    site: &Site,
    pairs: &[Pair],
    who: &[fn(&Pair) -> &Pod],
    servers: &[Pod],
    expected: &[Expected],
) -> Result<()> {
    let targets: Vec<String> = expected.iter().map(|expected| expected.target.clone()).collect();
    let clients: Vec<(&Pair, &Pod)> =
        pairs.iter().flat_map(|pair| who.iter().map(move |who| (pair, who(pair)))).collect();
    eventually(SETTLED, || {
        let reached: Vec<Result<Reached>> = thread::scope(|scope| {
            let asking = clients.iter().map(|(_, client)| {
                let targets = &targets;
                scope.spawn(move || reach(site, client, servers, OFTEN, targets))
            });
            let asking: Vec<_> = asking.collect();
            asking.into_iter().map(|one| one.join().unwrap_or_else(|_| bail!("panicked"))).collect()
        });
        for ((pair, client), reached) in clients.iter().zip(reached) {
            let reached = reached?;
            for expected in expected {
                let mut found = reached.get(&expected.target).cloned().unwrap_or_default();
                // Where there is nothing to be reached, kube-proxy drops what an agent refuses.
                if expected.from(pair.node).is_empty() {
                    found.retain(|name| servers.iter().any(|pod| pod.name == *name));
                }
                ensure!(
                    found == *expected.from(pair.node),
                    "{} reaches {found:?} by {} ({}), and should reach {:?}",
                    client.name,
                    expected.what,
                    expected.target,
                    expected.from(pair.node)
                );
            }
        }
        Ok(())
    })
}

fn within(pair: &Pair) -> &Pod {
    &pair.within
}

fn outside(pair: &Pair) -> &Pod {
    &pair.outside
}

fn endpoints(site: &mut Site) -> Result<()> {
    let namespace = site.namespace(true)?;
    for (node, zone) in NODES.iter().zip(["east", "west"]) {
        let label = format!("topology.kubernetes.io/zone={zone}");
        site.cluster.api.kubectl(&["label", "node", node, &label, "--overwrite"])?;
    }
    let pairs = pairs(site, &namespace)?;
    let servers = servers(site, &namespace)?;
    let expected = services(site, &namespace)?;
    must_reach(site, &pairs, &[within, outside], &servers, &expected)?;
    leaving(site, &namespace, &pairs, &servers)?;
    // None of these ways is one of plaintext.
    site.peer_authentication(&namespace, "STRICT")?;
    let nobody: Vec<Expected> =
        expected.iter().map(|known| Expected::new(known.what, known.target.clone(), &[], &[])).collect();
    must_reach(site, &pairs, &[outside], &servers, &nobody).context("from outside, under STRICT")?;
    must_reach(site, &pairs, &[within], &servers, &expected).context("under STRICT")?;
    for node in NODES {
        site.cluster.api.kubectl(&["label", "node", node, "topology.kubernetes.io/zone-"])?;
    }
    Ok(())
}

/// The clients of both nodes.
fn pairs(site: &Site, namespace: &str) -> Result<Vec<Pair>> {
    let plans: Vec<[Plan; 2]> = NODES.iter().map(|node| clients(node)).collect();
    let [a, b] = [&plans[0], &plans[1]];
    let [within_a, outside_a, within_b, outside_b] =
        site.pods(namespace, &[a[0].clone(), a[1].clone(), b[0].clone(), b[1].clone()])?;
    Ok(vec![
        Pair { node: NODES[0], within: within_a, outside: outside_a },
        Pair { node: NODES[1], within: within_b, outside: outside_b },
    ])
}

/// Three servers that are ready, one that never is beside one that is, and those that are to leave.
fn servers(site: &Site, namespace: &str) -> Result<Vec<Pod>> {
    let lingers = |plan: Plan| {
        let hook = json!({"preStop": {"sleep": {"seconds": LINGER}}});
        plan.with("lifecycle", hook).spec("terminationGracePeriodSeconds", json!(LINGER + 5))
    };
    let plans = [
        server("web-1", "web", "a"),
        server("web-2", "web", "a"),
        server("web-3", "web", "b"),
        server("late-1", "late", "a"),
        lingers(server("going-1", "going", "a")),
        server("going-2", "going", "b"),
        lingers(server("gone-1", "gone", "a")),
    ];
    let mut servers = site.pods(namespace, &plans)?.to_vec();
    let probe = json!({"exec": {"command": ["ls", "/ready"]}, "periodSeconds": 1});
    let never = server("late-2", "late", "b").with("readinessProbe", probe);
    site.apply(&never.manifest(namespace))?;
    servers.push(eventually(30 * SECOND, || site.pod(namespace, "late-2"))?);
    Ok(servers)
}

/// How long a server that is deleted goes on serving, seconds.
const LINGER: u32 = 60;

/// Makes services of all kinds, and tells what is to be reached by each.
fn services(site: &Site, namespace: &str) -> Result<Vec<Expected>> {
    let make = |name: &str, app: &str, spec: Value| service(namespace, name, app, spec);
    let balanced = |policy: &str| json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "externalTrafficPolicy": policy});
    let mut guarded = balanced("Cluster");
    guarded["loadBalancerSourceRanges"] = json!([PODS_OF_A]);
    let items = [
        make("all", "web", json!({})),
        make("local", "web", json!({"internalTrafficPolicy": "Local"})),
        make("zone", "web", json!({"trafficDistribution": "PreferSameZone"})),
        make("node", "web", json!({"trafficDistribution": "PreferSameNode"})),
        make("ports", "web", json!({"type": "NodePort"})),
        make("local-ports", "web", json!({"type": "NodePort", "externalTrafficPolicy": "Local"})),
        make("external", "web", json!({"externalIPs": [EXTERNAL]})),
        make("balancer", "web", balanced("Cluster")),
        make("local-balancer", "web", balanced("Local")),
        make("guarded-balancer", "web", guarded),
        make("late", "late", json!({})),
        make("late-all", "late", json!({"publishNotReadyAddresses": true})),
        make("late-local", "late", json!({"internalTrafficPolicy": "Local"})),
        make("going", "going", json!({})),
        make("gone", "gone", json!({})),
    ];
    site.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}))?;
    let balancers =
        [("balancer", BALANCER), ("local-balancer", LOCAL_BALANCER), ("guarded-balancer", GUARDED_BALANCER)];
    for (name, ip) in balancers {
        let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": ip}]}}}).to_string();
        let patch = [
            "patch",
            "service",
            name,
            "-n",
            namespace,
            "--subresource=status",
            "--type=merge",
            "-p",
            &status,
        ];
        site.cluster.api.kubectl(&patch)?;
    }
    let access = site.cluster.access();
    let at = |node: &str, name: &str| -> Result<String> {
        let service = site.cluster.api.json(&["get", "service", name, "-n", namespace])?;
        let port = service["spec"]["ports"][0]["nodePort"].as_u64().context("a node port")?;
        Ok(format!("{}:{port}", access.address(node)?))
    };
    let by = |name: &str| Ok::<_, anyhow::Error>(format!("{}:80", cluster_ip(site, namespace, name)?));
    let (web, on_a, on_b) = (["web-1", "web-2", "web-3"], ["web-1", "web-2"], ["web-3"]);
    Ok(vec![
        Expected::new("a cluster IP", by("all")?, &web, &web),
        Expected::new("internalTrafficPolicy: Local", by("local")?, &on_a, &on_b),
        Expected::new("PreferSameZone", by("zone")?, &on_a, &on_b),
        Expected::new("PreferSameNode", by("node")?, &on_a, &on_b),
        Expected::new("a node port at a", at("a", "ports")?, &web, &web),
        Expected::new("a node port at b", at("b", "ports")?, &web, &web),
        // On its own node a pod counts as one within, which policies for traffic from outside do not bind.
        Expected::new("a local node port at a", at("a", "local-ports")?, &web, &on_a),
        Expected::new("a local node port at b", at("b", "local-ports")?, &on_b, &web),
        Expected::new("an external IP", format!("{EXTERNAL}:80"), &web, &web),
        Expected::new("a load balancer's IP", format!("{BALANCER}:80"), &web, &web),
        Expected::new("a load balancer's IP, Local", format!("{LOCAL_BALANCER}:80"), &web, &web),
        Expected::new("loadBalancerSourceRanges", format!("{GUARDED_BALANCER}:80"), &web, &[]),
        Expected::new("one that is not ready", by("late")?, &["late-1"], &["late-1"]),
        Expected::new(
            "publishNotReadyAddresses",
            by("late-all")?,
            &["late-1", "late-2"],
            &["late-1", "late-2"],
        ),
        Expected::new("none on the node", by("late-local")?, &["late-1"], &[]),
    ])
}

fn cluster_ip(site: &Site, namespace: &str, name: &str) -> Result<Ipv4Addr> {
    let service = site.cluster.api.json(&["get", "service", name, "-n", namespace])?;
    Ok(service["spec"]["clusterIP"].as_str().context("a cluster IP")?.parse()?)
}

/// Endpoints that terminate and still serve are for those who have no other.
fn leaving(site: &Site, namespace: &str, pairs: &[Pair], servers: &[Pod]) -> Result<()> {
    let by = |name: &str| Ok::<_, anyhow::Error>(format!("{}:80", cluster_ip(site, namespace, name)?));
    let [going, gone] = [by("going")?, by("gone")?];
    let both = ["going-1", "going-2"];
    let before = [
        Expected::new("two that stay", going.clone(), &both, &both),
        Expected::new("one that stays", gone.clone(), &["gone-1"], &["gone-1"]),
    ];
    must_reach(site, pairs, &[within, outside], servers, &before)?;
    let leave = ["delete", "pod", "going-1", "gone-1", "-n", namespace, "--wait=false"];
    site.cluster.api.kubectl(&leave)?;
    let after = [
        Expected::new("one that leaves and one that stays", going, &["going-2"], &["going-2"]),
        Expected::new("one that leaves", gone, &["gone-1"], &["gone-1"]),
    ];
    must_reach(site, pairs, &[within, outside], servers, &after)?;
    let slices = ["get", "endpointslices", "-n", namespace, "-l", "kubernetes.io/service-name=gone"];
    let slices = site.cluster.api.json(&slices)?;
    let conditions = &slices["items"][0]["endpoints"][0]["conditions"];
    ensure!(
        conditions["terminating"] == true && conditions["serving"] == true,
        "the server that leaves does not serve any more: {conditions}"
    );
    let end = ["delete", "pod", "going-1", "gone-1", "-n", namespace, "--grace-period=0", "--force"];
    site.cluster.api.kubectl(&end).map(drop)
}
