//! A key set and a token as strangers write them, judged: for those who look for texts that break it.

use std::sync::Arc;

use ambit_core::policy::{Claims, JwtRule, Keys};
use http::{HeaderValue, Request, header, request::Parts};

use super::{BadToken, Tokens, payload_of};

/// A header that only a token may fill.
const OUTPUT: &str = "x-payload";

/// Judges the token in each place that it may stand in, by keys that stand in the rule, twice, and holds the outcome to what is
/// promised of it.
pub(crate) fn try_token(keys: &str, token: &[u8]) {
    let rule = JwtRule {
        issuer: "".into(),
        audiences: Vec::new(),
        keys: Keys::Inline(keys.into()),
        places: Vec::new(),
        payload_header: Some(OUTPUT.into()),
        claim_headers: Vec::new(),
        forward: false,
        timeout_ms: 1,
        space_delimited: Vec::new(),
    };
    let rules = [Arc::new(rule)];
    let tokens = Tokens::default();
    // Nothing is fetched for keys that stand in the rule.
    tokens.follow(rules.iter().cloned());
    for mut head in heads(token) {
        let mut again = head.clone();
        let first = tokens.judge(&rules, &mut head);
        let second = tokens.judge(&rules, &mut again);
        assert_eq!(told(&first), told(&second), "what is recalled is what was found");
        assert_eq!((&head.headers, &head.uri), (&again.headers, &again.uri));
        let output = head.headers.get(OUTPUT).map(HeaderValue::as_bytes);
        match first {
            Ok(Some(_)) => {
                assert!(!head.headers.contains_key(header::AUTHORIZATION) && head.uri.query().is_none());
                let token = String::from_utf8_lossy(token);
                let said = output.expect("what the token says");
                assert!(token.contains(&format!(".{}.", String::from_utf8_lossy(said))), "{token}");
                assert_eq!(payload_of(&format!("a.{}.b", String::from_utf8_lossy(said))).as_bytes(), said);
            }
            Ok(None) | Err(_) => assert_eq!(output, None, "no client says what a token says"),
        }
    }
}

fn told(outcome: &Result<Option<Arc<Claims>>, BadToken>) -> Result<Option<Claims>, &'static str> {
    match outcome {
        Ok(claims) => Ok(claims.as_deref().cloned()),
        Err(bad) => Err(bad.text),
    }
}

fn heads(token: &[u8]) -> Vec<Parts> {
    let spoofed = || Request::builder().header(OUTPUT, "spoofed");
    let mut value = b"Bearer ".to_vec();
    value.extend_from_slice(token);
    let mut uri = b"/?access_token=".to_vec();
    uri.extend_from_slice(token);
    let in_header = HeaderValue::from_bytes(&value)
        .ok()
        .and_then(|value| spoofed().header(header::AUTHORIZATION, value).body(()).ok());
    let in_query = spoofed().uri(&*uri).body(()).ok();
    [in_header, in_query].into_iter().flatten().map(|request| request.into_parts().0).collect()
}
