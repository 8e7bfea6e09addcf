//! Load between two pods, and the figures of it, by the same programs whatever lies between them.

use std::{
    path::Path,
    process::Command,
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    netns::Netns,
    process::{self, Finished, Process},
    tools::Latency,
    topology::Pod,
};

/// Ports of the servers that [`Servers`] runs in a pod.
pub mod ports {
    /// HTTP.
    pub const HTTP: u16 = 8080;
    /// HTTP, a second one, behind the named port `admin`.
    pub const ADMIN: u16 = 8081;
    /// Echo.
    pub const ECHO: u16 = 9000;
    /// Speaks first, and says whom it sees.
    pub const WHOAMI: u16 = 9001;
    /// Answers at length after the client's FIN.
    pub const HALF_CLOSE: u16 = 9002;
    /// Resets.
    pub const RESET: u16 = 9003;
    /// The first of those that iperf3 servers take in turn.
    pub const IPERF: u16 = 5201;
}

/// How long the answer of the half-close server is, without its first line.
pub const HALF_CLOSE_BYTES: usize = 4_000_000;

/// The figures of one way between two pods.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Figures {
    /// One TCP stream, in Gbit/s.
    pub one_stream_gbps: f64,
    /// Eight TCP streams together, in Gbit/s.
    pub eight_streams_gbps: f64,
    /// A 128-byte round trip, median, in microseconds.
    pub round_trip_p50_us: f64,
    /// The same, 99th percentile.
    pub round_trip_p99_us: f64,
    /// HTTP requests a second over 32 connections kept alive.
    pub http_requests_per_second: f64,
    /// HTTP requests a second with a connection for each, 32 at a time.
    pub connections_per_second: f64,
}

/// The servers of one pod, on every address it has.
#[derive(Debug)]
pub struct Servers {
    _processes: Vec<Process>,
}

/// What a command of the harness's own tools needs: the program that has them.
pub fn tool(netns: &Netns) -> Result<Command> {
    let mut command = netns.command(std::env::current_exe().context("own executable")?);
    command.arg("tool");
    Ok(command)
}

/// The same outside of every namespace.
pub fn own_tool() -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("own executable")?);
    command.arg("tool");
    Ok(command)
}

impl Servers {
    /// Starts all of them and waits until each takes connections.
    pub fn start(pod: &Pod, folder: &Path) -> Result<Self> {
        let bytes = HALF_CLOSE_BYTES.to_string();
        let tools: [(&str, u16, &[&str]); 6] = [
            ("http-server", ports::HTTP, &[]),
            ("http-server", ports::ADMIN, &[]),
            ("echo-server", ports::ECHO, &[]),
            ("whoami-server", ports::WHOAMI, &[]),
            ("answer-after-eof", ports::HALF_CLOSE, &["--bytes", &bytes]),
            ("reset-server", ports::RESET, &[]),
        ];
        let mut processes = Vec::new();
        for (name, port, extra) in tools {
            let mut command = tool(&pod.netns)?;
            command.args([name, "--listen", &format!("[::]:{port}")]).args(extra);
            let log = folder.join(format!("{}-{name}-{port}.log", pod.name));
            processes.push(Process::start(&mut command, &log)?);
        }
        for process in &mut processes {
            process.wait_for("ready", Duration::from_secs(10))?;
        }
        Ok(Self { _processes: processes })
    }
}

/// A way to be loaded: from one pod to another, whose [`Servers`] run.
#[derive(Clone, Copy, Debug)]
pub struct Lane<'a> {
    /// Where clients run.
    pub client: &'a Pod,
    /// Where servers run.
    pub server: &'a Pod,
    /// For logs.
    pub scratch: &'a Path,
}

type Measure = fn(&Lane<'_>, u32, &mut Figures) -> Result<()>;

const LOADS: [(&str, Measure); 5] = [
    ("one stream", |lane, seconds, figures| {
        figures.one_stream_gbps = lane.iperf(seconds, &[])?.gbps();
        Ok(())
    }),
    ("eight streams", |lane, seconds, figures| {
        figures.eight_streams_gbps = lane.iperf(seconds, &["-P", "8"])?.gbps();
        Ok(())
    }),
    ("round trip", |lane, seconds, figures| {
        let latency = lane.ping_pong(seconds * 1000)?;
        (figures.round_trip_p50_us, figures.round_trip_p99_us) = (latency.p50_us, latency.p99_us);
        Ok(())
    }),
    ("HTTP keep-alive", |lane, seconds, figures| {
        figures.http_requests_per_second = lane.wrk(seconds, false)?;
        Ok(())
    }),
    ("HTTP close", |lane, seconds, figures| {
        figures.connections_per_second = lane.wrk(seconds, true)?;
        Ok(())
    }),
];

/// Measures ways by each load in turn, for `seconds` each: what else the machine does hits all of them alike. `progress` is
/// told the load and the name of the way.
pub fn side_by_side<const N: usize>(
    ways: [(&str, Lane<'_>); N],
    seconds: u32,
    mut progress: impl FnMut(&str, &str),
) -> Result<[Figures; N]> {
    let mut figures = [Figures::default(); N];
    for (load, measure) in LOADS {
        for ((name, lane), figures) in ways.iter().zip(&mut figures) {
            progress(load, name);
            measure(lane, seconds, figures)?;
        }
    }
    Ok(figures)
}

impl Lane<'_> {
    /// Runs iperf3 for `seconds` with `extra` flags; an error of either end is an error. The server is a fresh one: after
    /// a test, iperf3 stops listening for a moment.
    pub fn iperf(&self, seconds: u32, extra: &[&str]) -> Result<Iperf> {
        static RUNS: AtomicU16 = AtomicU16::new(0);
        let port = (ports::IPERF + RUNS.fetch_add(1, Ordering::Relaxed) % 500).to_string();
        let log = self.scratch.join(format!("{}-iperf3-{port}.log", self.server.name));
        let _ = std::fs::remove_file(&log);
        let mut server = self.server.netns.command("iperf3");
        let mut server = Process::start(server.args(["-s", "-1", "--forceflush", "-p", &port]), &log)?;
        server.wait_for("Server listening", Duration::from_secs(10))?;
        let mut command = self.client.netns.command("iperf3");
        command.args(["-J", "-c", &self.server.v4.to_string(), "-p", &port, "-t", &seconds.to_string()]);
        let limit = Duration::from_secs(u64::from(seconds) + 20);
        let done = process::run(command.args(extra), limit)?;
        Iperf::read(&done)
    }

    /// Round trips with the tool `ping-pong`.
    pub fn ping_pong(&self, milliseconds: u32) -> Result<Latency> {
        let to = format!("{}:{}", self.server.v4, ports::ECHO);
        let mut command = tool(&self.client.netns)?;
        command.args(["ping-pong", "--to", &to, "--for-ms", &milliseconds.to_string()]);
        let limit = Duration::from_secs(u64::from(milliseconds) / 1000 + 25);
        let text = process::run(&mut command, limit)?.ok()?;
        serde_json::from_str(&text).context("ping-pong's answer")
    }

    /// HTTP requests a second with wrk over 32 connections, kept alive or closed after each request.
    pub fn wrk(&self, seconds: u32, close: bool) -> Result<f64> {
        let mut command = self.client.netns.command("wrk");
        command.args(["-t", "2", "-c", "32", "-d", &format!("{seconds}s"), "--timeout", "5s"]);
        if close {
            command.args(["-H", "Connection: close"]);
        }
        command.arg(format!("http://{}:{}/", self.server.v4, ports::HTTP));
        let text = process::run(&mut command, Duration::from_secs(u64::from(seconds) + 20))?.ok()?;
        requests_per_second(&text)
    }
}

/// What iperf3 measured.
#[derive(Clone, Debug)]
pub struct Iperf(Value);

impl Iperf {
    /// The report of an iperf3 client that was asked for JSON; an error of either end is an error.
    pub fn read(done: &Finished) -> Result<Self> {
        let report: Value = serde_json::from_str(&done.stdout).with_context(|| done.told())?;
        let clean = report["error"].is_null() && done.status.success();
        ensure!(clean, "iperf3: {}: {}", report["error"], done.told());
        Ok(Self(report))
    }

    /// Bytes that the receiver got, in the direction of the test.
    pub fn bytes(&self) -> f64 {
        self.0["end"]["sum_received"]["bytes"].as_f64().unwrap_or(0.0)
    }

    /// Gbit/s as the receiver counted them, in the direction of the test.
    pub fn gbps(&self) -> f64 {
        self.0["end"]["sum_received"]["bits_per_second"].as_f64().unwrap_or(0.0) / 1e9
    }

    /// The sums at the end of the report, for messages.
    pub fn end(&self) -> &Value {
        &self.0["end"]
    }

    /// The same for the way back of a `--bidir` test.
    pub fn reverse_gbps(&self) -> f64 {
        self.0["end"]["sum_received_bidir_reverse"]["bits_per_second"].as_f64().unwrap_or(0.0) / 1e9
    }
}

/// The rate that wrk tells; errors of connections or answers are an error.
pub(crate) fn requests_per_second(report: &str) -> Result<f64> {
    let unclean = ["Socket errors:", "Non-2xx"];
    ensure!(!unclean.iter().any(|word| report.contains(word)), "wrk met errors: {report}");
    let line = report.lines().find_map(|line| line.strip_prefix("Requests/sec:"));
    line.and_then(|rate| rate.trim().parse().ok()).with_context(|| format!("wrk told no rate: {report}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrk_reports_are_read_and_errors_are_not_overlooked() {
        assert_eq!(
            requests_per_second("  Latency\nRequests/sec:  12345.67\nTransfer/sec: 1MB\n").unwrap(),
            12_345.67
        );
        let errors = "  Socket errors: connect 0, read 3, write 0, timeout 0\nRequests/sec:  12345.67\n";
        assert!(requests_per_second(errors).is_err());
        assert!(requests_per_second("").is_err());
    }
}
