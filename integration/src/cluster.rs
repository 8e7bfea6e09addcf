//! A real Kubernetes on this machine: its API server alone, or two nodes with pods as containers.
//!
//! Everything lives in network namespaces and cgroups that bear the run's name, with addresses that exist only there. What
//! a cluster runs on is given to it: [`Programs`] are built by `cargo xtask`.

mod access;
mod api_server;
mod bulk;
mod dns;
mod ground;
mod image;
mod node;
mod pki;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use self::node::Node;
pub use self::{
    access::Access,
    api_server::{ADDRESS, ApiServer},
    bulk::Request,
    dns::MANY,
    ground::Ground,
    image::POD_IMAGE,
};
use crate::{
    cgroups,
    process::{Process, eventually},
    sandbox::Sandbox,
};

/// The names of the nodes.
pub const NODES: [&str; 2] = ["a", "b"];
/// The cluster's DNS, by the name of its program.
pub const COREDNS: &str = "coredns-zones";
/// How long a node may take to be ready, and a pod to run.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// The folder of the programs of Kubernetes, etcd, containerd and their like.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Programs(PathBuf);

impl From<OsString> for Programs {
    fn from(folder: OsString) -> Self {
        Self(folder.into())
    }
}

impl Programs {
    /// The path of one.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Where they are.
    pub fn folder(&self) -> &Path {
        &self.0
    }
}

/// Two nodes, `a` and `b`, or one, under a control plane; dropping it kills everything.
#[derive(Debug)]
pub struct Cluster {
    /// The API server, and kubectl.
    pub api: ApiServer,
    access: Access,
    /// They go before what they hang on.
    nodes: Vec<Node>,
    _control_plane: Vec<Process>,
}

impl Cluster {
    /// Brings a cluster up; returns when both nodes are ready and the image [`POD_IMAGE`] is on them.
    pub fn up(sandbox: &Sandbox, programs: &Programs, name: &str) -> Result<Self> {
        Self::up_on(Ground::FIRST, NODES.len(), sandbox, programs, name)
    }

    /// Brings another one up, of one node, whose pods and this one's reach each other by their own addresses.
    pub fn beside(&self, sandbox: &Sandbox, programs: &Programs, name: &str) -> Result<Self> {
        let other = Self::up_on(Ground::SECOND, 1, sandbox, programs, name)?;
        ground::join((self.api.netns(), self.api.ground()), (other.api.netns(), other.api.ground()))?;
        Ok(other)
    }

    fn up_on(
        ground: Ground,
        nodes: usize,
        sandbox: &Sandbox,
        programs: &Programs,
        name: &str,
    ) -> Result<Self> {
        let api = ApiServer::start_on(ground, sandbox, programs, name)?;
        let place = format!("{}-{name}", sandbox.prefix());
        let pod_image = image::pods(programs, api.folder()).context("the image of pods")?;
        let control_plane = control_plane(&api, programs)?;
        let started: Result<Vec<Node>> = thread::scope(|scope| {
            let start = |index| {
                let (api, place, image) = (&api, &place, &pod_image);
                scope.spawn(move || Node::start(api, programs, place, index, image))
            };
            let starting: Vec<_> = (0..nodes).map(start).collect();
            starting.into_iter().map(|node| node.join().unwrap_or_else(|_| bail!("panicked"))).collect()
        });
        let nodes = started.context("starting a node")?;
        let binding = ["kube-proxy", "--clusterrole", "system:node-proxier", "--user", "system:kube-proxy"];
        api.kubectl(&[["create", "clusterrolebinding"].as_slice(), &binding].concat())?;
        let access = Access::write(&api, programs, &nodes)?;
        let cluster = Self { api, access, nodes, _control_plane: control_plane };
        cluster.wait_ready()?;
        Ok(cluster)
    }

    /// What it takes to look into the cluster, also from another process.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// Brings an image, as a docker-archive, to every node.
    pub fn import(&self, image: &Path) -> Result<()> {
        self.nodes().try_for_each(|node| self.access.import(node, image))
    }

    /// The names of its nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &'static str> {
        self.nodes.iter().map(|node| node.name)
    }

    /// Ends the kubelet of a node; what it has started goes on.
    pub fn stop_kubelet(&mut self, node: &str) -> Result<()> {
        self.node(node)?.stop_kubelet()
    }

    /// Starts it again, in a new cgroup of the same name, as systemd does.
    pub fn start_kubelet(&mut self, node: &str) -> Result<()> {
        self.node(node)?.start_kubelet()
    }

    fn node(&mut self, name: &str) -> Result<&mut Node> {
        self.nodes
            .iter_mut()
            .find(|node| node.name == name)
            .with_context(|| format!("there is no node {name}"))
    }

    /// State, logs and certificates.
    pub fn folder(&self) -> &Path {
        self.api.folder()
    }

    /// Takes the cluster down.
    pub fn down(self) -> Result<()> {
        let (places, cp) = (self.access.places(), self.api.netns().clone());
        drop(self);
        for place in &places {
            place.delete()?;
            cgroups::remove(place.name())?;
        }
        cp.delete()
    }

    fn wait_ready(&self) -> Result<()> {
        eventually(READY_LIMIT, || {
            let nodes = self.api.json(&["get", "nodes"])?;
            let ready = |node: &serde_json::Value| {
                let conditions = node["status"]["conditions"].as_array();
                conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
            };
            let ready =
                nodes["items"].as_array().map_or(0, |nodes| nodes.iter().filter(|n| ready(n)).count());
            ensure!(ready == self.nodes.len(), "{ready} of {} nodes are ready", self.nodes.len());
            // A pod is refused until its namespace's service account is there.
            self.api.kubectl(&["get", "serviceaccount", "default"]).map(drop)
        })
        .with_context(|| format!("the logs are in {}", self.folder().display()))
    }
}

/// Controller manager, scheduler and DNS, beside the API server.
fn control_plane(api: &ApiServer, programs: &Programs) -> Result<Vec<Process>> {
    let command = |program: &str| api.netns().command(programs.path(program));
    let user = |name: &str| api.user(name, &format!("system:{name}"), "kubernetes");

    let mut controllers = command("kube-controller-manager");
    controllers.arg("--kubeconfig").arg(user("kube-controller-manager")?);
    controllers.arg("--root-ca-file").arg(api.ca());
    controllers.arg("--service-account-private-key-file").arg(api.pki().signing_key());
    controllers.args(["--use-service-account-credentials", "--leader-elect=false"]);

    let mut scheduler = command("kube-scheduler");
    scheduler.arg("--kubeconfig").arg(user("kube-scheduler")?).arg("--leader-elect=false");

    let mut dns = command(COREDNS);
    dns.arg("-conf").arg(dns::configuration(api)?);

    user("kube-proxy")?;
    [("controller-manager", controllers), ("scheduler", scheduler), ("coredns", dns)]
        .into_iter()
        .map(|(name, mut command)| api.spawn(name, &mut command))
        .collect()
}
