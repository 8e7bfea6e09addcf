//! One HTTP request on a connection, from its head to the end of its answer.
//!
//! What a connection's requests have in common is looked up once and kept with it. A request holds what its line in the access
//! log needs, each piece of bounded size.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use ambit_core::reason::{Reason, Refusal};
use http::{HeaderMap, StatusCode, Version, header, request::Parts};

use super::{
    Connection, Telemetry, access,
    live::Live,
    requests::{Group, Measured, Outcome, ResponseFlag},
    traces::{Context, Place, Span},
    traffic::TrafficLabels,
};

/// What of a path, an authority or a request id is kept.
const MAX_TEXT: usize = 512;
/// How long a method and path that were seen on a connection are not looked at again.
const SEEN_FOR: Duration = Duration::from_secs(60);
/// Methods and paths that a connection remembers to have seen.
const SEEN: usize = 16;

/// What a connection keeps once it has carried a request.
#[derive(Debug)]
pub(super) struct Parsed {
    group: Arc<Group>,
    hasher: RandomState,
    /// Hashes of methods and paths, and when they were last told of.
    seen: Mutex<Vec<(u64, Instant)>>,
}

/// A request under way. Dropped without an end it counts as one whose client has gone.
#[derive(Debug)]
pub(crate) struct Request {
    /// `None` once it is counted.
    begun: Option<Box<Begun>>,
}

#[derive(Debug)]
struct Begun {
    telemetry: Telemetry,
    live: Arc<Live>,
    head: Head,
    /// Its place in a trace that is sampled.
    place: Option<Place>,
    since: Instant,
}

/// What is kept of a request's head.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) method: http::Method,
    /// Without the query, in which there may be secrets.
    pub(super) path: Box<str>,
    pub(super) authority: Box<str>,
    pub(super) version: Version,
    pub(super) request_id: Option<Box<str>>,
    /// The trace that it is of, in 32 digits.
    pub(super) trace_id: Option<Box<str>>,
    pub(super) grpc: bool,
}

/// How a request ended that was let in.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RequestEnd {
    /// Of the answer, if there was one.
    pub(crate) status: Option<StatusCode>,
    /// `grpc-status` of the trailers, or of an answer that has no body.
    pub(crate) grpc_status: Option<i64>,
    /// Of the body.
    pub(crate) request_bytes: u64,
    /// Of the body.
    pub(crate) response_bytes: u64,
    /// gRPC messages of the client.
    pub(crate) request_messages: u64,
    /// gRPC messages of the application.
    pub(crate) response_messages: u64,
    /// What went wrong.
    pub(crate) flag: ResponseFlag,
}

impl Connection {
    /// A request has come, with its path as it would be forwarded. Where traces are sent, its headers come to tell of our part in
    /// its trace.
    pub(crate) fn request(&self, head: &mut Parts) -> Request {
        let live = &self.live;
        let fresh = live.parsed.get().is_none();
        live.parsed(&self.telemetry);
        if fresh {
            self.telemetry.0.observed.carries_requests(&live.meta, SystemTime::now());
        }
        let came = Context::of(&head.headers);
        let traces = self.telemetry.0.traces.get();
        let place = traces.and_then(|traces| traces.begin(came.as_ref(), &mut head.headers));
        let trace_id = place.as_ref().map(Place::trace_id).or_else(|| came?.trace_id());
        let begun = Begun {
            telemetry: self.telemetry.clone(),
            live: live.clone(),
            head: Head { trace_id: trace_id.map(String::into_boxed_str), ..Head::of(head) },
            place,
            since: Instant::now(),
        };
        Request { begun: Some(Box::new(begun)) }
    }

    /// What came is no request, and was answered with 400.
    pub(crate) fn malformed(&self, refusal: &Refusal) {
        let outcome = Outcome {
            grpc: false,
            status: StatusCode::BAD_REQUEST.as_u16(),
            grpc_status: None,
            flag: ResponseFlag::ProtocolError,
        };
        let parsed = self.live.parsed(&self.telemetry);
        parsed.group.count(outcome, &Measured::default(), Instant::now());
        self.telemetry.request_refused(&self.live, None, refusal, StatusCode::BAD_REQUEST);
    }
}

impl Live {
    fn parsed(&self, telemetry: &Telemetry) -> &Parsed {
        self.parsed.get_or_init(|| {
            let group = telemetry.0.metrics.requests.group(TrafficLabels::of(&self.meta), Instant::now());
            Box::new(Parsed { group, hasher: RandomState::new(), seen: Mutex::default() })
        })
    }
}

impl Parsed {
    /// Whether it is time to tell of this method and path.
    fn is_news(&self, head: &Head, now: Instant) -> bool {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(head.method.as_str().as_bytes());
        hasher.write_u8(0);
        hasher.write(head.path.as_bytes());
        let hash = hasher.finish();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let known = seen.iter_mut().find(|(other, _)| *other == hash);
        if let Some((_, told)) = known {
            let is_news = now.saturating_duration_since(*told) >= SEEN_FOR;
            if is_news {
                *told = now;
            }
            return is_news;
        }
        if seen.len() < SEEN {
            seen.push((hash, now));
        } else if let Some(oldest) = seen.iter_mut().min_by_key(|(_, told)| *told) {
            *oldest = (hash, now);
        }
        true
    }
}

impl Request {
    /// Its headers have been changed to tell of its place in a trace.
    pub(crate) fn is_traced(&self) -> bool {
        self.begun.as_ref().is_some_and(|begun| begun.place.is_some())
    }

    /// It is let in, and goes to the application.
    pub(crate) fn admitted(&self) {
        let Some(Begun { telemetry, live, head, .. }) = self.begun.as_deref() else { return };
        if live.parsed(telemetry).is_news(head, Instant::now()) {
            let observed = &telemetry.0.observed;
            observed.requested(&live.meta, head.method.as_str(), &head.path, SystemTime::now());
        }
    }

    /// It is refused, and has been answered so.
    pub(crate) fn refused(mut self, refusal: &Refusal, status: StatusCode) {
        let Some(mut begun) = self.begun.take() else { return };
        let flag = match refusal.reason {
            Reason::ProviderRefused => ResponseFlag::Unauthorized,
            Reason::Overloaded => ResponseFlag::Overloaded,
            Reason::MalformedRequest => ResponseFlag::ProtocolError,
            _ => ResponseFlag::None,
        };
        let grpc_status = match status {
            StatusCode::UNAUTHORIZED => Some(16),
            _ => Some(7),
        };
        let grpc_status = grpc_status.filter(|_| begun.head.grpc);
        // gRPC has its own status, and always this one of HTTP's.
        let status = if begun.head.grpc { StatusCode::OK } else { status };
        let end = RequestEnd { status: Some(status), grpc_status, flag, ..RequestEnd::default() };
        let measured = begun.count(&end);
        begun.trace(&end, measured.duration, Some(refusal));
        begun.telemetry.request_refused(&begun.live, Some(&begun.head), refusal, status);
    }

    /// It has been answered, or never will be.
    pub(crate) fn finish(mut self, end: &RequestEnd) {
        self.end(end);
    }

    fn end(&mut self, end: &RequestEnd) {
        let Some(mut begun) = self.begun.take() else { return };
        let measured = begun.count(end);
        access::request(&begun.live.meta, &begun.head, end, measured.duration);
        begun.trace(end, measured.duration, None);
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.end(&RequestEnd { flag: ResponseFlag::DownstreamClosed, ..RequestEnd::default() });
    }
}

impl Begun {
    fn count(&self, end: &RequestEnd) -> Measured {
        let now = Instant::now();
        let measured = Measured {
            duration: now.saturating_duration_since(self.since),
            request_bytes: end.request_bytes,
            response_bytes: end.response_bytes,
            request_messages: end.request_messages,
            response_messages: end.response_messages,
        };
        let grpc_status = end.grpc_status.and_then(|status| u8::try_from(status).ok());
        let outcome = Outcome {
            grpc: self.head.grpc,
            status: end.status.map_or(0, |status| status.as_u16()),
            grpc_status: grpc_status.filter(|status| *status <= 16 && self.head.grpc),
            flag: end.flag,
        };
        self.live.parsed(&self.telemetry).group.count(outcome, &measured, now);
        measured
    }

    fn trace(&mut self, end: &RequestEnd, duration: Duration, refusal: Option<&Refusal>) {
        let (Some(place), Some(traces)) = (self.place.take(), self.telemetry.0.traces.get()) else { return };
        let (meta, head) = (&self.live.meta, &self.head);
        let service = meta.destination.workload.as_ref();
        let service = service.map(|pod| format!("{}.{}", pod.canonical_name(), pod.name.namespace).into());
        let proven = meta.security.is_proven();
        let now = SystemTime::now();
        traces.send(Span {
            place,
            service: service.unwrap_or_else(|| "unknown".into()),
            start: now.checked_sub(duration).unwrap_or(now),
            duration,
            method: head.method.as_str().to_owned(),
            path: head.path.clone(),
            authority: head.authority.clone(),
            protocol: match head.version {
                Version::HTTP_10 => "1.0",
                Version::HTTP_2 => "2",
                _ => "1.1",
            },
            status: end.status.map(|status| status.as_u16()),
            grpc_status: end.grpc_status.filter(|_| head.grpc),
            client: meta.source_addr,
            source: meta.source.identity.as_ref().filter(|_| proven).map(ToString::to_string),
            request_id: head.request_id.clone(),
            refused: refusal.map(|refusal| (refusal.reason.label(), refusal.policy.clone())),
            flag: end.flag.label(),
        });
    }
}

impl Telemetry {
    fn request_refused(&self, live: &Live, head: Option<&Head>, refusal: &Refusal, status: StatusCode) {
        let meta = &live.meta;
        let shared = &self.0;
        shared.metrics.refused(meta, refusal.reason);
        if refusal.reason.is_denial() {
            shared.metrics.policy.denied(meta.direction, refusal, false, Instant::now());
            let request = head.map(|head| (head.method.as_str().into(), head.path.clone()));
            shared.observed.refused_request(meta, refusal, request, SystemTime::now());
        }
        if let Some(unsaid) = shared.pace.line(meta, refusal.reason, Instant::now()) {
            access::request_refused(meta, head, refusal, status, unsaid);
        }
    }
}

impl Head {
    fn of(head: &Parts) -> Self {
        let Parts { method, uri, version, headers, .. } = head;
        let host = || text(headers, &header::HOST).unwrap_or_default();
        let authority = uri.authority().map_or_else(host, |authority| cut(authority.as_str()));
        Self {
            method: method.clone(),
            path: cut(uri.path()),
            authority,
            version: *version,
            request_id: text(headers, &header::HeaderName::from_static("x-request-id")),
            trace_id: None,
            grpc: headers
                .get(header::CONTENT_TYPE)
                .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")),
        }
    }
}

fn text(headers: &HeaderMap, name: &header::HeaderName) -> Option<Box<str>> {
    Some(cut(&String::from_utf8_lossy(headers.get(name)?.as_bytes())))
}

/// As much of it as is kept.
fn cut(text: &str) -> Box<str> {
    if text.len() <= MAX_TEXT {
        return text.into();
    }
    let end = (0..=MAX_TEXT).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
    format!("{}…", &text[..end]).into()
}
