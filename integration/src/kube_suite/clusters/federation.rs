//! Two clusters with a CA and a trust domain of their own, each of which is given the other's roots, as the guide has it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    EAST, Pods, SETTINGS, SHOP, Site, WEST, across, admit, beside, cluster_of, forget_others, must_answer,
    must_be_refused, pods, read_by,
};
use crate::{
    kube_suite::{
        Plan, Pod,
        site::{IN_FORCE, SECOND, SYSTEM},
    },
    process::eventually,
};

const EAST_DOMAIN: &str = "east.example";
const WEST_DOMAIN: &str = "west.example";
/// What the west was called before.
const OLD_WEST_DOMAIN: &str = "old-west.example";
/// The ConfigMap with the other's roots.
const ROOTS: &str = "roots-of-the-other";
/// Until kubelets have brought a changed ConfigMap into a pod, and the agent has read it.
const BROUGHT: Duration = Duration::from_secs(180);

pub(super) fn two_trust_domains(east: &mut Site) -> Result<()> {
    // One of that name may be on its way out.
    let gone = ["wait", "--for=delete", &format!("namespace/{SHOP}"), "--timeout=60s"];
    east.cluster.api.kubectl(&gone)?;
    let done = beside(east, |east, west| {
        settle(east, west)?;
        with_both(east, west)
    });
    // The CA of that trust domain goes with its namespace: the next installation makes another one.
    east.uninstall()?;
    forget_others(east)?;
    done
}

/// Installs both, each with its own trust domain, and has the east believe and read the west.
fn settle(east: &mut Site, west: &mut Site) -> Result<()> {
    install(east, &of_east(false))?;
    install(west, &of_west(false))?;
    trust(east, west, &of_east(true))?;
    read_by(east, west, WEST, &["--trust-domain", WEST_DOMAIN])
}

fn of_east(trusting: bool) -> Vec<String> {
    settings(EAST, EAST_DOMAIN, trusting.then_some(WEST_DOMAIN))
}

fn of_west(trusting: bool) -> Vec<String> {
    let more = ["ca.replicas=1".to_owned(), format!("trustDomainAliases={{{OLD_WEST_DOMAIN}}}")];
    [settings(WEST, WEST_DOMAIN, trusting.then_some(EAST_DOMAIN)), more.into()].concat()
}

fn settings(name: &str, domain: &str, trusted: Option<&str>) -> Vec<String> {
    let mut settings = SETTINGS.map(str::to_owned).to_vec();
    settings.extend([format!("clusterName={name}"), format!("trustDomain={domain}")]);
    if let Some(trusted) = trusted {
        settings.extend([
            format!("trustBundles[0].trustDomain={trusted}"),
            format!("trustBundles[0].configMap={ROOTS}"),
            "trustBundles[0].key=root-cert.pem".to_owned(),
        ]);
    }
    settings
}

fn install(site: &mut Site, settings: &[String]) -> Result<()> {
    site.install(&settings.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Gives a cluster the roots of another one, and has its agents follow them.
fn trust(site: &Site, other: &Site, settings: &[String]) -> Result<()> {
    roots(site, other)?;
    site.upgrade(&settings.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Puts the roots of one cluster where the agents of another one have those of the other trust domain.
fn roots(to: &Site, of: &Site) -> Result<()> {
    let published = eventually(20 * SECOND, || {
        let map = of.cluster.api.json(&["get", "configmap", "ambit-ca-root", "-n", SYSTEM])?;
        ensure!(map["data"]["root-cert.pem"].is_string(), "{map}");
        Ok(map)
    })?;
    to.apply(&json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": ROOTS, "namespace": SYSTEM},
        "data": {"root-cert.pem": published["data"]["root-cert.pem"]},
    }))
}

fn with_both(east: &mut Site, west: &mut Site) -> Result<()> {
    let pods = pods(east, west)?;
    west.apply(&json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "inside", "namespace": SHOP},
    }))?;
    let [inside] = west.pods(SHOP, &[Plan::client("inside").account("inside")])?;
    let [desk] = east.pods(SHOP, &[Plan::server("desk").on("b").account("web")])?;
    must_answer(west, &inside, pods.web.ip).context("within the west")?;
    eventually(30 * SECOND, || is_read(east))?;
    without_roots(east, west, &pods)?;

    trust(west, east, &of_west(true))?;
    read_by(west, east, EAST, &["--trust-domain", EAST_DOMAIN])?;
    across(east, &pods).context("with the east's roots")?;
    told(east, &pods)?;
    eventually(30 * SECOND, || must_answer(west, &inside, desk.ip)).context("from the west to the east")?;
    by_principals(east, west, &pods, &inside)?;
    withdrawn(east, west, &pods)
}

/// The east's agents have read the west, and know its trust domain.
fn is_read(east: &Site) -> Result<()> {
    let cluster = cluster_of(east)?;
    ensure!(!cluster["synced"].is_null() && cluster["trustDomain"] == WEST_DOMAIN, "{cluster:#}");
    Ok(())
}

/// Whom nobody vouches for is refused, whatever else is known of it; both ends say why, and nothing went out in plaintext.
fn without_roots(east: &Site, west: &Site, pods: &Pods) -> Result<()> {
    let capture = east.capture("a", "without-roots")?;
    for to in [pods.web.ip, pods.service] {
        must_be_refused(east, &pods.client, to).context("without the east's roots")?;
    }
    let seen = capture.stop()?;
    ensure!(!seen.contains("hello"), "plaintext went to a cluster that refuses it");
    let client = pods.client.ip.to_string();
    for (site, words) in [
        (west, ["certificate_untrusted", "direction=\"inbound\""]),
        (east, ["certificate_untrusted", "direction=\"outbound\""]),
    ] {
        eventually(5 * SECOND, || {
            let log = site.agents_log()?;
            let of_it = |line: &&str| line.contains(&client);
            let lines: Vec<&str> = log.lines().filter(of_it).collect();
            let told = lines.iter().any(|line| words.iter().all(|word| line.contains(word)));
            ensure!(told, "no line has {words:?}: {lines:#?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// Each end is told of under its own trust domain, in the log and in the status.
fn told(east: &Site, pods: &Pods) -> Result<()> {
    let buyer = format!("spiffe://{EAST_DOMAIN}/ns/{SHOP}/sa/buyer");
    let web = format!("spiffe://{WEST_DOMAIN}/ns/{SHOP}/sa/web");
    let log = east.agents_log()?;
    let complete = |line: &&str| line.contains("connection complete") && line.contains("mutual_tls");
    let line = log.lines().filter(complete).find(|line| line.contains(&pods.web.ip.to_string()));
    let line = line.context("no connection to the west is in the log")?;
    for part in [format!("src.identity=\"{buyer}\""), format!("dst.identity=\"{web}\"")] {
        ensure!(line.contains(&part), "{part}: {line}");
    }
    let status = east.ambit("a", &["status", "-o", "json"])?.ok()?;
    ensure!(status.contains(&buyer), "no {buyer} in the status: {status}");
    Ok(())
}

/// Policies of the west, by the principals of either trust domain.
fn by_principals(east: &Site, west: &Site, pods: &Pods, inside: &Pod) -> Result<()> {
    let buyer = format!("{EAST_DOMAIN}/ns/{SHOP}/sa/buyer");
    let own = |domain: &str, account: &str| format!("{domain}/ns/{SHOP}/sa/{account}");
    // An alias is another name of the west's own.
    admit(west, &[&buyer, &own(OLD_WEST_DOMAIN, "inside")])?;
    eventually(IN_FORCE, || must_be_refused(east, &pods.other, pods.service)).context("another account")?;
    must_answer(east, &pods.client, pods.service).context("the east's account")?;
    must_answer(west, inside, pods.web.ip).context("an alias")?;
    admit(west, &[&own(WEST_DOMAIN, "buyer"), &own(OLD_WEST_DOMAIN, "buyer")])?;
    eventually(IN_FORCE, || must_be_refused(east, &pods.client, pods.service))
        .context("the account of that name in the west's trust domain")?;
    // `cluster.local` is the cluster's own trust domain, whatever its name.
    admit(west, &[&own("cluster.local", "inside"), &own("cluster.local", "buyer")])?;
    eventually(IN_FORCE, || must_answer(west, inside, pods.web.ip)).context("cluster.local")?;
    must_be_refused(east, &pods.client, pods.service).context("cluster.local is not the east")?;

    admit(west, &["*"])?;
    eventually(IN_FORCE, || must_answer(east, &pods.client, pods.service)).context("anybody")?;
    west.apply(&denial(&buyer))?;
    eventually(IN_FORCE, || must_be_refused(east, &pods.client, pods.service)).context("denied by name")?;
    must_answer(east, &pods.other, pods.service).context("another account, which is not denied")?;
    west.cluster.api.kubectl(&["delete", "authorizationpolicy", "not-the-buyer", "-n", SHOP])?;
    eventually(IN_FORCE, || must_answer(east, &pods.client, pods.service)).context("denied no more")
}

fn denial(principal: &str) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "not-the-buyer", "namespace": SHOP},
        "spec": {"action": "DENY", "rules": [{"from": [{"source": {"principals": [principal]}}]}]},
    })
}

/// Roots that are withdrawn end it. The kubelet leaves what it has brought where a ConfigMap is gone, so others take their place.
fn withdrawn(east: &Site, west: &Site, pods: &Pods) -> Result<()> {
    roots(west, west)?;
    eventually(BROUGHT, || must_be_refused(east, &pods.client, pods.web.ip)).context("with other roots")
}
