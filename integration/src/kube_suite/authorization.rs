//! AuthorizationPolicy as a custom resource: what the API takes, what it refuses, what holds, and what is said of it.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    Plan, Site, Test, installed,
    site::{IN_FORCE, SECOND},
};
use crate::process::eventually;

pub(super) const TESTS: &[Test] = &[
    installed("authorization::invalid_policies_are_refused", "CRD validation says no, and says why", invalid),
    installed("authorization::valid_policies_are_taken", "every form, and both versions", valid),
    installed(
        "authorization::who_may_come_is_enforced",
        "nobody; a namespace; the pods of a service; and everybody again",
        enforced,
    ),
    installed(
        "authorization::agents_say_what_is_not_enforced",
        "a condition: what is not supported, and what has no effect",
        condition,
    ),
];

fn policy(name: &str, namespace: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": { "name": name, "namespace": namespace },
        "spec": spec,
    })
}

fn from(source: &Value) -> Value {
    json!({ "rules": [{ "from": [{ "source": source }] }] })
}

fn invalid(site: &mut Site) -> Result<()> {
    let namespace = site.namespace(false)?;
    let service = json!({ "kind": "Service", "name": "web" });
    let elsewhere = json!({ "kind": "Service", "name": "web", "namespace": "other" });
    for (what, spec) in [
        ("an action that is none", json!({ "action": "PERMIT", "rules": [{}] })),
        ("DENY without rules", json!({ "action": "DENY" })),
        ("CUSTOM without a provider", json!({ "action": "CUSTOM", "rules": [{}] })),
        ("a provider of ALLOW", json!({ "provider": { "name": "x" }, "rules": [{}] })),
        ("a wildcard in a label", json!({ "selector": { "matchLabels": { "app": "we*" } } })),
        ("selector and target", json!({ "selector": {}, "targetRefs": [service] })),
        ("a target elsewhere", json!({ "targetRefs": [elsewhere] })),
        ("no sources", json!({ "rules": [{ "from": [] }] })),
        ("a source of nothing", from(&json!({}))),
        ("an empty principal", from(&json!({ "principals": [""] }))),
        ("a port that is a number", json!({ "rules": [{ "to": [{ "operation": { "ports": [80] } }] }] })),
        ("a condition without a key", json!({ "rules": [{ "when": [{ "values": ["x"] }] }] })),
        ("a condition without values", json!({ "rules": [{ "when": [{ "key": "source.ip" }] }] })),
        ("an unknown key", json!({ "rules": [{ "when": [{ "key": "request.body", "values": ["x"] }] }] })),
        ("an account beside a namespace", from(&json!({ "serviceAccounts": ["a"], "namespaces": ["b"] }))),
        ("a target of no such kind", json!({ "targetRefs": [{ "kind": "Pod", "name": "web" }] })),
        ("a misspelt field", from(&json!({ "principal": ["x"] }))),
    ] {
        site.must_refuse(what, &policy("wrong", &namespace, &spec))?;
    }
    Ok(())
}

fn valid(site: &mut Site) -> Result<()> {
    let namespace = site.namespace(false)?;
    let all = json!({
        "selector": { "matchLabels": { "app": "web" } },
        "action": "DENY",
        "rules": [{
            "from": [
                { "source": { "principals": ["*/sa/x"], "notNamespaces": ["a*"], "trustDomains": ["cluster.local"] } },
                { "source": { "serviceAccounts": ["a/b"], "ipBlocks": ["10.0.0.0/8", "::1"], "notRemoteIpBlocks": ["1.2.3.4"] } },
            ],
            "to": [{ "operation": { "ports": ["80"], "notMethods": ["GET"], "paths": ["/{*}/x"], "hosts": ["*.example"] } }],
            "when": [
                { "key": "request.headers[x]", "notValues": ["y"] },
                { "key": "source.ip", "values": ["10.0.0.1"], "notValues": ["10.0.0.2"] },
            ],
        }],
    });
    let custom = json!({ "action": "CUSTOM", "provider": { "name": "opa" }, "rules": [{}] });
    let specs = [
        json!({}),
        json!({ "rules": [{}] }),
        json!({ "action": "DENY", "rules": [] }),
        json!({ "action": "AUDIT", "rules": [{}] }),
        json!({ "targetRefs": [{ "group": "", "kind": "Service", "name": "web" }] }),
        json!({ "targetRef": { "group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "web" } }),
        custom,
        all,
    ];
    for (index, spec) in specs.iter().enumerate() {
        let mut object = policy(&format!("right-{index}"), &namespace, spec);
        site.apply(&object).with_context(|| spec.to_string())?;
        object["apiVersion"] = json!("security.istio.io/v1beta1");
        object["metadata"]["name"] = json!(format!("right-beta-{index}"));
        site.apply(&object)?;
    }
    let read = site.cluster.api.json(&["get", "authorizationpolicies", "-n", &namespace])?;
    ensure!(read["items"].as_array().map(Vec::len) == Some(2 * specs.len()), "{read:#}");
    Ok(())
}

fn enforced(site: &mut Site) -> Result<()> {
    let (meshed, friends) = (site.namespace(true)?, site.namespace(true)?);
    let [a, b] = site.pods(&meshed, &[Plan::client("a").on("a"), Plan::server("b").on("b")])?;
    let [friend] = site.pods(&friends, &[Plan::client("friend").on("a")])?;
    let reached = |site: &Site, own: bool, other: bool| {
        for (client, expected) in [(&a, own), (&friend, other)] {
            if expected {
                site.must_reach(client, &b)?;
            } else {
                site.must_not_reach(client, &b)?;
            }
        }
        Ok(())
    };
    let in_force = |site: &Site, own, other| eventually(5 * IN_FORCE, || reached(site, own, other));
    in_force(site, true, true)?;
    site.apply(&policy("p", &meshed, &json!({})))?;
    in_force(site, false, false).context("an ALLOW without rules")?;
    site.apply(&policy("p", &meshed, &from(&json!({ "namespaces": [friends] }))))?;
    in_force(site, false, true).context("a namespace")?;
    let port = json!({ "port": 80, "targetPort": 8080 });
    site.apply(&json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "behind", "namespace": meshed },
        "spec": { "selector": { "app": "b" }, "ports": [port] },
    }))?;
    let mut deny = from(&json!({ "namespaces": [friends] }));
    deny["action"] = json!("DENY");
    deny["targetRefs"] = json!([{ "group": "", "kind": "Service", "name": "behind" }]);
    site.apply(&policy("p", &meshed, &deny))?;
    in_force(site, true, false).context("the pods of a service")?;
    site.cluster.api.kubectl(&["delete", "authorizationpolicy", "p", "-n", &meshed])?;
    in_force(site, true, true)
}

fn condition(site: &mut Site) -> Result<()> {
    let namespace = site.namespace(true)?;
    let filter =
        json!({ "rules": [{ "when": [{ "key": "experimental.envoy.filters.x", "values": ["y"] }] }] });
    let gateway =
        json!({ "targetRefs": [{ "group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "g" }] });
    for (name, spec, status, words) in [
        ("filter", filter, "True", "spec.rules[0].when[0].values"),
        ("gateway", gateway, "False", "a Gateway is no target here"),
    ] {
        site.apply(&policy(name, &namespace, &spec))?;
        // Agents wait for a random while, so that usually one of them writes.
        eventually(30 * SECOND, || {
            let read = site.cluster.api.json(&["get", "authorizationpolicy", name, "-n", &namespace])?;
            let conditions = read["status"]["conditions"].as_array();
            let told = conditions.into_iter().flatten().find(|c| c["type"] == "AmbitAccepted");
            let says = |c: &Value| {
                c["message"].as_str().is_some_and(|text| text.contains(words))
                    && (c["status"] == status)
                    && c["reason"] == "UnsupportedValue"
            };
            ensure!(told.is_some_and(says), "no condition says so: {:#}", read["status"]);
            Ok(())
        })?;
    }
    Ok(())
}
