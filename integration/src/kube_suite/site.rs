//! The cluster of the tests, ambit in it as the chart installs it, and what tests do there.

mod logs;
mod network;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

pub(super) use self::network::Load;
use super::{Plan, Pod};
use crate::{
    cgroups,
    cluster::{Cluster, Programs},
    process::{self, Finished, eventually},
    sandbox::Sandbox,
};

/// The release, and the namespace that the chart is for.
pub(super) const RELEASE: &str = "ambit";
pub(super) const SYSTEM: &str = "ambit-system";
/// The label that opts a namespace in, and its value.
const OPT_IN: (&str, &str) = ("ambit.dev/dataplane", "enabled");
/// How soon a label or a policy has to be in force: a second, and an allowance for the probe that finds out.
pub(super) const IN_FORCE: Duration = Duration::from_secs(3);
pub(super) const SECOND: Duration = Duration::from_secs(1);

/// What is put to the test, and what it runs on.
#[derive(Clone, Debug, clap::Args)]
pub struct Kit {
    /// The folder of Kubernetes' programs and their like.
    #[arg(long)]
    pub programs: Programs,
    /// The folder of ambit's chart.
    #[arg(long)]
    pub chart: PathBuf,
    /// ambit's image, as a docker-archive.
    #[arg(long)]
    pub image: PathBuf,
    /// Settings of the chart beside the fitting ones, each `key=value`.
    #[arg(long = "set")]
    pub settings: Vec<String>,
}

impl Kit {
    /// The daemon out of the image, as a file in `folder`.
    pub(super) fn binary(&self, folder: &Path) -> Result<PathBuf> {
        let binary = folder.join("ambit");
        let mut image = tar::Archive::new(File::open(&self.image).context("the image")?);
        for layer in image.entries()? {
            let layer = layer?;
            if layer.path()?.extension().is_none_or(|extension| extension != "tar") {
                continue;
            }
            for file in tar::Archive::new(layer).entries()? {
                let mut file = file?;
                if file.path()?.as_os_str() == "ambit" {
                    file.unpack(&binary).with_context(|| binary.display().to_string())?;
                    return Ok(binary);
                }
            }
        }
        bail!("{} has no /ambit", self.image.display())
    }
}

/// How a message went from node to node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// Readable.
    Plaintext,
    /// In TLS, to the application's own address and port.
    Tls,
}

/// A running cluster.
#[derive(Debug)]
pub struct Site {
    /// The cluster.
    pub cluster: Cluster,
    /// What is being tested.
    pub kit: Kit,
    sandbox: Sandbox,
    installed: bool,
    imported: bool,
    namespaces: Vec<String>,
    named: usize,
    notes: Vec<String>,
}

impl Site {
    /// Brings a cluster up, without ambit.
    pub fn up(sandbox: &Sandbox, kit: &Kit, name: &str) -> Result<Self> {
        Ok(Self::of(Cluster::up(sandbox, &kit.programs, name)?, sandbox, kit))
    }

    /// Brings another cluster up, of one node, whose pods reach those of this one by their own addresses.
    pub(super) fn beside(&self, name: &str) -> Result<Self> {
        let other = self.cluster.beside(&self.sandbox, &self.kit.programs, name)?;
        Ok(Self::of(other, &self.sandbox, &self.kit))
    }

    fn of(cluster: Cluster, sandbox: &Sandbox, kit: &Kit) -> Self {
        Self {
            cluster,
            kit: kit.clone(),
            sandbox: sandbox.clone(),
            installed: false,
            imported: false,
            namespaces: Vec::new(),
            named: 0,
            notes: Vec::new(),
        }
    }

    /// Installs ambit by Helm where it is not; returns when agents and CA are ready.
    pub fn install(&mut self, settings: &[&str]) -> Result<()> {
        if self.installed {
            return Ok(());
        }
        if !self.imported {
            self.cluster.import(&self.kit.image).context("bringing the image to the nodes")?;
            self.imported = true;
        }
        self.helm_release("install", &["--create-namespace"], settings)?;
        self.installed = true;
        Ok(())
    }

    /// Installs ambit by Helm without waiting for what is not ready.
    pub fn install_without_waiting(&mut self, settings: &[&str]) -> Result<()> {
        if !self.imported {
            self.cluster.import(&self.kit.image).context("bringing the image to the nodes")?;
            self.imported = true;
        }
        let chart = self.kit.chart.display().to_string();
        let fitting = self.settings()?;
        let set = fitting.iter().map(String::as_str).chain(settings.iter().copied());
        let set: Vec<&str> = set.flat_map(|setting| ["--set", setting]).collect();
        self.helm(&[["install", RELEASE, &chart, "-n", SYSTEM].as_slice(), &set].concat())?;
        self.installed = true;
        Ok(())
    }

    /// `helm upgrade` with these settings beside the usual ones; returns when everything is ready again.
    pub fn upgrade(&self, settings: &[&str]) -> Result<()> {
        self.helm_release("upgrade", &[], settings)
    }

    /// Takes ambit off by Helm where it is; returns when its pods have ended.
    pub fn uninstall(&mut self) -> Result<()> {
        if !self.installed {
            return Ok(());
        }
        self.helm(&["uninstall", RELEASE, "-n", SYSTEM, "--wait", "--timeout", "120s"])?;
        eventually(Duration::from_secs(60), || {
            let left = self.cluster.api.kubectl(&["get", "pods", "-n", SYSTEM, "-o", "name"])?;
            ensure!(left.trim().is_empty(), "still there: {left}");
            Ok(())
        })?;
        self.cluster.api.kubectl(&["delete", "namespace", SYSTEM, "--timeout=60s"])?;
        self.installed = false;
        Ok(())
    }

    /// ambit was taken off by other means than Helm's.
    pub(super) fn forget_installation(&mut self) {
        self.installed = false;
    }

    /// helm as the administrator, for at most three minutes; its output.
    pub fn helm(&self, arguments: &[&str]) -> Result<String> {
        let mut helm = self.cluster.access().helm();
        process::run(helm.args(arguments), Duration::from_secs(180))?.ok()
    }

    /// The settings of the chart that fit this cluster.
    pub fn settings(&self) -> Result<Vec<String>> {
        let reference = reference(&self.kit.image)?;
        let (repository, tag) = reference.rsplit_once(':').context("the image's name has no tag")?;
        let cgroups = cgroups::unified()?;
        let fitting = [
            format!("image.repository={repository}"),
            format!("image.tag={tag}"),
            "image.pullPolicy=Never".to_owned(),
            "log.format=text".to_owned(),
            format!("cgroupRoot={}", cgroups.display()),
        ];
        Ok([fitting.as_slice(), &self.kit.settings].concat())
    }

    fn helm_release(&self, verb: &str, flags: &[&str], settings: &[&str]) -> Result<()> {
        let chart = self.kit.chart.display().to_string();
        let mut arguments = vec![verb, RELEASE, &chart, "-n", SYSTEM, "--wait", "--timeout", "120s"];
        arguments.extend(flags);
        let fitting = self.settings()?;
        for setting in fitting.iter().map(String::as_str).chain(settings.iter().copied()) {
            arguments.extend(["--set", setting]);
        }
        let done = self.helm(&arguments);
        done.map(drop).with_context(|| format!("helm {verb}: {}", self.told_by_pods(SYSTEM)))
    }

    /// Makes a namespace, in the mesh or not; it goes when the test ends.
    pub fn namespace(&mut self, meshed: bool) -> Result<String> {
        self.named += 1;
        let name = format!("t{}", self.named);
        self.own_namespace(&name)?;
        if meshed {
            self.opt_in(&name)?;
        }
        // A pod is refused until its service account is there.
        eventually(Duration::from_secs(10), || {
            self.cluster.api.kubectl(&["get", "serviceaccount", "default", "-n", &name])
        })?;
        Ok(name)
    }

    /// Makes a namespace of this name; it goes when the test ends.
    pub(super) fn own_namespace(&mut self, name: &str) -> Result<()> {
        self.namespaces.push(name.to_owned());
        self.apply(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } }))
    }

    /// Labels a namespace so that its pods are in the mesh.
    pub fn opt_in(&self, namespace: &str) -> Result<()> {
        let label = format!("{}={}", OPT_IN.0, OPT_IN.1);
        self.cluster.api.kubectl(&["label", "namespace", namespace, &label, "--overwrite"]).map(drop)
    }

    /// Takes that label off.
    pub fn opt_out(&self, namespace: &str) -> Result<()> {
        self.cluster.api.kubectl(&["label", "namespace", namespace, &format!("{}-", OPT_IN.0)]).map(drop)
    }

    /// Sets the mode of a whole namespace.
    pub fn peer_authentication(&self, namespace: &str, mode: &str) -> Result<()> {
        self.apply(&json!({
            "apiVersion": "security.istio.io/v1",
            "kind": "PeerAuthentication",
            "metadata": { "name": "default", "namespace": namespace },
            "spec": { "mtls": { "mode": mode } },
        }))
    }

    /// The API server must not take this object, and must say which field of its `spec` is why.
    pub(super) fn must_refuse(&self, what: &str, object: &Value) -> Result<()> {
        let done = self.cluster.api.try_kubectl(&["create", "-f", "-"], &object.to_string())?;
        ensure!(!done.status.success(), "{what} was taken: {object}");
        ensure!(done.stderr.contains("spec"), "the refusal of {what} does not say where: {}", done.stderr);
        Ok(())
    }

    /// Creates or changes an object, or a list of them.
    pub fn apply(&self, object: &Value) -> Result<()> {
        self.cluster.api.apply(&object.to_string())
    }

    /// Creates pods and waits until they are ready.
    pub fn pods<const N: usize>(&self, namespace: &str, plans: &[Plan; N]) -> Result<[Pod; N]> {
        let items: Vec<Value> = plans.iter().map(|plan| plan.manifest(namespace)).collect();
        self.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": items }))?;
        self.wait_ready(namespace)?;
        let names = items.iter().map(|item| item["metadata"]["name"].as_str().unwrap_or_default());
        let pods: Result<Vec<Pod>> = names.map(|name| self.pod(namespace, name)).collect();
        pods?.try_into().map_err(|_| anyhow::anyhow!("another number of pods"))
    }

    /// Waits until every pod of a namespace is ready. After an outage of the API the scheduler and the kubelets may take a
    /// minute to watch again: client-go's reflectors back off up to 30 s, doubled by jitter.
    pub fn wait_ready(&self, namespace: &str) -> Result<()> {
        let wait = ["wait", "--for=condition=Ready", "pod", "--all", "--timeout=110s", "-n", namespace];
        self.cluster.api.kubectl(&wait).map(drop).with_context(|| self.told_by_pods(namespace))
    }

    /// What the API tells of a pod now.
    pub fn pod(&self, namespace: &str, name: &str) -> Result<Pod> {
        Pod::read(&self.cluster.api.json(&["get", "pod", name, "-n", namespace])?)
    }

    /// The pods with a label `app`.
    pub fn pods_of(&self, namespace: &str, app: &str) -> Result<Vec<Pod>> {
        let list = self.cluster.api.json(&["get", "pods", "-n", namespace, "-l", &format!("app={app}")])?;
        list["items"].as_array().into_iter().flatten().map(Pod::read).collect()
    }

    /// The agent's pod on a node.
    pub fn agent(&self, node: &str) -> Result<Pod> {
        let on = format!("spec.nodeName={node}");
        let list = self.cluster.api.json(&["get", "pods", "-n", SYSTEM, "--field-selector", &on])?;
        let agents = list["items"].as_array().into_iter().flatten();
        let mut agents = agents.filter(|pod| {
            pod["metadata"]["ownerReferences"][0]["kind"] == "DaemonSet"
                && pod["metadata"]["deletionTimestamp"].is_null()
        });
        Pod::read(agents.next().with_context(|| format!("no agent runs on node {node}"))?)
    }

    /// A subcommand of `ambit` in the agent's container on a node.
    pub fn ambit(&self, node: &str, arguments: &[&str]) -> Result<Finished> {
        let agent = self.agent(node)?;
        let exec = ["exec", "-n", SYSTEM, &agent.name, "--", "/ambit"];
        self.cluster.api.try_kubectl(&[exec.as_slice(), arguments].concat(), "")
    }

    /// What the agents of all nodes have logged since they started.
    pub fn agents_log(&self) -> Result<String> {
        let logs = self.cluster.nodes().map(|node| {
            let agent = self.agent(node)?;
            self.cluster.api.kubectl(&["logs", "-n", SYSTEM, &agent.name])
        });
        Ok(logs.collect::<Result<Vec<_>>>()?.concat())
    }

    /// The agent's process on a node, as this machine counts it.
    pub fn agent_process(&self, node: &str) -> Result<i32> {
        let agent = self.agent(node)?;
        let processes = self.cluster.access().processes(node, &agent.uid)?;
        // Probes are `ambit` by name, too.
        let is_agent = |process: &i32| {
            let told = |what| fs::read_to_string(format!("/proc/{process}/{what}")).unwrap_or_default();
            told("comm").trim() == "ambit" && told("cmdline").split('\0').nth(1) == Some("agent")
        };
        let found = processes.into_iter().find(is_agent);
        found.with_context(|| format!("pod {} on node {node} runs no ambit", agent.name))
    }

    /// Sends SIGKILL to the agent of a node.
    pub fn kill_agent(&self, node: &str) -> Result<()> {
        kill(Pid::from_raw(self.agent_process(node)?), Signal::SIGKILL).context("kill")
    }

    /// Sends SIGKILL to all of a pod, its sandbox included: the kubelet makes a new one, in a new network namespace.
    pub fn kill_pod(&self, pod: &Pod) -> Result<()> {
        for process in self.cluster.access().processes(&pod.node, &pod.uid)? {
            // One that has ended meanwhile is no error.
            let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
        }
        Ok(())
    }

    /// Gives the image another tag on every node; returns it.
    pub fn tag_image(&self, tag: &str) -> Result<String> {
        let reference = reference(&self.kit.image)?;
        let (repository, _) = reference.rsplit_once(':').context("the image's name has no tag")?;
        for node in self.cluster.nodes() {
            let mut ctr = self.cluster.access().on_node(node, self.kit.programs.path("ctr"))?;
            let other = format!("{repository}:{tag}");
            process::must(ctr.args(["-n", "k8s.io", "images", "tag", "--force", &reference, &other]))?;
        }
        Ok(tag.to_owned())
    }

    /// Tells a figure that whoever runs the test should see.
    pub fn note(&mut self, text: String) {
        self.notes.push(text);
    }

    /// The figures told since the last call.
    pub(super) fn notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// Deletes what the test has made.
    pub(super) fn clear(&mut self) -> Result<()> {
        for namespace in std::mem::take(&mut self.namespaces) {
            self.cluster.api.kubectl(&["delete", "namespace", &namespace, "--wait=false"])?;
        }
        Ok(())
    }

    /// Takes the cluster down, with what is in it.
    pub fn down(self) -> Result<()> {
        self.cluster.down()
    }
}

/// The name that an image bears in its archive.
fn reference(image: &Path) -> Result<String> {
    let mut archive = tar::Archive::new(File::open(image).with_context(|| image.display().to_string())?);
    for entry in archive.entries()? {
        let entry = entry?;
        if entry.path()?.as_os_str() == "manifest.json" {
            let manifest: Value = serde_json::from_reader(entry)?;
            let name = manifest[0]["RepoTags"][0].as_str();
            return name.map(str::to_owned).with_context(|| format!("{} bears no name", image.display()));
        }
    }
    bail!("{} is no docker-archive: it has no manifest.json", image.display())
}
