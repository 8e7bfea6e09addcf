//! CUSTOM AuthorizationPolicies: external providers that are asked who may come to pod b, inside the mesh and out of it.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::{SECOND, Test, unstarted};
use crate::{
    agent::IN_FORCE,
    load::{self, ports},
    mirror,
    process::{Process, eventually},
    topology::MESHED,
    world::World,
};

pub(super) const TESTS: &[Test] = &[
    unstarted(
        "custom::a_provider_in_the_mesh_decides",
        "about connections to one port; it is asked from b's address, with b's identity",
        &[],
        in_the_mesh,
    ),
    unstarted(
        "custom::a_provider_outside_decides",
        "in plaintext, at an IP address: who comes in mutual TLS and is on its list",
        &[],
        outside,
    ),
    unstarted(
        "custom::away_silent_and_back",
        "refused, or let in where it fails open, within its time; decided again once it is back",
        &[],
        away,
    ),
    unstarted(
        "custom::requests_are_changed_both_ways",
        "one by one on a connection: fields for the application and for the client; a no in the provider's words",
        &[],
        requests,
    ),
    unstarted(
        "custom::nobody_is_asked_about_a_provider",
        "a provider behind its own policy: refused at once, with the reason, and no end of questions",
        &[],
        itself,
    ),
    unstarted(
        "custom::a_provider_that_is_not_configured_denies",
        "by a policy that names another: refused, and the log says what to do",
        &[],
        unknown,
    ),
];

const PORT: u16 = 9191;
const FILE: &str = "custom.yaml";
const OTHER_FILE: &str = "custom-other.yaml";

/// A provider in pod `e`, behind a service without an address.
const SERVICE: &str = "checks";

fn service() -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {SERVICE}, namespace: {MESHED}}}\nspec:\n  clusterIP: None\n  \
         selector: {{app: e}}\n  ports: [{{name: grpc, port: {PORT}, targetPort: {PORT}}}]\n"
    )
}

/// A CUSTOM policy for a pod's port.
fn custom(name: &str, pod: &str, port: u16, provider: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {MESHED}}}\n\
         spec:\n  selector: {{matchLabels: {{app: {pod}}}}}\n  action: CUSTOM\n  provider: {{name: {provider}}}\n  \
         rules: [{{to: [{{operation: {{ports: [\"{port}\"]}}}}]}}]\n"
    )
}

/// A provider in `pod` that lets these service accounts of the mesh in.
fn provider(world: &World, pod: &str, allow: &[&str]) -> Result<Process> {
    let mut command = load::tool(&world.pod(pod).netns)?;
    command.args(["check-server", "--listen", &format!("[::]:{PORT}")]);
    for account in allow {
        command.args(["--allow", &format!("/ns/{MESHED}/sa/{account}")]);
    }
    started(&mut command, world, pod)
}

fn started(command: &mut Command, world: &World, pod: &str) -> Result<Process> {
    let mut process = Process::start(command, &world.folder.join(format!("{pod}-check-server.log")))?;
    process.wait_for("ready", SECOND * 10)?;
    Ok(process)
}

/// Starts the agents with these providers, each by name, address and further fields.
fn start(world: &mut World, providers: &[(&str, &str, &str)]) -> Result<()> {
    let entry = |(name, service, fields): &(&str, &str, &str)| {
        format!("{{name: {name}, envoyExtAuthzGrpc: {{service: {service:?}, port: {PORT}, {fields}}}}}")
    };
    let list = providers.iter().map(entry).collect::<Vec<_>>().join(", ");
    for agent in &mut world.agents {
        agent.add_flags(&["--extension-providers", &format!("[{list}]")]);
    }
    world.start_agents()
}

/// Whom b lets in once the manifests are in force: a in mutual TLS, e in mutual TLS, c in plaintext.
fn expect(world: &World, [a, e, c]: [bool; 3]) -> Result<()> {
    eventually(IN_FORCE + SECOND, || {
        for (pod, expected) in [("a", a), ("e", e), ("c", c)] {
            match expected {
                true => world.must_reach(pod, "b")?,
                false => world.must_not_reach(pod, "b").map(drop)?,
            }
        }
        Ok(())
    })
}

fn in_the_mesh(world: &mut World) -> Result<()> {
    let checks = provider(world, "e", &["a"])?;
    start(world, &[("checks", &format!("{SERVICE}.{MESHED}.svc.cluster.local"), "timeout: 2s")])?;
    world.manifests.write(OTHER_FILE, &service())?;
    let mark = world.agents[1].mark();
    world.manifests.write(FILE, &custom("ask", "b", ports::WHOAMI, "checks"))?;
    expect(world, [true, false, false])?;
    world.agents[1]
        .wait_log(mark, &["access", "policy=\"shop/ask\"", "checks denied it: not on the list"])?;
    // Another port has no such policy.
    let echoed = world.connect("e", (world.pod("b").v4, ports::ECHO), &["--send", "hello"])?;
    ensure!(echoed.received == "hello", "{echoed:?}");
    // The provider is asked by b.
    let asker = format!("\"asker\":\"[::ffff:{}]:", world.pod("b").v4);
    let identity = |pod: &str| format!("spiffe://cluster.local/ns/{MESHED}/sa/{pod}");
    let log = checks.output();
    let line = log.lines().find(|line| line.contains("\"allowed\":true")).context("nobody was let in")?;
    for words in [asker, format!("\"source\":\"{}\"", identity("a")), identity("b")] {
        ensure!(line.contains(&words), "{line} has no {words}");
    }
    // Its pod may let in that identity alone: the way there is a tunnel.
    let only = |account: &str| {
        format!(
            "{}---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: only, namespace: {MESHED}}}\n\
             spec:\n  selector: {{matchLabels: {{app: e}}}}\n  rules: [{{from: [{{source: {{serviceAccounts: [{account}]}}}}], \
             to: [{{operation: {{ports: [\"{PORT}\"]}}}}]}}]\n",
            service()
        )
    };
    world.manifests.write(OTHER_FILE, &only("b"))?;
    std::thread::sleep(IN_FORCE);
    expect(world, [true, false, false])?;
    let mark = world.agents[1].mark();
    world.manifests.write(OTHER_FILE, &only("a"))?;
    expect(world, [false; 3])?;
    world.agents[1].wait_log(mark, &["access", "checks cannot be asked", "provider_refused"])?;
    world.manifests.write(OTHER_FILE, &only("b"))?;
    expect(world, [true, false, false])?;
    let metrics = world.agents[1].metrics()?;
    for result in ["allowed", "denied", "unreachable"] {
        let label = format!("result=\"{result}\"");
        let checks = metrics.sum("ambit_ext_authz_checks_total", &["provider=\"checks\"", &label]);
        ensure!(checks > 0.0, "no check has ended as {result}");
    }
    Ok(())
}

fn outside(world: &mut World) -> Result<()> {
    let _checks = provider(world, "d", &["a", "e"])?;
    let place = world.pod("d").v4.to_string();
    start(world, &[("checks", &place, "timeout: 2s")])?;
    world.manifests.write(FILE, &custom("ask", "b", ports::WHOAMI, "checks"))?;
    expect(world, [true, true, false])
}

fn away(world: &mut World) -> Result<()> {
    let place = world.pod("d").v4.to_string();
    start(
        world,
        &[("strict", &place, "timeout: 0.5s"), ("lenient", &place, "timeout: 0.5s, failOpen: true")],
    )?;
    let use_provider = |world: &World, name: &str| {
        world.manifests.write(FILE, &custom("ask", "b", ports::WHOAMI, name))?;
        std::thread::sleep(IN_FORCE);
        Ok::<_, anyhow::Error>(())
    };
    // Nobody is there.
    use_provider(world, "strict")?;
    expect(world, [false; 3])?;
    let status = world.agents[1].status()?.to_string();
    ensure!(status.contains("the provider strict cannot be asked"), "{status}");
    use_provider(world, "lenient")?;
    expect(world, [true; 3])?;
    // It is there, and says nothing.
    let mut checks = provider(world, "d", &["a"])?;
    expect(world, [true, false, false])?;
    checks.signal(Signal::SIGSTOP);
    // Within its time, and a moment for the connection itself.
    expect(world, [true; 3])?;
    use_provider(world, "strict")?;
    expect(world, [false; 3])?;
    checks.signal(Signal::SIGCONT);
    expect(world, [true, false, false])?;
    // It dies and comes back.
    drop(checks);
    expect(world, [false; 3])?;
    let _checks = provider(world, "d", &["a"])?;
    expect(world, [true, false, false])
}

fn requests(world: &mut World) -> Result<()> {
    let _checks = provider(world, "d", &["a"])?;
    let place = world.pod("d").v4.to_string();
    start(world, &[("checks", &place, "timeout: 2s")])?;
    let _mirror = mirror::start(world.pod("b"), &world.folder)?;
    let policy =
        custom("ask", "b", mirror::PORT, "checks").replace("{ports", "{paths: [\"/asked/*\"], ports");
    world.manifests.write(FILE, &policy)?;
    let url = |path: &str| format!("http://{}:{}{path}", world.pod("b").v4, mirror::PORT);
    let get = |pod: &str, path: &str| {
        let fields = ["-i", "-H", "x-secret: s", "-H", "x-checked: mallory"];
        world.curl(pod, &[&fields[..], &[&url(path)]].concat())?.ok()
    };
    eventually(IN_FORCE + SECOND, || {
        let refused = get("e", "/asked/1")?;
        ensure!(refused.starts_with("HTTP/1.1 418"), "{refused}");
        Ok(())
    })?;
    let refused = get("e", "/asked/1")?;
    for words in ["x-why: not on the list", "\r\n\r\nnot on the list"] {
        ensure!(refused.contains(words), "{refused}");
    }
    let admitted = get("a", "/asked/1?debug=1")?;
    for words in [
        "x-answered: yes",
        "/asked/1?debug=1\n",
        &format!("x-checked: spiffe://cluster.local/ns/{MESHED}/sa/a"),
    ] {
        ensure!(admitted.contains(words), "no {words:?}: {admitted}");
    }
    ensure!(!admitted.contains("x-secret") && !admitted.contains("mallory"), "{admitted}");
    // Others are not asked about, and go on as they are.
    let other = get("e", "/other")?;
    ensure!(other.contains("x-secret: s") && !other.contains("x-answered"), "{other}");
    // A connection lives on.
    let (first, second) = (url("/asked/1"), url("/other"));
    let format = "%{http_code} %{num_connects}\n";
    let told =
        world.curl("e", &["-o", "/dev/null", "-o", "/dev/null", "-w", format, &first, &second])?.ok()?;
    ensure!(told == "418 1\n200 0\n", "{told}");
    Ok(())
}

fn itself(world: &mut World) -> Result<()> {
    let _checks = provider(world, "e", &["a", "b"])?;
    start(world, &[("checks", &format!("{MESHED}/{SERVICE}"), "timeout: 5s, failOpen: true")])?;
    world.manifests.write(OTHER_FILE, &service())?;
    let mark = world.agents[0].mark();
    world.manifests.write(FILE, &custom("ask", "e", PORT, "checks"))?;
    let e = (world.pod("e").v4, PORT);
    eventually(IN_FORCE + SECOND, || {
        let attempt = world.connect("a", e, &["--send", "hello", "--limit-ms", "1000"])?;
        ensure!(attempt.error.is_some() && attempt.took_ms < 1000, "{attempt:?}");
        Ok(())
    })?;
    world.agents[0].wait_log(mark, &["access", "exclude its pods from CUSTOM policies"])?;
    Ok(())
}

fn unknown(world: &mut World) -> Result<()> {
    start(world, &[("checks", "198.18.255.1", "failOpen: true")])?;
    let mark = world.agents[1].mark();
    world.manifests.write(FILE, &custom("ask", "b", ports::WHOAMI, "cheques"))?;
    expect(world, [false; 3])?;
    world.agents[1].wait_log(mark, &["access", "policy=\"shop/ask\"", "cheques"])?;
    Ok(())
}
