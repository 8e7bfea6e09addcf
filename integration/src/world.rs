//! The whole scene of a test: topology, servers, manifests, CA folder and an agent on each node.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    agent::{self, Agent},
    capture::{Capture, Captured},
    load::{self, Lane, Servers, ports},
    manifests::Manifests,
    process::{self, Finished, Process, eventually},
    sandbox::{self, Sandbox},
    tools::Attempt,
    topology::{MESHED, NODE_LINK, Pod, Topology, UNMESHED},
};

/// Two nodes with their pods, their servers and their agents.
#[derive(Debug)]
pub struct World {
    /// The namespaces and addresses.
    pub topology: Topology,
    /// The watched folder.
    pub manifests: Manifests,
    /// The agents of `node1` and `node2`.
    pub agents: [Agent; 2],
    /// For captures, keys and logs of the scene.
    pub folder: PathBuf,
    /// The built-in CA's folder.
    pub ca: PathBuf,
    /// Agents that have handed over and may still carry connections.
    pub retired: Vec<Process>,
    /// The daemon.
    pub binary: PathBuf,
    /// Figures that a test wants shown beside its name.
    pub notes: Vec<String>,
    servers: Vec<Servers>,
}

impl World {
    /// Builds the scene and starts both agents, with `flags` beside the usual ones.
    pub fn start(sandbox: &Sandbox, name: &str, binary: &Path, flags: &[&str]) -> Result<Self> {
        let mut world = Self::build(sandbox, name, binary, flags)?;
        world.start_agents()?;
        Ok(world)
    }

    /// Starts both agents and waits until they are ready.
    pub fn start_agents(&mut self) -> Result<()> {
        self.agents.iter_mut().try_for_each(Agent::spawn)?;
        self.agents.iter_mut().try_for_each(Agent::wait_ready)
    }

    /// Builds the scene with its servers running and its agents not yet started.
    pub fn build(sandbox: &Sandbox, name: &str, binary: &Path, flags: &[&str]) -> Result<Self> {
        // The CNI plugin is a link to it, in a folder of its own.
        let binary = &binary.canonicalize().with_context(|| format!("the daemon {}", binary.display()))?;
        sandbox.remember_binary(binary)?;
        let folder = sandbox.folder().join(name);
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let topology = Topology::build(sandbox, name).context("building nodes and pods")?;
        let manifests = Manifests::create(&folder.join("manifests"), &topology)?;
        let ca = folder.join("ca");
        let agent = |node: usize| {
            let paths = agent::Paths {
                binary: binary.to_owned(),
                manifests: manifests.folder().to_owned(),
                ca: ca.clone(),
                scratch: agent::scratch(&folder, node),
            };
            Agent::new(&topology.nodes[node], &paths, flags)
        };
        let agents = [agent(0), agent(1)];
        let serving = ["b", "d", "e"].map(|pod| Servers::start(topology.pod(pod), &folder));
        let servers = serving.into_iter().collect::<Result<_>>().context("starting servers")?;
        let (binary, notes, retired) = (binary.to_owned(), Vec::new(), Vec::new());
        Ok(Self { topology, manifests, agents, folder, ca, retired, binary, notes, servers })
    }

    /// Takes everything down again.
    pub fn remove(mut self) -> Result<()> {
        self.servers.clear();
        self.retired.clear();
        for agent in &mut self.agents {
            agent.kill();
            // An agent whose parent was killed dies a moment after it.
            eventually(Duration::from_secs(5), || agent.uninstall()?.ok())?;
            let pins = sandbox::pins(&agent.node().name);
            ensure!(!pins.exists(), "ambit uninstall left {}", pins.display());
        }
        self.topology.remove()
    }

    /// Ends a pod that has servers, and starts another with the same addresses and `service_account`.
    pub fn replace_pod(&mut self, name: &str, service_account: &'static str, renamed: bool) -> Result<()> {
        self.topology.replace(name, service_account, renamed)?;
        self.servers.push(Servers::start(self.topology.pod(name), &self.folder)?);
        Ok(())
    }

    /// Undoes what tests change in manifests: policies gone, pods without extra labels.
    pub fn reset_manifests(&self) -> Result<()> {
        for namespace in [MESHED, UNMESHED] {
            self.manifests.no_peer_authentication(namespace)?;
        }
        Ok(())
    }

    /// The pod with this name.
    pub fn pod(&self, name: &str) -> &Pod {
        self.topology.pod(name)
    }

    /// The agent of a pod's node.
    pub fn agent_of(&mut self, pod: &str) -> &mut Agent {
        let node = self.topology.pod(pod).node;
        &mut self.agents[node]
    }

    /// One connection from `pod` to `to` by the tool `connect`, with further flags of that tool.
    pub fn connect(&self, pod: &str, to: impl Into<SocketAddr>, flags: &[&str]) -> Result<Attempt> {
        let mut command = load::tool(&self.pod(pod).netns)?;
        command.args(["connect", "--to", &to.into().to_string()]).args(flags);
        let text = process::run(&mut command, Duration::from_secs(15))?.ok()?;
        serde_json::from_str(&text).context("the answer of the tool connect")
    }

    /// One connection from `pod`, with a word sent, to the server of `to` that says whom it sees.
    pub fn whoami(&self, pod: &str, to: &str) -> Result<Attempt> {
        self.connect(pod, (self.pod(to).v4, ports::WHOAMI), &["--send", "hello"])
    }

    /// Demands that `from` reaches `to`, and that `to` sees the address of `from`.
    pub fn must_reach(&self, from: &str, to: &str) -> Result<()> {
        let attempt = self.whoami(from, to)?;
        let seen = format!("peer {}:", self.pod(from).v4);
        ensure!(attempt.received.starts_with(&seen), "{from} does not reach {to}: {attempt:?}");
        Ok(())
    }

    /// Demands that `from` is turned away by `to` at once, with nothing received.
    pub fn must_not_reach(&self, from: &str, to: &str) -> Result<Attempt> {
        self.must_be_refused(from, to, Duration::from_secs(1))
    }

    /// As [`World::must_not_reach`], within `limit`.
    pub fn must_be_refused(&self, from: &str, to: &str, limit: Duration) -> Result<Attempt> {
        // The client waits longer than it may take, so that what comes late is told from what does not come.
        let patience =
            (limit + Duration::from_millis(500)).max(Duration::from_secs(3)).as_millis().to_string();
        let server = (self.pod(to).v4, ports::WHOAMI);
        let attempt = self.connect(from, server, &["--send", "hello", "--limit-ms", &patience])?;
        let error = attempt.error.as_deref().unwrap_or("none");
        ensure!(
            attempt.received.is_empty() && ["ConnectionRefused", "ConnectionReset"].contains(&error),
            "{from} should be refused by {to}: {attempt:?}"
        );
        ensure!(
            u128::from(attempt.took_ms) <= limit.as_millis(),
            "{from} was refused by {to}, but only after {} ms",
            attempt.took_ms
        );
        Ok(attempt)
    }

    /// The way from `client` to `server`, to be loaded.
    pub fn lane(&self, client: &str, server: &str) -> Lane<'_> {
        Lane { client: self.pod(client), server: self.pod(server), scratch: &self.folder }
    }

    /// Runs a tool in `pod` to its end; returns its JSON.
    pub fn tool(&self, pod: &str, arguments: &[&str], limit: Duration) -> Result<Value> {
        let mut command = load::tool(&self.pod(pod).netns)?;
        let text = process::run(command.args(arguments), limit)?.ok()?;
        serde_json::from_str(&text).with_context(|| format!("the answer of {arguments:?}: {text}"))
    }

    /// curl from `pod`, silent but for errors, for at most ten seconds.
    pub fn curl(&self, pod: &str, arguments: &[&str]) -> Result<Finished> {
        let mut command = self.pod(pod).netns.command("curl");
        process::run(
            command.args(["-sS", "-m", "10", "--noproxy", "*"]).args(arguments),
            Duration::from_secs(15),
        )
    }

    /// Starts a capture on the link between the nodes.
    pub fn capture_link(&self, name: &str) -> Result<Capture> {
        Capture::start(&self.topology.nodes[0].netns, NODE_LINK, &self.folder, &format!("{name}-link"))
    }

    /// Starts a capture on every interface inside a pod.
    pub fn capture_pod(&self, pod: &str, name: &str) -> Result<Capture> {
        Capture::start(&self.pod(pod).netns, "any", &self.folder, &format!("{name}-pod-{pod}"))
    }

    /// Captures the link between the nodes while `work` is done.
    pub fn on_the_link(&self, name: &str, work: impl FnOnce() -> Result<()>) -> Result<Captured> {
        let capture = self.capture_link(name)?;
        work()?;
        capture.stop()
    }
}
