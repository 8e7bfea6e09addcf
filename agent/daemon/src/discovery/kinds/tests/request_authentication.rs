use std::sync::Arc;

use ambit_core::policy::{Doubt, Keys, RequestAuthentication, Target, TokenPlace};

use super::*;

fn request_authentication(spec: &str) -> String {
    peer_authentication(spec).replace("PeerAuthentication", "RequestAuthentication")
}

fn request(entry: Entry) -> Arc<RequestAuthentication> {
    match entry.stated {
        Stated::Good(Change::Policies(PolicyChange::RequestAuthentication(request)))
        | Stated::Strictest(Change::Policies(PolicyChange::RequestAuthentication(request))) => request,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_request_authentication_is_read_whole() {
    let text = request_authentication(
        r#"
  selector: {matchLabels: {app: web}}
  jwtRules:
  - issuer: https://issuer.example
    audiences: [a, b]
    jwksUri: https://issuer.example/keys
    fromHeaders: [{name: x-jwt, prefix: "Bearer "}, {name: x-raw}]
    fromParams: [token]
    fromCookies: [session]
    outputPayloadToHeader: x-payload
    outputClaimToHeaders: [{header: x-sub, claim: sub}]
    forwardOriginalToken: true
    timeout: 1m2.5s
    spaceDelimitedClaims: [roles]
  - {issuer: a, jwks_uri: http://a.example/k}
  - {issuer: b, jwks: '{"keys": [{"kty": "EC"}]}'}
  - issuer: c"#,
    );
    for version in ["v1", "v1beta1"] {
        let entry = read(&text.replace("istio.io/v1", &format!("istio.io/{version}")));
        assert!(!entry.idle && entry.unsupported.is_none() && entry.problem.is_none(), "{:?}", entry.problem);
        let request = request(entry);
        assert_eq!(request.target, Target::Pods([("app".to_owned(), "web".to_owned())].into()));
        let first = &request.rules[0];
        assert_eq!(
            (&*first.issuer, first.audiences.len(), first.forward),
            ("https://issuer.example", 2, true)
        );
        assert_eq!(
            (first.timeout_ms, first.keys.clone()),
            (62_500, Keys::Url("https://issuer.example/keys".into()))
        );
        let header =
            |name: &str, prefix: &str| TokenPlace::Header { name: name.into(), prefix: prefix.into() };
        let places = [
            header("x-jwt", "Bearer "),
            header("x-raw", ""),
            TokenPlace::Parameter("token".into()),
            TokenPlace::Cookie("session".into()),
        ];
        assert_eq!(first.places, places);
        let keys: Vec<_> = request.rules[1..].iter().map(|rule| rule.keys.clone()).collect();
        let inline = Keys::Inline(r#"{"keys": [{"kty": "EC"}]}"#.into());
        assert_eq!(keys, [Keys::Url("http://a.example/k".into()), inline, Keys::Discovered]);
        assert_eq!(request.rules[3].timeout_ms, 5_000);
    }
    for spec in
        ["null", "{}", "{jwtRules: []}", "{targetRefs: [{kind: Service, name: x}], jwtRules: [{issuer: a}]}"]
    {
        assert!(read(&request_authentication(spec)).stated.is_good(), "{spec}");
    }
}

#[test]
fn a_request_authentication_for_nobody_is_told() {
    let spec = "{targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: g}]}";
    let entry = read(&request_authentication(spec));
    assert!(entry.idle && entry.unsupported.as_ref().unwrap().contains("a Gateway is no target here"));
}

#[test]
fn bad_request_authentications() {
    let rule = |fields: &str| format!("{{jwtRules: [{{issuer: a, {fields}}}]}}");
    let at = "spec.jwtRules[0]";
    for (spec, expected) in [
        ("{jwtRule: []}".to_owned(), "spec.jwtRule: is no field".to_owned()),
        ("{selector: {matchLabels: {a: 'b*'}}}".into(), "spec.selector.matchLabels: \"a: b*\"".into()),
        ("{selector: {}, targetRef: {kind: Service, name: x}}".into(), "spec: has more than one of".into()),
        ("{jwtRules: [{}]}".into(), format!("{at}.issuer: is missing")),
        ("{jwtRules: [1]}".into(), format!("{at}: invalid type")),
        (rule("jwksUri: https://a, jwks: x"), format!("{at}: has more than one of jwksUri")),
        (rule("jwksUri: a.example/keys"), format!("{at}.jwksUri: \"a.example/keys\" is not the URL")),
        (rule("jwks_uri: 'https://'"), format!("{at}.jwks_uri: \"https://\" is not the URL")),
        (rule("jwks: '{}'"), format!("{at}.jwks: is not a JSON Web Key Set")),
        (rule("audiences: [a, '']"), format!("{at}.audiences[1]: is empty")),
        (rule("fromHeaders: [{prefix: a}]"), format!("{at}.fromHeaders[0].name: is missing")),
        (rule("fromParams: ['']"), format!("{at}.fromParams[0]: is empty")),
        (
            rule("outputClaimToHeaders: [{header: 'a b', claim: c}]"),
            format!("{at}.outputClaimToHeaders[0].header"),
        ),
        (
            rule("outputClaimToHeaders: [{claim: a}]"),
            format!("{at}.outputClaimToHeaders[0].header: is missing"),
        ),
        (
            rule("outputClaimToHeaders: [{header: Transfer-Encoding, claim: a}]"),
            format!(
                "{at}.outputClaimToHeaders[0].header: \"Transfer-Encoding\" says where a message goes or ends"
            ),
        ),
        (rule("outputPayloadToHeader: HOST"), format!("{at}.outputPayloadToHeader: \"HOST\" says where")),
        (rule("outputPayloadToHeader: content-length"), format!("{at}.outputPayloadToHeader: \"content-l")),
        (rule("outputPayloadToHeader: ':path'"), format!("{at}.outputPayloadToHeader: is not a name of")),
        (
            rule("outputClaimToHeaders: [{header: a}]"),
            format!("{at}.outputClaimToHeaders[0].claim: is missing"),
        ),
        (rule("forwardOriginalToken: 'yes'"), format!("{at}.forwardOriginalToken: invalid type")),
        (rule("timeout: 5"), format!("{at}.timeout: invalid type")),
        (rule("timeout: 5 seconds"), format!("{at}.timeout: \"5 seconds\" is not a duration")),
        (rule("timeout: 10us"), format!("{at}.timeout: \"10us\" is not a duration of at least 1ms")),
        (rule("jwtsUri: https://a"), format!("{at}.jwtsUri: is no field")),
    ] {
        let text = request_authentication(&spec);
        let complaint = complaint(&text);
        assert!(
            complaint.starts_with(&format!("RequestAuthentication shop/p: {expected}")),
            "{spec}: {complaint}"
        );
        assert!(complaint.ends_with("it takes no request for all that it may select"), "{complaint}");
        let request = request(read(&text));
        assert!(request.rules.is_empty() && request.doubt.is_some(), "{spec}");
    }
    assert_eq!(request(read(&request_authentication("{jwtRules: [{}]}"))).doubt, Some(Doubt::Content));
}
