//! `ambit ca` in a real cluster: its root in a Secret, service accounts as callers, and what a node's agent may have.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    Plan, Site, Test, Wire, bare, installed,
    site::{SECOND, SYSTEM},
};
use crate::{
    ca::Replica,
    certs,
    cluster::{ADDRESS, ApiServer, NODES},
    load::ports,
    process::eventually,
};

pub(super) const TESTS: &[Test] = &[
    bare(
        "identities::an_agent_gets_what_runs_on_its_node",
        "real tokens and TokenReview; another node, audience or pod: refused, and audited",
        node_authorisation,
    ),
    installed(
        "identities::a_withdrawn_root_is_out_in_seconds",
        "taken out of the chart's Secret: connections under it are cut, the mesh goes on under the new one",
        withdrawn,
    ),
    bare(
        "identities::another_service_refuses_and_rotates",
        "issuer.kind istio: refused, agents are not ready and pods say why; then its roots rotate, and no call fails",
        another_service,
    ),
];

/// The name of the Secret.
const SECRET: &str = "ambit-ca";
/// Until a changed Secret is in force, and published.
const READ_AGAIN: Duration = Duration::from_secs(20);

fn node_authorisation(site: &mut Site) -> Result<()> {
    let namespace = site.namespace(false)?;
    let folder = site.cluster.folder().join("identities");
    fs::create_dir_all(&folder)?;
    prepare(site, &namespace)?;
    let kubeconfig = site.cluster.api.user("ambit-ca", "ambit-ca", "nobody")?;
    let accounts = format!("{namespace}/ambit");
    let mut replicas = replicas(site, &namespace, &accounts, &folder, &kubeconfig)?;
    replicas.iter_mut().try_for_each(Replica::spawn)?;
    replicas.iter_mut().try_for_each(Replica::wait_serving)?;
    let api = &site.cluster.api;
    let root = folder.join("root.pem");
    fs::write(&root, published(api, &namespace)?)?;
    let asking = Asking { namespace: &namespace, folder: &folder, root: &root, replicas: &replicas };

    let token =
        |account: &str, audience: &str, pod: Option<&str>| api.token(&namespace, account, audience, pod);
    let (a, b) = (token("ambit", "istio-ca", Some("agent-a"))?, token("ambit", "istio-ca", Some("agent-b"))?);
    let gone = token("ambit", "istio-ca", Some("agent-gone"))?;
    api.kubectl(&["delete", "pod", "-n", &namespace, "agent-gone", "--now"])?;
    let (web, unbound) = (token("web", "istio-ca", Some("web"))?, token("ambit", "istio-ca", None)?);
    let elsewhere = token("ambit", "somebody-else", Some("agent-a"))?;
    for (who, token, account, code, reason) in [
        ("the agent of a", &a, "web", "Ok", ""),
        ("the agent of b", &b, "teller", "Ok", ""),
        ("the agent of a", &a, "teller", "PermissionDenied", "not_on_node"),
        ("the agent of b", &b, "web", "PermissionDenied", "not_on_node"),
        ("the agent of a, of nobody", &a, "nobody", "PermissionDenied", "not_on_node"),
        ("a pod, for itself", &web, "web", "Ok", ""),
        ("a pod, for another", &web, "teller", "PermissionDenied", "not_on_node"),
        ("a token of another audience", &elsewhere, "web", "Unauthenticated", "unknown_caller"),
        ("a token that is bound to no pod", &unbound, "web", "Unauthenticated", "unknown_caller"),
        ("a token of a pod that is gone", &gone, "web", "Unauthenticated", "unknown_caller"),
    ] {
        asking.demand(token, account, code, reason).with_context(|| format!("{who} asks for {account}"))?;
    }
    rotated(site, &asking)
}

/// For a CA of a namespace, as the user `ambit-ca`, exactly the rights that the chart gives it.
fn rights(namespace: &str) -> Vec<Value> {
    let rbac = "rbac.authorization.k8s.io/v1";
    let subject = json!([{ "kind": "User", "name": "ambit-ca", "apiGroup": "rbac.authorization.k8s.io" }]);
    let binding = |kind: &str, role: &str, name: &str| {
        json!({ "apiVersion": rbac, "kind": kind, "metadata": { "name": name, "namespace": namespace },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": role, "name": name },
            "subjects": subject })
    };
    let cluster_role = format!("{namespace}-ca");
    vec![
        json!({ "apiVersion": rbac, "kind": "ClusterRole", "metadata": { "name": cluster_role }, "rules": [
            { "apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"] },
            { "apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"] },
        ] }),
        binding("ClusterRoleBinding", "ClusterRole", &cluster_role),
        json!({ "apiVersion": rbac, "kind": "Role", "metadata": { "name": "ca", "namespace": namespace }, "rules": [
            { "apiGroups": [""], "resources": ["secrets"], "resourceNames": [SECRET],
              "verbs": ["create", "get", "patch"] },
            { "apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["ambit-ca-root"],
              "verbs": ["create", "patch"] },
        ] }),
        binding("RoleBinding", "Role", "ca"),
    ]
}

/// Accounts and pods, and the rights of the CA.
fn prepare(site: &Site, namespace: &str) -> Result<()> {
    let mut objects = rights(namespace);
    for account in ["ambit", "web", "teller"] {
        objects.push(json!({ "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": { "name": account, "namespace": namespace } }));
    }
    site.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": objects }))?;
    let client = |name: &str, account: &str, node: &str| Plan::client(name).account(account).on(node);
    site.pods(
        namespace,
        &[
            client("agent-a", "ambit", "a"),
            client("agent-b", "ambit", "b"),
            client("agent-gone", "ambit", "b"),
            client("web", "web", "a"),
            client("teller", "teller", "b"),
        ],
    )
    .map(drop)
}

/// Two replicas of a CA in a namespace, which takes these service accounts for those of agents. None runs yet.
fn replicas(
    site: &Site,
    namespace: &str,
    accounts: &str,
    folder: &Path,
    kubeconfig: &Path,
) -> Result<[Replica; 2]> {
    let binary = site.kit.binary(folder)?;
    let secret = format!("{namespace}/{SECRET}");
    let kubeconfig = kubeconfig.display().to_string();
    let flags = ["--root-secret", &secret, "--node-accounts", accounts, "--kubeconfig", &kubeconfig];
    let replica = |number: u16| {
        let addr = SocketAddr::new(ADDRESS.parse()?, 15_012 + number);
        let log = site.cluster.folder().join(format!("ca-replica-{number}.log"));
        Ok::<_, anyhow::Error>(Replica::new(&binary, site.cluster.api.netns(), addr, &log, &flags))
    };
    Ok([replica(0)?, replica(1)?])
}

/// The roots that the CA has published.
fn published(api: &ApiServer, namespace: &str) -> Result<String> {
    let map = api.json(&["get", "configmap", "ambit-ca-root", "-n", namespace])?;
    map["data"]["root-cert.pem"].as_str().map(str::to_owned).context("no roots in the ConfigMap")
}

struct Asking<'a> {
    namespace: &'a str,
    folder: &'a Path,
    root: &'a PathBuf,
    replicas: &'a [Replica; 2],
}

impl Asking<'_> {
    /// Asks both replicas for the identity of `account` and demands this answer of each, and its line in the audit log.
    fn demand(&self, token: &str, account: &str, code: &str, reason: &str) -> Result<()> {
        let identity = format!("spiffe://cluster.local/ns/{}/sa/{account}", self.namespace);
        let csr = certs::request(self.folder, account, &[&format!("URI:{identity}")])?.certificate;
        let file = self.folder.join("token");
        fs::write(&file, token)?;
        for replica in self.replicas {
            let (before, token) = (replica.audit().len(), file.display().to_string());
            let answer = replica.ask(self.root, &csr, &["--identity", &identity, "--token", &token])?;
            ensure!(answer.code == code, "{answer:?}");
            // Lines are written behind the answer.
            let line = eventually(Duration::from_secs(2), || {
                replica.audit().into_iter().nth(before).context("the audit log has no line of it")
            })?;
            ensure!(line.line["reason"].as_str().unwrap_or_default() == reason, "{line:?}");
            if code == "Ok" {
                ensure!(line.outcome == "issued" && line.line["identity"] == identity.as_str(), "{line:?}");
                let chain: Vec<&str> = answer.chain.iter().map(String::as_str).collect();
                certs::verify(self.folder, &chain[..chain.len() - 1], self.root)?;
            } else {
                ensure!(line.outcome == "refused", "{line:?}");
            }
        }
        Ok(())
    }
}

/// An operator puts another CA into the Secret: it signs, and its root is published.
fn rotated(site: &Site, asking: &Asking<'_>) -> Result<()> {
    let namespace = asking.namespace;
    let (certificate, patch) = next_ca(&asking.folder.join("next"))?;
    let api = &site.cluster.api;
    api.kubectl(&["patch", "secret", SECRET, "-n", namespace, "-p", &patch])?;
    eventually(READ_AGAIN, || {
        ensure!(published(api, namespace)? == certificate, "the old root is published still");
        Ok(())
    })?;
    fs::write(asking.root, &certificate)?;
    let web = api.token(namespace, "web", "istio-ca", Some("web"))?;
    eventually(READ_AGAIN, || asking.demand(&web, "web", "Ok", ""))
}

/// A new CA, made in `folder`: its certificate, and the patch that makes it the one in a Secret.
fn next_ca(folder: &Path) -> Result<(String, String)> {
    certs::strange_authority(folder)?;
    let read = |name: &str| fs::read_to_string(folder.join(name)).context("the next CA");
    let (certificate, key) = (read("ca-cert.pem")?, read("ca-key.pem")?);
    let patch = json!({ "stringData": {
        "ca-cert.pem": certificate, "ca-key.pem": key, "cert-chain.pem": certificate, "root-cert.pem": certificate,
    } });
    Ok((certificate, patch.to_string()))
}

/// The chart's own CA gets a successor, and its root is withdrawn: long before any certificate is due.
fn withdrawn(site: &mut Site) -> Result<()> {
    let namespace = site.namespace(true)?;
    let [a, b] = site.pods(&namespace, &[Plan::client("a").on("a"), Plan::server("b").on("b")])?;
    site.peer_authentication(&namespace, "STRICT")?;
    eventually(5 * SECOND, || site.must_go(&a, &b, Wire::Tls))?;
    let folder = site.cluster.folder().join("withdrawn");
    fs::create_dir_all(&folder)?;
    let (certificate, successor) = next_ca(&folder.join("next"))?;
    let old = published(&site.cluster.api, SYSTEM)?;
    let patch = |patch: &str| {
        site.cluster.api.kubectl(&["patch", "secret", SECRET, "-n", SYSTEM, "-p", patch]).map(drop)
    };
    patch(&json!({ "stringData": { "root-cert.pem": format!("{old}{certificate}") } }).to_string())?;
    eventually(READ_AGAIN, || roots(site, 2))?;

    let to = format!("{}:{}", b.ip, ports::ECHO);
    let long =
        site.start_tool(&a, "long", &["ping-pong", "--to", &to, "--for-ms", "60000", "--rest-ms", "20"])?;
    site.must_reach(&a, &b)?;
    patch(&successor)?;
    let start = Instant::now();
    eventually(READ_AGAIN, || roots(site, 1))?;
    let told = start.elapsed();
    let cut = long.end(5 * SECOND);
    ensure!(
        cut.is_err_and(|error| error.to_string().contains("ended with")),
        "a connection under the old root goes on"
    );
    eventually(5 * SECOND, || {
        let log = site.agents_log()?;
        ensure!(
            log.lines().any(|line| line.contains("root_withdrawn") && line.contains(&to)),
            "no log line of it"
        );
        Ok(())
    })?;
    eventually(10 * SECOND, || site.must_go(&a, &b, Wire::Tls)).context("under the new root")?;
    site.note(format!(
        "both agents had dropped the root {:.1} s after the Secret changed",
        told.as_secs_f64()
    ));
    Ok(())
}

/// Whether the agents of all nodes trust so many roots.
fn roots(site: &Site, expected: usize) -> Result<()> {
    for node in NODES {
        let certs: Value = serde_json::from_str(&site.ambit(node, &["certs", "-o", "json"])?.ok()?)?;
        let found = certs["roots"].as_array().map_or(0, Vec::len);
        ensure!(found == expected, "the agent of node {node} trusts {found} roots: {certs:#}");
    }
    Ok(())
}

/// A certificate service beside the release, as istiod is one: it refuses the agents, and then takes them and rotates its root.
fn another_service(site: &mut Site) -> Result<()> {
    let namespace = site.namespace(true)?;
    let [a, b] = site.pods(&namespace, &[Plan::client("a").on("a"), Plan::server("b").on("b")])?;
    let folder = site.cluster.folder().join("another-service");
    fs::create_dir_all(&folder)?;
    for name in [SYSTEM, "istio-system"] {
        site.apply(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } }))?;
    }
    site.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": rights(SYSTEM) }))?;
    let kubeconfig = site.cluster.api.user("another-ca", "ambit-ca", "nobody")?;
    let start = |site: &Site, accounts: &str| -> Result<Replica> {
        let [mut replica, _] = replicas(site, SYSTEM, accounts, &folder, &kubeconfig)?;
        replica.spawn()?;
        replica.wait_serving().map(|()| replica)
    };
    let refusing = start(site, "elsewhere/ambit")?;
    eventually(READ_AGAIN, || published(&site.cluster.api, SYSTEM))?;
    site.install_without_waiting(&[
        "issuer.kind=istio",
        &format!("issuer.istio.address={}", refusing.addr),
        &format!("issuer.istio.serverName={}", crate::ca::SERVER_NAME),
        "issuer.istio.rootConfigMap=ambit-ca-root",
        "svidTTL=30s",
    ])?;
    eventually(60 * SECOND, || refused(site)).context("what agents say")?;
    eventually(20 * SECOND, || {
        let of = format!("involvedObject.kind=Pod,involvedObject.name={},reason=NoCertificate", a.name);
        let told = site.cluster.api.json(&["get", "events", "-n", &namespace, "--field-selector", &of])?;
        let note = told["items"][0]["message"].as_str().unwrap_or_default();
        ensure!(note.contains("the issuer refuses"), "events: {told:#}");
        Ok(())
    })?;
    let agents = site.cluster.api.json(&["get", "daemonset", "ambit", "-n", SYSTEM])?;
    ensure!(agents["status"]["numberReady"] == 0, "{:#}", agents["status"]);

    drop(refusing);
    let _taking = start(site, &format!("{SYSTEM}/ambit"))?;
    eventually(30 * SECOND, || site.must_go(&a, &b, Wire::Tls)).context("once it takes the agents")?;
    // Istio's own root namespace is that of the mesh.
    site.peer_authentication("istio-system", "STRICT")?;
    let other = site.namespace(false)?;
    let [c] = site.pods(&other, &[Plan::client("c").on("a")])?;
    eventually(5 * SECOND, || site.must_not_reach(&c, &b))?;

    let (certificate, successor) = next_ca(&folder.join("next"))?;
    let both = format!("{}{certificate}", published(&site.cluster.api, SYSTEM)?);
    let to = format!("{}:{}", b.ip, ports::ECHO);
    let load =
        ["churn", "--to", &to, "--count", "1000000", "--for-ms", "120000", "--rest-ms", "5", "--until-eof"];
    let load = site.start_tool(&a, "rotated", &load)?;
    let patch = |patch: &Value| {
        site.cluster
            .api
            .kubectl(&["patch", "secret", SECRET, "-n", SYSTEM, "-p", &patch.to_string()])
            .map(drop)
    };
    patch(&json!({ "stringData": { "root-cert.pem": both } }))?;
    eventually(READ_AGAIN, || roots(site, 2)).context("both roots")?;
    let mut signs: Value = serde_json::from_str(&successor)?;
    signs["stringData"]["root-cert.pem"] = json!(both);
    patch(&signs)?;
    // All are renewed, and tunnels with them.
    std::thread::sleep(40 * SECOND);
    let tally = load.stop()?;
    site.note(format!("{} connections from root to root, {} failed", tally.good, tally.failed));
    ensure!(tally.failed == 0 && tally.good > 1_000, "{tally:?}");
    for node in NODES {
        let certs: Value = serde_json::from_str(&site.ambit(node, &["certs", "-o", "json"])?.ok()?)?;
        let issuer = certs["certificates"][0]["issuer"].as_str().unwrap_or_default();
        ensure!(issuer.contains("strange"), "the agent of node {node} has one of {issuer:?}");
    }
    site.cluster.api.kubectl(&["delete", "namespace", "istio-system", "--timeout=60s"])?;
    site.uninstall()
}

/// Whether the agent of node a is not ready for want of certificates, and says that the service refuses them.
fn refused(site: &Site) -> Result<()> {
    let status: Value = serde_json::from_str(&site.ambit("a", &["status", "-o", "json"])?.ok()?)?;
    let pending = status["pending"].as_array().context("pending")?;
    ensure!(pending.iter().any(|gate| gate == "certificates"), "pending: {pending:?}");
    let told = status["problems"].to_string();
    ensure!(told.contains("no certificate: the issuer refuses"), "problems: {told}");
    Ok(())
}
