//! The cluster of the tests, ambit in it as the chart installs it, and what tests do there.

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Plan, Pod};
use crate::{
    capture::{Capture, is_tls},
    cgroups,
    cluster::{Cluster, NODES, Programs},
    load::ports,
    process::{self, Finished, Process, eventually},
    sandbox::Sandbox,
    suite::marker,
    tools::{Attempt, Tally},
};

/// The release, and the namespace that the chart is for.
pub(super) const RELEASE: &str = "ambit";
pub(super) const SYSTEM: &str = "ambit-system";
/// kubectl's words for what every container of ambit has logged.
const LOGS: [&str; 8] = [
    "logs",
    "-n",
    SYSTEM,
    "-l",
    "app.kubernetes.io/instance=ambit",
    "--prefix",
    "--all-containers",
    "--ignore-errors",
];
/// The label that opts a namespace in, and its value.
const OPT_IN: (&str, &str) = ("ambit.dev/dataplane", "enabled");
/// How soon a label or a policy has to be in force: a second, and an allowance for the probe that finds out.
pub(super) const IN_FORCE: Duration = Duration::from_secs(3);
pub(super) const SECOND: Duration = Duration::from_secs(1);

/// What is put to the test, and what it runs on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Kit {
    /// Kubernetes and its like.
    pub programs: Programs,
    /// The folder of ambit's chart.
    pub chart: PathBuf,
    /// ambit's image, as a docker-archive.
    pub image: PathBuf,
    /// Settings of the chart beside the fitting ones, each `key=value`.
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
    installed: bool,
    imported: bool,
    namespaces: Vec<String>,
    named: usize,
    notes: Vec<String>,
}

impl Site {
    /// Brings a cluster up, without ambit.
    pub fn up(sandbox: &Sandbox, kit: &Kit, name: &str) -> Result<Self> {
        let cluster = Cluster::up(sandbox, &kit.programs, name)?;
        let kit = kit.clone();
        Ok(Self {
            cluster,
            kit,
            installed: false,
            imported: false,
            namespaces: Vec::new(),
            named: 0,
            notes: Vec::new(),
        })
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
        self.apply(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } }))?;
        self.namespaces.push(name.clone());
        if meshed {
            self.opt_in(&name)?;
        }
        // A pod is refused until its service account is there.
        eventually(Duration::from_secs(10), || {
            self.cluster.api.kubectl(&["get", "serviceaccount", "default", "-n", &name])
        })?;
        Ok(name)
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

    /// Waits until every pod of a namespace is ready.
    pub fn wait_ready(&self, namespace: &str) -> Result<()> {
        let wait = ["wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s", "-n", namespace];
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

    /// What the agents of both nodes have logged since they started.
    pub fn agents_log(&self) -> Result<String> {
        let logs = NODES.iter().map(|node| {
            let agent = self.agent(node)?;
            self.cluster.api.kubectl(&["logs", "-n", SYSTEM, &agent.name])
        });
        Ok(logs.collect::<Result<Vec<_>>>()?.concat())
    }

    /// A program of this machine in a pod's network namespace; the API is not asked.
    pub fn in_pod(&self, pod: &Pod, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        self.cluster.access().in_pod(&pod.node, &pod.uid, program)
    }

    /// One of the harness's own tools in a pod's network namespace.
    pub fn tool(&self, pod: &Pod, arguments: &[&str]) -> Result<Command> {
        let mut command = self.in_pod(pod, std::env::current_exe().context("own executable")?)?;
        command.arg("tool").args(arguments);
        Ok(command)
    }

    /// A tool that goes on in the background; its log is named after `name`.
    pub fn start_tool(&self, pod: &Pod, name: &str, arguments: &[&str]) -> Result<Load> {
        let log = self.cluster.folder().join(format!("{}-{}-{name}.log", pod.namespace, pod.name));
        Ok(Load(Process::start(&mut self.tool(pod, arguments)?, &log)?))
    }

    /// curl by a container of a pod itself, names resolved as it does.
    pub fn curl(&self, pod: &Pod, arguments: &[&str]) -> Result<Finished> {
        let exec = ["exec", "-n", &pod.namespace, &pod.name, "--", "curl", "-sS", "-m", "10"];
        self.cluster.api.try_kubectl(&[exec.as_slice(), arguments].concat(), "")
    }

    /// One connection from a pod.
    pub fn connect(&self, pod: &Pod, to: impl Into<SocketAddr>, flags: &[&str]) -> Result<Attempt> {
        let to = to.into().to_string();
        let mut command = self.tool(pod, &[["connect", "--to", &to].as_slice(), flags].concat())?;
        let text = process::run(&mut command, Duration::from_secs(15))?.ok()?;
        serde_json::from_str(&text).context("the answer of the tool connect")
    }

    /// Bits a second of iperf3 as its receiver counted them, for `seconds`.
    pub fn iperf(&self, from: &Pod, to: &Pod, seconds: u32) -> Result<f64> {
        let mut command = self.in_pod(from, "iperf3")?;
        let (to, port, time) = (to.ip.to_string(), ports::IPERF.to_string(), seconds.to_string());
        command.args(["-J", "-c", &to, "-p", &port, "-t", &time]);
        let done = process::run(&mut command, Duration::from_secs(u64::from(seconds) + 20))?;
        let report: Value = serde_json::from_str(&done.stdout).with_context(|| done.told())?;
        ensure!(report["error"].is_null() && done.status.success(), "iperf3: {}", report["error"]);
        report["end"]["sum_received"]["bits_per_second"].as_f64().context("iperf3 told no rate")
    }

    /// Demands that `from` reaches `to`, and that `to` sees the address of `from`.
    pub fn must_reach(&self, from: &Pod, to: &Pod) -> Result<()> {
        let attempt = self.connect(from, (to.ip, ports::WHOAMI), &["--send", "hello"])?;
        let seen = format!("peer {}:", from.ip);
        ensure!(attempt.received.starts_with(&seen), "{} does not reach {}: {attempt:?}", from.name, to.name);
        Ok(())
    }

    /// Demands that `from` is turned away by `to` at once, with nothing received.
    pub fn must_not_reach(&self, from: &Pod, to: &Pod) -> Result<()> {
        let attempt = self.connect(from, (to.ip, ports::WHOAMI), &["--send", "hello"])?;
        let error = attempt.error.as_deref().unwrap_or("none");
        let refused = ["ConnectionRefused", "ConnectionReset"].contains(&error);
        ensure!(
            attempt.received.is_empty() && refused && attempt.took_ms <= 1_000,
            "{} should be refused by {} within a second: {attempt:?}",
            from.name,
            to.name
        );
        Ok(())
    }

    /// Sends a message from `from` to `to` on the other node and looks at it on the wire between them.
    pub fn wire(&self, from: &Pod, to: &Pod) -> Result<Wire> {
        let capture = self.capture(&from.node, "wire")?;
        let text = marker("wire");
        let attempt = self.connect(from, (to.ip, ports::WHOAMI), &["--send", &text])?;
        let seen = capture.stop()?;
        let known = attempt.received.starts_with(&format!("peer {}:", from.ip));
        ensure!(known, "{} does not reach {}: {attempt:?}", from.name, to.name);
        if seen.contains(&text) {
            return Ok(Wire::Plaintext);
        }
        // A tunnel that is used again sends no ClientHello; it still goes to the application's port.
        let target = (to.ip.into(), ports::WHOAMI);
        ensure!(
            seen.openings(target).iter().all(|bytes| is_tls(bytes)),
            "what went to {target:?} is neither plaintext nor TLS"
        );
        let carried = seen.packets.iter().any(|p| p.destination == target && !p.payload.is_empty());
        ensure!(carried, "nothing went from node to node to {target:?}");
        Ok(Wire::Tls)
    }

    /// Demands that messages go over the wire like that.
    pub fn must_go(&self, from: &Pod, to: &Pod, how: Wire) -> Result<()> {
        let went = self.wire(from, to)?;
        ensure!(went == how, "{} to {} went as {went:?}", from.name, to.name);
        Ok(())
    }

    /// Captures TCP on the wire of a node.
    pub fn capture(&self, node: &str, name: &str) -> Result<Capture> {
        let netns = self.cluster.access().netns(node)?;
        Capture::start(netns, "eth0", self.cluster.folder(), &format!("{name}-{node}"))
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

    /// Gives the image another tag on both nodes; returns it.
    pub fn tag_image(&self, tag: &str) -> Result<String> {
        let reference = reference(&self.kit.image)?;
        let (repository, _) = reference.rsplit_once(':').context("the image's name has no tag")?;
        for node in NODES {
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

    /// Keeps the logs of the cluster and of ambit in `folder`.
    pub(super) fn keep_logs(&self, folder: &Path) -> Result<PathBuf> {
        fs::create_dir_all(folder)?;
        for entry in fs::read_dir(self.cluster.folder())?.flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "log") {
                fs::copy(entry.path(), folder.join(entry.file_name()))?;
            }
        }
        let all = ["get", "pods,events,daemonsets,deployments", "-A", "-o", "wide"];
        let mut told = self
            .cluster
            .api
            .try_kubectl(&all, "")
            .map_or_else(|e| format!("{e:#}"), |f| f.stdout + &f.stderr);
        for argument in ["--previous=false", "--previous=true"] {
            let logs = [LOGS.as_slice(), &["--tail=-1", argument]].concat();
            told += &self
                .cluster
                .api
                .try_kubectl(&logs, "")
                .map_or_else(|e| format!("{e:#}"), |f| f.stdout + &f.stderr);
        }
        fs::write(folder.join("cluster.txt"), told)?;
        Ok(folder.to_owned())
    }

    /// Takes the cluster down, with what is in it.
    pub fn down(self) -> Result<()> {
        self.cluster.down()
    }

    /// States and last words of a namespace's pods, for messages.
    fn told_by_pods(&self, namespace: &str) -> String {
        let kubectl = |arguments: &[&str]| {
            self.cluster
                .api
                .try_kubectl(arguments, "")
                .map_or_else(|e| format!("{e:#}"), |f| f.stdout + &f.stderr)
        };
        let pods = kubectl(&["get", "pods", "-n", namespace, "-o", "wide"]);
        let events = kubectl(&["events", "-n", namespace, "--types=Warning"]);
        let logs = kubectl(&[LOGS.as_slice(), &["--tail=15"]].concat());
        format!("{pods}\n{}\n{}", process::tail(&events), process::tail(&logs))
    }
}

/// A tool in the background that tells its tally at its end.
#[derive(Debug)]
pub struct Load(Process);

impl Load {
    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.0.runs()
    }

    /// Waits for its end and demands success; returns what it printed.
    pub fn end(mut self, limit: Duration) -> Result<String> {
        let status = self.0.wait(limit)?;
        let output = self.0.output();
        ensure!(status.success(), "the load ended with {status}: {}", process::tail(&output));
        Ok(output)
    }

    /// Ends a tool that waits for the end of its input; returns its tally.
    pub fn stop(mut self) -> Result<Tally> {
        self.0.close_input();
        self.tally(Duration::from_secs(30))
    }

    /// The same, for tools that tell a tally.
    pub fn tally(self, limit: Duration) -> Result<Tally> {
        let output = self.end(limit)?;
        let line = output.lines().last().unwrap_or_default();
        serde_json::from_str(line).with_context(|| format!("no tally: {}", process::tail(&output)))
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
