//! CUSTOM policies on a cluster: a provider in a pod of the mesh, named by the chart's values, asked as the pod under protection, away and
//! back.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{Plan, Pod, Site, Test, installed, site::IN_FORCE};
use crate::{load::ports, process::eventually};

pub(super) const TESTS: &[Test] = &[installed(
    "custom::a_provider_in_a_pod_is_asked",
    "as the chart's values say; what is asked while it is away goes by failOpen, and it is asked again once it is back",
    provider,
)];

/// What pod `closed` asks, and what `open` does: the same provider, and what holds while it is away.
const PROVIDERS: [(&str, &str); 2] = [("closed", "false"), ("open", "true")];

fn values(namespace: &str) -> Vec<String> {
    let fields = |(at, (name, fail_open)): (usize, &(&str, &str))| {
        let of = format!("extensionProviders[{at}]");
        let http = format!("{of}.envoyExtAuthzHttp");
        [
            format!("{of}.name={name}"),
            format!("{http}.service=provider.{namespace}.svc.cluster.local"),
            format!("{http}.port={}", ports::HTTP),
            format!("{http}.timeout=2s"),
            format!("{http}.pathPrefix=/check"),
            format!("{http}.failOpen={fail_open}"),
        ]
    };
    PROVIDERS.iter().enumerate().flat_map(fields).collect()
}

fn authorization(name: &str, namespace: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": { "name": name, "namespace": namespace },
        "spec": spec,
    })
}

/// Status and body of the answer to a GET; 0 where there is none.
fn get(site: &Site, from: &Pod, to: &Pod, path: &str) -> Result<(u16, String)> {
    let message = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", to.name);
    let attempt = site.connect(from, (to.ip, ports::HTTP), &["--send", &message])?;
    let status = attempt.received.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    let body = attempt.received.split("\r\n\r\n").nth(1).unwrap_or_default();
    Ok((status, body.to_owned()))
}

fn provider(site: &mut Site) -> Result<()> {
    let (shop, authz) = (site.namespace(true)?, site.namespace(true)?);
    site.apply(&Plan::server("provider").on("a").deployment(&authz, 1))?;
    site.apply(&json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "provider", "namespace": authz },
        "spec": {
            "selector": { "app": "provider" },
            "ports": [{ "name": "http", "port": ports::HTTP, "targetPort": ports::HTTP }],
        },
    }))?;
    // Nobody but the pods under protection may ask it, and they by their identity.
    let rules = json!({ "rules": [{ "from": [{ "source": { "namespaces": [shop] } }] }] });
    site.apply(&authorization("who-asks", &authz, &rules))?;
    let plans = [Plan::client("web").on("a"), Plan::server("closed").on("b"), Plan::server("open").on("b")];
    let [web, closed, open] = site.pods(&shop, &plans)?;
    site.wait_ready(&authz)?;
    let values = values(&authz);
    site.upgrade(&values.iter().map(String::as_str).collect::<Vec<_>>())?;
    for (name, _) in PROVIDERS {
        let spec = json!({
            "selector": { "matchLabels": { "app": name } },
            "action": "CUSTOM",
            "provider": { "name": name },
            "rules": [{ "to": [{ "operation": { "paths": ["/denied", "/asked"] } }] }],
        });
        site.apply(&authorization(name, &shop, &spec))?;
    }
    let expect = |site: &Site, expected: [(&Pod, &str, u16); 5]| {
        eventually(6 * IN_FORCE, || {
            for (to, path, status) in expected {
                let (seen, body) = get(site, &web, to, path)?;
                ensure!(seen == status, "GET {path} of {}: {seen} {body:?}, not {status}", to.name);
            }
            Ok(())
        })
    };
    let asked = [
        (&closed, "/", 200),
        (&closed, "/asked", 200),
        (&closed, "/denied", 403),
        (&open, "/asked", 200),
        (&open, "/denied", 403),
    ];
    expect(site, asked).context("the provider is there")?;
    let (_, body) = get(site, &web, &closed, "/denied")?;
    ensure!(
        body.contains("denied by the provider"),
        "the client gets the provider's own answer, not {body:?}"
    );
    let scale = |site: &Site, replicas: &str| {
        site.cluster.api.kubectl(&["scale", "deployment/provider", "-n", &authz, replicas]).map(drop)
    };
    scale(site, "--replicas=0")?;
    eventually(12 * IN_FORCE, || {
        ensure!(site.pods_of(&authz, "provider")?.is_empty(), "the provider's pod is still there");
        Ok(())
    })?;
    let away = [
        (&closed, "/", 200),
        (&closed, "/asked", 403),
        (&closed, "/denied", 403),
        (&open, "/asked", 200),
        (&open, "/denied", 200),
    ];
    expect(site, away).context("the provider is away")?;
    let told = site.ambit("b", &["status"])?.told();
    ensure!(told.contains("closed"), "the status tells of the provider that cannot be asked: {told}");
    scale(site, "--replicas=1")?;
    site.wait_ready(&authz)?;
    expect(site, asked).context("the provider is back, in another pod")?;
    // One of its pods for another, without a word to anybody.
    site.cluster.api.kubectl(&["delete", "pod", "-n", &authz, "-l", "app=provider", "--wait=false"])?;
    expect(site, asked).context("another pod of the provider")?;
    site.upgrade(&[])
}
