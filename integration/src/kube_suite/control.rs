//! The cluster itself: what it does without ambit, so that later failures are ambit's.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Plan, Site, Test, Wire, bare, probes, traffic};
use crate::{load::ports, process, process::eventually};

pub(super) const TESTS: &[Test] = &[
    bare("control::plaintext_is_seen_on_the_wire", "pods of two nodes talk, and the capture reads it", wire),
    bare("control::services_work", "ClusterIP, headless and NodePort, by name and from outside", services),
    bare("control::probes_work", "HTTP, TCP and gRPC probes by real kubelets", probed),
    bare("control::iperf3_runs", "between pods of two nodes", iperf),
];

fn wire(site: &mut Site) -> Result<()> {
    let namespace = site.namespace(false)?;
    let [a, b] = site.pods(&namespace, &[Plan::client("a").on("a"), Plan::server("b").on("b")])?;
    ensure!(a.node == "a" && b.node == "b", "{a:?} {b:?}");
    eventually(Duration::from_secs(5), || site.must_go(&a, &b, Wire::Plaintext))
}

fn services(site: &mut Site) -> Result<()> {
    let namespace = site.namespace(false)?;
    let [a, b] = site.pods(&namespace, &[Plan::client("a").on("a"), Plan::server("b").on("b")])?;
    let services = traffic::Services::create(site, &namespace, "b")?;
    services.must_answer(site, &a, &b)?;
    eventually(Duration::from_secs(5), || services.node_port_from_outside(site)?.ok().map(drop))
}

fn probed(site: &mut Site) -> Result<()> {
    let namespace = site.namespace(false)?;
    probes::probed_pods_must_stay_ready(site, &namespace).map(drop)
}

fn iperf(site: &mut Site) -> Result<()> {
    let namespace = site.namespace(false)?;
    let [a, b] = site.pods(&namespace, &[Plan::client("a").on("a"), Plan::server("b").on("b")])?;
    let report = site.iperf(&a, &b, 2)?;
    ensure!(report > 1e8, "{report} bit/s");
    let mut command = site.in_pod(&a, "curl")?;
    let url = format!("http://{}:{}/", b.ip, ports::HTTP);
    process::run(command.args(["-sS", "-m", "5", &url]), Duration::from_secs(10))?.ok().map(drop)
}
