//! Ways into a running cluster that another process can take too: kubectl, and a shell on a node.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::{Programs, api_server, node::Node};
use crate::{cgroups, netns::Netns, process};

const FILE: &str = "access.json";

/// Where a running cluster is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Access {
    programs: Programs,
    folder: PathBuf,
    control_plane: Netns,
    nodes: Vec<Place>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Place {
    name: String,
    address: String,
    netns: Netns,
    /// The process in the node's mount namespace whose children are in its process namespace.
    pid: u32,
}

impl Access {
    /// The cluster of a run, if there is one in its folder.
    pub fn find(run: &Path) -> Option<Self> {
        let folders = fs::read_dir(run).ok()?.flatten();
        folders
            .filter_map(|folder| fs::read(folder.path().join(FILE)).ok())
            .find_map(|raw| serde_json::from_slice(&raw).ok())
    }

    /// Writes down where the cluster is.
    pub(super) fn write(api: &super::ApiServer, programs: &Programs, nodes: &[Node]) -> Result<Self> {
        let place = |node: &Node| Place {
            name: node.name.to_owned(),
            address: node.address.clone(),
            netns: node.netns.clone(),
            pid: node.pid(),
        };
        let access = Self {
            programs: programs.clone(),
            folder: api.folder().to_owned(),
            control_plane: api.netns().clone(),
            nodes: nodes.iter().map(place).collect(),
        };
        fs::write(access.folder.join(FILE), serde_json::to_vec(&access)?).context(FILE)?;
        Ok(access)
    }

    /// kubectl as the administrator, to be given its arguments.
    pub fn kubectl(&self) -> Command {
        api_server::kubectl(&self.programs, &self.control_plane, &self.kubeconfig())
    }

    /// helm as the administrator, to be given its arguments.
    pub fn helm(&self) -> Command {
        let mut command = self.control_plane.command(self.programs.path("helm"));
        command.arg("--kubeconfig").arg(self.kubeconfig());
        command
    }

    /// `program` as if called on a node: in its network, mount and process namespaces.
    pub fn on_node(&self, node: &str, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let place = self.place(node)?;
        Ok(enter(&place.netns, place.pid, program))
    }

    /// The network namespace of a node.
    pub fn netns(&self, node: &str) -> Result<&Netns> {
        Ok(&self.place(node)?.netns)
    }

    /// The address of a node.
    pub fn address(&self, node: &str) -> Result<String> {
        Ok(self.place(node)?.address.clone())
    }

    /// The processes of a pod on a node, as this machine counts them.
    pub fn processes(&self, node: &str, pod_uid: &str) -> Result<Vec<i32>> {
        let pods = cgroups::unified()?.join(self.place(node)?.netns.name()).join("kubepods");
        let group = ["", "burstable", "besteffort"]
            .map(|class| pods.join(class).join(format!("pod{pod_uid}")))
            .into_iter()
            .find(|group| group.is_dir());
        cgroups::processes(&group.with_context(|| format!("node {node} has no pod {pod_uid}"))?)
    }

    /// `program` of this machine in the network namespace of a pod. The API is not asked.
    pub fn in_pod(&self, node: &str, pod_uid: &str, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let process = self.processes(node, pod_uid)?.first().copied();
        let process = process.with_context(|| format!("pod {pod_uid} on node {node} has no process"))?;
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{process}/ns/net")).arg("--").arg(program);
        Ok(command)
    }

    fn place(&self, node: &str) -> Result<&Place> {
        let place = self.nodes.iter().find(|place| place.name == node);
        place.with_context(|| format!("there is no node {node}"))
    }

    /// The namespace of the control plane: outside both nodes, wired to both.
    pub fn outside(&self) -> &Netns {
        &self.control_plane
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        api_server::admin(&self.folder)
    }

    /// Brings an image to one node.
    pub fn import(&self, node: &str, image: &Path) -> Result<()> {
        let mut ctr = self.on_node(node, self.programs.path("ctr"))?;
        ctr.args(["-n", "k8s.io", "images", "import"]).arg(image);
        process::run(&mut ctr, Duration::from_secs(60))?.ok().map(drop)
    }

    pub(super) fn places(&self) -> Vec<Netns> {
        self.nodes.iter().map(|place| place.netns.clone()).collect()
    }
}

/// `program` in the namespaces of the node whose namespaces `pid` has made.
pub(super) fn enter(netns: &Netns, pid: u32, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", netns.path().display()));
    command.arg(format!("--mount=/proc/{pid}/ns/mnt"));
    command.arg(format!("--pid=/proc/{pid}/ns/pid_for_children")).arg("--").arg(program);
    command
}
