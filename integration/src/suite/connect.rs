//! What connect(2) tells an application, beside what it tells between the same kind of pods without ambit: that nobody
//! listens, that nobody answers, that a server is busy; and that ports are as many as without us.

mod programs;

use std::{
    net::SocketAddr,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};

use super::{SECOND, Test, marker, own, shared};
use crate::{
    agent::IN_FORCE,
    load::{self, ports},
    netns::Netns,
    process::{self, Process, eventually},
    tools::Attempt,
    topology::{MESHED, Pod},
    world::World,
};
use programs::python;

/// Nobody listens there.
const CLOSED: u16 = 9_900;

pub(super) const TESTS: &[Test] = &[
    shared(
        "connect::a_closed_port_is_refused",
        "by connect(2) itself, from every kind of socket, as without ambit",
        closed_port,
    ),
    shared(
        "connect::clients_outside_learn_of_closed_ports",
        "by connect(2) itself, and a port that opens is reached",
        closed_port_from_outside,
    ),
    shared(
        "connect::wait_for_loops_are_right",
        "nc -z fails before the server is there, and not after; curl falls back to IPv4",
        wait_for,
    ),
    own(
        "connect::nobody_answers",
        "the application's own time-out runs, as without ambit; what is given up is no longer dialled",
        &[],
        nobody_answers,
    ),
    shared(
        "connect::a_host_that_is_not_there",
        "EHOSTUNREACH where the pod's own network says so, as without ambit",
        unreachable,
    ),
    shared(
        "connect::a_full_backlog_is_waited_for",
        "connect(2) comes back when the server accepts, as without ambit",
        full_backlog,
    ),
    shared(
        "connect::a_policy_refuses_at_connect",
        "ECONNREFUSED, and both agents' logs say why",
        refused_by_policy,
    ),
    shared(
        "connect::a_busy_server_that_dies_is_believed",
        "after many connects in a row, a closed port is told as one within a second",
        busy_server_dies,
    ),
    own(
        "connect::a_way_that_opens_late_is_taken_once",
        "the server sees one client, though the agent has tried two ports meanwhile",
        &[],
        late_way,
    ),
    shared(
        "connect::as_many_ports_as_without_ambit",
        "1,600 connections to two servers with 1,000 source ports",
        many_connections,
    ),
    shared(
        "connect::a_source_port_for_several_servers",
        "sockets that share a bound port, as in active FTP, reach each their own",
        shared_source_port,
    ),
    shared(
        "connect::narrow_port_ranges_do_not_collide",
        "150 connections, held, of clients with 200 source ports, wherever these are",
        narrow_ranges,
    ),
];

/// Pods that see each other through ambit, and pods that do not: clients and servers are on different nodes.
const WAYS: [(&str, &str); 2] = [("c", "d"), ("a", "b")];

fn closed_port(world: &mut World) -> Result<()> {
    acquaint(world)?;
    for (client, server) in WAYS {
        let (from, to) = (world.pod(client).clone(), world.pod(server).clone());
        let source = format!("{}:0", from.v4);
        let v4 = SocketAddr::from((to.v4, CLOSED));
        for (to, flags) in [
            (v4, &[][..]),
            (v4, &["--bind", &source]),
            (v4, &["--device", "eth0"]),
            (v4, &["--fast-open", "--send", "hello"]),
            (SocketAddr::from((to.v6, CLOSED)), &[]),
            (SocketAddr::from((to.v4.to_ipv6_mapped(), CLOSED)), &[]),
        ] {
            refused(&world.connect(client, to, flags)?)
                .with_context(|| format!("{client} to {to} {flags:?}"))?;
        }
    }
    Ok(())
}

/// In a new world the first packet over IPv6 may be lost while neighbours are found, also where no agent has a part in it.
fn acquaint(world: &mut World) -> Result<()> {
    let to = SocketAddr::from((world.pod("d").v6, CLOSED));
    world.connect("c", to, &[]).map(drop)
}

/// Demands that connect(2) itself has failed, at once.
fn refused(attempt: &Attempt) -> Result<()> {
    let refused = !attempt.connected && attempt.error.as_deref() == Some("ConnectionRefused");
    ensure!(refused && attempt.took_ms < 900, "{attempt:?}");
    Ok(())
}

fn closed_port_from_outside(world: &mut World) -> Result<()> {
    acquaint(world)?;
    for server in ["d", "b"] {
        let pod = world.pod(server).clone();
        for to in [SocketAddr::from((pod.v4, CLOSED)), SocketAddr::from((pod.v6, CLOSED))] {
            refused(&world.connect("c", to, &[])?).with_context(|| format!("c to {to}"))?;
            let _server = whoami(world, &pod, to)?;
            let attempt = world.connect("c", to, &["--send", "hello"])?;
            ensure!(attempt.received.starts_with("peer "), "c to {to}: {attempt:?}");
        }
    }
    Ok(())
}

fn whoami(world: &World, pod: &Pod, at: SocketAddr) -> Result<Process> {
    let mut server = load::tool(&pod.netns)?;
    server.args(["whoami-server", "--listen", &at.to_string()]);
    let mut server = Process::start(&mut server, &world.folder.join(marker("connect-server")))?;
    server.wait_for("ready", 5 * SECOND).map(|()| server)
}

fn wait_for(world: &mut World) -> Result<()> {
    for (client, server) in WAYS {
        let (from, to) = (world.pod(client).clone(), world.pod(server).clone());
        let at = SocketAddr::from((to.v4, CLOSED));
        let nc = || {
            let mut nc = from.netns.command("nc");
            nc.args(["-z", "-w", "2", &to.v4.to_string(), &CLOSED.to_string()]);
            process::run(&mut nc, 5 * SECOND)
        };
        ensure!(nc()?.ok().is_err(), "nc -z of {client}: a closed port is open");
        let _server = whoami(world, &to, at)?;
        nc()?.ok().with_context(|| format!("nc -z of {client}"))?;
        // The name has two addresses, and the server listens at one.
        let resolve = format!("dual.test:{CLOSED}:[{}],{}", to.v6, to.v4);
        let url = format!("http://dual.test:{CLOSED}/");
        let answer = world.curl(client, &["--http0.9", "--resolve", &resolve, &url])?.ok()?;
        ensure!(answer.starts_with("peer "), "curl of {client}: {answer}");
    }
    Ok(())
}

fn nobody_answers(world: &mut World) -> Result<()> {
    world.must_reach("a", "b")?;
    // The agent has made ready for another pod by then, which takes a few files.
    thread::sleep(SECOND);
    let open_files = world.agents[0].open_files()?;
    let node = world.topology.nodes[1].netns.clone();
    for server in ["d", "b"] {
        let to = world.pod(server).v4;
        nft(
            &node,
            &format!(
                "add table ip dead\nadd chain ip dead forward {{ type filter hook forward priority 0 ; }}\n\
                 add rule ip dead forward ip daddr {to} tcp dport {CLOSED} drop\n"
            ),
        )?;
    }
    for (client, server) in WAYS {
        let to = world.pod(server).v4;
        let attempt = world.connect(client, (to, CLOSED), &["--limit-ms", "1500"])?;
        // What a blocking connect with a time-out says.
        let timed_out = !attempt.connected && attempt.error.as_deref() == Some("InProgress");
        ensure!(timed_out && (1_400..2_500).contains(&attempt.took_ms), "{client}: {attempt:?}");
        let gone = python(world.pod(client), &programs::given_up(to, CLOSED, 300))?;
        ensure!(gone == "given up", "{client}: {gone}");
    }
    // Each that is dialled costs a descriptor.
    let soon = || {
        let now = world.agents[0].open_files()?;
        ensure!(now <= open_files + 10, "{now} files are open, {open_files} were");
        Ok(())
    };
    eventually(4 * SECOND, soon)
}

fn unreachable(world: &mut World) -> Result<()> {
    for (client, server) in WAYS {
        let (from, to) = (world.pod(client).clone(), world.pod(server).clone());
        from.netns.ip(&["route", "add", "unreachable", &format!("{}/32", to.v4)])?;
        from.netns.ip(&["-6", "route", "add", "unreachable", &format!("{}/128", to.v6)])?;
        let attempts = [
            world.connect(client, (to.v4, ports::WHOAMI), &[]),
            world.connect(client, (to.v6, ports::WHOAMI), &[]),
        ];
        from.netns.ip(&["route", "del", "unreachable", &format!("{}/32", to.v4)])?;
        from.netns.ip(&["-6", "route", "del", "unreachable", &format!("{}/128", to.v6)])?;
        for attempt in attempts {
            let attempt = attempt?;
            let told = !attempt.connected && attempt.error.as_deref() == Some("HostUnreachable");
            ensure!(told, "{client}: {attempt:?}");
        }
    }
    Ok(())
}

fn full_backlog(world: &mut World) -> Result<()> {
    for (client, server) in WAYS {
        let (from, to) = (world.pod(client).clone(), world.pod(server).clone());
        let mut busy = to.netns.command("python3");
        busy.args(["-c", &programs::busy_server(CLOSED, 3)]);
        let mut busy = Process::start(&mut busy, &world.folder.join(marker("busy")))?;
        busy.wait_for("ready", 5 * SECOND)?;
        let told = python(&from, &programs::crowd(to.v4, CLOSED, 8))?;
        // Some are in at once, the others once the server accepts: their SYNs come again after 1, 3, 7 s.
        let times: Vec<f64> = told.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        ensure!(times.len() == 8 && times[0] < 0.5, "{client}: {told}");
        ensure!(times[7] > 2.0 && times[7] < 9.0, "{client}: {told}");
    }
    Ok(())
}

fn refused_by_policy(world: &mut World) -> Result<()> {
    const FILE: &str = "connect.yaml";
    world.must_reach("a", "b")?;
    world.manifests.write(
        FILE,
        &format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: closed\n  namespace: {MESHED}\n\
             spec:\n  selector: {{matchLabels: {{app: b}}}}\n"
        ),
    )?;
    let marks = [world.agents[0].mark(), world.agents[1].mark()];
    let done = eventually(IN_FORCE, || refused(&world.whoami("a", "b")?)).and_then(|()| {
        for (agent, mark) in world.agents.iter().zip(marks) {
            agent.wait_log(mark, &["policy_denied"])?;
        }
        refused(&world.whoami("e", "b")?)
    });
    world.manifests.remove(FILE)?;
    done?;
    eventually(IN_FORCE, || world.must_reach("a", "b"))
}

fn busy_server_dies(world: &mut World) -> Result<()> {
    let (to, at) = (world.pod("b").clone(), (world.pod("b").v4, CLOSED));
    let mut echo = load::tool(&to.netns)?;
    echo.args(["echo-server", "--listen", &format!("{}:{CLOSED}", to.v4)]);
    let start = |command: &mut Command| -> Result<Process> {
        let mut server = Process::start(command, &world.folder.join(marker("connect-echo")))?;
        server.wait_for("ready", 5 * SECOND).map(|()| server)
    };
    for client in ["a", "c"] {
        let mut server = start(&mut echo)?;
        let churn =
            ["churn", "--to", &SocketAddr::from(at).to_string(), "--count", "300", "--for-ms", "10000"];
        let tally = world.tool(client, &churn, 15 * SECOND)?;
        ensure!(tally["failed"] == 0, "{client}: {tally}");
        server.kill();
        let began = Instant::now();
        let truth = || refused(&world.connect(client, at, &["--send", "hello"])?);
        eventually(2 * SECOND, truth).with_context(|| client.to_owned())?;
        ensure!(began.elapsed() < Duration::from_millis(1_500), "{client}: {:?}", began.elapsed());
        for _ in 0..3 {
            truth().with_context(|| client.to_owned())?;
        }
        drop(start(&mut echo)?);
    }
    Ok(())
}

/// The node does not tell its link-layer address for a while, so that what the pod sends waits, and goes out at once.
fn late_way(world: &mut World) -> Result<()> {
    let node = world.topology.nodes[0].netns.clone();
    for (client, server) in WAYS {
        let (from, to) = (world.pod(client).clone(), world.pod(server).clone());
        let mut counter = to.netns.command("python3");
        counter.args(["-c", &programs::counting_server(CLOSED, 5)]);
        let mut counter = Process::start(&mut counter, &world.folder.join(marker("counter")))?;
        counter.wait_for("ready", 5 * SECOND)?;
        nft(
            &node,
            "table ip6 late { chain out { type filter hook output priority 0; \
             icmpv6 type nd-neighbor-advert drop; }; }",
        )?;
        from.netns.ip(&["-6", "neigh", "flush", "dev", "eth0"])?;
        let opens = thread::spawn({
            let node = node.clone();
            move || {
                thread::sleep(Duration::from_millis(700));
                nft(&node, "delete table ip6 late")
            }
        });
        let attempt = world.connect(client, (to.v6, CLOSED), &[]);
        opens.join().map_err(|_| anyhow!("the way has not opened"))??;
        let attempt = attempt?;
        ensure!(attempt.connected, "{client}: {attempt:?}");
        ensure!(attempt.took_ms >= 600, "{client}: the way was open: {attempt:?}");
        counter.wait(10 * SECOND)?;
        let told = counter.output();
        ensure!(told.contains("accepted 1\n"), "{client}: {told}");
    }
    Ok(())
}

fn many_connections(world: &mut World) -> Result<()> {
    let (a, b) = (world.pod("a").clone(), world.pod("b").clone());
    let servers = [(b.v4, ports::ECHO), (world.pod("e").v4, ports::ECHO)].map(SocketAddr::from);
    with_ports(&a, "40000 40999", || {
        let load = |to: &SocketAddr| -> Result<Process> {
            let mut many = load::tool(&a.netns)?;
            many.args(["many", "--to", &to.to_string(), "--connections", "800", "--rounds", "2", "--hold"]);
            // What is counted is ports, not how many handshakes a loaded machine does at a time.
            many.args(["--opening", "32"]);
            Process::start(&mut many, &world.folder.join(marker("many")))
        };
        let mut loads = servers.iter().map(load).collect::<Result<Vec<_>>>()?;
        for load in &mut loads {
            load.wait_for("holding", 180 * SECOND)?;
        }
        for mut load in loads {
            load.close_input();
            load.wait(60 * SECOND)?;
            let told = load.output();
            ensure!(told.contains("\"good\":800,\"failed\":0"), "{told}");
        }
        Ok(())
    })
}

/// Does something while a pod's ephemeral ports are these.
fn with_ports(pod: &Pod, range: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let set = |range: &str| pod.netns.sysctl(&[&format!("net.ipv4.ip_local_port_range={range}")]);
    set(range)?;
    let done = work();
    set("32768 60999")?;
    done
}

fn shared_source_port(world: &mut World) -> Result<()> {
    let (b, e) = (world.pod("b").v4, world.pod("e").v4);
    let servers = [(b, ports::ECHO), (b, ports::HALF_CLOSE), (e, ports::ECHO), (e, ports::HALF_CLOSE)];
    for port in [20, 600, 45_000] {
        let told = python(world.pod("a"), &programs::one_source_port(port, &servers))?;
        ensure!(told == "4", "from port {port}: {told}");
    }
    Ok(())
}

fn narrow_ranges(world: &mut World) -> Result<()> {
    let to = SocketAddr::from((world.pod("b").v4, ports::ECHO)).to_string();
    // In the mesh and outside of it; within the ports of the agent's own dials to applications, above and below.
    for client in ["a", "c"] {
        let pod = world.pod(client).clone();
        for range in ["61000 61199", "16384 16583", "1024 65535"] {
            with_ports(&pod, range, || {
                let many = ["many", "--to", &to, "--connections", "150", "--rounds", "3"];
                let tally = world.tool(client, &many, 30 * SECOND)?;
                ensure!(
                    tally["good"] == 150 && tally["took_ms"].as_u64() < Some(8_000),
                    "{client}, {range}: {tally}"
                );
                Ok(())
            })?;
        }
        thread::sleep(SECOND / 2);
    }
    Ok(())
}

fn nft(netns: &Netns, rules: &str) -> Result<()> {
    let mut command = netns.command("nft");
    process::run_with_input(command.args(["-f", "-"]), rules, 5 * SECOND)?.ok().map(drop)
}
