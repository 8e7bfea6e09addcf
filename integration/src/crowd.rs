//! Many more pods on one node of a scene: each a network namespace with an address and an identity of its own.
//!
//! Made and deleted in batches, as one process for each step of each pod would take minutes.

use std::{collections::HashSet, fmt::Write as _, net::Ipv4Addr, time::Duration};

use anyhow::{Context as _, Result, ensure};

use crate::{load, netns, netns::Netns, process, tools::CrowdTally, topology::GATEWAY_V4, world::World};

/// The Kubernetes namespace of all of them; their service accounts are `p0`, `p1`, …
pub const NAMESPACE: &str = "crowd";
/// The addresses of all of them.
pub(crate) const SUBNET: &str = "198.18.16.0/20";
/// More have no address.
const MOST: usize = 14 * 250;
/// Pods in one file of manifests.
const PER_FILE: usize = 100;
const LIMIT: Duration = Duration::from_secs(120);

/// The pods, on the first node of a scene.
#[derive(Debug)]
pub struct Crowd {
    prefix: String,
    size: usize,
}

impl Crowd {
    /// Makes `size` pods and wires them. They are in the mesh once [`Crowd::announce`] has told of them.
    pub fn build(world: &World, size: usize) -> Result<Self> {
        ensure!(size <= MOST, "there are addresses for {MOST} pods");
        let [node, other] = &world.topology.nodes;
        let prefix = format!("{}-p", node.name);
        let crowd = Self { prefix, size };
        other.netns.ip(&["route", "add", SUBNET, "via", &node.v4.to_string()])?;
        let mut names = String::new();
        let mut wires = String::new();
        for pod in 0..size {
            let (name, address) = (crowd.netns(pod), address(pod));
            writeln!(names, "netns add {name}")?;
            writeln!(wires, "link add crowd-{pod} type veth peer name eth0 netns {name}")?;
            writeln!(wires, "address add {GATEWAY_V4}/32 dev crowd-{pod}")?;
            writeln!(wires, "link set crowd-{pod} up")?;
            writeln!(wires, "route add {address}/32 dev crowd-{pod}")?;
        }
        netns::batch(None, &names, LIMIT).context("making namespaces")?;
        netns::batch(Some(&node.netns), &wires, LIMIT).context("wiring pods")?;
        for pod in 0..size {
            let inside = format!(
                "link set lo up\naddress add {}/32 dev eth0\nlink set eth0 up\n\
                 route add default via {GATEWAY_V4} dev eth0 onlink\n",
                address(pod)
            );
            netns::batch(Some(&Netns::named(&crowd.netns(pod))), &inside, LIMIT)?;
        }
        Ok(crowd)
    }

    /// Writes the manifests of all.
    pub fn announce(&self, world: &World) -> Result<()> {
        self.announce_first(world, self.size)
    }

    /// Writes the manifests of the first `pods` of them.
    pub fn announce_first(&self, world: &World, pods: usize) -> Result<()> {
        self.announce_namespace(world)?;
        let pods: Vec<usize> = (0..pods).collect();
        for (file, pods) in pods.chunks(PER_FILE).enumerate() {
            let documents: Vec<String> =
                pods.iter().map(|pod| self.manifest(*pod, *pod, &world.topology.nodes[0].name)).collect();
            world.manifests.write(&format!("crowd-{file}.yaml"), &documents.join("---\n"))?;
        }
        Ok(())
    }

    /// Writes the manifest of one of them, under the service account that another one may have as well.
    pub fn announce_one(&self, world: &World, pod: usize, account: usize) -> Result<()> {
        self.announce_namespace(world)?;
        let manifest = self.manifest(pod, account, &world.topology.nodes[0].name);
        world.manifests.write(&format!("crowd-pod-{pod}.yaml"), &manifest)
    }

    /// Takes one of them away that [`Crowd::announce_one`] has told of.
    pub fn withdraw(&self, world: &World, pod: usize) -> Result<()> {
        world.manifests.remove(&format!("crowd-pod-{pod}.yaml"))?;
        Netns::named(&self.netns(pod)).delete()
    }

    /// The UID of a pod.
    pub fn uid(&self, pod: usize) -> String {
        format!("uid-{NAMESPACE}-{pod}")
    }

    /// The identity of a service account.
    pub fn identity(&self, account: usize) -> String {
        format!("spiffe://cluster.local/ns/{NAMESPACE}/sa/p{account}")
    }

    fn announce_namespace(&self, world: &World) -> Result<()> {
        let namespace = format!(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {NAMESPACE}\n  labels:\n    ambit.dev/dataplane: enabled\n"
        );
        world.manifests.write("crowd.yaml", &namespace)
    }

    /// Waits until the agent of the node has enrolled all of them and holds a valid certificate for each.
    pub fn wait_certified(&self, world: &World, limit: Duration) -> Result<()> {
        process::eventually(limit, || {
            let certs = world.agents[0].certs()?;
            let all = certs["certificates"].as_array().context("certificates")?;
            let valid: HashSet<&str> = all
                .iter()
                .filter(|one| one["state"] == "valid")
                .filter_map(|one| one["identity"].as_str())
                .filter(|identity| identity.contains(&format!("/ns/{NAMESPACE}/")))
                .collect();
            ensure!(valid.len() == self.size, "{} of {} have a certificate", valid.len(), self.size);
            let enrolled = world.agents[0].metrics()?.sum("ambit_enrolled_pods", &[]);
            ensure!(enrolled >= self.size as f64, "{enrolled} of {} are enrolled", self.size);
            Ok(())
        })
    }

    /// Lets each of them keep one connection to `to` for all the `seconds`, and make short ones, one each `rest`.
    pub fn play(&self, to: (Ipv4Addr, u16), seconds: u64, rest: Duration) -> Result<CrowdTally> {
        let mut command = load::own_tool()?;
        command.args(["crowd", "--prefix", &self.prefix, "--to", &format!("{}:{}", to.0, to.1)]);
        command.args(["--for-ms", &(seconds * 1000).to_string(), "--rest-ms", &rest.as_millis().to_string()]);
        let text = process::run(&mut command, Duration::from_secs(seconds + 60))?.ok()?;
        serde_json::from_str(&text).context("the answer of the tool crowd")
    }

    /// Takes their manifests away.
    pub fn retract(&self, world: &World) -> Result<()> {
        for file in 0..self.size.div_ceil(PER_FILE) {
            world.manifests.remove(&format!("crowd-{file}.yaml"))?;
        }
        for pod in 0..self.size {
            world.manifests.remove(&format!("crowd-pod-{pod}.yaml"))?;
        }
        world.manifests.remove("crowd.yaml")
    }

    /// Takes their manifests and namespaces away. Nothing of the harness runs in them.
    pub fn remove(self, world: &World) -> Result<()> {
        self.retract(world)?;
        let left = (0..self.size).filter(|pod| Netns::named(&self.netns(*pod)).path().exists());
        let names: String = left.map(|pod| format!("netns delete {}\n", self.netns(pod))).collect();
        netns::batch(None, &names, LIMIT)
    }

    fn netns(&self, pod: usize) -> String {
        format!("{}{pod}", self.prefix)
    }

    fn manifest(&self, pod: usize, account: usize, node: &str) -> String {
        let address = address(pod);
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p{pod}\n  namespace: {NAMESPACE}\n  uid: {uid}\n  \
             annotations:\n    ambit.dev/netns: {netns}\nspec:\n  nodeName: {node}\n  serviceAccountName: p{account}\n  \
             containers:\n  - name: main\n    image: example.invalid/main:1\nstatus:\n  phase: Running\n  \
             podIP: {address}\n  podIPs:\n  - ip: {address}\n",
            netns = self.netns(pod),
            uid = self.uid(pod),
        )
    }
}

fn address(pod: usize) -> Ipv4Addr {
    let (third, fourth) = (16 + pod / 250, 1 + pod % 250);
    Ipv4Addr::new(198, 18, third as u8, fourth as u8)
}
