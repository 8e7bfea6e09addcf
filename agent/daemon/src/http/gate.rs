//! The verdict on one request: whom policy wants asked, tokens, rehearsal, decision, in this order and all by one snapshot of the
//! pod's policy. What a provider and the tokens change of a head is changed here.

use std::{borrow::Cow, future::Future, net::IpAddr, pin::Pin, sync::Arc};

use ambit_core::{
    model::ObjectName,
    policy::{self, Decision, External, Facts, Headers, WorkloadPolicy, path},
    reason::{Reason, Refusal},
};
use http::{HeaderMap, StatusCode, Uri, header::HOST, request::Parts, uri::PathAndQuery};
use tokio::sync::watch;

use super::{answer::Answer, body::Malformed};
use crate::{
    authz::{self, Changes},
    jwt::Tokens,
    telemetry::{Connection, Meta, Request, Telemetry},
};

/// Asks external providers in the name of the pod that is called.
pub(crate) trait Ask: Send + Sync {
    /// How much of a body the provider of that name wants to see, in bytes.
    fn wants_body(&self, provider: &str) -> usize;

    /// Asks it about a request, with the beginning of its body and whether that is all of it.
    fn ask<'a>(&'a self, provider: &'a str, head: &'a Parts, body: Option<(&'a [u8], bool)>) -> Asking<'a>;
}

/// What a provider says, once it says it.
pub(crate) type Asking<'a> = Pin<Box<dyn Future<Output = authz::Answer> + Send + 'a>>;

/// What the requests of one connection are judged by.
pub(crate) struct Gate<'a> {
    /// The pod's policy.
    pub(crate) policy: watch::Receiver<Arc<WorkloadPolicy>>,
    /// The connection.
    pub(crate) facts: Facts<'a>,
    /// Who judges tokens.
    pub(crate) tokens: &'a Tokens,
    /// Who asks providers.
    pub(crate) external: &'a dyn Ask,
    /// How many proxies in front of the client may be believed about whom they speak for.
    pub(crate) trusted_proxies: usize,
    /// Where it is counted and logged.
    pub(crate) connection: &'a Connection,
    /// Where rehearsals are told.
    pub(crate) telemetry: &'a Telemetry,
}

/// A request that goes to the application.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) told: Request,
    /// What a provider wants of the answer.
    pub(super) changes: Option<Changes>,
    /// The head is not the one that came.
    pub(super) changed: bool,
}

/// What becomes of a request.
pub(super) type Judged = Result<Admitted, Box<Answer>>;

/// A provider that has to be asked, and for which policy.
#[derive(Debug)]
struct Asked {
    provider: Arc<str>,
    policy: ObjectName,
    rule: usize,
}

/// A request whose head has been read, before its verdict.
#[derive(Debug)]
pub(super) struct Pending {
    policy: Arc<WorkloadPolicy>,
    told: Request,
    remote_ip: IpAddr,
    asked: Option<Asked>,
    changed: bool,
    /// How much of the body the provider wants to see.
    pub(super) wants_body: usize,
}

impl Gate<'_> {
    /// Begins with a request: its path becomes the one that is judged and forwarded. `Err` where it is answered already.
    pub(super) fn begin(&self, head: &mut Parts) -> Result<Pending, Box<Answer>> {
        let policy = self.policy.borrow().clone();
        let changed = match normalise(&policy, head) {
            Ok(changed) => changed,
            Err(malformed) => return Err(Box::new(self.malformed(&malformed))),
        };
        let told = self.connection.request(head);
        let changed = changed || told.is_traced();
        let remote_ip = remote_ip(&head.headers, self.trusted_proxies).unwrap_or(self.facts.source_ip);
        let mut pending = Pending { policy, told, remote_ip, asked: None, changed, wants_body: 0 };
        match self.with_facts(&pending, head, None, false, |facts| policy::external(&pending.policy, facts)) {
            External::Nobody => {}
            External::Refused(refusal) => {
                self.rehearse(&pending, head);
                return Err(refused(pending.told, &refusal, head));
            }
            External::Ask { provider, policy, rule } => {
                pending.wants_body = self.external.wants_body(&provider);
                pending.asked = Some(Asked { provider, policy, rule });
            }
        }
        Ok(pending)
    }

    /// The verdict; the head is then as it is to be forwarded.
    pub(super) async fn judge(
        &self,
        mut pending: Pending,
        head: &mut Parts,
        body: Option<(&[u8], bool)>,
    ) -> Judged {
        let mut changes = None;
        let asked = pending.asked.take();
        let admitted = asked.is_some();
        if let Some(asked) = asked {
            match self.external.ask(&asked.provider, head, body).await {
                authz::Answer::Admitted(wanted) => {
                    wanted.apply_to_request(head);
                    pending.changed = true;
                    changes = Some(wanted);
                }
                authz::Answer::Denied { status, headers, body, why } => {
                    let refusal = Refusal {
                        policy: Some(asked.policy.to_string().into()),
                        rule: Some(format!("rules[{}]", asked.rule).into()),
                        ..Refusal::new(Reason::ProviderRefused, why)
                    };
                    pending.told.refused(&refusal, status);
                    return Err(Box::new(Answer::of_provider(status, headers, body, head)));
                }
            }
        }
        let tokens = pending.policy.tokens();
        let claims = if tokens.is_empty() {
            None
        } else {
            pending.changed = true;
            match self.tokens.judge(tokens, head) {
                Ok(claims) => claims,
                Err(bad) => {
                    let refusal = Refusal::new(Reason::TokenRefused, bad.text);
                    pending.told.refused(&refusal, bad.status);
                    return Err(Box::new(Answer::of_token(&bad, head)));
                }
            }
        };
        let decision = self.with_facts(&pending, head, claims.as_deref(), admitted, |facts| {
            self.rehearse_by(&pending.policy, facts);
            policy::decide(&pending.policy, facts)
        });
        match decision {
            Decision::Allow => {
                pending.told.admitted();
                Ok(Admitted { told: pending.told, changes, changed: pending.changed })
            }
            Decision::Deny(refusal) => Err(refused(pending.told, &refusal, head)),
        }
    }

    /// The answer to what is no request; counts and logs it.
    pub(super) fn malformed(&self, malformed: &Malformed) -> Answer {
        let text = format!("the request is malformed: {malformed}");
        self.connection.malformed(&Refusal::new(Reason::MalformedRequest, text));
        let status = malformed.status;
        Answer::text(status, format!("{}: {malformed}", status.canonical_reason().unwrap_or_default()))
    }

    fn with_facts<T>(
        &self,
        pending: &Pending,
        head: &Parts,
        token: Option<&policy::Claims>,
        admitted: bool,
        look: impl FnOnce(&Facts<'_>) -> T,
    ) -> T {
        let request = policy::Request {
            method: head.method.as_str(),
            authority: authority(head),
            path: path(&head.uri),
            headers: &Fields(head),
            remote_ip: pending.remote_ip,
            token,
        };
        look(&Facts { request: Some(&request), admitted, ..self.facts })
    }

    fn rehearse(&self, pending: &Pending, head: &Parts) {
        self.with_facts(pending, head, None, false, |facts| self.rehearse_by(&pending.policy, facts));
    }

    fn rehearse_by(&self, policy: &WorkloadPolicy, facts: &Facts<'_>) {
        rehearse(policy, facts, self.connection.meta(), self.telemetry);
    }
}

/// Tells of what policies that decide nothing would make of a connection or request.
pub(crate) fn rehearse(policy: &WorkloadPolicy, facts: &Facts<'_>, meta: &Meta, telemetry: &Telemetry) {
    let refusal = policy::rehearse(policy, facts, |rehearsed, outcome| {
        telemetry.rehearsed(meta, &rehearsed.name, rehearsed.action.label(), outcome);
    });
    if let Some(refusal) = refusal {
        telemetry.would_be_refused(meta, &refusal);
    }
}

/// The answer to a request that policy refuses.
fn refused(told: Request, refusal: &Refusal, head: &Parts) -> Box<Answer> {
    told.refused(refusal, StatusCode::FORBIDDEN);
    Box::new(Answer::denied(head))
}

/// Has the head's path be the one that is judged; answers whether that is another than was sent.
fn normalise(policy: &WorkloadPolicy, head: &mut Parts) -> Result<bool, Malformed> {
    let Some(sent) = head.uri.path_and_query() else { return Ok(false) };
    let target = path::normalize(policy.paths(), sent.as_str());
    let target = target.map_err(|error| Malformed::told(error.to_string()))?;
    if target.path == sent.path() {
        return Ok(false);
    }
    let written = match target.query {
        Some(query) => format!("{}?{query}", target.path),
        None => target.path.into_owned(),
    };
    let malformed = |_| Malformed::new("the normalised path cannot be written");
    let mut uri = head.uri.clone().into_parts();
    uri.path_and_query = Some(PathAndQuery::try_from(written).map_err(malformed)?);
    head.uri = Uri::from_parts(uri).map_err(|_| Malformed::new("the request target is malformed"))?;
    Ok(true)
}

/// The path that is judged; a CONNECT has none.
fn path(uri: &Uri) -> &str {
    uri.path_and_query().map_or("", PathAndQuery::path)
}

/// `:authority` or `Host`.
fn authority(head: &Parts) -> &str {
    match head.uri.authority() {
        Some(authority) => authority.as_str(),
        None => head.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default(),
    }
}

/// The client's address as those who have passed the request on say it: the one that stands `trusted` places before the last.
fn remote_ip(headers: &HeaderMap, trusted: usize) -> Option<IpAddr> {
    let values = headers.get_all("x-forwarded-for").iter().rev();
    let mut addresses = values.flat_map(|value| value.as_bytes().rsplit(|byte| *byte == b','));
    let address = std::str::from_utf8(addresses.nth(trusted)?).ok()?.trim();
    address.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

/// A head's fields, as policy looks at them.
#[derive(Debug)]
struct Fields<'a>(&'a Parts);

impl Headers for Fields<'_> {
    fn joined(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        let Parts { method, uri, headers, .. } = self.0;
        let known = |text| Some(Cow::Borrowed(str::as_bytes(text)));
        match name {
            ":method" => known(method.as_str()),
            ":path" => uri.path_and_query().and_then(|path| known(path.as_str())),
            ":authority" | "host" => Some(authority(self.0)).filter(|host| !host.is_empty()).and_then(known),
            ":scheme" => known(uri.scheme_str().unwrap_or("http")),
            _ => {
                let mut values = headers.get_all(name).iter().map(http::HeaderValue::as_bytes);
                let first = values.next()?;
                let Some(second) = values.next() else { return Some(Cow::Borrowed(first)) };
                let mut joined = [first, second].join(&b","[..]);
                for value in values {
                    joined.push(b',');
                    joined.extend_from_slice(value);
                }
                Some(Cow::Owned(joined))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(fields: &[(&str, &str)]) -> Parts {
        let mut request = http::Request::builder().uri("/a/b?c");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn fields_of_one_name_are_joined_and_pseudo_fields_are_there() {
        let head = head(&[("x", "a"), ("host", "shop"), ("x", "b"), ("x", "c"), ("empty", "")]);
        let joined = |name| Fields(&head).joined(name).map(|value| String::from_utf8(value.into()).unwrap());
        for (name, value) in [
            ("x", Some("a,b,c")),
            ("empty", Some("")),
            ("y", None),
            (":path", Some("/a/b?c")),
            (":method", Some("GET")),
            (":authority", Some("shop")),
            ("host", Some("shop")),
            (":scheme", Some("http")),
            ("not a name", None),
        ] {
            assert_eq!(joined(name).as_deref(), value, "{name}");
        }
    }

    #[test]
    fn whoever_passed_the_request_on_is_believed_as_far_as_is_said() {
        let fields = [("x-forwarded-for", "203.0.113.7, 198.51.100.2"), ("X-Forwarded-For", "10.0.0.9")];
        for (fields, trusted, expected) in [
            (&fields[..], 0, Some("10.0.0.9")),
            (&fields, 1, Some("198.51.100.2")),
            (&fields, 2, Some("203.0.113.7")),
            (&fields, 3, None),
            (&[], 0, None),
            (&[("x-forwarded-for", "10.0.0.9, somebody")], 0, None),
            (&[("x-forwarded-for", "::ffff:10.0.0.9")], 0, Some("10.0.0.9")),
        ] {
            let expected = expected.map(|ip| ip.parse().unwrap());
            assert_eq!(remote_ip(&head(fields).headers, trusted), expected, "{fields:?} {trusted}");
        }
    }
}
