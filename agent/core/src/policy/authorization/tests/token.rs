//! What is tested of tokens.

use super::*;

fn when(name: &'static str, values: &[&str]) -> WrittenRule {
    WrittenRule { when: vec![field(name, values)], ..anything() }
}

fn lets_user_in(rule: &WrittenRule, payload: Option<&str>) -> bool {
    let request = Sent::new("GET", "/");
    let request = payload.map_or(request.clone(), |payload| request.of_user(payload));
    lets_in(&set([policy("p", Action::Allow, std::slice::from_ref(rule))]), &by("a/b").sends(request))
}

#[test]
fn request_principals_are_issuer_and_subject() {
    let principals =
        |value: &str| from(&[Written { name: "requestPrincipals", values: vec![value.to_owned()] }]);
    let token = r#"{"iss": "https://i.example", "sub": "user@example"}"#;
    let slash = r#"{"iss": "https://i.example/", "sub": "user"}"#;
    for (value, payload, expected) in [
        ("*", token, true),
        ("https://i.example/user@example", token, true),
        ("https://i.example/user", token, false),
        ("https://i.example/*", token, true),
        ("https://i.example/us*", token, true),
        ("https://i.example/ab*", token, false),
        ("*/user@example", token, true),
        ("*.example/user@example", token, true),
        ("*.test/user@example", token, false),
        ("https:*", token, true),
        ("*@example", token, true),
        ("*@test", token, false),
        ("https://i.example/*", slash, false),
        ("https://i.example//*", slash, true),
        ("user", token, false),
    ] {
        // A beginning without a slash is written without any.
        assert_eq!(lets_user_in(&principals(value), Some(payload)), expected, "{value} on {payload}");
    }
    let scheme = r#"{"iss": "issuer", "sub": "user"}"#;
    assert!(
        lets_user_in(&principals("iss*"), Some(scheme)) && !lets_user_in(&principals("us*"), Some(scheme))
    );
}

#[test]
fn case_35_a_request_principal_needs_a_token_with_a_subject() {
    let any = from(&[field("requestPrincipals", &["*"])]);
    assert!(!lets_user_in(&any, None));
    assert!(!lets_user_in(&any, Some(r#"{"iss": "a"}"#)));
    assert!(!lets_user_in(&any, Some(r#"{"iss": "a", "sub": ""}"#)));
    assert!(!lets_user_in(&any, Some(r#"{"iss": "a", "sub": 7}"#)));
    assert!(lets_user_in(&any, Some(r#"{"iss": "a", "sub": "b"}"#)));
    let nobody = from(&[field("notRequestPrincipals", &["*"])]);
    assert!(lets_user_in(&nobody, None) && !lets_user_in(&nobody, Some(r#"{"iss": "a", "sub": "b"}"#)));
}

#[test]
fn audiences_and_presenter() {
    for (payload, expected) in [
        (r#"{"aud": "shop"}"#, true),
        (r#"{"aud": ["x", "shop"]}"#, true),
        (r#"{"aud": ["x"]}"#, false),
        ("{}", false),
    ] {
        assert_eq!(
            lets_user_in(&when("request.auth.audiences", &["shop"]), Some(payload)),
            expected,
            "{payload}"
        );
    }
    assert!(lets_user_in(&when("request.auth.presenter", &["cli*"]), Some(r#"{"azp": "client"}"#)));
    assert!(!lets_user_in(&when("request.auth.presenter", &["*"]), Some("{}")));
    assert!(!lets_user_in(&when("request.auth.audiences", &["*"]), None));
}

#[test]
fn case_41_claims_are_texts_or_lists_of_them() {
    let payload = r#"{
        "admin": true, "level": 3, "groups": ["x", "y"], "realm": {"roles": ["r", 1], "name": "n"}, "foo.com/x": "v",
        "scope": "read write", "a[b": "odd", "text": "a b", "none": null, "empty": ""
    }"#;
    for (key, value, expected) in [
        ("[admin]", "true", false),
        ("[admin]", "*", false),
        ("[level]", "3", false),
        ("[groups]", "y", true),
        ("[groups]", "z", false),
        ("[groups]", "*", true),
        ("[realm][roles]", "r", true),
        ("[realm][roles]", "1", false),
        ("[realm][name]", "n", true),
        ("[realm]", "*", false),
        ("[realm.name]", "n", false),
        ("[realm][name][more]", "n", false),
        ("[foo.com/x]", "v", true),
        ("[scope]", "write", true),
        ("[scope]", "read write", false),
        ("[text]", "a", false),
        ("[text]", "a b", true),
        ("[a[b]", "odd", true),
        ("[none]", "*", false),
        ("[empty]", "*", false),
        ("[missing]", "*", false),
    ] {
        let rule = WrittenRule { when: vec![claim(key, value)], ..anything() };
        assert_eq!(lets_user_in(&rule, Some(payload)), expected, "{key} {value}");
        assert!(!lets_user_in(&rule, None), "{key} without a token");
    }
}

/// A condition on a claim, by a name that lives as long as the test.
fn claim(key: &str, value: &str) -> Written {
    Written { name: format!("request.auth.claims{key}").leak(), values: vec![value.to_owned()] }
}

#[test]
fn claims_divided_by_spaces_may_be_named() {
    let serde_json::Value::Object(payload) = serde_json::json!({"roles": "a  b", "other": "a b"}) else {
        panic!()
    };
    let claims = policy::Claims::new(payload).with_lists(&["roles", "missing"]);
    assert_eq!(claims.get("roles").unwrap(), &serde_json::json!(["a", "b"]));
    assert_eq!(claims.get("other").unwrap(), "a b");
}
