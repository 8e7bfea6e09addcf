//! A node: network, mount and process namespaces of its own, with containerd, kubelet and kube-proxy in them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;

use super::{
    Programs,
    access::enter,
    api_server::{self, ApiServer, BRIDGE},
    image::POD_IMAGE,
};
use crate::{
    cgroups,
    netns::Netns,
    process::{self, Process, eventually},
    tools,
};

const CNI_PLUGINS: [&str; 3] = ["ptp", "loopback", "host-local"];

/// A running node; dropping it kills everything on it.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) name: &'static str,
    pub(super) address: String,
    pub(super) netns: Netns,
    /// Its end is the end of every process in the node's process namespace.
    init: Process,
    daemons: Vec<Daemon>,
}

/// A program of a node, in a cgroup of its own.
#[derive(Debug)]
struct Daemon {
    program: String,
    /// Outside of the cgroup.
    command: Command,
    group: String,
    log: PathBuf,
    process: Option<Process>,
}

impl Daemon {
    fn start(&mut self) -> Result<()> {
        let mut command = cgroups::inside(&self.group, &self.command)?;
        let (folder, log) = (self.log.parent().context("a folder")?, self.log.file_name().context("a name")?);
        self.process = Some(api_server::spawn(folder, &log.to_string_lossy(), &mut command)?);
        Ok(())
    }

    /// Ends it, and removes its cgroup, as systemd does with that of a service.
    fn stop(&mut self) -> Result<()> {
        let group = cgroups::unified()?.join(&self.group);
        for process in cgroups::processes(&group)? {
            // One that has ended meanwhile is no error.
            let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
        }
        self.process = None;
        eventually(Duration::from_secs(5), || fs::remove_dir(&group).context("its cgroup stays"))
    }
}

impl Node {
    /// Starts the node with this index, wired to the control plane; `place` begins its name on this machine. Returns when
    /// its daemons run and `image` is there.
    pub(super) fn start(
        api: &ApiServer,
        programs: &Programs,
        place: &str,
        index: usize,
        image: &Path,
    ) -> Result<Self> {
        let name = super::NODES[index];
        let plan =
            Plan { name, octet: u8::try_from(index)? + 11, place: format!("{place}-{name}"), api, programs };
        let netns = plan.network()?;
        cgroups::create(&plan.place)?;
        plan.files()?;
        let init = plan.boot(&netns)?;
        let mut node = Self { name, address: plan.address(), netns, init, daemons: Vec::new() };
        node.daemon(&plan, "containerd", |c| c.arg("--config").arg(plan.file("containerd.toml")))?;
        let ctr = |arguments: &[&str]| {
            process::must(enter(&node.netns, node.pid(), programs.path("ctr")).args(arguments))
        };
        eventually(Duration::from_secs(20), || ctr(&["version"])).context("containerd does not answer")?;
        ctr(&["-n", "k8s.io", "images", "import", &image.display().to_string()])?;
        node.daemon(&plan, "kubelet", |kubelet| {
            kubelet.arg("--config").arg(plan.file("kubelet.json"));
            kubelet.arg("--kubeconfig").arg(plan.kubeconfig(&format!("kubelet-{name}")));
            kubelet.args(["--hostname-override", name, "--node-ip", &plan.address()])
        })?;
        node.daemon(&plan, "kube-proxy", |proxy| {
            proxy.arg("--kubeconfig").arg(plan.kubeconfig("kube-proxy"));
            proxy.args(["--hostname-override", name, "--proxy-mode", "nftables"]);
            // Whom it takes for a pod of its node: what comes by a wire of the CNI plugin's.
            proxy.args(["--detect-local-mode", "InterfaceNamePrefix", "--pod-interface-name-prefix", "veth"]);
            // These are the machine's, and not to be changed from a namespace.
            proxy.args(["--conntrack-max-per-core", "0", "--conntrack-tcp-timeout-established", "0"]);
            proxy.args(["--conntrack-tcp-timeout-close-wait", "0"])
        })?;
        Ok(node)
    }

    /// The process that made the node's namespaces.
    pub(super) fn pid(&self) -> u32 {
        self.init.id()
    }

    /// Starts a daemon in a cgroup of its own: a kubelet is known by it.
    fn daemon(
        &mut self,
        plan: &Plan<'_>,
        program: &str,
        arguments: impl FnOnce(&mut Command) -> &mut Command,
    ) -> Result<()> {
        let mut command = enter(&self.netns, self.pid(), plan.programs.path(program));
        arguments(&mut command);
        let path = std::env::var("PATH").unwrap_or_default();
        let folder = plan.programs.folder().display();
        command.env("PATH", format!("{folder}:{path}:/usr/sbin:/sbin"));
        let mut daemon = Daemon {
            program: program.to_owned(),
            command,
            group: format!("{}-system/{program}", plan.place),
            log: plan.api.folder().join(format!("{program}-{}", plan.name)),
            process: None,
        };
        daemon.start()?;
        self.daemons.push(daemon);
        Ok(())
    }

    /// Ends the kubelet; what it has started goes on.
    pub(super) fn stop_kubelet(&mut self) -> Result<()> {
        self.kubelet()?.stop()
    }

    /// Starts the kubelet again, in a new cgroup of the same name.
    pub(super) fn start_kubelet(&mut self) -> Result<()> {
        self.kubelet()?.start()
    }

    fn kubelet(&mut self) -> Result<&mut Daemon> {
        let kubelet = self.daemons.iter_mut().find(|daemon| daemon.program == "kubelet");
        kubelet.context("the node has no kubelet")
    }
}

/// What a node will be.
struct Plan<'a> {
    name: &'static str,
    /// The last part of its address, and the third of its pods'.
    octet: u8,
    /// The name of its namespace and cgroups.
    place: String,
    api: &'a ApiServer,
    programs: &'a Programs,
}

impl Plan<'_> {
    fn address(&self) -> String {
        self.api.ground().node(self.octet)
    }

    fn pods(&self, octet: u8) -> String {
        self.api.ground().pods(octet)
    }

    fn folder(&self) -> PathBuf {
        self.api.folder().join(self.name)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    fn kubeconfig(&self, user: &str) -> PathBuf {
        self.api.folder().join(format!("pki/{user}.conf"))
    }

    /// Wires the node to the bridge; pods of the other node are reached by that node.
    fn network(&self) -> Result<Netns> {
        let netns = Netns::create(&self.place)?;
        let outside = self.api.netns();
        let wire = format!("node-{}", self.name);
        outside.ip(&["link", "add", &wire, "type", "veth", "peer", "name", "eth0", "netns", netns.name()])?;
        outside.ip(&["link", "set", &wire, "master", BRIDGE, "up"])?;
        netns.ip(&["address", "add", &format!("{}/24", self.address()), "dev", "eth0"])?;
        netns.ip(&["link", "set", "eth0", "up"])?;
        netns.ip(&["route", "add", "default", "via", &self.api.ground().control_plane()])?;
        netns.sysctl(&["net.ipv4.ip_forward=1"])?;
        outside.ip(&["route", "add", &self.pods(self.octet), "via", &self.address()])?;
        for other in (11..).take(super::NODES.len()).filter(|octet| *octet != self.octet) {
            let via = self.api.ground().node(other);
            netns.ip(&["route", "add", &self.pods(other), "via", &via])?;
        }
        Ok(netns)
    }

    /// Configuration, certificates and CNI plugins.
    fn files(&self) -> Result<()> {
        let pki = self.api.pki();
        let kubelet = format!("kubelet-{}", self.name);
        let serves = format!("IP:{},DNS:{}", self.address(), self.name);
        pki.issue(&kubelet, &format!("system:node:{}", self.name), "system:nodes", &serves)?;
        pki.kubeconfig(&kubelet, &self.api.url())?;
        let folder = self.folder();
        let (net, bin) =
            (tools::node_layer(&folder, "/etc/cni/net.d"), tools::node_layer(&folder, "/opt/cni/bin"));
        for folder in [&net, &bin] {
            fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        for plugin in CNI_PLUGINS {
            fs::copy(self.programs.path(plugin), bin.join(plugin)).with_context(|| plugin.to_owned())?;
        }
        fs::write(net.join("10-pods.conflist"), format!("{:#}\n", self.conflist()))?;
        fs::write(self.file("resolv.conf"), "")?;
        fs::write(self.file("containerd.toml"), containerd())?;
        fs::write(self.file("kubelet.json"), self.kubelet(&kubelet).to_string())?;
        Ok(())
    }

    fn conflist(&self) -> serde_json::Value {
        json!({
            "cniVersion": "1.0.0",
            "name": "pods",
            "plugins": [{
                "type": "ptp",
                "ipMasq": false,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{ "subnet": self.pods(self.octet) }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            }],
        })
    }

    fn kubelet(&self, certificate: &str) -> serde_json::Value {
        let pki = self.api.pki();
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": self.address(),
            "authentication": { "anonymous": { "enabled": false }, "x509": { "clientCAFile": pki.ca() } },
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": format!("/{}", self.place),
            "clusterDNS": [self.api.ground().control_plane()],
            "clusterDomain": "cluster.local",
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "failCgroupV1": false,
            "failSwapOn": false,
            "resolvConf": self.file("resolv.conf"),
            "tlsCertFile": pki.certificate(certificate),
            "tlsPrivateKeyFile": pki.key(certificate),
            // A developer's disk is fuller than a node's may be.
            "evictionHard": {
                "memory.available": "100Mi", "nodefs.available": "0%", "imagefs.available": "0%",
                "nodefs.inodesFree": "0%", "imagefs.inodesFree": "0%",
            },
            "imageGCHighThresholdPercent": 100,
            "localStorageCapacityIsolation": false,
            // An agent that is killed in a test is started again at once, every time.
            "crashLoopBackOff": { "maxContainerRestartPeriod": "1s" },
            // So many of a test, and ambit's own beside them.
            "maxPods": 253,
            "registryPullQPS": 0,
            "kubeAPIQPS": 100,
            "kubeAPIBurst": 200,
        })
    }

    fn boot(&self, netns: &Netns) -> Result<Process> {
        let mut init = netns.command("unshare");
        init.args(["--mount", "--pid", "--fork", "--kill-child", "--propagation", "private", "--"]);
        init.arg(std::env::current_exe().context("own executable")?);
        init.args(["tool", "node-init", "--folder"]).arg(self.folder());
        let mut init = api_server::spawn(self.api.folder(), &format!("init-{}", self.name), &mut init)?;
        init.wait_for("ready", Duration::from_secs(10))?;
        Ok(init)
    }
}

fn containerd() -> String {
    let cri = "plugins.\"io.containerd.cri.v1";
    format!(
        "version = 3\n\
         [{cri}.images\".pinned_images]\nsandbox = \"{POD_IMAGE}\"\n\
         [{cri}.runtime\"]\nrestrict_oom_score_adj = true\n\
         [{cri}.runtime\".containerd]\ndefault_runtime_name = \"runc\"\n\
         [{cri}.runtime\".containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n"
    )
}
