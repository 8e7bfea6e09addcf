//! A provider of external authorization by Envoy's gRPC: lets in whom it is told to, and says what it is asked.

use std::net::SocketAddr;

use ambit_proto::envoy::auth::{
    CheckRequest, CheckResponse, DeniedHttpResponse, HeaderValue, HeaderValueOption, HttpStatus,
    OkHttpResponse, Status as Verdict,
    authorization_server::{Authorization, AuthorizationServer},
    check_response::HttpResponse,
};
use anyhow::Result;
use serde::Serialize;
use tokio::runtime;
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};

use super::servers::listen_on;

/// How `check-server` decides.
#[derive(Clone, Debug, clap::Args)]
pub struct CheckServer {
    /// Address and port.
    #[arg(long)]
    listen: SocketAddr,
    /// Lets in clients whose identity ends so, and no others.
    #[arg(long)]
    allow: Vec<String>,
}

/// One question, as it is printed.
#[derive(Debug, Serialize)]
struct Asked {
    /// Who asks.
    asker: Option<SocketAddr>,
    source: String,
    destination: String,
    path: Option<String>,
    allowed: bool,
}

struct Decider {
    allow: Vec<String>,
}

#[tonic::async_trait]
impl Authorization for Decider {
    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        let asker = request.remote_addr();
        let attributes = request.into_inner().attributes.unwrap_or_default();
        let source = attributes.source.map(|peer| peer.principal).unwrap_or_default();
        let destination = attributes.destination.map(|peer| peer.principal).unwrap_or_default();
        let path = attributes.request.and_then(|request| request.http).map(|http| http.path);
        let allowed = self.allow.iter().any(|end| source.ends_with(end.as_str()));
        let asked = Asked { asker, source, destination, path, allowed };
        super::print(&asked).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(answer(&asked)))
    }
}

/// A yes that changes headers both ways, or a no with a status and a text of its own.
fn answer(asked: &Asked) -> CheckResponse {
    let option = |key: &str, value: &str| HeaderValueOption {
        header: Some(HeaderValue { key: key.into(), value: value.into(), raw_value: Vec::new() }),
        ..HeaderValueOption::default()
    };
    let (code, response) = match asked.allowed {
        true => (
            0,
            HttpResponse::OkResponse(OkHttpResponse {
                headers: vec![option("x-checked", &asked.source)],
                headers_to_remove: vec!["x-secret".to_owned()],
                response_headers_to_add: vec![option("x-answered", "yes")],
                ..OkHttpResponse::default()
            }),
        ),
        false => (
            7,
            HttpResponse::DeniedResponse(DeniedHttpResponse {
                status: Some(HttpStatus { code: 418 }),
                headers: vec![option("x-why", "not on the list")],
                body: "not on the list".to_owned(),
            }),
        ),
    };
    let message = if asked.allowed { "" } else { "not on the list" }.to_owned();
    CheckResponse { status: Some(Verdict { code, message }), http_response: Some(response) }
}

/// Serves until the process is killed.
pub(super) fn serve(how: &CheckServer) -> Result<()> {
    let listener = listen_on(how.listen)?;
    listener.set_nonblocking(true)?;
    runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let service = AuthorizationServer::new(Decider { allow: how.allow.clone() });
        Ok(Server::builder().serve_with_incoming(service, incoming).await?)
    })
}
