//! The HTTP form of external authorization: a request like the one in question, answered by 200 or not.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header, request::Parts, response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;

use super::{
    Changes, Dialler, HttpSettings, NamePattern, ProviderSettings,
    answer::{Denial, Failure, Verdict},
    changes::{Edit, is_framing},
    grpc::{PARTIAL, authority},
    lane::Lane,
};

/// The longest answer, in bytes.
const ANSWER: usize = 1024 * 1024;
/// Fields of the request that shall go, in an answer that lets it in.
const TO_REMOVE: HeaderName = HeaderName::from_static("x-envoy-auth-headers-to-remove");
/// Fields of a denial that a client always gets.
const ALWAYS_TOLD: [HeaderName; 2] = [header::LOCATION, header::WWW_AUTHENTICATE];

/// Asks about a request, of which the head and what is shown of the body are given.
pub(super) async fn check(
    settings: &ProviderSettings,
    form: &HttpSettings,
    lane: &Lane,
    (head, body): (&Parts, Option<(&[u8], bool)>),
    dialler: &dyn Dialler,
) -> Result<Verdict, Failure> {
    let asked = request(settings, form, head, body)?;
    let (answer, exchange) = lane.exchange(dialler, &settings.addr, asked).await?;
    let (answer, body) = answer.into_parts();
    let body = read(body).await?;
    exchange.finish();
    match answer.status {
        StatusCode::OK => match changes(form, &answer) {
            Ok(changes) => Ok(Verdict::Admitted(changes)),
            Err(what) => {
                let why = format!(
                    "the provider {} lets it in, and wants a change that is not made: {what}",
                    settings.name
                );
                Ok(Verdict::Denied(Denial { status: settings.status_on_error, ..Denial::forbidden(why) }))
            }
        },
        status if status.is_server_error() => Err(Failure::failed(format!("it answered {status}"))),
        status => Ok(Verdict::Denied(Denial {
            status,
            headers: told(form, &answer.headers),
            body,
            why: format!("the provider {} denied it: it answered {status}", settings.name).into(),
        })),
    }
}

async fn read(body: Incoming) -> Result<Bytes, Failure> {
    let read = Limited::new(body, ANSWER).collect().await;
    read.map(http_body_util::Collected::to_bytes)
        .map_err(|error| Failure::failed(format!("its answer cannot be read: {error}")))
}

fn request(
    settings: &ProviderSettings,
    form: &HttpSettings,
    head: &Parts,
    body: Option<(&[u8], bool)>,
) -> Result<Request<Full<Bytes>>, Failure> {
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    let slash = if path.starts_with('/') { "" } else { "/" };
    let mut fields = HeaderMap::new();
    for (name, value) in &head.headers {
        if NamePattern::any(&form.shown, name) && !is_framing(name) && *name != PARTIAL {
            fields.append(name, value.clone());
        }
    }
    for (name, value) in &form.added {
        fields.insert(name, value.clone());
    }
    let host = match authority(head) {
        none if none.is_empty() => settings.addr.host.clone(),
        host => host,
    };
    let unsayable = |what: &str| Failure::failed(format!("the request's {what} cannot be passed on"));
    fields.insert(header::HOST, HeaderValue::try_from(host).map_err(|_| unsayable("host"))?);
    let shown = match (body, settings.body) {
        (Some((bytes, whole)), Some(wanted)) => {
            fields.insert(PARTIAL, HeaderValue::from_static(if whole { "false" } else { "true" }));
            Bytes::copy_from_slice(&bytes[..bytes.len().min(wanted.max_bytes)])
        }
        _ => Bytes::new(),
    };
    fields.insert(header::CONTENT_LENGTH, shown.len().into());
    let asked = Request::builder().method(head.method.clone());
    let asked = asked.uri(format!("{}{slash}{path}", form.path_prefix));
    let mut asked = asked.body(Full::new(shown)).map_err(|_| unsayable("path"))?;
    *asked.headers_mut() = fields;
    Ok(asked)
}

/// What an answer that lets it in wants; an error names what is not done.
fn changes(form: &HttpSettings, answer: &response::Parts) -> Result<Changes, String> {
    let mut changes = Changes::default();
    for name in answer.headers.keys().filter(|name| !is_framing(name)) {
        let mut values = answer.headers.get_all(name).iter();
        if NamePattern::any(&form.to_upstream, name)
            && let Some(first) = values.next()
        {
            changes.request.push(Edit::Set(name.clone(), first.clone()));
            changes.request.extend(values.map(|value| Edit::Append(name.clone(), value.clone())));
        }
        if NamePattern::any(&form.to_client_on_allow, name) {
            let values = answer.headers.get_all(name).iter();
            changes.answer.extend(values.map(|value| Edit::Append(name.clone(), value.clone())));
        }
    }
    for list in answer.headers.get_all(TO_REMOVE) {
        let list = list.to_str().map_err(|_| format!("of the headers that {TO_REMOVE} names"))?;
        for name in list.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            match HeaderName::from_bytes(name.as_bytes()) {
                Ok(name) if !is_framing(&name) => changes.request.push(Edit::Remove(name)),
                _ => return Err(format!("of the header {name:?}")),
            }
        }
    }
    Ok(changes)
}

/// What of a denial the client is told.
fn told(form: &HttpSettings, fields: &HeaderMap) -> Vec<(HeaderName, HeaderValue)> {
    let listed = &form.to_client_on_deny;
    let is_told = |name: &HeaderName| {
        !is_framing(name)
            && (listed.is_empty() || ALWAYS_TOLD.contains(name) || NamePattern::any(listed, name))
    };
    fields
        .iter()
        .filter(|(name, _)| is_told(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}
