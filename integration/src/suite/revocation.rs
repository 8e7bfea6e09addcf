//! Certificates taken back while connections live, and roots of other trust domains.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};

use super::{SECOND, Test, unstarted};
use crate::{
    certs::{self, Recipe, VALID},
    load::{self, ports},
    process::{self, Process, eventually},
    world::World,
};

pub(super) const TESTS: &[Test] = &[
    unstarted(
        "revocation::a_revoked_peer_loses_its_connections",
        "live ones are cut, new ones refused, with the reason; others stay",
        &[],
        revoked,
    ),
    unstarted(
        "revocation::foreign_roots_vouch_for_their_own_domain",
        "federated: accepted; for our domain, or by our root: refused",
        &[],
        federated,
    ),
];

const FOREIGN: &str = "spiffe://td2.example/ns/shop/sa/x";

/// Until a changed file is in force.
const READ_AGAIN: Duration = Duration::from_secs(4);

fn revoked(world: &mut World) -> Result<()> {
    follow_lists(world)?;
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
    revoke(world, &world.ca, &[serial])?;
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
    revoke(world, &world.ca, &[])?;
    eventually(READ_AGAIN, || world.must_reach("a", "b"))
}

/// Has the agents, which do not run yet, follow a file of lists. It must be there at the start, and the built-in CA is not: a list
/// of another one is there.
pub(super) fn follow_lists(world: &mut World) -> Result<()> {
    let (list, strange) = (world.folder.join("crl.pem"), world.folder.join("strange-ca"));
    certs::strange_authority(&strange)?;
    revoke(world, &strange, &[])?;
    for agent in &mut world.agents {
        agent.add_flags(&["--crl-file", &list.display().to_string()]);
    }
    Ok(())
}

/// Has the key of the CA in `ca` sign a list of `serials`, and puts it in its place.
pub(super) fn revoke(world: &World, ca: &Path, serials: &[&str]) -> Result<()> {
    let folder = world.folder.join("revocation");
    fs::create_dir_all(&folder)?;
    let line =
        |serial: &&str| format!("R\t490101000000Z\t250101000000Z\t{}\tunknown\t/\n", serial.to_uppercase());
    fs::write(folder.join("index"), serials.iter().map(line).collect::<String>())?;
    fs::write(folder.join("number"), "01\n")?;
    let place = folder.display();
    // Only a list with a number is of version 2.
    let settings = format!("database = {place}/index\ncrlnumber = {place}/number\ndefault_md = sha256\n");
    fs::write(folder.join("cnf"), format!("[ca]\ndefault_ca = one\n[one]\n{settings}"))?;
    let fresh = folder.join("crl.pem");
    let mut command = Command::new("openssl");
    command.args(["ca", "-gencrl", "-crldays", "1", "-config"]).arg(folder.join("cnf"));
    command.arg("-cert").arg(ca.join("ca-cert.pem")).arg("-keyfile").arg(ca.join("ca-key.pem"));
    process::must(command.arg("-out").arg(&fresh))?;
    fs::rename(&fresh, world.folder.join("crl.pem")).context("the list")
}

/// Pod c plays a peer of another trust domain, to which ours is federated: `openssl s_client` with a certificate of our
/// choice.
fn federated(world: &mut World) -> Result<()> {
    let (foreign, next) = (world.folder.join("foreign-ca"), world.folder.join("next-ca"));
    certs::strange_authority(&foreign)?;
    certs::strange_authority(&next)?;
    let bundle = world.folder.join("td2.pem");
    fs::copy(foreign.join("ca-cert.pem"), &bundle)?;
    for agent in &mut world.agents {
        agent.add_flags(&["--trust-bundle", &format!("td2.example={}", bundle.display())]);
    }
    world.start_agents()?;
    world.must_reach("a", "b")?;
    let own = world.pod("c").identity();
    accepted(world, &foreign, FOREIGN, None)?;
    accepted(world, &foreign, &own, Some("certificate_untrusted"))?;
    accepted(world, &world.ca, FOREIGN, Some("certificate_untrusted"))?;
    accepted(world, &foreign, "spiffe://td3.example/ns/shop/sa/x", Some("certificate_untrusted"))?;
    fs::copy(next.join("ca-cert.pem"), &bundle)?;
    eventually(READ_AGAIN, || accepted(world, &next, FOREIGN, None))?;
    accepted(world, &foreign, FOREIGN, Some("certificate_untrusted"))?;
    world.must_reach("a", "b")
}

/// Has a peer with a certificate of `ca` for `uri` open a tunnel to pod b: it must be let in, or refused for `reason`.
fn accepted(world: &World, ca: &Path, uri: &str, reason: Option<&str>) -> Result<()> {
    let folder = world.folder.join("peers");
    fs::create_dir_all(&folder)?;
    let made = certs::issue(ca, &folder, &Recipe { name: "peer", uris: &[uri], validity: VALID })?;
    let mark = world.agents[1].mark();
    let mut command = world.pod("c").netns.command("openssl");
    let to = format!("{}:{}", world.pod("b").v4, ports::ECHO);
    command.args(["s_client", "-connect", &to, "-alpn", "ambit/1", "-tls1_3", "-noservername"]);
    command.arg("-cert").arg(&made.certificate).arg("-key").arg(&made.key);
    let told = process::run(&mut command, SECOND * 10)?;
    let of =
        |reason: &str| world.agents[1].wait_log(mark, &["access", reason, &world.pod("c").v4.to_string()]);
    match reason {
        Some(reason) => of(reason).map(drop).with_context(|| format!("{uri} by {}", ca.display())),
        None => {
            ensure!(told.stdout.contains("ALPN protocol: ambit/1"), "no tunnel: {}", told.told());
            let log = world.agents[1].log_since(mark);
            ensure!(
                !log.contains("certificate_") && !log.contains("trust_domain"),
                "{uri} was refused: {log}"
            );
            Ok(())
        }
    }
}
