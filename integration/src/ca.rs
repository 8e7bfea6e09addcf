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

/// What runs on the two nodes, as the file of callers says it.
const BY_NODE: [&str; 2] =
    ["service-accounts: [shop/a, shop/e]\n  namespaces: [crowd]", "service-accounts: [shop/b]"];

/// The certificate service of a scene: a replica on each node, over one folder with a plugged-in CA, and a caller for each
/// node's agent.
#[derive(Debug)]
pub struct CaService {
    folder: PathBuf,
    replicas: [Replica; 2],
}

/// One process of the service; running or not.
#[derive(Debug)]
pub struct Replica {
    binary: PathBuf,
    netns: Netns,
    /// Where it listens.
    pub addr: SocketAddr,
    flags: Vec<String>,
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
    /// Makes the CA (an intermediate under a root, by openssl) and the callers: the agents of both nodes, each for what runs
    /// there. Nothing runs yet.
    pub fn prepare(world: &World, flags: &[&str]) -> Result<Self> {
        let folder = world.folder.join("certificate-service");
        certs::plugged_in_authority(&folder.join("cacerts"))?;
        let (cacerts, file) = (folder.join("cacerts"), folder.join("callers.yaml"));
        let (cacerts, callers_file) = (cacerts.display().to_string(), file.display().to_string());
        let own = ["--cacerts", &cacerts, "--token-file", &callers_file];
        let flags = [&own[..], flags].concat();
        let mut callers = "callers:\n".to_owned();
        let mut replicas = Vec::new();
        for (number, node) in world.topology.nodes.iter().enumerate() {
            let token = format!("token-of-{}-0123456789", node.name);
            fs::write(folder.join(format!("token-{number}")), &token)?;
            callers += &format!("- node: {}\n  token: {token}\n  {}\n", node.name, BY_NODE[number]);
            let addr = SocketAddr::new(node.v4.into(), PORT);
            let log = folder.join(format!("replica-{number}.log"));
            replicas.push(Replica::new(&world.binary, &node.netns, addr, &log, &flags));
        }
        fs::write(&file, callers)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
        let replicas = replicas.try_into().ok().context("two nodes")?;
        Ok(Self { folder, replicas })
    }

    /// Starts both replicas and waits until they serve.
    pub fn start(&mut self) -> Result<()> {
        self.replicas.iter_mut().try_for_each(Replica::spawn)?;
        self.replicas.iter_mut().try_for_each(Replica::wait_serving)
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
        self.replicas[replica].ask(&self.root(), csr, flags)
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
        self.replicas.iter().flat_map(Replica::audit).collect()
    }
}

impl Replica {
    /// One that is not started yet; `flags` say what it signs with and for whom.
    pub fn new(binary: &Path, netns: &Netns, addr: SocketAddr, log: &Path, flags: &[&str]) -> Self {
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let (binary, netns, log) = (binary.to_owned(), netns.clone(), log.to_owned());
        Self { binary, netns, addr, flags, log, process: None }
    }

    /// Starts it, without waiting.
    pub fn spawn(&mut self) -> Result<()> {
        let mut command = self.netns.command(&self.binary);
        command.args(["ca", "--listen", &self.addr.to_string(), "--dns-name", SERVER_NAME]);
        command.args(["--log", "info", "--log-format", "json"]).args(&self.flags);
        command.env("RUST_BACKTRACE", "1").env_remove("RUST_LOG");
        // What an earlier process of it has logged stays, but says nothing of this one.
        let earlier = self.log.with_extension("earlier.log");
        if let Ok(log) = fs::read(&self.log) {
            fs::write(&earlier, [fs::read(&earlier).unwrap_or_default(), log].concat())?;
            fs::remove_file(&self.log)?;
        }
        self.process = Some(Process::start(&mut command, &self.log)?);
        Ok(())
    }

    /// Waits until it serves.
    pub fn wait_serving(&mut self) -> Result<()> {
        let process = self.process.as_mut().context("the replica was not started")?;
        process.wait_for("CA service started", Duration::from_secs(20))
    }

    /// Asks it by hand, with further flags of the tool `create-certificate`; its own certificate must lead to `root`.
    pub fn ask(&self, root: &Path, csr: &Path, flags: &[&str]) -> Result<Answer> {
        let mut command = load::tool(&self.netns)?;
        command.args(["create-certificate", "--to", &self.addr.to_string(), "--server-name", SERVER_NAME]);
        command.arg("--root").arg(root).arg("--csr").arg(csr).args(flags);
        let text = process::run(&mut command, Duration::from_secs(30))?.ok()?;
        serde_json::from_str(&text).context("the answer of create-certificate")
    }

    /// Its audit log so far.
    pub fn audit(&self) -> Vec<Audited> {
        let logs = [self.log.with_extension("earlier.log"), self.log.clone()];
        let logs = logs.map(|log| fs::read_to_string(log).unwrap_or_default());
        logs.iter().flat_map(|log| log.lines().filter_map(Audited::read)).collect()
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
