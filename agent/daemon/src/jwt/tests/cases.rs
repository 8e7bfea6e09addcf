//! The numbered edge cases of tokens; those that take a policy as well are with the requests of `proxy`.

use ambit_core::policy::TokenPlace;

use super::{judging::FORM, *};

/// The verdict, and the status of what the client gets.
fn answer(rule: &JwtRule, mut head: Parts) -> (&'static str, u16) {
    match judge(std::slice::from_ref(rule), &mut head) {
        Ok(Some(_)) => ("ok", 200),
        Ok(None) => ("none", 200),
        Err(bad) => (bad.text, bad.status.as_u16()),
    }
}

#[test]
fn case_34_a_token_is_not_demanded_and_a_bad_one_is_refused() {
    let key = Key::new("k", "ES256");
    let rule = rule_of("a", &key);
    for (head, expected) in [
        (head(&[]), ("none", 200)),
        (bearer("x"), (FORM, 401)),
        (head(&[("authorization", "Basic YTpi")]), ("none", 200)),
        (bearer(&key.token(&claims("a"))), ("ok", 200)),
    ] {
        assert_eq!(answer(&rule, head), expected);
    }
}

#[test]
fn case_36_a_token_for_others_is_refused_with_403() {
    let key = Key::new("k", "ES256");
    let rule = JwtRule { audiences: vec!["x".into()], ..rule_of("a", &key) };
    let token = |audience: &str| bearer(&key.token(&with(claims("a"), "aud", json!(audience))));
    assert_eq!(answer(&rule, token("y")), ("Audiences in Jwt are not allowed", 403));
    assert_eq!(answer(&rule, token("x")), ("ok", 200));
}

#[test]
fn case_37_a_minute_after_its_end_a_token_is_still_taken() {
    let key = Key::new("k", "ES256");
    for (ago, expected) in [(59, ("ok", 200)), (61, ("Jwt is expired", 401))] {
        let token = key.token(&with(claims("a"), "exp", json!(NOW - ago)));
        assert_eq!(answer(&rule_of("a", &key), bearer(&token)), expected, "{ago} s");
    }
}

#[test]
fn case_38_places_that_are_named_are_the_only_ones() {
    let key = Key::new("k", "ES256");
    let place = TokenPlace::Header { name: "x-jwt".into(), prefix: "".into() };
    let rule = JwtRule { places: vec![place], ..rule_of("a", &key) };
    let token = key.token(&claims("a"));
    assert_eq!(answer(&rule, bearer(&token)), ("none", 200));
    assert_eq!(answer(&rule, bearer("x")), ("none", 200));
    assert_eq!(answer(&rule, head(&[("x-jwt", &token)])), ("ok", 200));
}

#[test]
fn case_39_a_good_token_does_not_excuse_a_bad_one() {
    let key = Key::new("k", "ES256");
    let places = ["a", "b"].map(|name| TokenPlace::Parameter(name.into()));
    let rule = JwtRule { places: places.into(), ..rule_of("a", &key) };
    let token = key.token(&claims("a"));
    for (query, expected) in [
        (format!("a={token}"), ("ok", 200)),
        (format!("a={token}&b=x"), (FORM, 401)),
        (format!("a={token}&b={token}"), ("ok", 200)),
    ] {
        assert_eq!(answer(&rule, head_at(&format!("/?{query}"), &[])), expected, "{query}");
    }
}

#[test]
fn case_40_what_a_token_says_is_never_a_clients_own_word() {
    let key = Key::new("k", "ES256");
    let rule = JwtRule { payload_header: Some("x-p".into()), ..rule_of("a", &key) };
    let mut head = head(&[("x-p", "own"), ("x-q", "own")]);
    assert_eq!(verdict(&[rule], &mut head), "none");
    assert_eq!((head.headers.get("x-p"), head.headers["x-q"].as_bytes()), (None, &b"own"[..]));
}
