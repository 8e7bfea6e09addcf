//! What pods may reach outside: entries and rules that say so, whose definitions go and come back.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    kube_suite::{
        Plan, Pod, Site,
        site::{IN_FORCE, SECOND},
    },
    load::ports,
    process::eventually,
};

/// The definitions of these objects.
pub(super) const DEFINITIONS: [&str; 3] = [
    "destinationrules.networking.istio.io",
    "serviceentries.networking.istio.io",
    "workloadentries.networking.istio.io",
];

/// An address with an entry, one for which a rule demands what the server does not have, and one that no entry has.
const LISTED: Ipv4Addr = Ipv4Addr::new(198, 19, 200, 70);
const RULED: Ipv4Addr = Ipv4Addr::new(198, 19, 200, 71);
const UNKNOWN: Ipv4Addr = Ipv4Addr::new(198, 19, 200, 72);

/// A pod whose namespace is held to what is registered, and a server outside the mesh.
pub(super) struct WayOut {
    namespace: String,
    client: Pod,
    server: Pod,
}

impl WayOut {
    pub(super) fn make(site: &mut Site) -> Result<Self> {
        let (namespace, world) = (site.namespace(true)?, site.namespace(false)?);
        let held = "ambit.dev/outbound-policy=REGISTRY_ONLY";
        site.cluster.api.kubectl(&["label", "namespace", &namespace, held])?;
        let [client] = site.pods(&namespace, &[Plan::client("client").on("a")])?;
        let [server] = site.pods(&world, &[Plan::server("vm").on("b")])?;
        let way = Self { namespace, client, server };
        way.state(site, 80, "ISTIO_MUTUAL")?;
        eventually(2 * IN_FORCE, || way.must_hold(site))?;
        Ok(way)
    }

    /// An entry whose endpoint is a WorkloadEntry, at this port, and one with a rule of this mode.
    fn state(&self, site: &Site, port: u16, mode: &str) -> Result<()> {
        let object = |kind: &str, name: &str, spec: Value| {
            json!({
                "apiVersion": "networking.istio.io/v1", "kind": kind,
                "metadata": {"name": name, "namespace": self.namespace}, "spec": spec,
            })
        };
        let entry = |host: &str, address: Ipv4Addr, number: u16, more: Value| {
            let mut spec = json!({
                "hosts": [host], "addresses": [address], "resolution": "STATIC",
                "ports": [{"number": number, "name": "tcp", "protocol": "TCP", "targetPort": ports::WHOAMI}],
            });
            if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
                spec.extend(more);
            }
            object("ServiceEntry", host.split('.').next().unwrap_or(host), spec)
        };
        let (machine, address) = (json!({"app": "vm"}), self.server.ip);
        let items = [
            object("WorkloadEntry", "vm", json!({"address": address, "labels": machine})),
            entry("listed.example.com", LISTED, port, json!({"workloadSelector": {"labels": machine}})),
            entry("ruled.example.com", RULED, 80, json!({"endpoints": [{"address": address}]})),
            object(
                "DestinationRule",
                "ruled",
                json!({"host": "ruled.example.com", "trafficPolicy": {"tls": {"mode": mode}}}),
            ),
        ];
        site.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}))
    }

    fn reached(&self, site: &Site, ip: Ipv4Addr, port: u16) -> Result<()> {
        let attempt = site.connect(&self.client, (ip, port), &["--send", "hello", "--limit-ms", "2000"])?;
        ensure!(attempt.received.starts_with("peer "), "{ip}:{port} is not reached: {attempt:?}");
        Ok(())
    }

    fn refused(&self, site: &Site, ip: Ipv4Addr, port: u16) -> Result<()> {
        let attempt = site.connect(&self.client, (ip, port), &["--send", "hello", "--limit-ms", "2000"])?;
        let refused = attempt.error.as_deref() == Some("ConnectionRefused");
        ensure!(refused && attempt.received.is_empty(), "{ip}:{port} is not refused: {attempt:?}");
        Ok(())
    }

    /// What is registered is reached, what a rule closes is closed, and so is all else.
    pub(super) fn must_hold(&self, site: &Site) -> Result<()> {
        self.reached(site, LISTED, 80).context("by an entry and a WorkloadEntry")?;
        self.must_be_closed(site)
    }

    /// What a rule closes is closed, and so is what no entry has: also while an agent starts, which lets nothing through yet.
    pub(super) fn must_be_closed(&self, site: &Site) -> Result<()> {
        self.refused(site, RULED, 80).context("a rule that wants mutual TLS")?;
        self.refused(site, UNKNOWN, 80).context("what no entry has")
    }

    /// Under new definitions the objects are stated again, with others said in them; then they are deleted.
    pub(super) fn state_again(&self, site: &Site) -> Result<()> {
        eventually(30 * SECOND, || self.state(site, 81, "DISABLE"))?;
        let limit: Duration = 10 * IN_FORCE;
        eventually(limit, || self.reached(site, RULED, 80)).context("a rule stated again")?;
        eventually(limit, || self.reached(site, LISTED, 81)).context("an entry stated again")?;
        eventually(limit, || self.refused(site, LISTED, 80)).context("its port of before")?;
        for kind in ["destinationrules", "serviceentries", "workloadentries"] {
            site.cluster.api.kubectl(&["delete", kind, "--all", "-n", &self.namespace])?;
        }
        eventually(limit, || self.refused(site, LISTED, 81)).context("an entry that was deleted")
    }
}
