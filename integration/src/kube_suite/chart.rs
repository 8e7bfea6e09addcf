//! The chart in every variant: Helm and the API server take it, and it sets nothing that the daemon does not know. And the
//! commands that an operator calls from outside.

use std::{fs, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    Plan, Site, Test, bare, installed,
    site::{RELEASE, SECOND, SYSTEM},
};
use crate::{
    cluster::NODES,
    process::{self, Finished, eventually},
};

pub(super) const TESTS: &[Test] = &[
    bare("chart::every_variant_is_taken", "presets, issuers, everything on, everything off", variants),
    bare("chart::nonsense_is_refused", "values that do not exist, or cannot be", nonsense),
    installed(
        "chart::agents_know_every_setting",
        "each variable is one of ambit agent or ambit ca",
        settings,
    ),
    installed("chart::check_node_says_what_is_there", "the init container's report", checked),
    installed(
        "chart::operators_ask_through_the_api",
        "all nodes, one node, a pod's; as kubectl plugin; with the chart's role and without",
        laptop,
    ),
    installed(
        "chart::istio_may_take_the_definitions_over",
        "a release that comes later owns them; an upgrade of ambit leaves them and the policies alone",
        taken_over,
    ),
];

/// Beside the defaults.
const VARIANTS: [&[&str]; 12] = [
    &[],
    &["label=istio.io/dataplane-mode=ambient\\,none"],
    &[
        "issuer.kind=istio",
        "ca.keep=true",
        "issuer.alsoTrust[0].name=ambit-ca-root",
        "issuer.alsoTrust[0].key=root-cert.pem",
    ],
    &["issuer.kind=istio"],
    &[
        "multicluster.enabled=true",
        "multicluster.reader=true",
        "trustBundles[0].trustDomain=west.example",
        "trustBundles[0].configMap=roots-of-west",
        "trustBundles[0].key=root-cert.pem",
    ],
    &["issuer.kind=vault", "issuer.vault.address=https://vault:8200", "issuer.vault.caConfigMap=vault-ca"],
    &["issuer.kind=spire"],
    &["ca.cacertsSecret=cacerts", "networkPolicy.nodeCIDRs={10.0.0.0/8}", "image.pullSecrets={registry}"],
    &["cni.enabled=false", "admin.enabled=false", "metrics.enabled=false", "agent.checkNode=false"],
    &["metrics.auth=token", "ca.healthPort=15099", "metrics.port=15098"],
    &[
        "crds.install=false",
        "policyHold=0s",
        "admission.probeHosts=false",
        "networkPolicy.enabled=false",
        "ca.replicas=1",
        "drainSeconds=0",
    ],
    &["monitoring.dashboard.enabled=true", "kubeletCgroup=/kubelet", "trustDomainAliases={old.example}"],
];

fn variants(site: &mut Site) -> Result<()> {
    let chart = site.kit.chart.display().to_string();
    let version = site.cluster.api.json(&["version"])?;
    let version = version["serverVersion"]["gitVersion"].as_str().context("a version")?.to_owned();
    let presets: Vec<String> =
        ["kind", "k3s"].iter().map(|name| format!("{chart}/presets/{name}.yaml")).collect();
    let preset = |file| vec!["-f", file];
    let set = |values: &'static [&str]| values.iter().flat_map(|value| ["--set", value]).collect();
    let variants: Vec<Vec<&str>> =
        VARIANTS.into_iter().map(set).chain(presets.iter().map(|file| preset(file))).collect();
    // A dry run makes none, and what goes into one asks for it.
    let namespaces = [SYSTEM, "ambit-clusters"];
    for namespace in namespaces {
        site.cluster.api.kubectl(&["create", "namespace", namespace])?;
    }
    let taken = variants.iter().try_for_each(|variant| {
        let common = [chart.as_str(), "--kube-version", &version];
        site.helm(&[["lint", "--strict"].as_slice(), &common, variant].concat())?;
        let objects =
            site.helm(&[["template", RELEASE, "-n", SYSTEM].as_slice(), &common, variant].concat())?;
        let apply = ["apply", "--dry-run=server", "--validate=strict", "-f", "-"];
        let done = site.cluster.api.try_kubectl(&apply, &objects)?;
        done.ok().map(drop).with_context(|| variant.join(" "))
    });
    let mut delete = vec!["delete", "namespace", "--timeout=60s"];
    delete.extend(namespaces);
    site.cluster.api.kubectl(&delete)?;
    taken
}

fn nonsense(site: &mut Site) -> Result<()> {
    let chart = site.kit.chart.display().to_string();
    for (value, named) in [
        ("imag.tag=1", "imag"),
        ("issuer.kind=acme", "/issuer/kind"),
        ("drainSeconds=-1", "/drainSeconds"),
        ("cni.binDir=opt/cni", "/cni/binDir"),
        ("label=mesh", "/label"),
        ("ca.replicas=0", "/ca/replicas"),
        ("metrics.auth=basic", "/metrics/auth"),
        ("svidTTL=1", "/svidTTL"),
        ("svidTTL=1d1h", "svidTTL (1d1h) is longer than ca.maxTTL (24h)"),
        ("ca.podLabels.ambit\\.dev/dataplane=enabled", "the CA's pods stay out of the mesh"),
        ("issuer.alsoTrust[0].name=roots", "/issuer/alsoTrust/0"),
        ("trustBundles[0].trustDomain=west.example", "/trustBundles/0"),
        ("stateDir=var/lib", "/stateDir"),
        ("issuer.kind=vault", "issuer.vault.address is needed"),
        ("issuer.vault.address=http://vault:8200", "/issuer/vault/address"),
        ("issuer.kind=vault,issuer.vault.address=https://vault", "issuer.vault.caConfigMap is needed"),
    ] {
        let mut helm = site.cluster.access().helm();
        let template = ["template", RELEASE, &chart, "--kube-version", "1.36.0", "--set", value];
        let done = process::run(helm.args(template), Duration::from_secs(60))?;
        ensure!(!done.status.success() && done.stderr.contains(named), "{value}: {}", done.stderr);
    }
    Ok(())
}

fn settings(site: &mut Site) -> Result<()> {
    for (kind, verb) in [("daemonset/ambit", "agent"), ("deployment/ambit-ca", "ca")] {
        let object = site.cluster.api.json(&["get", kind, "-n", SYSTEM])?;
        let help = site.ambit("a", &[verb, "--help"])?.ok()?;
        let variables = object["spec"]["template"]["spec"]["containers"][0]["env"].as_array().cloned();
        let variables = variables.unwrap_or_default();
        ensure!(variables.len() > 5, "{kind} sets next to nothing: {variables:?}");
        for name in variables.iter().filter_map(|variable| variable["name"].as_str()) {
            ensure!(help.contains(&format!("[env: {name}]")), "ambit {verb} knows no {name}");
        }
    }
    Ok(())
}

fn checked(site: &mut Site) -> Result<()> {
    let agent = site.agent("a")?;
    let report = site.cluster.api.kubectl(&["logs", "-n", SYSTEM, &agent.name, "-c", "check-node"])?;
    ensure!(report.contains("ambit can run on this node"), "{report}");
    let report = site.ambit("a", &["check-node", "-o", "json"])?.ok()?;
    let report: Vec<Value> = serde_json::from_str(&report)?;
    let states: Vec<(&str, &str)> =
        report.iter().filter_map(|line| Some((line["what"].as_str()?, line["state"].as_str()?))).collect();
    for what in ["kernel", "capabilities", "cgroup v2", "bpf file system", "programs", "sysctls"] {
        ensure!(states.contains(&(what, "ok")), "{what}: {report:#?}");
    }
    Ok(())
}

fn taken_over(site: &mut Site) -> Result<()> {
    let namespace = site.namespace(true)?;
    site.peer_authentication(&namespace, "STRICT")?;
    let names = [
        "peerauthentications.security.istio.io",
        "authorizationpolicies.security.istio.io",
        "requestauthentications.security.istio.io",
    ];
    let mut templates = String::new();
    for name in names {
        let mut definition = site.cluster.api.json(&["get", "crd", name])?;
        definition["metadata"] =
            json!({ "name": name, "annotations": { "helm.sh/resource-policy": "keep" } });
        definition.as_object_mut().context("an object")?.remove("status");
        templates += &format!("---\n{definition}\n");
    }
    let base = site.cluster.folder().join("istio-base");
    fs::create_dir_all(base.join("templates"))?;
    fs::write(base.join("Chart.yaml"), "apiVersion: v2\nname: base\nversion: 1.0.0\n")?;
    fs::write(base.join("templates/crds.yaml"), templates)?;
    let base = base.display().to_string();
    let install = ["install", "istio-base", &base, "-n", "istio-system", "--create-namespace"];
    let refused = site.helm(&install).map(drop).map_err(|error| format!("{error:#}"));
    ensure!(refused.as_ref().is_err_and(|told| told.contains("cannot be imported")), "{refused:?}");
    site.helm(&[&install[..], &["--take-ownership"]].concat())?;
    site.upgrade(&[])?;
    site.helm(&["uninstall", "istio-base", "-n", "istio-system"])?;
    site.cluster.api.kubectl(&["delete", "namespace", "istio-system", "--wait=false"])?;
    for name in names {
        let owner = "jsonpath={.metadata.annotations.meta\\.helm\\.sh/release-name}";
        let owner = site.cluster.api.kubectl(&["get", "crd", name, "-o", owner])?;
        ensure!(owner == "istio-base", "{name} is {owner}'s");
    }
    site.cluster.api.kubectl(&["get", "peerauthentication", "default", "-n", &namespace]).map(drop)
}

fn laptop(site: &mut Site) -> Result<()> {
    let namespace = site.namespace(true)?;
    let [a] = site.pods(&namespace, &[Plan::client("a").on("a")])?;
    let folder = site.cluster.folder().to_owned();
    let binary = site.kit.binary(&folder)?;
    let kubeconfig = site.cluster.access().kubeconfig();
    let ask_as =
        |user: &std::path::Path, program: &std::path::Path, arguments: &[&str]| -> Result<Finished> {
            let mut command: Command = site.cluster.access().outside().command(program);
            command.args(arguments).env("KUBECONFIG", user);
            process::run(&mut command, Duration::from_secs(30))
        };
    let ask = |program: &std::path::Path, arguments: &[&str]| ask_as(&kubeconfig, program, arguments);
    let pod = format!("{namespace}/{}", a.name);
    eventually(5 * SECOND, || {
        let all = ask(&binary, &["status", "--all-nodes"])?.ok()?;
        let nodes =
            NODES.iter().all(|node| all.lines().any(|line| line.trim().starts_with(&format!("{node} "))));
        ensure!(nodes && all.contains(&a.name), "{all}");
        Ok(())
    })?;
    let one = ask(&binary, &["status", "--pod", &pod, "-o", "json"])?.ok()?;
    let one: Value = serde_json::from_str(&one)?;
    ensure!(one["node"] == "a", "{one:#}");
    let certs = ask(&binary, &["certs", "--node", "a"])?.ok()?;
    ensure!(certs.contains(&format!("spiffe://cluster.local/ns/{namespace}/sa/default")), "{certs}");
    let plugin = folder.join("kubectl-ambit");
    fs::copy(&binary, &plugin)?;
    let all = ask(&plugin, &["certs", "-o", "json"])?.ok()?;
    let all: Value = serde_json::from_str(&all)?;
    ensure!(all.as_array().is_some_and(|nodes| nodes.len() == NODES.len()), "{all:#}");
    let named = ask(&binary, &["status", "--pod", &a.name, "-n", &namespace, "pods"])?.ok()?;
    ensure!(named.contains(&a.name), "{named}");
    let elsewhere = ask(&binary, &["status", "--all-nodes", "-n", "default", "pods"])?.ok()?;
    ensure!(!elsewhere.contains(&namespace), "{elsewhere}");
    // What agents have observed, of all nodes together.
    let ready = ask(&binary, &["readiness", "--all-nodes", "-n", &namespace, "--check"])?.ok()?;
    ensure!(ready.contains(&pod) && ready.contains("nobody has come"), "{ready}");
    let suggested = ask(&plugin, &["suggest", "-n", &namespace])?.ok()?;
    ensure!(suggested.contains(&format!("{pod} has no policy: nobody has come to it")), "{suggested}");
    let denials = ask(&binary, &["denials", "--node", "a", "-o", "json"])?.ok()?;
    ensure!(serde_json::from_str::<Value>(&denials)?.is_array(), "{denials}");
    let reader = site.cluster.api.user("reader", "reader", "readers")?;
    let refused = ask_as(&reader, &binary, &["status", "--all-nodes"])?;
    let told = refused.stderr.lines().count() == 1 && refused.stderr.contains("ambit-status-reader");
    ensure!(!refused.status.success() && told && !refused.stderr.contains('{'), "{}", refused.told());
    let bind =
        ["create", "rolebinding", "reader", "--role=ambit-status-reader", "--user=reader", "-n", SYSTEM];
    site.cluster.api.kubectl(&bind)?;
    ask_as(&reader, &binary, &["status", "--all-nodes"])?.ok().context("with the chart's role")?;
    let nobody = ask(&binary, &["status", "--node", "nowhere"])?;
    ensure!(
        !nobody.status.success() && nobody.stderr.contains("no agent runs on node nowhere"),
        "{}",
        nobody.stderr
    );
    Ok(())
}
