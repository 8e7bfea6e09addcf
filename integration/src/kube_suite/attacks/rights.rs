//! What a stolen token of a node, of its CNI plugin or of the CA may do.

use std::{collections::BTreeSet, fs, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::Test;
use crate::{
    kube_suite::{
        Plan, Pod, Site, Wire, installed,
        site::{IN_FORCE, SECOND, SYSTEM},
    },
    process::{self, eventually},
};

pub(super) const TESTS: &[Test] = &[
    installed(
        "attacks::a_nodes_token_is_worth_that_node",
        "nothing that another agent enforces can be changed with it, /status included",
        elsewhere,
    ),
    installed(
        "attacks::each_token_may_do_exactly_this",
        "agent, CNI plugin and CA: the whole list of their rights",
        lists,
    ),
    installed(
        "attacks::the_cni_token_is_the_plugins_own",
        "what lies on a node's disk reads one pod by its name, and no more",
        on_disk,
    ),
    installed(
        "attacks::guarded_metrics_need_a_token",
        "metrics.auth=token: nobody without one, or with another's, reads who talks to whom",
        metrics,
    ),
    installed(
        "attacks::the_cgroup_tree_is_not_written_to",
        "a read-only mount is all that agent and check-node have of it",
        cgroups,
    ),
];

fn elsewhere(site: &mut Site) -> Result<()> {
    let (namespace, other) = (site.namespace(true)?, site.namespace(false)?);
    let [a, b] = site.pods(&namespace, &[Plan::client("a").on("a"), Plan::server("b").on("b")])?;
    let [outside] = site.pods(&other, &[Plan::client("outside").on("a")])?;
    site.peer_authentication(&namespace, "STRICT")?;
    eventually(IN_FORCE, || site.must_go(&a, &b, Wire::Tls))?;
    eventually(IN_FORCE, || site.must_not_reach(&outside, &b))?;
    let token = agents_token(site, "a")?;
    let (pod, policy) = (format!("/api/v1/namespaces/{namespace}/pods/b"), policy_path(&namespace));
    let out = json!({ "metadata": { "labels": { "ambit.dev/dataplane": "disabled" } } });
    let moved = json!({ "status": { "podIP": "198.18.11.250", "podIPs": [{ "ip": "198.18.11.250" }], "phase": "Failed" } });
    let open = json!({ "spec": { "mtls": { "mode": "PERMISSIVE" } } });
    let token_for = |account: &str| format!("/api/v1/namespaces/{SYSTEM}/serviceaccounts/{account}/token");
    let none = Value::Null;
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    for (what, method, path, body) in [
        ("a pod's labels, through its status", "PATCH", format!("{pod}/status"), &out),
        ("a pod's addresses and phase", "PATCH", format!("{pod}/status"), &moved),
        ("a pod's labels", "PATCH", pod.clone(), &out),
        ("a pod itself", "DELETE", pod.clone(), &none),
        ("a pod's processes", "POST", format!("{pod}/exec?command=id"), &none),
        ("a pod's binding", "POST", format!("{pod}/binding"), &out),
        ("a namespace's labels", "PATCH", format!("/api/v1/namespaces/{namespace}"), &out),
        (
            "a namespace's labels, through its status",
            "PATCH",
            format!("/api/v1/namespaces/{namespace}/status"),
            &out,
        ),
        ("a policy", "PATCH", policy.clone(), &open),
        ("a policy's absence", "DELETE", policy.clone(), &none),
        ("a new policy", "POST", policy_path(&namespace).replace("/default", ""), &open),
        ("a service", "PATCH", format!("/api/v1/namespaces/{SYSTEM}/services/ambit-ca"), &out),
        (
            "a service's status",
            "PATCH",
            format!("/api/v1/namespaces/{SYSTEM}/services/ambit-ca/status"),
            &out,
        ),
        (
            "endpoints",
            "DELETE",
            format!("/apis/discovery.k8s.io/v1/namespaces/{SYSTEM}/endpointslices"),
            &none,
        ),
        ("a node", "PATCH", "/api/v1/nodes/b".to_owned(), &out),
        ("the agents", "PATCH", format!("/apis/apps/v1/namespaces/{SYSTEM}/daemonsets/ambit"), &out),
        ("secrets", "GET", format!("/api/v1/namespaces/{SYSTEM}/secrets"), &none),
        ("the CA's secret", "GET", format!("/api/v1/namespaces/{SYSTEM}/secrets/ambit-ca"), &none),
        ("the CA's roots", "PATCH", format!("/api/v1/namespaces/{SYSTEM}/configmaps/ambit-ca-root"), &out),
        ("a token of the CA", "POST", token_for("ambit-ca"), &json!({})),
        ("a token of all agents", "POST", token_for("ambit"), &json!({})),
        ("the definition of policies", "DELETE", DEFINITION.to_owned(), &none),
        ("a role", "POST", format!("{rbac}/clusterroles"), &json!({ "metadata": { "name": "mine" } })),
        (
            "another's events",
            "DELETE",
            format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events"),
            &none,
        ),
    ] {
        let (code, answer) = site.cluster.api.as_bearer(&token, method, &path, body)?;
        ensure!(code == 403, "{what} ({method} {path}): {code} {answer}");
    }
    only_the_condition(site, &token, &namespace)?;
    site.must_not_reach(&outside, &b).context("after all that")?;
    site.must_go(&a, &b, Wire::Tls)
}

const DEFINITION: &str =
    "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/peerauthentications.security.istio.io";

/// What an agent may write of a policy changes no part of it that is enforced.
fn only_the_condition(site: &Site, token: &str, namespace: &str) -> Result<()> {
    let admin = || site.cluster.api.json(&["get", "peerauthentication", "default", "-n", namespace]);
    let before = admin()?;
    let patch = json!({
        "metadata": { "labels": { "istio.io/rev": "x" }, "annotations": { "x": "y" } },
        "spec": { "mtls": { "mode": "PERMISSIVE" }, "selector": { "matchLabels": { "app": "nobody" } } },
        "status": { "conditions": [{ "type": "AmbitAccepted", "status": "True" }] },
    });
    let path = format!("{}/status", policy_path(namespace));
    let (code, answer) = site.cluster.api.as_bearer(token, "PATCH", &path, &patch)?;
    ensure!(code == 200, "{code} {answer}");
    let after = admin()?;
    let enforced = |policy: &Value| {
        let metadata = &policy["metadata"];
        json!([policy["spec"], metadata["labels"], metadata["annotations"], metadata["generation"]])
    };
    ensure!(enforced(&after) == enforced(&before), "{before:#} became {after:#}");
    ensure!(after["status"] != before["status"], "nothing was written at all: {after:#}");
    Ok(())
}

fn lists(site: &mut Site) -> Result<()> {
    let elsewhere = site.namespace(false)?;
    let anybody = site.cluster.api.token(&elsewhere, "default", "https://kubernetes.default.svc", None)?;
    let agent = agents_token(site, "a")?;
    let (cni, ca) = (cni_token(site, "a")?, ca_token(site)?);
    let agent_here: &[&str] = &[
        "list namespaces, pods, services",
        "watch namespaces, pods, services",
        "list nodes",
        "watch nodes",
        "list endpointslices.discovery.k8s.io",
        "watch endpointslices.discovery.k8s.io",
        "list authorizationpolicies.security.istio.io, peerauthentications.security.istio.io",
        "watch authorizationpolicies.security.istio.io, peerauthentications.security.istio.io",
        "patch authorizationpolicies/status.security.istio.io, peerauthentications/status.security.istio.io",
        "list requestauthentications.security.istio.io",
        "watch requestauthentications.security.istio.io",
        "patch requestauthentications/status.security.istio.io",
        "get customresourcedefinitions.apiextensions.k8s.io authorizationpolicies.security.istio.io",
        "get customresourcedefinitions.apiextensions.k8s.io peerauthentications.security.istio.io",
        "get customresourcedefinitions.apiextensions.k8s.io requestauthentications.security.istio.io",
        "get customresourcedefinitions.apiextensions.k8s.io destinationrules.networking.istio.io",
        "get customresourcedefinitions.apiextensions.k8s.io serviceentries.networking.istio.io",
        "get customresourcedefinitions.apiextensions.k8s.io workloadentries.networking.istio.io",
        "list destinationrules.networking.istio.io, serviceentries.networking.istio.io, workloadentries.networking.istio.io",
        "watch destinationrules.networking.istio.io, serviceentries.networking.istio.io, workloadentries.networking.istio.io",
        "patch destinationrules/status.networking.istio.io, serviceentries/status.networking.istio.io, workloadentries/status.networking.istio.io",
        "create events.events.k8s.io",
    ];
    let agent_system: &[&str] = &[
        "get daemonsets.apps ambit",
        "list daemonsets.apps ambit",
        "watch daemonsets.apps ambit",
        "create serviceaccounts/token ambit-cni",
        "list configmaps ambit-ca-root",
        "watch configmaps ambit-ca-root",
    ];
    let cni_here: &[&str] = &["get namespaces, pods"];
    let ca_here: &[&str] = &["create tokenreviews.authentication.k8s.io", "get pods", "list pods"];
    let ca_system: &[&str] = &[
        "create configmaps ambit-ca-root",
        "patch configmaps ambit-ca-root",
        "create secrets ambit-ca",
        "get secrets ambit-ca",
        "patch secrets ambit-ca",
    ];
    let nothing: &[&str] = &[];
    for (who, token, here, system) in [
        ("the agent", &agent, agent_here, agent_system),
        ("the CNI plugin", &cni, cni_here, nothing),
        ("the CA", &ca, ca_here, ca_system),
    ] {
        for (namespace, expected) in [(elsewhere.as_str(), here.to_vec()), (SYSTEM, [here, system].concat())]
        {
            let everybodys = rules(site, &anybody, namespace)?;
            let found: BTreeSet<String> =
                rules(site, token, namespace)?.difference(&everybodys).cloned().collect();
            let expected: BTreeSet<String> = expected.iter().flat_map(|line| spread(line)).collect();
            ensure!(found == expected, "{who} in {namespace} may {found:#?}, and should {expected:#?}");
        }
    }
    Ok(())
}

/// `verb a, b.group name` as one line for each resource.
fn spread(line: &str) -> Vec<String> {
    let (verb, resources) = line.split_once(' ').unwrap_or((line, ""));
    resources.split(", ").map(|resource| format!("{verb} {resource}")).collect()
}

/// What the bearer of a token may do in a namespace: `verb resource.group name`, `verb /path`.
fn rules(site: &Site, token: &str, namespace: &str) -> Result<BTreeSet<String>> {
    let review = json!({ "spec": { "namespace": namespace } });
    let path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let (code, review) = site.cluster.api.as_bearer(token, "POST", path, &review)?;
    ensure!(code == 201, "{code} {review:#}");
    let texts = |value: &Value| -> Vec<String> {
        let all = value.as_array().into_iter().flatten();
        all.filter_map(|text| text.as_str().map(str::to_owned)).collect()
    };
    let mut rules = BTreeSet::new();
    for rule in review["status"]["resourceRules"].as_array().into_iter().flatten() {
        let mut names = texts(&rule["resourceNames"]);
        if names.is_empty() {
            names.push(String::new());
        }
        for verb in texts(&rule["verbs"]) {
            for group in texts(&rule["apiGroups"]) {
                for resource in texts(&rule["resources"]) {
                    let dotted = if group.is_empty() { resource } else { format!("{resource}.{group}") };
                    rules.extend(
                        names.iter().map(|name| format!("{verb} {dotted} {name}").trim_end().to_owned()),
                    );
                }
            }
        }
    }
    for rule in review["status"]["nonResourceRules"].as_array().into_iter().flatten() {
        for verb in texts(&rule["verbs"]) {
            rules.extend(texts(&rule["nonResourceURLs"]).iter().map(|path| format!("{verb} {path}")));
        }
    }
    Ok(rules)
}

fn on_disk(site: &mut Site) -> Result<()> {
    let namespace = site.namespace(false)?;
    site.pods(&namespace, &[Plan::client("b").on("b")])?;
    let token = cni_token(site, "a")?;
    ensure!(token != agents_token(site, "a")?, "the agent's own token lies on the disk");
    let who = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let (_, review) = site.cluster.api.as_bearer(&token, "POST", who, &json!({}))?;
    let expected = format!("system:serviceaccount:{SYSTEM}:ambit-cni");
    ensure!(review["status"]["userInfo"]["username"] == expected.as_str(), "{review:#}");
    let all = "/api/v1/pods".to_owned();
    for (method, path, expected) in [
        ("GET", format!("/api/v1/namespaces/{namespace}/pods/b"), 200),
        ("GET", format!("/api/v1/namespaces/{namespace}"), 200),
        ("GET", format!("/api/v1/namespaces/{namespace}/pods/none"), 404),
        ("GET", all.clone(), 403),
        ("GET", format!("{all}?watch=1"), 403),
        ("GET", format!("/api/v1/namespaces/{SYSTEM}/secrets/ambit-ca"), 403),
        ("GET", policy_path(&namespace), 403),
        ("POST", format!("/api/v1/namespaces/{SYSTEM}/serviceaccounts/ambit-cni/token"), 403),
        ("PATCH", format!("/api/v1/namespaces/{namespace}/pods/b/status"), 403),
    ] {
        let body = if method == "GET" { Value::Null } else { json!({}) };
        let (code, answer) = site.cluster.api.as_bearer(&token, method, &path, &body)?;
        ensure!(code == expected, "{method} {path}: {code} {answer}");
    }
    let mode = on_node(site, "a", &["stat", "-c", "%a %u", KUBECONFIG])?;
    ensure!(mode.trim() == "600 0", "others of the node can read it: {mode}");
    let look = format!("grep -rlsF '{}' /etc/cni /opt/cni /run/ambit || true", agents_token(site, "a")?);
    let left = on_node(site, "a", &["sh", "-c", &look])?;
    ensure!(left.is_empty(), "the agent's token is in {left}");
    Ok(())
}

fn metrics(site: &mut Site) -> Result<()> {
    let namespace = site.namespace(false)?;
    site.upgrade(&["metrics.auth=token"])?;
    site.cluster.api.kubectl(&["create", "serviceaccount", "prometheus", "-n", &namespace])?;
    let account = format!("{namespace}:prometheus");
    let bind = ["create", "clusterrolebinding", &namespace, "--clusterrole", "ambit-metrics-reader"];
    site.cluster.api.kubectl(&[bind.as_slice(), &["--serviceaccount", &account]].concat())?;
    let token =
        |account: &str| site.cluster.api.token(&namespace, account, "https://kubernetes.default.svc", None);
    let (reader, other) = (token("prometheus")?, token("default")?);
    let ca = ca_pods(site)?.first().cloned().context("the CA has no pod")?;
    for (what, address) in [("an agent", site.cluster.access().address("a")?), ("the CA", ca.ip.to_string())]
    {
        eventually(20 * SECOND, || {
            for (bearer, expected) in [(None, "401"), (Some("guess"), "401"), (Some(other.as_str()), "403")] {
                let (code, text) = scrape(site, &address, bearer)?;
                ensure!(code == expected && !text.contains("istio_build"), "{what}: {code} {text}");
            }
            let (code, text) = scrape(site, &address, Some(&reader))?;
            ensure!(code == "200" && text.contains("istio_build"), "{what}, to who may: {code} {text}");
            Ok(())
        })?;
    }
    site.cluster.api.kubectl(&["delete", "clusterrolebinding", &namespace])?;
    site.upgrade(&[])?;
    Ok(())
}

/// One scrape over TLS, whoever answers; status and text.
fn scrape(site: &Site, address: &str, bearer: Option<&str>) -> Result<(String, String)> {
    let mut curl: Command = site.cluster.access().outside().command("curl");
    curl.args(["-sS", "-k", "-m", "10", "--noproxy", "*", "-w", "\n%{http_code}"]);
    curl.args(bearer.iter().flat_map(|token| ["--oauth2-bearer", token]));
    let text =
        process::run(curl.arg(format!("https://{address}:15020/metrics")), Duration::from_secs(15))?.ok()?;
    let (text, code) = text.rsplit_once('\n').context("curl told no status")?;
    Ok((code.to_owned(), text.to_owned()))
}

fn cgroups(site: &mut Site) -> Result<()> {
    let agent = site.cluster.api.json(&["get", "daemonset", "ambit", "-n", SYSTEM])?;
    let pod = &agent["spec"]["template"]["spec"];
    let containers =
        ["initContainers", "containers"].map(|kind| pod[kind].as_array().cloned().unwrap_or_default());
    for container in containers.concat() {
        let mounts = container["volumeMounts"].as_array().into_iter().flatten();
        let mount = mounts.into_iter().find(|mount| mount["name"] == "cgroup").context("no cgroup tree")?;
        ensure!(mount["readOnly"] == true, "{}: {mount}", container["name"]);
    }
    let report = site.ambit("a", &["check-node"])?.ok()?;
    ensure!(report.contains("loaded and attached"), "{report}");
    Ok(())
}

fn policy_path(namespace: &str) -> String {
    format!("/apis/security.istio.io/v1/namespaces/{namespace}/peerauthentications/default")
}

/// Where a pod finds its own token.
const TOKEN: &str = "var/run/secrets/kubernetes.io/serviceaccount/token";
/// Where the agent leaves the CNI plugin's.
const KUBECONFIG: &str = "/etc/cni/net.d/ambit-cni.kubeconfig";

/// The token of the agent of a node, as root of that node reads it.
fn agents_token(site: &Site, node: &str) -> Result<String> {
    let process = site.agent_process(node)?;
    fs::read_to_string(format!("/proc/{process}/root/{TOKEN}")).context("the agent's token")
}

fn ca_token(site: &Site) -> Result<String> {
    let pods = ca_pods(site)?;
    let pod = pods.first().context("the CA has no pod")?;
    let processes = site.cluster.access().processes(&pod.node, &pod.uid)?;
    let token = |process: i32| fs::read_to_string(format!("/proc/{process}/root/{TOKEN}")).ok();
    // The pod's first process holds its namespaces and has no token.
    processes.into_iter().find_map(token).context("the CA's token")
}

fn ca_pods(site: &Site) -> Result<Vec<Pod>> {
    let component = "app.kubernetes.io/component=ca";
    let list = site.cluster.api.json(&["get", "pods", "-n", SYSTEM, "-l", component])?;
    let running = |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null();
    list["items"].as_array().into_iter().flatten().filter(running).map(Pod::read).collect()
}

fn cni_token(site: &Site, node: &str) -> Result<String> {
    let text = eventually(10 * SECOND, || on_node(site, node, &["cat", KUBECONFIG]))?;
    let kubeconfig: Value = serde_json::from_str(&text).context("the plugin's kubeconfig")?;
    let token = kubeconfig["users"][0]["user"]["token"].as_str().context("a token")?;
    Ok(token.to_owned())
}

fn on_node(site: &Site, node: &str, command: &[&str]) -> Result<String> {
    let (program, arguments) = command.split_first().context("a program")?;
    let mut command = site.cluster.access().on_node(node, program)?;
    process::run(command.args(arguments), Duration::from_secs(10))?.ok()
}
