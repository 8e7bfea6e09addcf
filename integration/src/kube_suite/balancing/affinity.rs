//! Clients that keep to their endpoint.

use std::{collections::BTreeSet, thread};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::{IN_FORCE, Pair, Pod, SECOND, SETTLED, Site, clients, cluster_ip, reach, server, service};
use crate::process::{self, eventually};

/// `timeoutSeconds`: more than a loaded machine takes from one connection to the next.
const TIMEOUT: u32 = 8;

pub(super) fn kept(site: &mut Site) -> Result<()> {
    let namespace = site.namespace(true)?;
    let [within, outside] = clients("a");
    let on = |name: &str, node: &str| server(name, "web", node).label("counts", "yes");
    let [within, outside, one, two, three] =
        site.pods(&namespace, &[within, outside, on("web-1", "a"), on("web-2", "b"), on("web-3", "b")])?;
    let affinity = json!({
        "selector": {"app": "web", "counts": "yes"}, "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": TIMEOUT}},
    });
    site.apply(&service(&namespace, "sticky", "web", affinity))?;
    let scene = Scene {
        site,
        target: format!("{}:80", cluster_ip(site, &namespace, "sticky")?),
        servers: vec![one, two, three],
        pair: Pair { node: "a", within, outside },
    };
    scene.through_changes(&namespace)
}

struct Scene<'a> {
    site: &'a Site,
    target: String,
    servers: Vec<Pod>,
    pair: Pair,
}

impl Scene<'_> {
    /// The one server that takes connections of each client: in the mesh, and outside it.
    fn keepers(&self, often: usize) -> Result<[String; 2]> {
        let keeper = |client: &Pod| -> Result<String> {
            let reached = reach(self.site, client, &self.servers, often, std::slice::from_ref(&self.target))?;
            let by: BTreeSet<String> = reached.into_values().flatten().collect();
            ensure!(by.len() == 1, "{} does not keep to one endpoint: {by:?}", client.name);
            let by = by.into_iter().next().context("an endpoint")?;
            ensure!(self.servers.iter().any(|pod| pod.name == by), "{} is told {by}", client.name);
            Ok(by)
        };
        Ok([keeper(&self.pair.within)?, keeper(&self.pair.outside)?])
    }

    /// Takes servers from the service, or brings them back; returns when Kubernetes knows.
    fn count(&self, namespace: &str, servers: &BTreeSet<&String>, counts: bool) -> Result<()> {
        for name in servers {
            let label = format!("counts={}", if counts { "yes" } else { "no" });
            self.site.cluster.api.kubectl(&["label", "pod", name, "-n", namespace, &label, "--overwrite"])?;
        }
        eventually(SETTLED, || {
            let slices =
                ["get", "endpointslices", "-n", namespace, "-l", "kubernetes.io/service-name=sticky"];
            let known =
                self.site.cluster.api.json(&slices)?["items"][0]["endpoints"].as_array().map_or(0, Vec::len);
            let expected = self.servers.len() - if counts { 0 } else { servers.len() };
            ensure!(known == expected, "{known} endpoints of {expected}");
            Ok(())
        })
    }

    fn through_changes(&self, namespace: &str) -> Result<()> {
        let first = eventually(SETTLED, || self.keepers(12))?;
        let again = self.keepers(12)?;
        ensure!(again == first, "moved from {first:?} to {again:?} for no reason");
        let left: BTreeSet<&String> = first.iter().collect();
        self.count(namespace, &left, false)?;
        let next = eventually(SETTLED, || {
            let next = self.keepers(4)?;
            ensure!(
                next.iter().all(|next| !left.contains(next)),
                "still {next:?}, of which {left:?} have gone"
            );
            Ok(next)
        })?;
        self.count(namespace, &left, true)?;
        // As long as it takes kube-proxy and agents to hear of it, and then some.
        for _ in 0..8 {
            let now = self.keepers(2)?;
            ensure!(now == next, "moved from {next:?} to {now:?}, since {left:?} are back");
            thread::sleep(IN_FORCE / 6);
        }
        // Both forget: one then goes by the client's address again, the other by chance.
        thread::sleep(SECOND * (TIMEOUT + 1));
        let mut nft = self.site.cluster.access().on_node("a", "nft")?;
        let table = process::must(nft.args(["list", "table", "ip", "kube-proxy"]))?;
        let remembered = format!("{} ", self.pair.outside.ip);
        let sticky = table.lines().any(|line| line.contains("expires") && line.contains(&remembered));
        ensure!(!sticky, "kube-proxy remembers {} for longer than timeoutSeconds", self.pair.outside.name);
        let [within, _] = self.keepers(4)?;
        ensure!(within == first[0], "{within} is kept to for longer than timeoutSeconds, not {}", first[0]);
        Ok(())
    }
}
