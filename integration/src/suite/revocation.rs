//! Certificates taken back while connections live, and roots of other trust domains.

use std::{fs, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};

use super::{SECOND, Test, unstarted};
use crate::{
    load::{self, ports},
    process::{self, Process, eventually},
    world::World,
};

pub(super) const TESTS: &[Test] = &[unstarted(
    "revocation::a_revoked_peer_loses_its_connections",
    "live ones are cut, new ones refused, with the reason; others stay",
    &[],
    revoked,
)];

/// Until a changed file is in force.
const READ_AGAIN: Duration = Duration::from_secs(4);

fn revoked(world: &mut World) -> Result<()> {
    let list = world.folder.join("crl.pem");
    for agent in &mut world.agents {
        agent.add_flags(&["--crl-file", &list.display().to_string()]);
    }
    world.start_agents()?;
    let to = format!("{}:{}", world.pod("b").v4, ports::ECHO);
    let start = |world: &World, pod: &str| -> Result<Process> {
        let mut command = load::tool(&world.pod(pod).netns)?;
        command.args(["ping-pong", "--to", &to, "--for-ms", "12000", "--rest-ms", "20"]);
        Process::start(&mut command, &world.folder.join(format!("revoked-{pod}.log")))
    };
    let (mut cut, mut kept) = (start(world, "a")?, start(world, "e")?);
    world.must_reach("a", "b")?;
    let certs = world.agents[0].certs()?;
    let identity = world.pod("a").identity();
    let all = certs["certificates"].as_array().context("certificates")?;
    let serial =
        all.iter().find(|one| one["identity"] == identity.as_str()).and_then(|one| one["serial"].as_str());
    let serial = serial.context("the serial of a's certificate")?;
    let (mark, before) =
        (world.agents[1].mark(), world.agents[1].metrics()?.sum_of_value("certificate_revoked"));
    revoke(world, &[serial])?;
    world.agents[1].wait_log(mark, &["access", "certificate_revoked", &identity, &to])?;
    let ended = cut.wait(SECOND * 3)?;
    ensure!(!ended.success(), "the connection of a revoked peer went on: {}", cut.output());
    let mark = world.agents[1].mark();
    world.must_not_reach("a", "b")?;
    world.agents[1].wait_log(mark, &["access", "certificate_revoked"])?;
    let after = world.agents[1].metrics()?.sum_of_value("certificate_revoked");
    ensure!(after >= before + 2.0, "the metric of certificate_revoked went from {before} to {after}");
    world.must_reach("e", "b")?;
    ensure!(kept.wait(SECOND * 15)?.success(), "the connection of another peer was cut: {}", kept.output());
    revoke(world, &[])?;
    eventually(READ_AGAIN, || world.must_reach("a", "b"))
}

/// Has the built-in CA's key sign a list of `serials`, and puts it in its place.
fn revoke(world: &World, serials: &[&str]) -> Result<()> {
    let folder = world.folder.join("revocation");
    fs::create_dir_all(&folder)?;
    let line =
        |serial: &&str| format!("R\t490101000000Z\t250101000000Z\t{}\tunknown\t/\n", serial.to_uppercase());
    fs::write(folder.join("index"), serials.iter().map(line).collect::<String>())?;
    fs::write(
        folder.join("cnf"),
        format!(
            "[ca]\ndefault_ca = one\n[one]\ndatabase = {}/index\ndefault_md = sha256\n",
            folder.display()
        ),
    )?;
    let fresh = folder.join("crl.pem");
    let mut command = Command::new("openssl");
    command.args(["ca", "-gencrl", "-crldays", "1", "-config"]).arg(folder.join("cnf"));
    command.arg("-cert").arg(world.ca.join("ca-cert.pem")).arg("-keyfile").arg(world.ca.join("ca-key.pem"));
    process::must(command.arg("-out").arg(&fresh))?;
    fs::rename(&fresh, world.folder.join("crl.pem")).context("the list")
}
