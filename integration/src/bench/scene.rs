//! The data paths of a run, all up at the same time: their pods and servers, and the processes that carry them.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    Settings, about,
    keys::Keys,
    loads::{Ends, Kind, Load},
    ports,
    proxies::{self, Program, Proxies},
    results::{About, PLAINTEXT},
    rules,
};
use crate::{
    agent::Agent,
    console::Console,
    load::{Servers, tool},
    process::{self, Process, eventually},
    sandbox::Sandbox,
    topology::{MESHED, Pod, UNMESHED},
    world::World,
};

const START_LIMIT: Duration = Duration::from_secs(20);

/// The data paths that have a name, and what it means.
pub const PATHS: [(&str, &str); 8] = [
    (PLAINTEXT, "the pods' own TCP, nothing between them"),
    (RELAY, "a pair of the barest relays, without TLS: the least that any relay has to do"),
    ("ambit", "an agent of ambit on each node"),
    (RULES_PATH, "the same, and each HTTP request is judged by 20 rules"),
    ("envoy", "a pair of Envoys, TCP proxies with mutual TLS"),
    (
        "envoy-http",
        "a pair of Envoys that speak HTTP and judge each request by 20 rules, with mutual TLS and pools between them",
    ),
    ("haproxy", "a pair of HAProxys, TCP proxies with mutual TLS"),
    ("haproxy-http", "a pair of HAProxys that speak HTTP, with mutual TLS and pools between them"),
];
/// The name of another daemon's path.
pub const OTHER: &str = "other";
/// The name of the path of bare relays.
const RELAY: &str = "relay";
/// The name of the path of agents that judge requests.
const RULES_PATH: &str = "ambit-http";

/// A data path that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// One of [`PATHS`].
    Named(&'static str),
    /// Agents of another daemon.
    Daemon(PathBuf),
    /// Proxies that a shell starts.
    Shell {
        /// What to call it.
        name: String,
        /// The command line.
        command: String,
    },
}

/// All of it.
pub(super) struct Scene {
    worlds: Vec<World>,
    paths: Vec<DataPath>,
    keys: Option<Keys>,
    _servers: Vec<Process>,
    _beside: Option<Servers>,
}

struct DataPath {
    choice: Choice,
    /// Between two nodes, and on one.
    ends: [Ends; 2],
    carrier: Carrier,
}

/// What carries a path.
enum Carrier {
    /// Nothing but the kernel.
    Kernel,
    /// The agents of the world with this index.
    Agents(usize),
    Proxies(Proxies),
}

impl Choice {
    /// What `--paths` calls it, or `--path` has called it.
    pub fn named(name: &str) -> Result<Self> {
        match PATHS.iter().find(|(known, _)| *known == name) {
            Some((known, _)) => Ok(Self::Named(known)),
            None => {
                let names = PATHS.map(|(name, _)| name).join(", ");
                bail!(
                    "there is no path {name}; there are {names}, what --path NAME=CMD adds, and {OTHER} with --against"
                )
            }
        }
    }

    /// `NAME=CMD`.
    pub fn shell(text: &str) -> Result<Self> {
        let parted = text.split_once('=').filter(|(name, command)| {
            let plain = |sign: char| sign.is_ascii_alphanumeric() || "-_.".contains(sign);
            !name.is_empty() && name.chars().all(plain) && !command.trim().is_empty()
        });
        let (name, command) = parted.with_context(|| {
            format!("--path {text}: it wants NAME=CMD, and a name of letters, digits, dots, dashes and underscores")
        })?;
        let taken = name == OTHER || PATHS.iter().any(|(known, _)| *known == name);
        ensure!(!taken, "--path {text}: {name} is the name of another path");
        Ok(Self::Shell { name: name.to_owned(), command: command.to_owned() })
    }

    pub(super) fn name(&self) -> &str {
        match self {
            Self::Named(name) => name,
            Self::Daemon(_) => OTHER,
            Self::Shell { name, .. } => name,
        }
    }

    /// Whether it can carry a load and has something to tell of it.
    pub(super) fn carries(&self, load: &Load) -> bool {
        let is_ambit = matches!(self, Self::Named("ambit") | Self::Daemon(_));
        match load.kind {
            Kind::Enrolment => is_ambit,
            Kind::Memory => *self != Self::Named(PLAINTEXT) && !self.is_http(),
            Kind::Http { .. } | Kind::Body { .. } | Kind::Grpc { .. } | Kind::Connections { .. } => true,
            _ => !self.is_http(),
        }
    }

    /// Whether its proxies parse HTTP, and so differ from those of the same program only where HTTP is spoken.
    fn is_http(&self) -> bool {
        matches!(self, Self::Named(RULES_PATH | "envoy-http" | "haproxy-http"))
    }

    fn about(&self) -> String {
        match self {
            Self::Named(name) => PATHS
                .iter()
                .find(|(known, _)| known == name)
                .map_or_else(String::new, |(_, about)| (*about).to_owned()),
            Self::Daemon(binary) => format!("the agents of {}", binary.display()),
            Self::Shell { command, .. } => command.clone(),
        }
    }

    fn program(&self, proxies: Option<&Path>) -> Result<Option<Program>> {
        let binary = |name: &str| -> Result<PathBuf> {
            let binary = proxies.context("no folder of proxies is given")?.join(name);
            ensure!(binary.is_file(), "{} is not there", binary.display());
            Ok(binary)
        };
        Ok(match self {
            Self::Named("envoy" | "envoy-http") => Some(Program::Envoy(binary("envoy")?)),
            Self::Named("haproxy" | "haproxy-http") => Some(Program::HaProxy(binary("haproxy")?)),
            Self::Named(RELAY) => Some(Program::Relay),
            Self::Shell { command, .. } => Some(Program::Shell(command.clone())),
            Self::Named(_) | Self::Daemon(_) => None,
        })
    }
}

impl Scene {
    /// Brings up all that `settings` want, and tries each path.
    pub(super) fn build(sandbox: &Sandbox, settings: &Settings, console: Console) -> Result<Self> {
        console.line("  (bringing up nodes, pods, agents and proxies)");
        let mut world = World::build(sandbox, "bench", &settings.binary, &[])?;
        // Outside of the mesh, and beside c.
        world.topology.add("f", UNMESHED, 0)?;
        // Nothing runs in it: its enrolment is measured.
        world.topology.add("n", MESHED, 0)?;
        let beside = Servers::start(world.pod("f"), &world.folder)?;
        let mut scene = Self {
            worlds: vec![world],
            paths: Vec::new(),
            keys: None,
            _servers: Vec::new(),
            _beside: Some(beside),
        };
        for (number, choice) in settings.paths.iter().enumerate() {
            let path = scene.path(sandbox, settings, choice, u8::try_from(number + 1)?);
            let path = path.with_context(|| format!("the path {}", choice.name()))?;
            scene.paths.push(path);
        }
        if let Some(congestion) = &settings.congestion {
            scene.control_congestion(congestion)?;
        }
        scene.serve_grpc()?;
        for path in 0..scene.paths.len() {
            let tried = scene.restart(path).and_then(|()| scene.must_carry(path));
            tried.with_context(|| format!("the path {}", scene.name(path)))?;
        }
        Ok(scene)
    }

    fn path(
        &mut self,
        sandbox: &Sandbox,
        settings: &Settings,
        choice: &Choice,
        number: u8,
    ) -> Result<DataPath> {
        let world = &self.worlds[0];
        let [c, d, f] = ["c", "d", "f"].map(|name| world.pod(name));
        let ends = |client: &Pod, server: &Pod, address| Ends {
            client: client.netns.clone(),
            server: server.netns.clone(),
            address,
        };
        let direct = |world: &World, client: &str, servers: [&str; 2]| {
            servers.map(|server| ends(world.pod(client), world.pod(server), world.pod(server).v4))
        };
        let (ends, carrier) = if let Some(program) = choice.program(settings.proxies.as_deref())? {
            let folder = world.folder.join(format!("path-{number}"));
            let proxies = Proxies::new(program, choice.is_http(), &folder, number, c, [d, f])?;
            if self.keys.is_none() {
                self.keys = Some(Keys::make(&world.folder.join("keys"))?);
            }
            let dialled = [0, 1].map(|server| proxies::dialled(number, server));
            ([ends(c, d, dialled[0]), ends(c, f, dialled[1])], Carrier::Proxies(proxies))
        } else if let Choice::Daemon(binary) = choice {
            let other = World::build(sandbox, OTHER, binary, &[])?;
            let ends = direct(&other, "a", ["b", "e"]);
            self.worlds.push(other);
            (ends, Carrier::Agents(self.worlds.len() - 1))
        } else if *choice == Choice::Named(RULES_PATH) {
            let judging = World::build(sandbox, RULES_PATH, &settings.binary, &[])?;
            judging.manifests.write("rules.yaml", &rules::policy())?;
            let ends = direct(&judging, "a", ["b", "e"]);
            self.worlds.push(judging);
            (ends, Carrier::Agents(self.worlds.len() - 1))
        } else if *choice == Choice::Named(PLAINTEXT) {
            (direct(world, "c", ["d", "f"]), Carrier::Kernel)
        } else {
            (direct(world, "a", ["b", "e"]), Carrier::Agents(0))
        };
        Ok(DataPath { choice: choice.clone(), ends, carrier })
    }

    /// For all connections from here on.
    fn control_congestion(&self, algorithm: &str) -> Result<()> {
        let setting = format!("net.ipv4.tcp_congestion_control={algorithm}");
        let topologies = self.worlds.iter().map(|world| &world.topology);
        for topology in topologies {
            let nodes = topology.nodes.iter().map(|node| &node.netns);
            for netns in nodes.chain(topology.pods.iter().map(|pod| &pod.netns)) {
                netns.sysctl(&[&setting]).with_context(|| {
                    format!(
                        "{algorithm} must be in the machine's net.ipv4.tcp_allowed_congestion_control for pods to have it"
                    )
                })?;
            }
        }
        Ok(())
    }

    /// Starts the servers that other runs of the harness do without.
    fn serve_grpc(&mut self) -> Result<()> {
        let mut servers = Vec::new();
        for world in &self.worlds {
            for pod in world.topology.pods.iter().filter(|pod| ["b", "d", "e", "f"].contains(&pod.name)) {
                let mut command = tool(&pod.netns)?;
                command.args(["grpc-server", "--listen", &format!("[::]:{}", ports::GRPC)]);
                servers.push(Process::start(
                    &mut command,
                    &world.folder.join(format!("{}-grpc.log", pod.name)),
                )?);
            }
        }
        for server in &mut servers {
            server.wait_for("ready", START_LIMIT)?;
        }
        self._servers = servers;
        Ok(())
    }

    /// One message over both ways of a path; and that nobody else is let in, where a proxy has to see to that.
    fn must_carry(&self, path: usize) -> Result<()> {
        for ends in &self.paths[path].ends {
            let tried = process::run(&mut ends.tool("first-byte", ports::ECHO)?, START_LIMIT)?.ok();
            tried.with_context(|| match &self.paths[path].carrier {
                Carrier::Proxies(proxies) => format!("nothing comes through: {}", proxies.output()),
                _ => "nothing comes through".to_owned(),
            })?;
        }
        if let (Carrier::Proxies(proxies), Some(keys)) = (&self.paths[path].carrier, &self.keys)
            && proxies.speak_tls()
        {
            let refuses = proxies.refuses_strangers(keys)?;
            ensure!(
                refuses,
                "it takes a client with a valid certificate of another identity: its server does not check the peer's name, and \
                 would be faster for it"
            );
        }
        Ok(())
    }

    /// Starts what carries a path anew.
    pub(super) fn restart(&mut self, path: usize) -> Result<()> {
        match (&mut self.paths[path].carrier, &self.keys) {
            (Carrier::Kernel, _) => Ok(()),
            (Carrier::Agents(world), _) => {
                let world = &mut self.worlds[*world];
                world.agents.iter_mut().for_each(Agent::kill);
                world.start_agents()?;
                eventually(START_LIMIT, || certified(world))
            }
            (Carrier::Proxies(proxies), keys) => proxies.restart(keys.as_ref().context("no certificates")?),
        }
    }

    /// What each process that carries a path has used of the processor, and how much memory it has, in KiB: the client's first,
    /// then the server's on the other node.
    pub(super) fn used(&self, path: usize) -> Result<Vec<(Duration, u64)>> {
        self.processes(path)?.into_iter().map(process::group_use).collect()
    }

    /// The leaders of the process groups that carry a path, the client's first.
    pub(super) fn processes(&self, path: usize) -> Result<Vec<u32>> {
        match &self.paths[path].carrier {
            Carrier::Kernel => Ok(Vec::new()),
            Carrier::Agents(world) => self.worlds[*world].agents.iter().map(Agent::pid).collect(),
            Carrier::Proxies(proxies) => Ok(proxies.leaders()),
        }
    }

    /// The processor time of all of them together, where anything but the kernel carries the path.
    pub(super) fn processor_time(&self, path: usize) -> Result<Option<Duration>> {
        let used = self.used(path)?;
        Ok((!used.is_empty()).then(|| used.iter().map(|(time, _)| *time).sum()))
    }

    /// The paths in the order of this round: each comes first in turn.
    pub(super) fn order(&self, round: u32) -> Vec<usize> {
        let count = self.paths.len();
        (0..count).map(|path| (path + round as usize) % count).collect()
    }

    pub(super) fn carries(&self, path: usize, load: &Load) -> bool {
        self.paths[path].choice.carries(load)
    }

    pub(super) fn name(&self, path: usize) -> &str {
        self.paths[path].choice.name()
    }

    pub(super) fn abouts(&self) -> Vec<About> {
        self.paths.iter().map(|path| about(path.choice.name(), &path.choice.about())).collect()
    }

    pub(super) fn ends(&self, path: usize, load: &Load) -> &Ends {
        &self.paths[path].ends[usize::from(load.one_node)]
    }

    /// The world whose agents carry a path.
    pub(super) fn world(&self, path: usize) -> Result<&World> {
        match &self.paths[path].carrier {
            Carrier::Agents(world) => Ok(&self.worlds[*world]),
            _ => bail!("no agent carries {}", self.name(path)),
        }
    }

    /// For logs.
    pub(super) fn scratch(&self) -> &Path {
        &self.worlds[0].folder
    }

    /// Takes everything down again.
    pub(super) fn remove(self) -> Result<()> {
        let Self { worlds, paths, keys: _, _servers, _beside } = self;
        drop((paths, _servers, _beside));
        worlds.into_iter().try_for_each(World::remove)
    }
}

/// Demands that both agents hold valid certificates for the pods that loads run in.
fn certified(world: &World) -> Result<()> {
    for name in ["a", "b", "e"] {
        let pod = world.pod(name);
        let certs = world.agents[pod.node].certs()?;
        let valid =
            certs["certificates"].as_array().into_iter().flatten().any(|one| {
                one["state"] == "valid" && one["identity"].as_str() == Some(pod.identity().as_str())
            });
        ensure!(valid, "the agent of pod {name} has no certificate for it");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_ones_own_has_a_name_and_a_command() {
        let choice = Choice::shell("stunnel=exec stunnel a=b").unwrap();
        assert_eq!(
            choice,
            Choice::Shell { name: "stunnel".to_owned(), command: "exec stunnel a=b".to_owned() }
        );
        for wrong in ["stunnel", "=exec", "a b=exec", "x=  ", "ambit=exec", "other=exec"] {
            assert!(Choice::shell(wrong).is_err(), "{wrong}");
        }
        assert!(
            Choice::named("nginx")
                .unwrap_err()
                .to_string()
                .contains("plaintext, relay, ambit, ambit-http, envoy")
        );
    }
}
