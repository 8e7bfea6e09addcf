//! One issuer takes the place of another, and the CA's own place in the cluster.

use std::collections::HashSet;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    Plan, Site, Test, Wire, installed,
    site::{IN_FORCE, RELEASE, SECOND, SYSTEM},
};
use crate::{cluster::NODES, load::ports, process::eventually};

pub(super) const TESTS: &[Test] = &[
    installed(
        "issuers::the_ca_stays_out_of_its_own_mesh",
        "its namespace opts in, and the whole mesh is STRICT: certificates go on being issued",
        own_namespace,
    ),
    // Last: ambit has another issuer afterwards, and is taken off.
    installed(
        "issuers::another_one_takes_over_without_loss",
        "both roots first, then the new issuer, then its roots alone; under load",
        exchanged,
    ),
];

fn own_namespace(site: &mut Site) -> Result<()> {
    site.opt_in(SYSTEM)?;
    site.peer_authentication(SYSTEM, "STRICT")?;
    let done = while_strict(site);
    site.opt_out(SYSTEM)?;
    site.cluster.api.kubectl(&["delete", "peerauthentication", "default", "-n", SYSTEM])?;
    done
}

fn while_strict(site: &mut Site) -> Result<()> {
    for verb in ["restart", "status"] {
        site.cluster.api.kubectl(&["rollout", verb, "deployment/ambit-ca", "-n", SYSTEM])?;
    }
    // An identity that nobody has a certificate for yet.
    let namespace = site.namespace(true)?;
    let [a, b] = site.pods(&namespace, &[Plan::client("a").on("a"), Plan::server("b").on("b")])?;
    eventually(IN_FORCE, || site.must_go(&a, &b, Wire::Tls))?;
    for node in NODES {
        let status = site.ambit(node, &["status", "pods"])?.ok()?;
        ensure!(!status.contains("ambit-ca"), "the CA is in the mesh: {status}");
    }
    eventually(60 * SECOND, || {
        let replicas =
            site.cluster.api.json(&["get", "pods", "-n", SYSTEM, "-l", "app.kubernetes.io/component=ca"])?;
        let replicas = replicas["items"].as_array().cloned().unwrap_or_default();
        let nodes: HashSet<&str> =
            replicas.iter().filter_map(|replica| replica["spec"]["nodeName"].as_str()).collect();
        ensure!(replicas.len() == 2 && nodes.len() == 2, "{} replicas on {nodes:?}", replicas.len());
        Ok(())
    })
}

/// Where the other certificate service is, and what it publishes its roots in.
const OTHER: &str = "other-ca";
/// The copy of its roots in the release's namespace.
const ITS_ROOTS: &str = "other-roots";
const KEY: &str = "root-cert.pem";

fn exchanged(site: &mut Site) -> Result<()> {
    let namespace = site.namespace(true)?;
    let [a, b] = site.pods(&namespace, &[Plan::client("a").on("a"), Plan::server("b").on("b")])?;
    site.peer_authentication(&namespace, "STRICT")?;
    eventually(IN_FORCE, || site.must_go(&a, &b, Wire::Tls))?;
    let before = issuers(site, &namespace)?;
    other_service(site)?;

    let to = format!("{}:{}", b.ip, ports::ECHO);
    let load = [
        "churn",
        "--to",
        &to,
        "--rest-ms",
        "20",
        "--count",
        "100000000",
        "--for-ms",
        "900000",
        "--until-eof",
    ];
    let load = site.start_tool(&a, "issuers", &load)?;
    let also =
        |name: &str| [format!("issuer.alsoTrust[0].name={name}"), format!("issuer.alsoTrust[0].key={KEY}")];
    let next = [
        "issuer.kind=istio".to_owned(),
        format!("issuer.istio.address=ca.{OTHER}.svc:15012"),
        format!("issuer.istio.rootConfigMap={ITS_ROOTS}"),
    ];
    let kept = ["ca.keep=true".to_owned()];
    for step in [&also(ITS_ROOTS)[..], &[&next[..], &also("ambit-ca-root"), &kept].concat(), &next] {
        let step: Vec<&str> = step.iter().map(String::as_str).collect();
        site.upgrade(&step)?;
        let status = ["rollout", "status", "daemonset", RELEASE, "--timeout=120s", "-n", SYSTEM];
        site.cluster.api.kubectl(&status)?;
        eventually(IN_FORCE, || site.must_go(&a, &b, Wire::Tls)).with_context(|| step.join(" "))?;
    }
    let tally = load.stop()?;
    site.note(format!(
        "another issuer: {} of {} connections failed, the longest outage {} ms",
        tally.failed,
        tally.failed + tally.good,
        tally.longest_outage_ms
    ));
    ensure!(tally.failed == 0, "{tally:?}");
    let after = issuers(site, &namespace)?;
    ensure!(after.is_disjoint(&before), "certificates are of {before:?}, then of {after:?}");
    let left = site.cluster.api.kubectl(&["get", "deployments", "-n", SYSTEM, "-o", "name"])?;
    ensure!(left.trim().is_empty(), "the CA that nobody asks is still there: {left}");
    site.cluster.api.kubectl(&["delete", "clusterrole,clusterrolebinding", OTHER])?;
    site.uninstall()
}

/// Who has signed the certificates of a namespace's pods, as both agents show them.
fn issuers(site: &Site, namespace: &str) -> Result<HashSet<String>> {
    let mut found = HashSet::new();
    for node in NODES {
        let status = site.ambit(node, &["certs", "-n", namespace, "-o", "json"])?.ok()?;
        let status: Value = serde_json::from_str(&status)?;
        let certificates = status["certificates"].as_array().cloned().unwrap_or_default();
        ensure!(!certificates.is_empty(), "no certificate on node {node}: {status:#}");
        found.extend(certificates.iter().map(|one| one["issuer"].to_string()));
    }
    Ok(found)
}

/// A second `ambit ca` with a root of its own, as others have istiod.
fn other_service(site: &mut Site) -> Result<()> {
    site.own_namespace(OTHER)?;
    let metadata = |name: &str| json!({ "name": name, "namespace": OTHER });
    let (rbac, account) = (
        "rbac.authorization.k8s.io",
        json!([{ "kind": "ServiceAccount", "name": "ca", "namespace": OTHER }]),
    );
    let rule = |group: &str, resource: &str, verbs: &[&str]| json!({ "apiGroups": [group], "resources": [resource], "verbs": verbs });
    let image = site.cluster.api.json(&["get", "deployment", "ambit-ca", "-n", SYSTEM])?;
    let image = &image["spec"]["template"]["spec"]["containers"][0]["image"];
    let variable = |name: &str, value: &str| json!({ "name": name, "value": value });
    let labels = json!({ "app": "ca" });
    site.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": [
        { "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata("ca") },
        { "apiVersion": format!("{rbac}/v1"), "kind": "ClusterRole", "metadata": { "name": OTHER }, "rules": [
            rule("authentication.k8s.io", "tokenreviews", &["create"]),
            rule("", "pods", &["get", "list"]),
        ] },
        { "apiVersion": format!("{rbac}/v1"), "kind": "ClusterRoleBinding", "metadata": { "name": OTHER },
          "roleRef": { "apiGroup": rbac, "kind": "ClusterRole", "name": OTHER }, "subjects": account },
        { "apiVersion": format!("{rbac}/v1"), "kind": "Role", "metadata": metadata("ca"), "rules": [
            rule("", "configmaps", &["create", "patch"]), rule("", "secrets", &["create", "get", "patch"]),
        ] },
        { "apiVersion": format!("{rbac}/v1"), "kind": "RoleBinding", "metadata": metadata("ca"),
          "roleRef": { "apiGroup": rbac, "kind": "Role", "name": "ca" }, "subjects": account },
        { "apiVersion": "v1", "kind": "Service", "metadata": metadata("ca"),
          "spec": { "selector": labels, "ports": [{ "name": "grpc", "port": 15_012 }] } },
        { "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata("ca"), "spec": {
            "selector": { "matchLabels": labels },
            "template": { "metadata": { "labels": labels }, "spec": { "serviceAccountName": "ca", "containers": [{
                "name": "ca", "image": image, "imagePullPolicy": "Never", "args": ["ca"], "env": [
                    variable("AMBIT_CA_LISTEN", "0.0.0.0:15012"),
                    variable("AMBIT_CA_ROOT_SECRET", &format!("{OTHER}/root")),
                    variable("AMBIT_CA_ROOT_CONFIG_MAP", &format!("{OTHER}/roots")),
                    variable("AMBIT_CA_DNS_NAME", &format!("ca.{OTHER}.svc")),
                    variable("AMBIT_CA_NODE_ACCOUNTS", &format!("{SYSTEM}/ambit")),
                ],
            }] } },
        } },
    ] }))?;
    let roots =
        eventually(60 * SECOND, || site.cluster.api.json(&["get", "configmap", "roots", "-n", OTHER]))?;
    site.apply(&json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": ITS_ROOTS, "namespace": SYSTEM }, "data": roots["data"],
    }))
}
