//! Where tokens are found, and what of a request goes on.

use std::borrow::Cow;

use ambit_core::policy::{ClaimHeader, TokenPlace};

use super::*;
use crate::jwt::places::tokens;

fn header(name: &str, prefix: &str) -> TokenPlace {
    TokenPlace::Header { name: name.into(), prefix: prefix.into() }
}

fn places(places: Vec<TokenPlace>) -> JwtRule {
    JwtRule { places, ..rule("a") }
}

#[test]
fn tokens_are_found_where_the_rule_says() {
    let parameter = |name: &str| TokenPlace::Parameter(name.into());
    let cookie = |name: &str| TokenPlace::Cookie(name.into());
    let default = places(vec![]);
    let of = |rule: &JwtRule, uri: &str, fields: &[(&str, &str)]| -> Vec<String> {
        tokens(rule, &head_at(uri, fields)).into_iter().map(Cow::into_owned).collect()
    };
    for (rule, uri, fields, expected) in [
        (&default, "/", vec![], vec![]),
        (&default, "/", vec![("authorization", "Bearer a.b.c")], vec!["a.b.c"]),
        (&default, "/", vec![("authorization", "Bearer   a.b.c")], vec!["a.b.c"]),
        (&default, "/", vec![("authorization", "Digest x, Bearer a.b.c, y")], vec!["a.b.c"]),
        (&default, "/", vec![("authorization", "bearer a.b.c")], vec![]),
        (&default, "/", vec![("authorization", "Bearer")], vec![]),
        (&default, "/", vec![("authorization", "Bearer !")], vec![""]),
        (&default, "/", vec![("authorization", "Basic YTpi")], vec![]),
        (&default, "/", vec![("authorization", "Bearer a"), ("authorization", "Bearer b")], vec!["a", "b"]),
        (&default, "/?access_token=q&x=1", vec![("authorization", "Bearer h")], vec!["h", "q"]),
        (&default, "/?x=1&access%5Ftoken=a%2Eb%2Ec&access_token=z", vec![], vec!["a.b.c"]),
        (&default, "/?access_token", vec![], vec![""]),
        (&default, "/?access_token=%zz%4", vec![], vec!["%zz%4"]),
        (&places(vec![header("x-jwt", "")]), "/?access_token=q", vec![("authorization", "Bearer h")], vec![]),
        (&places(vec![header("X-Jwt", "")]), "/", vec![("x-jwt", "a"), ("x-jwt", "b c")], vec!["a", "b c"]),
        (&places(vec![header("x-jwt", "T=")]), "/", vec![("x-jwt", "S=a T=b,c")], vec!["b"]),
        (&places(vec![parameter("a"), parameter("b")]), "/?b=2&a=1&b=3", vec![], vec!["1", "2"]),
        (
            &places(vec![cookie("s")]),
            "/",
            vec![("cookie", "r=0; s=\"a.b.c\"; s=z"), ("cookie", "s=y")],
            vec!["a.b.c"],
        ),
        (&places(vec![cookie("s")]), "/", vec![("cookie", "r=0"), ("cookie", "s=y=")], vec!["y="]),
        (
            &places(vec![cookie("s"), header("h", ""), parameter("p")]),
            "/?p=2",
            vec![("cookie", "s=3"), ("h", "1")],
            vec!["1", "2", "3"],
        ),
    ] {
        assert_eq!(of(rule, uri, &fields), expected, "{uri} {fields:?} {:?}", rule.places);
    }
}

#[test]
fn a_good_token_goes_unless_it_is_to_go_on() {
    let key = Key::new("k", "ES256");
    let token = key.token(&claims("a"));
    let all = vec![
        header("x-jwt", "T "),
        TokenPlace::Parameter("token".into()),
        TokenPlace::Cookie("session".into()),
    ];
    let rule = JwtRule { places: all, ..rule_of("a", &key) };
    let (value, cookie) = (format!("T {token}"), format!("session={token}"));
    let fields = [("x-jwt", "other"), ("x-jwt", &*value), ("cookie", &*cookie), ("x-other", "1")];
    let uri = format!("/a%2Fb?a=1&token={token}&b=%20&token=2");
    let mut taken = head_at(&uri, &fields);
    assert_eq!(verdict(std::slice::from_ref(&rule), &mut taken), "ok");
    assert!(!taken.headers.contains_key("x-jwt"));
    assert_eq!(taken.uri, "/a%2Fb?a=1&b=%20");
    assert_eq!(taken.headers["cookie"], cookie);
    assert_eq!(taken.headers["x-other"], "1");
    let mut kept = head_at(&uri, &fields);
    assert_eq!(verdict(&[JwtRule { forward: true, ..rule }], &mut kept), "ok");
    assert_eq!((kept.headers.get_all("x-jwt").iter().count(), kept.uri), (2, uri.parse().unwrap()));
    for (uri, expected) in
        [("https://h.example:1/p?access_token=", "https://h.example:1/p"), ("/?access_token=", "/")]
    {
        let mut head = head_at(&format!("{uri}{token}"), &[]);
        assert_eq!(verdict(&[rule_of("a", &key)], &mut head), "ok");
        assert_eq!(head.uri, expected);
    }
    let mut head = bearer(&token);
    assert_eq!(verdict(&[rule_of("a", &key)], &mut head), "ok");
    assert!(!head.headers.contains_key("authorization"));
}

#[test]
fn what_a_token_says_goes_on_in_headers_that_no_client_sets() {
    let key = Key::new("k", "ES256");
    let output = |header: &str, claim: &str| ClaimHeader { header: header.into(), claim: claim.into() };
    let rule = JwtRule {
        payload_header: Some("x-payload".into()),
        claim_headers: vec![
            output("x-sub", "sub"),
            output("x-n", "n"),
            output("x-true", "true"),
            output("x-nested", "a.b"),
            output("x-url", "https://x.example/y"),
            output("x-scope", "scope"),
            output("x-float", "float"),
            output("x-list", "list"),
            output("x-object", "a"),
            output("x-none", "none"),
            output("x-bad", "bad"),
            output("host", "sub"),
        ],
        ..rule_of("a", &key)
    };
    let said = json!({
        "iss": "a", "sub": "ann", "n": -7, "true": true, "a": {"b": "deep"}, "https://x.example/y": "url",
        "scope": "r w", "float": 1.5, "list": ["x"], "bad": "a\r\nb: c",
    });
    let spoofed: Vec<(&str, &str)> =
        ["x-payload", "X-Sub", "x-none", "x-list", "x-bad", "x-n"].map(|name| (name, "spoofed")).into();
    let token = key.token(&said);
    let value = format!("Bearer {token}");
    let mut good = head(&[&spoofed[..], &[("authorization", &*value)]].concat());
    assert_eq!(verdict(std::slice::from_ref(&rule), &mut good), "ok");
    let got = |head: &Parts, name: &str| {
        head.headers.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    for (name, expected) in [
        ("x-payload", token.split('.').nth(1)),
        ("x-sub", Some("ann")),
        ("x-n", Some("-7")),
        ("x-true", Some("true")),
        ("x-nested", Some("deep")),
        ("x-url", Some("url")),
        ("x-scope", Some("r w")),
        ("x-float", None),
        ("x-list", None),
        ("x-object", None),
        ("x-none", None),
        ("x-bad", None),
        ("host", Some("shop.example")),
    ] {
        assert_eq!(got(&good, name), expected.into_iter().collect::<Vec<_>>(), "{name}");
    }
    let preflight = [("origin", "https://o"), ("access-control-request-method", "POST")];
    for (fields, expected) in
        [(vec![], "none"), (vec![("authorization", "Bearer x")], judging::FORM), (preflight.to_vec(), "none")]
    {
        let mut head = head(&[&spoofed[..], &fields].concat());
        if fields.len() == 2 {
            head.method = Method::OPTIONS;
        }
        assert_eq!(verdict(std::slice::from_ref(&rule), &mut head), expected);
        for (name, _) in &spoofed {
            assert!(got(&head, name).is_empty(), "{name} {fields:?}");
        }
    }
}

#[test]
fn a_preflight_needs_no_token() {
    let key = Key::new("k", "ES256");
    let old = format!("Bearer {}", key.token(&with(claims("a"), "exp", json!(1))));
    let (origin, wanted) = (("origin", "https://o"), ("access-control-request-method", "POST"));
    let rule = rule_of("a", &key);
    for (method, fields, passes) in [
        (Method::OPTIONS, vec![origin, wanted], true),
        (Method::OPTIONS, vec![origin], false),
        (Method::OPTIONS, vec![wanted], false),
        (Method::OPTIONS, vec![("origin", ""), wanted], false),
        (Method::GET, vec![origin, wanted], false),
    ] {
        let mut head = head(&[&fields[..], &[("authorization", &*old)]].concat());
        head.method = method;
        let expected = if passes { "none" } else { "Jwt is expired" };
        assert_eq!(verdict(std::slice::from_ref(&rule), &mut head), expected, "{fields:?}");
        assert!(head.headers.contains_key("authorization"));
    }
}
