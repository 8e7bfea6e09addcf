//! Requests as tests write them.

use std::borrow::Cow;

use super::*;
use crate::policy::{Claims, Headers, PathNormalization, Request, path};

/// A request, as a client sends it.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    method: String,
    authority: String,
    /// With its query.
    target: String,
    path: String,
    headers: Vec<(String, String)>,
    remote_ip: IpAddr,
    token: Option<Claims>,
}

impl Sent {
    pub(super) fn new(method: &str, target: &str) -> Self {
        Self::under(PathNormalization::Base, method, target)
    }

    pub(super) fn under(mode: PathNormalization, method: &str, target: &str) -> Self {
        Self {
            method: method.to_owned(),
            authority: "shop.example".to_owned(),
            target: target.to_owned(),
            path: path::normalize(mode, target).unwrap().path.into_owned(),
            headers: Vec::new(),
            remote_ip: "10.0.0.9".parse().unwrap(),
            token: None,
        }
    }

    pub(super) fn to(self, authority: &str) -> Self {
        Self { authority: authority.to_owned(), ..self }
    }

    pub(super) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_ascii_lowercase(), value.to_owned()));
        self
    }

    pub(super) fn from(self, ip: &str) -> Self {
        Self { remote_ip: ip.parse().unwrap(), ..self }
    }

    /// With a token of this payload.
    pub(super) fn of_user(self, payload: &str) -> Self {
        let serde_json::Value::Object(payload) = serde_json::from_str(payload).unwrap() else {
            panic!("{payload}")
        };
        Self { token: Some(Claims::new(payload)), ..self }
    }

    pub(super) fn read(&self) -> Request<'_> {
        Request {
            method: &self.method,
            authority: &self.authority,
            path: &self.path,
            headers: self,
            remote_ip: self.remote_ip,
            token: self.token.as_ref(),
        }
    }
}

impl Headers for Sent {
    fn joined(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        let pseudo = |text: &'_ str| Some(Cow::Owned(text.as_bytes().to_vec()));
        match name {
            ":method" => return pseudo(&self.method),
            ":path" => return pseudo(&self.target),
            ":authority" => return pseudo(&self.authority),
            _ => {}
        }
        let values: Vec<&str> =
            self.headers.iter().filter(|(own, _)| own == name).map(|(_, value)| &**value).collect();
        (!values.is_empty()).then(|| Cow::Owned(values.join(",").into_bytes()))
    }
}

impl Call {
    pub(super) fn sends(self, request: Sent) -> Self {
        Self { request: Some(request), ..self }
    }
}
