//! The programs of a real Kubernetes: which, and of which versions.
//!
//! Versions are fixed here and are part of the cache folder's name. Leaves to `golang` how they are built.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::{
    golang::{self, Source},
    harness::Kit,
    image, setup, workspace,
};

const KUBERNETES: &str = "1.36.3";
const ETCD: &str = "3.7.3";
const COREDNS: &str = "1.14.7";
const CONTAINERD: &str = "2.3.7";
const CNI_PLUGINS: &str = "1.9.1";
const HELM: &str = "3.22.0";

/// Makes sure of every program, and of the Debian packages that a cluster needs beside them; returns the programs' folder.
pub(crate) fn programs() -> Result<PathBuf> {
    setup::kube_programs()?;
    let cache = cache()?;
    let told =
        "Building Kubernetes, etcd, CoreDNS, containerd, CNI plugins and Helm (once, about eight minutes)";
    golang::programs(&cache, &sources(), told)?;
    Ok(cache)
}

/// What the tests on a cluster put to the test: the chart, and an image that is given, or made of a binary.
pub(crate) fn kit(image: Option<&Path>, binary: Option<&Path>) -> Result<Kit> {
    let programs = programs()?;
    let image = match image {
        Some(image) => image.canonicalize().with_context(|| image.display().to_string())?,
        None => image::of(binary)?,
    };
    let chart = workspace::root().join("deploy/charts/ambit");
    let chart = chart.canonicalize().with_context(|| chart.display().to_string())?;
    Ok(Kit { programs, chart, image })
}

fn sources() -> [Source; 6] {
    let minor = KUBERNETES.trim_start_matches("1.");
    let version = "k8s.io/component-base/version";
    let kubernetes = format!(
        "-X {version}.gitVersion=v{KUBERNETES} -X {version}.gitMajor=1 -X {version}.gitMinor={}",
        minor.split('.').next().unwrap_or_default()
    );
    let plain = |module, version, packages| Source { module, version, packages, ..Source::default() };
    [
        Source {
            staging: Some(format!("0.{minor}")),
            ldflags: kubernetes,
            ..plain(
                "k8s.io/kubernetes",
                KUBERNETES,
                &[
                    "cmd/kube-apiserver",
                    "cmd/kube-controller-manager",
                    "cmd/kube-scheduler",
                    "cmd/kubelet",
                    "cmd/kube-proxy",
                    "cmd/kubectl",
                ],
            )
        },
        Source {
            staging: Some(ETCD.to_owned()),
            renamed: Some("etcd"),
            ..plain("go.etcd.io/etcd/server/v3", ETCD, &[""])
        },
        Source {
            // Named after its plugins: a cache that has it with fewer of them does not have it.
            renamed: Some("coredns-zones"),
            main: Some(coredns_main()),
            ..plain("github.com/coredns/coredns", COREDNS, &[""])
        },
        plain(
            "github.com/containerd/containerd/v2",
            CONTAINERD,
            &["cmd/containerd", "cmd/containerd-shim-runc-v2", "cmd/ctr"],
        ),
        plain(
            "github.com/containernetworking/plugins",
            CNI_PLUGINS,
            &["plugins/main/ptp", "plugins/main/loopback", "plugins/ipam/host-local"],
        ),
        plain("helm.sh/helm/v3", HELM, &["cmd/helm"]),
    ]
}

/// CoreDNS with the plugins that the tests' configurations name. With all that it can have it takes three times as long.
fn coredns_main() -> String {
    let module = "github.com/coredns/coredns";
    let plugins = ["bind", "cache", "file", "forward", "kubernetes"]
        .map(|name| format!("import _ \"{module}/plugin/{name}\"\n"));
    format!(
        "package main\n\nimport \"{module}/coremain\"\n{}\nfunc main() {{ coremain.Run() }}\n",
        plugins.concat()
    )
}

/// Where the programs of exactly these versions are.
fn cache() -> Result<PathBuf> {
    let parts = [
        ("etcd", ETCD),
        ("coredns", COREDNS),
        ("containerd", CONTAINERD),
        ("cni", CNI_PLUGINS),
        ("helm", HELM),
    ];
    let parts: String = parts.iter().map(|(name, version)| format!("-{name}-{version}")).collect();
    Ok(setup::cache()?.join(format!("kube-{KUBERNETES}{parts}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_named_after_their_packages() {
        let names: Vec<String> = sources()
            .iter()
            .flat_map(|source| source.names().map(str::to_owned).collect::<Vec<_>>())
            .collect();
        assert!(
            ["kubelet", "etcd", "coredns-zones", "ctr", "ptp", "helm"]
                .iter()
                .all(|name| names.contains(&(*name).to_owned()))
        );
    }
}
