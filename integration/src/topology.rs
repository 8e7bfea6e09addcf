//! Two nodes and their pods: who is wired to whom, and under which addresses. No daemon here.
//!
//! ```text
//!   pod a ─┐                                       ┌─ pod b
//!   pod c ─┤ node1 ════════ node link ════════ node2 ├─ pod d
//!   pod e ─┘                                       ┘
//! ```
//!
//! Nodes forward; every pod has a /32 (and /128) and a default route by its node, as routed CNIs do it. Nothing here is
//! reachable from the machine's own namespace.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result};

use crate::{netns::Netns, sandbox::Sandbox};

/// The name of the node link's interface in both nodes: where the wire between nodes is watched.
pub const NODE_LINK: &str = "wire";
/// The next hop of every pod: the same for all, as in CNIs that route.
pub(crate) const GATEWAY_V4: &str = "169.254.1.1";
const GATEWAY_V6: &str = "fe80::1";

/// A node: a namespace that forwards between its pods and the other node.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its name in Kubernetes and as a namespace.
    pub name: String,
    /// Its namespace.
    pub netns: Netns,
    /// Its IPv4 address on the node link.
    pub v4: Ipv4Addr,
}

/// A pod: a namespace with one interface, `eth0`.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its short name: `a`, `b`, …
    pub name: &'static str,
    /// Its Kubernetes namespace.
    pub namespace: &'static str,
    /// Its service account.
    pub service_account: &'static str,
    /// Index of its node.
    pub node: usize,
    /// Its network namespace.
    pub netns: Netns,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
}

/// Both nodes and all pods, wired.
#[derive(Clone, Debug)]
pub struct Topology {
    /// `node1` and `node2`.
    pub nodes: [Node; 2],
    /// The pods in the order of [`PODS`].
    pub pods: Vec<Pod>,
}

/// The namespace whose pods are in the mesh.
pub const MESHED: &str = "shop";
/// The namespace whose pods are not.
pub const UNMESHED: &str = "legacy";

/// Pods by name, namespace and index of node: `a` and `e` beside each other, `b` across; `c` and `d` not in the mesh.
pub const PODS: [(&str, &str, usize); 5] =
    [("a", MESHED, 0), ("b", MESHED, 1), ("c", UNMESHED, 0), ("d", UNMESHED, 1), ("e", MESHED, 0)];

impl Topology {
    /// Makes all namespaces and wires them. `world` keeps several topologies of one run apart.
    pub fn build(sandbox: &Sandbox, world: &str) -> Result<Self> {
        let name = |short: &str| format!("{}-{world}-{short}", sandbox.prefix());
        let nodes = [node(&name("node1"), 0)?, node(&name("node2"), 1)?];
        link_nodes(&nodes)?;
        let pods = PODS.iter().enumerate().map(|(index, &(short, namespace, at))| {
            plug_in(&nodes[at], short, namespace, at, index, &name(short))
        });
        let pods = pods.collect::<Result<Vec<_>>>()?;
        Ok(Self { nodes, pods })
    }

    /// The pod with this name.
    ///
    /// # Panics
    ///
    /// Panics if there is none: the names are fixed in [`PODS`].
    pub fn pod(&self, name: &str) -> &Pod {
        match self.pods.iter().find(|pod| pod.name == name) {
            Some(pod) => pod,
            None => panic!("there is no pod {name}"),
        }
    }

    /// Adds a pod to the node with the index `at`. No manifest tells of it.
    pub fn add(&mut self, name: &'static str, namespace: &'static str, at: usize) -> Result<()> {
        let node = &self.nodes[at];
        let netns = node.name.replace(&format!("node{}", at + 1), name);
        self.pods.push(plug_in(node, name, namespace, at, self.pods.len(), &netns)?);
        Ok(())
    }

    /// Puts a pod in the place of another, as when its address goes to the next one: the interface and the namespace are
    /// deleted, and new ones made. The namespace's name is another one, as those of pods are, if `renamed`.
    pub fn replace(&mut self, name: &str, service_account: &'static str, renamed: bool) -> Result<()> {
        if self.pod(name).netns.path().exists() {
            self.unplug(name)?;
        }
        let index = self.pods.iter().position(|pod| pod.name == name).context("there is no such pod")?;
        let pod = &mut self.pods[index];
        let node = &self.nodes[pod.node];
        let suffix = if renamed { "n" } else { "" };
        pod.netns = Netns::create(&format!("{}{suffix}", pod.netns.name()))?;
        pod.service_account = service_account;
        wire(node, pod).with_context(|| format!("wiring pod {name} anew"))
    }

    /// Deletes a pod's interface and namespace, with what runs in it.
    pub fn unplug(&self, name: &str) -> Result<()> {
        let pod = self.pod(name);
        self.nodes[pod.node].netns.ip(&["link", "delete", &format!("pod-{name}")])?;
        pod.netns.delete()
    }

    /// Deletes all namespaces, with what runs in them.
    pub fn remove(&self) -> Result<()> {
        for netns in self.pods.iter().map(|pod| &pod.netns).chain(self.nodes.iter().map(|node| &node.netns)) {
            netns.delete()?;
        }
        Ok(())
    }
}

impl Pod {
    /// Its address of one family or the other.
    pub fn ip(&self, v6: bool) -> IpAddr {
        if v6 { self.v6.into() } else { self.v4.into() }
    }

    /// `ns/name`, as logs and status name it.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The SPIFFE ID its service account gives it.
    pub fn identity(&self) -> String {
        format!("spiffe://cluster.local/ns/{}/sa/{}", self.namespace, self.service_account)
    }
}

fn plug_in(
    node: &Node,
    name: &'static str,
    namespace: &'static str,
    at: usize,
    index: usize,
    netns: &str,
) -> Result<Pod> {
    let host = u8::try_from(index + 10)?;
    let pod = Pod {
        name,
        namespace,
        service_account: name,
        node: at,
        netns: Netns::create(netns)?,
        v4: Ipv4Addr::new(198, 18, subnet(at), host),
        v6: Ipv6Addr::new(0xfd00, 0x198, u16::from(subnet(at)), 0, 0, 0, 0, u16::from(host)),
    };
    wire(node, &pod).with_context(|| format!("wiring pod {name}"))?;
    Ok(pod)
}

fn node(name: &str, at: usize) -> Result<Node> {
    let netns = Netns::create(name)?;
    netns.sysctl(&[
        "net.ipv4.ip_forward=1",
        "net.ipv6.conf.all.forwarding=1",
        "net.ipv4.conf.all.rp_filter=0",
    ])?;
    Ok(Node { name: name.to_owned(), netns, v4: Ipv4Addr::new(198, 18, 0, subnet(at)) })
}

fn link_nodes(nodes: &[Node; 2]) -> Result<()> {
    let second = nodes[1].netns.name();
    nodes[0]
        .netns
        .ip(&["link", "add", NODE_LINK, "type", "veth", "peer", "name", NODE_LINK, "netns", second])?;
    for (at, node) in nodes.iter().enumerate() {
        let other = 1 - at;
        let ends = [subnet(at), subnet(other)];
        node.netns.ip(&["address", "add", &format!("198.18.0.{}/24", ends[0]), "dev", NODE_LINK])?;
        node.netns.ip(&[
            "address",
            "add",
            &format!("fd00:198::{}/64", ends[0]),
            "dev",
            NODE_LINK,
            "nodad",
        ])?;
        node.netns.ip(&["link", "set", NODE_LINK, "up"])?;
    }
    for (at, node) in nodes.iter().enumerate() {
        let other = subnet(1 - at);
        node.netns.ip(&[
            "route",
            "add",
            &format!("198.18.{other}.0/24"),
            "via",
            &format!("198.18.0.{other}"),
        ])?;
        let (pods, via) = (format!("fd00:198:{other}::/64"), format!("fd00:198::{other}"));
        node.netns.ip(&["-6", "route", "add", &pods, "via", &via])?;
    }
    Ok(())
}

fn wire(node: &Node, pod: &Pod) -> Result<()> {
    let host = format!("pod-{}", pod.name);
    let (v4, v6) = (pod.v4.to_string(), pod.v6.to_string());
    node.netns.ip(&[
        "link",
        "add",
        &host,
        "type",
        "veth",
        "peer",
        "name",
        "eth0",
        "netns",
        pod.netns.name(),
    ])?;
    node.netns.ip(&["address", "add", &format!("{GATEWAY_V4}/32"), "dev", &host])?;
    node.netns.ip(&["address", "add", &format!("{GATEWAY_V6}/64"), "dev", &host, "nodad"])?;
    node.netns.ip(&["link", "set", &host, "up"])?;
    pod.netns.ip(&["address", "add", &format!("{v4}/32"), "dev", "eth0"])?;
    pod.netns.ip(&["address", "add", &format!("{v6}/128"), "dev", "eth0", "nodad"])?;
    pod.netns.ip(&["link", "set", "eth0", "up"])?;
    pod.netns.ip(&["route", "add", "default", "via", GATEWAY_V4, "dev", "eth0", "onlink"])?;
    pod.netns.ip(&["-6", "route", "add", "default", "via", GATEWAY_V6, "dev", "eth0"])?;
    node.netns.ip(&["route", "add", &format!("{v4}/32"), "dev", &host])?;
    node.netns.ip(&["-6", "route", "add", &format!("{v6}/128"), "dev", &host])?;
    Ok(())
}

/// The third part of a node's pod addresses, and the last of its own.
fn subnet(node: usize) -> u8 {
    if node == 0 { 1 } else { 2 }
}
