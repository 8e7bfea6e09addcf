//! Unary gRPC calls: a server that answers with what it was sent, and a client that calls as often as it can.
//!
//! The method is that of Istio's certificate service, whose code is there already; no certificate is made.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use ambit_proto::istio::auth::{
    IstioCertificateRequest, IstioCertificateResponse,
    istio_certificate_service_client::IstioCertificateServiceClient,
    istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer},
};
use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use tokio::{runtime, task::JoinSet, time::timeout};
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint, Server, server::TcpIncoming},
};

use super::{IO_LIMIT, MESSAGE, clients::percentile_us, servers::listen_on};

/// How `grpc-load` calls.
#[derive(Clone, Debug, clap::Args)]
pub struct GrpcLoad {
    /// The server.
    #[arg(long)]
    to: SocketAddr,
    /// Connections.
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Calls under way at a time on each connection.
    #[arg(long, default_value_t = 1)]
    calls: usize,
    /// For this long, in milliseconds.
    #[arg(long, default_value_t = 2_000)]
    for_ms: u64,
}

/// What came of calling as often as possible.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Calls {
    /// Calls that were answered; one that was not is an error of the whole.
    pub calls: usize,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// Half of the calls took at most this long, in microseconds.
    pub p50_us: f64,
    /// 99 % of the calls took at most this long, in microseconds.
    pub p99_us: f64,
}

struct Echo;

#[tonic::async_trait]
impl IstioCertificateService for Echo {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        Ok(Response::new(IstioCertificateResponse { cert_chain: vec![request.into_inner().csr] }))
    }
}

/// Serves until the process is killed.
pub(super) fn serve(listen: SocketAddr) -> Result<()> {
    let listener = listen_on(listen)?;
    listener.set_nonblocking(true)?;
    runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let service = IstioCertificateServiceServer::new(Echo);
        Ok(Server::builder().serve_with_incoming(service, incoming).await?)
    })
}

/// Calls until the time is over.
pub(super) fn load(how: &GrpcLoad) -> Result<Calls> {
    runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(async {
        let (mut callers, mut took) = (JoinSet::new(), Vec::new());
        let start = Instant::now();
        let end = start + Duration::from_millis(how.for_ms);
        for _ in 0..how.connections {
            let endpoint = Endpoint::try_from(format!("http://{}", how.to))?.tcp_nodelay(true);
            let channel = endpoint.connect_timeout(IO_LIMIT).connect().await.context("connect")?;
            for _ in 0..how.calls {
                callers.spawn(call_until(end, IstioCertificateServiceClient::new(channel.clone())));
            }
        }
        while let Some(times) = callers.join_next().await {
            took.extend(times??);
        }
        took.sort_unstable();
        Ok(Calls {
            calls: took.len(),
            took_ms: start.elapsed().as_millis().try_into()?,
            p50_us: percentile_us(&took, 0.5),
            p99_us: percentile_us(&took, 0.99),
        })
    })
}

async fn call_until(
    end: Instant,
    mut client: IstioCertificateServiceClient<Channel>,
) -> Result<Vec<Duration>> {
    let csr = "x".repeat(MESSAGE);
    let mut took = Vec::new();
    while Instant::now() < end {
        let request = IstioCertificateRequest { csr: csr.clone(), validity_duration: 0, metadata: None };
        let start = Instant::now();
        let answer = timeout(IO_LIMIT, client.create_certificate(request)).await.context("no answer")??;
        took.push(start.elapsed());
        ensure!(answer.into_inner().cert_chain == [csr.as_str()], "another message came back");
    }
    Ok(took)
}
