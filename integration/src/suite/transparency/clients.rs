//! Programs that people use, each with its server in both pairs of pods: what they print and how they end must be the same.

use std::{fmt::Write as _, fs, os::unix::fs::chown, path::Path, process::Command, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::unistd::User;

use super::{
    differences::{self, EXPECTED_OF_CLIENTS},
    programs::{self, Way},
};
use crate::{
    process::{self, Process},
    suite::SECOND,
    topology::Pod,
    world::World,
};

const HTTP: &str = "8090";
const HTTP2: &str = "8091";
const SMTP: &str = "2525";
const CLOSED: &str = "8099";

/// What one client does, by its name; `{…}` stands for addresses, ports and files.
const CLIENTS: &[(&str, &str)] = &[
    ("curl", "curl -sS http://{server}:{http}/curl"),
    ("curl that posts", "curl -sS --data-binary @{megabyte} http://{server}:{http}/"),
    ("curl that is refused", "curl -sS http://{server}:{closed}/"),
    ("curl without an answer", "curl -sS --connect-timeout 1 http://{silent}/"),
    (
        "curl by a name of both families",
        "curl -sS --resolve both.invalid:{http}:[{server6}],{server} http://both.invalid:{http}/ -w %{remote_ip}",
    ),
    (
        "curl with HTTP/2",
        "curl -sS --http2-prior-knowledge --data-binary @{megabyte} http://{server}:{http2}/",
    ),
    ("curl, passive FTP", "curl -sS ftp://{server}/file"),
    ("curl, passive FTP without EPSV", "curl -sS --disable-epsv ftp://{server}/file"),
    ("curl, active FTP", "curl -sS -P - ftp://{server}/file"),
    ("curl, active FTP without EPRT", "curl -sS --disable-eprt -P - ftp://{server}/file"),
    ("curl, FTP lists", "curl -sS --list-only ftp://{server}/ ftp://{server}/"),
    (
        "curl that sends mail",
        "curl -sS smtp://{server}:{smtp}/client.invalid --mail-from a@client.invalid --mail-rcpt b@mail.invalid -T {megabyte}",
    ),
    ("nc -z", "nc.openbsd -z -w 3 {server} {http}"),
    ("nc -z that is refused", "nc.openbsd -z -w 3 {server} {closed}"),
    ("nc -z without an answer", "nc.openbsd -z -w 1 {silent} {http}"),
    ("python", "python3 {programs}/clients.py {server} {server6} {silent} {http} {smtp} {closed}"),
    ("node", "node {programs}/clients.js {server} {server6} {silent} {http} {http2} {closed}"),
    ("Go", "{programs}/go-client {server} {silent} {http} {closed}"),
    ("redis-cli", "redis-cli -h {server} -r 200 incr counter"),
    ("redis-cli, a value", "redis-cli -h {server} eval return(string.rep('x',1000000)) 0"),
    ("redis-cli that is refused", "redis-cli -h {server} -p {closed} get counter"),
    ("psql", "{postgres}/psql -X -At -U postgres -h {server} -f {programs}/session.sql"),
    (
        "psql by a name of both families",
        "{postgres}/psql -X -At -U postgres -h {server6},{server} -c select(1)",
    ),
    ("psql that is refused", "{postgres}/psql -X -At -U postgres -h {server} -p {closed} -c select(1)"),
];

const SESSION: &str = "create table t as select generate_series(1, 10000) n;\n\
    select count(*), sum(n) from t;\n\
    select inet_client_addr(), inet_server_addr(), inet_server_port();\n\
    copy (select n, repeat('x', 100) from t) to stdout;\n\
    select 1 / 0;\n\
    drop table t;\n";

/// Runs all clients on both ways.
pub(super) fn alike(world: &mut World) -> Result<()> {
    programs::prepare(world)?;
    let folder = world.folder.join("programs");
    write_all(&folder)?;
    let postgres = postgres_programs()?;
    let ways = [Way::Plain, Way::Meshed];
    let servers = thread::scope(|scope| {
        let (folder, postgres, world) = (&folder, &postgres, &*world);
        let go = scope.spawn(|| build_go(folder));
        let starting =
            ways.map(|way| scope.spawn(move || servers(world.pod(way.pods()[1]), folder, postgres)));
        let servers: Result<Vec<_>> = starting.map(joined).into_iter().collect();
        joined(go).and(servers)
    })?;
    world.start_agents()?;
    let [plain, meshed] = thread::scope(|scope| {
        let (folder, postgres, world) = (&folder, &postgres, &*world);
        ways.map(|way| scope.spawn(move || clients(world, way, folder, postgres))).map(joined)
    });
    drop(servers);
    compare(&plain?, &meshed?, world)
}

fn joined<T>(thread: thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a thread panicked")))
}

fn compare(plain: &[String], meshed: &[String], world: &mut World) -> Result<()> {
    let mut wrong = String::new();
    for (((name, _), plain), meshed) in CLIENTS.iter().zip(plain).zip(meshed) {
        let expected = EXPECTED_OF_CLIENTS.iter().any(|(client, _)| client == name);
        if (plain == meshed) == expected {
            write!(
                wrong,
                "\n{name}{}\n-- plain: {plain:.800}\n-- meshed: {meshed:.800}",
                if expected { ": listed as different, and is not" } else { "" },
            )?;
        }
    }
    ensure!(wrong.is_empty(), "clients differ otherwise than is listed:{wrong}");
    let names: Vec<_> = CLIENTS.iter().map(|(name, _)| *name).collect();
    world.notes.push(differences::note(&names, names.len(), EXPECTED_OF_CLIENTS));
    Ok(())
}

/// How each client ended, and what it printed, with names for addresses.
fn clients(world: &World, way: Way, folder: &Path, postgres: &str) -> Result<Vec<String>> {
    let [client, server] = way.pods().map(|pod| world.pod(pod));
    let place = |text: &str| {
        let values: [(&str, String); 12] = [
            ("{server}", server.v4.to_string()),
            ("{server6}", server.v6.to_string()),
            ("{silent}", way.silent().to_owned()),
            ("{http}", HTTP.to_owned()),
            ("{http2}", HTTP2.to_owned()),
            ("{smtp}", SMTP.to_owned()),
            ("{closed}", CLOSED.to_owned()),
            ("{programs}", folder.display().to_string()),
            ("{megabyte}", folder.join("megabyte").display().to_string()),
            ("{postgres}", postgres.to_owned()),
            ("{client}", client.v4.to_string()),
            ("{client6}", client.v6.to_string()),
        ];
        values.into_iter().fold(text.to_owned(), |text, (name, value)| text.replace(name, &value))
    };
    let named = |text: String| {
        let addresses = [
            (server.v6.to_string(), "SERVER6"),
            (client.v6.to_string(), "CLIENT6"),
            (server.v4.to_string(), "SERVER"),
            (client.v4.to_string(), "CLIENT"),
            (way.silent().to_owned(), "SILENT"),
        ];
        addresses.into_iter().fold(text, |text, (address, name)| text.replace(&address, name))
    };
    let one = |(_, line): &(&str, &str)| {
        let words: Vec<String> = line.split(' ').map(place).collect();
        let mut command = client.netns.command(&words[0]);
        command.args(&words[1..]).env_remove("http_proxy").env_remove("ALL_PROXY");
        let finished = process::run(&mut command, 30 * SECOND)?;
        let told = format!("{}\n{}{}", finished.status, finished.stdout, timeless(&finished.stderr));
        Ok(named(told))
    };
    CLIENTS.iter().map(one).collect()
}

/// Without the times that curl states in its errors.
fn timeless(text: &str) -> String {
    let untimed = |word: &str| if word.parse::<u32>().is_ok() { "N".to_owned() } else { word.to_owned() };
    text.split(' ').map(untimed).collect::<Vec<_>>().join(" ")
}

fn write_all(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let texts = [
        ("clients.py", include_str!("programs/clients.py")),
        ("smtp.py", include_str!("programs/smtp.py")),
        ("clients.js", include_str!("programs/clients.js")),
        ("servers.js", include_str!("programs/servers.js")),
        ("clients.go", include_str!("programs/clients.go")),
        ("session.sql", SESSION),
        ("megabyte", &"a line of text that is long enough\n".repeat(30_000)),
    ];
    texts.iter().try_for_each(|(name, text)| fs::write(folder.join(name), text)).context("writing programs")
}

fn build_go(folder: &Path) -> Result<()> {
    let elsewhere = Path::new("/usr/local/go/bin/go");
    let mut go = Command::new(if elsewhere.exists() { elsewhere } else { Path::new("go") });
    go.args(["build", "-o", "go-client", "clients.go"]).current_dir(folder).env("CGO_ENABLED", "0");
    process::run(&mut go, 120 * SECOND)?.ok().map(drop)
}

/// The folder of PostgreSQL's programs, which Debian keeps off the path.
pub(in crate::suite) fn postgres_programs() -> Result<String> {
    let versions = fs::read_dir("/usr/lib/postgresql").context("PostgreSQL is not installed")?;
    let mut folders = versions.filter_map(|entry| Some(entry.ok()?.path().join("bin")));
    let folder = folders.find(|folder| folder.join("initdb").exists() && folder.join("psql").exists());
    Ok(folder.context("there is no initdb below /usr/lib/postgresql")?.display().to_string())
}

/// Starts all servers of a pod, and waits until each takes connections.
fn servers(pod: &Pod, folder: &Path, postgres: &str) -> Result<Vec<Process>> {
    let own = folder.join(pod.name);
    fs::create_dir_all(own.join("ftp"))?;
    fs::create_dir_all(own.join("empty"))?;
    fs::write(own.join("ftp/file"), "a file\n".repeat(100_000))?;
    fs::write(own.join("vsftpd.conf"), vsftpd_conf(&own))?;
    let path = |name: &str| folder.join(name).display().to_string();
    let started = |name: &str, ready: &str, words: &[&str]| -> Result<Process> {
        let mut command = pod.netns.command(words[0]);
        let mut server = Process::start(command.args(&words[1..]), &own.join(format!("{name}.log")))?;
        if !ready.is_empty() {
            server.wait_for(ready, 20 * SECOND)?;
        }
        Ok(server)
    };
    let data = own.join("postgres");
    initialise(&data, postgres)?;
    let (data, conf) = (data.display().to_string(), own.join("vsftpd.conf").display().to_string());
    let postgres = format!("{postgres}/postgres");
    let own = own.display().to_string();
    let servers = vec![
        started("node", "ready", &["node", &path("servers.js"), HTTP, HTTP2])?,
        started("smtp", "ready", &["python3", &path("smtp.py"), SMTP])?,
        started("vsftpd", "", &["vsftpd", &conf])?,
        started(
            "redis",
            "Ready to accept",
            &["redis-server", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--dir", &own],
        )?,
        started(
            "postgres",
            "ready to accept",
            &[
                &AS_POSTGRES[..],
                &[&postgres, "-D", &data, "-c", "unix_socket_directories=", "-c", "fsync=off"],
            ]
            .concat(),
        )?,
    ];
    process::eventually(Duration::from_secs(5), || {
        process::must(pod.netns.command("nc.openbsd").args(["-z", "127.0.0.1", "21"]))
    })?;
    Ok(servers)
}

/// PostgreSQL does not run as root.
pub(in crate::suite) const AS_POSTGRES: [&str; 4] =
    ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"];

/// Makes an empty database that trusts everybody.
pub(in crate::suite) fn initialise(data: &Path, postgres: &str) -> Result<()> {
    fs::create_dir_all(data)?;
    let user = User::from_name("postgres")?.context("there is no user postgres")?;
    chown(data, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
    let mut initdb = Command::new(AS_POSTGRES[0]);
    initdb.args(&AS_POSTGRES[1..]).arg(format!("{postgres}/initdb"));
    initdb.arg("-D").arg(data).args(["-A", "trust", "-N", "-U", "postgres", "--locale=C"]).current_dir("/");
    process::run(&mut initdb, 60 * SECOND)?.ok()?;
    fs::write(data.join("pg_hba.conf"), "host all all 0.0.0.0/0 trust\n")?;
    fs::write(data.join("postgresql.conf"), "listen_addresses = '0.0.0.0'\nshared_buffers = 16MB\n")?;
    Ok(())
}

fn vsftpd_conf(own: &Path) -> String {
    let own = own.display();
    format!(
        "listen=YES\nbackground=NO\nanonymous_enable=YES\nno_anon_password=YES\nanon_root={own}/ftp\n\
         secure_chroot_dir={own}/empty\nconnect_from_port_20=YES\nport_enable=YES\npasv_min_port=30000\npasv_max_port=30099\n\
         seccomp_sandbox=NO\n"
    )
}
