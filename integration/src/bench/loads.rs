//! The loads: which there are, and what each of them measures of one data path.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    figures::{self, Figure},
    ports,
};
use crate::{
    load::{self, Iperf},
    netns::Netns,
    process::{self, Process},
    tools::{Calls, Latency},
};

/// A load.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// What `--loads` calls it.
    pub name: &'static str,
    /// What it does.
    pub about: &'static str,
    pub(super) kind: Kind,
    /// Client and server are on one node.
    pub(super) one_node: bool,
}

/// What a load does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// As many bytes as go, from the client (`up`) or to it.
    Bulk { streams: u16, up: bool },
    /// Messages there and back, one at a time; with a stream of [`Kind::Bulk`] beside it or at rest.
    RoundTrip { bytes: usize, beside_bulk: bool },
    /// HTTP over connections that stay.
    Http { connections: u16 },
    /// The body of one HTTP message, from the client (`up`) or to it.
    Body { up: bool },
    /// Unary gRPC calls.
    Grpc { connections: u16, calls: u16 },
    /// A connection for each HTTP request.
    Connections { clients: u16 },
    /// The first byte of a first connection, and of later ones.
    FirstByte,
    /// Memory of what carries the data path.
    Memory,
    /// Time until pods are in the mesh.
    Enrolment,
}

/// Every load, in the order in which they run.
pub const LOADS: &[Load] = &[
    across("bulk-1-up", "one TCP stream from client to server", Kind::Bulk { streams: 1, up: true }),
    across("bulk-8-up", "eight TCP streams from client to server", Kind::Bulk { streams: 8, up: true }),
    across("bulk-64-up", "64 TCP streams from client to server", Kind::Bulk { streams: 64, up: true }),
    across("bulk-1-down", "one TCP stream from server to client", Kind::Bulk { streams: 1, up: false }),
    across("bulk-8-down", "eight TCP streams from server to client", Kind::Bulk { streams: 8, up: false }),
    across("bulk-64-down", "64 TCP streams from server to client", Kind::Bulk { streams: 64, up: false }),
    across(
        "rtt-128",
        "128 bytes there and back, at rest",
        Kind::RoundTrip { bytes: 128, beside_bulk: false },
    ),
    across(
        "rtt-16k",
        "16 KiB there and back, at rest",
        Kind::RoundTrip { bytes: 16 << 10, beside_bulk: false },
    ),
    across(
        "rtt-128-busy",
        "128 bytes there and back beside a bulk stream",
        Kind::RoundTrip { bytes: 128, beside_bulk: true },
    ),
    across(
        "rtt-16k-busy",
        "16 KiB there and back beside a bulk stream",
        Kind::RoundTrip { bytes: 16 << 10, beside_bulk: true },
    ),
    across("http-1", "HTTP/1.1 requests over one connection", Kind::Http { connections: 1 }),
    across("http-32", "HTTP/1.1 requests over 32 connections", Kind::Http { connections: 32 }),
    across("http-256", "HTTP/1.1 requests over 256 connections", Kind::Http { connections: 256 }),
    across("http-up", "one HTTP request with a gigabyte for a body", Kind::Body { up: true }),
    across("http-down", "one HTTP answer with a gigabyte for a body", Kind::Body { up: false }),
    across("grpc-1", "gRPC calls, one at a time", Kind::Grpc { connections: 1, calls: 1 }),
    across(
        "grpc-32",
        "gRPC calls, 8 at a time on each of 4 connections",
        Kind::Grpc { connections: 4, calls: 8 },
    ),
    across("conn-1", "a connection for each HTTP request, one client", Kind::Connections { clients: 1 }),
    across("conn-8", "a connection for each HTTP request, 8 clients", Kind::Connections { clients: 8 }),
    across("conn-64", "a connection for each HTTP request, 64 clients", Kind::Connections { clients: 64 }),
    beside("node-bulk-1-up", "one TCP stream between pods of one node", Kind::Bulk { streams: 1, up: true }),
    beside("node-bulk-8-up", "eight TCP streams from client to server", Kind::Bulk { streams: 8, up: true }),
    beside(
        "node-rtt-128",
        "128 bytes there and back between pods of one node",
        Kind::RoundTrip { bytes: 128, beside_bulk: false },
    ),
    beside(
        "node-http-32",
        "HTTP/1.1 over 32 connections between pods of one node",
        Kind::Http { connections: 32 },
    ),
    beside(
        "node-conn-8",
        "connections of 8 clients between pods of one node",
        Kind::Connections { clients: 8 },
    ),
    across("first-byte", "a first connection after the start, and later ones", Kind::FirstByte),
    across("memory", "resident memory at rest, and for each connection", Kind::Memory),
    across("enrol", "time until 1, 100 and 250 pods are in the mesh, and memory with them", Kind::Enrolment),
];

/// Those of `--quick`.
pub const QUICK: [&str; 5] = ["bulk-1-up", "bulk-8-up", "rtt-128", "http-32", "conn-8"];

const fn across(name: &'static str, about: &'static str, kind: Kind) -> Load {
    Load { name, about, kind, one_node: false }
}

const fn beside(name: &'static str, about: &'static str, kind: Kind) -> Load {
    Load { name, about, kind, one_node: true }
}

/// The loads that `wanted` names, by their names or how these begin (`bulk`, `http`, `node`); all if it names none.
pub fn chosen(wanted: &[String]) -> Result<Vec<Load>> {
    if let Some(unknown) = wanted.iter().find(|word| !LOADS.iter().any(|load| load.goes_by(word))) {
        let names: Vec<&str> = LOADS.iter().map(|load| load.name).collect();
        bail!("there is no load {unknown}; there are: {}", names.join(", "));
    }
    let asked = |load: &&Load| wanted.is_empty() || wanted.iter().any(|word| load.goes_by(word));
    Ok(LOADS.iter().filter(asked).copied().collect())
}

impl Load {
    /// A word that is the name of a load is that load alone.
    fn goes_by(&self, word: &str) -> bool {
        self.name == word
            || !LOADS.iter().any(|load| load.name == word)
                && self.name.strip_prefix(word).is_some_and(|rest| rest.starts_with('-'))
    }

    /// Whether it goes on for as long as it is told to.
    pub fn goes_on(&self) -> bool {
        !self.starts_afresh()
    }

    /// Whether each run of it begins with a fresh start of what carries the data path.
    pub(super) fn starts_afresh(&self) -> bool {
        matches!(self.kind, Kind::FirstByte | Kind::Memory | Kind::Enrolment)
    }

    /// About how long one run takes where a load lasts so many `seconds`.
    pub(super) fn takes(&self, seconds: u32) -> Duration {
        match self.kind {
            Kind::FirstByte => Duration::from_secs(4),
            Kind::Memory => Duration::from_secs(40),
            Kind::Enrolment => Duration::from_secs(30),
            _ => Duration::from_secs(u64::from(seconds)) + Duration::from_millis(400),
        }
    }
}

/// Where clients and servers run, and the address at which the clients find the servers.
#[derive(Clone, Debug)]
pub(super) struct Ends {
    pub(super) client: Netns,
    pub(super) server: Netns,
    pub(super) address: std::net::Ipv4Addr,
}

/// What one run of a load gave.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) values: Vec<(&'static Figure, f64)>,
    /// The work that was done, in the unit of this figure of processor time.
    pub(super) work: Option<(&'static Figure, f64)>,
}

/// Runs a load that can be repeated at any time, for so many `seconds`.
pub(super) fn run(kind: Kind, ends: &Ends, seconds: u32, scratch: &Path) -> Result<Outcome> {
    match kind {
        Kind::Bulk { streams, up } => bulk(ends, seconds, streams, up, scratch),
        Kind::RoundTrip { bytes, beside_bulk } => round_trip(ends, seconds, bytes, beside_bulk, scratch),
        Kind::Http { connections } => {
            let (rate, requests) = ends.wrk(seconds, connections, false)?;
            Ok(Outcome {
                values: vec![(&figures::REQUESTS, rate)],
                work: Some((&figures::CPU_PER_REQUESTS, requests / 1e5)),
            })
        }
        Kind::Body { up } => body(ends, up, scratch),
        Kind::Connections { clients } => {
            let (rate, connections) = ends.wrk(seconds, clients, true)?;
            Ok(Outcome {
                values: vec![(&figures::CONNECTIONS, rate)],
                work: Some((&figures::CPU_PER_CONNECTIONS, connections / 1e4)),
            })
        }
        Kind::Grpc { connections, calls } => grpc(ends, seconds, connections, calls),
        Kind::FirstByte | Kind::Memory | Kind::Enrolment => bail!("this load begins with a fresh start"),
    }
}

fn bulk(ends: &Ends, seconds: u32, streams: u16, up: bool, scratch: &Path) -> Result<Outcome> {
    let mut server = ends.iperf_server(scratch)?;
    let mut command = ends.iperf_client(seconds);
    command.args(["-J", "-P", &streams.to_string()]);
    if !up {
        command.arg("-R");
    }
    let done = process::run(&mut command, Duration::from_secs(u64::from(seconds) + 30))?;
    let report = Iperf::read(&done)?;
    // The next one binds the same port.
    server.wait(Duration::from_secs(10))?;
    Ok(Outcome {
        values: vec![(&figures::GBPS, report.gbps())],
        work: Some((&figures::CPU_PER_GIGABYTE, report.bytes() / 1e9)),
    })
}

fn round_trip(ends: &Ends, seconds: u32, bytes: usize, beside_bulk: bool, scratch: &Path) -> Result<Outcome> {
    let mut bulk = None;
    if beside_bulk {
        let server = ends.iperf_server(scratch)?;
        let log = scratch.join("bulk.log");
        let _ = std::fs::remove_file(&log);
        let mut client = Process::start(ends.iperf_client(seconds + 10).arg("--forceflush"), &log)?;
        client.wait_for("0.00-1.00", Duration::from_secs(10))?;
        bulk = Some((client, server));
    }
    let mut command = ends.tool("ping-pong", ports::ECHO)?;
    command.args(["--bytes", &bytes.to_string(), "--for-ms", &(seconds * 1_000).to_string()]);
    let text = process::run(&mut command, Duration::from_secs(u64::from(seconds) + 25))?.ok()?;
    let latency: Latency = serde_json::from_str(&text).context("ping-pong's answer")?;
    if let Some((mut client, mut server)) = bulk {
        ensure!(client.runs(), "the bulk stream has ended: {}", process::tail(&client.output()));
        client.kill();
        server.kill();
    }
    Ok(Outcome {
        values: vec![
            (&figures::P50, latency.p50_us),
            (&figures::P99, latency.p99_us),
            (&figures::P999, latency.p999_us),
        ],
        work: None,
    })
}

fn body(ends: &Ends, up: bool, scratch: &Path) -> Result<Outcome> {
    const BYTES: u64 = 1 << 30;
    let url = format!("http://{}:{}", ends.address, ports::HTTP);
    let mut command = ends.client.command("curl");
    command.args(["-sSf", "-o", "/dev/null", "-H", "Expect:", "-w", "%{time_total}"]);
    if up {
        // Without blocks on the disk.
        let file = scratch.join("body");
        std::fs::File::create(&file)?.set_len(BYTES)?;
        command.arg("-T").arg(&file).arg(format!("{url}/nowhere"));
    } else {
        command.arg(format!("{url}/bytes/{BYTES}"));
    }
    let seconds: f64 = process::run(&mut command, Duration::from_secs(60))?.ok()?.trim().parse()?;
    Ok(Outcome {
        values: vec![(&figures::GBPS, BYTES as f64 * 8.0 / 1e9 / seconds)],
        work: Some((&figures::CPU_PER_GIGABYTE, BYTES as f64 / 1e9)),
    })
}

fn grpc(ends: &Ends, seconds: u32, connections: u16, calls: u16) -> Result<Outcome> {
    let mut command = ends.tool("grpc-load", ports::GRPC)?;
    command.args(["--connections", &connections.to_string(), "--calls", &calls.to_string()]);
    command.args(["--for-ms", &(seconds * 1_000).to_string()]);
    let text = process::run(&mut command, Duration::from_secs(u64::from(seconds) + 25))?.ok()?;
    let made: Calls = serde_json::from_str(&text).context("grpc-load's answer")?;
    let rate = made.calls as f64 * 1_000.0 / made.took_ms.max(1) as f64;
    Ok(Outcome {
        values: vec![(&figures::REQUESTS, rate), (&figures::P50, made.p50_us), (&figures::P99, made.p99_us)],
        work: Some((&figures::CPU_PER_REQUESTS, made.calls as f64 / 1e5)),
    })
}

impl Ends {
    /// A client of the harness's own that connects to `port`.
    pub(super) fn tool(&self, name: &str, port: u16) -> Result<Command> {
        let mut command = load::tool(&self.client)?;
        command.args([name, "--to", &format!("{}:{port}", self.address)]);
        Ok(command)
    }

    fn iperf_server(&self, scratch: &Path) -> Result<Process> {
        let log = scratch.join("iperf3-server.log");
        let _ = std::fs::remove_file(&log);
        let mut command = self.server.command("iperf3");
        command.args(["-s", "-1", "--forceflush", "-p", &ports::IPERF.to_string()]);
        let mut server = Process::start(&mut command, &log)?;
        server.wait_for("Server listening", Duration::from_secs(10))?;
        Ok(server)
    }

    fn iperf_client(&self, seconds: u32) -> Command {
        let mut command = self.client.command("iperf3");
        command.args(["-c", &self.address.to_string(), "-p", &ports::IPERF.to_string()]);
        command.args(["-t", &seconds.to_string()]);
        command
    }

    /// Requests a second, and all of them together.
    fn wrk(&self, seconds: u32, connections: u16, close: bool) -> Result<(f64, f64)> {
        let mut command = self.client.command("wrk");
        let threads = connections.min(2).to_string();
        command.args(["-t", &threads, "-c", &connections.to_string(), "-d", &format!("{seconds}s")]);
        command.args(["--timeout", "5s"]);
        if close {
            command.args(["-H", "Connection: close"]);
        }
        command.arg(format!("http://{}:{}/", self.address, ports::HTTP));
        let text = process::run(&mut command, Duration::from_secs(u64::from(seconds) + 20))?.ok()?;
        let rate = load::requests_per_second(&text)?;
        Ok((rate, all_requests(&text)?))
    }
}

/// The number of wrk's line `1234 requests in 3.00s, 1.2MB read`.
fn all_requests(report: &str) -> Result<f64> {
    let number = report.lines().find_map(|line| line.trim().split_once(" requests in "));
    let (number, _) = number.with_context(|| format!("wrk told of no requests: {report}"))?;
    Ok(number.parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_are_chosen_by_how_their_names_begin() {
        let names = |wanted: &[&str]| -> Result<Vec<&str>> {
            let wanted: Vec<String> = wanted.iter().map(ToString::to_string).collect();
            Ok(chosen(&wanted)?.iter().map(|load| load.name).collect())
        };
        assert_eq!(names(&["http"]).unwrap(), ["http-1", "http-32", "http-256", "http-up", "http-down"]);
        assert_eq!(names(&["http-1", "rtt-128"]).unwrap(), ["rtt-128", "http-1"]);
        assert_eq!(names(&[]).unwrap().len(), LOADS.len());
        assert!(names(&["htt"]).unwrap_err().to_string().contains("there are: bulk-1-up, "));
        assert!(QUICK.iter().all(|quick| LOADS.iter().any(|load| load.name == *quick)));
    }

    #[test]
    fn all_requests_of_wrk_are_counted() {
        assert_eq!(all_requests("Running\n  4711 requests in 3.00s, 1.20MB read\n").unwrap(), 4711.0);
        assert!(all_requests("nothing").is_err());
    }
}
