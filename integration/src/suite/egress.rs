//! Connections to what is not in the mesh: DestinationRules with TLS, ServiceEntries, and who may go outside at all. The servers are
//! openssl's and PostgreSQL's own, in a pod that no manifest tells of.

mod entries;
mod names;
mod outside;
mod rules;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use self::outside::VIP;
pub(super) use self::outside::hold_to_registry;
use super::{Test, own};
use crate::{agent::IN_FORCE, process::eventually, world::World};

pub(super) const TESTS: &[Test] = &[
    own(
        "egress::names_in_tls_let_through",
        "REGISTRY_ONLY and an entry without addresses: by its name and a wildcard; another name, and none, are not",
        &[],
        names::let_through,
    ),
    own(
        "egress::what_goes_outside_is_seen",
        "--observe-outbound: logged with the name in TLS, and suggested by it; servers that speak first do not wait",
        &["--observe-outbound", "on"],
        names::seen,
    ),
    own(
        "egress::postgresql_speaks_its_own_tls",
        "through an entry, end to end: psql verifies the server by its name",
        &[],
        names::postgresql,
    ),
    own(
        "egress::tls_is_spoken_for_the_application",
        "SIMPLE to openssl s_server: roots, names, dates, bad servers and unreadable rules, each with its reason",
        &[],
        rules::simple,
    ),
    own(
        "egress::a_client_certificate_is_shown",
        "MUTUAL to nginx, from files and from a Secret that a rule names; without it nginx refuses",
        &[],
        rules::mutual,
    ),
    own(
        "egress::case_49_disable_takes_no_tunnel_away",
        "nor does any mode of an enrolled target; ISTIO_MUTUAL to one that is not is refused",
        &[],
        rules::modes,
    ),
    own(
        "egress::a_revoked_certificate_is_not_believed",
        "caCrl: a list of the server's CA, first without the server and then with it",
        &[],
        rules::revoked,
    ),
    own(
        "egress::tls_of_a_rule_goes_through_the_tunnel",
        "SIMPLE for a server in the mesh that speaks TLS itself: the page comes, by mutual TLS on the wire",
        &[],
        rules::within_the_tunnel,
    ),
    own(
        "egress::a_rule_holds_where_a_pod_is_dialled",
        "of a headless service: ISTIO_MUTUAL refuses, SIMPLE is spoken, other ports are left alone",
        &[],
        rules::headless,
    ),
    own(
        "egress::connections_are_held_to_their_bounds",
        "maxConnections, idleTimeout and maxConnectionDuration of a rule",
        &[],
        rules::bounds,
    ),
    own(
        "egress::entries_lead_where_they_say",
        "NONE, STATIC, DNS and DNS_ROUND_ROBIN, WorkloadEntries; an endpoint in the mesh by the tunnel",
        &[],
        entries::entries,
    ),
    own(
        "egress::an_entry_names_who_else_may_be_there",
        "subjectAltNames: a pod that has another identity than this agent knows, by the entry alone",
        &[],
        entries::identities,
    ),
    own(
        "egress::only_what_is_registered_is_reached",
        "REGISTRY_ONLY of one namespace: refused, counted, suggested; the cluster goes on",
        &[],
        entries::registry_only,
    ),
];

/// The host of the server outside.
const HOST: &str = "api.example.com";

/// What curl has of the server by its virtual address, in plaintext.
fn fetch(world: &World) -> Result<String> {
    // Until it is captured, nothing answers there.
    let (host, url) = (format!("Host: {HOST}"), format!("http://{VIP}/"));
    world.curl("a", &["--connect-timeout", "1", "-m", "4", "-H", &host, &url])?.ok()
}

/// Demands that the page comes.
fn served(world: &World) -> Result<()> {
    eventually(IN_FORCE * 2, || {
        let page = fetch(world)?;
        ensure!(page.contains("s_server"), "the page is {page:?}");
        Ok(())
    })
}

/// Demands a line of the agent's log with all of these words, which may be on its way.
fn told_of(world: &World, mark: usize, words: &[&str]) -> Result<()> {
    std::thread::sleep(Duration::from_millis(100));
    let log = world.agents[0].log_since(mark);
    let told = log.lines().any(|line| words.iter().all(|word| line.contains(word)));
    ensure!(told, "no line of the agent's log has all of {words:?}");
    Ok(())
}

/// Demands that connections fail for `reason`, told in the log and counted.
fn failed(world: &World, reason: &str, words: &[&str]) -> Result<()> {
    let mark = world.agents[0].mark();
    eventually(IN_FORCE * 2, || {
        let attempt =
            world.connect("a", (VIP, 80), &["--send", "GET / HTTP/1.0\r\n\r\n", "--limit-ms", "1500"])?;
        ensure!(attempt.error.as_deref() == Some("ConnectionRefused"), "for {reason}: {attempt:?}");
        told_of(world, mark, &[&["access", reason], words].concat())
    })?;
    let label = format!("reason=\"{reason}\"");
    let counted = world.agents[0].metrics()?.sum("ambit_refusals_total", &[&label]);
    ensure!(counted >= 1.0, "the metric of {reason} is {counted}");
    Ok(())
}

/// Whether `ambit denials` tells of this reason.
fn denied(world: &World, reason: &str) -> Result<bool> {
    let denials = world.agents[0].ask(&["denials"])?;
    Ok(denials.as_array().context("denials")?.iter().any(|denial| denial["reason"] == reason))
}

/// Demands that the agent refuses connections for `reason`, and remembers it as its own decision.
fn refused(world: &World, reason: &str, words: &[&str]) -> Result<()> {
    failed(world, reason, words)?;
    ensure!(denied(world, reason)?, "ambit denials does not tell of {reason}");
    Ok(())
}

/// Demands that connections fail for `reason`, which is the server's doing and no decision of the agent's.
fn unreached(world: &World, reason: &str, words: &[&str]) -> Result<()> {
    failed(world, reason, words)?;
    ensure!(!denied(world, reason)?, "ambit denials tells of {reason}");
    Ok(())
}
