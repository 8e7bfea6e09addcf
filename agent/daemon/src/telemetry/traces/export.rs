//! The way of spans to the collector: OTLP over gRPC, in batches.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use ambit_proto::opentelemetry::trace::{
    AnyValue, ExportTraceServiceRequest, InstrumentationScope, KeyValue, Resource, ResourceSpans, ScopeSpans,
    Span as Message, Status, any_value::Value, trace_service_client::TraceServiceClient,
};
use rustls::{ClientConfig, crypto::aws_lc_rs};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tonic::transport::{Channel, Endpoint};

use super::{Place, Span, SpanCounts, TraceSettings};
use crate::{error::with_causes, web_pki};

/// Spans of one call.
const BATCH: usize = 512;
/// How long spans gather after the first.
const GATHER: Duration = Duration::from_secs(1);
/// How long the collector has for a call.
const PATIENCE: Duration = Duration::from_secs(10);
const CONNECT: Duration = Duration::from_secs(5);
/// `SPAN_KIND_SERVER`.
const SERVER: i32 = 2;
/// `STATUS_CODE_ERROR`.
const ERROR: i32 = 2;

/// Sends what comes until nobody is left who could send more.
pub(super) async fn run(settings: TraceSettings, mut spans: mpsc::Receiver<Span>, counts: SpanCounts) {
    let mut client = match channel(&settings) {
        Ok(channel) => TraceServiceClient::new(channel),
        Err(error) => {
            tracing::error!(
                endpoint = %settings.endpoint,
                error = with_causes(&*error),
                "no spans are sent: the collector's address cannot be used"
            );
            return;
        }
    };
    let (mut batch, mut failing) = (Vec::with_capacity(BATCH), false);
    while spans.recv_many(&mut batch, BATCH).await > 0 {
        if batch.len() < BATCH {
            sleep(GATHER).await;
            while batch.len() < BATCH {
                let Ok(span) = spans.try_recv() else { break };
                batch.push(span);
            }
        }
        let sent = batch.len() as u64;
        let request = request(&settings.node, batch.drain(..));
        let error = match timeout(PATIENCE, client.export(request)).await {
            Ok(Ok(answer)) => {
                let rejected =
                    answer.into_inner().partial_success.map_or(0, |partial| partial.rejected_spans);
                let rejected = u64::try_from(rejected).unwrap_or_default().min(sent);
                counts.exported.inc_by(sent - rejected);
                counts.failed.inc_by(rejected);
                None
            }
            Ok(Err(status)) => Some(format!("{}: {}", status.code(), status.message())),
            Err(_) => Some(format!("it did not answer within {PATIENCE:?}")),
        };
        if error.is_some() {
            counts.failed.inc_by(sent);
        }
        match (&error, failing) {
            (Some(error), false) => {
                tracing::warn!(endpoint = %settings.endpoint, error, "spans are lost: the collector does not take them");
            }
            (None, true) => tracing::info!(endpoint = %settings.endpoint, "the collector takes spans again"),
            _ => {}
        }
        failing = error.is_some();
    }
}

fn channel(settings: &TraceSettings) -> Result<Channel, Box<dyn std::error::Error + Send + Sync>> {
    let endpoint = Endpoint::from(settings.endpoint.clone()).connect_timeout(CONNECT);
    let provider = Arc::new(aws_lc_rs::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(web_pki::roots())
        .with_no_client_auth();
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http2()
        .build();
    Ok(endpoint.connect_with_connector_lazy(connector))
}

fn request(node: &str, spans: impl Iterator<Item = Span>) -> ExportTraceServiceRequest {
    let mut services = BTreeMap::<Arc<str>, Vec<Message>>::new();
    for span in spans {
        services.entry(span.service.clone()).or_default().push(message(span));
    }
    let scope =
        InstrumentationScope { name: "ambit".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() };
    let resource_spans = services.into_iter().map(|(service, spans)| ResourceSpans {
        resource: Some(Resource {
            attributes: vec![text("service.name", &*service), text("k8s.node.name", node)],
        }),
        scope_spans: vec![ScopeSpans { scope: Some(scope.clone()), spans }],
    });
    ExportTraceServiceRequest { resource_spans: resource_spans.collect() }
}

/// Names are those of the semantic conventions for HTTP: <https://opentelemetry.io/docs/specs/semconv/http/http-spans/>.
fn message(span: Span) -> Message {
    let Place { trace_id, span_id, parent, state } = span.place;
    let start = span.start.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let nanos = |since: Duration| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
    let mut attributes = vec![
        text("http.request.method", &*span.method),
        text("url.path", &*span.path),
        text("server.address", &*span.authority),
        text("network.protocol.version", span.protocol),
        text("client.address", span.client.ip().to_string()),
        number("client.port", span.client.port().into()),
        text("ambit.response_flags", span.flag),
    ];
    attributes.extend(span.status.map(|status| number("http.response.status_code", status.into())));
    attributes.extend(span.grpc_status.map(|status| number("rpc.grpc.status_code", status)));
    attributes.extend(span.source.map(|source| text("ambit.source_principal", source)));
    attributes.extend(span.request_id.map(|id| text("http.request.header.x-request-id", &*id)));
    let failed = span.status.is_none_or(|status| status >= 500);
    let mut why = String::new();
    if let Some((reason, policy)) = span.refused {
        attributes.push(text("ambit.reason", reason));
        attributes.extend(policy.map(|policy| text("ambit.policy", &*policy)));
        reason.clone_into(&mut why);
    }
    Message {
        trace_id: trace_id.to_be_bytes().to_vec(),
        span_id: span_id.to_be_bytes().to_vec(),
        trace_state: state,
        parent_span_id: parent.map(|parent| parent.to_be_bytes().to_vec()).unwrap_or_default(),
        name: span.method,
        kind: SERVER,
        start_time_unix_nano: nanos(start),
        end_time_unix_nano: nanos(start + span.duration),
        attributes,
        status: Some(Status { message: why, code: if failed { ERROR } else { 0 } }),
        flags: 1,
    }
}

fn text(key: &str, value: impl Into<String>) -> KeyValue {
    attribute(key, Value::StringValue(value.into()))
}

fn number(key: &str, value: i64) -> KeyValue {
    attribute(key, Value::IntValue(value))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }) }
}
