//! What a provider wants changed in a request that it lets in, and in the answer to it.
//!
//! Promises that nothing of it changes what policies are about in a way that they would not see: neither the method nor the host
//! nor the path, nor how a message is framed.

use std::fmt::Write as _;

use http::{HeaderMap, HeaderName, HeaderValue, Uri, header, request::Parts, uri::PathAndQuery};

/// Changes in the order in which they are made.
#[derive(Clone, Debug, Default)]
pub(crate) struct Changes {
    pub(super) request: Vec<Edit>,
    pub(super) answer: Vec<Edit>,
    pub(super) query: Vec<QueryEdit>,
}

/// One change of header fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Edit {
    /// The only field of its name.
    Set(HeaderName, HeaderValue),
    /// Beside those of its name.
    Append(HeaderName, HeaderValue),
    /// Where there is none of its name.
    AddIfAbsent(HeaderName, HeaderValue),
    /// In place of those of its name, where there are any.
    SetIfPresent(HeaderName, HeaderValue),
    /// All of its name go.
    Remove(HeaderName),
}

/// One change of the query's parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum QueryEdit {
    /// The only parameter of its name.
    Set(String, String),
    /// All of its name go.
    Remove(String),
}

/// Fields that say how a message is framed and what becomes of its connection: they are whoever's who writes the message.
const FRAMING: [HeaderName; 11] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::EXPECT,
    header::HOST,
    header::PROXY_AUTHENTICATE,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Whether a field belongs to the message that it stands in, and is nothing to copy or to change.
pub(super) fn is_framing(name: &HeaderName) -> bool {
    FRAMING.contains(name)
}

impl Changes {
    /// Changes a request before it goes on.
    pub(crate) fn apply_to_request(&self, head: &mut Parts) {
        for edit in &self.request {
            edit.apply(&mut head.headers);
        }
        if !self.query.is_empty()
            && let Some(uri) = with_query(&head.uri, &self.query)
        {
            head.uri = uri;
        }
    }

    /// Changes the answer before it goes back.
    pub(crate) fn apply_to_answer(&self, headers: &mut HeaderMap) {
        for edit in &self.answer {
            edit.apply(headers);
        }
    }
}

impl Edit {
    fn apply(&self, headers: &mut HeaderMap) {
        match self {
            Self::Set(name, value) => {
                headers.insert(name, value.clone());
            }
            Self::Append(name, value) => {
                headers.append(name, value.clone());
            }
            Self::AddIfAbsent(name, value) => {
                headers.entry(name).or_insert_with(|| value.clone());
            }
            Self::SetIfPresent(name, value) => {
                if headers.contains_key(name) {
                    headers.insert(name, value.clone());
                }
            }
            Self::Remove(name) => {
                headers.remove(name);
            }
        }
    }
}

/// The same URI with another query; `None` where it has no path, or the new one is too long.
fn with_query(uri: &Uri, edits: &[QueryEdit]) -> Option<Uri> {
    let old = uri.path_and_query().filter(|old| old.path().starts_with('/'))?;
    let query = old.query().unwrap_or_default();
    let mut parameters: Vec<String> =
        query.split('&').filter(|parameter| !parameter.is_empty()).map(str::to_owned).collect();
    for edit in edits {
        let (QueryEdit::Set(name, _) | QueryEdit::Remove(name)) = edit;
        let name = encoded(name);
        let is_other = |parameter: &String| parameter.split('=').next() != Some(&name);
        let place = parameters.iter().position(|parameter| !is_other(parameter));
        parameters.retain(is_other);
        if let QueryEdit::Set(_, value) = edit {
            let place = place.unwrap_or(parameters.len()).min(parameters.len());
            parameters.insert(place, format!("{name}={}", encoded(value)));
        }
    }
    let mut text = old.path().to_owned();
    if !parameters.is_empty() {
        text = format!("{text}?{}", parameters.join("&"));
    }
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(text).ok()?);
    Uri::from_parts(parts).ok()
}

/// As a name or a value of a query has it (RFC 3986, section 3.4): what would end it, or is no part of one, by its octets.
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' => out.push(char::from(byte)),
            b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'\'' | b'(' | b')' | b'*' | b',' | b';' => {
                out.push(char::from(byte));
            }
            b':' | b'@' | b'/' | b'?' | b'%' => out.push(char::from(byte)),
            _ => {
                // A text takes whatever is written to it.
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn head(uri: &str, fields: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().uri(uri);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn fields_are_changed_as_each_edit_says() {
        let (name, value) = (|text| HeaderName::from_static(text), |text| HeaderValue::from_static(text));
        let changes = Changes {
            request: vec![
                Edit::Set(name("a"), value("new")),
                Edit::Append(name("b"), value("second")),
                Edit::AddIfAbsent(name("b"), value("unused")),
                Edit::AddIfAbsent(name("c"), value("added")),
                Edit::SetIfPresent(name("d"), value("unused")),
                Edit::Remove(name("e")),
            ],
            ..Changes::default()
        };
        let mut head = head("/", &[("a", "1"), ("a", "2"), ("b", "first"), ("e", "1"), ("e", "2")]);
        changes.apply_to_request(&mut head);
        let all: Vec<(&str, &str)> =
            head.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(all, [("a", "new"), ("b", "first"), ("b", "second"), ("c", "added")]);
    }

    #[test]
    fn a_query_is_changed_and_the_path_is_not() {
        let set = |name: &str, value: &str| QueryEdit::Set(name.into(), value.into());
        let remove = |name: &str| QueryEdit::Remove(name.into());
        for (uri, edit, expected) in [
            ("/a", set("x", "1"), "/a?x=1"),
            ("/a?y=2&x=0&x=9&z", set("x", "1"), "/a?y=2&x=1&z"),
            ("/a?x=0", remove("x"), "/a"),
            ("/a?x=0&y", remove("y"), "/a?x=0"),
            ("/a?xx=0", remove("x"), "/a?xx=0"),
            ("/a", set("x", "1&y=2#f /../b"), "/a?x=1%26y%3D2%23f%20/../b"),
            ("http://shop.test/a?x", remove("x"), "http://shop.test/a"),
            ("*", set("x", "1"), "*"),
        ] {
            let mut head = head(uri, &[]);
            Changes { query: vec![edit], ..Changes::default() }.apply_to_request(&mut head);
            assert_eq!(head.uri, expected, "{uri}");
        }
    }
}
