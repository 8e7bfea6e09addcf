//! Names in the TLS that applications speak themselves.

use std::{fs, os::unix::fs::chown, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::unistd::User;

use super::{
    HOST,
    outside::{self, Listener, Outside, VIP, certificate},
};
use crate::{
    agent::IN_FORCE,
    process::{self, Finished, Process, eventually},
    suite::transparency::clients::{AS_POSTGRES, initialise, postgres_programs},
    topology::MESHED,
    world::World,
};

/// Where the server outside speaks TLS.
const PORT: u16 = 8443;

/// What curl gets of the server by its own address, under a name.
fn fetch(world: &World, outside: &Outside, name: &str) -> Result<Finished> {
    let (url, at) = (format!("https://{name}:{PORT}/"), format!("{name}:{PORT}:{}", outside.v4));
    let roots = outside.file("ca/ca-cert.pem");
    world.curl("a", &["-m", "4", "--cacert", &roots, "--resolve", &at, &url])
}

/// An entry for these hosts, by name only.
fn entry(hosts: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: api, namespace: {MESHED}}}\nspec: {{hosts: [{hosts}], \
         ports: [{{number: {PORT}, name: tls, protocol: TLS}}], resolution: NONE}}\n"
    )
}

pub(super) fn let_through(world: &mut World) -> Result<()> {
    let outside = Outside::build(world)?;
    let names = [HOST, "a.example.org", "other.example.net"];
    let _server = outside.serve(world, PORT, &certificate(&outside, "good", &names, outside::NOW)?, &[])?;
    outside::hold_to_registry(world)?;
    eventually(IN_FORCE, || {
        let refused = fetch(world, &outside, HOST)?.told();
        ensure!(refused.contains("curl: (7)"), "without an entry: {refused}");
        Ok(())
    })?;
    world.manifests.write("entry.yaml", &entry(&format!("{HOST}, '*.example.org'")))?;
    for name in &names[..2] {
        eventually(IN_FORCE, || fetch(world, &outside, name)?.ok().map(drop)).context(*name)?;
    }
    let mark = world.agents[0].mark();
    ensure!(
        fetch(world, &outside, "other.example.net")?.ok().is_err(),
        "a name that no entry has was let through"
    );
    world.agents[0].wait_log(mark, &["access", "egress_denied", "other.example.net"])?;
    let mark = world.agents[0].mark();
    let nameless = world.connect("a", (outside.v4, PORT), &["--send", "hello"])?;
    ensure!(nameless.received.is_empty(), "what has no name was let through: {nameless:?}");
    world.agents[0].wait_log(mark, &["access", "egress_denied"]).map(drop)
}

pub(super) fn seen(world: &mut World) -> Result<()> {
    let outside = Outside::build(world)?;
    let _server = outside.serve(world, PORT, &certificate(&outside, "good", &[HOST], outside::NOW)?, &[])?;
    let _first = Listener::plaintext(world, 9090, "220 who is there\r\n")?;
    let mark = world.agents[0].mark();
    eventually(IN_FORCE, || fetch(world, &outside, HOST)?.ok().map(drop))?;
    let line = world.agents[0].wait_log(mark, &["access", "connection to outside", HOST])?;
    ensure!(line.contains(&outside.v4.to_string()), "{line}");
    let attempt = world.connect("a", (outside.v4, 9090), &["--no-fin", "--limit-ms", "1000"])?;
    ensure!(attempt.received.contains("220"), "{attempt:?}");
    let metrics = world.agents[0].metrics()?;
    let opened = metrics.sum("istio_tcp_connections_opened_total", &["source_workload=\"a\""]);
    ensure!(opened >= 2.0, "{opened} connections were counted");
    let suggested = world.agents[0].run(&["suggest", "--service-entries", "--namespace", MESHED])?.ok()?;
    for words in [HOST, "protocol: TLS", "outside.invalid", "number: 9090"] {
        ensure!(suggested.contains(words), "no {words} in {suggested}");
    }
    Ok(())
}

pub(super) fn postgresql(world: &mut World) -> Result<()> {
    const NAME: &str = "db.example.com";
    let outside = Outside::build(world)?;
    let programs = postgres_programs()?;
    let data = outside.folder.join("postgres");
    initialise(&data, &programs)?;
    let own = certificate(&outside, "db", &[NAME], outside::NOW)?;
    let user = User::from_name("postgres")?.context("there is no user postgres")?;
    for (from, name) in [(&own.certificate, "server.crt"), (&own.key, "server.key")] {
        fs::copy(from, data.join(name))?;
        chown(data.join(name), Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
        process::must(std::process::Command::new("chmod").arg("600").arg(data.join(name)))?;
    }
    let mut command = world.pod(outside::POD).netns.command(AS_POSTGRES[0]);
    command.args(&AS_POSTGRES[1..]).arg(format!("{programs}/postgres")).arg("-D").arg(&data);
    command.args(["-c", "unix_socket_directories=", "-c", "fsync=off", "-c", "ssl=on"]);
    let mut server = Process::start(&mut command, &outside.folder.join("postgres.log"))?;
    server.wait_for("ready to accept", Duration::from_secs(20))?;
    let entry = format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: db, namespace: {MESHED}}}\nspec: {{hosts: [{NAME}], \
         addresses: [{VIP}], ports: [{{number: 5432, name: tcp, protocol: TCP}}], resolution: STATIC, endpoints: [{{address: {}}}]}}\n",
        outside.v4
    );
    world.manifests.write("entry.yaml", &entry)?;
    outside::hold_to_registry(world)?;
    let to = format!(
        "host={NAME} hostaddr={VIP} user=postgres sslmode=verify-full sslrootcert={} connect_timeout=2",
        outside.file("ca/ca-cert.pem")
    );
    let query = "select ssl, version from pg_stat_ssl where pid = pg_backend_pid()";
    eventually(IN_FORCE * 4, || {
        let mut command = world.pod("a").netns.command(format!("{programs}/psql"));
        command.args(["-X", "-At", &to, "-c", query]);
        let answer = process::run(&mut command, Duration::from_secs(10))?.ok()?;
        ensure!(answer.starts_with("t|TLSv1.3"), "PostgreSQL says {answer}");
        Ok(())
    })?;
    world.agents[0].wait_log(0, &["access", "connection complete", NAME]).map(drop)
}
