//! Ways around capture that take a real kube-proxy.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::{
    kube_suite::{
        Plan, Test, Wire, installed,
        site::{IN_FORCE, SECOND, Site},
    },
    load::ports,
    process::eventually,
    tools::HTTP_BODY,
};

pub(super) const TESTS: &[Test] = &[installed(
    "attacks::node_ports_and_balancers_are_captured",
    "from a meshed pod to both nodes and a load balancer's address: in a tunnel, under STRICT",
    from_inside,
)];

const BALANCER: &str = "198.19.200.1";

fn from_inside(site: &mut Site) -> Result<()> {
    let namespace = site.namespace(true)?;
    let [a, b] = site.pods(&namespace, &[Plan::client("a").on("a"), Plan::server("b").on("b")])?;
    site.apply(&json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "outside", "namespace": namespace },
        "spec": {
            "type": "LoadBalancer",
            "externalTrafficPolicy": "Local",
            "selector": { "app": "b" },
            "ports": [{ "name": "http", "port": 80, "targetPort": ports::HTTP }],
        },
    }))?;
    let ingress = json!({ "status": { "loadBalancer": { "ingress": [{ "ip": BALANCER }] } } }).to_string();
    let patch =
        ["patch", "service", "outside", "-n", &namespace, "--subresource=status", "--type=merge", "-p"];
    site.cluster.api.kubectl(&[patch.as_slice(), &[&ingress]].concat())?;
    let service = site.cluster.api.json(&["get", "service", "outside", "-n", &namespace])?;
    let node_port = service["spec"]["ports"][0]["nodePort"].as_u64().context("a node port")?;
    site.peer_authentication(&namespace, "STRICT")?;
    eventually(IN_FORCE, || site.must_go(&a, &b, Wire::Tls))?;

    let capture = site.capture("a", "outside")?;
    for host in [format!("198.18.0.11:{node_port}"), format!("198.18.0.12:{node_port}"), BALANCER.to_owned()]
    {
        let answer = eventually(10 * SECOND, || site.curl(&a, &[&format!("http://{host}/")])?.ok())?;
        ensure!(answer == HTTP_BODY, "{host}: {answer:?}");
    }
    ensure!(!capture.stop()?.contains(HTTP_BODY.trim()), "plaintext went over the wire");
    Ok(())
}
