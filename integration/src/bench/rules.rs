//! The rules that requests are judged by where a path judges them: 20 of methods and paths, of which the last is the one that lets in
//! what the loads ask for. The same for every program.

use serde_json::{Value, json};

use super::ports;
use crate::topology::MESHED;

const RULES: usize = 20;

/// Method and path of a rule, as AuthorizationPolicies write them: a prefix where it ends in `*`.
fn rules() -> impl Iterator<Item = (&'static [&'static str], Vec<String>)> {
    let others = (1..RULES).map(|at| (&["PATCH", "DELETE"][..], vec![format!("/v1/part{at}/*")]));
    others.chain([(
        &["GET", "POST", "PUT"][..],
        ["/", "/istio*", "/bytes/*", "/nowhere"].map(str::to_owned).to_vec(),
    )])
}

/// As an AuthorizationPolicy; what is not HTTP is let in.
pub(super) fn policy() -> String {
    let mut all = vec![json!({"to": [{"operation": {
        "notPorts": [ports::HTTP.to_string(), ports::GRPC.to_string()],
    }}]})];
    all.extend(
        rules().map(|(methods, paths)| json!({"to": [{"operation": {"methods": methods, "paths": paths}}]})),
    );
    json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "rules", "namespace": MESHED},
        "spec": {"action": "ALLOW", "rules": all},
    })
    .to_string()
}

/// As Envoy's filter, as Istio would make it of that.
pub(super) fn envoy_filter() -> Value {
    let or = |rules: Vec<Value>| json!({"or_rules": {"rules": rules}});
    let permission = |(methods, paths): (&[&str], Vec<String>)| {
        let methods = methods
            .iter()
            .map(|method| json!({"header": {"name": ":method", "string_match": {"exact": method}}}));
        let paths = paths.iter().map(|path| {
            let matched = match path.strip_suffix('*') {
                Some(prefix) => json!({"prefix": prefix}),
                None => json!({"exact": path}),
            };
            json!({"url_path": {"path": matched}})
        });
        json!({"and_rules": {"rules": [or(methods.collect()), or(paths.collect())]}})
    };
    let policies = rules().enumerate().map(|(at, rule)| {
        let policy = json!({"permissions": [permission(rule)], "principals": [{"any": true}]});
        (format!("rule{at}"), policy)
    });
    json!({
        "name": "envoy.filters.http.rbac",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
            "rules": {"action": "ALLOW", "policies": policies.collect::<serde_json::Map<_, _>>()},
        },
    })
}
