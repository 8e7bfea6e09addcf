//! The policy guide (`docs/policy-guide.md`) on a cluster: a namespace with its deny-all, and what opens it again.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize as _;
use serde_json::{Value, json};

use super::{
    Plan, Pod, Site, Test, installed,
    site::{IN_FORCE, SYSTEM},
};
use crate::{load::ports, process::eventually};

pub(super) const TESTS: &[Test] = &[installed(
    "guide::holds_on_a_cluster",
    "deny-all, a service account, methods and paths, and a compromised service, as they stand in the docs",
    guide,
)];

/// A policy as the guide has it, for this namespace.
fn object(name: &str, namespace: &str) -> Result<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/policy-guide.md");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    for block in text.split("```yaml\n").skip(1) {
        let block = block.split("```").next().unwrap_or_default();
        for document in serde_yaml_ng::Deserializer::from_str(block) {
            let mut object = Value::deserialize(document)?;
            if object["metadata"]["name"] == name {
                if object["metadata"]["namespace"] == "shop" {
                    object["metadata"]["namespace"] = json!(namespace);
                }
                return Ok(object);
            }
        }
    }
    anyhow::bail!("the guide has no {name}")
}

/// What a request to port 8080 is answered with; 0 where the connection is refused or reset.
fn status(site: &Site, from: &Pod, to: &Pod, method: &str, path: &str) -> Result<u16> {
    let message = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", to.name);
    let attempt = site.connect(from, (to.ip, ports::HTTP), &["--send", &message])?;
    Ok(attempt.received.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0))
}

fn guide(site: &mut Site) -> Result<()> {
    let namespace = site.namespace(true)?;
    for account in ["web", "cart", "stock"] {
        site.cluster.api.kubectl(&["create", "serviceaccount", account, "-n", &namespace])?;
    }
    let plans = [
        Plan::client("web").account("web").on("a"),
        Plan::server("cart").account("cart").on("b"),
        Plan::server("stock").account("stock").on("a"),
    ];
    let [web, cart, stock] = site.pods(&namespace, &plans)?;
    let expect = |site: &Site, requests: &[(&Pod, &Pod, &str, &str, u16)]| {
        eventually(5 * IN_FORCE, || {
            for (from, to, method, path, expected) in requests {
                let seen = status(site, from, to, method, path)?;
                ensure!(
                    seen == *expected,
                    "{method} {path} from {} to {}: {seen}, not {expected}",
                    from.name,
                    to.name
                );
            }
            Ok(())
        })
    };
    expect(site, &[(&web, &cart, "GET", "/", 200), (&cart, &stock, "GET", "/items", 200)])?;
    site.apply(&object("deny-all", &namespace)?)?;
    expect(site, &[(&web, &cart, "GET", "/", 0), (&cart, &stock, "GET", "/items", 0)])?;
    for name in ["cart-takes-web", "monitoring-scrapes", "stock-takes-cart"] {
        site.apply(&object(name, &namespace)?)?;
    }
    expect(
        site,
        &[
            (&web, &cart, "GET", "/", 200),
            (&stock, &cart, "GET", "/", 0),
            (&cart, &stock, "GET", "/items/7", 200),
            (&cart, &stock, "POST", "/items/7/reserve", 200),
            (&cart, &stock, "DELETE", "/items/7", 403),
            (&cart, &stock, "GET", "/items/../admin", 403),
            (&web, &stock, "GET", "/items/7", 0),
        ],
    )?;
    let mut quarantine = object("quarantine", &namespace)?;
    quarantine["metadata"]["namespace"] = json!(SYSTEM);
    quarantine["metadata"]["name"] = json!(format!("quarantine-{namespace}"));
    quarantine["spec"]["rules"][0]["from"][0]["source"]["serviceAccounts"] =
        json!([format!("{namespace}/cart")]);
    site.apply(&quarantine)?;
    let shut = expect(site, &[(&cart, &stock, "GET", "/items/7", 0), (&web, &cart, "GET", "/", 200)]);
    let name = format!("quarantine-{namespace}");
    site.cluster.api.kubectl(&["delete", "authorizationpolicy", &name, "-n", SYSTEM])?;
    shut
}
