//! One HTTP request as verdicts are taken over it, and what a token in it says. Knows no HTTP: whoever reads requests makes these.

use std::{borrow::Cow, fmt, net::IpAddr};

use serde_json::{Map, Value};

/// What of a request a verdict is taken over.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// As it was sent; methods are case-sensitive (RFC 9110, section 9.1).
    pub method: &'a str,
    /// `:authority` or `Host` as it was sent, its port included.
    pub authority: &'a str,
    /// The path as it is forwarded: normalised, without query and fragment.
    pub path: &'a str,
    /// Its header fields.
    pub headers: &'a dyn Headers,
    /// The client's address, as far as those who passed the request on are trusted.
    pub remote_ip: IpAddr,
    /// What the token says that was found good; `None` without one.
    pub token: Option<&'a Claims>,
}

/// The header fields of a request.
pub trait Headers: fmt::Debug + Sync {
    /// The values of all fields of that name, in their order, joined by `,`; `None` if there is no such field. The name is in lower
    /// case, or of a pseudo-header, such as `:path`, which includes the query.
    fn joined(&self, name: &str) -> Option<Cow<'_, [u8]>>;
}

/// The claims of a token whose signature, issuer, audience and times have been found good (RFC 7519).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims(Map<String, Value>);

/// Claims that are lists divided by spaces (RFC 8693, section 4.2, and Istio).
const LISTS: [&str; 2] = ["scope", "permission"];

impl Claims {
    /// Of a token with this payload. `scope` and `permission` are taken as lists divided by spaces.
    pub fn new(payload: Map<String, Value>) -> Self {
        let mut claims = Self(payload);
        LISTS.iter().for_each(|name| claims.divide(name));
        claims
    }

    /// The same, and these claims as well.
    pub fn with_lists<T: AsRef<str>>(mut self, names: &[T]) -> Self {
        names.iter().for_each(|name| self.divide(name.as_ref()));
        self
    }

    /// The claim of that name.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    fn divide(&mut self, name: &str) {
        if let Some(value) = self.0.get_mut(name)
            && let Some(text) = value.as_str()
        {
            *value = text.split_ascii_whitespace().map(Value::from).collect();
        }
    }
}
