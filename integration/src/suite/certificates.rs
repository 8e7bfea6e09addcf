//! Peers with certificates they should not have: each refused, each for its own reason.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};

use super::{SECOND, Test, shared};
use crate::{
    agent::IN_FORCE,
    certs::{self, Certificate, EXPIRED, Recipe, VALID},
    load::ports,
    process::{self, Finished, Process, eventually},
    topology::{MESHED, UNMESHED},
    world::World,
};

pub(super) const TESTS: &[Test] = &[
    shared(
        "certificates::clients_are_refused_by_reason",
        "other identity, expired, other CA, two SANs, no SAN, none",
        clients,
    ),
    shared(
        "certificates::servers_are_refused_by_reason",
        "the same, where the pod's agent is the client",
        servers,
    ),
];

/// The tunnel's application protocol.
const ALPN: &str = "ambit/1";
/// Where the false server listens.
const FALSE_SERVER: u16 = 7443;

/// Certificates of every wrong kind, with the reason each must be refused for.
fn wrong(world: &World, own: &str) -> Result<Vec<(&'static str, Certificate)>> {
    let folder = key_folder(world)?;
    let strange = folder.join("strange-ca");
    certs::strange_authority(&strange)?;
    let other = world.pod("e").identity();
    let none: &[&str] = &[];
    [
        ("identity_mismatch", &world.ca, &[other.as_str()][..], VALID),
        ("certificate_expired", &world.ca, &[own], EXPIRED),
        ("certificate_untrusted", &strange, &[own], VALID),
        ("certificate_identity", &world.ca, &[own, &other], VALID),
        ("certificate_identity", &world.ca, none, VALID),
    ]
    .into_iter()
    .enumerate()
    .map(|(number, (reason, ca, uris, validity))| {
        let name = format!("wrong-{number}");
        Ok((reason, certs::issue(ca, &folder, &Recipe { name: &name, uris, validity })?))
    })
    .collect()
}

fn clients(world: &mut World) -> Result<()> {
    // Pod c has no agent before it, so what it sends is what it means to send.
    let own = world.pod("c").identity();
    for (reason, certificate) in wrong(world, &own)? {
        refused(world, reason, Some(&certificate))?;
    }
    refused(world, "certificate_missing", None)?;
    let folder = key_folder(world)?;
    let right = certs::issue(&world.ca, &folder, &Recipe { name: "right", uris: &[&own], validity: VALID })?;
    let mark = world.agent_of("b").mark();
    let told = tls_client(world, Some(&right))?;
    let log = world.agent_of("b").log_since(mark);
    ensure!(
        !log.contains("certificate_") && !log.contains("identity_mismatch"),
        "the right one was refused: {log}"
    );
    ensure!(told.stdout.contains("ALPN protocol: ambit/1"), "no tunnel was offered: {}", told.told());
    world.must_reach("a", "b")
}

fn refused(world: &mut World, reason: &str, certificate: Option<&Certificate>) -> Result<()> {
    let agent = world.agent_of("b");
    let (mark, before) = (agent.mark(), agent.metrics()?.sum_of_value(reason));
    tls_client(world, certificate)?;
    let client = world.pod("c").v4.to_string();
    let agent = world.agent_of("b");
    agent.wait_log(mark, &[reason, &client])?;
    let after = agent.metrics()?.sum_of_value(reason);
    ensure!(after > before, "the metric of {reason} stayed at {before}");
    Ok(())
}

/// `openssl s_client` from pod c to pod b's HTTP port, as a peer agent would open it.
fn tls_client(world: &World, certificate: Option<&Certificate>) -> Result<Finished> {
    let to = format!("{}:{}", world.pod("b").v4, ports::HTTP);
    let mut command = world.pod("c").netns.command("openssl");
    command.args(["s_client", "-connect", &to, "-alpn", ALPN, "-tls1_3", "-noservername"]);
    if let Some(Certificate { certificate, key }) = certificate {
        command.arg("-cert").arg(certificate).arg("-key").arg(key);
    }
    process::run(&mut command, Duration::from_secs(10))
}

/// Pod d plays a pod of the mesh whose node has another agent: an openssl server with a certificate of our choice.
fn servers(world: &mut World) -> Result<()> {
    let d = world.pod("d").clone();
    let identity = format!("spiffe://cluster.local/ns/{MESHED}/sa/{}", d.service_account);
    let manifest = std::fs::read_to_string(world.manifests.folder().join("pod-d.yaml"))?;
    let meshed = manifest
        .replace(&format!("namespace: {UNMESHED}"), &format!("namespace: {MESHED}"))
        .replace(&format!("nodeName: {}", world.topology.nodes[1].name), "nodeName: elsewhere");
    world.manifests.write("pod-d.yaml", &meshed)?;
    let done = wrong(world, &identity).and_then(|wrong| {
        for (reason, certificate) in wrong {
            dial_refused(world, reason, &certificate)?;
        }
        Ok(())
    });
    world.manifests.pod(&world.topology, &d, &[])?;
    done?;
    eventually(IN_FORCE, || world.must_reach("a", "d"))
}

fn dial_refused(world: &mut World, reason: &str, certificate: &Certificate) -> Result<()> {
    let d = world.pod("d").clone();
    let log = certificate.certificate.with_extension("log");
    let mut server = d.netns.command("openssl");
    server.args(["s_server", "-accept", &FALSE_SERVER.to_string(), "-alpn", ALPN, "-tls1_3", "-Verify", "1"]);
    server.arg("-cert").arg(&certificate.certificate).arg("-key").arg(&certificate.key);
    let mut server = Process::start(&mut server, &log)?;
    server.wait_for("ACCEPT", 5 * SECOND)?;
    let agent = world.agent_of("a");
    let (mark, before) = (agent.mark(), agent.metrics()?.sum_of_value(reason));
    let attempt = world.connect("a", (d.v4, FALSE_SERVER), &["--send", "secret of the application"])?;
    match attempt.error.as_deref() {
        Some("ConnectionReset" | "ConnectionRefused") => {}
        _ => bail!("{reason}: the application was not refused: {attempt:?}"),
    }
    ensure!(
        !server.output().contains("secret of the application"),
        "{reason}: the false server was told a secret"
    );
    let agent = world.agent_of("a");
    agent.wait_log(mark, &[reason, &d.v4.to_string()])?;
    let after = agent.metrics()?.sum_of_value(reason);
    ensure!(after > before, "the metric of {reason} stayed at {before}");
    Ok(())
}

fn key_folder(world: &World) -> Result<PathBuf> {
    let folder = world.folder.join("keys");
    std::fs::create_dir_all(&folder).context("folder for keys")?;
    Ok(folder)
}
