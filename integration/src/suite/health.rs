//! What keeps a pod from talking, as the table in docs/troubleshooting.md has it: brought about state by state, and compared with
//! what is said of it.

use std::{any::Any, fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{SECOND, Test, unstarted};
use crate::{
    agent::{Agent, START_LIMIT},
    ca::CaService,
    certs,
    manifests::peer_authentication,
    process::{self, Process, eventually},
    topology::MESHED,
    world::World,
};

pub(super) const TESTS: &[Test] = &[
    unstarted(
        "health::whatever_keeps_a_pod_from_talking_is_told",
        "every state of docs/troubleshooting.md: status, event, readiness, metric and alert are what the table says",
        &[],
        walk,
    ),
    unstarted(
        "health::one_pod_without_a_certificate_is_told",
        "refused for one identity and not for the other: a problem that names its pod, and the agent is ready",
        &[],
        one_of_two,
    ),
];

const DOCS: &str = include_str!("../../../docs/troubleshooting.md");
const ALERTS: &str = include_str!("../../../deploy/alerts/ambit.yaml");
/// Until a state is told of.
const TOLD: Duration = Duration::from_secs(15);
/// How long a connection waits for a certificate that may still come, and a little more.
const CERTIFICATE_WAIT: Duration = Duration::from_millis(5_500);

/// A state of the table, and how it comes about on the first node.
type Scenario = (&'static str, fn(&mut World) -> Result<Held>);

/// What has to go on for the state to last.
type Held = Box<dyn Any>;

const SCENARIOS: &[Scenario] = &[
    ("The issuer refuses a certificate", refuses),
    ("The issuer cannot be reached, and there is no certificate yet", unreachable),
    ("What the issuer has cannot be used", unusable),
    ("The certificate is not renewed", late),
    ("The certificate has expired", expired),
    ("The pod's network namespace is not found", no_namespace),
    ("An eBPF map has no room for the pod", full_of_pods),
    ("An eBPF map has no room for all destinations", full_of_destinations),
    ("A file could not be read when the agent started", unread_file),
    ("The Kubernetes API does not answer an agent that starts", no_api),
    ("No agent runs on the node", no_agent),
    ("A client without identity calls a pod that wants mutual TLS", plaintext),
    ("An AuthorizationPolicy refuses the client", denied),
    ("The nodes trust other roots", other_roots),
];

/// A row of the table.
#[derive(Debug)]
struct Row<'a> {
    state: &'a str,
    status: Vec<&'a str>,
    event: Vec<&'a str>,
    readiness: Vec<&'a str>,
    metric: Vec<&'a str>,
    alert: Vec<&'a str>,
}

fn walk(world: &mut World) -> Result<()> {
    let rows = rows()?;
    let states: Vec<&str> = rows.iter().map(|row| row.state).collect();
    let known: Vec<&str> = SCENARIOS.iter().map(|(state, _)| *state).collect();
    ensure!(states == known, "the table has {states:#?}, and here are {known:#?}");
    for ((state, scenario), row) in SCENARIOS.iter().zip(&rows) {
        let held = scenario(world).with_context(|| (*state).to_owned())?;
        let gone = *state == "No agent runs on the node";
        let compared =
            if gone { nobody_answers(world, row) } else { eventually(TOLD, || compare(world, row)) };
        compared.with_context(|| format!("{state}: {row:?}"))?;
        drop(held);
        clear(world)?;
    }
    world.notes.push(format!("{} states told as the table says", rows.len()));
    Ok(())
}

/// The rows behind the heading that begins with `| State |`.
fn rows() -> Result<Vec<Row<'static>>> {
    let (_, table) = DOCS.split_once("\n| State |").context("no table of states")?;
    let lines = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    lines
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let [state, status, event, readiness, metric, alert, what_to_do] = cells[..] else {
                anyhow::bail!("a row of {} cells: {line}", cells.len());
            };
            ensure!(!what_to_do.is_empty(), "nothing to do about {state}");
            let [status, event, readiness, metric, alert] =
                [status, event, readiness, metric, alert].map(quoted);
            Ok(Row { state, status, event, readiness, metric, alert })
        })
        .collect()
}

/// What stands between backticks.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

fn compare(world: &World, row: &Row<'_>) -> Result<()> {
    let agent = &world.agents[0];
    let status = agent.status()?;
    let told = status["problems"].to_string();
    match &row.status[..] {
        [] => ensure!(status["problems"] == Value::Array(Vec::new()), "problems: {told}"),
        phrases => {
            for phrase in phrases {
                ensure!(told.contains(phrase), "no problem says {phrase:?}: {told}");
            }
            let text = agent.status_text()?;
            ensure!(text.contains("PROBLEMS"), "{text}");
        }
    }
    let pods = status["pods"].as_array().context("pods")?;
    let events: Vec<&str> =
        pods.iter().filter_map(|pod| pod["hindrance"].as_str()).filter(|event| !event.is_empty()).collect();
    ensure!(events.is_empty() == row.event.is_empty(), "events {events:?}: {pods:?}");
    ensure!(events.iter().all(|event| row.event.contains(event)), "events {events:?}");
    let pending = status["pending"].as_array().context("pending")?;
    ensure!((status["ready"] == true) == row.readiness.is_empty(), "pending: {pending:?}");
    for gate in &row.readiness {
        ensure!(pending.iter().any(|one| one == gate), "{gate} is not pending: {pending:?}");
    }
    for metric in &row.metric {
        ensure!(agent.metrics()?.sum(metric, &[]) > 0.0, "{metric} does not tell");
    }
    watched(row)
}

/// Whether each alert of the row is there, and looks at one of its metrics.
fn watched(row: &Row<'_>) -> Result<()> {
    for alert in &row.alert {
        let rule = ALERTS.split("- alert: ").find(|rule| rule.starts_with(&format!("{alert}\n")));
        let rule = rule.with_context(|| format!("there is no alert {alert}"))?;
        ensure!(
            row.metric.iter().any(|metric| rule.contains(metric)),
            "{alert} looks at none of {:?}",
            row.metric
        );
    }
    Ok(())
}

fn nobody_answers(world: &World, row: &Row<'_>) -> Result<()> {
    ensure!(world.agents[0].status().is_err(), "an agent answers");
    world.must_not_reach("a", "b")?;
    watched(row)
}

/// The world as it was before a scenario.
fn clear(world: &mut World) -> Result<()> {
    for agent in &mut world.agents {
        agent.kill();
        eventually(5 * SECOND, || agent.uninstall()?.ok().map(drop))?;
        agent.set_flags(&[]);
    }
    for file in ["broken.yaml", "deny.yaml"] {
        world.manifests.remove(file)?;
    }
    world.reset_manifests()?;
    world.manifests.pod(&world.topology, world.pod("e"), &[])
}

/// Nothing has to go on.
fn nothing() -> Result<Held> {
    Ok(Box::new(()))
}

fn spawn(world: &mut World) -> Result<Held> {
    world.agents.iter_mut().try_for_each(Agent::spawn)?;
    nothing()
}

/// A certificate service that the agents ask; both get certificates that live for so long.
fn served(world: &mut World, ttl: &'static str) -> Result<CaService> {
    let mut service = prepared(world)?;
    service.start()?;
    service.serve_agents(world);
    world.agents.iter_mut().for_each(|agent| agent.add_flags(&["--svid-ttl", ttl]));
    world.start_agents()?;
    world.must_reach("a", "b")?;
    Ok(service)
}

fn prepared(world: &World) -> Result<CaService> {
    let before = world.folder.join("certificate-service");
    if before.exists() {
        fs::remove_dir_all(before)?;
    }
    CaService::prepare(world, &[])
}

fn refuses(world: &mut World) -> Result<Held> {
    let mut service = prepared(world)?;
    service.start()?;
    service.serve_agents(world);
    // The other node's caller, who may have nothing that runs here.
    fs::copy(service.token(1), service.token(0))?;
    spawn(world)?;
    // Pods that are not enrolled yet speak as they would without ambit.
    eventually(START_LIMIT, || world.must_be_refused("e", "b", CERTIFICATE_WAIT))?;
    Ok(Box::new(service))
}

fn unreachable(world: &mut World) -> Result<Held> {
    let service = prepared(world)?;
    service.serve_agents(world);
    spawn(world)
}

fn unusable(world: &mut World) -> Result<Held> {
    let empty = world.folder.join("no-certificates");
    fs::create_dir_all(&empty)?;
    let dir = empty.display().to_string();
    world.agents.iter_mut().for_each(|agent| agent.set_flags(&["--issuer", "files", "--cert-dir", &dir]));
    spawn(world)
}

fn late(world: &mut World) -> Result<Held> {
    let service = served(world, "30s")?;
    // Dropped, and so killed, here; certificates are past 27 of their 30 seconds before the comparison gives up.
    drop(service);
    std::thread::sleep(SECOND * 20);
    nothing()
}

fn expired(world: &mut World) -> Result<Held> {
    let service = served(world, "10s")?;
    drop(service);
    eventually(SECOND * 15, || {
        let certs = world.agents[0].certs()?;
        let all = certs["certificates"].as_array().context("certificates")?;
        ensure!(all.iter().all(|one| one["state"] == "expired"), "{certs:#}");
        Ok(())
    })?;
    nothing()
}

fn no_namespace(world: &mut World) -> Result<Held> {
    let file = world.manifests.folder().join("pod-e.yaml");
    let own = world.pod("e").netns.name().to_owned();
    let text =
        fs::read_to_string(&file)?.replace(&format!("ambit.dev/netns: {own}"), "ambit.dev/netns: absent");
    world.manifests.write("pod-e.yaml", &text)?;
    world.start_agents().and_then(|()| nothing())
}

fn full_of_pods(world: &mut World) -> Result<Held> {
    world.agents[0].set_flags(&["--map-entries", "PODS=1"]);
    spawn(world)
}

fn full_of_destinations(world: &mut World) -> Result<Held> {
    world.agents[0].set_flags(&["--map-entries", "DESTINATIONS=10"]);
    spawn(world)
}

fn unread_file(world: &mut World) -> Result<Held> {
    world.manifests.write("broken.yaml", "kind: [")?;
    world.start_agents()?;
    world.must_not_reach("c", "e").and_then(|_| nothing())
}

fn no_api(world: &mut World) -> Result<Held> {
    let (agent, kubeconfig) = (&world.agents[0], world.folder.join("nowhere.yaml"));
    fs::write(
        &kubeconfig,
        "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n\
         clusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}]\nusers: [{name: u, user: {}}]\n",
    )?;
    fs::create_dir_all(agent.run_dir())?;
    let mut command = agent.node().netns.command(&world.binary);
    command.args(["agent", "--node", &agent.node().name, "--metrics-addr", "127.0.0.1:15020"]);
    command.arg("--kubeconfig").arg(&kubeconfig).arg("--ca-dir").arg(&world.ca);
    command.arg("--run-dir").arg(agent.run_dir());
    let process = Process::start(&mut command, &world.folder.join("no-api.log"))?;
    eventually(START_LIMIT, || agent.status().map(drop))?;
    Ok(Box::new(process))
}

fn no_agent(world: &mut World) -> Result<Held> {
    world.start_agents()?;
    world.must_reach("a", "b")?;
    world.agents[0].kill();
    nothing()
}

fn plaintext(world: &mut World) -> Result<Held> {
    world.manifests.peer_authentication(MESHED, "STRICT")?;
    world.start_agents()?;
    world.must_not_reach("c", "e").and_then(|_| nothing())
}

fn denied(world: &mut World) -> Result<Held> {
    let text = peer_authentication(MESHED, "STRICT").replace("PeerAuthentication", "AuthorizationPolicy");
    let (head, _) = text.split_once("spec:").context("a spec")?;
    world.manifests.write("deny.yaml", &format!("{head}spec: {{action: DENY, rules: [{{}}]}}\n"))?;
    world.start_agents()?;
    world.must_not_reach("c", "e").and_then(|_| nothing())
}

fn other_roots(world: &mut World) -> Result<Held> {
    let other = world.folder.join("other-ca").display().to_string();
    world.agents[1].set_flags(&["--issuer", "builtin", "--ca-dir", &other]);
    world.start_agents()?;
    world.must_not_reach("a", "b").and_then(|_| nothing())
}

fn one_of_two(world: &mut World) -> Result<()> {
    let dir = world.folder.join("certificates");
    let folder = world.folder.join("made");
    fs::create_dir_all(&folder)?;
    certs::strange_authority(&folder)?;
    for pod in ["a", "b"] {
        let pod = world.pod(pod);
        let place = dir.join(pod.namespace).join(pod.service_account);
        fs::create_dir_all(&place)?;
        let identity = pod.identity();
        let recipe = certs::Recipe { name: pod.name, uris: &[&identity], validity: certs::VALID };
        let made = certs::issue(&folder, &folder, &recipe)?;
        fs::copy(made.certificate, place.join("tls.crt"))?;
        fs::copy(made.key, place.join("tls.key"))?;
    }
    fs::copy(folder.join("ca-cert.pem"), dir.join("ca.crt"))?;
    let place = dir.display().to_string();
    world.agents.iter_mut().for_each(|agent| agent.set_flags(&["--issuer", "files", "--cert-dir", &place]));
    world.start_agents()?;
    world.must_reach("a", "b")?;
    world.must_be_refused("e", "b", CERTIFICATE_WAIT)?;
    let status = world.agents[0].status()?;
    ensure!(status["ready"] == true, "one identity of two is no reason: {status:#}");
    let told = status["problems"].to_string();
    ensure!(told.contains("no certificate") && told.contains("shop/e") && !told.contains("shop/a"), "{told}");
    let missing = world.agents[0].metrics()?.sum("ambit_certificates_missing", &[]);
    ensure!(missing == 1.0, "{missing} are missing");
    let text = process::must(
        std::process::Command::new(&world.binary)
            .args(["status", "--run-dir"])
            .arg(world.agents[0].run_dir()),
    )?;
    ensure!(text.contains("enrolled, no certificate"), "{text}");
    Ok(())
}
