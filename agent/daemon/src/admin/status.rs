//! `ambit.admin.v1.Admin` over the UNIX socket in the run directory.

use std::{sync::Arc, time::Duration};

use ambit_proto::admin::v1::{
    StatusRequest, StatusResponse,
    admin_server::{Admin, AdminServer},
};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, transport::Server};

use super::{AdminError, RunDir};

/// Connections listed when the caller does not say how many.
const DEFAULT_CONNECTIONS: u32 = 1_000;
/// The most connections listed to anyone.
const MAX_CONNECTIONS: u32 = 100_000;
/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may keep its connection.
const CONNECTION_AGE: Duration = Duration::from_secs(60);
/// How long the end of the agent waits for requests under way.
const DRAIN: Duration = Duration::from_secs(1);

/// Where the status comes from.
pub(crate) trait StatusProvider: Send + Sync + 'static {
    /// A snapshot of the agent, with every connection. Called on a thread that may block for a moment.
    fn status(&self) -> StatusResponse;
}

/// Answers status requests until `shutdown`.
pub(crate) async fn serve_status(
    run_dir: RunDir,
    provider: Arc<dyn StatusProvider>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), AdminError> {
    let (listener, _file) = run_dir.listen()?;
    let incoming = UnixListener::from_std(listener)
        .map(UnixListenerStream::new)
        .map_err(|source| AdminError::RunDir { path: RunDir::socket_path(run_dir.path()), source })?;
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let server = Server::builder()
        .timeout(REQUEST_TIMEOUT)
        .max_concurrent_streams(4)
        .concurrency_limit_per_connection(4)
        .max_connection_age(CONNECTION_AGE)
        .max_connection_age_grace(REQUEST_TIMEOUT)
        .serve_with_incoming_shutdown(AdminServer::new(Service { provider }), incoming, async {
            shutdown.await;
            let _ = stop.send(());
        });
    tokio::select! {
        served = server => served.map_err(AdminError::Status),
        () = async {
            let _ = stopped.await;
            tokio::time::sleep(DRAIN).await;
        } => Ok(()),
    }
}

struct Service {
    provider: Arc<dyn StatusProvider>,
}

#[tonic::async_trait]
impl Admin for Service {
    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let wanted = request.into_inner().max_connections.unwrap_or(DEFAULT_CONNECTIONS).min(MAX_CONNECTIONS);
        let provider = self.provider.clone();
        let mut status = tokio::task::spawn_blocking(move || provider.status())
            .await
            .map_err(|_| Status::internal("the agent could not describe itself; see its log"))?;
        status.connections_total = status.connections_total.max(status.connections.len() as u64);
        status.connections.truncate(wanted as usize);
        Ok(Response::new(status))
    }
}

#[cfg(test)]
mod tests {
    use ambit_proto::admin::v1::{Connection, admin_client::AdminClient};
    use tonic::transport::Endpoint;

    use super::*;

    struct Scripted(Option<StatusResponse>);

    impl StatusProvider for Scripted {
        fn status(&self) -> StatusResponse {
            self.0.clone().expect("the script has an answer")
        }
    }

    async fn ask(provider: Scripted, max_connections: Option<u32>) -> Result<StatusResponse, Status> {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = RunDir::claim(dir.path()).unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let server = tokio::spawn(serve_status(run_dir, Arc::new(provider), async {
            let _ = stopped.await;
        }));
        let path = RunDir::socket_path(dir.path());
        while !path.exists() {
            tokio::task::yield_now().await;
        }
        let channel =
            Endpoint::from_shared(format!("unix://{}", path.display())).unwrap().connect().await.unwrap();
        let answer = AdminClient::new(channel).status(StatusRequest { max_connections }).await;
        drop(stop);
        server.await.unwrap().unwrap();
        assert!(!path.exists(), "the socket outlived its server");
        answer.map(Response::into_inner)
    }

    fn with_connections(count: usize) -> Scripted {
        Scripted(Some(StatusResponse {
            node: "n1".to_owned(),
            connections: vec![Connection::default(); count],
            ..StatusResponse::default()
        }))
    }

    #[tokio::test]
    async fn connections_are_listed_as_far_as_asked_for_and_all_counted() {
        for (asked, listed) in [(None, 1_000), (Some(0), 0), (Some(7), 7), (Some(u32::MAX), 2_500)] {
            let status = ask(with_connections(2_500), asked).await.unwrap();
            assert_eq!((status.node.as_str(), status.connections.len()), ("n1", listed));
            assert_eq!(status.connections_total, 2_500);
        }
    }

    #[tokio::test]
    async fn a_provider_that_panics_is_an_error_not_the_end() {
        let status = ask(Scripted(None), None).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Internal);
    }
}
