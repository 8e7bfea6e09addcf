//! RequestAuthentications, held to what Istio's own schema and validation demand (`ValidateRequestAuthentication` in
//! `pkg/config/validation` of istio/istio).

use std::sync::Arc;

use ambit_core::{
    discovery::Settings,
    model::{Labels, ObjectName},
    policy::{self, Doubt, JwtRule, Keys, RequestAuthentication, Target, TokenPlace},
};
use serde_json::Value;

use super::{
    Change, FieldError, Valid,
    authorization_policy::{Selector, TargetRef, aim, readable_target},
    fields::{cut, known, known_target, present},
    root::not_mesh_wide,
    wire,
};

/// Issuers in an object, as in Istio's schema.
const MAX_RULES: usize = 4_096;
/// Claims divided by spaces that a rule names, as there.
const MAX_CLAIMS: usize = 64;
/// How long keys may take to be fetched where nothing is said, in milliseconds.
const TIMEOUT_MS: u64 = 5_000;

wire::objects! {
    Object {
        spec: Option<Spec>,
    }

    Spec {
        selector: Option<Selector>,
        target_ref: Option<TargetRef>,
        target_refs: Option<Vec<TargetRef>>,
        jwt_rules: Option<Vec<Value>>,
    }

    Jwt {
        issuer: Option<String>,
        audiences: Option<Vec<String>>,
        jwks_uri: Option<String>,
        #[serde(rename = "jwks_uri")]
        jwks_uri_by_proto: Option<String>,
        jwks: Option<String>,
        from_headers: Option<Vec<FromHeader>>,
        from_params: Option<Vec<String>>,
        from_cookies: Option<Vec<String>>,
        output_payload_to_header: Option<String>,
        output_claim_to_headers: Option<Vec<ClaimHeader>>,
        forward_original_token: Option<bool>,
        timeout: Option<String>,
        space_delimited_claims: Option<Vec<String>>,
    }

    FromHeader {
        name: Option<String>,
        prefix: Option<String>,
    }

    ClaimHeader {
        header: Option<String>,
        claim: Option<String>,
    }
}

const SPEC_FIELDS: [&str; 4] = ["selector", "targetRef", "targetRefs", "jwtRules"];
const RULE_FIELDS: [&str; 13] = [
    "issuer",
    "audiences",
    "jwksUri",
    "jwks_uri",
    "jwks",
    "fromHeaders",
    "fromParams",
    "fromCookies",
    "outputPayloadToHeader",
    "outputClaimToHeaders",
    "forwardOriginalToken",
    "timeout",
    "spaceDelimitedClaims",
];

pub(super) fn read(name: ObjectName, object: &Value, settings: &Settings) -> Result<Valid, FieldError> {
    known(object.get("spec"), "spec", &SPEC_FIELDS)?;
    known_target(object.get("spec"))?;
    let Object { spec } = wire::typed(object)?;
    let Spec { selector, target_ref, target_refs, jwt_rules } = spec.unwrap_or_default();
    let aim = aim(selector, target_ref, target_refs)?;
    let written = jwt_rules.unwrap_or_default();
    if written.len() > MAX_RULES {
        return Err(FieldError::new("spec.jwtRules", format_args!("has more than {MAX_RULES} rules")));
    }
    let rules = written.iter().enumerate();
    let rules = rules.map(|(at, rule)| jwt_rule(rule, &format!("spec.jwtRules[{at}]")).map(Arc::new));
    let rules = rules.collect::<Result<_, _>>()?;
    let whole = matches!(&aim.target, Some(Target::Pods(selector)) if selector.is_empty());
    let wide = whole.then(|| not_mesh_wide(&name, settings)).flatten();
    let effects: Vec<String> = [wide, aim.unsupported].into_iter().flatten().collect();
    let unsupported = (!effects.is_empty()).then(|| effects.join("; "));
    let idle = aim.target == Some(Target::Services(Vec::new()));
    let target = aim.target.unwrap_or(Target::Pods(Labels::new()));
    let request = RequestAuthentication { name, target, rules, doubt: None };
    let told = unsupported.as_deref().map(|text| FieldError::new("", text));
    let change = Change::Policies(policy::Change::RequestAuthentication(Arc::new(request)));
    Ok(Valid { change, notice: told.or(aim.notice), unsupported, idle })
}

/// What can be told of one that cannot be read: whom it is for, and that it takes no request.
pub(super) fn unreadable(name: ObjectName, object: &Value, error: &FieldError, _: &Settings) -> Change {
    let spec = object.get("spec");
    let whole = error.field.as_deref() != Some("apiVersion")
        && known(spec, "spec", &SPEC_FIELDS).and_then(|()| known_target(spec)).is_ok();
    let part = |field: &str| spec.and_then(|spec| spec.get(field)).filter(|value| !value.is_null());
    let target =
        whole.then(|| readable_target([part("selector"), part("targetRef"), part("targetRefs")])).flatten();
    let doubt = Some(if target.is_some() { Doubt::Content } else { Doubt::Scope });
    let target = target.unwrap_or(Target::Pods(Labels::new()));
    let request = RequestAuthentication { name, target, rules: Vec::new(), doubt };
    Change::Policies(policy::Change::RequestAuthentication(Arc::new(request)))
}

fn jwt_rule(rule: &Value, path: &str) -> Result<JwtRule, FieldError> {
    known(Some(rule), path, &RULE_FIELDS)?;
    let within = |field: &str| format!("{path}.{field}");
    let read: Jwt = wire::typed(rule).map_err(|error| {
        let field = error.field.map_or_else(|| path.to_owned(), |field| within(&field));
        FieldError::new(field, error.message)
    })?;
    let issuer = present(read.issuer).unwrap_or_default();
    let keys = keys(present(read.jwks_uri), present(read.jwks_uri_by_proto), present(read.jwks), path)?;
    if issuer.is_empty() && keys == Keys::Discovered {
        return Err(FieldError::new(
            within("issuer"),
            "is missing: without it there must be a jwksUri or jwks",
        ));
    }
    let mut places = Vec::new();
    for (at, header) in read.from_headers.into_iter().flatten().enumerate() {
        let field = format!("{path}.fromHeaders[{at}].name");
        let name = present(header.name).ok_or_else(|| FieldError::new(&*field, "is missing"))?;
        places
            .push(TokenPlace::Header { name: name.into(), prefix: header.prefix.unwrap_or_default().into() });
    }
    places.extend(texts(read.from_params, &within("fromParams"))?.into_iter().map(TokenPlace::Parameter));
    places.extend(texts(read.from_cookies, &within("fromCookies"))?.into_iter().map(TokenPlace::Cookie));
    let space_delimited = texts(read.space_delimited_claims, &within("spaceDelimitedClaims"))?;
    if space_delimited.len() > MAX_CLAIMS {
        let message = format!("has more than {MAX_CLAIMS} claims");
        return Err(FieldError::new(within("spaceDelimitedClaims"), message));
    }
    Ok(JwtRule {
        issuer: issuer.into(),
        audiences: texts(read.audiences, &within("audiences"))?,
        keys,
        places,
        payload_header: output(present(read.output_payload_to_header), &within("outputPayloadToHeader"))?,
        claim_headers: claim_headers(read.output_claim_to_headers, path)?,
        forward: read.forward_original_token.unwrap_or(false),
        timeout_ms: timeout(present(read.timeout), &within("timeout"))?,
        space_delimited,
    })
}

fn keys(
    url: Option<String>,
    by_proto: Option<String>,
    inline: Option<String>,
    path: &str,
) -> Result<Keys, FieldError> {
    if [&url, &by_proto, &inline].into_iter().flatten().count() > 1 {
        return Err(FieldError::new(path, "has more than one of jwksUri, jwks_uri and jwks"));
    }
    let field = if by_proto.is_some() { "jwks_uri" } else { "jwksUri" };
    if let Some(url) = url.or(by_proto) {
        let host = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
        let host = host.and_then(|rest| rest.split(['/', '?', '#']).next());
        if host.is_none_or(str::is_empty) || url.contains(char::is_whitespace) {
            let message = format!("{:?} is not the URL of an http or https server", cut(&url));
            return Err(FieldError::new(format!("{path}.{field}"), message));
        }
        return Ok(Keys::Url(url.into()));
    }
    let Some(inline) = inline else { return Ok(Keys::Discovered) };
    let set: Option<Value> = serde_json::from_str(&inline).ok();
    match set.as_ref().and_then(|set| set.get("keys")).and_then(Value::as_array) {
        Some(keys) if !keys.is_empty() => Ok(Keys::Inline(inline.into())),
        _ => Err(FieldError::new(format!("{path}.jwks"), "is not a JSON Web Key Set with keys")),
    }
}

fn claim_headers(
    written: Option<Vec<ClaimHeader>>,
    path: &str,
) -> Result<Vec<policy::ClaimHeader>, FieldError> {
    let read = |(at, ClaimHeader { header, claim }): (usize, ClaimHeader)| {
        let path = format!("{path}.outputClaimToHeaders[{at}]");
        let missing = |field: &str| FieldError::new(format!("{path}.{field}"), "is missing");
        let header = output(present(header), &format!("{path}.header"))?.ok_or_else(|| missing("header"))?;
        let claim = present(claim).ok_or_else(|| missing("claim"))?;
        Ok(policy::ClaimHeader { header, claim: claim.into() })
    };
    written.into_iter().flatten().enumerate().map(read).collect()
}

/// The name of a header that is set from tokens.
fn output(name: Option<String>, path: &str) -> Result<Option<Box<str>>, FieldError> {
    let Some(name) = name else { return Ok(None) };
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if !name.chars().all(legal) {
        return Err(FieldError::new(path, "is not a name of letters, digits, '-' and '_'"));
    }
    if !policy::may_be_output(&name) {
        let message =
            format_args!("{name:?} says where a message goes or ends: use another, such as x-jwt-{name}");
        return Err(FieldError::new(path, message));
    }
    Ok(Some(name.into()))
}

/// A list of texts, none of them empty.
fn texts(list: Option<Vec<String>>, path: &str) -> Result<Vec<Box<str>>, FieldError> {
    let list = list.unwrap_or_default();
    match list.iter().position(String::is_empty) {
        Some(at) => Err(FieldError::new(format!("{path}[{at}]"), "is empty")),
        None => Ok(list.into_iter().map(String::into_boxed_str).collect()),
    }
}

/// A duration as Go writes it, in milliseconds.
fn timeout(text: Option<String>, path: &str) -> Result<u64, FieldError> {
    let Some(text) = text else { return Ok(TIMEOUT_MS) };
    match milliseconds(&text) {
        Some(ms) if ms >= 1.0 => Ok(ms as u64),
        _ => Err(FieldError::new(
            path,
            format_args!("{:?} is not a duration of at least 1ms, such as 5s", cut(&text)),
        )),
    }
}

pub(super) fn milliseconds(text: &str) -> Option<f64> {
    const UNITS: [(&str, f64); 6] =
        [("ms", 1.0), ("us", 0.001), ("ns", 0.000_001), ("h", 3_600_000.0), ("m", 60_000.0), ("s", 1_000.0)];
    let (mut rest, mut sum) = (text, 0.0);
    loop {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        let (unit, scale) = UNITS.iter().find(|(unit, _)| rest[end..].starts_with(unit))?;
        sum += number * scale;
        rest = &rest[end + unit.len()..];
        if rest.is_empty() {
            return Some(sum).filter(|sum| sum.is_finite());
        }
    }
}
