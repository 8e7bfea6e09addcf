//! Names: hosts of ServiceEntries that pods ask for, and everything else, which goes on as if no agent were there. The resolver is
//! BIND, the clients are sockets, glibc's getaddrinfo, musl's, Go's, dig and dnsperf.

mod load;
mod resolver;

use std::{fs, net::IpAddr};

use anyhow::{Context as _, Result, ensure};

pub(crate) use self::resolver::Resolver;
use super::{SECOND, Test, own};
use crate::{
    agent::IN_FORCE,
    load::ports,
    process::{self, Process, eventually, run},
    topology::{MESHED, UNMESHED},
    world::World,
};

pub(super) const TESTS: &[Test] = &[
    own(
        "dns::hosts_of_entries_have_addresses",
        "by UDP and TCP, IPv4 and IPv6; the address leads to the host; search lists, exportTo, labels",
        &["--dns-capture", "on"],
        hosts,
    ),
    own(
        "dns::libraries_find_them",
        "getaddrinfo of glibc and musl, Go's own resolver, dig: with search lists as Kubernetes writes them",
        &["--dns-capture", "on"],
        libraries,
    ),
    own(
        "dns::rules_hold_for_allocated_addresses",
        "REGISTRY_ONLY lets them through, DestinationRules bound them, other ports are refused",
        &["--dns-capture", "on"],
        rules,
    ),
    own(
        "dns::a_thousand_answers_are_the_resolvers_own",
        "CNAME chains, AAAA only, NXDOMAIN, SERVFAIL, truncation, TXT of 4 KB, EDNS: byte for byte, by UDP and TCP",
        &["--dns-capture", "on"],
        thousand,
    ),
    own(
        "dns::names_are_found_without_the_agent",
        "SIGKILL: within one question's time-out from the resolver itself, and back at the agent after its start",
        &["--dns-capture", "on"],
        without_the_agent,
    ),
    own(
        "dns::load_is_carried_without_loss",
        "dnsperf: thousands of questions a second through an agent on one processor, all answered",
        &["--dns-capture", "on"],
        load::carried,
    ),
    own(
        "dns::resolvers_come_and_go",
        "two at once from one socket; more than there are sockets for are asked directly",
        &["--dns-capture", "on"],
        resolvers,
    ),
];

const HOST: &str = "api.example.com";
/// A program that asks resolvers, for python3.
pub(crate) const ASK: &str = include_str!("dns/ask.py");

/// An entry without addresses that leads to pod `b`.
fn entry(world: &World, more: &str) -> Result<()> {
    let b = world.pod("b");
    let text = format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: api, namespace: {MESHED}}}\nspec: {{hosts: [{HOST}], \
         ports: [{{number: 80, name: tcp, protocol: TCP, targetPort: {}}}], resolution: STATIC, endpoints: [{{address: {}}}, \
         {{address: '{}'}}]{more}}}\n",
        ports::WHOAMI,
        b.v4,
        b.v6
    );
    world.manifests.write("entry.yaml", &text)
}

/// What the program has to say in a pod.
fn ask(world: &World, pod: &str, arguments: &[&str]) -> Result<String> {
    let mut command = world.pod(pod).netns.command("python3");
    run(command.args(["-c", ASK]).args(arguments), 120 * SECOND)?.ok()
}

/// The code of the answer and its addresses, which are the same in every way of asking.
fn told(world: &World, pod: &str, resolver: impl Into<IpAddr>, name: &str, kind: &str) -> Result<String> {
    let resolver = resolver.into().to_string();
    Ok(ask(world, pod, &["host", &resolver, name, kind])?.trim().to_owned())
}

/// The address that the mesh has for the host.
fn allocated(world: &World, resolver: &Resolver) -> Result<String> {
    eventually(IN_FORCE * 2, || {
        let told = told(world, "a", resolver.v4, HOST, "A")?;
        let vip = told.strip_prefix("0 240.240.").with_context(|| format!("the answer is {told:?}"))?;
        Ok(format!("240.240.{vip}"))
    })
}

fn hosts(world: &mut World) -> Result<()> {
    const REFUSED: &str = "5";
    let resolver = Resolver::start(world)?;
    // BIND knows nothing of it.
    eventually(IN_FORCE, || {
        ensure!(told(world, "a", resolver.v4, HOST, "A")? == REFUSED);
        Ok(())
    })?;
    entry(world, "")?;
    let vip = allocated(world, &resolver)?;
    let v6 = told(world, "a", resolver.v6, HOST, "AAAA")?;
    ensure!(v6.starts_with("0 2001:2::"), "by IPv6: {v6}");
    ensure!(told(world, "a", resolver.v4, "API.Example.COM", "A")? == format!("0 {vip}"), "in other letters");
    ensure!(told(world, "a", resolver.v4, HOST, "MX")? == "0", "there is no MX, and that is no error");
    ensure!(ask(world, "a", &["mapped", &resolver.v4.to_string(), HOST])?.trim() == format!("0 {vip}"));
    let upstream = told(world, "a", resolver.v4, "api.example.com.shop.svc.cluster.local", "A")?;
    ensure!(upstream == "3", "what a search list makes of it is not the host: {upstream}");
    ensure!(told(world, "c", resolver.v4, HOST, "A")? == REFUSED, "a pod outside the mesh is told of it");
    // The agents of both nodes say the same.
    ensure!(
        told(world, "b", resolver.v4, HOST, "A")? == format!("0 {vip}"),
        "the other node's agent differs"
    );
    let (v4, v6): (IpAddr, IpAddr) = (vip.parse()?, v6.trim_start_matches("0 ").parse()?);
    for ip in [v4, v6] {
        let attempt = world.connect("a", (ip, 80), &["--send", "hello", "--limit-ms", "3000"])?;
        ensure!(attempt.received.starts_with("peer "), "{ip}: {attempt:?}");
    }
    let line = world.agents[0].wait_log(0, &["access", "connection complete", HOST, "mutual_tls"])?;
    ensure!(line.contains(&vip), "{line}");
    let metrics = world.agents[0].metrics()?;
    for result in ["answered", "passed"] {
        let count = metrics.sum("ambit_dns_messages_total", &[&format!("result=\"{result}\"")]);
        ensure!(count > 3.0, "{result}: {count}");
    }
    entry(world, ", exportTo: [legacy]")?;
    eventually(IN_FORCE, || {
        // Its own namespace sees an entry in any case.
        ensure!(told(world, "a", resolver.v4, HOST, "A")? == format!("0 {vip}"));
        Ok(())
    })?;
    strangers(world)?;
    let status = world.agents[0].status_text()?;
    ensure!(status.contains("DNS captured"), "{status}");
    // A label goes before the flag.
    let namespaces = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {MESHED}\n  labels: {{ambit.dev/dataplane: enabled, ambit.dev/dns-capture: \
         disabled}}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {UNMESHED}}}\n"
    );
    world.manifests.write("namespaces.yaml", &namespaces)?;
    eventually(IN_FORCE, || {
        ensure!(told(world, "a", resolver.v4, HOST, "A")? == REFUSED, "DNS is captured still");
        Ok(())
    })?;
    world.manifests.write("namespaces.yaml", &namespaces.replace("disabled", "enabled"))?;
    eventually(IN_FORCE, || {
        ensure!(told(world, "a", resolver.v4, HOST, "A")? == format!("0 {vip}"), "DNS is not captured again");
        Ok(())
    })
}

/// The agent's sockets in a pod are the pod's alone.
fn strangers(world: &World) -> Result<()> {
    let a = world.pod("a");
    let listening = process::must(a.netns.command("ss").args(["-Hlun4"]))?;
    let own = format!("{}:", a.v4);
    let ports: Vec<&str> = listening.split_whitespace().filter_map(|word| word.strip_prefix(&own)).collect();
    ensure!(ports.len() == 4, "the agent's sockets are at {ports:?}");
    let told = ask(world, "c", &["stranger", &a.v4.to_string(), &ports.join(","), HOST])?;
    ensure!(told.trim() == "silence", "another pod is {told}");
    let dropped = world.agents[0].metrics()?.sum("ambit_dns_messages_total", &["result=\"dropped\""]);
    ensure!(dropped >= 4.0, "{dropped} were dropped");
    Ok(())
}

/// What a command says in pod `a` with the resolver's configuration in the place of the machine's.
fn with_resolver(world: &World, resolver: &Resolver, script: &str) -> Result<String> {
    let configuration = resolver.configuration(world)?;
    let mut command = world.pod("a").netns.command("unshare");
    let script = format!(
        "mount --make-rprivate / && mount --bind {} /etc/resolv.conf && {script}",
        configuration.display()
    );
    run(command.args(["--mount", "sh", "-c", &script]), 60 * SECOND)?.ok()
}

fn libraries(world: &mut World) -> Result<()> {
    let resolver = Resolver::start(world)?;
    entry(world, "")?;
    let vip = allocated(world, &resolver)?;
    let folder = world.folder.join("libraries");
    fs::create_dir_all(&folder)?;
    let write = |name: &str, text: &str| -> Result<String> {
        let path = folder.join(name);
        fs::write(&path, text)?;
        Ok(path.display().to_string())
    };
    let c = write(
        "find.c",
        "#include <stdio.h>\n#include <netdb.h>\n#include <arpa/inet.h>\nint main(int n, char **v) {\n struct addrinfo h = {.ai_family = \
         AF_INET, .ai_socktype = SOCK_STREAM}, *r; char t[64];\n int e = getaddrinfo(v[1], 0, &h, &r);\n if (e) { puts(gai_strerror(e)); \
         return 0; }\n for (; r; r = r->ai_next) puts(inet_ntop(AF_INET, &((struct sockaddr_in *)r->ai_addr)->sin_addr, t, 64));\n}\n",
    )?;
    let go = write(
        "find.go",
        "package main\nimport (\"fmt\"; \"net\"; \"os\")\nfunc main() {\n a, e := net.LookupHost(os.Args[1])\n if e != nil { fmt.Println(e); \
         return }\n for _, x := range a { fmt.Println(x) }\n}\n",
    )?;
    let build =
        |command: &str| run(std::process::Command::new("sh").args(["-c", command]), 300 * SECOND)?.ok();
    let out = folder.display();
    build(&format!("musl-gcc -static -o {out}/musl {c}"))?;
    build(&format!("cd {out} && GOCACHE={out}/cache GO111MODULE=off go build -tags netgo -o {out}/go {go}"))?;
    for (what, finds) in [
        ("glibc", "getent ahostsv4 NAME".to_owned()),
        ("musl", format!("{out}/musl NAME")),
        ("Go", format!("{out}/go NAME")),
        ("dig with the search list", "dig +search +short NAME".to_owned()),
        ("dig by TCP", "dig +search +tcp +short NAME".to_owned()),
    ] {
        for (name, expected) in
            [(HOST, &*vip), ("h0.example.test", "192.0.2.0"), ("h3.example.test", "192.0.2.4")]
        {
            let found = with_resolver(world, &resolver, &finds.replace("NAME", name))?;
            ensure!(found.contains(expected), "{what} finds for {name}: {found:?}");
        }
        let missing = with_resolver(
            world,
            &resolver,
            &format!("{} || true", finds.replace("NAME", "h4.example.test")),
        )?;
        ensure!(!missing.contains("192.0.2") && !missing.contains("240.240"), "{what}: {missing}");
    }
    Ok(())
}

fn rules(world: &mut World) -> Result<()> {
    let resolver = Resolver::start(world)?;
    entry(world, "")?;
    let vip: IpAddr = allocated(world, &resolver)?.parse()?;
    super::egress::hold_to_registry(world)?;
    let reach = |world: &World, port: u16| {
        world.connect("a", (vip, port), &["--send", "hello", "--no-fin", "--limit-ms", "2500"])
    };
    eventually(IN_FORCE * 2, || {
        let outside = world.connect("a", (resolver.v4, 9), &["--send", "hello"])?;
        ensure!(outside.error.as_deref() == Some("ConnectionRefused"), "{outside:?}");
        ensure!(world.agents[0].log().contains("egress_denied"), "the namespace is not held to the registry");
        let attempt = reach(world, 80)?;
        ensure!(attempt.received.starts_with("peer "), "{attempt:?}");
        Ok(())
    })?;
    let mark = world.agents[0].mark();
    let other = reach(world, 81)?;
    ensure!(other.error.as_deref() == Some("ConnectionRefused"), "{other:?}");
    world.agents[0].wait_log(mark, &["access", "unknown_port", HOST])?;
    // Two at a time are one too many.
    let rule = format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: api, namespace: {MESHED}}}\nspec: {{host: {HOST}, \
         trafficPolicy: {{tls: {{mode: ISTIO_MUTUAL}}}}}}\n"
    );
    world.manifests.write("rule.yaml", &rule)?;
    eventually(IN_FORCE, || {
        let attempt = reach(world, 80)?;
        ensure!(attempt.received.starts_with("peer "), "the mesh's own TLS to one in the mesh: {attempt:?}");
        Ok(())
    })?;
    world.manifests.write("rule.yaml", &rule.replace("ISTIO_MUTUAL", "NONSENSE"))?;
    eventually(IN_FORCE, || {
        let mark = world.agents[0].mark();
        let attempt = reach(world, 80)?;
        ensure!(
            attempt.error.as_deref() == Some("ConnectionRefused"),
            "a rule that cannot be read: {attempt:?}"
        );
        world.agents[0].wait_log(mark, &["access", "rule_unusable", HOST]).map(drop)
    })
}

fn thousand(world: &mut World) -> Result<()> {
    let resolver = Resolver::start(world)?;
    passes_a_thousand(world, &resolver)
}

/// Demands that answers of the resolver are the same in pod `a`, whose DNS is captured, as in a pod outside the mesh.
pub(crate) fn passes_a_thousand(world: &World, resolver: &Resolver) -> Result<()> {
    entry(world, "")?;
    allocated(world, resolver)?;
    for address in [IpAddr::from(resolver.v4), resolver.v6.into()] {
        let address = address.to_string();
        let before = world.agents[0].metrics()?.sum("ambit_dns_messages_total", &["result=\"passed\""]);
        let within = ask(world, "a", &["thousand", &address])?;
        let without = ask(world, "c", &["thousand", &address])?;
        ensure!(within.lines().count() == 1_001, "{} lines", within.lines().count());
        for (within, without) in within.lines().zip(without.lines()) {
            ensure!(within == without, "with the agent {within:?}, without {without:?}");
        }
        let passed =
            world.agents[0].metrics()?.sum("ambit_dns_messages_total", &["result=\"passed\""]) - before;
        // Each once by UDP, some by TCP, and some of those once more in a batch, whose line has three words for each.
        let batch = within.lines().last().map_or(0, |line| line.split_whitespace().count() / 3);
        let asked = 1_000 + within.matches(" tcp ").count() + batch;
        ensure!(passed >= asked as f64, "only {passed} of {asked} have passed through the agent");
    }
    Ok(())
}

fn without_the_agent(world: &mut World) -> Result<()> {
    let resolver = Resolver::start(world)?;
    entry(world, "")?;
    let vip = allocated(world, &resolver)?;
    let address = resolver.v4.to_string();
    let log = |name: &str| world.folder.join(format!("{name}.log"));
    let steady = |name: &str| -> Result<Process> {
        let mut command = world.pod("a").netns.command("python3");
        Process::start(command.args(["-c", ASK, "steady", &address, name, "20"]), &log(name))
    };
    let (mut foreign, mut ours) = (steady("h0.example.test")?, steady(HOST)?);
    foreign.wait_for("0 192.0.2.0", 5 * SECOND)?;
    ours.wait_for(&format!("0 {vip}"), 5 * SECOND)?;
    world.agents[0].kill();
    // BIND does not know it.
    ours.wait_for("\n5 ", 5 * SECOND).context("the agent is away")?;
    ensure!(told(world, "a", resolver.v4, "h0.example.test", "A")? == "0 192.0.2.0", "by UDP and TCP");
    world.agents[0].start()?;
    eventually(10 * SECOND, || {
        ensure!(told(world, "a", resolver.v4, HOST, "A")? == format!("0 {vip}"), "not back at the agent");
        Ok(())
    })?;
    for process in [&mut foreign, &mut ours] {
        ensure!(process.wait(40 * SECOND)?.success(), "{}", process.output());
    }
    let output = foreign.output();
    let lost: f64 = output.rsplit_once("lost ").context("lost")?.1.trim().parse()?;
    ensure!(lost <= 2.5, "names were not to be had for {lost} s: {output}");
    Ok(())
}

fn resolvers(world: &mut World) -> Result<()> {
    let resolver = Resolver::start(world)?;
    entry(world, "")?;
    let vip = allocated(world, &resolver)?;
    let others: Vec<String> = (1..=5).map(|last| format!("198.19.77.{last}")).collect();
    let (node, device) = (&world.topology.nodes[1], device(world)?);
    for other in &others {
        world.pod("x").netns.ip(&["address", "add", &format!("{other}/32"), "dev", "eth0"])?;
        node.netns.ip(&["route", "add", other, "dev", &device])?;
        world.topology.nodes[0].netns.ip(&["route", "add", other, "via", &node.v4.to_string()])?;
        // BIND takes note of new addresses by itself.
        eventually(10 * SECOND, || {
            ensure!(told(world, "c", other.parse::<IpAddr>()?, "h0.example.test", "A")? == "0 192.0.2.0");
            Ok(())
        })?;
    }
    let v4 = resolver.v4.to_string();
    let answers = ask(world, "a", &["both", &v4, &others[0], "h0.example.test"])?;
    let mut expected = [&*v4, &*others[0]];
    expected.sort_unstable();
    ensure!(answers.trim() == expected.join(" "), "{answers}");
    // Of one family there are four sockets: the fifth resolver, and the sixth, are asked by the pod itself.
    for (index, other) in others.iter().enumerate() {
        let other: IpAddr = other.parse()?;
        ensure!(told(world, "a", other, "h0.example.test", "A")? == "0 192.0.2.0", "{other}");
        let host = told(world, "a", other, HOST, "A");
        let expected = if index < 3 { format!("0 {vip}") } else { String::new() };
        match host {
            Ok(told) => ensure!(told == expected, "{other}: {told}"),
            // TCP has no such bound, so the ways differ.
            Err(error) => {
                ensure!(index >= 3 && format!("{error:#}").contains("AssertionError"), "{other}: {error:#}")
            }
        }
    }
    ensure!(
        told(world, "a", resolver.v4, HOST, "A")? == format!("0 {vip}"),
        "the first one keeps its socket"
    );
    Ok(())
}

/// The interface of the node that leads to the resolver.
fn device(world: &World) -> Result<String> {
    let route = world.topology.nodes[1].netns.ip(&["route", "get", &world.pod("x").v4.to_string()])?;
    let device = route.split_whitespace().skip_while(|word| *word != "dev").nth(1);
    device.map(str::to_owned).context("no route to the resolver")
}
