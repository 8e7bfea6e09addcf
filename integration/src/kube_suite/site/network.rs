//! What pods do on the network, and what is seen of it between the nodes.

use std::{net::SocketAddr, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Site, Wire};
use crate::{
    agent::Metrics,
    capture::{Capture, is_tls},
    kube_suite::Pod,
    load::ports,
    process::{self, Finished, Process},
    suite::marker,
    tools::{Attempt, Tally},
};

impl Site {
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

    /// A scrape of the agent of a node.
    pub fn metrics(&self, node: &str) -> Result<Metrics> {
        let access = self.cluster.access();
        let url = format!("http://{}:15020/metrics", access.address(node)?);
        let mut curl = access.outside().command("curl");
        let text =
            process::run(curl.args(["-sSf", "-m", "10", "--noproxy", "*", &url]), Duration::from_secs(15))?;
        Ok(Metrics::of(text.ok()?))
    }

    /// Captures TCP on the wire of a node.
    pub fn capture(&self, node: &str, name: &str) -> Result<Capture> {
        let netns = self.cluster.access().netns(node)?;
        Capture::start(netns, "eth0", self.cluster.folder(), &format!("{name}-{node}"))
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
