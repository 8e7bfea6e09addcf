//! RequestAuthentication as a custom resource: what the API takes, what it refuses, and what holds.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{Site, Test, installed};

pub(super) const TESTS: &[Test] = &[
    installed("tokens::invalid_issuers_are_refused", "CRD validation says no, and says why", invalid),
    installed("tokens::valid_issuers_are_taken", "every form, and both versions", valid),
];

fn authentication(name: &str, namespace: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "RequestAuthentication",
        "metadata": { "name": name, "namespace": namespace },
        "spec": spec,
    })
}

fn with_rule(rule: &Value) -> Value {
    json!({ "jwtRules": [rule] })
}

fn invalid(site: &mut Site) -> Result<()> {
    let namespace = site.namespace(false)?;
    let service = json!({ "kind": "Service", "name": "web" });
    let header =
        |name: &str| json!({ "issuer": "i", "outputClaimToHeaders": [{ "header": name, "claim": "sub" }] });
    for (what, spec) in [
        ("selector and target", json!({ "selector": {}, "targetRefs": [service] })),
        ("neither issuer nor keys", with_rule(&json!({ "audiences": ["a"] }))),
        ("an empty issuer without keys", with_rule(&json!({ "issuer": "" }))),
        (
            "two ways to keys",
            with_rule(&json!({ "issuer": "i", "jwks": "{}", "jwksUri": "https://i.example" })),
        ),
        ("keys by ftp", with_rule(&json!({ "issuer": "i", "jwksUri": "ftp://i.example" }))),
        ("no time at all", with_rule(&json!({ "issuer": "i", "timeout": "0s" }))),
        ("no duration", with_rule(&json!({ "issuer": "i", "timeout": "soon" }))),
        ("a header that is none", with_rule(&header("x y"))),
        ("a header without a name", with_rule(&json!({ "issuer": "i", "fromHeaders": [{ "prefix": "p" }] }))),
        ("an empty audience", with_rule(&json!({ "issuer": "i", "audiences": [""] }))),
        ("a misspelt field", with_rule(&json!({ "issuer": "i", "audience": ["a"] }))),
    ] {
        site.must_refuse(what, &authentication("wrong", &namespace, &spec))?;
    }
    Ok(())
}

fn valid(site: &mut Site) -> Result<()> {
    let namespace = site.namespace(false)?;
    let all = json!({
        "issuer": "https://login.example",
        "audiences": ["shop"],
        "jwksUri": "https://login.example/keys",
        "fromHeaders": [{ "name": "x-token", "prefix": "Token " }, { "name": "x-bare" }],
        "fromParams": ["token"],
        "fromCookies": ["session"],
        "outputPayloadToHeader": "x-payload",
        "outputClaimToHeaders": [{ "header": "x-user", "claim": "realm.user" }],
        "forwardOriginalToken": true,
        "timeout": "1m30s",
        "spaceDelimitedClaims": ["groups"],
    });
    let inline = json!({ "issuer": "i", "jwks": "{\"keys\": [{\"kty\": \"oct\", \"k\": \"AA\"}]}" });
    let specs = [
        json!({}),
        json!({ "jwtRules": [] }),
        json!({ "selector": { "matchLabels": { "app": "web" } }, "jwtRules": [all, inline] }),
        with_rule(&json!({ "issuer": "https://discovered.example" })),
        with_rule(&json!({ "jwks_uri": "http://keys.example" })),
        json!({ "targetRefs": [{ "group": "", "kind": "Service", "name": "web" }] }),
    ];
    for (index, spec) in specs.iter().enumerate() {
        let mut object = authentication(&format!("right-{index}"), &namespace, spec);
        site.apply(&object).with_context(|| spec.to_string())?;
        object["apiVersion"] = json!("security.istio.io/v1beta1");
        object["metadata"]["name"] = json!(format!("right-beta-{index}"));
        site.apply(&object)?;
    }
    let read = site.cluster.api.json(&["get", "requestauthentications", "-n", &namespace])?;
    ensure!(read["items"].as_array().map(Vec::len) == Some(2 * specs.len()), "{read:#}");
    Ok(())
}
