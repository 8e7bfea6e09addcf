//! `ambit ca` as an operator runs it, on a node of a scene: the real service, its callers, its audit log.
//!
//! Leaves the agents that ask it to the scene, and what is asked of it by hand to [`crate::tools`].

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    certs, load,
    netns::Netns,
    process::{self, Process},
    tools::{Answer, Issued},
    world::World,
};

/// Where replicas listen, each on the address of its node.
const PORT: u16 = 15012;
/// The name in the service's certificate.
pub const SERVER_NAME: &str = "ambit-ca.test";

/// The certificate service of a scene: a replica on each node, over one folder with a plugged-in CA, and a caller for each
/// node's agent.
#[derive(Debug)]
pub struct CaService {
    binary: PathBuf,
    folder: PathBuf,
    flags: Vec<String>,
    replicas: [Replica; 2],
}

/// One process of the service; running or not.
#[derive(Debug)]
pub struct Replica {
    netns: Netns,
    addr: SocketAddr,
    log: PathBuf,
    process: Option<Process>,
}

/// One line of the audit log.
#[derive(Clone, Debug)]
pub struct Audited {
    /// Seconds since midnight.
    pub at: f64,
    /// `issued` or `refused`.
    pub outcome: String,
    /// Everything in the line.
    pub line: Value,
}

impl CaService {
    /// Makes the CA (an intermediate under a root, by openssl) and the callers. `identities[n]` are the lines below the
    /// caller of node n+1 that say what it may ask for. Nothing runs yet.
    pub fn prepare(world: &World, identities: [&str; 2], flags: &[&str]) -> Result<Self> {
        let folder = world.folder.join("certificate-service");
        certs::plugged_in_authority(&folder.join("cacerts"))?;
        let mut callers = "callers:\n".to_owned();
        let mut replicas = Vec::new();
        for (number, node) in world.topology.nodes.iter().enumerate() {
            let token = format!("token-of-{}-0123456789", node.name);
            fs::write(folder.join(format!("token-{number}")), &token)?;
            callers += &format!("- node: {}\n  token: {token}\n  {}\n", node.name, identities[number]);
            replicas.push(Replica {
                netns: node.netns.clone(),
                addr: SocketAddr::new(node.v4.into(), PORT),
                log: folder.join(format!("replica-{number}.log")),
                process: None,
            });
        }
        let file = folder.join("callers.yaml");
        fs::write(&file, callers)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
        let replicas = replicas.try_into().ok().context("two nodes")?;
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        Ok(Self { binary: world.binary.clone(), folder, flags, replicas })
    }

    /// Starts both replicas.
    pub fn start(&mut self) -> Result<()> {
        (0..self.replicas.len()).try_for_each(|replica| self.start_replica(replica))
    }

    /// Starts one of them and waits until it serves.
    pub fn start_replica(&mut self, replica: usize) -> Result<()> {
        let Self { binary, folder, flags, replicas } = self;
        let replica = &mut replicas[replica];
        let mut command = replica.netns.command(&*binary);
        command.args(["ca", "--listen", &replica.addr.to_string(), "--dns-name", SERVER_NAME]);
        command.arg("--cacerts").arg(folder.join("cacerts"));
        command.arg("--token-file").arg(folder.join("callers.yaml"));
        command.args(["--log", "info", "--log-format", "json"]).args(flags);
        command.env("RUST_BACKTRACE", "1").env_remove("RUST_LOG");
        let before = fs::read_to_string(&replica.log).unwrap_or_default().len();
        let mut process = Process::start(&mut command, &replica.log)?;
        process::eventually(Duration::from_secs(10), || {
            ensure!(process.runs(), "ambit ca has ended: {}", process::tail(&process.output()));
            let log = process.output();
            ensure!(log[before.min(log.len())..].contains("CA service started"), "ambit ca does not serve");
            Ok(())
        })?;
        replica.process = Some(process);
        Ok(())
    }

    /// Kills both replicas.
    pub fn kill(&mut self) {
        self.replicas.iter_mut().for_each(|replica| replica.process = None);
    }

    /// Makes the agents of `world` ask this service, each the replica on its own node. Before they are started.
    pub fn serve_agents(&self, world: &mut World) {
        for (number, agent) in world.agents.iter_mut().enumerate() {
            let (token, root) = (self.token(number), self.root());
            agent.add_flags(&["--issuer", "istio", "--ca-server-name", SERVER_NAME]);
            agent.add_flags(&["--ca-address", &self.replicas[number].addr.to_string()]);
            agent.add_flags(&["--ca-root", &root.display().to_string()]);
            agent.add_flags(&["--ca-token-file", &token.display().to_string()]);
        }
    }

    /// The token of a node's agent.
    pub fn token(&self, node: usize) -> PathBuf {
        self.folder.join(format!("token-{node}"))
    }

    /// The roots that go with every certificate.
    pub fn root(&self) -> PathBuf {
        self.folder.join("cacerts/root-cert.pem")
    }

    /// Where the CA's files are.
    pub fn cacerts(&self) -> PathBuf {
        self.folder.join("cacerts")
    }

    /// The processes of the running replicas.
    pub fn pids(&self) -> Vec<u32> {
        self.replicas.iter().filter_map(|replica| replica.process.as_ref().map(Process::id)).collect()
    }

    /// Asks a replica by hand, with further flags of the tool `create-certificate`.
    pub fn ask(&self, replica: usize, csr: &Path, flags: &[&str]) -> Result<Answer> {
        let replica = &self.replicas[replica];
        let mut command = load::tool(&replica.netns)?;
        command.args(["create-certificate", "--to", &replica.addr.to_string(), "--server-name", SERVER_NAME]);
        command.arg("--root").arg(self.root()).arg("--csr").arg(csr).args(flags);
        let text = process::run(&mut command, Duration::from_secs(30))?.ok()?;
        serde_json::from_str(&text).context("the answer of create-certificate")
    }

    /// Asks the first `replicas` for certificates of `identity` for `seconds`, as often as they answer.
    pub fn load(&self, replicas: usize, identity: &str, seconds: u32) -> Result<Issued> {
        let csr = certs::request(&self.folder, "load", &[&format!("URI:{identity}")])?.certificate;
        let mut command: Command = load::tool(&self.replicas[0].netns)?;
        command.args(["issue-load", "--server-name", SERVER_NAME, "--identity", identity]);
        command.arg("--root").arg(self.root()).arg("--csr").arg(csr).arg("--token").arg(self.token(0));
        command.args(["--for-ms", &(seconds * 1000).to_string()]);
        for replica in &self.replicas[..replicas] {
            command.args(["--to", &replica.addr.to_string()]);
        }
        let text = process::run(&mut command, Duration::from_secs(u64::from(seconds) + 30))?.ok()?;
        serde_json::from_str(&text).context("the answer of issue-load")
    }

    /// The audit log of all replicas so far.
    pub fn audit(&self) -> Vec<Audited> {
        let logs = self.replicas.iter().map(|replica| fs::read_to_string(&replica.log).unwrap_or_default());
        logs.flat_map(|log| log.lines().filter_map(Audited::read).collect::<Vec<_>>()).collect()
    }
}

impl Audited {
    fn read(line: &str) -> Option<Self> {
        let line: Value = serde_json::from_str(line).ok()?;
        let audit = line["target"] == "audit";
        let outcome = line["outcome"].as_str()?.to_owned();
        let (_, time) = line["time"].as_str()?.split_once('T')?;
        let mut parts = time.trim_end_matches('Z').split(':').map(str::parse::<f64>);
        let (hours, minutes, seconds) = (parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?);
        audit.then_some(Self { at: hours * 3600.0 + minutes * 60.0 + seconds, outcome, line })
    }
}

/// The most events within any `window` seconds, and the mean of all such windows. The day may turn once.
pub fn peak_and_mean(mut at: Vec<f64>, window: f64) -> (usize, f64) {
    const DAY: f64 = 86_400.0;
    let late = at.iter().any(|at| *at > DAY * 0.75);
    at.iter_mut().filter(|at| late && **at < DAY * 0.25).for_each(|at| *at += DAY);
    at.sort_by(f64::total_cmp);
    let (Some(first), Some(last)) = (at.first(), at.last()) else { return (0, 0.0) };
    let within = |from: f64| at.iter().filter(|at| (from..from + window).contains(*at)).count();
    let peak = at.iter().map(|from| within(*from)).max().unwrap_or(0);
    (peak, at.len() as f64 * window / (last - first).max(window))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_are_found_wherever_the_window_lies_and_over_midnight() {
        let even: Vec<f64> = (0..100).map(f64::from).collect();
        let (peak, mean) = peak_and_mean(even, 10.0);
        assert_eq!(peak, 10);
        assert!((mean - 10.0).abs() < 0.2, "{mean}");
        assert_eq!(peak_and_mean(vec![86_399.5, 0.4, 0.2, 5.0], 1.0).0, 3);
        assert_eq!(peak_and_mean(vec![], 1.0), (0, 0.0));
    }

    #[test]
    fn audit_lines_are_told_from_others() {
        let line = |target: &str| {
            format!("{{\"time\":\"2026-11-21T10:00:01.5Z\",\"target\":\"{target}\",\"outcome\":\"issued\"}}")
        };
        let audited = Audited::read(&line("audit")).unwrap();
        assert_eq!((audited.at, audited.outcome.as_str()), (36_001.5, "issued"));
        assert!(Audited::read(&line("ambit")).is_none() && Audited::read("no JSON").is_none());
    }
}
