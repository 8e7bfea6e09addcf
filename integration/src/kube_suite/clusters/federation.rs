//! Two clusters with roots and a trust domain of their own, each of which has the other's roots.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    Pods, SETTINGS, SHOP, Site, WEST, across, admit, beside, must_answer, must_be_refused, pods, read_by,
};
use crate::{
    kube_suite::{
        Plan,
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
    let done = beside(east, |east, west| {
        settle(east, west)?;
        with_both(east, west)
    });
    // The next test has the usual trust domain again.
    east.cluster.api.kubectl(&["delete", "configmap", ROOTS, "-n", SYSTEM, "--ignore-not-found"])?;
    done
}

/// Each has a CA of its own. The east's roots come to the west only later.
fn settle(east: &Site, west: &mut Site) -> Result<()> {
    west.install(
        &[
            &SETTINGS[..],
            &[
                "clusterName=west",
                "ca.replicas=1",
                &format!("trustDomain={WEST_DOMAIN}"),
                &format!("trustDomainAliases={{{OLD_WEST_DOMAIN}}}"),
            ],
            &trusting(EAST_DOMAIN).each_ref().map(String::as_str),
        ]
        .concat(),
    )?;
    roots(east, west)?;
    let domain = format!("trustDomain={EAST_DOMAIN}");
    east.upgrade(
        &[
            &SETTINGS[..],
            &["clusterName=east", &domain],
            &trusting(WEST_DOMAIN).each_ref().map(String::as_str),
        ]
        .concat(),
    )?;
    read_by(east, west, WEST, &["--trust-domain", WEST_DOMAIN])?;
    read_by(west, east, "east", &["--trust-domain", EAST_DOMAIN])
}

fn trusting(domain: &str) -> [String; 3] {
    [
        format!("trustBundles[0].trustDomain={domain}"),
        format!("trustBundles[0].configMap={ROOTS}"),
        "trustBundles[0].key=other.pem".to_owned(),
    ]
}

/// Gives a cluster the roots of another one.
fn roots(to: &Site, of: &Site) -> Result<()> {
    let published = eventually(20 * SECOND, || {
        let map = of.cluster.api.json(&["get", "configmap", "ambit-ca-root", "-n", SYSTEM])?;
        ensure!(map["data"]["root-cert.pem"].is_string(), "{map}");
        Ok(map)
    })?;
    to.apply(&json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": ROOTS, "namespace": SYSTEM},
        "data": {"other.pem": published["data"]["root-cert.pem"]},
    }))
}

fn with_both(east: &mut Site, west: &mut Site) -> Result<()> {
    let pods = pods(east, west)?;
    west.apply(&json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "inside", "namespace": SHOP},
    }))?;
    let [inside] = west.pods(SHOP, &[Plan::client("inside").account("inside")])?;
    must_answer(west, &inside, pods.web.ip).context("within the west")?;

    // Whom nobody vouches for is refused, whatever else is known of it.
    eventually(30 * SECOND, || is_read(east))?;
    must_be_refused(east, &pods.client, pods.web.ip).context("without the east's roots")?;
    roots(west, east)?;
    eventually(BROUGHT, || must_answer(east, &pods.client, pods.web.ip)).context("with the east's roots")?;
    across(east, &pods)?;
    let log = east.agents_log()?;
    let identity = format!("spiffe://{WEST_DOMAIN}/ns/{SHOP}/sa/web");
    ensure!(
        log.lines().any(|line| line.contains("access") && line.contains(&identity)),
        "no {identity} in the log"
    );

    // By the principals of either trust domain. An alias is another name of the west's own.
    let buyer = format!("{EAST_DOMAIN}/ns/{SHOP}/sa/buyer");
    admit(west, &[&buyer, &format!("{OLD_WEST_DOMAIN}/ns/{SHOP}/sa/inside")])?;
    eventually(IN_FORCE, || must_be_refused(east, &pods.other, pods.service)).context("another account")?;
    must_answer(east, &pods.client, pods.service).context("the east's account")?;
    must_answer(west, &inside, pods.web.ip).context("an alias")?;
    admit(
        west,
        &[&format!("{WEST_DOMAIN}/ns/{SHOP}/sa/buyer"), &format!("{OLD_WEST_DOMAIN}/ns/{SHOP}/sa/buyer")],
    )?;
    eventually(IN_FORCE, || must_be_refused(east, &pods.client, pods.service))
        .context("the account of that name in the west's trust domain")?;
    // `cluster.local` is the cluster's own trust domain, whatever its name.
    admit(west, &[&format!("cluster.local/ns/{SHOP}/sa/inside")])?;
    eventually(IN_FORCE, || must_answer(west, &inside, pods.web.ip)).context("cluster.local")?;
    admit(west, &[&buyer])?;
    eventually(IN_FORCE, || must_answer(east, &pods.client, pods.service))?;
    withdrawn(east, west, &pods)
}

/// Roots that are withdrawn end it. The kubelet leaves what it has brought where a ConfigMap is gone, so others take their place.
fn withdrawn(east: &Site, west: &Site, pods: &Pods) -> Result<()> {
    roots(west, west)?;
    eventually(BROUGHT, || must_be_refused(east, &pods.client, pods.web.ip)).context("with other roots")?;
    Ok(())
}

fn is_read(east: &Site) -> Result<()> {
    let status = east.ambit("a", &["status", "clusters", "-o", "json"])?.ok()?;
    let status: Value = serde_json::from_str(&status)?;
    let cluster = &status["clusters"][0];
    ensure!(!cluster["synced"].is_null() && cluster["trustDomain"] == WEST_DOMAIN, "{cluster:#}");
    Ok(())
}
