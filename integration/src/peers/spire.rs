//! A SPIRE of its own for a scene: one server, and an agent on each node whose admin socket ours asks.
//!
//! Configuration as SPIRE documents it (`doc/spire_server.md`, `doc/spire_agent.md` of v1.13).

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    cluster::Programs,
    netns::Netns,
    process::{self, Process, eventually},
    topology::Pod,
    world::World,
};

/// The port on which SPIRE agents find their server.
const PORT: u16 = 8081;
/// The identity that makes a process a delegate.
const DELEGATE: &str = "spiffe://cluster.local/ambit";
const START_LIMIT: Duration = Duration::from_secs(30);
/// For one command to the server.
const COMMAND_LIMIT: Duration = Duration::from_secs(20);

/// A running SPIRE; dropping it kills its processes.
#[derive(Debug)]
pub(super) struct Spire {
    programs: Programs,
    folder: PathBuf,
    netns: Netns,
    /// The identity of each node's SPIRE agent: the parent of entries there.
    parents: Vec<String>,
    processes: Vec<Process>,
}

impl Spire {
    /// Starts the server on the first node and an agent on each. Every process of root's is a delegate, no pod has an entry.
    pub(super) fn start(programs: &Programs, world: &World) -> Result<Self> {
        let folder = world.folder.join("spire");
        let [first, _] = &world.topology.nodes;
        let mut spire = Self {
            programs: programs.clone(),
            folder,
            netns: first.netns.clone(),
            parents: Vec::new(),
            processes: Vec::new(),
        };
        let address = first.v4.to_string();
        spire.start_server(&address)?;
        for (number, node) in world.topology.nodes.iter().enumerate() {
            spire.start_agent(number, &node.netns, &address)?;
        }
        Ok(spire)
    }

    /// Makes the agents of `world` ask the SPIRE agent of their node. Before they are started.
    pub(super) fn serve_agents(&self, world: &mut World) {
        for (number, agent) in world.agents.iter_mut().enumerate() {
            let socket = self.admin_socket(number).display().to_string();
            agent.add_flags(&["--issuer", "spire", "--spire-socket", &socket]);
        }
    }

    /// Creates the entry that gives a pod its identity, with certificates for `ttl` seconds; returns when its node's SPIRE
    /// agent may have heard of it.
    pub(super) fn entry(&self, world: &World, pod: &str, ttl: u32) -> Result<()> {
        let Pod { namespace, service_account, .. } = world.pod(pod);
        let selectors = [format!("k8s:ns:{namespace}"), format!("k8s:sa:{service_account}")];
        self.entry_by(world, pod, &selectors, ttl).map(drop)
    }

    /// As [`Spire::entry`], for what has these selectors; answers with its ID.
    pub(super) fn entry_by(
        &self,
        world: &World,
        pod: &str,
        selectors: &[String],
        ttl: u32,
    ) -> Result<String> {
        let pod = world.pod(pod);
        self.entry_of(pod.node, &pod.identity(), selectors, ttl)
    }

    /// As [`Spire::entry_by`], of `identity` on a node.
    pub(super) fn entry_of(
        &self,
        node: usize,
        identity: &str,
        selectors: &[String],
        ttl: u32,
    ) -> Result<String> {
        let ttl = ttl.to_string();
        let mut arguments = vec!["entry", "create", "-parentID", &self.parents[node], "-spiffeID"];
        arguments.extend([identity, "-x509SVIDTTL", &ttl, "-output", "json"]);
        selectors.iter().for_each(|selector| arguments.extend(["-selector", selector]));
        let told = self.server(&arguments)?;
        let told: Value = serde_json::from_str(&told).with_context(|| told.clone())?;
        let id = told["results"][0]["entry"]["id"].as_str();
        id.map(str::to_owned).with_context(|| format!("no entry in {told}"))
    }

    /// Deletes an entry.
    pub(super) fn delete(&self, entry: &str) -> Result<()> {
        self.server(&["entry", "delete", "-entryID", entry]).map(drop)
    }

    /// Deletes the entry that makes processes of root's on a node delegates.
    pub(super) fn delete_delegate(&self, node: usize) -> Result<()> {
        let told = self.server(&["entry", "show", "-spiffeID", DELEGATE, "-output", "json"])?;
        let told: Value = serde_json::from_str(&told).with_context(|| told.clone())?;
        let entries = told["entries"].as_array().context("entries")?;
        let parent = self.parents[node].rsplit("cluster.local").next().context("a parent")?;
        let own = entries.iter().find(|entry| entry["parent_id"]["path"] == parent);
        let id = own.and_then(|entry| entry["id"].as_str()).with_context(|| format!("{told:#}"))?;
        self.delete(id)
    }

    /// The socket of a node's SPIRE agent that is for workloads.
    pub(super) fn workload_socket(&self, node: usize) -> PathBuf {
        self.folder.join(format!("agent{node}/api/api.sock"))
    }

    /// Kills the SPIRE agent of a node.
    pub(super) fn kill_agent(&mut self, number: usize) -> Result<()> {
        // The server is the first.
        self.processes[number + 1].kill();
        fs::remove_file(self.admin_socket(number)).context("its admin socket")
    }

    /// Starts it again, with what it has on disk; returns when its admin socket is there.
    pub(super) fn resume_agent(&mut self, number: usize, netns: &Netns) -> Result<()> {
        let (name, place) = (format!("agent{number}"), number + 1);
        let file = self.folder.join(&name).join("agent.conf");
        self.spawn("spire-agent", netns, &file, &name)?;
        let last = self.processes.pop().context("no process")?;
        self.processes[place] = last;
        self.wait_for_agent(number)
    }

    /// Makes another signing key, whose root is trusted from now on; returns its authority's ID.
    pub(super) fn prepare(&self) -> Result<String> {
        self.authority(&["prepare"], "prepared_authority")
    }

    /// Signs with a prepared authority from now on.
    pub(super) fn activate(&self, authority: &str) -> Result<()> {
        self.authority(&["activate", "-authorityID", authority], "activated_authority").map(drop)
    }

    /// Declares an authority that signs no longer unfit: whoever has a certificate of it is to get another.
    pub(super) fn taint(&self, authority: &str) -> Result<()> {
        self.authority(&["taint", "-authorityID", authority], "tainted_authority").map(drop)
    }

    /// Takes the root of a tainted authority out of the bundle.
    pub(super) fn revoke(&self, authority: &str) -> Result<()> {
        self.authority(&["revoke", "-authorityID", authority], "revoked_authority").map(drop)
    }

    /// The ID of the authority that signs now.
    pub(super) fn active(&self) -> Result<String> {
        self.authority(&["show"], "active")
    }

    /// The roots, as PEM.
    pub(super) fn bundle(&self) -> Result<String> {
        self.server(&["bundle", "show"])
    }

    /// A command of the X.509 authority; the ID of the authority that the answer has under `field`.
    fn authority(&self, arguments: &[&str], field: &str) -> Result<String> {
        let told = self.server(&[&["localauthority", "x509"], arguments, &["-output", "json"]].concat())?;
        let told: Value = serde_json::from_str(&told).with_context(|| told.clone())?;
        let id = told[field]["authority_id"].as_str().map(str::to_owned);
        id.filter(|id| !id.is_empty()).with_context(|| format!("no {field} in {told}"))
    }

    /// A command of `spire-server` to the running one; what it prints.
    fn server(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.netns.command(self.programs.path("spire-server"));
        command.args(arguments).arg("-socketPath").arg(self.folder.join("server.sock"));
        process::run(&mut command, COMMAND_LIMIT)?.ok()
    }

    fn start_server(&mut self, address: &str) -> Result<()> {
        let data = self.folder.join("server");
        fs::create_dir_all(&data).with_context(|| data.display().to_string())?;
        let place = self.folder.display();
        // No telemetry, and no update check: nothing here is to leave the scene.
        let configuration = format!(
            r#"server {{
  bind_address = "{address}"
  bind_port = "{PORT}"
  socket_path = "{place}/server.sock"
  trust_domain = "cluster.local"
  data_dir = "{place}/server"
  log_level = "DEBUG"
  ca_ttl = "24h"
}}
plugins {{
  DataStore "sql" {{
    plugin_data {{
      database_type = "sqlite3"
      connection_string = "{place}/server/datastore.sqlite3"
    }}
  }}
  KeyManager "disk" {{
    plugin_data {{ keys_path = "{place}/server/keys.json" }}
  }}
  NodeAttestor "join_token" {{
    plugin_data {{}}
  }}
}}
"#
        );
        let file = self.folder.join("server.conf");
        fs::write(&file, configuration)?;
        self.spawn("spire-server", &self.netns.clone(), &file, "server")?;
        eventually(START_LIMIT, || self.server(&["healthcheck"]).map(drop)).context("the SPIRE server")
    }

    fn start_agent(&mut self, number: usize, netns: &Netns, address: &str) -> Result<()> {
        let told = self.server(&["token", "generate", "-output", "json"])?;
        let told: Value = serde_json::from_str(&told).with_context(|| told.clone())?;
        let token = told["value"].as_str().context("no join token")?.to_owned();
        let parent = format!("spiffe://cluster.local/spire/agent/join_token/{token}");
        self.server(&[
            "entry",
            "create",
            "-parentID",
            &parent,
            "-spiffeID",
            DELEGATE,
            "-selector",
            "unix:uid:0",
        ])?;
        let name = format!("agent{number}");
        let folder = self.folder.join(&name);
        // The admin socket must not be below the folder of the other one.
        for below in ["data", "api", "admin"] {
            fs::create_dir_all(folder.join(below))?;
        }
        let bundle = folder.join("bootstrap.pem");
        fs::write(&bundle, self.bundle()?)?;
        let (place, admin) = (folder.display(), self.admin_socket(number));
        let configuration = format!(
            r#"agent {{
  data_dir = "{place}/data"
  server_address = "{address}"
  server_port = "{PORT}"
  socket_path = "{place}/api/api.sock"
  admin_socket_path = "{admin}"
  trust_bundle_path = "{bundle}"
  trust_domain = "cluster.local"
  join_token = "{token}"
  log_level = "DEBUG"
  authorized_delegates = ["{DELEGATE}"]
  experimental {{
    sync_interval = "1s"
  }}
}}
plugins {{
  KeyManager "disk" {{
    plugin_data {{ directory = "{place}/data" }}
  }}
  NodeAttestor "join_token" {{
    plugin_data {{}}
  }}
  WorkloadAttestor "unix" {{
    plugin_data {{}}
  }}
}}
"#,
            admin = admin.display(),
            bundle = bundle.display(),
        );
        let file = folder.join("agent.conf");
        fs::write(&file, configuration)?;
        self.spawn("spire-agent", netns, &file, &name)?;
        self.parents.push(parent);
        self.wait_for_agent(number)
    }

    fn wait_for_agent(&self, number: usize) -> Result<()> {
        let (name, admin) = (format!("agent{number}"), self.admin_socket(number));
        eventually(START_LIMIT, || {
            ensure!(admin.exists(), "no admin socket yet");
            Ok(())
        })
        .with_context(|| format!("the SPIRE agent: {}", process::tail(&self.log(&name))))
    }

    fn spawn(&mut self, program: &str, netns: &Netns, configuration: &Path, name: &str) -> Result<()> {
        let mut command = netns.command(self.programs.path(program));
        command.args(["run", "-config"]).arg(configuration);
        self.processes.push(Process::start(&mut command, &self.folder.join(format!("{name}.log")))?);
        Ok(())
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.folder.join(format!("{name}.log"))).unwrap_or_default()
    }

    pub(super) fn admin_socket(&self, number: usize) -> PathBuf {
        self.folder.join(format!("agent{number}/admin/admin.sock"))
    }
}
