//! Running pods come into the mesh by a label, and leave it, without a restart.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{
    Plan, Site, Test, Wire, installed,
    site::{IN_FORCE, SECOND},
};
use crate::{load::ports, process::eventually};

pub(super) const TESTS: &[Test] = &[
    installed(
        "enrolment::a_label_captures_running_pods",
        "no restart; off again, and established connections finish",
        label,
    ),
    installed("enrolment::a_pod_can_opt_out", "its own label beats its namespace's", opt_out),
    installed(
        "enrolment::host_network_pods_are_never_captured",
        "also in a labelled namespace",
        host_network,
    ),
    installed("enrolment::strict_refuses_who_is_outside", "pods of other namespaces, and the node", strict),
];

fn label(site: &mut Site) -> Result<()> {
    let namespace = site.namespace(false)?;
    let before = site.pods(&namespace, &[Plan::client("a").on("a"), Plan::server("b").on("b")])?;
    let [a, b] = &before;
    eventually(5 * SECOND, || site.must_go(a, b, Wire::Plaintext))?;
    let to = format!("{}:{}", b.ip, ports::ECHO);
    let long = ["ping-pong", "--to", &to, "--for-ms", "15000", "--rest-ms", "10"];
    let plain = site.start_tool(a, "long-plain", &long)?;
    site.opt_in(&namespace)?;
    eventually(IN_FORCE, || site.must_go(a, b, Wire::Tls))?;
    eventually(5 * SECOND, || {
        let told = told(site, &namespace, "a")?;
        ensure!(told.iter().any(|reason| reason == "Enrolled"), "events of the pod: {told:?}");
        Ok(())
    })?;
    let tunnelled = site.start_tool(a, "long-tunnelled", &long)?;
    site.must_reach(a, b)?;
    site.opt_out(&namespace)?;
    eventually(IN_FORCE, || site.must_go(a, b, Wire::Plaintext))?;
    eventually(5 * SECOND, || {
        let told = told(site, &namespace, "a")?;
        ensure!(told.iter().any(|reason| reason == "LeftMesh"), "events of the pod: {told:?}");
        Ok(())
    })?;
    for (what, load) in [("from before the label", plain), ("from under the label", tunnelled)] {
        load.end(Duration::from_secs(30)).map_err(|error| error.context(format!("the connection {what}")))?;
    }
    let after = [site.pod(&namespace, "a")?, site.pod(&namespace, "b")?];
    ensure!(after == before, "pods were restarted: {before:?}, {after:?}");
    Ok(())
}

fn opt_out(site: &mut Site) -> Result<()> {
    let namespace = site.namespace(true)?;
    let out = Plan::client("out").on("a").label("ambit.dev/dataplane", "disabled");
    let [a, out, b] = site.pods(&namespace, &[Plan::client("a").on("a"), out, Plan::server("b").on("b")])?;
    eventually(IN_FORCE, || site.must_go(&a, &b, Wire::Tls))?;
    site.must_go(&out, &b, Wire::Plaintext)?;
    site.peer_authentication(&namespace, "STRICT")?;
    eventually(IN_FORCE, || site.must_not_reach(&out, &b))?;
    site.must_reach(&a, &b)
}

fn host_network(site: &mut Site) -> Result<()> {
    let namespace = site.namespace(true)?;
    let host = Plan::client("host").on("a").spec("hostNetwork", true.into());
    let [host, b] = site.pods(&namespace, &[host, Plan::server("b").on("b")])?;
    eventually(5 * SECOND, || site.must_go(&host, &b, Wire::Plaintext))?;
    site.peer_authentication(&namespace, "STRICT")?;
    eventually(IN_FORCE, || site.must_not_reach(&host, &b))
}

fn strict(site: &mut Site) -> Result<()> {
    let (meshed, other) = (site.namespace(true)?, site.namespace(false)?);
    let [a, b] = site.pods(&meshed, &[Plan::client("a").on("a"), Plan::server("b").on("b")])?;
    let [c] = site.pods(&other, &[Plan::client("c").on("a")])?;
    eventually(5 * SECOND, || site.must_reach(&c, &b))?;
    site.peer_authentication(&meshed, "STRICT")?;
    eventually(IN_FORCE, || site.must_not_reach(&c, &b))?;
    site.must_go(&a, &b, Wire::Tls)
}

/// The reasons of the events on a pod.
fn told(site: &Site, namespace: &str, name: &str) -> Result<Vec<String>> {
    let of = format!("involvedObject.kind=Pod,involvedObject.name={name}");
    let events = site.cluster.api.json(&["get", "events", "-n", namespace, "--field-selector", &of])?;
    let events = events["items"].as_array().into_iter().flatten();
    Ok(events.filter_map(|event| event["reason"].as_str().map(str::to_owned)).collect())
}
