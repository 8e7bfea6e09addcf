//! A collector of spans: prints each that it is sent, a line each.

use std::net::SocketAddr;

use ambit_proto::opentelemetry::trace::{
    ExportTraceServiceRequest, ExportTraceServiceResponse, KeyValue,
    any_value::Value,
    trace_service_server::{TraceService, TraceServiceServer},
};
use anyhow::Result;
use serde_json::{Map, json};
use tokio::runtime;
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};

use super::servers::listen_on;

struct Printer;

#[allow(clippy::print_stdout, reason = "the harness reads these lines")]
#[tonic::async_trait]
impl TraceService for Printer {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for of_service in request.into_inner().resource_spans {
            let resource = pairs(&of_service.resource.unwrap_or_default().attributes);
            for span in of_service.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                let line = json!({
                    "service": resource.get("service.name"),
                    "trace": hex(&span.trace_id),
                    "span": hex(&span.span_id),
                    "parent": hex(&span.parent_span_id),
                    "name": span.name,
                    "nanoseconds": span.end_time_unix_nano.saturating_sub(span.start_time_unix_nano),
                    "attributes": pairs(&span.attributes),
                });
                println!("{line}");
            }
        }
        Ok(Response::new(ExportTraceServiceResponse { partial_success: None }))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn pairs(attributes: &[KeyValue]) -> Map<String, serde_json::Value> {
    let value = |pair: &KeyValue| match pair.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => json!(text),
        Some(Value::IntValue(number)) => json!(number),
        Some(Value::BoolValue(truth)) => json!(truth),
        None => serde_json::Value::Null,
    };
    attributes.iter().map(|pair| (pair.key.clone(), value(pair))).collect()
}

/// Serves until the process is killed.
#[allow(clippy::print_stdout, reason = "the harness waits for this line")]
pub(super) fn serve(listen: SocketAddr) -> Result<()> {
    let listener = listen_on(listen)?;
    listener.set_nonblocking(true)?;
    runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        println!("ready");
        Ok(Server::builder().serve_with_incoming(TraceServiceServer::new(Printer), incoming).await?)
    })
}
