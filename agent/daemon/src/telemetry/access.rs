//! The access log: one line for each connection, at its end, target `access`.
//!
//! Field names and their order are ztunnel's; `reason`, `policy`, `rule`, `security`, `dst.original_addr` and `connection` are ours
//! and come last. The lines of a connection at its two ends have the same `connection`: the ports of `src.addr` differ, as the
//! tunnel comes from a port of its own. Requests have a line each under `access::request`. Byte counts are from our own pod's view, unlike the metrics: `bytes_sent` is what our pod sent.

use std::{borrow::Cow, fmt, sync::atomic::Ordering, time::Duration};

use ambit_core::reason::{Reason, Refusal};
use http::StatusCode;
use tracing::{Level, enabled, event};

use super::{
    Direction, Ending, Meta, Party, RequestEnd, ResponseFlag, cluster_of, live::Live, logging::FieldWriter,
    request::Head,
};

const TARGET: &str = "access";
const REQUEST: &str = "access::request";

/// `connection opened`, for those who follow connections live.
pub(super) fn opened(meta: &Meta) {
    if !enabled!(target: TARGET, Level::DEBUG) {
        return;
    }
    let (source, destination) =
        (PartyFields::of(&meta.source, meta), PartyFields::of(&meta.destination, meta));
    event!(
        target: TARGET,
        Level::DEBUG,
        src.addr = %meta.source_addr,
        src.workload = source.workload,
        src.namespace = source.namespace,
        src.identity = source.identity,
        dst.addr = %meta.destination_addr,
        dst.service = service(meta),
        dst.workload = destination.workload,
        dst.namespace = destination.namespace,
        dst.identity = destination.identity,
        direction = direction(meta),
        connection = meta.id.map(tracing::field::display),
        "connection opened"
    );
}

/// `connection to outside`: the name that the application's TLS has, which is its own word.
pub(super) fn outside(meta: &Meta, name: Option<&str>) {
    if !enabled!(target: TARGET, Level::INFO) {
        return;
    }
    let source = PartyFields::of(&meta.source, meta);
    event!(
        target: TARGET,
        Level::INFO,
        src.addr = %meta.source_addr,
        src.workload = source.workload,
        src.namespace = source.namespace,
        dst.addr = %meta.destination_addr,
        dst.host = name,
        direction = direction(meta),
        "connection to outside"
    );
}

/// `connection failed`: refused before it was opened, as were `unsaid` others of the same pod and reason.
pub(super) fn refused(meta: &Meta, refusal: &Refusal, unsaid: u64) {
    if !enabled!(target: TARGET, Level::WARN) {
        return;
    }
    let (source, destination) =
        (PartyFields::of(&meta.source, meta), PartyFields::of(&meta.destination, meta));
    event!(
        target: TARGET,
        Level::WARN,
        src.addr = %meta.source_addr,
        src.workload = source.workload,
        src.namespace = source.namespace,
        src.identity = source.identity,
        dst.addr = %meta.destination_addr,
        dst.service = service(meta),
        dst.workload = destination.workload,
        dst.namespace = destination.namespace,
        dst.identity = destination.identity,
        direction = direction(meta),
        error = &*refusal.text,
        reason = refusal.reason.label(),
        policy = refusal.policy.as_deref(),
        rule = refusal.rule.as_deref(),
        security = meta.security.label(),
        dst.original_addr = meta.original_dst.map(tracing::field::display),
        connection = meta.id.map(tracing::field::display),
        unsaid = (unsaid > 0).then_some(unsaid),
        "connection failed"
    );
}

/// `connection complete`: an error line if the connection broke or was cut, as were `unsaid` others of the same pod and reason.
pub(super) fn ended(live: &Live, ending: &Ending, unsaid: u64) {
    let complete = Complete { live, outcome: Outcome::of(ending), unsaid };
    // The level of an event is fixed at its place in the code, hence two places.
    if complete.outcome.error.is_some() {
        event!(target: TARGET, Level::ERROR, fields = ?complete, "connection complete");
    } else {
        event!(target: TARGET, Level::INFO, fields = ?complete, "connection complete");
    }
}

/// The fields of `connection complete`.
struct Complete<'a> {
    live: &'a Live,
    outcome: Outcome<'a>,
    unsaid: u64,
}

impl fmt::Debug for Complete<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { live, outcome, unsaid } = self;
        let meta = &live.meta;
        let (bytes_sent, bytes_recv) = own_view(live);
        let mut out = FieldWriter::new(f);
        out.word("src.addr", Some(meta.source_addr))?;
        party(&mut out, SOURCE, &meta.source, meta)?;
        out.word("dst.addr", Some(meta.destination_addr))?;
        out.text("dst.service", service(meta))?;
        party(&mut out, DESTINATION, &meta.destination, meta)?;
        out.plain("direction", &[direction(meta)])?;
        out.number("bytes_sent", Some(bytes_sent))?;
        out.number("bytes_recv", Some(bytes_recv))?;
        out.quoted("duration", Some(format_args!("{}ms", live.since.elapsed().as_millis())))?;
        out.text("error", outcome.error.as_deref())?;
        out.text("reason", outcome.reason)?;
        out.text("policy", outcome.policy)?;
        out.text("rule", outcome.rule)?;
        out.plain("security", &[meta.security.label()])?;
        out.word("dst.original_addr", meta.original_dst)?;
        out.word("connection", meta.id)?;
        out.number("unsaid", (*unsaid > 0).then_some(unsaid))
    }
}

/// Names of the fields of one end: workload, namespace, identity, cluster.
const SOURCE: [&str; 4] = ["src.workload", "src.namespace", "src.identity", "src.cluster"];
const DESTINATION: [&str; 4] = ["dst.workload", "dst.namespace", "dst.identity", "dst.cluster"];

/// What is known of one end.
fn party(
    out: &mut FieldWriter<'_, '_>,
    [workload, namespace, identity, cluster]: [&str; 4],
    party: &Party,
    meta: &Meta,
) -> fmt::Result {
    let name = party.workload.as_ref().map(|workload| &workload.name);
    out.text(workload, name.map(|name| &*name.name))?;
    out.text(namespace, name.map(|name| &*name.namespace))?;
    if let Some(id) = party.identity.as_ref().filter(|_| meta.security.is_proven()) {
        // As it is displayed: letters, digits and a few signs.
        let parts =
            ["spiffe://", id.trust_domain().as_str(), "/ns/", id.namespace(), "/sa/", id.service_account()];
        out.plain(identity, &parts)?;
    }
    out.text(cluster, name.map(cluster_of))
}

/// `request complete`: a warning if it has no answer of the application.
pub(super) fn request(meta: &Meta, head: &Head, end: &RequestEnd, duration: Duration) {
    // The level of an event is fixed at its place in the code, hence two places.
    macro_rules! complete {
        ($level:expr) => {
            if enabled!(target: REQUEST, $level) {
                let source = PartyFields::of(&meta.source, meta);
                let destination = PartyFields::of(&meta.destination, meta);
                event!(
                    target: REQUEST,
                    $level,
                    src.addr = %meta.source_addr,
                    src.workload = source.workload,
                    src.namespace = source.namespace,
                    src.identity = source.identity,
                    dst.addr = %meta.destination_addr,
                    dst.service = service(meta),
                    dst.workload = destination.workload,
                    dst.namespace = destination.namespace,
                    dst.identity = destination.identity,
                    method = head.method.as_str(),
                    path = &*head.path,
                    authority = &*head.authority,
                    protocol = ?head.version,
                    status = end.status.map(|status| status.as_u16()),
                    grpc_status = end.grpc_status.filter(|_| head.grpc),
                    request_bytes = end.request_bytes,
                    response_bytes = end.response_bytes,
                    duration = format!("{}ms", duration.as_millis()),
                    flags = end.flag.label(),
                    request_id = head.request_id.as_deref(),
                    trace_id = head.trace_id.as_deref(),
                    security = meta.security.label(),
                    connection = meta.id.map(tracing::field::display),
                    "request complete"
                );
            }
        };
    }
    if end.flag == ResponseFlag::None { complete!(Level::INFO) } else { complete!(Level::WARN) }
}

/// `request failed`: refused, as were `unsaid` others of the same pod and reason.
pub(super) fn request_refused(
    meta: &Meta,
    head: Option<&Head>,
    refusal: &Refusal,
    status: StatusCode,
    unsaid: u64,
) {
    if !enabled!(target: REQUEST, Level::WARN) {
        return;
    }
    let (source, destination) =
        (PartyFields::of(&meta.source, meta), PartyFields::of(&meta.destination, meta));
    event!(
        target: REQUEST,
        Level::WARN,
        src.addr = %meta.source_addr,
        src.workload = source.workload,
        src.namespace = source.namespace,
        src.identity = source.identity,
        dst.addr = %meta.destination_addr,
        dst.service = service(meta),
        dst.workload = destination.workload,
        dst.namespace = destination.namespace,
        dst.identity = destination.identity,
        method = head.map(|head| head.method.as_str()),
        path = head.map(|head| &*head.path),
        authority = head.map(|head| &*head.authority),
        protocol = head.map(|head| tracing::field::debug(head.version)),
        status = status.as_u16(),
        error = &*refusal.text,
        reason = refusal.reason.label(),
        policy = refusal.policy.as_deref(),
        rule = refusal.rule.as_deref(),
        request_id = head.and_then(|head| head.request_id.as_deref()),
        trace_id = head.and_then(|head| head.trace_id.as_deref()),
        security = meta.security.label(),
        connection = meta.id.map(tracing::field::display),
        unsaid = (unsaid > 0).then_some(unsaid),
        "request failed"
    );
}

/// What the line says of the end.
#[derive(Default)]
struct Outcome<'a> {
    error: Option<Cow<'a, str>>,
    reason: Option<&'static str>,
    policy: Option<&'a str>,
    rule: Option<&'a str>,
}

impl<'a> Outcome<'a> {
    fn of(ending: &'a Ending) -> Self {
        match ending {
            Ending::Closed => Self::default(),
            Ending::Reset => Self { reason: Some(Reason::Reset.label()), ..Self::default() },
            Ending::Refused { refusal, by_peer: true } => {
                let error = Cow::Owned(format!("refused by the peer: {}", refusal.text));
                Self { error: Some(error), ..Self::refused(refusal) }
            }
            Ending::Refused { refusal, by_peer: false } | Ending::Failed(refusal) => Self::refused(refusal),
            Ending::Aborted => {
                Self { error: Some(Cow::Borrowed("given up by the agent")), ..Self::default() }
            }
        }
    }

    fn refused(refusal: &'a Refusal) -> Self {
        Self {
            error: Some(Cow::Borrowed(&*refusal.text)),
            reason: Some(refusal.reason.label()),
            policy: refusal.policy.as_deref(),
            rule: refusal.rule.as_deref(),
        }
    }
}

struct PartyFields<'a> {
    workload: Option<&'a str>,
    namespace: Option<&'a str>,
    identity: Option<String>,
}

impl<'a> PartyFields<'a> {
    fn of(party: &'a Party, meta: &Meta) -> Self {
        let name = party.workload.as_ref().map(|workload| &workload.name);
        let proven = meta.security.is_proven();
        Self {
            workload: name.map(|name| &*name.name),
            namespace: name.map(|name| &*name.namespace),
            identity: party.identity.as_ref().filter(|_| proven).map(ToString::to_string),
        }
    }
}

/// Bytes sent and received by our own pod.
fn own_view(live: &Live) -> (u64, u64) {
    let client_to_server = live.client_to_server.load(Ordering::Relaxed);
    let server_to_client = live.server_to_client.load(Ordering::Relaxed);
    match live.meta.direction {
        Direction::Outbound => (client_to_server, server_to_client),
        Direction::Inbound => (server_to_client, client_to_server),
    }
}

fn service(meta: &Meta) -> Option<&str> {
    meta.service.as_ref().map(|service| &*service.host)
}

fn direction(meta: &Meta) -> &'static str {
    match meta.direction {
        Direction::Outbound => "outbound",
        Direction::Inbound => "inbound",
    }
}
