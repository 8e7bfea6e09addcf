//! Agents of a cluster, asked from anywhere through the API server: found by node or pod, reached by port-forward. Needs no
//! way into the cluster but a kubeconfig that may list the agents' pods and forward ports to them.

use std::{io, str::FromStr, time::Duration};

use ambit_proto::admin::v1::{Party, StatusRequest, StatusResponse};
use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, Config,
    api::{ListParams, Portforwarder},
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::{runtime::Builder, sync::Semaphore, task::JoinSet, time::timeout};
use tonic::transport::Channel;

use super::ask::{Question, ask_over, channel_over};
use crate::{
    cluster::sentence,
    config::{DnsName, Location, Namespace, ObjectName},
};

/// The labels that the chart gives the agents' pods.
const AGENTS: &str = "app.kubernetes.io/name=ambit,app.kubernetes.io/component=agent";
/// The port of the chart's `--admin-addr`.
const DEFAULT_PORT: u16 = 15_022;
/// What it takes to ask.
const RIGHTS: &str = "it takes the rights of the chart's Role ambit-status-reader (list pods, get and create pods/portforward)";
/// Agents asked at once.
const AT_ONCE: usize = 16;
/// How long one agent has, connecting included.
const PATIENCE: Duration = Duration::from_secs(15);
/// Agents that are tried where any will do, and how long its answer may take.
const TRIED: usize = 3;
const ANSWERED: Duration = Duration::from_secs(30);

/// Which agents of which cluster.
#[derive(Debug, Args)]
#[command(next_help_heading = "Agents of a cluster, through its API")]
pub(super) struct Remote {
    /// Ask agents of the cluster in this kubeconfig, not the one of this machine
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<Location>,
    /// Ask agents of the cluster in this context of the kubeconfig
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// The cluster of the kubeconfig, if it is not the context's
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// The user of the kubeconfig, if it is not the context's
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Ask as this user, if the one of the kubeconfig may impersonate it
    #[arg(long = "as", value_name = "NAME")]
    impersonate: Option<String>,
    /// Only the agent of this node
    #[arg(long, value_name = "NAME")]
    node: Option<DnsName>,
    /// Only the agent of the node that this pod runs on
    #[arg(long, value_name = "[NAMESPACE/]NAME", conflicts_with = "node")]
    pod: Option<PodName>,
    /// The agents of every node; so it is without --node and --pod
    #[arg(long, conflicts_with_all = ["node", "pod"])]
    all_nodes: bool,
    /// Only what concerns pods of this namespace; also that of pods named without one
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<Namespace>,
    /// Pods of all namespaces; so it is without --namespace
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// The namespace that ambit is installed in
    #[arg(
        long,
        env = "AMBIT_NAMESPACE",
        hide_env_values = true,
        value_name = "NAME",
        default_value = "ambit-system"
    )]
    agent_namespace: Namespace,
    /// The port of the agents' --admin-addr
    #[arg(long, value_name = "PORT", default_value_t = DEFAULT_PORT)]
    admin_port: u16,
}

/// A pod as it is named on the command line.
#[derive(Clone, Debug)]
struct PodName {
    namespace: Option<String>,
    name: String,
}

impl FromStr for PodName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !text.contains('/') {
            let DnsName(name) = text.parse()?;
            return Ok(Self { namespace: None, name });
        }
        let ObjectName { namespace, name } = text.parse()?;
        Ok(Self { namespace: Some(namespace), name })
    }
}

/// What came of asking one agent.
pub(super) struct Answer<T = StatusResponse> {
    /// Its node.
    pub(super) node: String,
    /// What it said.
    pub(super) status: anyhow::Result<T>,
}

impl Remote {
    /// Whether a cluster is meant, and not the agent of this machine.
    pub(super) fn wanted(&self) -> bool {
        let named = self.kubeconfig.is_some() || self.context.is_some() || self.all_nodes;
        named || self.node.is_some() || self.pod.is_some() || called_by_kubectl()
    }

    /// Whether the answer is to be that of one agent.
    pub(super) fn one(&self) -> bool {
        self.node.is_some() || self.pod.is_some()
    }

    /// Leaves of an answer what was asked for.
    pub(super) fn narrowed(&self, mut status: StatusResponse) -> StatusResponse {
        if let Some(namespace) = self.namespace() {
            narrow(&mut status, namespace);
        }
        status
    }

    /// The namespace whose pods alone are asked for.
    pub(super) fn namespace(&self) -> Option<&str> {
        self.namespace.as_ref().map(|namespace| namespace.0.as_str())
    }

    /// Asks the agents meant for their status.
    pub(super) fn ask(&self, max_connections: u32) -> anyhow::Result<Vec<Answer>> {
        self.put(&StatusRequest { max_connections: Some(max_connections) })
    }

    /// Asks the agents meant, by name of their node. One that does not answer is an answer; that there is none, an error.
    pub(super) fn put<Q: Question>(&self, question: &Q) -> anyhow::Result<Vec<Answer<Q::Answer>>> {
        let runtime =
            Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
        runtime.block_on(async {
            let (client, agents) = self.meant().await?;
            Ok(ask_all(&client, self, agents, question).await)
        })
    }

    /// Asks the agents meant, one after another, until one can be reached: what all of them know, any of them can tell. Answers with
    /// the channel to it, which is open as long as `speak` runs.
    pub(super) fn any<T>(&self, speak: impl AsyncFnOnce(Channel) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let runtime =
            Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
        runtime.block_on(async {
            let (client, agents) = self.meant().await?;
            let pods: Api<Pod> = Api::namespaced(client, &self.agent_namespace.0);
            let mut silent = Vec::new();
            for (node, pod) in agents.into_iter().take(TRIED) {
                let reached = timeout(PATIENCE, reach(&pods, &pod, self.admin_port)).await;
                match reached.unwrap_or_else(|_| Err(anyhow!("no answer within {PATIENCE:?}"))) {
                    Ok((_forward, channel)) => {
                        return timeout(ANSWERED, speak(channel))
                            .await
                            .with_context(|| format!("the agent of node {node} does not answer"))?;
                    }
                    Err(error) => silent.push(format!("{node}: {error:#}")),
                }
            }
            bail!("no agent can be reached: {}", silent.join("; "))
        })
    }

    /// A client, and the agents meant: their nodes and pods.
    async fn meant(&self) -> anyhow::Result<(Client, Vec<(String, String)>)> {
        let client = timeout(PATIENCE, self.client());
        let (client, default) = client.await.context("the kubeconfig's login takes too long")??;
        let agents = timeout(PATIENCE, self.agents(&client, &default))
            .await
            .context("the API server does not answer; is the kubeconfig's cluster up?")??;
        Ok((client, agents))
    }

    /// The client, and the namespace that the kubeconfig's context names.
    async fn client(&self) -> anyhow::Result<(Client, String)> {
        let options = KubeConfigOptions {
            context: self.context.clone(),
            cluster: self.cluster.clone(),
            user: self.user.clone(),
        };
        let kubeconfig = match &self.kubeconfig {
            Some(file) => Kubeconfig::read_from(&file.0),
            None => Kubeconfig::read(),
        };
        let kubeconfig = kubeconfig.context("no kubeconfig: pass --kubeconfig, or set KUBECONFIG")?;
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &options)
            .await
            .context("the kubeconfig cannot be used")?;
        if self.impersonate.is_some() {
            config.auth_info.impersonate.clone_from(&self.impersonate);
        }
        let default = config.default_namespace.clone();
        Ok((Client::try_from(config).context("the kubeconfig cannot be used")?, default))
    }

    /// Node and pod name of each agent meant.
    async fn agents(&self, client: &Client, default: &str) -> anyhow::Result<Vec<(String, String)>> {
        let node = match (&self.node, &self.pod) {
            (Some(node), _) => Some(node.0.clone()),
            (None, Some(PodName { namespace, name })) => {
                let namespace = namespace.as_deref().or(self.namespace()).unwrap_or(default);
                let pod = Api::<Pod>::namespaced(client.clone(), namespace).get(name).await;
                let pod = pod.map_err(|error| {
                    anyhow!("cannot look up pod {namespace}/{name}: {}", sentence(&error))
                })?;
                let node = pod.spec.and_then(|spec| spec.node_name);
                Some(node.ok_or_else(|| anyhow!("pod {namespace}/{name} is not on a node yet"))?)
            }
            (None, None) => None,
        };
        let namespace = &self.agent_namespace.0;
        let mut list = ListParams::default().labels(AGENTS);
        if let Some(node) = &node {
            list = list.fields(&format!("spec.nodeName={node}"));
        }
        let pods = Api::<Pod>::namespaced(client.clone(), namespace).list(&list).await;
        let pods = pods.map_err(|error| {
            anyhow!(
                "cannot list the agents' pods in namespace {namespace}: {}; {RIGHTS}, or name another --agent-namespace",
                sentence(&error)
            )
        })?;
        let agents = pick(pods.items);
        match (agents.is_empty(), node) {
            (false, _) => Ok(agents),
            (true, Some(node)) => bail!("no agent runs on node {node} (looked in namespace {namespace})"),
            (true, None) => {
                bail!("no agents in namespace {namespace}: is ambit installed there? see --agent-namespace")
            }
        }
    }
}

/// Leaves only what concerns pods of `namespace`, and problems that concern no object.
pub(super) fn narrow(status: &mut StatusResponse, namespace: &str) {
    let identity = format!("/ns/{namespace}/");
    let (inside, object) = (format!("{namespace}/"), format!(" {namespace}/"));
    let itself = format!("Namespace {namespace}");
    status.pods.retain(|pod| pod.namespace == namespace);
    status.certificates.retain(|certificate| certificate.identity.contains(&identity));
    status.connections.retain(|connection| {
        connection.source_workload.starts_with(&inside)
            || connection.destination_workload.starts_with(&inside)
    });
    status.connections_total = status.connections.len() as u64;
    let is_inside = |party: &Option<Party>| party.as_ref().is_some_and(|party| party.namespace == namespace);
    status.denials.retain(|denial| is_inside(&denial.source) || is_inside(&denial.destination));
    status.problems.retain(|problem| {
        problem.object.is_empty() || problem.object == itself || problem.object.contains(&object)
    });
}

/// kubectl runs `kubectl-ambit` for `kubectl ambit`.
fn called_by_kubectl() -> bool {
    let name = std::env::args_os().next().unwrap_or_default();
    std::path::Path::new(&name).file_name().is_some_and(|name| name == "kubectl-ambit")
}

/// One pod for each node, the ready one where an upgrade has two of them.
fn pick(pods: Vec<Pod>) -> Vec<(String, String)> {
    let mut running: Vec<_> = pods
        .into_iter()
        .filter_map(|pod| {
            let status = pod.status?;
            let ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
            let old = pod.metadata.deletion_timestamp.is_some();
            (status.phase.as_deref() == Some("Running")).then_some((
                pod.spec?.node_name?,
                (old, !ready),
                pod.metadata.name?,
            ))
        })
        .collect();
    running.sort();
    running.dedup_by(|later, earlier| later.0 == earlier.0);
    running.into_iter().map(|(node, _, name)| (node, name)).collect()
}

async fn ask_all<Q: Question>(
    client: &Client,
    remote: &Remote,
    agents: Vec<(String, String)>,
    question: &Q,
) -> Vec<Answer<Q::Answer>> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &remote.agent_namespace.0);
    let turns = std::sync::Arc::new(Semaphore::new(AT_ONCE));
    let mut asking = JoinSet::new();
    for (node, pod) in agents {
        let (pods, turns, question) = (pods.clone(), turns.clone(), question.clone());
        let port = remote.admin_port;
        asking.spawn(async move {
            // The semaphore is never closed.
            let _turn = turns.acquire_owned().await;
            let status = timeout(PATIENCE, ask(&pods, &pod, port, question)).await;
            let status = status.unwrap_or_else(|_| Err(anyhow!("no answer within {PATIENCE:?}")));
            Answer { node, status }
        });
    }
    let mut answers = Vec::new();
    while let Some(answer) = asking.join_next().await {
        answers.extend(answer);
    }
    answers.sort_by(|a, b| a.node.cmp(&b.node));
    answers
}

async fn ask<Q: Question>(pods: &Api<Pod>, pod: &str, port: u16, question: Q) -> anyhow::Result<Q::Answer> {
    let mut forward = pods
        .portforward(pod, &[port])
        .await
        .map_err(|error| anyhow!("cannot forward a port to {pod}: {}; {RIGHTS}", sentence(&error)))?;
    let stream = forward.take_stream(port).ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?;
    let refused = forward.take_error(port);
    let answered = ask_over(stream, question).await;
    if answered.is_err()
        && let Some(refused) = refused
        && let Ok(Some(why)) = timeout(Duration::from_secs(1), refused).await
    {
        bail!(
            "{pod} does not answer on port {port} (--admin-addr, admin.enabled of the chart): {}",
            why.trim()
        );
    }
    answered
}

/// A port forwarded to the agent in `pod`, and the channel over it.
async fn reach(pods: &Api<Pod>, pod: &str, port: u16) -> anyhow::Result<(Portforwarder, Channel)> {
    let mut forward = pods
        .portforward(pod, &[port])
        .await
        .with_context(|| format!("cannot forward a port to {pod} (may you create pods/portforward?)"))?;
    let stream = forward.take_stream(port).ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?;
    let channel = channel_over(stream).await.with_context(|| {
        format!("{pod} does not answer on port {port} (--admin-addr, admin.enabled of the chart)")
    })?;
    Ok((forward, channel))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_named_as_kubectl_names_them() {
        let name = |text: &str| text.parse::<PodName>().map(|pod| (pod.namespace, pod.name));
        assert_eq!(name("web-1").unwrap(), (None, "web-1".to_owned()));
        assert_eq!(name("shop/web-1").unwrap(), (Some("shop".to_owned()), "web-1".to_owned()));
        for bad in ["", "/", "shop/", "a/b/c", "Web"] {
            assert!(name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn one_agent_for_each_node_the_ready_one() {
        let pod = |name: &str, node: &str, phase: &str, ready: &str, deleted: bool| -> Pod {
            let deletion =
                if deleted { serde_json::json!("2026-01-01T00:00:00Z") } else { serde_json::Value::Null };
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": name, "deletionTimestamp": deletion},
                "spec": {"nodeName": node, "containers": []},
                "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]},
            }))
            .unwrap()
        };
        let picked = pick(vec![
            pod("ambit-old", "b", "Running", "True", true),
            pod("ambit-next", "b", "Running", "False", false),
            pod("ambit-x", "a", "Running", "False", false),
            pod("ambit-y", "a", "Running", "True", false),
            pod("ambit-z", "c", "Pending", "False", false),
        ]);
        let expected = [("a", "ambit-y"), ("b", "ambit-next")];
        assert_eq!(picked, expected.map(|(node, name)| (node.to_owned(), name.to_owned())));
    }
}
