//! TLS records of tunnels that the kernel seals and opens: that it really does where it can, that applications notice nothing of it,
//! and what the agent does and says where it cannot. Which of the two holds is up to the kernel, which is asked first.

use std::{
    fs, io,
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::OnceLock,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    errno::Errno,
    sys::socket::{setsockopt, sockopt::TcpUlp},
};

use super::{Test, marker, own, transfers, unstarted};
use crate::{
    agent::Agent,
    load::ports,
    process::{self, Process, eventually},
    tools::HTTP_BODY,
    world::World,
};

pub(super) const TESTS: &[Test] = &[
    own(
        "kernel_tls::auto_says_who_has_the_records",
        "in log, status and metrics; connections work in any case",
        AUTO,
        auto_says,
    ),
    unstarted(
        "kernel_tls::force_has_them_in_the_kernel",
        "its own counters say so, and ciphertext is on the wire; without kernel TLS no start, and why",
        FORCE,
        forced,
    ),
    unstarted(
        "kernel_tls::every_byte_arrives",
        "in pieces of random sizes, with half-closes and resets",
        &[],
        |world| with_kernel([true, true], world, arrive),
    ),
    unstarted(
        "kernel_tls::one_end_is_enough",
        "the other one has the same bytes, half-closes and resets",
        &[],
        |world| with_kernel([true, false], world, arrive),
    ),
    unstarted("kernel_tls::the_other_end_is_enough", "which is the server's", &[], |world| {
        with_kernel([false, true], world, arrive)
    }),
    unstarted(
        "kernel_tls::tunnels_are_used_again",
        "one connection after another over the same records",
        &[],
        |world| with_kernel([true, true], world, again),
    ),
    unstarted(
        "kernel_tls::who_does_not_read_gets_all_in_the_end",
        "the last bytes wait in the kernel, and are not lost with the sender",
        &[],
        |world| with_kernel([true, true], world, late),
    ),
    unstarted(
        "kernel_tls::an_agent_hands_over_beneath_them",
        "what is open goes on, what comes next is carried by the new agent",
        &[],
        |world| with_kernel_and([true, true], PATIENT, world, handover),
    ),
];

const AUTO: &[&str] = &["--kernel-tls", "auto"];
const FORCE: &[&str] = &["--kernel-tls", "force"];
/// Agents that have been replaced let go on what is open for as long as it takes others to start.
const PATIENT: &[&str] = &["--drain", "3m"];

/// How long a step may take under emulation.
const LONG: Duration = Duration::from_mins(1);

/// What the kernel can do with records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kernel {
    Without,
    /// It cannot go on under new keys.
    FirstKeysOnly,
    Whole,
}

/// Asked of the kernel, not of the agent.
fn kernel() -> Result<Kernel> {
    static KNOWN: OnceLock<Kernel> = OnceLock::new();
    if let Some(known) = KNOWN.get() {
        return Ok(*known);
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let stream = TcpStream::connect(listener.local_addr()?)?;
    let found = match setsockopt(&stream, TcpUlp::default(), b"tls") {
        Err(Errno::ENOENT) => Kernel::Without,
        Err(error) => return Err(io::Error::from(error)).context("TCP_ULP"),
        Ok(()) => {
            let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
            let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
            let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
            if version >= (6, 14) { Kernel::Whole } else { Kernel::FirstKeysOnly }
        }
    };
    Ok(*KNOWN.get_or_init(|| found))
}

/// Starts the agents of both nodes, and does `work` with them: those marked have their records in the kernel where there is one that
/// takes them, and otherwise are told to try.
fn with_kernel(ends: [bool; 2], world: &mut World, work: fn(&mut World) -> Result<()>) -> Result<()> {
    with_kernel_and(ends, &[], world, work)
}

/// The same with other flags beside.
fn with_kernel_and(
    ends: [bool; 2],
    flags: &[&str],
    world: &mut World,
    work: fn(&mut World) -> Result<()>,
) -> Result<()> {
    let wanted = if kernel()? == Kernel::Without { AUTO } else { FORCE };
    for (agent, by_kernel) in world.agents.iter_mut().zip(ends) {
        let own = if by_kernel { wanted } else { &["--kernel-tls", "off"] };
        agent.set_flags(&[own, flags].concat());
    }
    world.start_agents()?;
    work(world)?;
    for (agent, by_kernel) in world.agents.iter().zip(ends) {
        let taken = Taken::by(agent)?;
        let as_told = match (by_kernel, kernel()?) {
            (false, _) | (_, Kernel::Without) => taken == Taken::default(),
            (true, _) => taken.sent > 0.0 && taken.received > 0.0 && taken.kept == 0.0,
        };
        ensure!(as_told, "{}, with records for the kernel: {by_kernel}: {taken:?}", agent.node().name);
        world.notes.push(format!("{}: {taken:?}", agent.node().name));
    }
    let pods = world.topology.pods.iter().map(|pod| &pod.name);
    for pod in pods.map(ToString::to_string).collect::<Vec<_>>() {
        if let Some(counts) = counts(world, &pod)? {
            ensure!(counts.failed == 0, "pod {pod}: {counts:?}");
        }
    }
    Ok(())
}

/// What an agent says of directions of tunnels.
#[derive(Debug, Default, PartialEq)]
struct Taken {
    sent: f64,
    received: f64,
    /// Which the kernel did not take.
    kept: f64,
}

impl Taken {
    fn by(agent: &Agent) -> Result<Self> {
        let metrics = agent.metrics()?;
        let of = |labels: &[&str]| metrics.sum("ambit_kernel_tls_total", labels);
        Ok(Self {
            sent: of(&["by=\"kernel\"", "direction=\"sent\""]),
            received: of(&["by=\"kernel\"", "direction=\"received\""]),
            kept: of(&["by=\"agent\""]),
        })
    }
}

/// What the kernel itself counts in a namespace.
#[derive(Debug, Default)]
struct Counts {
    sending: u64,
    receiving: u64,
    failed: u64,
}

/// `None` if the kernel has no TLS.
fn counts(world: &World, pod: &str) -> Result<Option<Counts>> {
    if kernel()? == Kernel::Without {
        return Ok(None);
    }
    let text = process::must(world.pod(pod).netns.command("cat").arg("/proc/net/tls_stat"))?;
    let of = |name: &str| -> u64 {
        let line = text.lines().find(|line| line.split_whitespace().next() == Some(name));
        line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
    };
    Ok(Some(Counts { sending: of("TlsTxSw"), receiving: of("TlsRxSw"), failed: of("TlsDecryptError") }))
}

fn auto_says(world: &mut World) -> Result<()> {
    let (state, logged) = match kernel()? {
        Kernel::Whole => ("on", "the kernel seals and opens the TLS records of tunnels"),
        Kernel::FirstKeysOnly => ("not available: it cannot go on under new keys", "Linux 6.14 or later"),
        Kernel::Without => ("not available: the kernel has no TLS (CONFIG_TLS)", "the kernel has no TLS"),
    };
    world.must_reach("a", "b")?;
    world.must_reach("b", "e")?;
    for agent in &world.agents {
        let status = agent.status()?;
        let told = status["kernelTls"].as_str().unwrap_or_default();
        ensure!(told.starts_with(state), "{told:?}, not {state:?}");
        ensure!(agent.status_text()?.contains("Kernel TLS"), "the table does not tell");
        agent.wait_log(0, &["TLS records of tunnels", logged])?;
        let taken = Taken::by(agent)?;
        let by_kernel = taken.sent > 0.0 && taken.received > 0.0;
        ensure!(by_kernel == (kernel()? == Kernel::Whole) && taken.kept == 0.0, "{taken:?}");
    }
    Ok(())
}

fn forced(world: &mut World) -> Result<()> {
    if kernel()? == Kernel::Without {
        for agent in &mut world.agents {
            agent.spawn()?;
            let ended = agent.take().context("it was started")?.wait(LONG)?;
            ensure!(!ended.success(), "it ended with {ended}");
            let log = agent.log();
            for words in ["--kernel-tls force", "CONFIG_TLS", "modprobe tls", "auto or off"] {
                ensure!(log.contains(words), "nothing of {words:?}: {log}");
            }
        }
        return Ok(());
    }
    world.start_agents()?;
    if kernel()? == Kernel::FirstKeysOnly {
        world.agents[0].wait_log(0, &["warn", "cannot renew their keys"])?;
    }
    let secret = marker("kernel");
    let captured = world.capture_link("kernel")?;
    let url = format!("http://{}:{}/", world.pod("b").v4, ports::HTTP);
    let echoed = world.curl("a", &["-d", &secret, &url])?.ok()?;
    let page = world.curl("a", &[&url])?.ok()?;
    let captured = captured.stop()?;
    ensure!(echoed == secret && page == HTTP_BODY, "{echoed:?}, {page:?}");
    for words in [secret.as_str(), HTTP_BODY.trim(), "HTTP/1.1"] {
        ensure!(!captured.contains(words), "{words:?} is in the clear between the nodes");
    }
    ensure!(captured.dialled() == [(world.pod("b").v4.into(), ports::HTTP)], "{:?}", captured.dialled());
    for pod in ["a", "b"] {
        let counts = counts(world, pod)?.context("there is kernel TLS")?;
        ensure!(counts.sending > 0 && counts.receiving > 0, "pod {pod}: {counts:?}");
        world.notes.push(format!("pod {pod}: {counts:?}"));
    }
    Ok(())
}

fn arrive(world: &mut World) -> Result<()> {
    transfers::arrive_some(world, "b")
}

fn again(world: &mut World) -> Result<()> {
    const TIMES: u32 = 30;
    for _ in 0..TIMES {
        world.must_reach("a", "b")?;
    }
    let metrics = world.agents[0].metrics()?;
    let [reused, shaken] =
        ["ambit_tunnel_reuse_total", "ambit_handshakes_total"].map(|name| metrics.sum(name, &[]));
    ensure!(reused >= f64::from(TIMES) / 2.0, "{reused} connections of {TIMES} over a tunnel that was there");
    let taken = Taken::by(&world.agents[0])?;
    ensure!(kernel()? == Kernel::Without || taken.sent == shaken, "{taken:?} of {shaken} handshakes");
    world.notes.push(format!("{shaken} handshakes, {reused} used again"));
    Ok(())
}

/// Bytes that a client leaves behind when it goes.
const LEFT: usize = 24 << 20;

/// A client that writes much and closes at once, and a server that takes its time; the second time the client's agent ends
/// meanwhile, and its tunnel with it.
fn late(world: &mut World) -> Result<()> {
    const SERVER: &str = "import socket, sys, time, hashlib\n\
        s = socket.create_server(('', 9017))\n\
        print('ready', flush=True)\n\
        for _ in range(2):\n\
        \x20   c, _ = s.accept()\n\
        \x20   c.shutdown(socket.SHUT_WR)\n\
        \x20   got = 0\n\
        \x20   while True:\n\
        \x20       some = c.recv(65536)\n\
        \x20       if not some: break\n\
        \x20       if got == 0: time.sleep(4)\n\
        \x20       got += len(some)\n\
        \x20   print('got', got, flush=True)\n\
        \x20   c.close()\n";
    const CLIENT: &str = "import socket, sys\n\
        c = socket.create_connection((sys.argv[1], 9017))\n\
        c.sendall(bytes(int(sys.argv[2])))\n\
        c.shutdown(socket.SHUT_WR)\n\
        assert c.recv(1) == b''\n";
    let mut server = world.pod("b").netns.command("python3");
    let mut server = Process::start(server.args(["-c", SERVER]), &world.folder.join("late.log"))?;
    server.wait_for("ready", LONG)?;
    for round in 1..=2 {
        let mut client = world.pod("a").netns.command("python3");
        client.args(["-c", CLIENT, &world.pod("b").v4.to_string(), &LEFT.to_string()]);
        process::run(&mut client, LONG)?.ok()?;
        if round == 2 {
            world.agents[0].stop()?;
        }
        eventually(LONG, || {
            let told = server.output();
            ensure!(told.matches(&format!("got {LEFT}\n")).count() == round, "{told}");
            Ok(())
        })?;
    }
    world.agents[0].start()?;
    world.must_reach("a", "b")
}

fn handover(world: &mut World) -> Result<()> {
    let to = format!("{}:{}", world.pod("b").v4, ports::ECHO);
    let mut open = crate::load::tool(&world.pod("a").netns)?;
    // As long as two agents take to start.
    let while_ms = if kernel()? == Kernel::Without { "8000" } else { "45000" };
    open.args(["ping-pong", "--to", &to, "--for-ms", while_ms, "--rest-ms", "20"]);
    let mut open = Process::start(&mut open, &world.folder.join("handover.log"))?;
    eventually(LONG, || {
        let status = world.agents[0].status()?;
        ensure!(status["connectionsTotal"].as_u64().unwrap_or(0) > 0, "not open yet: {}", open.output());
        Ok(())
    })?;
    for agent in &mut world.agents {
        let successor = agent.successor()?;
        let mark = agent.mark();
        let before = agent.replace(successor);
        world.retired.extend(before);
        eventually(LONG, || agent.wait_log(mark, &["taken over from the agent that served this node"]))?;
        agent.wait_ready()?;
    }
    world.must_reach("a", "b")?;
    world.must_reach("b", "e")?;
    let ended = open.wait(2 * LONG)?;
    ensure!(ended.success(), "the open connection broke: {}", open.output());
    Ok(())
}
