//! Revoked and withdrawn credentials in the hands of somebody who has them still.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    ca::CaService,
    certs::{self, Certificate, Recipe, VALID},
    load::{self, ports},
    process::{self, Process, eventually},
    suite::{
        SECOND, Test,
        revocation::{follow_lists, revoke},
        trust::roots,
        unstarted,
    },
    world::World,
};

pub(super) const TESTS: &[Test] = &[
    unstarted(
        "attacks::credentials::padding_hides_no_revocation",
        "a revoked certificate between forged CAs of its issuer's name: refused, new and live",
        &[],
        padded,
    ),
    unstarted(
        "attacks::credentials::a_withdrawn_root_is_out_at_once",
        "ambit ca withdraws a root: what is under it is cut and refused in seconds, not at renewal",
        &["--svid-ttl", "1h"],
        withdrawn,
    ),
];

/// Until a changed file is in force, with what follows of it.
const READ_AGAIN: Duration = Duration::from_secs(4);
/// The serial number of every certificate that a test issues by hand.
const SERIAL: &str = "4711";

fn padded(world: &mut World) -> Result<()> {
    follow_lists(world)?;
    world.start_agents()?;
    world.must_reach("a", "b")?;
    let thief = Thief::new(world, &world.ca)?;
    let few = thief.forged_namesakes(world, &world.ca, 5)?;
    let many = thief.forged_namesakes(world, &world.ca, 6)?;
    let mut live = thief.stay(world, "live", &few)?;
    revoke(world, &world.ca, &[SERIAL])?;
    live.wait(READ_AGAIN).context("the tunnel of a revoked certificate stays")?;
    for (chain, reason) in [
        (None, "certificate_revoked"),
        (Some(&few), "certificate_revoked"),
        (Some(&many), "certificate_invalid"),
    ] {
        thief.must_be_refused(world, chain.map(PathBuf::as_path), reason)?;
    }
    world.must_reach("a", "b")
}

fn withdrawn(world: &mut World) -> Result<()> {
    let mut service = CaService::prepare(world, &[])?;
    service.start()?;
    service.serve_agents(world);
    for agent in &mut world.agents {
        agent.add_flags(&["--ca-trust", "root"]);
    }
    world.start_agents()?;
    world.must_reach("a", "b")?;
    let (cacerts, next) = (service.cacerts(), world.folder.join("next-ca"));
    let thief = Thief::new(world, &cacerts)?;
    let above = world.folder.join("above.pem");
    fs::copy(cacerts.join("ca-cert.pem"), &above)?;
    certs::plugged_in_authority(&next)?;
    let (old_root, new_root) =
        (fs::read_to_string(service.root())?, fs::read_to_string(next.join("root-cert.pem"))?);
    fs::write(service.root(), format!("{old_root}{new_root}"))?;
    eventually(READ_AGAIN, || roots(world, 2))?;

    let to = format!("{}:{}", world.pod("b").v4, ports::ECHO);
    let mut command = load::tool(&world.pod("a").netns)?;
    command.args(["ping-pong", "--to", &to, "--for-ms", "60000", "--rest-ms", "20"]);
    let mut long = Process::start(&mut command, &world.folder.join("long.log"))?;
    let mut live = thief.stay(world, "live", &above)?;
    world.must_reach("a", "b")?;
    let marks = [world.agents[0].mark(), world.agents[1].mark()];
    for name in ["ca-key.pem", "ca-cert.pem", "cert-chain.pem", "root-cert.pem"] {
        fs::copy(next.join(name), cacerts.join(name))?;
    }
    eventually(READ_AGAIN, || roots(world, 1))?;
    live.wait(READ_AGAIN).context("a tunnel under the withdrawn root stays")?;
    long.wait(READ_AGAIN).context("a connection under the withdrawn root stays")?;
    // Whichever agent sees it first cuts the connection, and tells the other.
    for (agent, mark) in world.agents.iter().zip(marks) {
        agent.wait_log(mark, &["access", "root_withdrawn", &to])?;
    }
    thief.must_be_refused(world, Some(&above), "certificate_untrusted")?;
    // Both agents have new certificates by now, long before the old ones were due.
    eventually(READ_AGAIN, || world.must_reach("a", "b"))
}

/// Pod c, which has no agent before it, with a certificate that a CA once gave it: it knows how to use `openssl s_client`.
struct Thief {
    folder: PathBuf,
    stolen: Certificate,
}

impl Thief {
    fn new(world: &World, ca: &Path) -> Result<Self> {
        let folder = world.folder.join("thief");
        fs::create_dir_all(&folder)?;
        let own = world.pod("c").identity();
        let stolen = certs::issue(ca, &folder, &Recipe { name: "stolen", uris: &[&own], validity: VALID })?;
        Ok(Self { folder, stolen })
    }

    /// A file with `count` CAs that bear the name of the one in `ca`, each with a key of its own.
    fn forged_namesakes(&self, world: &World, ca: &Path, count: usize) -> Result<PathBuf> {
        let mut openssl = Command::new("openssl");
        openssl.args(["x509", "-noout", "-subject", "-nameopt", "compat", "-in"]).arg(ca.join("ca-cert.pem"));
        let told = process::must(&mut openssl)?;
        let subject = told.trim().strip_prefix("subject=").context("the name of the CA")?.trim();
        let mut chain = String::new();
        for _ in 0..count {
            let mut openssl = Command::new("openssl");
            openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]);
            openssl.args(["-subj", subject, "-days", "30", "-addext", "basicConstraints=critical,CA:TRUE"]);
            openssl.arg("-keyout").arg(self.folder.join("forged.key"));
            chain += &process::must(&mut openssl)?;
        }
        let file = world.folder.join(format!("forged-{count}.pem"));
        fs::write(&file, chain)?;
        Ok(file)
    }

    fn client(&self, world: &World, chain: Option<&Path>) -> Command {
        let to = format!("{}:{}", world.pod("b").v4, ports::ECHO);
        let mut command = world.pod("c").netns.command("openssl");
        command.args(["s_client", "-connect", &to, "-alpn", "ambit/1", "-tls1_3", "-noservername"]);
        command.arg("-cert").arg(&self.stolen.certificate).arg("-key").arg(&self.stolen.key);
        if let Some(chain) = chain {
            command.arg("-cert_chain").arg(chain);
        }
        command
    }

    /// Opens a tunnel to pod b and stays in it.
    fn stay(&self, world: &World, name: &str, chain: &Path) -> Result<Process> {
        let mut command = self.client(world, Some(chain));
        let log = self.folder.join(format!("{name}.log"));
        let mut client = Process::start(command.arg("-ign_eof"), &log)?;
        // With TLS 1.3 a ticket is what says that the server has taken the certificate.
        client.wait_for("New Session Ticket arrived", SECOND * 5)?;
        Ok(client)
    }

    fn must_be_refused(&self, world: &World, chain: Option<&Path>, reason: &str) -> Result<()> {
        let agent = &world.agents[1];
        let (mark, before) = (agent.mark(), agent.metrics()?.sum_of_value(reason));
        process::run(&mut self.client(world, chain), SECOND * 10)?;
        agent.wait_log(mark, &["access", reason, &world.pod("c").v4.to_string()])?;
        let after = agent.metrics()?.sum_of_value(reason);
        ensure!(after > before, "the metric of {reason} stayed at {before}");
        Ok(())
    }
}
