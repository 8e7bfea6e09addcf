//! Services of every kind, and load through changes.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    Plan, Pod, Site, Test, Wire, installed,
    site::{IN_FORCE, SECOND},
};
use crate::{
    capture::is_tls,
    cluster::ADDRESS,
    load::ports,
    process::{self, Finished, eventually},
    tools::HTTP_BODY,
};

pub(super) const TESTS: &[Test] = &[
    installed(
        "traffic::services_carry_mutual_tls",
        "ClusterIP and headless under STRICT, client addresses kept",
        services,
    ),
    installed(
        "traffic::node_ports_are_plaintext",
        "from outside: taken by PERMISSIVE, refused by STRICT",
        node_port,
    ),
    installed("traffic::a_rollout_fails_no_request", "a Deployment replaced under load", rollout),
    installed("traffic::iperf3_runs_clean", "between pods of two nodes under STRICT", iperf_strict),
    installed("traffic::names_outside_the_mesh_are_untouched", "the API server from a meshed pod", outside),
];

/// A ClusterIP, a headless and a NodePort service of one app.
pub(super) struct Services {
    namespace: String,
    cluster_ip: Ipv4Addr,
    node_port: u16,
}

impl Services {
    pub(super) fn create(site: &Site, namespace: &str, app: &str) -> Result<Self> {
        let port =
            |name: &str, port: u16, target: u16| json!({ "name": name, "port": port, "targetPort": target });
        let spec = |name: &str, spec: Value| {
            json!({
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": { "name": name, "namespace": namespace },
                "spec": spec,
            })
        };
        let listed = json!([
            port("http", 80, ports::HTTP),
            port("echo", 7, ports::ECHO),
            port("whoami", 9001, ports::WHOAMI)
        ]);
        let selector = json!({ "app": app });
        let items = json!([
            spec("web", json!({ "selector": selector, "ports": listed })),
            spec("headless", json!({ "clusterIP": "None", "selector": selector, "ports": listed })),
            spec(
                "nodes",
                json!({ "type": "NodePort", "selector": selector, "ports": [port("http", 80, ports::HTTP)] })
            ),
        ]);
        site.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": items }))?;
        let service = |name: &str| site.cluster.api.json(&["get", "service", name, "-n", namespace]);
        let cluster_ip = service("web")?["spec"]["clusterIP"].as_str().context("a cluster IP")?.parse()?;
        let node_port = service("nodes")?["spec"]["ports"][0]["nodePort"].as_u64().context("a node port")?;
        Ok(Self { namespace: namespace.to_owned(), cluster_ip, node_port: node_port.try_into()? })
    }

    /// Demands an answer by name and by address, with the client's own address seen by the server.
    pub(super) fn must_answer(&self, site: &Site, client: &Pod, server: &Pod) -> Result<()> {
        let names = [format!("http://web.{}/", self.namespace), format!("http://headless:{}/", ports::HTTP)];
        for url in &names {
            // kube-proxy and DNS take a second to know of a new service.
            let answer = eventually(Duration::from_secs(10), || site.curl(client, &[url])?.ok())?;
            ensure!(answer == HTTP_BODY, "{url}: {answer:?}");
        }
        for address in [self.cluster_ip, server.ip] {
            let attempt = site.connect(client, (address, ports::WHOAMI), &["--send", "hello"])?;
            ensure!(attempt.received.starts_with(&format!("peer {}:", client.ip)), "{address}: {attempt:?}");
            ensure!(attempt.peer.is_some_and(|peer| peer.ip() == address), "{attempt:?}");
        }
        Ok(())
    }

    /// curl to the node port of node b from outside both nodes.
    pub(super) fn node_port_from_outside(&self, site: &Site) -> Result<Finished> {
        let mut command = site.cluster.access().outside().command("curl");
        let url = format!("http://198.18.0.12:{}/", self.node_port);
        process::run(command.args(["-sS", "-m", "5", &url]), Duration::from_secs(10))
    }
}

fn services(site: &mut Site) -> Result<()> {
    let namespace = site.namespace(true)?;
    let [a, b] = site.pods(&namespace, &[Plan::client("a").on("a"), Plan::server("b").on("b")])?;
    let services = Services::create(site, &namespace, "b")?;
    site.peer_authentication(&namespace, "STRICT")?;
    eventually(IN_FORCE, || site.must_go(&a, &b, Wire::Tls))?;
    let capture = site.capture("a", "services")?;
    services.must_answer(site, &a, &b)?;
    let seen = capture.stop()?;
    ensure!(!seen.contains(HTTP_BODY.trim()) && !seen.contains("peer "), "plaintext went over the wire");
    for port in [ports::HTTP, ports::WHOAMI] {
        let openings = seen.openings((b.ip.into(), port));
        ensure!(!openings.is_empty(), "nothing went to the application's own port {port}");
        ensure!(openings.iter().all(|bytes| is_tls(bytes)), "{openings:02x?}");
    }
    Ok(())
}

fn node_port(site: &mut Site) -> Result<()> {
    let namespace = site.namespace(true)?;
    let [b] = site.pods(&namespace, &[Plan::server("b").on("b")])?;
    let services = Services::create(site, &namespace, "b")?;
    let body = eventually(Duration::from_secs(10), || services.node_port_from_outside(site)?.ok())?;
    ensure!(body == HTTP_BODY, "{body:?}");
    site.peer_authentication(&namespace, "STRICT")?;
    eventually(IN_FORCE, || {
        let refused = services.node_port_from_outside(site)?;
        ensure!(!refused.status.success() && refused.stdout.is_empty(), "answered: {}", refused.told());
        Ok(())
    })?;
    let log = site.agents_log()?;
    ensure!(log.contains("mtls_required"), "the refusal of {} is not in the log", b.name);
    Ok(())
}

fn rollout(site: &mut Site) -> Result<()> {
    let namespace = site.namespace(true)?;
    // An application that goes on serving until it has left every list of endpoints.
    let echo = Plan::script("echo", &format!("exec harness tool echo-server --listen [::]:{}", ports::ECHO))
        .with("lifecycle", json!({ "preStop": { "sleep": { "seconds": 4 } } }))
        .with("readinessProbe", json!({ "tcpSocket": { "port": ports::ECHO }, "periodSeconds": 1 }))
        .spec("terminationGracePeriodSeconds", json!(5));
    let mut deployment = echo.deployment(&namespace, 4);
    deployment["spec"]["strategy"] = json!({ "rollingUpdate": { "maxUnavailable": 0, "maxSurge": 2 } });
    site.apply(&deployment)?;
    let [a] = site.pods(&namespace, &[Plan::client("a").on("a")])?;
    let services = Services::create(site, &namespace, "echo")?;
    site.peer_authentication(&namespace, "STRICT")?;
    let status = ["rollout", "status", "deployment/echo", "--timeout=90s", "-n", &namespace];
    site.cluster.api.kubectl(&status)?;
    let to = format!("{}:7", services.cluster_ip);
    let first = ["churn", "--to", &to, "--count", "1"];
    eventually(Duration::from_secs(10), || {
        let tally = site.start_tool(&a, "first", &first)?.tally(Duration::from_secs(30))?;
        ensure!(tally.failed == 0, "{tally:?}");
        Ok(())
    })?;
    let load = ["churn", "--to", &to, "--count", "10000000", "--for-ms", "25000", "--rest-ms", "4"];
    let load = site.start_tool(&a, "load", &load)?;
    site.cluster.api.kubectl(&["rollout", "restart", "deployment/echo", "-n", &namespace])?;
    site.cluster.api.kubectl(&status)?;
    let tally = load.tally(60 * SECOND)?;
    ensure!(tally.failed == 0 && tally.good > 500, "{tally:?}");
    Ok(())
}

fn iperf_strict(site: &mut Site) -> Result<()> {
    let namespace = site.namespace(true)?;
    let [a, b] = site.pods(&namespace, &[Plan::client("a").on("a"), Plan::server("b").on("b")])?;
    site.peer_authentication(&namespace, "STRICT")?;
    eventually(IN_FORCE, || site.must_go(&a, &b, Wire::Tls))?;
    let rate = site.iperf(&a, &b, 3)?;
    ensure!(rate > 1e8, "{rate} bit/s");
    Ok(())
}

fn outside(site: &mut Site) -> Result<()> {
    let namespace = site.namespace(true)?;
    let [a] = site.pods(&namespace, &[Plan::client("a").on("a")])?;
    for address in [ADDRESS.to_owned(), "kubernetes.default".to_owned()] {
        let port = if address == ADDRESS { ":6443" } else { "" };
        let answer = site.curl(&a, &["-k", &format!("https://{address}{port}/version")])?.ok()?;
        ensure!(answer.contains("gitVersion"), "{address}: {answer}");
    }
    Ok(())
}
