//! Floods of the CA service by those who prove nothing.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};

use crate::{
    ca::{CaService, SERVER_NAME},
    certs, load,
    process::{self, Process, eventually},
    suite::{SECOND, Test, unstarted},
    tools::Silent,
    world::World,
};

pub(super) const TESTS: &[Test] = &[
    unstarted(
        "attacks::ca_serves_through_a_crowd_of_silent_clients",
        "thousands of silent connections and sessions from a pod, on every port: health, metrics and issuing go on",
        &[],
        crowd,
    ),
    unstarted(
        "attacks::ca_lets_go_of_who_proves_nothing",
        "a session without a request by somebody who is known ends within seconds",
        &[],
        silent_sessions,
    ),
];

const METRICS: &str = "0.0.0.0:15030";
const HEALTH: &str = "0.0.0.0:15031";

fn crowd(world: &mut World) -> Result<()> {
    let mut service = CaService::prepare(world, &["--metrics-addr", METRICS, "--health-addr", HEALTH])?;
    service.start()?;
    let node = world.topology.nodes[0].v4;
    let csr = own_request(world)?;
    demand(world, &service, &csr).context("before the crowd")?;
    let memory = process::resident_kib(service.pids()[0].cast_signed())?;
    let pod = &world.pod("c").netns;
    let plain = [
        "--to",
        &format!("{node}:15030"),
        "--to",
        &format!("{node}:15031"),
        "--to",
        &format!("{node}:15012"),
    ]
    .map(str::to_owned);
    let root = service.root().display().to_string();
    let to = format!("{node}:15012");
    let sessions = ["--to", &to, "--root", &root, "--server-name", SERVER_NAME].map(str::to_owned);
    let mut crowds = Vec::new();
    for (name, connections, arguments) in [("plain", "1000", plain), ("sessions", "4200", sessions)] {
        let mut command = load::tool(pod)?;
        command.args(["silence", "--connections", connections, "--for-ms", "20000"]).args(arguments);
        crowds.push((name, Process::start(&mut command, &world.folder.join(format!("silence-{name}.log")))?));
    }
    std::thread::sleep(3 * SECOND);
    for round in 0..10 {
        demand(world, &service, &csr).with_context(|| format!("round {round}, in the crowd"))?;
        std::thread::sleep(SECOND);
    }
    let grown = process::resident_kib(service.pids()[0].cast_signed())?.saturating_sub(memory);
    ensure!(grown < 32 * 1024, "the service has grown by {grown} KiB");
    for (name, mut crowd) in crowds {
        crowd.wait(30 * SECOND)?;
        let told: Silent = serde_json::from_str(crowd.output().lines().last().unwrap_or_default())
            .with_context(|| crowd.output())?;
        ensure!(told.opened + told.refused > 1_000, "{name} was no crowd: {told:?}");
        world.notes.push(format!("{name}: {told:?}; the service grew by {grown} KiB"));
    }
    demand(world, &service, &csr).context("after the crowd")
}

/// Health, metrics and a certificate, each within two seconds.
fn demand(world: &World, service: &CaService, csr: &Path) -> Result<()> {
    let node = &world.topology.nodes[0];
    for (port, path, expected) in [
        (15_031, "/healthz/ready", "ready"),
        (15_031, "/healthz/live", "alive"),
        (15_030, "/metrics", "ambit_ca_issued"),
    ] {
        let mut curl = node.netns.command("curl");
        let url = format!("http://{}:{port}{path}", node.v4);
        let text = process::must(curl.args(["-sS", "-f", "-m", "2", "--noproxy", "*", &url]))?;
        ensure!(text.contains(expected), "{url}: {text}");
    }
    let (identity, token) = (world.pod("a").identity(), service.token(0).display().to_string());
    let begun = std::time::Instant::now();
    let answer = service.ask(0, csr, &["--identity", &identity, "--token", &token])?;
    ensure!(answer.code == "Ok", "{answer:?}");
    ensure!(begun.elapsed() < 2 * SECOND, "a certificate took {:?}", begun.elapsed());
    Ok(())
}

fn silent_sessions(world: &mut World) -> Result<()> {
    let mut service = CaService::prepare(world, &[])?;
    service.start()?;
    let root = service.root().display().to_string();
    let to = format!("{}:15012", world.topology.nodes[0].v4);
    let silent = |connections: &str, tls: bool| -> Result<Silent> {
        let mut arguments =
            vec!["silence", "--once", "--for-ms", "15000", "--connections", connections, "--to", &to];
        if tls {
            arguments.extend(["--root", &root, "--server-name", SERVER_NAME]);
        }
        Ok(serde_json::from_value(world.tool("c", &arguments, Duration::from_secs(30))?)?)
    };
    let sessions = silent("40", true)?;
    ensure!(sessions.opened == 40 && sessions.closed == 40 && sessions.longest_ms < 12_000, "{sessions:?}");
    let unspoken = silent("40", false)?;
    ensure!(unspoken.closed == 40 && unspoken.longest_ms < 7_000, "without a handshake: {unspoken:?}");
    world.notes.push(format!("sessions: {sessions:?}; without a handshake: {unspoken:?}"));
    let csr = own_request(world)?;
    let (identity, token) = (world.pod("a").identity(), service.token(0).display().to_string());
    eventually(2 * SECOND, || {
        let answer = service.ask(0, &csr, &["--identity", &identity, "--token", &token])?;
        ensure!(answer.code == "Ok", "{answer:?}");
        Ok(())
    })
}

/// A request for the identity of pod a.
fn own_request(world: &World) -> Result<std::path::PathBuf> {
    let folder = world.folder.join("requests");
    fs::create_dir_all(&folder)?;
    let uri = format!("URI:{}", world.pod("a").identity());
    Ok(certs::request(&folder, "own", &[&uri])?.certificate)
}
