//! What a process in the pod can try, with CAP_NET_ADMIN and odd sockets, to get around its agent.

use anyhow::{Result, ensure};

use super::{Test, marker, own};
use crate::{
    agent::IN_FORCE,
    load::ports,
    process::{self, eventually},
    tools::Attempt,
    topology::MESHED,
    world::World,
};

pub(super) const TESTS: &[Test] = &[
    own(
        "evasion::flushed_rules_let_nothing_out",
        "nft, ip rules, tc flushed in the client's pod, any SO_MARK",
        &[],
        out,
    ),
    own(
        "evasion::flushed_rules_let_nothing_in",
        "the same in the server's pod: STRICT stays strict",
        &[],
        inward,
    ),
    own(
        "evasion::mptcp_lets_nothing_out",
        "IPPROTO_MPTCP sockets work or fail cleanly, never in plaintext",
        &[],
        mptcp,
    ),
    own(
        "evasion::fast_open_lets_nothing_out",
        "MSG_FASTOPEN with data in the SYN, with and without a cookie",
        &[],
        fast_open,
    ),
];

/// Marks that programs are known to use, and all bits.
const MARKS: [&str; 6] = ["0", "1", "1337", "1338", "539", "4294967295"];

fn out(world: &mut World) -> Result<()> {
    let before = attempts(world, &[&[]])?;
    ensure!(before[0].received.contains("HTTP/1.1 200"), "not even before: {:?}", before[0]);
    let marks = own_marks(world, "a")?;
    flush(world, "a")?;
    for mark in MARKS.iter().map(|mark| (*mark).to_owned()).chain(marks) {
        attempts(world, &[&["--mark", &mark], &["--mark", &mark, "--device", "eth0"]])?;
    }
    Ok(())
}

fn inward(world: &mut World) -> Result<()> {
    world.manifests.peer_authentication(MESHED, "STRICT")?;
    eventually(IN_FORCE, || world.must_not_reach("c", "b"))?;
    let marks = own_marks(world, "b")?;
    flush(world, "b")?;
    for mark in MARKS.iter().map(|mark| (*mark).to_owned()).chain(marks) {
        let flags = ["--mark", &mark, "--send", "GET / HTTP/1.1\r\n\r\n"];
        let attempt = world.connect("c", (world.pod("b").v4, ports::HTTP), &flags)?;
        ensure!(attempt.received.is_empty() && attempt.error.is_some(), "mark {mark}: {attempt:?}");
    }
    // Marks that the pod sets on what it sends and receives itself change nothing either.
    let b = &world.pod("b").netns;
    for rules in [
        "add table inet evade",
        "add chain inet evade in { type filter hook prerouting priority -300 ; }",
        "add rule inet evade in meta mark set 1337",
        "add rule inet evade in notrack",
    ] {
        process::must(b.command("nft").args(rules.split(' ')))?;
    }
    let attempt =
        world.connect("c", (world.pod("b").v4, ports::HTTP), &["--send", "GET / HTTP/1.1\r\n\r\n"])?;
    ensure!(attempt.received.is_empty() && attempt.error.is_some(), "{attempt:?}");
    Ok(())
}

fn mptcp(world: &mut World) -> Result<()> {
    for pod in ["a", "b", "d"] {
        world.pod(pod).netns.sysctl(&["net.mptcp.enabled=1"])?;
    }
    for attempt in attempts(world, &[&["--mptcp"], &["--mptcp", "--device", "eth0"]])? {
        ensure!(works_or_fails_cleanly(&attempt), "{attempt:?}");
    }
    let plain = world.connect("a", (world.pod("d").v4, ports::WHOAMI), &["--mptcp"])?;
    ensure!(works_or_fails_cleanly(&plain), "to an unmeshed pod: {plain:?}");
    world.must_reach("a", "b")
}

fn fast_open(world: &mut World) -> Result<()> {
    for pod in ["a", "b", "d", "e"] {
        // 0x1 client, 0x2 server, 0x4 data in the SYN even without a cookie, 0x200 no cookie demanded.
        world
            .pod(pod)
            .netns
            .sysctl(&["net.ipv4.tcp_fastopen=519", "net.ipv4.tcp_fastopen_blackhole_timeout_sec=0"])?;
    }
    for _ in 0..3 {
        for attempt in attempts(world, &[&["--fast-open"], &["--fast-open", "--device", "eth0"]])? {
            ensure!(works_or_fails_cleanly(&attempt), "{attempt:?}");
        }
    }
    let plain = world.connect("a", (world.pod("d").v4, ports::WHOAMI), &["--fast-open", "--send", "x"])?;
    ensure!(plain.received.starts_with("peer "), "to an unmeshed pod: {plain:?}");
    Ok(())
}

/// Tries to get a marker from pod a to pod b, once per set of flags and family, and demands that none is seen in the
/// clear on the node link, in a SYN or anywhere else.
fn attempts(world: &World, flags: &[&[&str]]) -> Result<Vec<Attempt>> {
    let secret = marker("evasion");
    let request = format!("GET /{secret} HTTP/1.1\r\n\r\n");
    let mut made = Vec::new();
    let link = world.on_the_link("evasion", || {
        for (flags, v6) in flags.iter().flat_map(|flags| [(flags, false), (flags, true)]) {
            let flags = [*flags, &["--send", &request, "--limit-ms", "1500"]].concat();
            made.push(world.connect("a", (world.pod("b").ip(v6), ports::HTTP), &flags)?);
        }
        Ok(())
    })?;
    ensure!(!link.contains(&secret), "plaintext got out: {made:?}");
    Ok(made)
}

fn works_or_fails_cleanly(attempt: &Attempt) -> bool {
    let answered = attempt.received.contains("HTTP/1.1 200") || attempt.received.starts_with("peer ");
    let refused = attempt.error.as_deref().is_some_and(|error| error != "TimedOut");
    answered || (refused && attempt.received.is_empty())
}

/// The marks that policy rules in the pod's namespace match on: those an attacker would read and try first.
fn own_marks(world: &World, pod: &str) -> Result<Vec<String>> {
    let rules = world.pod(pod).netns.ip(&["rule", "list"])?;
    let words: Vec<&str> = rules.split_whitespace().collect();
    let marks = words.windows(2).filter(|pair| pair[0] == "fwmark").filter_map(|pair| {
        let hexadecimal = pair[1].split('/').next()?.strip_prefix("0x")?;
        u32::from_str_radix(hexadecimal, 16).ok().map(|mark| mark.to_string())
    });
    Ok(marks.collect())
}

/// Everything that a process with CAP_NET_ADMIN could flush, the routing to the outside kept.
fn flush(world: &World, pod: &str) -> Result<()> {
    let netns = &world.pod(pod).netns;
    process::must(netns.command("nft").args(["flush", "ruleset"]))?;
    for family in ["-4", "-6"] {
        netns.ip(&[family, "rule", "flush"])?;
        netns.ip(&[family, "rule", "add", "pref", "0", "lookup", "local"])?;
        netns.ip(&[family, "rule", "add", "pref", "32766", "lookup", "main"])?;
    }
    for device in ["eth0", "lo"] {
        for kind in ["root", "clsact", "ingress"] {
            // There is nothing to delete in most cases, which tc calls an error.
            let mut tc = netns.command("tc");
            process::run(tc.args(["qdisc", "del", "dev", device, kind]), super::SECOND)?;
        }
    }
    Ok(())
}
