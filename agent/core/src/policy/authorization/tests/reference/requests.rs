//! Requests, and what of them the specification has compared, step by step.

use serde_json::{Value, json};

use super::*;

/// What is known of requests alone, beside remote addresses.
pub(super) const FIELDS: &[&str] = &[
    "hosts",
    "methods",
    "paths",
    "requestPrincipals",
    "request.headers[x]",
    "request.auth.claims[g]",
    "request.auth.claims[a][b]",
    "request.auth.audiences",
    "request.auth.presenter",
];

const TOKENS: &[&str] = &[
    r#"{"iss": "i/j", "sub": "s", "aud": "x", "azp": "p", "g": "y", "a": {"b": ["x", 1]}}"#,
    r#"{"iss": "i", "sub": "t", "aud": ["x", "y"], "g": ["x", "y"], "a": {"b": "x"}}"#,
    r#"{"iss": "i", "g": true, "a": "x", "aud": []}"#,
];

pub(super) fn values(field: &str) -> &'static [&'static str] {
    match field {
        "hosts" => &["a.example", "A.Example", "*.example", "b*", "a.example:80", "*"],
        "methods" => &["GET", "POST", "get", "P*", "*"],
        "paths" => &["/a", "/a/*", "*/b", "/{*}", "/a/{**}", "/a/{*}/c", "/{**}/c", "*", "/a*b"],
        "requestPrincipals" => &["*", "i/j/s", "i/*", "*/t", "i*", "*s", "i/j", "x"],
        "request.headers[x]" => &["1", "1,2", "1*", "*2", "*"],
        "connection.sni" => &["a.example", "*.example", "*"],
        _ => &["x", "y", "*", "p", "z*"],
    }
}

pub(super) fn any(random: &mut StdRng) -> Sent {
    let mut one = |texts: &[&'static str]| *texts.choose(random).unwrap();
    let target = one(&["/a", "/a?b", "/a/b", "/a/b/c", "/", "/a//c", "/%61", "/a/x/../b", "/c", "/é"]);
    let mut sent = Sent::new(one(&["GET", "POST"]), target)
        .to(one(&["a.example", "A.EXAMPLE", "b.test", "a.example:80", ""]))
        .from(one(&["10.0.0.9", "192.0.2.1", "2001:db8::9", "::ffff:10.0.0.8"]));
    for _ in 0..one(&["0", "1", "2"]).parse().unwrap() {
        sent = sent.with("x", one(&["1", "2", ""]));
    }
    if random.random_ratio(2, 3) {
        sent = sent.of_user(TOKENS.choose(random).unwrap());
    }
    sent
}

pub(super) fn remote_ip(call: &Call) -> IpAddr {
    call.request.as_ref().map_or(call.source, |sent| sent.read().remote_ip)
}

pub(super) fn has(call: &Call, field: &str, value: &str) -> bool {
    if field == "connection.sni" {
        return text_matches(value, call.sni.unwrap_or(""));
    }
    let request = call.request.as_ref().unwrap().read();
    let claim = |name: &str| request.token.and_then(|token| token.get(name)).cloned().unwrap_or(json!(null));
    match field {
        "hosts" => text_matches(&value.to_lowercase(), &request.authority.to_lowercase()),
        "methods" => text_matches(value, request.method),
        "paths" if value.contains('{') => template_matches(value, request.path),
        "paths" => text_matches(value, request.path),
        "requestPrincipals" => {
            let text = |name| claim(name).as_str().unwrap_or("").to_owned();
            let (issuer, subject) = (text("iss"), text("sub"));
            let divided = value.rfind('/').map(|at| (&value[..at], &value[at + 1..]));
            let (wanted_issuer, wanted_subject) = match divided {
                Some(both) => both,
                None if value == "*" => ("*", "*"),
                None if value.starts_with('*') => ("*", value),
                None if value.ends_with('*') => (value, "*"),
                None => return false,
            };
            !issuer.is_empty()
                && !subject.is_empty()
                && text_matches(wanted_issuer, &issuer)
                && text_matches(wanted_subject, &subject)
        }
        "request.headers[x]" => {
            let joined = request.headers.joined("x").map(|value| String::from_utf8(value.to_vec()).unwrap());
            joined.is_some_and(|joined| value == "*" || text_matches(value, &joined))
        }
        "request.auth.claims[g]" => value_matches(value, &claim("g")),
        "request.auth.claims[a][b]" => value_matches(value, &claim("a")["b"]),
        "request.auth.audiences" => value_matches(value, &claim("aud")),
        "request.auth.presenter" => value_matches(value, &claim("azp")),
        other => panic!("{other}"),
    }
}

fn value_matches(pattern: &str, claim: &Value) -> bool {
    match claim {
        Value::String(text) => text_matches(pattern, text),
        Value::Array(all) => all.iter().any(|one| one.is_string() && value_matches(pattern, one)),
        _ => false,
    }
}

/// As the regular expression has it that Istio makes of a template, tried at every length.
fn template_matches(template: &str, path: &str) -> bool {
    let character = |c: char| c.is_ascii_alphanumeric() || "-._~%!$&'()+,;:@=".contains(c);
    let operator = |rest: &str, least: usize, fits: &dyn Fn(char) -> bool| {
        (least..=path.len()).any(|length| {
            path.is_char_boundary(length)
                && path[..length].chars().all(fits)
                && template_matches(rest, &path[length..])
        })
    };
    if let Some(rest) = template.strip_prefix("{**}") {
        return operator(rest, 0, &|c| c == '/' || character(c));
    }
    if let Some(rest) = template.strip_prefix("{*}") {
        return operator(rest, 1, &character);
    }
    match template.chars().next() {
        None => path.is_empty(),
        Some(c) => path.strip_prefix(c).is_some_and(|path| template_matches(&template[c.len_utf8()..], path)),
    }
}
