//! The request that a question is about: normalised, its token judged by whoever can, and what a provider would be asked.

use std::{borrow::Cow, fmt, net::IpAddr, sync::Arc};

use crate::{
    policy::{
        Claims, Decision, External, Facts, Headers, JwtRule, Outlook, Request, WorkloadPolicy, external,
        outlook, path,
    },
    reason::{Reason, Refusal},
};

/// A request as a client sends it.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// Such as `GET`.
    pub method: &'a str,
    /// Path and query.
    pub path: &'a str,
    /// `:authority` or `Host`; `None` for that of the destination.
    pub host: Option<&'a str>,
    /// Its header fields, names in lower case.
    pub headers: &'a [(String, String)],
    /// Judges the token by the issuers that count for a pod.
    pub token: &'a dyn Fn(&[Arc<JwtRule>]) -> Token,
}

impl fmt::Debug for Asked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { method, path, host, headers, .. } = self;
        f.debug_struct("Asked")
            .field("method", method)
            .field("path", path)
            .field("host", host)
            .field("headers", &headers.len())
            .finish_non_exhaustive()
    }
}

/// What becomes of a token.
#[derive(Clone, Debug)]
pub enum Token {
    /// There is none, or none where an issuer has it.
    None,
    /// No RequestAuthentication is for the pod.
    Ignored,
    /// It counts.
    Good {
        /// What it says.
        claims: Arc<Claims>,
        /// How that is known, as the end of a sentence.
        how: String,
    },
    /// It is refused.
    Bad {
        /// The status of the answer.
        status: u16,
        /// Why.
        text: String,
    },
}

/// A request as policies see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JudgedRequest {
    /// As it was sent.
    pub method: String,
    /// Normalised, without the query.
    pub path: String,
    /// As it was sent, or that of the destination.
    pub host: String,
    /// What becomes of the token, in words.
    pub token: String,
    /// Issuer and subject of a good token.
    pub principal: Option<String>,
    /// The provider that is asked first, and for which policy and rule.
    pub external: Option<String>,
}

/// What is found out about a request on the way to its verdict.
pub(super) struct Found {
    pub(super) judged: JudgedRequest,
    /// It is refused before policies decide.
    pub(super) refusal: Option<Refusal>,
    claims: Option<Arc<Claims>>,
    admitted: bool,
}

/// The header fields of a question.
#[derive(Debug)]
struct Fields<'a> {
    named: &'a [(String, String)],
    method: &'a str,
    host: &'a str,
    path: &'a str,
}

impl Headers for Fields<'_> {
    fn joined(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        let known = |text: &'_ str| Some(Cow::Owned(text.as_bytes().to_vec()));
        match name {
            ":method" => known(self.method),
            ":path" => known(self.path),
            ":authority" | "host" => known(self.host),
            ":scheme" => known("http"),
            _ => {
                let values: Vec<&str> =
                    self.named.iter().filter(|(own, _)| own == name).map(|(_, value)| &**value).collect();
                (!values.is_empty()).then(|| Cow::Owned(values.join(",").into_bytes()))
            }
        }
    }
}

impl Asked<'_> {
    /// Takes the steps that come before the verdict of policies: `facts` are the connection's.
    pub(super) fn found(&self, policy: &WorkloadPolicy, facts: &Facts<'_>, host: &str) -> Found {
        let host = self.host.unwrap_or(host);
        let (path, malformed) = match path::normalize(policy.paths(), self.path) {
            Ok(target) => (target.path.into_owned(), None),
            Err(bad) => (self.path.to_owned(), Some(bad.to_string())),
        };
        let mut judged = JudgedRequest {
            method: self.method.to_owned(),
            path,
            host: host.to_owned(),
            token: String::new(),
            principal: None,
            external: None,
        };
        if let Some(bad) = malformed {
            let text = format!("the request is malformed, and answered with 400: {bad}");
            let refusal = Some(Refusal::new(Reason::MalformedRequest, text));
            return Found { judged, refusal, claims: None, admitted: false };
        }
        let asked = self.with_facts(&judged, facts, None, false, |facts| external(policy, facts));
        let (admitted, mut refusal) = match asked {
            External::Nobody => (false, None),
            External::Refused(refusal) => (false, Some(refusal)),
            External::Ask { provider, policy, rule } => {
                judged.external = Some(format!("{provider} for AuthorizationPolicy {policy} rules[{rule}]"));
                (true, None)
            }
        };
        let claims = match (self.token)(policy.tokens()) {
            Token::None => {
                "none".clone_into(&mut judged.token);
                None
            }
            Token::Ignored => {
                "ignored: no RequestAuthentication is for the pod".clone_into(&mut judged.token);
                None
            }
            Token::Good { claims, how } => {
                judged.token = format!("good, {how}");
                let text = |name| claims.get(name).and_then(|value| value.as_str()).unwrap_or_default();
                judged.principal = Some(format!("{}/{}", text("iss"), text("sub")));
                Some(claims)
            }
            Token::Bad { status, text } => {
                judged.token = format!("refused: {text}");
                let text = format!("the token is refused, and the request answered with {status}: {text}");
                refusal = refusal.or_else(|| Some(Refusal::new(Reason::TokenRefused, text)));
                None
            }
        };
        Found { judged, refusal, claims, admitted }
    }

    /// The facts of the connection with those of this request.
    pub(super) fn facts<T>(&self, found: &Found, facts: &Facts<'_>, look: impl FnOnce(&Facts<'_>) -> T) -> T {
        self.with_facts(&found.judged, facts, found.claims.as_deref(), found.admitted, look)
    }

    fn with_facts<T>(
        &self,
        judged: &JudgedRequest,
        facts: &Facts<'_>,
        token: Option<&Claims>,
        admitted: bool,
        look: impl FnOnce(&Facts<'_>) -> T,
    ) -> T {
        let fields = Fields { named: self.headers, method: self.method, host: &judged.host, path: self.path };
        let forwarded = self.headers.iter().rev().find(|(name, _)| name == "x-forwarded-for");
        let forwarded =
            forwarded.and_then(|(_, value)| value.rsplit(',').next()?.trim().parse::<IpAddr>().ok());
        let request = Request {
            method: self.method,
            authority: &judged.host,
            path: &judged.path,
            headers: &fields,
            remote_ip: forwarded.unwrap_or(facts.source_ip),
            token,
        };
        look(&Facts { request: Some(&request), admitted, ..*facts })
    }
}

/// Whether connections with these facts are let in or refused whatever they carry.
pub(super) fn depends_on_requests(policy: &WorkloadPolicy, facts: &Facts<'_>) -> bool {
    match outlook(policy, facts) {
        Outlook::PerRequest => true,
        Outlook::Same(Decision::Allow | Decision::Deny(_)) => false,
    }
}
