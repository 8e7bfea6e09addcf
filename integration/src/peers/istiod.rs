//! A real istiod on a real API server: Istio's own certificate service, with the pods of a scene known to Kubernetes.
//!
//! istiod runs as a process in the API server's namespace, with a wire to each node of the scene. Its settings are those of
//! Istio's reference (`pilot-discovery`, istio.io/latest/docs/reference/commands/pilot-discovery).

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    cluster::ApiServer,
    load,
    netns::Netns,
    process::{self, Process, eventually},
    tools::Answer,
    topology::{MESHED, Node},
    world::World,
};

use super::Stage;

/// Where istiod and the agents' pods are.
const SYSTEM: &str = "istio-system";
/// The service account that may ask for others.
const ACCOUNT: &str = "ambit";
/// The name in istiod's own certificate.
const SERVER_NAME: &str = "istiod.istio-system.svc";
const PORT: u16 = 15012;
/// The audience that istiod asks of tokens.
const AUDIENCE: &str = "istio-ca";
/// What istiod calls the cluster that it runs in, and agents by default theirs.
const CLUSTER: &str = "Kubernetes";
const START_LIMIT: Duration = Duration::from_secs(60);

/// istiod, running or not, over an API server of its own; dropping it kills both.
#[derive(Debug)]
pub(super) struct Istiod {
    program: PathBuf,
    api: ApiServer,
    folder: PathBuf,
    /// Whether it takes the agents for such as may ask for others.
    trusting: bool,
    process: Option<Process>,
}

impl Istiod {
    /// Starts the API server, tells it of the pods of `world` and of an agent's pod on each node, and starts istiod.
    pub(super) fn start(stage: &Stage<'_>, world: &World) -> Result<Self> {
        Self::start_with(stage, world, true)
    }

    /// As [`Istiod::start`]; `trusting` or not, it knows the agents as those who may ask for others.
    pub(super) fn start_with(stage: &Stage<'_>, world: &World, trusting: bool) -> Result<Self> {
        let folder = world.folder.join("istiod");
        fs::create_dir_all(&folder)?;
        let api = ApiServer::start(stage.sandbox, &stage.kit.kube_programs, &format!("{}-api", stage.name))?;
        let program = stage.kit.programs.path("pilot-discovery");
        let mut istiod = Self { program, api, folder, trusting, process: None };
        for (number, node) in world.topology.nodes.iter().enumerate() {
            wire(istiod.api.netns(), number, node)?;
        }
        istiod.tell_of_pods(world)?;
        istiod.resume()?;
        eventually(START_LIMIT, || fs::write(istiod.root(), istiod.published()?).context("the root"))?;
        for (number, node) in world.topology.nodes.iter().enumerate() {
            let token = istiod.api.token(SYSTEM, ACCOUNT, AUDIENCE, Some(&agent_pod(node)))?;
            fs::write(istiod.token(number), token)?;
        }
        Ok(istiod)
    }

    /// Starts istiod where it does not run; returns when it serves.
    pub(super) fn resume(&mut self) -> Result<()> {
        if self.process.is_none() {
            let mut command = self.command();
            self.process = Some(Process::start(&mut command, &self.folder.join("istiod.log"))?);
        }
        let process = self.process.as_mut().context("istiod was not started")?;
        eventually(START_LIMIT, || {
            ensure!(process.runs(), "istiod has ended: {}", process::tail(&process.output()));
            let mut curl = self.api.netns().command("curl");
            process::must(curl.args(["-sS", "-f", "-m", "2", "http://127.0.0.1:15080/ready"])).map(drop)
        })
        .with_context(|| format!("istiod is not ready: {}", process::tail(&process.output())))
    }

    /// Starts it again as one that knows the agents.
    pub(super) fn trust_agents(&mut self) -> Result<()> {
        self.kill();
        self.trusting = true;
        self.resume()
    }

    /// Kills istiod; the API server stays.
    pub(super) fn kill(&mut self) {
        self.process = None;
    }

    /// Makes the agents of `world` ask this istiod. Before they are started.
    pub(super) fn serve_agents(&self, world: &mut World) {
        for (number, agent) in world.agents.iter_mut().enumerate() {
            agent.add_flags(&["--issuer", "istio", "--ca-server-name", SERVER_NAME]);
            agent.add_flags(&["--ca-address", &format!("{}:{PORT}", addresses(number).0)]);
            agent.add_flags(&["--ca-root", &self.root().display().to_string()]);
            agent.add_flags(&["--ca-token-file", &self.token(number).display().to_string()]);
        }
    }

    /// Asks by hand, with the token of a node's agent, for `identity`.
    pub(super) fn ask(&self, number: usize, csr: &Path, identity: &str) -> Result<Answer> {
        let mut command: Command = load::tool(self.api.netns())?;
        let to = format!("{}:{PORT}", addresses(number).0);
        command.args(["create-certificate", "--to", &to, "--server-name", SERVER_NAME]);
        command.arg("--root").arg(self.root()).arg("--csr").arg(csr);
        command.args(["--identity", identity, "--cluster-id", CLUSTER, "--ttl", "60", "--token"]);
        command.arg(self.token(number));
        let text = process::run(&mut command, Duration::from_secs(30))?.ok()?;
        serde_json::from_str(&text).context("the answer of create-certificate")
    }

    /// The roots of what istiod issues, as it has published them.
    pub(super) fn root(&self) -> PathBuf {
        self.folder.join("root.pem")
    }

    /// Takes the API server's namespace away, with what runs in it.
    pub(super) fn remove(mut self) -> Result<()> {
        self.kill();
        let netns = self.api.netns().clone();
        drop(self);
        netns.delete()
    }

    fn token(&self, number: usize) -> PathBuf {
        self.folder.join(format!("token-{number}"))
    }

    /// istiod keeps its own CA in a Secret, so that it is the same one after a restart.
    fn published(&self) -> Result<String> {
        let secret = self.api.json(&["get", "secret", "istio-ca-secret", "-n", SYSTEM])?;
        let encoded = secret["data"]["ca-cert.pem"].as_str().context("the Secret has no ca-cert.pem")?;
        let mut openssl = Command::new("openssl");
        let decoded =
            process::run_with_input(openssl.args(["base64", "-d", "-A"]), encoded, Duration::from_secs(10))?;
        decoded.ok()
    }

    fn command(&self) -> Command {
        let mut command = self.api.netns().command(&self.program);
        command.args(["discovery", "--kubeconfig"]).arg(self.api.admin());
        command.args(["--httpAddr", "127.0.0.1:15080", "--grpcAddr", "", "--httpsAddr", ""]);
        command.args(["--secureGRPCAddr", &format!(":{PORT}"), "--monitoringAddr", "127.0.0.1:15014"]);
        command.args(["--ctrlz_port", "0", "--namespace", SYSTEM]);
        if self.trusting {
            command.env("CA_TRUSTED_NODE_ACCOUNTS", format!("{SYSTEM}/{ACCOUNT}"));
        }
        // Certificates only: nothing is injected, validated or analysed.
        command.env("INJECT_ENABLED", "false").env("VALIDATION_WEBHOOK_CONFIG_NAME", "");
        command.env("POD_NAMESPACE", SYSTEM).env("POD_NAME", "istiod-0").env("REVISION", "default");
        // Files that it looks for are named relative to where it runs.
        command.current_dir(&self.folder);
        command
    }

    /// Namespaces, service accounts and pods, on the nodes where the scene has them. No kubelet runs: that a pod exists and
    /// where is all that a node's agent needs to be given its certificate.
    fn tell_of_pods(&self, world: &World) -> Result<()> {
        let agents = world.topology.nodes.iter().map(|node| (SYSTEM, agent_pod(node), ACCOUNT, &node.name));
        let pods = world.topology.pods.iter().filter(|pod| pod.namespace == MESHED).map(|pod| {
            let node = &world.topology.nodes[pod.node];
            (pod.namespace, pod.name.to_owned(), pod.service_account, &node.name)
        });
        let mut objects = Vec::new();
        let mut later = Vec::new();
        for namespace in [SYSTEM, MESHED] {
            objects
                .push(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": namespace } }));
        }
        for (namespace, name, account, node) in agents.chain(pods) {
            let metadata = |name: &str| json!({ "name": name, "namespace": namespace });
            objects
                .push(json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(account) }));
            later.push(json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata(&name), "spec": {
                "nodeName": node, "serviceAccountName": account,
                "containers": [{ "name": "main", "image": "example.invalid/main:1" }],
            } }));
        }
        let list =
            |items: Vec<Value>| json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string();
        self.api.apply(&list(objects))?;
        self.api.apply(&list(later))
    }
}

/// The pod whose token a node's agent has.
fn agent_pod(node: &Node) -> String {
    format!("agent-{}", node.name)
}

/// The addresses of the two ends of a node's wire to istiod: istiod's, and the node's.
fn addresses(number: usize) -> (String, String) {
    let first = number * 4 + 1;
    (format!("198.18.3.{first}"), format!("198.18.3.{}", first + 1))
}

/// A link of its own between a node of the scene and the namespace of the API server, whose other networks do not meet.
fn wire(control_plane: &Netns, number: usize, node: &Node) -> Result<()> {
    let (here, there) = addresses(number);
    let name = format!("node{number}");
    let peer = ["peer", "name", "istiod", "netns", node.netns.name()];
    control_plane.ip(&[["link", "add", name.as_str(), "type", "veth"].as_slice(), &peer].concat())?;
    control_plane.ip(&["address", "add", &format!("{here}/30"), "dev", &name])?;
    control_plane.ip(&["link", "set", &name, "up"])?;
    node.netns.ip(&["address", "add", &format!("{there}/30"), "dev", "istiod"])?;
    node.netns.ip(&["link", "set", "istiod", "up"]).map(drop)
}
