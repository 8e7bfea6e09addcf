//! Where tokens stand in a request (`fromHeaders`, `fromParams`, `fromCookies`): found, and taken out.

use std::borrow::Cow;

use ambit_core::policy::{JwtRule, TokenPlace};
use http::{
    HeaderMap, Uri, header,
    request::Parts,
    uri::{PathAndQuery, Scheme},
};

/// A token as it stands in a request.
pub(super) type Found<'a> = Cow<'a, str>;

/// Where OAuth 2.0 has them (RFC 6750): by default, and never where a rule names other places.
const BEARER: &str = "Bearer ";
const ACCESS_TOKEN: &str = "access_token";

/// All tokens in the places of `rule`: headers in their order, then the query, then cookies. Where a prefix is missing there
/// is no token.
pub(super) fn tokens<'a>(rule: &JwtRule, head: &'a Parts) -> Vec<Found<'a>> {
    let mut found = Vec::new();
    if rule.places.is_empty() {
        in_header(&head.headers, header::AUTHORIZATION.as_str(), BEARER, &mut found);
        found.extend(in_query(&head.uri, ACCESS_TOKEN));
        return found;
    }
    for place in &rule.places {
        if let TokenPlace::Header { name, prefix } = place {
            in_header(&head.headers, name, prefix, &mut found);
        }
    }
    for place in &rule.places {
        if let TokenPlace::Parameter(name) = place {
            found.extend(in_query(&head.uri, name));
        }
    }
    for place in &rule.places {
        if let TokenPlace::Cookie(name) = place {
            found.extend(in_cookies(&head.headers, name));
        }
    }
    found
}

/// Takes out the tokens that `rule` finds: whole headers, and parameters of the query. Cookies stay, as sessions may hang on them.
pub(super) fn remove(rule: &JwtRule, head: &mut Parts) {
    if rule.places.is_empty() {
        remove_header(&mut head.headers, header::AUTHORIZATION.as_str(), BEARER);
        remove_parameter(&mut head.uri, ACCESS_TOKEN);
    }
    for place in &rule.places {
        match place {
            TokenPlace::Header { name, prefix } => remove_header(&mut head.headers, name, prefix),
            TokenPlace::Parameter(name) => remove_parameter(&mut head.uri, name),
            TokenPlace::Cookie(_) => {}
        }
    }
}

fn in_header<'a>(headers: &'a HeaderMap, name: &str, prefix: &str, found: &mut Vec<Found<'a>>) {
    for value in headers.get_all(name) {
        found.extend(behind(prefix, String::from_utf8_lossy(value.as_bytes())));
    }
}

/// What stands behind the prefix, wherever that stands, as far as it looks like a token. Without a prefix, all of it.
fn behind<'a>(prefix: &str, value: Found<'a>) -> Option<Found<'a>> {
    if prefix.is_empty() {
        return Some(value);
    }
    let start = value.find(prefix)? + prefix.len();
    let rest = &value[start..];
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let begin = start + rest.find(legal).unwrap_or(rest.len());
    let end = value[begin..].find(|c| !legal(c)).map_or(value.len(), |end| begin + end);
    Some(match value {
        Cow::Borrowed(value) => Cow::Borrowed(&value[begin..end]),
        Cow::Owned(value) => Cow::Owned(value[begin..end].to_owned()),
    })
}

fn in_query<'a>(uri: &'a Uri, name: &str) -> Option<Found<'a>> {
    let (_, value) = uri.query()?.split('&').map(pair).find(|(key, _)| decoded(key) == name)?;
    Some(decoded(value))
}

/// The first cookie of that name (RFC 6265, section 4.2).
fn in_cookies<'a>(headers: &'a HeaderMap, name: &str) -> Option<Found<'a>> {
    headers.get_all(header::COOKIE).iter().find_map(|value| {
        let text = value.to_str().ok()?;
        let (_, value) = text.split(';').map(pair).find(|(key, _)| key.trim() == name)?;
        let value = value.trim();
        let unquoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
        Some(Cow::Borrowed(unquoted.unwrap_or(value)))
    })
}

fn pair(text: &str) -> (&str, &str) {
    text.split_once('=').unwrap_or((text, ""))
}

/// Percent-decoded (RFC 3986, section 2.1); `+` is itself.
fn decoded(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    let (bytes, mut out, mut at) = (text.as_bytes(), Vec::with_capacity(text.len()), 0);
    while let Some(&byte) = bytes.get(at) {
        let digit = |at: usize| bytes.get(at).and_then(|digit| char::from(*digit).to_digit(16));
        match (byte, digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            _ => {
                out.push(byte);
                at += 1;
            }
        }
    }
    Cow::Owned(String::from_utf8_lossy(&out).into_owned())
}

fn remove_header(headers: &mut HeaderMap, name: &str, prefix: &str) {
    let mut tokens = Vec::new();
    in_header(headers, name, prefix, &mut tokens);
    if !tokens.is_empty() {
        headers.remove(name);
    }
}

fn remove_parameter(uri: &mut Uri, name: &str) {
    let Some(query) = uri.query() else { return };
    let kept: Vec<&str> = query.split('&').filter(|part| decoded(pair(part).0) != name).collect();
    let kept = kept.join("&");
    if kept.len() == query.len() {
        return;
    }
    let path = uri.path();
    let whole = if kept.is_empty() { path.to_owned() } else { format!("{path}?{kept}") };
    // Parts of what was a URI are one.
    let Ok(path_and_query) = PathAndQuery::try_from(whole) else { return };
    let mut parts = std::mem::take(uri).into_parts();
    parts.path_and_query = Some(path_and_query);
    if parts.authority.is_some() && parts.scheme.is_none() {
        parts.scheme = Some(Scheme::HTTP);
    }
    if let Ok(changed) = Uri::from_parts(parts) {
        *uri = changed;
    }
}
