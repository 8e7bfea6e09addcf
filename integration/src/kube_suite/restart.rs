//! Agents are killed, restarted and replaced under load.

use std::thread;

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    Plan, Pod, Site, Test, Wire, installed,
    site::{IN_FORCE, Load, SECOND, SYSTEM},
};
use crate::{load::ports, process::eventually, suite::marker};

pub(super) const TESTS: &[Test] = &[
    installed(
        "restart::twenty_kills_under_load",
        "SIGKILL: refused, never plaintext, healed each time",
        kills,
    ),
    installed(
        "restart::a_rolling_restart_loses_nothing",
        "kubectl rollout restart under iperf3 and 200 connections/s",
        |site| replaced(site, "rollout restart", rolling_restart),
    ),
    installed(
        "restart::a_helm_upgrade_loses_nothing",
        "helm upgrade to another image under the same load",
        |site| replaced(site, "helm upgrade", helm_upgrade),
    ),
];

const KILLS: usize = 20;
/// Seconds. What lasts longer than the chart's `drainSeconds` would be cut.
const WITHIN_DRAIN: u32 = 20;

fn kills(site: &mut Site) -> Result<()> {
    let (namespace, a, b) = strict_pair(site)?;
    let text = marker("killed");
    let captures = [site.capture("a", "kills")?, site.capture("b", "kills")?];
    let load = churn(site, &a, &b)?;
    for round in 0..KILLS {
        let node = ["a", "b"][round % 2];
        site.kill_agent(node)?;
        let attempt = site.connect(&a, (b.ip, ports::HTTP), &["--send", &text, "--limit-ms", "1000"])?;
        ensure!(attempt.error.is_some() || !attempt.received.is_empty(), "round {round}: {attempt:?}");
        eventually(20 * SECOND, || site.must_reach(&a, &b))
            .with_context(|| format!("round {round}, the agent of node {node} was killed"))?;
        thread::sleep(SECOND);
    }
    let tally = load.stop()?;
    for capture in captures {
        ensure!(!capture.stop()?.contains(&text), "plaintext went out while an agent was away");
    }
    site.note(format!(
        "{KILLS} kills: {} of {} connections failed, the longest outage {} ms",
        tally.failed,
        tally.failed + tally.good,
        tally.longest_outage_ms
    ));
    site.must_go(&a, &b, Wire::Tls)?;
    let pods = site.cluster.api.json(&["get", "pods", "-n", &namespace])?;
    ensure!(pods["items"].as_array().is_some_and(|pods| pods.len() == 2), "{pods:#}");
    Ok(())
}

/// Replaces all agents by `how` under iperf3 and short connections: none of them may notice.
fn replaced(site: &mut Site, what: &str, how: fn(&Site) -> Result<()>) -> Result<()> {
    let (_, a, b) = strict_pair(site)?;
    let before = [site.agent("a")?, site.agent("b")?];
    let unhealthy = unhealthy(site)?;
    let mut load = churn(site, &a, &b)?;
    let shared = &*site;
    let (done, bulk) = thread::scope(|scope| {
        let bulk = scope.spawn(|| shared.iperf(&a, &b, WITHIN_DRAIN));
        thread::sleep(2 * SECOND);
        let done = how(shared);
        (done, bulk.join().unwrap_or_else(|_| bail!("iperf3's thread panicked")))
    });
    done?;
    ensure!(load.runs(), "the load has ended");
    let tally = load.stop()?;
    let after = [site.agent("a")?, site.agent("b")?];
    ensure!(
        after.iter().zip(&before).all(|(after, before)| after.uid != before.uid),
        "agents were not replaced"
    );
    let bulk = bulk.context("iperf3, which ran through")?;
    site.note(format!(
        "{what}: {} of {} connections failed ({} a second), the longest outage {} ms; \
         iperf3 ran through at {:.1} Gbit/s",
        tally.failed,
        tally.failed + tally.good,
        (tally.failed + tally.good) as u64 * 1_000 / tally.took_ms.max(1),
        tally.longest_outage_ms,
        bulk / 1e9
    ));
    ensure!(tally.failed == 0, "{tally:?}");
    let told = self::unhealthy(site)?;
    ensure!(told == unhealthy, "{} warnings that agents or CA are unhealthy", told - unhealthy);
    site.must_go(&a, &b, Wire::Tls)
}

/// How many warnings of failed probes there are of ambit's own pods.
fn unhealthy(site: &Site) -> Result<u64> {
    let of = ["get", "events", "-n", SYSTEM, "--field-selector", "reason=Unhealthy"];
    let events = site.cluster.api.json(&of)?;
    let events = events["items"].as_array().cloned().unwrap_or_default();
    // Kubelets of late cancel the probes by command of a pod that is ending themselves, and warn of that.
    let own = events
        .iter()
        .filter(|event| !event["message"].as_str().unwrap_or_default().contains("context canceled"));
    Ok(own.map(|event| event["count"].as_u64().unwrap_or(1)).sum())
}

fn rolling_restart(site: &Site) -> Result<()> {
    site.cluster.api.kubectl(&["rollout", "restart", "daemonset/ambit", "-n", SYSTEM])?;
    let status = ["rollout", "status", "daemonset/ambit", "--timeout=120s", "-n", SYSTEM];
    site.cluster.api.kubectl(&status).map(drop)
}

fn helm_upgrade(site: &Site) -> Result<()> {
    let tag = site.tag_image("next")?;
    site.upgrade(&[&format!("image.tag={tag}")])
}

fn strict_pair(site: &mut Site) -> Result<(String, Pod, Pod)> {
    let namespace = site.namespace(true)?;
    let [a, b] = site.pods(&namespace, &[Plan::client("a").on("a"), Plan::server("b").on("b")])?;
    site.peer_authentication(&namespace, "STRICT")?;
    eventually(IN_FORCE, || site.must_go(&a, &b, Wire::Tls))?;
    Ok((namespace, a, b))
}

/// Two hundred connections a second, or as many as the machine can make beside whatever else it does.
fn churn(site: &Site, from: &Pod, to: &Pod) -> Result<Load> {
    let to = format!("{}:{}", to.ip, ports::ECHO);
    let limits =
        ["--clients", "5", "--rest-ms", "20", "--count", "100000000", "--for-ms", "900000", "--until-eof"];
    site.start_tool(from, "churn", &[["churn", "--to", &to].as_slice(), &limits].concat())
}
