//! Policies as custom resources: what the API takes, what it refuses, and what the agents say of them.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{
    Plan, Site, Test, installed,
    site::{IN_FORCE, SECOND, SYSTEM},
};
use crate::process::eventually;

pub(super) const TESTS: &[Test] = &[
    installed("policy::invalid_policies_are_refused", "CRD validation says no, and says why", invalid),
    installed("policy::valid_policies_are_taken", "every form, and both versions", valid),
    installed(
        "policy::the_root_namespace_speaks_for_all",
        "STRICT in ambit-system, an exception below",
        root,
    ),
    installed(
        "policy::agents_say_what_is_odd",
        "a condition on the policy's status says what DISABLE comes to",
        condition,
    ),
];

fn authentication(name: &str, namespace: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": { "name": name, "namespace": namespace },
        "spec": spec,
    })
}

fn invalid(site: &mut Site) -> Result<()> {
    let namespace = site.namespace(false)?;
    let selected = json!({ "matchLabels": { "app": "web" } });
    let strict = json!({ "mode": "STRICT" });
    let long = "x".repeat(64);
    for (what, spec) in [
        ("a mode that is none", json!({ "mtls": { "mode": "SOMETIMES" } })),
        ("a mode in lower case", json!({ "mtls": { "mode": "strict" } })),
        ("ports without a selector", json!({ "portLevelMtls": { "8080": strict } })),
        ("ports with an empty selector", json!({ "selector": {}, "portLevelMtls": { "8080": strict } })),
        ("no ports", json!({ "selector": selected, "portLevelMtls": {} })),
        ("port 0", json!({ "selector": selected, "portLevelMtls": { "0": strict } })),
        ("port 65536", json!({ "selector": selected, "portLevelMtls": { "65536": strict } })),
        ("a port by name", json!({ "selector": selected, "portLevelMtls": { "http": strict } })),
        ("a wildcard in a label", json!({ "selector": { "matchLabels": { "app": "we*" } } })),
        ("a wildcard in a label's key", json!({ "selector": { "matchLabels": { "a*": "web" } } })),
        ("an empty key", json!({ "selector": { "matchLabels": { "": "web" } } })),
        ("a label too long", json!({ "selector": { "matchLabels": { "app": long } } })),
    ] {
        site.must_refuse(what, &authentication("wrong", &namespace, &spec))?;
    }
    Ok(())
}

fn valid(site: &mut Site) -> Result<()> {
    let namespace = site.namespace(false)?;
    let selected = json!({ "matchLabels": { "app": "web" } });
    let specs = [
        json!({}),
        json!({ "mtls": {} }),
        json!({ "mtls": { "mode": "UNSET" } }),
        json!({ "mtls": { "mode": "DISABLE" } }),
        json!({ "mtls": { "mode": "PERMISSIVE" } }),
        json!({ "selector": { "matchLabels": {} }, "mtls": { "mode": "STRICT" } }),
        json!({ "selector": selected, "portLevelMtls": { "1": { "mode": "DISABLE" }, "65535": {} } }),
    ];
    for (index, spec) in specs.iter().enumerate() {
        let mut object = authentication(&format!("right-{index}"), &namespace, spec);
        site.apply(&object)?;
        object["apiVersion"] = json!("security.istio.io/v1beta1");
        object["metadata"]["name"] = json!(format!("right-beta-{index}"));
        site.apply(&object)?;
    }
    let read = site.cluster.api.json(&["get", "pa", "-n", &namespace])?;
    ensure!(read["items"].as_array().map(Vec::len) == Some(2 * specs.len()), "{read:#}");
    Ok(())
}

fn root(site: &mut Site) -> Result<()> {
    let (meshed, open, other) = (site.namespace(true)?, site.namespace(true)?, site.namespace(false)?);
    let [strict] = site.pods(&meshed, &[Plan::server("b").on("b")])?;
    let [permissive] = site.pods(&open, &[Plan::server("b").on("b")])?;
    let [c] = site.pods(&other, &[Plan::client("c").on("a")])?;
    eventually(5 * SECOND, || site.must_reach(&c, &strict))?;
    site.peer_authentication(&open, "PERMISSIVE")?;
    site.peer_authentication(SYSTEM, "STRICT")?;
    let held = eventually(IN_FORCE, || site.must_not_reach(&c, &strict))
        .and_then(|()| eventually(IN_FORCE, || site.must_reach(&c, &permissive)));
    site.cluster.api.kubectl(&["delete", "pa", "default", "-n", SYSTEM])?;
    held?;
    eventually(IN_FORCE, || site.must_reach(&c, &strict))
}

fn condition(site: &mut Site) -> Result<()> {
    let namespace = site.namespace(true)?;
    let odd = json!({ "mtls": { "mode": "DISABLE" } });
    site.apply(&authentication("odd", &namespace, &odd))?;
    // Agents wait for a random while, so that usually one of them writes.
    eventually(30 * SECOND, || {
        let policy = site.cluster.api.json(&["get", "pa", "odd", "-n", &namespace])?;
        let conditions = policy["status"]["conditions"].as_array();
        let told = conditions.into_iter().flatten().find(|c| c["type"] == "AmbitAccepted");
        let says = |c: &Value| c["message"].as_str().is_some_and(|text| text.contains("PERMISSIVE"));
        ensure!(told.is_some_and(says), "no condition says so: {:#}", policy["status"]);
        Ok(())
    })?;
    eventually(5 * SECOND, || {
        let of = "involvedObject.kind=PeerAuthentication,involvedObject.name=odd";
        let events = site.cluster.api.json(&["get", "events", "-n", &namespace, "--field-selector", of])?;
        let event = &events["items"][0];
        let note = event["message"].as_str().unwrap_or_default();
        ensure!(event["reason"] == "UnsupportedValue" && note.contains("PERMISSIVE"), "events: {events:#}");
        Ok(())
    })
}
