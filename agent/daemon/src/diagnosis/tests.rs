use std::path::PathBuf;

use ambit_core::discovery::Settings;

use super::*;
use crate::discovery::{Reading, read_manifests};

const MANIFESTS: &str = "\
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {ambit.dev/dataplane: enabled}}}
---
{apiVersion: apps/v1, kind: Deployment, metadata: {name: web, namespace: shop}, spec: {template: {metadata: {labels: {app: web}}, \
spec: {serviceAccountName: web}}}}
---
{apiVersion: apps/v1, kind: Deployment, metadata: {name: cart, namespace: shop}, spec: {template: {metadata: {labels: {app: cart}}, \
spec: {containers: [{name: c, ports: [{containerPort: 8080}]}]}}}}
---
{apiVersion: v1, kind: Service, metadata: {name: cart, namespace: shop}, spec: {selector: {app: cart}, ports: [{name: http, port: 80, targetPort: 8080}]}}
---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: only-web, namespace: shop}, spec: {selector: {matchLabels: {app: cart}}, \
rules: [{from: [{source: {serviceAccounts: [web]}}]}]}}
---
{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: p, namespace: shop}, spec: {mtls: {mode: STRICT}}}
---
{apiVersion: security.istio.io/v1, kind: RequestAuthentication, metadata: {name: r, namespace: shop}, spec: {jwtRules: [{issuer: a}]}}
";

fn reading(text: &str) -> (tempfile::TempDir, PathBuf, Reading) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("all.yaml");
    std::fs::write(&path, text).unwrap();
    let reading = read_manifests(std::slice::from_ref(&path), false, &Settings::default()).unwrap();
    (dir, path, reading)
}

#[test]
fn manifests_answer_as_an_agent_does() {
    let (_dir, _, reading) = reading(MANIFESTS);
    let ask = |source: &str, destination: &str| {
        let request = proto::ExplainRequest {
            source: source.to_owned(),
            destination: destination.to_owned(),
            ..proto::ExplainRequest::default()
        };
        explain(&reading.world, &request).unwrap().cases.remove(0)
    };
    let web = ask("deploy/web", "svc/cart:80");
    assert_eq!((&*web.verdict, &*web.policy, &*web.rule), ("allow", "shop/only-web", "rules[0]"));
    assert_eq!((&*web.service, web.port, web.mutual_tls), ("shop/cart:80", 8080, true));
    assert_eq!(web.policies[0].rule_text, "from serviceAccounts shop/web");
    let cart = ask("deploy/cart", "cart:80");
    assert_eq!((&*cart.verdict, &*cart.reason), ("deny", "policy_denied"));
    let verdict = &cart.policies[0];
    assert_eq!((&*verdict.wants, &*verdict.has, verdict.failing), ("shop/web", "shop/default", 1));
    let outside = ask("192.0.2.1", "cart:80");
    assert_eq!((&*outside.verdict, &*outside.reason), ("deny", "mtls_required"));
    let mtls = outside.mtls.unwrap();
    assert_eq!((&*mtls.mode, &*mtls.scope, &*mtls.policy), ("STRICT", "namespace", "shop/p"));

    let group =
        check(&reading.world, &proto::CheckRequest { pod: "shop/cart".to_owned(), ..Default::default() });
    let group = group.unwrap().groups.remove(0);
    assert_eq!(group.policies[0].scope, "selector");
    assert_eq!(group.request_authentications, ["shop/r"]);
}

#[test]
fn a_question_that_cannot_be_answered_says_why() {
    let (_dir, _, reading) = reading(MANIFESTS);
    let ask = |source: &str, destination: &str, source_ip: &str| {
        let request = proto::ExplainRequest {
            source: source.to_owned(),
            destination: destination.to_owned(),
            source_ip: source_ip.to_owned(),
            ..proto::ExplainRequest::default()
        };
        explain(&reading.world, &request).unwrap_err()
    };
    assert!(matches!(ask("nobody", "cart:80", ""), Unable::NotFound(_)));
    assert!(matches!(ask("a b", "cart:80", ""), Unable::Misasked(_)));
    assert!(matches!(ask("web", "cart:0", ""), Unable::Misasked(_)));
    assert!(matches!(ask("web", "cart:80", "x"), Unable::Misasked(_)));
    let unread = World::default();
    assert!(matches!(analyze(&unread, &BTreeMap::new()), Err(Unable::NotReady)));
}

#[test]
fn findings_say_where_they_stand_and_what_cannot_be_read_is_one() {
    let text =
        MANIFESTS.replace("serviceAccounts: [web]", "serviceAccounts: [wbe]").replace("STRICT", "STRIKT");
    let (_dir, path, reading) = reading(&text);
    let answer = analyze(&reading.world, &reading.places).unwrap();
    let told: Vec<_> =
        answer.findings.iter().map(|found| (&*found.level, &*found.code, &*found.object)).collect();
    assert_eq!(
        told,
        [
            ("error", "unreadable", "PeerAuthentication shop/p"),
            ("warning", "unknown-principal", "AuthorizationPolicy shop/only-web"),
            ("info", "token-not-demanded", "RequestAuthentication shop/r"),
        ]
    );
    assert!(answer.findings.iter().all(|found| found.place == path.display().to_string()));
    assert_eq!((answer.policies, answer.pods), (4, 2));
}

#[test]
fn a_request_is_explained_with_its_token() {
    const POLICIES: &str = "\
---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: admins, namespace: shop}, spec: {selector: {matchLabels: {app: stock}}, \
rules: [{from: [{source: {requestPrincipals: [a/*]}}], to: [{operation: {methods: [GET], paths: [/admin]}}], \
when: [{key: 'request.auth.claims[roles]', values: [admin]}]}]}}
---
{apiVersion: apps/v1, kind: Deployment, metadata: {name: stock, namespace: shop}, spec: {template: {metadata: {labels: {app: stock}}, \
spec: {containers: [{name: c, ports: [{containerPort: 8080}]}]}}}}
---
{apiVersion: v1, kind: Service, metadata: {name: stock, namespace: shop}, spec: {selector: {app: stock}, ports: [{name: http, port: 80, targetPort: 8080}]}}
";
    let (_dir, _, reading) = reading(&(MANIFESTS.to_owned() + POLICIES));
    let ask = |request: Option<(&str, &str)>| {
        let request = proto::ExplainRequest {
            source: "deploy/web".to_owned(),
            destination: "svc/stock:80".to_owned(),
            request: request.map(|(path, token)| proto::HttpRequest {
                method: "GET".to_owned(),
                path: path.to_owned(),
                token: token.to_owned(),
                ..proto::HttpRequest::default()
            }),
            ..proto::ExplainRequest::default()
        };
        explain(&reading.world, &request).unwrap().cases.remove(0)
    };
    let case = ask(None);
    assert_eq!((&*case.verdict, case.per_request), ("per_request", true), "{}", case.text);
    let protocol = case.protocol.unwrap();
    assert_eq!(
        (&*protocol.name, &*protocol.origin),
        ("http", "the name or number of port 80 of Service shop/stock")
    );
    let admin = r#"{"iss": "a", "sub": "joe", "roles": ["user", "admin"]}"#;
    let case = ask(Some(("/x/..//admin", admin)));
    assert_eq!(
        (&*case.verdict, &*case.reason),
        ("deny", "policy_denied"),
        "slashes are not merged by default"
    );
    let case = ask(Some(("/x/../admin", admin)));
    let judged = case.request.unwrap();
    assert_eq!((&*case.verdict, &*judged.path, &*judged.principal), ("allow", "/admin", "a/joe"));
    assert!(judged.token.starts_with("good, unverified"), "{}", judged.token);
    let case = ask(Some(("/admin", r#"{"iss": "a", "sub": "joe", "roles": "user"}"#)));
    let verdict = &case.policies[0];
    assert_eq!((&*case.verdict, &*verdict.rule, verdict.failing), ("deny", "rules[0]", 1));
    let case = ask(Some(("/admin", r#"{"iss": "b", "sub": "joe"}"#)));
    assert_eq!((&*case.verdict, &*case.reason), ("deny", "token_refused"));
    assert!(case.text.contains("401") && case.text.contains("Jwt issuer is not configured"), "{}", case.text);
}

/// Everything that the pages for those who write policies show is taken as it is.
#[test]
fn what_the_docs_show_is_read_without_a_word() {
    let docs = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    for (page, least) in [("policy-guide.md", 8), ("policy.md", 2)] {
        let text = std::fs::read_to_string(docs.join(page)).unwrap();
        let blocks = text.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap_or_default());
        let yaml = blocks.collect::<Vec<_>>().join("---\n");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("page.yaml");
        std::fs::write(&path, yaml).unwrap();
        let settings = Settings { providers: vec!["opa".into()], ..Settings::default() };
        let world = read_manifests(&[path], false, &settings).unwrap().world;
        assert!(world.problems.is_empty(), "{page}: {:#?}", world.problems);
        let policies = world.policies.len() + world.policies.request_authentications().count();
        assert!(policies >= least, "{page} has {policies} policies");
    }
}
