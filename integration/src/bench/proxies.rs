//! The proxies of one data path: a pair of processes that do for two pods what agents do, started and stopped together.
//!
//! They sit where agents sit: one on each node, in the pod's network namespace. The client's takes connections on loopback
//! addresses, one for each server, at the ports that the servers have; the wire is mutual TLS, but for the harness's own relays.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    envoy, haproxy,
    keys::{Keys, Leaf},
    ports,
};
use crate::{
    load::tool,
    netns::Netns,
    process::{self, Process, eventually},
    topology::Pod,
};

const START_LIMIT: Duration = Duration::from_secs(20);
/// The server's first port that the wire leads to.
const WIRE_PORT: u16 = 16_000;

/// What the proxies are.
#[derive(Clone, Debug)]
pub(super) enum Program {
    /// Envoy, the binary at this path.
    Envoy(PathBuf),
    /// HAProxy, the binary at this path, with its libraries beside it.
    HaProxy(PathBuf),
    /// The harness's own relay, without TLS.
    Relay,
    /// What a shell makes of this.
    Shell(String),
}

/// An end of a data path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

/// What is spoken at a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaks {
    Bytes,
    Http,
    Grpc,
}

/// One way through one proxy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Forward {
    pub(super) listen: SocketAddrV4,
    pub(super) target: SocketAddrV4,
    pub(super) speaks: Speaks,
}

/// The proxies of a data path. Dropping ends them.
#[derive(Debug)]
pub(super) struct Proxies {
    program: Program,
    /// HTTP is spoken as HTTP, with pools of connections between the proxies.
    is_http: bool,
    folder: PathBuf,
    plans: Vec<Plan>,
    running: Vec<Process>,
}

/// A proxy to be started.
#[derive(Debug)]
struct Plan {
    side: Side,
    netns: Netns,
    forwards: Vec<Forward>,
}

impl Proxies {
    /// Proxies from `client` to `servers`. `number` keeps the addresses and ports of several data paths apart.
    pub(super) fn new(
        program: Program,
        is_http: bool,
        folder: &Path,
        number: u8,
        client: &Pod,
        servers: [&Pod; 2],
    ) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let mut plans =
            Vec::from([Plan { side: Side::Client, netns: client.netns.clone(), forwards: Vec::new() }]);
        for (at, server) in servers.into_iter().enumerate() {
            // On one node the barest relay needs no other.
            let alone = matches!(program, Program::Relay) && at > 0;
            let mut forwards = Vec::new();
            for (port, (service, speaks)) in (wire_port(number)..).zip(ports::ALL) {
                let wire = SocketAddrV4::new(server.v4, if alone { service } else { port });
                let dialled = SocketAddrV4::new(dialled(number, at), service);
                plans[0].forwards.push(Forward { listen: dialled, target: wire, speaks });
                let app = SocketAddrV4::new(Ipv4Addr::LOCALHOST, service);
                forwards.push(Forward { listen: wire, target: app, speaks });
            }
            if !alone {
                plans.push(Plan { side: Side::Server, netns: server.netns.clone(), forwards });
            }
        }
        Ok(Self { program, is_http, folder: folder.to_owned(), plans, running: Vec::new() })
    }

    /// Starts all, or all anew, and waits until they listen.
    pub(super) fn restart(&mut self, keys: &Keys) -> Result<()> {
        self.stop();
        for (number, plan) in self.plans.iter().enumerate() {
            let log = self.folder.join(format!("{number}.log"));
            let mut command = self.command(number, plan, keys)?;
            self.running.push(Process::start(command.process_group(0), &log)?);
        }
        for (process, plan) in self.running.iter_mut().zip(&self.plans) {
            eventually(START_LIMIT, || listens(process, plan))?;
        }
        Ok(())
    }

    /// The leaders of their process groups: the client's, and the servers' in the order in which they were given.
    pub(super) fn leaders(&self) -> Vec<u32> {
        self.running.iter().map(Process::id).collect()
    }

    /// The last that they have said, for messages.
    pub(super) fn output(&self) -> String {
        let said = self.running.iter().map(|process| process::tail(&process.output()));
        said.collect()
    }

    /// Whether they promise that nobody else is let in.
    pub(super) fn speak_tls(&self) -> bool {
        !matches!(self.program, Program::Relay)
    }

    /// What is in the way of a peer that should be refused: whether the server's proxy takes a stranger with a valid certificate.
    /// That it takes the right client is asked first, by the same means.
    pub(super) fn refuses_strangers(&self, keys: &Keys) -> Result<bool> {
        let [client, server, ..] = self.plans.as_slice() else { bail!("no proxies") };
        let echo = ports::ALL.iter().position(|(port, _)| *port == ports::ECHO).context("no echo server")?;
        let to = server.forwards[echo].listen;
        let comes_back = |leaf: &Leaf| -> Result<bool> {
            let mut command = client.netns.command("timeout");
            command.args(["1", "openssl", "s_client", "-quiet", "-tls1_3", "-connect", &to.to_string()]);
            command.arg("-cert").arg(&leaf.certificate).arg("-key").arg(&leaf.key);
            command.arg("-CAfile").arg(&keys.roots).arg("-verify_return_error");
            // Some speak TLS to those only who offer a protocol they know; ours offer none.
            let done = process::run_with_input(&mut command, "is anybody there\n", Duration::from_secs(5))?;
            Ok(done.stdout.contains("is anybody there"))
        };
        ensure!(
            comes_back(&keys.client)?,
            "{to} does not speak mutual TLS 1.3 with a client of the right identity"
        );
        Ok(!comes_back(&keys.stranger)?)
    }

    fn stop(&mut self) {
        for process in &mut self.running {
            process.kill_group();
        }
        self.running.clear();
    }

    fn command(&self, number: usize, plan: &Plan, keys: &Keys) -> Result<Command> {
        let configuration = |name: &str, text: String| -> Result<PathBuf> {
            let file = self.folder.join(format!("{number}.{name}"));
            fs::write(&file, text).with_context(|| file.display().to_string())?;
            Ok(file)
        };
        Ok(match &self.program {
            Program::Envoy(binary) => {
                let text = envoy::bootstrap(plan.side, keys, &plan.forwards, self.is_http);
                let mut command = plan.netns.command(binary);
                command.args(["--disable-hot-restart", "--log-level", "error", "-c"]);
                command.arg(configuration("json", text)?);
                command
            }
            Program::HaProxy(binary) => {
                let text = haproxy::configuration(plan.side, keys, &plan.forwards, self.is_http);
                let mut command = plan.netns.command(binary);
                command.arg("-db").arg("-f").arg(configuration("cfg", text)?);
                command.env("LD_LIBRARY_PATH", binary.parent().unwrap_or(Path::new(".")));
                command
            }
            Program::Relay => {
                let mut command = tool(&plan.netns)?;
                command.arg("relay").args(plan.forwards.iter().map(|way| plan.relayed(way)));
                command
            }
            Program::Shell(words) => {
                let mut command = plan.netns.command("sh");
                command.args(["-c", words]);
                tell(&mut command, plan, keys);
                command
            }
        })
    }
}

impl Plan {
    /// A way, as `tool relay` wants to be told of it.
    fn relayed(&self, Forward { listen, target, .. }: &Forward) -> String {
        let kind = match self.side {
            Side::Server => "in",
            Side::Client if ports::ALL.iter().any(|(service, _)| *service == target.port()) => "through",
            Side::Client => "out",
        };
        format!("{kind}:{listen}={target}")
    }
}

impl Drop for Proxies {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Side {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

impl Forward {
    /// A name that no other way through the same proxy has.
    pub(super) fn name(&self) -> String {
        format!("from-{}-{}", self.listen.ip(), self.listen.port())
    }
}

/// The address at which the client dials the server with this index.
pub(super) fn dialled(number: u8, server: usize) -> Ipv4Addr {
    Ipv4Addr::new(127, 1, number, if server == 0 { 1 } else { 2 })
}

/// What `--path` promises to its command.
fn tell(command: &mut Command, plan: &Plan, keys: &Keys) {
    let (own, peer) = match plan.side {
        Side::Client => (&keys.client, &keys.server),
        Side::Server => (&keys.server, &keys.client),
    };
    let forwards: Vec<String> =
        plan.forwards.iter().map(|way| format!("{}={}", way.listen, way.target)).collect();
    command
        .env("BENCH_SIDE", plan.side.name())
        .env("BENCH_FORWARDS", forwards.join(" "))
        .env("BENCH_CERTIFICATE", &own.certificate)
        .env("BENCH_KEY", &own.key)
        .env("BENCH_CERTIFICATE_AND_KEY", &own.both)
        .env("BENCH_ROOTS", &keys.roots)
        .env("BENCH_IDENTITY", &own.identity)
        .env("BENCH_PEER_IDENTITY", &peer.identity)
        .env("BENCH_PEER_NAME", &peer.name);
}

fn wire_port(number: u8) -> u16 {
    WIRE_PORT + 10 * u16::from(number)
}

/// Demands that the kernel has a listening socket for each way, in the namespace of the process.
fn listens(process: &mut Process, plan: &Plan) -> Result<()> {
    ensure!(process.runs(), "a proxy has ended: {}", process::tail(&process.output()));
    let table = fs::read_to_string(format!("/proc/{}/net/tcp", process.id()))?;
    for Forward { listen, .. } in &plan.forwards {
        let entry = format!(
            " {:08X}:{:04X} 00000000:0000 0A ",
            u32::from_ne_bytes(listen.ip().octets()),
            listen.port()
        );
        ensure!(
            table.contains(&entry),
            "a proxy does not listen on {listen}: {}",
            process::tail(&process.output())
        );
    }
    Ok(())
}
