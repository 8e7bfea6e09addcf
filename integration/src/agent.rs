//! One node's agent, driven as an operator drives it: command line, signals, status, metrics, logs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    process::{self, Finished, Process, eventually},
    topology::Node,
};

/// How long an agent may take from its start to readiness.
pub const START_LIMIT: Duration = Duration::from_secs(15);
/// How soon a change to a manifest must be in force: a second, with an allowance for the probe that finds out.
pub const IN_FORCE: Duration = Duration::from_millis(1_500);

const METRICS: &str = "127.0.0.1:15020";

/// Where an agent's files are.
#[derive(Clone, Debug)]
pub struct Paths {
    /// The daemon.
    pub binary: PathBuf,
    /// The watched folder, shared by both agents.
    pub manifests: PathBuf,
    /// The built-in CA's folder, shared by both agents.
    pub ca: PathBuf,
    /// For this agent's run directory and log.
    pub scratch: PathBuf,
}

/// An agent of one node; running or not.
#[derive(Debug)]
pub struct Agent {
    node: Node,
    paths: Paths,
    extra: Vec<String>,
    /// The `cgroup.procs` of the group that it runs in.
    group: Option<PathBuf>,
    process: Option<Process>,
}

impl Agent {
    /// An agent that is not started yet, with `extra` flags.
    pub fn new(node: &Node, paths: &Paths, extra: &[&str]) -> Self {
        let extra = extra.iter().map(|flag| (*flag).to_owned()).collect();
        Self { node: node.clone(), paths: paths.clone(), extra, group: None, process: None }
    }

    /// Adds flags, in force from the next start on.
    pub fn add_flags(&mut self, flags: &[&str]) {
        self.extra.extend(flags.iter().map(|flag| (*flag).to_owned()));
    }

    /// Has it start with these flags, beside the usual ones, from the next start on.
    pub fn set_flags(&mut self, flags: &[&str]) {
        self.extra = flags.iter().map(|flag| (*flag).to_owned()).collect();
    }

    /// Has it watch a folder of its own, from the next start on.
    pub fn watch(&mut self, manifests: &Path) {
        manifests.clone_into(&mut self.paths.manifests);
    }

    /// Has it run in the group with this `cgroup.procs`, from the next start on.
    pub fn enter(&mut self, group: PathBuf) {
        self.group = Some(group);
    }

    /// Starts it, without waiting.
    pub fn spawn(&mut self) -> Result<()> {
        fs::create_dir_all(self.run_dir()).context("run directory")?;
        self.process = Some(Process::start(&mut self.command(), &self.log_file())?);
        Ok(())
    }

    /// Starts it and waits until it is ready.
    pub fn start(&mut self) -> Result<()> {
        self.spawn()?;
        self.wait_ready()
    }

    /// Waits until it says that it is ready.
    pub fn wait_ready(&mut self) -> Result<()> {
        let deadline = process::deadline(START_LIMIT);
        loop {
            if !self.runs() {
                bail!("the agent of {} has ended: {}", self.node.name, process::tail(&self.log()));
            }
            match self.http("/healthz/ready") {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    return Err(error.context(format!(
                        "the agent of {} is not ready after {START_LIMIT:?}: {}",
                        self.node.name,
                        process::tail(&self.log())
                    )));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(25)),
            }
        }
    }

    /// Kills it with SIGKILL and waits for its end.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Stops it as a service manager would, with SIGTERM, and demands a clean exit.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.signal(Signal::SIGTERM);
            let status = process.wait(Duration::from_secs(15))?;
            ensure!(
                status.success(),
                "after SIGTERM the agent ended with {status}: {}",
                process::tail(&self.log())
            );
        }
        Ok(())
    }

    /// Starts another agent beside it, with the same flags.
    pub fn successor(&self) -> Result<Process> {
        Process::start(&mut self.command(), &self.log_file())
    }

    /// Has `new` be the agent from now on; answers with the process that was.
    pub fn replace(&mut self, new: Process) -> Option<Process> {
        self.process.replace(new)
    }

    /// The process, which is then no longer this agent's.
    pub fn take(&mut self) -> Option<Process> {
        self.process.take()
    }

    /// Whether its process is alive.
    pub fn runs(&mut self) -> bool {
        self.process.as_mut().is_some_and(Process::runs)
    }

    /// Its process id.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.process.as_ref().context("the agent is not running")?.id())
    }

    /// The command that starts it, for a second one beside it.
    pub fn command(&self) -> Command {
        let mut command = match &self.group {
            None => self.node.netns.command(&self.paths.binary),
            Some(group) => {
                let mut command = self.node.netns.command("sh");
                command.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(group).arg(&self.paths.binary);
                command
            }
        };
        command.args(["agent", "--node", &self.node.name]);
        command.arg("--manifests").arg(&self.paths.manifests);
        if !self.extra.iter().any(|flag| flag == "--issuer") {
            command.arg("--ca-dir").arg(&self.paths.ca);
        }
        command.arg("--run-dir").arg(self.run_dir());
        command.args(["--metrics-addr", METRICS, "--log", "info"]);
        if !self.extra.iter().any(|flag| flag == "--log-format") {
            command.args(["--log-format", "text"]);
        }
        command.args(&self.extra).env("RUST_BACKTRACE", "1").env_remove("RUST_LOG");
        command
    }

    /// Everything it has logged since the world was made, over restarts.
    pub fn log(&self) -> String {
        written();
        fs::read(self.log_file()).map(|raw| String::from_utf8_lossy(&raw).into_owned()).unwrap_or_default()
    }

    /// A mark in the log; [`Agent::log_since`] tells what came after it.
    pub fn mark(&self) -> usize {
        written();
        fs::metadata(self.log_file())
            .map(|file| usize::try_from(file.len()).unwrap_or(usize::MAX))
            .unwrap_or(0)
    }

    /// What it has logged since `mark`.
    pub fn log_since(&self, mark: usize) -> String {
        written();
        let raw = fs::read(self.log_file()).unwrap_or_default();
        String::from_utf8_lossy(raw.get(mark..).unwrap_or_default()).into_owned()
    }

    /// Waits for one line after `mark` that has every one of `words`; returns it.
    pub fn wait_log(&self, mark: usize, words: &[&str]) -> Result<String> {
        eventually(Duration::from_secs(5), || {
            let log = self.log_since(mark);
            let line = log.lines().find(|line| words.iter().all(|word| line.contains(word)));
            line.map(str::to_owned).with_context(|| {
                format!("no line of the agent's log has all of {words:?}: {}", process::tail(&log))
            })
        })
    }

    /// Whether its binary is optimised.
    pub fn is_optimised(&self) -> Result<bool> {
        let version = process::must(Command::new(&self.paths.binary).arg("--version"))?;
        Ok(!version.contains("not optimised"))
    }

    /// `ambit status -o json`.
    pub fn status(&self) -> Result<Value> {
        let mut command = Command::new(&self.paths.binary);
        command.args(["status", "-o", "json", "--run-dir"]).arg(self.run_dir());
        serde_json::from_str(&process::must(&mut command)?).context("ambit status -o json printed no JSON")
    }

    /// A command that asks this agent.
    pub fn command_for(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.paths.binary);
        command.args(arguments).arg("--run-dir").arg(self.run_dir());
        command
    }

    /// Runs a command that asks this agent, whatever its exit code.
    pub fn run(&self, arguments: &[&str]) -> Result<Finished> {
        process::run(&mut self.command_for(arguments), Duration::from_secs(10))
    }

    /// What a command that asks this agent prints with `-o json`.
    pub fn ask(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.run(&[arguments, &["-o", "json"]].concat())?.ok()?;
        serde_json::from_str(&text).with_context(|| format!("{arguments:?} printed no JSON: {text}"))
    }

    /// `ambit certs -o json`.
    pub fn certs(&self) -> Result<Value> {
        let mut command = Command::new(&self.paths.binary);
        command.args(["certs", "-o", "json", "--run-dir"]).arg(self.run_dir());
        serde_json::from_str(&process::must(&mut command)?).context("ambit certs -o json printed no JSON")
    }

    /// `ambit certs -o pem` of identities that have `identity` in them: their chains, then the roots.
    pub fn certs_pem(&self, identity: &str) -> Result<String> {
        let mut command = Command::new(&self.paths.binary);
        process::must(command.args(["certs", identity, "-o", "pem", "--run-dir"]).arg(self.run_dir()))
    }

    /// `ambit status` as a person reads it.
    pub fn status_text(&self) -> Result<String> {
        process::must(Command::new(&self.paths.binary).args(["status", "--run-dir"]).arg(self.run_dir()))
    }

    /// Its Prometheus metrics.
    pub fn metrics(&self) -> Result<Metrics> {
        Ok(Metrics(self.http("/metrics")?))
    }

    /// `ambit uninstall` for its node.
    pub fn uninstall(&self) -> Result<Finished> {
        let mut command = Command::new(&self.paths.binary);
        command.args(["uninstall", "--node", &self.node.name, "--run-dir"]).arg(self.run_dir());
        process::run(&mut command, Duration::from_secs(20))
    }

    /// How many file descriptors it has open.
    pub fn open_files(&self) -> Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.pid()?))?.count())
    }

    /// Its resident memory, in KiB.
    pub fn resident_kib(&self) -> Result<u64> {
        process::resident_kib(self.pid()?.cast_signed())
    }

    /// The same without code and constants, in KiB.
    pub fn own_kib(&self) -> Result<u64> {
        process::own_kib(self.pid()?.cast_signed())
    }

    /// The node it serves.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// The folder of its socket.
    pub fn run_dir(&self) -> PathBuf {
        self.paths.scratch.join("run")
    }

    fn log_file(&self) -> PathBuf {
        self.paths.scratch.join("agent.log")
    }

    fn http(&self, path: &str) -> Result<String> {
        let mut curl = self.node.netns.command("curl");
        process::must(curl.args(["-sS", "-f", "-m", "5", &format!("http://{METRICS}{path}")]))
    }
}

/// The scratch folder of a node's agent below `world`.
pub fn scratch(world: &Path, node: usize) -> PathBuf {
    world.join(format!("node{}", node + 1))
}

/// A scrape of an agent's metrics.
#[derive(Clone, Debug)]
pub struct Metrics(String);

impl Metrics {
    /// What a scrape has answered.
    pub fn of(text: String) -> Self {
        Self(text)
    }

    /// The scrape as it is.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// The sum of all samples of `name` whose labels contain every one of `labels`, each written `key="value"`.
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let samples = self.0.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let rest = series.strip_prefix(name)?;
            let all =
                (rest.is_empty() || rest.starts_with('{')) && labels.iter().all(|label| rest.contains(label));
            if all { value.parse::<f64>().ok() } else { None }
        });
        samples.fold(0.0, |sum, value| sum + value)
    }

    /// The sum of all counters of which some label has the value `value`.
    pub fn sum_of_value(&self, value: &str) -> f64 {
        let wanted = format!("=\"{value}\"");
        let samples = self.0.lines().filter_map(|line| {
            let (series, number) = line.rsplit_once(' ')?;
            let (name, labels) = series.split_once('{')?;
            if name.ends_with("_total") && labels.contains(&wanted) {
                number.parse::<f64>().ok()
            } else {
                None
            }
        });
        samples.fold(0.0, |sum, value| sum + value)
    }
}

/// Waits until what agents have logged so far is written: they gather lines for 10 ms.
fn written() {
    std::thread::sleep(Duration::from_millis(25));
}

#[cfg(test)]
mod tests {
    use super::Metrics;

    #[test]
    fn samples_are_summed_by_name_and_labels() {
        let metrics = Metrics(
            "# TYPE a counter\na_total{x=\"1\",y=\"2\"} 3\na_total{x=\"1\",y=\"3\"} 4\na_total_created{x=\"1\"} 9\nb 5\n# EOF\n"
                .to_owned(),
        );
        assert_eq!(metrics.sum("a_total", &[]), 7.0);
        assert_eq!(metrics.sum("a_total", &["x=\"1\"", "y=\"3\""]), 4.0);
        assert_eq!(metrics.sum("b", &[]), 5.0);
        assert_eq!(metrics.sum("none", &[]), 0.0);
        assert_eq!(metrics.sum_of_value("1"), 7.0);
    }
}
