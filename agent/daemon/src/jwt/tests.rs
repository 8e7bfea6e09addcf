mod cases;
mod fetching;
mod issuer;
mod judging;
mod places;

use ambit_core::policy::Keys;
use serde_json::{Value, json};

use super::*;
use issuer::{Key, set};

/// A set with one key, which signs nothing here.
pub(super) const SET: &str =
    r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

/// A moment, in seconds since 1970.
const NOW: u64 = 1_800_000_000;

/// A rule for that issuer's tokens, with nothing said but where its keys are: nowhere.
pub(super) fn rule(issuer: &str) -> JwtRule {
    JwtRule {
        issuer: issuer.into(),
        audiences: Vec::new(),
        keys: Keys::Inline("".into()),
        places: Vec::new(),
        payload_header: None,
        claim_headers: Vec::new(),
        forward: false,
        timeout_ms: 5_000,
        space_delimited: Vec::new(),
    }
}

/// A rule that takes tokens by that key.
fn rule_of(issuer: &str, key: &Key) -> JwtRule {
    JwtRule { keys: Keys::Inline(set(&[key]).into()), ..rule(issuer) }
}

fn head(fields: &[(&str, &str)]) -> Parts {
    head_at("/orders?x=1", fields)
}

fn head_at(uri: &str, fields: &[(&str, &str)]) -> Parts {
    let mut request = http::Request::builder().uri(uri).header("host", "shop.example");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn bearer(token: &str) -> Parts {
    head(&[("authorization", &format!("Bearer {token}"))])
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn judge(rules: &[JwtRule], head: &mut Parts) -> Result<Option<Arc<Claims>>, BadToken> {
    let rules: Vec<Arc<JwtRule>> = rules.iter().cloned().map(Arc::new).collect();
    Tokens::default().judge_at(&rules, head, at(NOW))
}

/// `ok`, `none`, or the refusal's text.
fn verdict(rules: &[JwtRule], head: &mut Parts) -> &'static str {
    match judge(rules, head) {
        Ok(Some(_)) => "ok",
        Ok(None) => "none",
        Err(bad) => bad.text,
    }
}

fn claims(issuer: &str) -> Value {
    json!({"iss": issuer, "sub": "ann", "exp": NOW + 600})
}

fn with(mut claims: Value, name: &str, value: Value) -> Value {
    claims[name] = value;
    claims
}
