//! Envoy's gRPC form of external authorization: what is asked, and what the answer means.

use std::time::SystemTime;

use ambit_proto::envoy::auth::{
    self as proto, address::Address as Place, attribute_context::Peer,
    authorization_client::AuthorizationClient, check_response::HttpResponse,
    header_value_option::HeaderAppendAction, socket_address::PortSpecifier,
};
use http::{HeaderName, HeaderValue, StatusCode, Uri, header, request::Parts};

use super::{
    Changes, Dialler, ProviderSettings, Subject,
    answer::{Denial, Failure, Verdict},
    changes::{Edit, QueryEdit, is_framing},
    lane::{Http2, Lane, broken},
};
use crate::telemetry::CheckResult;

/// The longest answer, in bytes.
const ANSWER: usize = 1024 * 1024;
/// Says of a body that is shown whether it is only its beginning.
pub(super) const PARTIAL: HeaderName = HeaderName::from_static("x-envoy-auth-partial-body");

/// Asks about a connection or a request.
pub(super) async fn check(
    settings: &ProviderSettings,
    lane: &Lane,
    subject: &Subject<'_>,
    dialler: &dyn Dialler,
) -> Result<Verdict, Failure> {
    let asked = request(settings, subject);
    let mut again = true;
    loop {
        let (sender, reused) = lane.http2(dialler, &settings.addr).await?;
        match call(settings, sender, asked.clone()).await {
            Ok(answer) => return verdict(settings, answer),
            // The connection was there before, and has not outlived this.
            Err(status) if reused && again && std::error::Error::source(&status).is_some() => {
                again = false;
                lane.give_up_http2();
            }
            Err(status) if std::error::Error::source(&status).is_some() => {
                lane.give_up_http2();
                return Err(broken(&settings.addr, &status));
            }
            Err(status) => {
                let why = format!("it answered gRPC status {:?}: {}", status.code(), status.message());
                return Err(Failure::failed(why));
            }
        }
    }
}

async fn call(
    settings: &ProviderSettings,
    sender: Http2,
    asked: proto::CheckRequest,
) -> Result<proto::CheckResponse, tonic::Status> {
    let service = tower::service_fn(move |request: http::Request<tonic::body::Body>| {
        let mut sender = sender.clone();
        async move {
            sender.ready().await?;
            sender.send_request(request).await
        }
    });
    let origin = Uri::builder()
        .scheme("http")
        .authority(format!("{}:{}", settings.addr.host, settings.addr.port))
        .path_and_query("/")
        .build();
    let origin = origin.map_err(|error| tonic::Status::internal(error.to_string()))?;
    let mut client = AuthorizationClient::with_origin(service, origin).max_decoding_message_size(ANSWER);
    client.check(asked).await.map(tonic::Response::into_inner)
}

fn request(settings: &ProviderSettings, subject: &Subject<'_>) -> proto::CheckRequest {
    let peer = |addr: std::net::SocketAddr, principal: Option<String>| {
        let port_specifier = Some(PortSpecifier::PortValue(addr.port().into()));
        let socket = proto::SocketAddress { address: addr.ip().to_string(), port_specifier };
        Some(Peer {
            address: Some(proto::Address { address: Some(Place::SocketAddress(socket)) }),
            principal: principal.unwrap_or_default(),
        })
    };
    let request = subject.request.map(|head| proto::attribute_context::Request {
        time: Some(SystemTime::now().into()),
        http: Some(http_request(settings, head, subject.body)),
    });
    let attributes = proto::AttributeContext {
        source: peer(subject.source, subject.peer.map(ToString::to_string)),
        destination: peer(subject.destination, Some(subject.own.to_string())),
        request,
        tls_session: subject.peer.map(|_| proto::TlsSession::default()),
    };
    proto::CheckRequest { attributes: Some(attributes) }
}

fn http_request(
    settings: &ProviderSettings,
    head: &Parts,
    body: Option<(&[u8], bool)>,
) -> proto::HttpRequest {
    let text = |name: HeaderName| {
        head.headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let method = head.method.as_str().to_owned();
    let scheme = head.uri.scheme_str().unwrap_or("http").to_owned();
    let host = authority(head);
    let mut asked = proto::HttpRequest {
        id: text(HeaderName::from_static("x-request-id")).unwrap_or_default(),
        size: text(header::CONTENT_LENGTH).and_then(|size| size.parse().ok()).unwrap_or(-1),
        protocol: protocol(head.version).to_owned(),
        ..proto::HttpRequest::default()
    };
    for name in head.headers.keys().filter(|name| **name != PARTIAL) {
        let values: Vec<_> = head
            .headers
            .get_all(name)
            .iter()
            .map(|value| String::from_utf8_lossy(value.as_bytes()))
            .collect();
        asked.headers.insert(name.as_str().to_owned(), values.join(","));
    }
    for (name, value) in [(":method", &method), (":path", &path), (":scheme", &scheme), (":authority", &host)]
    {
        asked.headers.insert(name.to_owned(), value.clone());
    }
    if let (Some((bytes, whole)), Some(wanted)) = (body, settings.body) {
        let bytes = &bytes[..bytes.len().min(wanted.max_bytes)];
        match wanted.as_bytes {
            true => asked.raw_body = bytes.to_vec(),
            false => asked.body = String::from_utf8_lossy(bytes).into_owned(),
        }
        asked.headers.insert(PARTIAL.to_string(), (!whole).to_string());
    }
    (asked.method, asked.path, asked.scheme, asked.host) = (method, path, scheme, host);
    asked
}

fn protocol(version: http::Version) -> &'static str {
    match version {
        http::Version::HTTP_10 => "HTTP/1.0",
        http::Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}

/// The host that a request names, as it was sent.
pub(super) fn authority(head: &Parts) -> String {
    let named = head.uri.authority().map(|authority| authority.as_str().to_owned());
    let field = || Some(String::from_utf8_lossy(head.headers.get(header::HOST)?.as_bytes()).into_owned());
    named.or_else(field).unwrap_or_default()
}

fn verdict(settings: &ProviderSettings, answer: proto::CheckResponse) -> Result<Verdict, Failure> {
    let name = &settings.name;
    let Some(status) = answer.status else { return Err(Failure::failed("its answer has no status")) };
    match (status.code, answer.http_response) {
        (0, None) => Ok(Verdict::Admitted(Changes::default())),
        (0, Some(HttpResponse::OkResponse(ok))) => match changes(ok) {
            Ok(changes) => Ok(Verdict::Admitted(changes)),
            Err(what) => {
                let why =
                    format!("the provider {name} lets it in, and wants a change that is not made: {what}");
                Ok(Verdict::Denied(Denial { status: settings.status_on_error, ..Denial::forbidden(why) }))
            }
        },
        (0, Some(_)) => {
            let why = format!("the provider {name} says yes and no at once");
            Ok(Verdict::Denied(Denial { status: settings.status_on_error, ..Denial::forbidden(why) }))
        }
        (_, Some(HttpResponse::ErrorResponse(error))) => {
            let why = format!("it could not decide: {}", status.message);
            let denial = denial(error, settings.status_on_error, String::new());
            let answer = Some(Box::new(denial));
            Err(Failure { result: CheckResult::Failed, why, answer })
        }
        (code, response) => {
            let said = if status.message.is_empty() { format!("status {code}") } else { status.message };
            let why = format!("the provider {name} denied it: {said}");
            Ok(Verdict::Denied(match response {
                Some(HttpResponse::DeniedResponse(denied)) => denial(denied, StatusCode::FORBIDDEN, why),
                _ => Denial::forbidden(why),
            }))
        }
    }
}

fn denial(denied: proto::DeniedHttpResponse, default: StatusCode, why: String) -> Denial {
    let code = denied.status.and_then(|status| u16::try_from(status.code).ok());
    let status = code.filter(|code| (200..600).contains(code));
    let fields = denied.headers.into_iter().filter_map(|option| field(option).ok().flatten());
    let headers = fields.filter_map(|edit| match edit {
        Edit::Set(name, value)
        | Edit::Append(name, value)
        | Edit::AddIfAbsent(name, value)
        | Edit::SetIfPresent(name, value) => Some((name, value)),
        Edit::Remove(_) => None,
    });
    Denial {
        status: status.and_then(|code| StatusCode::from_u16(code).ok()).unwrap_or(default),
        headers: headers.collect(),
        body: denied.body.into(),
        why: why.into(),
    }
}

/// What is wanted; an error names what is not done.
fn changes(ok: proto::OkHttpResponse) -> Result<Changes, String> {
    let fields = |options: Vec<proto::HeaderValueOption>| {
        options.into_iter().filter_map(|option| field(option).transpose()).collect::<Result<Vec<Edit>, _>>()
    };
    let mut changes = Changes {
        request: fields(ok.headers)?,
        answer: fields(ok.response_headers_to_add)?,
        query: Vec::new(),
    };
    for name in ok.headers_to_remove {
        changes.request.push(Edit::Remove(changeable(&name)?));
    }
    let set = ok.query_parameters_to_set.into_iter();
    changes.query.extend(set.map(|parameter| QueryEdit::Set(parameter.key, parameter.value)));
    changes.query.extend(ok.query_parameters_to_remove.into_iter().map(QueryEdit::Remove));
    Ok(changes)
}

/// A name that may be changed.
fn changeable(name: &str) -> Result<HeaderName, String> {
    match HeaderName::from_bytes(name.as_bytes()) {
        Ok(name) if !is_framing(&name) => Ok(name),
        _ => Err(format!("of the header {name:?}")),
    }
}

/// One change; none where it would add an empty field and does not mean to.
fn field(option: proto::HeaderValueOption) -> Result<Option<Edit>, String> {
    let action = option.append_action();
    let Some(header) = option.header else { return Ok(None) };
    let name = changeable(&header.key)?;
    let bytes = if header.raw_value.is_empty() { header.value.into_bytes() } else { header.raw_value };
    if bytes.is_empty() && !option.keep_empty_value {
        return Ok(None);
    }
    let value = HeaderValue::from_bytes(&bytes).map_err(|_| format!("of the header {name}: its value"))?;
    Ok(Some(match (option.append, action) {
        (Some(true), _) => Edit::Append(name, value),
        (None, HeaderAppendAction::AddIfAbsent) => Edit::AddIfAbsent(name, value),
        (None, HeaderAppendAction::OverwriteIfExists) => Edit::SetIfPresent(name, value),
        _ => Edit::Set(name, value),
    }))
}
