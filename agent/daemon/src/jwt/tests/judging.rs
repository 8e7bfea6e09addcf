//! Which tokens are good, by how many rules, and what a client hears of a bad one.

use ambit_core::policy::{ClaimHeader, TokenPlace};

use super::*;
use crate::jwt::tests::issuer::set;

pub(super) const FORM: &str =
    "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections";
const EXPIRED: &str = "Jwt is expired";
const EARLY: &str = "Jwt not yet valid";
const ISSUER: &str = "Jwt issuer is not configured";
const AUDIENCE: &str = "Audiences in Jwt are not allowed";
const SIGNATURE: &str = "Jwt verification fails";
const NO_KEY: &str = "Jwks doesn't have key to match kid or alg from Jwt";
const KID: &str = "Jwt header [kid] field is not a string";

fn in_header(name: &str) -> Vec<TokenPlace> {
    vec![TokenPlace::Header { name: name.into(), prefix: "".into() }]
}

#[test]
fn one_rule_and_several() {
    let key = Key::new("k", "ES256");
    let by = |issuer: &str, place: &str| JwtRule { places: in_header(place), ..rule_of(issuer, &key) };
    let (a, b) = (by("a", "x-a"), by("b", "x-b"));
    let (good_a, good_b) = (key.token(&claims("a")), key.token(&claims("b")));
    let bad = "x";
    for (fields, one, two) in [
        (vec![], "none", "none"),
        (vec![("x-a", &*good_a)], "ok", "ok"),
        (vec![("x-a", bad)], FORM, FORM),
        (vec![("x-b", &*good_b)], "none", "ok"),
        (vec![("x-b", bad)], "none", FORM),
        (vec![("x-a", &*good_a), ("x-b", bad)], "ok", "ok"),
        (vec![("x-a", bad), ("x-b", &*good_b)], FORM, "ok"),
        (vec![("x-a", bad), ("x-b", bad)], FORM, FORM),
        (vec![("x-a", &*good_a), ("x-b", &*good_b)], "ok", "ok"),
        (vec![("x-a", &*good_a), ("x-a", bad)], FORM, FORM),
        (vec![("x-a", &*good_b)], ISSUER, ISSUER),
    ] {
        assert_eq!(verdict(std::slice::from_ref(&a), &mut head(&fields)), one, "one rule, {fields:?}");
        assert_eq!(verdict(&[a.clone(), b.clone()], &mut head(&fields)), two, "two rules, {fields:?}");
    }
    assert_eq!(verdict(&[], &mut bearer(bad)), "none", "without rules tokens are ignored");
}

/// RequestAuthentications of one issuer may differ in their audiences: either does. What a token is refused for is what is wrong
/// with it, not that it is of somebody else.
#[test]
fn rules_of_one_issuer_and_of_others() {
    let key = Key::new("k", "ES256");
    let to = |audience: &str| JwtRule { audiences: vec![audience.into()], ..rule_of("a", &key) };
    let for_y = key.token(&with(claims("a"), "aud", json!("y")));
    assert_eq!(verdict(&[to("x"), to("y")], &mut bearer(&for_y)), "ok");
    assert_eq!(verdict(&[to("x"), to("z")], &mut bearer(&for_y)), AUDIENCE);
    let old = key.token(&with(claims("b"), "exp", json!(NOW - 100)));
    for rules in [["a", "b"], ["b", "c"]] {
        assert_eq!(verdict(&rules.map(|issuer| rule_of(issuer, &key)), &mut bearer(&old)), EXPIRED);
    }
}

#[test]
fn tokens_are_checked_in_order_and_the_first_fault_is_named() {
    let (key, other) = (Key::new("k", "ES256"), Key::new("k", "ES256"));
    let rule = JwtRule { audiences: vec!["https://shop.example/".into()], ..rule_of("a", &key) };
    let own = with(claims("a"), "aud", json!(["x", "shop.example"]));
    let of = |name: &str, value: Value| key.token(&with(own.clone(), name, value));
    let headed = |header: Value| key.sign(&header, &own);
    let encoded = |text: &str| data_encoding::BASE64URL_NOPAD.encode(text.as_bytes());
    let good = key.token(&own);
    let parts: Vec<&str> = good.split('.').collect();
    let (header, payload, signature) = (parts[0], parts[1], parts[2]);
    for (token, expected) in [
        (good.clone(), "ok"),
        ("x".into(), FORM),
        (format!("{header}.{payload}"), FORM),
        (format!("{good}.x"), FORM),
        (format!("é.{payload}.{signature}"), "Jwt header is an invalid JSON"),
        (format!("{header}=.{payload}.{signature}"), FORM),
        (format!("a.{payload}.{signature}"), "Jwt header is an invalid Base64url encoded"),
        (format!("{}.{payload}.{signature}", encoded("[]")), "Jwt header is an invalid JSON"),
        (format!("{}.{payload}.{signature}", encoded("{")), "Jwt header is an invalid JSON"),
        (headed(json!({})), "Jwt header [alg] field is required and must be a string"),
        (headed(json!({"alg": 1})), "Jwt header [alg] field is required and must be a string"),
        (headed(json!({"alg": "none"})), "Jwt header [alg] is not supported"),
        (headed(json!({"alg": "None"})), "Jwt header [alg] is not supported"),
        (headed(json!({"alg": "HS256"})), "Jwt header [alg] is not supported"),
        (headed(json!({"alg": "es256"})), "Jwt header [alg] is not supported"),
        (headed(json!({"alg": "ES256", "kid": 1})), KID),
        (
            headed(json!({"alg": "ES256", "crit": ["b64"], "b64": false})),
            "Jwt header [crit] is not supported",
        ),
        (format!("{header}.!.{signature}"), FORM),
        (format!("{header}.a.{signature}"), "Jwt payload is an invalid Base64url encoded"),
        (format!("{header}.{}.{signature}", encoded("1")), "Jwt payload is an invalid JSON"),
        (of("iss", json!(1)), "Jwt payload [iss] field is not a string"),
        (of("sub", json!(null)), "Jwt payload [sub] field is not a string"),
        (of("jti", json!({})), "Jwt payload [jti] field is not a string"),
        (of("exp", json!("1")), "Jwt payload [exp] field is not a positive integer"),
        (of("exp", json!(-1)), "Jwt payload [exp] field is not a positive integer"),
        (of("exp", json!(1e300)), "Jwt payload [exp] field is not a positive integer"),
        (of("nbf", json!(true)), "Jwt payload [nbf] field is not a positive integer"),
        (of("iat", json!([])), "Jwt payload [iat] field is not a positive integer"),
        (of("iat", json!(NOW + 9_999)), "ok"),
        (of("aud", json!(1)), "Jwt payload [aud] field is not a string or string list"),
        (of("aud", json!(["shop.example", 1])), "Jwt payload [aud] field is not a string or string list"),
        (of("iss", json!("A")), ISSUER),
        (of("iss", json!("a/")), ISSUER),
        (key.token(&json!({"aud": "shop.example"})), ISSUER),
        (of("exp", json!(NOW - 59)), "ok"),
        (of("exp", json!(NOW - 60)), "ok"),
        (of("exp", json!(NOW - 61)), EXPIRED),
        (of("exp", json!(0)), EXPIRED),
        (of("exp", json!(NOW as f64 - 60.5)), EXPIRED),
        (key.token(&json!({"iss": "a", "aud": "shop.example"})), "ok"),
        (of("nbf", json!(NOW + 60)), "ok"),
        (of("nbf", json!(NOW + 61)), EARLY),
        (key.token(&with(with(own.clone(), "nbf", json!(NOW + 61)), "exp", json!(1))), EARLY),
        (of("aud", json!("http://shop.example")), "ok"),
        (of("aud", json!("shop.example//")), AUDIENCE),
        (of("aud", json!("other")), AUDIENCE),
        (of("aud", json!([])), AUDIENCE),
        (key.token(&claims("a")), AUDIENCE),
        (other.token(&own), SIGNATURE),
        (other.token(&with(own.clone(), "aud", json!("x"))), AUDIENCE),
        (other.token(&with(own.clone(), "exp", json!(1))), EXPIRED),
        (other.token(&claims("b")), ISSUER),
        (format!("{header}.{payload}."), SIGNATURE),
        (key.sign(&json!({"alg": "ES384", "kid": "k"}), &own), SIGNATURE),
        (headed(json!({"alg": "ES256", "kid": "other"})), NO_KEY),
        (headed(json!({"alg": "ES256"})), "ok"),
        (headed(json!({"alg": "ES256", "kid": ""})), "ok"),
    ] {
        assert_eq!(verdict(std::slice::from_ref(&rule), &mut bearer(&token)), expected, "{token}");
    }
}

#[test]
fn every_asymmetric_algorithm_and_no_other() {
    for algorithm in
        ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
    {
        let (key, stranger) = (Key::new("k", algorithm), Key::new("k", algorithm));
        let rule = rule_of("a", &key);
        let rules = std::slice::from_ref(&rule);
        assert_eq!(verdict(rules, &mut bearer(&key.token(&claims("a")))), "ok", "{algorithm}");
        assert_eq!(verdict(rules, &mut bearer(&stranger.token(&claims("a")))), SIGNATURE, "{algorithm}");
        let lie = key.sign(&json!({"alg": "RS256"}), &claims("a"));
        let lied = if algorithm == "RS256" { "ok" } else { SIGNATURE };
        assert_eq!(verdict(rules, &mut bearer(&lie)), lied, "{algorithm} as RS256");
    }
}

#[test]
fn keys_are_chosen_by_name_and_algorithm() {
    let (key, other) = (Key::new("k", "ES256"), Key::new("o", "ES256"));
    let token = key.token(&claims("a"));
    let unnamed = key.sign(&json!({"alg": "ES256"}), &claims("a"));
    let changed = |key: &Key, name: &str, value: Value| {
        let mut public = key.public();
        public[name] = value;
        public
    };
    for (keys, named, without_name) in [
        (vec![other.public(), key.public()], "ok", "ok"),
        (vec![other.public()], NO_KEY, SIGNATURE),
        (vec![changed(&key, "kid", json!("else"))], NO_KEY, "ok"),
        (vec![changed(&key, "kid", json!(null))], "ok", "ok"),
        (vec![changed(&other, "kid", json!(null))], SIGNATURE, SIGNATURE),
        (vec![changed(&key, "alg", json!("ES256"))], "ok", "ok"),
        (vec![changed(&key, "alg", json!("ES384"))], NO_KEY, NO_KEY),
        (vec![other.public(), changed(&key, "use", json!("enc"))], NO_KEY, SIGNATURE),
        (vec![other.public(), changed(&key, "key_ops", json!(["sign"]))], NO_KEY, SIGNATURE),
        (vec![changed(&key, "key_ops", json!(["verify"])), json!({"kty": "oct", "k": "AA"})], "ok", "ok"),
        (vec![json!({"kty": "new"}), json!(1), key.public()], "ok", "ok"),
    ] {
        let text = json!({"keys": keys}).to_string();
        let rule = JwtRule { keys: Keys::Inline(text.clone().into()), ..rule("a") };
        let rules = std::slice::from_ref(&rule);
        assert_eq!(verdict(rules, &mut bearer(&token)), named, "{text}");
        assert_eq!(verdict(rules, &mut bearer(&unnamed)), without_name, "{text}");
    }
}

#[test]
fn sets_without_a_key_of_use_are_none() {
    let key = Key::new("k", "RS256");
    let weak = |bytes: usize| data_encoding::BASE64URL_NOPAD.encode(&vec![0xff; bytes]);
    let point = data_encoding::BASE64URL_NOPAD.encode(&[1; 32]);
    for bad in [
        "".to_owned(),
        "[]".into(),
        "{}".into(),
        r#"{"keys": {}}"#.into(),
        r#"{"keys": []}"#.into(),
        "<html>".into(),
        json!({"keys": [{"kty": "oct", "k": "AAAA"}]}).to_string(),
        json!({"keys": [{"kty": "RSA", "n": weak(128), "e": "AQAB"}]}).to_string(),
        json!({"keys": [{"kty": "EC", "crv": "P-256", "x": point, "y": point}]}).to_string(),
        json!({"keys": vec![key.public(); 101]}).to_string(),
    ] {
        assert!(KeySet::parse(bad.as_bytes()).is_err(), "{bad}");
        let rule = JwtRule { keys: Keys::Inline(bad.clone().into()), ..rule("a") };
        let refused = verdict(&[rule], &mut bearer(&key.token(&claims("a"))));
        assert_eq!(refused, "Jwks remote fetch is failed", "{bad}");
    }
    assert_eq!(KeySet::parse(set(&[&key]).as_bytes()).unwrap().len(), 1);
}

#[test]
fn a_client_hears_what_is_wrong_and_where() {
    let key = Key::new("k", "ES256");
    let rule = JwtRule { audiences: vec!["x".into()], ..rule_of("a", &key) };
    let rules = [rule];
    let other = with(claims("a"), "aud", json!("y"));
    let bad = judge(&rules, &mut bearer(&key.token(&other))).unwrap_err();
    assert_eq!((bad.status.as_u16(), bad.text, bad.grpc_status()), (403, AUDIENCE, 7));
    let mut asked = bearer("x");
    let bad = judge(&rules, &mut asked).unwrap_err();
    assert_eq!((bad.status.as_u16(), bad.reason, bad.grpc_status()), (401, "malformed", 16));
    let realm = r#"Bearer realm="http://shop.example/orders", error="invalid_token""#;
    assert_eq!(bad.challenge, realm, "without the query, in which a token may be");
    let fields = [("authorization", "Bearer x"), ("x-forwarded-proto", "https")];
    let long = format!("/{}\"\\", "a".repeat(400));
    let bad = judge(&rules, &mut head_at(&format!("http://h:80{}", &long[..401]), &fields)).unwrap_err();
    let told = bad.challenge.to_str().unwrap();
    assert!(told.starts_with("Bearer realm=\"https://h:80/aaa"), "{told}");
    assert_eq!(told.len(), r#"Bearer realm="", error="invalid_token""#.len() + 256);
}

#[test]
fn refusals_that_a_clock_may_be_to_blame_for_are_told_apart() {
    let key = Key::new("k", "ES256");
    let rules = [Arc::new(rule_of("a", &key))];
    let tokens = Tokens::default();
    for (name, value) in [
        ("exp", NOW - 61),
        ("exp", NOW - 360),
        ("exp", NOW - 361),
        ("nbf", NOW + 61),
        ("nbf", NOW + 360),
        ("nbf", NOW + 361),
    ] {
        let token = key.token(&with(claims("a"), name, json!(value)));
        assert!(tokens.judge_at(&rules, &mut bearer(&token), at(NOW)).is_err());
    }
    let metrics = tokens.0.telemetry.encode();
    for line in [
        "ambit_jwt_refusals_total{reason=\"expired\"} 3",
        "ambit_jwt_refusals_total{reason=\"not_yet_valid\"} 3",
        "ambit_jwt_clock_skews_total 4",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
}

#[test]
fn claims_come_with_their_lists_split() {
    let key = Key::new("k", "ES256");
    let rule = JwtRule { space_delimited: vec!["roles".into(), "n".into()], ..rule_of("a", &key) };
    let said = json!({
        "iss": "a", "sub": "ann", "scope": "read  write ", "permission": "", "roles": "x y", "other": "x y",
        "n": 1, "groups": ["a b", "c"], "in": {"scope": "x y"},
    });
    let claims = judge(&[rule], &mut bearer(&key.token(&said))).unwrap().unwrap();
    for (name, expected) in [
        ("scope", json!(["read", "write"])),
        ("permission", json!([])),
        ("roles", json!(["x", "y"])),
        ("other", json!("x y")),
        ("n", json!(1)),
        ("groups", json!(["a b", "c"])),
        ("in", json!({"scope": "x y"})),
        ("sub", json!("ann")),
    ] {
        assert_eq!(claims.get(name), Some(&expected), "{name}");
    }
}

/// A token that was verified once is good only as long as its time and its issuer's keys say so, and passes on what it says.
#[test]
fn a_recalled_token_is_held_to_its_time_and_keys() {
    let key = Key::new("k", "ES256");
    let output = ClaimHeader { header: "x-sub".into(), claim: "sub".into() };
    let rule = JwtRule { claim_headers: vec![output], ..rule_of("a", &key) };
    let rules = [Arc::new(rule)];
    let tokens = Tokens::default();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let _in_it = runtime.enter();
    tokens.follow(rules.iter().cloned());
    let token = key.token(&claims("a"));
    for (now, good) in [(NOW, true), (NOW + 1, true), (NOW + 660, true), (NOW + 661, false)] {
        let mut head = bearer(&token);
        assert_eq!(tokens.judge_at(&rules, &mut head, at(now)).is_ok(), good, "{now}");
        assert_eq!(head.headers.contains_key("x-sub"), good);
    }
    let keys = tokens.0.issuers.of(&rules[0]).keys().unwrap();
    assert!(tokens.0.verified.recall(&token, &rules[0], &keys).is_some());
    let rotated = [Arc::new(rule_of("a", &Key::new("k", "ES256")))];
    tokens.follow(rotated.iter().cloned());
    assert_eq!(tokens.judge_at(&rotated, &mut bearer(&token), at(NOW)).unwrap_err().text, SIGNATURE);
}

#[test]
#[ignore = "measures: cargo test -p ambit --lib jwt -- --ignored --nocapture"]
fn what_a_token_costs() {
    for algorithm in ["RS256", "PS256", "ES256", "ES384", "ES512", "EdDSA"] {
        let key = Key::new("k", algorithm);
        let rules = [Arc::new(rule_of("a", &key))];
        let tokens = Tokens::default();
        tokens.follow(rules.iter().cloned());
        let each = |tokens_of: &dyn Fn(usize) -> String| {
            let heads: Vec<Parts> = (0..500).map(|at| bearer(&tokens_of(at))).collect();
            let mut times: Vec<Duration> = heads
                .into_iter()
                .map(|mut head| {
                    let begin = std::time::Instant::now();
                    assert!(tokens.judge_at(&rules, &mut head, at(NOW)).is_ok());
                    begin.elapsed()
                })
                .collect();
            times.sort();
            (times[times.len() / 2], times[times.len() * 99 / 100])
        };
        let fresh = each(&|number| key.token(&with(claims("a"), "jti", json!(number.to_string()))));
        let same = key.token(&claims("a"));
        let recalled = each(&|_| same.clone());
        println!(
            "{algorithm}: verified p50 {:?} p99 {:?}, recalled p50 {:?} p99 {:?}",
            fresh.0, fresh.1, recalled.0, recalled.1
        );
    }
}
