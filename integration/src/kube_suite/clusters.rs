//! Two clusters on one flat network: pods of either reach services of both.

mod federation;

use std::{fs, io, net::Ipv4Addr, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    Plan, Pod, Site, Test, bare, installed,
    site::{IN_FORCE, SECOND, SYSTEM},
};
use crate::{capture::is_tls, load::ports, process::eventually, tools::Attempt};

pub(super) const TESTS: &[Test] = &[
    installed(
        "clusters::two_of_them_are_one_mesh",
        "services of one name, STRICT at both ends, a remote identity's policy, one API away for a minute, agents that start meanwhile",
        two_clusters,
    ),
    bare(
        "clusters::trust_domains_are_federated",
        "a CA and a trust domain for each: STRICT at both ends, policies by the other's principals, refused without its roots",
        federation::two_trust_domains,
    ),
];

/// Where the Secrets are that name other clusters.
const SECRETS: &str = "ambit-clusters";
/// Where agents keep what they know of other clusters.
const STATE_DIR: &str = "/var/lib/ambit";
/// What the clusters are called.
const EAST: &str = "east";
const WEST: &str = "west";
/// Where the pods of the west are.
const WEST_PODS: &str = "198.19.11.0/24";
/// The namespace of the test, of one name in both.
const SHOP: &str = "shop";
const SETTINGS: [&str; 2] = ["multicluster.enabled=true", "multicluster.reader=true"];

fn two_clusters(east: &mut Site) -> Result<()> {
    let done = beside(east, |east, west| {
        settle(east, west)?;
        with_both(east, west)
    });
    // The next test has one cluster again.
    east.upgrade(&["multicluster.enabled=false"])?;
    forget_others(east)?;
    done
}

/// Does something with this cluster and another one, which is gone afterwards.
fn beside(east: &mut Site, work: impl FnOnce(&mut Site, &mut Site) -> Result<()>) -> Result<()> {
    let mut west = east.beside("west")?;
    let done = work(east, &mut west);
    let kept =
        if done.is_err() { west.keep_logs(&std::env::temp_dir().join("ambit-west")).ok() } else { None };
    let folder = west.cluster.folder().to_owned();
    west.down()?;
    // A second attempt begins anew.
    let _: io::Result<()> = fs::remove_dir_all(folder);
    done.with_context(|| format!("{:?}", kept))
}

/// Takes away what names other clusters.
fn forget_others(site: &Site) -> Result<()> {
    site.cluster.api.kubectl(&["delete", "namespace", SECRETS, "--ignore-not-found"]).map(drop)
}

/// Installs ambit in the other cluster under the root of this one, and has each read the other.
fn settle(east: &Site, west: &mut Site) -> Result<()> {
    let root = east.cluster.api.json(&["get", "secret", "ambit-ca", "-n", SYSTEM])?;
    west.cluster.api.kubectl(&["create", "namespace", SYSTEM])?;
    west.apply(&json!({
        "apiVersion": "v1", "kind": "Secret", "type": root["type"], "data": root["data"],
        "metadata": {"name": "ambit-ca", "namespace": SYSTEM},
    }))?;
    let name = format!("clusterName={WEST}");
    west.install(&[SETTINGS.as_slice(), &[&name, "ca.replicas=1"]].concat())?;
    let name = format!("clusterName={EAST}");
    east.upgrade(&[SETTINGS.as_slice(), &[&name]].concat())?;
    let west = &*west;
    read_by(east, west, WEST, &["--pod-networks", WEST_PODS])?;
    read_by(west, east, EAST, &[])
}

/// Has the agents of a cluster read another one.
fn read_by(reader: &Site, other: &Site, name: &str, flags: &[&str]) -> Result<()> {
    // The token comes a moment after its account.
    let secret = eventually(20 * SECOND, || cluster_secret(other, name, flags))?;
    reader.cluster.api.apply(&secret)
}

/// What `ambit cluster-secret` prints for a cluster.
fn cluster_secret(of: &Site, name: &str, flags: &[&str]) -> Result<String> {
    let binary = of.kit.binary(of.cluster.folder())?;
    let mut command = of.cluster.access().outside().command(&binary);
    command
        .arg("cluster-secret")
        .arg("--kubeconfig")
        .arg(of.cluster.api.admin())
        .args(["--name", name])
        .args(flags);
    let printed = crate::process::run(&mut command, Duration::from_secs(30))?.ok()?;
    ensure!(printed.contains("istio/multiCluster"), "{printed}");
    Ok(printed)
}

/// The pods of the test.
struct Pods {
    /// The client, in the east.
    client: Pod,
    /// Another client there, of another service account.
    other: Pod,
    /// The server, in the west.
    web: Pod,
    /// The address of the service, in the east.
    service: Ipv4Addr,
}

/// The namespace in both clusters, STRICT, with the service, its server in the west and its clients in the east.
fn pods(east: &mut Site, west: &mut Site) -> Result<Pods> {
    for site in [&mut *east, &mut *west] {
        site.own_namespace(SHOP)?;
        site.opt_in(SHOP)?;
        site.peer_authentication(SHOP, "STRICT")?;
        for account in ["buyer", "other", "web"] {
            site.apply(&json!({
                "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account, "namespace": SHOP},
            }))?;
        }
        site.apply(&service("web"))?;
    }
    let plans =
        [Plan::client("client").on("a").account("buyer"), Plan::client("other").on("a").account("other")];
    let [client, other] = east.pods(SHOP, &plans)?;
    let [web] = west.pods(SHOP, &[Plan::server("web").account("web")])?;
    let told = east.cluster.api.json(&["get", "service", "web", "-n", SHOP])?;
    let address = told["spec"]["clusterIP"].as_str().context("a cluster IP")?.parse()?;
    Ok(Pods { client, other, web, service: address })
}

fn with_both(east: &mut Site, west: &mut Site) -> Result<()> {
    let pods = pods(east, west)?;
    across(east, &pods)?;
    by_policy(east, west, &pods)?;
    told_by_agents(east, &pods)?;
    a_minute_away(east, west, &pods)?;
    secrets_as_they_change(east, west, &pods)
}

fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": SHOP},
        "spec": {"selector": {"app": name}, "ports": [
            {"name": "whoami", "port": ports::WHOAMI}, {"name": "echo", "port": ports::ECHO},
        ]},
    })
}

fn ask(site: &Site, from: &Pod, to: Ipv4Addr) -> Result<Attempt> {
    site.connect(from, (to, ports::WHOAMI), &["--send", "hello"])
}

/// The server must answer, and see the client's own address.
fn must_answer(site: &Site, from: &Pod, to: Ipv4Addr) -> Result<()> {
    let attempt = ask(site, from, to)?;
    let answers = attempt.received.starts_with(&format!("peer {}:", from.ip));
    ensure!(answers, "{to} does not answer: {attempt:?}; {}", why_not(site, from, to));
    Ok(())
}

/// What the client's agent says of its last connection there, and which endpoints there are.
fn why_not(site: &Site, from: &Pod, to: Ipv4Addr) -> String {
    let log = site.agents_log().unwrap_or_default();
    let of_pair = |line: &&str| line.contains(&from.ip.to_string()) && line.contains(&format!("{to}:"));
    let last = log.lines().rfind(of_pair).unwrap_or("its agent's log has nothing of it");
    let asked = ["get", "endpointslices", "-n", &from.namespace, "-o", "wide"];
    let endpoints = site.cluster.api.kubectl(&asked).unwrap_or_else(|error| format!("{error:#}"));
    format!("{last}\n{endpoints}")
}

fn must_be_refused(site: &Site, from: &Pod, to: Ipv4Addr) -> Result<()> {
    let attempt = ask(site, from, to)?;
    ensure!(attempt.received.is_empty() && attempt.error.is_some(), "{to} answers: {attempt:?}");
    Ok(())
}

/// By the pod's own address and by the service, under mutual TLS from pod to pod.
fn across(east: &Site, pods: &Pods) -> Result<()> {
    eventually(30 * SECOND, || must_answer(east, &pods.client, pods.web.ip)).context("pod to pod")?;
    encrypted(east, pods)
}

/// The same, of which not one is seen in plaintext.
fn encrypted(east: &Site, pods: &Pods) -> Result<()> {
    let capture = east.capture("a", "clusters")?;
    eventually(10 * SECOND, || must_answer(east, &pods.client, pods.service)).context("pod to service")?;
    must_answer(east, &pods.client, pods.web.ip)?;
    let seen = capture.stop()?;
    ensure!(!seen.contains("peer "), "plaintext went from cluster to cluster");
    let openings = seen.openings((pods.web.ip.into(), ports::WHOAMI));
    ensure!(!openings.is_empty() && openings.iter().all(|bytes| is_tls(bytes)), "{openings:02x?}");
    Ok(())
}

/// The west decides by its own policies who may come, by the identities of the east.
fn by_policy(east: &Site, west: &Site, pods: &Pods) -> Result<()> {
    admit(west, &[&format!("cluster.local/ns/{SHOP}/sa/buyer")])?;
    eventually(IN_FORCE, || must_be_refused(east, &pods.other, pods.service)).context("another account")?;
    must_answer(east, &pods.client, pods.service).context("the account that may")?;
    // A policy of the east is none of the west's.
    east.apply(&json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "nobody", "namespace": SHOP}, "spec": {},
    }))?;
    thread::sleep(IN_FORCE);
    must_answer(east, &pods.client, pods.service)?;
    east.cluster.api.kubectl(&["delete", "authorizationpolicy", "nobody", "-n", SHOP]).map(drop)
}

/// Lets those and nobody else into the namespace.
fn admit(site: &Site, principals: &[&str]) -> Result<()> {
    site.apply(&json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "buyers", "namespace": SHOP},
        "spec": {"action": "ALLOW", "rules": [{"from": [{"source": {"principals": principals}}]}]},
    }))
}

/// What an agent of the east says of the west.
fn cluster_of(east: &Site) -> Result<Value> {
    let status = east.ambit("a", &["status", "clusters", "-o", "json"])?.ok()?;
    let status: Value = serde_json::from_str(&status)?;
    Ok(status["clusters"][0].clone())
}

fn told_by_agents(east: &Site, pods: &Pods) -> Result<()> {
    let cluster = cluster_of(east)?;
    ensure!(cluster["name"] == WEST && cluster["error"] == "" && !cluster["synced"].is_null(), "{cluster:#}");
    ensure!(cluster["objects"].as_u64().is_some_and(|objects| objects > 5), "{cluster:#}");
    let log = east.agents_log()?;
    let line = log.lines().find(|line| line.contains(&format!("dst.addr={}:", pods.web.ip)));
    let line = line.context("no connection to the west is in the log")?;
    for part in ["src.cluster=\"east\"", "dst.cluster=\"west\"", "dst.workload=\"web\""] {
        ensure!(line.contains(part), "{part}: {line}");
    }
    Ok(())
}

/// The API of the west goes away: nothing breaks. What changes there arrives when it is back.
fn a_minute_away(east: &mut Site, west: &mut Site, pods: &Pods) -> Result<()> {
    west.cluster.api.kill();
    let lived = while_away(east, pods);
    west.cluster.api.resume().context("the API of the west does not come back")?;
    east.note(format!("a minute without the other API: {} connections, none failed", lived?));
    let [next] = west.pods(SHOP, &[Plan::server("next").account("web").label("app", "web")])?;
    west.cluster.api.kubectl(&["delete", "pod", "web", "-n", SHOP])?;
    eventually(60 * SECOND, || must_answer(east, &pods.client, next.ip)).context("a pod after the return")?;
    eventually(30 * SECOND, || must_answer(east, &pods.client, pods.service))
        .context("the service after it")?;
    let cluster = cluster_of(east)?;
    ensure!(cluster["away"].is_null() && cluster["error"] == "", "{cluster:#}");
    Ok(())
}

/// A minute of load; returns how many connections there were.
fn while_away(east: &Site, pods: &Pods) -> Result<usize> {
    let to = format!("{}:{}", pods.service, ports::ECHO);
    let load = ["churn", "--to", &to, "--count", "10000000", "--for-ms", "60000", "--rest-ms", "10"];
    let load = east.start_tool(&pods.client, "away", &load)?;
    eventually(50 * SECOND, || {
        let cluster = cluster_of(east)?;
        ensure!(!cluster["away"].is_null() && cluster["error"] != "", "{cluster:#}");
        Ok(())
    })?;
    // An agent that starts meanwhile does not wait for it.
    east.kill_agent("b")?;
    eventually(30 * SECOND, || east.ambit("b", &["status", "--ready"])?.ok())?;
    let tally = load.tally(Duration::from_secs(90))?;
    ensure!(tally.failed == 0 && tally.good > 1_000, "{tally:?}");
    east.kill_agent("a")?;
    remembered(east, pods).context("what an agent knows that starts while the API of the west is away")?;
    never_read(east, pods).context("an agent that knows nothing of the west")?;
    Ok(tally.good)
}

/// An agent that has never read the west goes by what the one before it knew.
fn remembered(east: &Site, pods: &Pods) -> Result<()> {
    let cluster = eventually(30 * SECOND, || {
        let cluster = cluster_of(east)?;
        ensure!(cluster["synced"].is_null() && !cluster["remembered"].is_null(), "{cluster:#}");
        Ok(cluster)
    })?;
    ensure!(cluster["objects"].as_u64().is_some_and(|objects| objects > 5), "{cluster:#}");
    eventually(30 * SECOND, || must_answer(east, &pods.client, pods.web.ip))?;
    encrypted(east, pods)
}

/// What no agent of the node has ever read is not sent there in plaintext, as long as it is known where pods of the west are.
fn never_read(east: &Site, pods: &Pods) -> Result<()> {
    let mut rm = east.cluster.access().on_node("a", "find")?;
    crate::process::must(rm.args([STATE_DIR, "-mindepth", "1", "-delete"]))?;
    east.kill_agent("a")?;
    eventually(60 * SECOND, || {
        let cluster = cluster_of(east)?;
        ensure!(cluster["synced"].is_null() && cluster["remembered"].is_null(), "{cluster:#}");
        east.ambit("a", &["status", "--ready"])?.ok()
    })?;
    let capture = east.capture("a", "never-read")?;
    for to in [pods.web.ip, pods.service] {
        must_be_refused(east, &pods.client, to)?;
    }
    let seen = capture.stop()?;
    ensure!(!seen.contains("hello"), "plaintext went to a cluster of which nothing is known");
    let log = east.agents_log()?;
    let why = "which has not been read yet";
    ensure!(
        log.lines().any(|line| line.contains("no_endpoint") && line.contains(why)),
        "no line says {why:?}"
    );
    Ok(())
}

/// A kubeconfig that cannot be used is told and changes nothing; without the Secret the cluster is gone.
fn secrets_as_they_change(east: &Site, west: &Site, pods: &Pods) -> Result<()> {
    let name = format!("ambit-remote-secret-{WEST}");
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": WEST,
        "clusters": [{"name": WEST, "cluster": {"server": west.cluster.api.url()}}],
        "users": [{"name": WEST, "user": {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "id"}}}],
        "contexts": [{"name": WEST, "context": {"cluster": WEST, "user": WEST}}],
    });
    let change = json!({"stringData": {WEST: kubeconfig.to_string()}}).to_string();
    east.cluster.api.kubectl(&["patch", "secret", &name, "-n", SECRETS, "--type=merge", "-p", &change])?;
    eventually(10 * SECOND, || {
        let cluster = cluster_of(east)?;
        let error = cluster["error"].as_str().unwrap_or_default();
        ensure!(error.contains("exec is not taken") && error.contains(&name), "{cluster:#}");
        Ok(())
    })?;
    // The pod that was deleted may still be among the endpoints.
    eventually(30 * SECOND, || must_answer(east, &pods.client, pods.service))
        .context("with a kubeconfig that is not taken")?;
    east.cluster.api.kubectl(&["delete", "secret", &name, "-n", SECRETS])?;
    eventually(10 * SECOND, || must_be_refused(east, &pods.client, pods.service))
        .context("without the Secret")?;
    ensure!(cluster_of(east)?.is_null(), "the cluster is still there");
    Ok(())
}
