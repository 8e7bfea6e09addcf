//! What goes on to the application of a token that was found good, what never does, and what a client is told instead.

use ambit_core::policy::{JwtRule, may_be_output};
use http::{
    HeaderMap, HeaderName, HeaderValue, header,
    request::Parts,
    uri::{Authority, Scheme},
};
use serde_json::{Map, Value};

use super::{places, verified::Good};

/// No longer address is told to a client.
const MAX_REALM: usize = 256;
/// Takes out the headers that `rule` has set from tokens: what a client says in them is not what a token says.
pub(super) fn strip(rule: &JwtRule, headers: &mut HeaderMap) {
    let claims = rule.claim_headers.iter().map(|output| &output.header);
    for name in rule.payload_header.iter().chain(claims).filter_map(|name| output(name)) {
        headers.remove(name);
    }
}

/// Takes the token out unless it is to go on, and says in headers what it says.
pub(super) fn pass_on(rule: &JwtRule, good: &Good, payload: &str, head: &mut Parts) {
    if !rule.forward {
        places::remove(rule, head);
    }
    if let Some(name) = rule.payload_header.as_deref().and_then(output)
        && let Ok(value) = HeaderValue::from_str(payload)
    {
        head.headers.insert(name, value);
    }
    for (name, value) in good.outputs.iter() {
        head.headers.insert(name.clone(), value.clone());
    }
}

/// The headers that claims go on in, in the order of the rule.
pub(super) fn outputs(rule: &JwtRule, claims: &Map<String, Value>) -> Vec<(HeaderName, HeaderValue)> {
    let made = |output_rule: &ambit_core::policy::ClaimHeader| {
        let text = match nested(claims, &output_rule.claim)? {
            Value::String(text) => text.clone(),
            Value::Bool(truth) => truth.to_string(),
            Value::Number(number) if !number.is_f64() => number.to_string(),
            _ => return None,
        };
        Some((output(&output_rule.header)?, HeaderValue::from_bytes(text.as_bytes()).ok()?))
    };
    rule.claim_headers.iter().filter_map(made).collect()
}

/// The value of `www-authenticate`. The query is left out: a token may stand in it.
pub(super) fn challenge(head: &Parts) -> HeaderValue {
    let forwarded = head.headers.get("x-forwarded-proto").and_then(|value| value.to_str().ok());
    let scheme = forwarded.filter(|scheme| matches!(*scheme, "http" | "https"));
    let scheme = scheme.or_else(|| head.uri.scheme().map(Scheme::as_str)).unwrap_or("http");
    let host = head.headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let host = head.uri.authority().map(Authority::as_str).or(host).unwrap_or_default();
    let mut realm: String = format!("{scheme}://{host}{}", head.uri.path()).chars().take(MAX_REALM).collect();
    realm.retain(|c| c.is_ascii_graphic() && !matches!(c, '"' | '\\'));
    let text = format!("Bearer realm=\"{realm}\", error=\"invalid_token\"");
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("Bearer error=\"invalid_token\""))
}

/// The header of a rule's output, unless it could not be set without harm to the message.
fn output(name: &str) -> Option<HeaderName> {
    HeaderName::from_bytes(name.as_bytes()).ok().filter(|name| may_be_output(name.as_str()))
}

/// A claim by its name, in which dots lead into claims within claims.
fn nested<'m>(claims: &'m Map<String, Value>, name: &str) -> Option<&'m Value> {
    let mut steps = name.split('.');
    let first = claims.get(steps.next()?);
    let found = steps.fold(first, |value, step| value?.as_object()?.get(step));
    // Names with dots in them are common, such as those that are URLs.
    found.or_else(|| claims.get(name))
}
