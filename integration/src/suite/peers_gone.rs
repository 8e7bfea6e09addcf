//! Ends of connections that are gone, break off or fall silent: the other end notices as it does without ambit. Each case runs
//! beside the same between two pods that are not in the mesh.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicU16, Ordering},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};

use super::{SECOND, Test, own};
use crate::{
    load::{self, ports},
    netns::Netns,
    process::{self, Process, eventually},
    tools::Seen,
    topology::NODE_LINK,
    world::World,
};

pub(super) const TESTS: &[Test] = &[
    own(
        "peers_gone::a_tunnel_that_leads_nowhere_is_given_up",
        "packets of a pooled tunnel are dropped: the next connection takes another",
        &[],
        pooled,
    ),
    own(
        "peers_gone::applications_time_outs_take_effect",
        "keepalive 2/1/3 and TCP_USER_TIMEOUT 4 s, set before or after, of clients and servers",
        &[],
        time_outs,
    ),
    own(
        "peers_gone::a_reset_passes_who_does_not_read",
        "seen at once by a server that reads nothing, and little is swallowed",
        &[],
        reset_unread,
    ),
    own(
        "peers_gone::who_closed_is_noticed_by_the_first_write",
        "poll tells an error at once, and the second write fails",
        &[],
        closed,
    ),
    own(
        "peers_gone::last_words_arrive",
        "2,000 lines before an abrupt close: no more are lost than without ambit",
        &[],
        last_words,
    ),
    own(
        "peers_gone::what_a_server_closed_costs_nothing_for_long",
        "agents let go of connections that only the client keeps",
        &[],
        half_open,
    ),
    own(
        "peers_gone::urgent_data_keeps_its_place",
        "an urgent byte is read where it was written",
        &[],
        urgent,
    ),
];

/// Client and server: without ambit, and with it.
const DIRECT: (&str, &str) = ("c", "d");
const MESHED: (&str, &str) = ("a", "b");

fn port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(7300);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// An end of a connection at work.
struct End(Process);

impl End {
    fn start(world: &World, pod: &str, address: &[&str], steps: &str) -> Result<Self> {
        let mut command = load::tool(&world.pod(pod).netns)?;
        command.arg("steps").args(address).args(steps.split_whitespace());
        let log = world.folder.join(format!("steps-{pod}-{}.log", port()));
        Ok(Self(Process::start(&mut command, &log)?))
    }

    fn server(world: &World, pod: &str, port: u16, steps: &str) -> Result<Self> {
        let address = format!("{}:{port}", world.pod(pod).v4);
        let mut end = Self::start(world, pod, &["--listen", &address], steps)?;
        end.0.wait_for("ready", 10 * SECOND)?;
        Ok(end)
    }

    fn client(world: &World, (from, to): (&str, &str), port: u16, steps: &str) -> Result<Self> {
        Self::start(world, from, &["--to", &format!("{}:{port}", world.pod(to).v4)], steps)
    }

    /// All that it saw.
    fn seen(mut self, limit: Duration) -> Result<Vec<Seen>> {
        let ended = self.0.wait(limit);
        let output = self.0.output();
        ensure!(ended.with_context(|| output.clone())?.success(), "{output}");
        let line = output.lines().rfind(|line| line.starts_with('[')).context("nothing told")?;
        serde_json::from_str(line).with_context(|| line.to_owned())
    }
}

/// Both ends of one connection; what the server saw, and what the client did.
fn both(world: &World, way: (&str, &str), server: &str, client: &str) -> Result<[Vec<Seen>; 2]> {
    let port = port();
    let server = End::server(world, way.1, port, server)?;
    let client = End::client(world, way, port, client)?;
    let client = client.seen(30 * SECOND).context("the client")?;
    Ok([server.seen(30 * SECOND).context("the server")?, client])
}

/// What each step met: an error, what was read, which events poll told.
fn met(seen: &[Seen]) -> Vec<(&str, Option<&str>, &str)> {
    seen.iter().map(|seen| (seen.step.as_str(), seen.error.as_deref(), seen.text.as_str())).collect()
}

/// Packets that a node does not forward, until it is dropped.
struct Dropping<'a>(&'a Netns);

impl<'a> Dropping<'a> {
    fn start(node: &'a Netns, rules: &[String]) -> Result<Self> {
        let dropping = Self(node);
        let nft = |arguments: &str| process::must(node.command("nft").args(arguments.split(' ')));
        nft("add table inet dropping")?;
        nft("add chain inet dropping forward { type filter hook forward priority 0 ; }")?;
        for rule in rules {
            nft(&format!("add rule inet dropping forward {rule} drop"))?;
        }
        Ok(dropping)
    }

    fn everything(node: &'a Netns) -> Result<Self> {
        Self::start(node, &[format!("oifname {NODE_LINK}"), format!("iifname {NODE_LINK}")])
    }
}

impl Drop for Dropping<'_> {
    fn drop(&mut self) {
        let _: Result<_> = process::must(self.0.command("nft").args(["delete", "table", "inet", "dropping"]));
    }
}

fn pooled(world: &mut World) -> Result<()> {
    world.must_reach("a", "b")?;
    let mut longest = Duration::ZERO;
    for round in 0..3 {
        // A tunnel that was used a moment ago is believed.
        thread::sleep(Duration::from_millis(1500));
        let client = world.pod("a").clone();
        let to = world.pod("b").v4.to_string();
        let open =
            process::must(client.netns.command("ss").args(["-Htn", "state", "established", "dst", &to]))?;
        let ports: BTreeSet<&str> = open
            .lines()
            .filter_map(|line| line.split_whitespace().nth(2)?.rsplit_once(':').map(|(_, port)| port))
            .collect();
        ensure!(!ports.is_empty(), "no tunnel rests: {open}");
        let rules = ports.iter().flat_map(|port| {
            [
                format!("ip saddr {} tcp sport {port}", client.v4),
                format!("ip daddr {} tcp dport {port}", client.v4),
            ]
        });
        let dropping = Dropping::start(&world.topology.nodes[0].netns, &rules.collect::<Vec<_>>())?;
        let began = Instant::now();
        world.must_reach("a", "b").with_context(|| format!("round {round}, {ports:?} dropped"))?;
        longest = longest.max(began.elapsed());
        drop(dropping);
    }
    world.notes.push(format!("longest {longest:?}"));
    ensure!(longest < 2 * SECOND, "only after {longest:?}");
    let given_up = world.agents[0].metrics()?.sum("ambit_tunnels_given_up_total", &[]);
    ensure!(given_up >= 3.0, "{given_up} given up");
    Ok(())
}

/// What the last step of each end sees once nothing passes between the nodes any more.
fn time_outs(world: &mut World) -> Result<()> {
    const CLIENTS: [(&str, &str); 4] = [
        ("keepalive, set before", "keepalive:2:1:3 open send:hi read say:cut read"),
        ("keepalive, set after", "open keepalive:2:1:3 send:hi read say:cut read"),
        (
            "user time-out, set before",
            "user-timeout:4000 open send:hi read say:cut sleep:6000 send:more read",
        ),
        ("user time-out, set after", "open user-timeout:4000 send:hi read say:cut sleep:6000 send:more read"),
    ];
    const SERVER: (&str, &str) = ("keepalive of a server", "keepalive:2:1:3 open read send:ho say:cut read");
    let mut ends = Vec::new();
    for (name, way) in [("without ambit", DIRECT), ("through ambit", MESHED)] {
        for (case, steps) in CLIENTS {
            ends.push((name, case, End::client(world, way, ports::ECHO, steps)?));
        }
        let port = port();
        ends.push((name, SERVER.0, End::server(world, way.1, port, SERVER.1)?));
        ends.push((name, "", End::client(world, way, port, "open send:hi read sleep:18000")?));
    }
    for (_, case, end) in &mut ends {
        if !case.is_empty() {
            end.0.wait_for("cut", 10 * SECOND)?;
        }
    }
    // What was set after the connection stood is read once more a second later.
    thread::sleep(2 * SECOND);
    let dropping = Dropping::everything(&world.topology.nodes[0].netns)?;
    let dropped = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    let mut wrong = Vec::new();
    for (name, case, end) in ends {
        let seen = end.seen(40 * SECOND).with_context(|| format!("{case} {name}"))?;
        let Some(last) = seen.last().filter(|_| !case.is_empty()) else { continue };
        // Unanswered is a probe soon after the packets are dropped, and a message from when it is sent.
        let by_message = case.starts_with("user");
        let after =
            if by_message { last.took_ms.into() } else { u128::from(last.at_ms).saturating_sub(dropped) };
        let told = format!("{case} {name}: {:?} after {after} ms", last.error);
        // A message that was taken cannot be timed out by the application's own kernel.
        let errors: &[&str] = match (name, by_message) {
            ("through ambit", true) => &["TimedOut", "ConnectionReset"],
            _ => &["TimedOut"],
        };
        let limit = if name == "through ambit" && !by_message { 12_000 } else { 7_000 };
        if !last.error.as_deref().is_some_and(|error| errors.contains(&error)) || after > limit {
            wrong.push(told.clone());
        }
        world.notes.push(told);
    }
    drop(dropping);
    ensure!(wrong.is_empty(), "{wrong:#?}");
    eventually(10 * SECOND, || world.must_reach("a", "b"))
}

fn reset_unread(world: &mut World) -> Result<()> {
    let mut swallowed = Vec::new();
    for way in [DIRECT, MESHED] {
        let [server, client] = both(world, way, "open await-error:10000", "open stuff linger-0 close")?;
        let (noticed, reset) = (server.last().context("no step")?, client.last().context("no step")?);
        ensure!(noticed.error.is_none(), "{way:?}: the server was not told: {server:?}");
        let late = noticed.at_ms.saturating_sub(reset.at_ms);
        swallowed.push(client[1].bytes);
        world.notes.push(format!("{way:?}: told after {late} ms, {} bytes swallowed", client[1].bytes));
        ensure!(late <= 500, "{way:?}: the server was told only after {late} ms");
    }
    ensure!(swallowed[1] <= swallowed[0] + (20 << 20), "bytes swallowed: {swallowed:?}");
    Ok(())
}

fn closed(world: &mut World) -> Result<()> {
    let client = "open read-all send:one await-error:1000 send:two";
    let direct = both(world, DIRECT, "open close", client)?;
    let meshed = both(world, MESHED, "open close", client)?;
    ensure!(met(&direct[1])[4] == ("send:two", Some("BrokenPipe"), ""), "{direct:?}");
    ensure!(met(&meshed[1]) == met(&direct[1]), "{:?}, not {:?}", met(&meshed[1]), met(&direct[1]));
    // Who writes before it has read the end finds out in the same way.
    let client = "open sleep:100 send:one await-error:1000 send:two read-all";
    let direct = both(world, DIRECT, "open close", client)?;
    let meshed = both(world, MESHED, "open close", client)?;
    ensure!(met(&meshed[1]) == met(&direct[1]), "{:?}, not {:?}", met(&meshed[1]), met(&direct[1]));
    Ok(())
}

fn last_words(world: &mut World) -> Result<()> {
    const LINE: usize = "line 000000\n".len();
    // A segment full of lines: what an application's own kernel may keep back for those before (RFC 896), and drops with a reset.
    const SEGMENT: usize = 120;
    let greeted = "open send:greeting read-all";
    let cases = [
        ("reset", greeted, "open read lines:2000:20 linger-0 close", SEGMENT),
        ("reset at rest", greeted, "open read lines:2000:20 sleep:100 linger-0 close", 0),
        ("closed unread", greeted, "open sleep:50 lines:2000:20 close", SEGMENT),
        ("closed unread at rest", greeted, "open sleep:50 lines:2000:20 sleep:100 close", 0),
    ];
    for (case, server, client, more) in cases {
        let mut lost = Vec::new();
        for way in [DIRECT, MESHED] {
            let mut rounds = Vec::new();
            for _ in 0..11 {
                let [server, client] = both(world, way, server, client)?;
                let got = server.last().context("no step")?;
                ensure!(got.error.as_deref() == Some("ConnectionReset"), "{case} {way:?}: {got:?}");
                let sent = client.iter().find(|seen| seen.step.starts_with("lines")).context("no lines")?;
                rounds.push((sent.bytes - got.bytes).div_ceil(LINE));
            }
            rounds.sort_unstable();
            lost.push(rounds);
        }
        world.notes.push(format!("{case}: {:?} lines lost without ambit, {:?} through it", lost[0], lost[1]));
        // Of a busy machine's rounds the middle one.
        let middle = [lost[0][5], lost[1][5]];
        ensure!(middle[1] <= middle[0] + more, "{case}: {middle:?} lines of 2,000 lost");
    }
    Ok(())
}

fn half_open(world: &mut World) -> Result<()> {
    const CONNECTIONS: usize = 10;
    // How long the server's kernel remembers a connection that nobody has any more.
    world.pod("b").netns.sysctl(&["net.ipv4.tcp_fin_timeout=5"])?;
    world.must_reach("a", "b")?;
    let files = |world: &World| -> Result<[usize; 2]> {
        Ok([world.agents[0].open_files()?, world.agents[1].open_files()?])
    };
    // The agents have made ready for another pod by then, which takes a few files.
    thread::sleep(SECOND);
    let before = files(world)?;
    let mut ends = Vec::new();
    for _ in 0..CONNECTIONS {
        let port = port();
        let server = End::server(world, "b", port, "open close sleep:60000")?;
        let mut client = End::client(world, MESHED, port, "open read-all say:ended sleep:45000 send:late")?;
        client.0.wait_for("ended", 10 * SECOND)?;
        ends.push((server, client));
    }
    let during = files(world)?;
    ensure!(during[0] >= before[0] + CONNECTIONS && during[1] >= before[1] + CONNECTIONS, "{during:?}");
    eventually(40 * SECOND, || {
        let after = files(world)?;
        ensure!(after[0] <= before[0] + 3 && after[1] <= before[1] + 3, "{before:?} files, still {after:?}");
        Ok(())
    })?;
    // The client has been told nothing, and its connection is what it was.
    for (server, client) in ends {
        drop(server);
        let seen = client.seen(60 * SECOND)?;
        ensure!(seen.iter().all(|seen| seen.error.is_none()), "{seen:?}");
    }
    Ok(())
}

fn urgent(world: &mut World) -> Result<()> {
    const CLIENTS: [&str; 2] = [
        "open send:ab urgent:c send:de sleep:500 fin",
        "open send:ab sleep:100 urgent:c sleep:100 send:de fin",
    ];
    for way in [DIRECT, MESHED] {
        for client in CLIENTS {
            for _ in 0..5 {
                let [server, _] = both(world, way, "oob-inline open read-all", client)?;
                let got = server.last().context("no step")?;
                ensure!(got.error.is_none() && got.text == "abcde", "{way:?}: {got:?}");
            }
        }
        // Nothing follows it that would push it on. Without ambit, a read ends in front of it.
        for _ in 0..10 {
            let [server, _] =
                both(world, way, "oob-inline open sleep:300 read", "open send:ab urgent:c sleep:500")?;
            let expected = if way == DIRECT { "ab" } else { "abc" };
            ensure!(server[3].text == expected, "{way:?}: {server:?}");
        }
    }
    Ok(())
}
