//! Clients that mean harm, of ports whose requests are judged: what they get is bounded, and others are served meanwhile and afterwards.

use std::{
    io::{BufRead as _, BufReader, Lines},
    process::{Child, ChildStdout, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{FILE, NO_ADMIN, PYTHON, in_force, nginx, policies, seen};
use crate::{
    process::eventually,
    suite::{SECOND, Test, own},
    world::World,
};

pub(in crate::suite) const TESTS: &[Test] = &[
    own(
        "requests::long_heads_are_refused_with_a_reason",
        "a long line, a long field, many fields: 431 each time, and the connection ends",
        &[],
        long_heads,
    ),
    own(
        "requests::what_trickles_is_given_up",
        "200 heads of HTTP/1 and 50 of HTTP/2, a byte a second: given up after a minute, within bounds",
        &[],
        trickle,
    ),
    own(
        "requests::floods_of_http2_are_bounded",
        "rapid reset, CONTINUATION, SETTINGS, PING, heads that are large only in memory: memory, and others served",
        &[],
        floods,
    ),
    own(
        "requests::who_reads_nothing_is_bounded",
        "50 connections with 100 downloads each over HTTP/2, and 50 over HTTP/1, of which nothing is read",
        &[],
        unread,
    ),
    own(
        "requests::a_parsed_connection_takes_little",
        "400 of HTTP/1 at rest, 400 with a request under way, 400 of HTTP/2: at most 64 KiB of the agent's memory each; 80 without optimisation",
        &[],
        crowds,
    ),
];

/// And with 5,000 downloads that are stuck: of each the state of a stream, twice, and of each connection what is on its way.
const STUCK: u64 = 80 * 1024;
/// What one connection may take, in KiB, of an agent that is optimised and of one that is not: at rest, with a request under way, of
/// HTTP/2.
const EACH: [(&str, [u64; 2]); 3] = [("http1", [64, 64]), ("busy", [64, 64]), ("http2", [64, 80])];

/// What the agent may hold more while an attack goes on, in KiB.
const MORE: u64 = 48 * 1024;

struct Attacker {
    child: Child,
    output: Lines<BufReader<ChildStdout>>,
}

impl Attacker {
    fn start(world: &World, pod: &str, what: &str) -> Result<Self> {
        let file = world.folder.join("hostile.py");
        std::fs::write(&file, include_str!("hostile.py"))?;
        let mut command = world.pod(pod).netns.command(PYTHON);
        command.arg(&file).args([what, &world.pod("b").v4.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let output = BufReader::new(child.stdout.take().context("stdout")?).lines();
        Ok(Self { child, output })
    }

    /// The next that it says.
    fn says(&mut self) -> Result<Value> {
        let line = self.output.next().context("the client has ended")??;
        serde_json::from_str(&line).with_context(|| line.clone())
    }

    fn end(mut self) -> Result<()> {
        drop(self.child.stdin.take());
        ensure!(self.child.wait()?.success(), "the client failed");
        Ok(())
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        // It has ended, or its test has failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server behind policy that looks at requests.
fn judged(world: &mut World) -> Result<crate::process::Process> {
    let server = nginx(world, "b")?;
    world.manifests.write(FILE, &policies(&[NO_ADMIN]))?;
    in_force(world)?;
    Ok(server)
}

fn is_served(world: &World) -> Result<()> {
    for (pod, url) in
        [("a", "http://IP:8090/a.txt"), ("c", "http://IP:8090/a.txt"), ("a", "http://IP:8091/a.txt")]
    {
        let http2: &[&str] = if url.contains("8091") { &["--http2-prior-knowledge"] } else { &[] };
        let got = seen(world, pod, "b", &[http2, &[url]].concat())?;
        ensure!(got.contains("what stands in a file"), "{pod} {url}: {got}");
    }
    Ok(())
}

/// All connections are gone, in the eyes of the server's agent.
fn given_back(world: &World) -> Result<()> {
    eventually(20 * SECOND, || {
        let open = world.agents[1].metrics()?.sum("istio_tcp_sockets_open", &[]);
        ensure!(open < 1.0, "{open} connections are still open");
        Ok(())
    })
}

fn long_heads(world: &mut World) -> Result<()> {
    let _server = judged(world)?;
    for pod in ["a", "c"] {
        let mut client = Attacker::start(world, pod, "long-heads")?;
        for (name, why) in
            [("long", "longer than 64 KiB"), ("many", "more than 128 fields"), ("line", "longer than 64 KiB")]
        {
            let said = client.says()?;
            let body = said["body"].as_str().unwrap_or_default();
            ensure!(
                said["name"] == name
                    && said["line"] == "HTTP/1.1 431 Request Header Fields Too Large"
                    && body.contains(why),
                "{pod}: {said}"
            );
        }
        client.end()?;
    }
    given_back(world)
}

fn trickle(world: &mut World) -> Result<()> {
    let _server = judged(world)?;
    let before = world.agents[1].resident_kib()?;
    let mut clients = [Attacker::start(world, "a", "trickle")?, Attacker::start(world, "c", "trickle")?];
    for client in &mut clients {
        client.says()?;
    }
    is_served(world)?;
    let more = world.agents[1].resident_kib()?.saturating_sub(before);
    ensure!(more < MORE, "the agent holds {more} KiB more");
    for client in &mut clients {
        let said = client.says()?;
        let took = said["took"].as_f64().unwrap_or_default();
        ensure!(said["left"] == 0 && said["answered"] == 200 && (50.0..90.0).contains(&took), "{said}");
    }
    world.notes.push(format!("{more} KiB more"));
    is_served(world)?;
    given_back(world)
}

fn floods(world: &mut World) -> Result<()> {
    let _server = judged(world)?;
    is_served(world)?;
    let before = world.agents[1].resident_kib()?;
    for what in ["continuations", "settings", "pings", "rapid-reset", "bombs"] {
        let mut client = Attacker::start(world, "a", what)?;
        if what == "continuations" {
            for _ in 0..4 {
                let said = client.says()?;
                ensure!(said["gone"] == true, "{what}: {said}");
            }
        } else {
            client.says()?;
        }
        is_served(world).context(what)?;
        let more = world.agents[1].resident_kib()?.saturating_sub(before);
        ensure!(more < MORE, "{what}: the agent holds {more} KiB more");
        world.notes.push(format!("{what} {more} KiB"));
        client.end()?;
        given_back(world).context(what)?;
    }
    is_served(world)
}

/// The agent's memory, once it has given back what it needed for a moment.
fn settled_kib(world: &World) -> Result<u64> {
    let mut seen: Vec<u64> = Vec::new();
    eventually(40 * SECOND, || {
        seen.push(world.agents[1].resident_kib()?);
        let last = &seen[seen.len().saturating_sub(150)..];
        let (least, most) = (last.iter().min().copied(), last.iter().max().copied());
        ensure!(last.len() == 150 && most <= least.map(|least| least + 256), "memory has not settled");
        Ok(())
    })?;
    seen.last().copied().context("no memory was seen")
}

fn crowds(world: &mut World) -> Result<()> {
    let _server = judged(world)?;
    is_served(world)?;
    let optimised = world.agents[1].is_optimised()?;
    for (what, [most, unoptimised]) in EACH {
        let most = if optimised { most } else { unoptimised };
        let before = settled_kib(world)?;
        let mut client = Attacker::start(world, "a", what)?;
        let said = client.says()?;
        let connections =
            said["connections"].as_u64().filter(|count| *count > 0).context("no connections")?;
        let each = settled_kib(world)?.saturating_sub(before) / connections;
        world.notes.push(format!("{what}: {each} KiB each"));
        ensure!(each <= most, "{what}: {each} KiB for each connection");
        client.end()?;
        given_back(world).context(what)?;
    }
    Ok(())
}

fn unread(world: &mut World) -> Result<()> {
    let _server = judged(world)?;
    is_served(world)?;
    let before = world.agents[1].resident_kib()?;
    let mut client = Attacker::start(world, "a", "wont-read")?;
    let said = client.says()?;
    ensure!(said == json!({"ready": true, "connections": 100}), "{said}");
    is_served(world)?;
    let more = world.agents[1].resident_kib()?.saturating_sub(before);
    ensure!(more < STUCK, "the agent holds {more} KiB more");
    world.notes.push(format!("{more} KiB for 100 connections"));
    client.end()?;
    given_back(world)
}
